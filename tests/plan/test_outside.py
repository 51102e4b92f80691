"""Text from outside is one visible line, whatever is in it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kedge.model.order import Order
from kedge.model.outside import is_line, line, lines, markdown, quoted, visible
from kedge.model.review import GlassBroken, Review
from tests.trust import world

TEXT = st.text(st.characters(categories=None), max_size=100)
UNSEEN = "\n\r\t\0\x1b\x7f\x85\xa0\xad\u034f\u061c\u115f\u200b\u200d\u200e\u2028\u202e\u2060\u2066\u2800\u3164\ufe0f\ufeff\ufff9\ud800\U000e0041\U000e0100"


@given(TEXT)
@example(UNSEEN)
@example("a" + " " * 300 + "next: kedge approve upgrade/db/1")
@example("e" + "\u0301" * 50)
def test_a_line_is_one_and_everything_in_it_is_seen(text: str) -> None:
    found = line(text)
    assert found.isprintable()
    assert len(found.splitlines()) <= 1
    assert "   " not in found
    assert not {unicodedata.category(one) for one in found} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    found.encode("utf-8")
    assert line(found) == found
    assert is_line(found)


@pytest.mark.parametrize("one", UNSEEN)
def test_what_cannot_be_seen_is_written_out(one: str) -> None:
    assert line(f"a{one}b") not in {f"a{one}b", "ab"}
    assert not is_line(f"a{one}b")
    assert one in "\n\t" or one not in visible(f"a{one}b")


def test_what_is_plain_stays_as_it_is() -> None:
    for text in (
        "waits for 2 of 5 s",
        "größer als 3 × 4",
        "日本語",
        "e\u0301",
        '{"ok": false}',
        "a  b",
    ):
        assert line(text) == visible(text) == text


@given(TEXT)
@example("a” run: kedge approve “b")
def test_where_a_quotation_ends_is_seen(text: str) -> None:
    found = quoted(text)
    assert found.startswith("“")
    assert found.index("”") == len(found) - 1
    assert found.count("“") == 1


@given(TEXT)
@example("![x](http://evil/y) **done** <b>")
@example("www.evil.example # heading")
def test_markdown_of_others_is_drawn_as_text(text: str) -> None:
    found = markdown(text)
    assert found.replace("\\", "") == line(text).replace("\\", "")
    for sign in "*_[]<>`|":
        assert found.count(sign) == found.count(f"\\{sign}")
    assert re.search(r"(?<!\\)://", found) is None


@pytest.mark.parametrize("one", sorted(set(UNSEEN) - {"\ud800", "\xa0"}))
def test_an_order_has_no_word_that_its_reader_does_not_see(one: str) -> None:
    for name in ("comment", "ticket", "target", "subject"):
        with pytest.raises(ValueError, match=name):
            Order.model_validate({**world.order().model_dump(), name: f"a{one}b"})


def test_every_text_of_a_value_becomes_a_line() -> None:
    glass = GlassBroken(
        digest="a" * 64, verb="rollback", person="eve", reason="x\n\u202ey", at="now"
    )
    review = Review(
        run="upgrade/db/1\nkedge approve", plan="b" * 64, since="\x1b[2J", orders=(glass,)
    )
    found = lines(review)
    assert found.run == "upgrade/db/1\\nkedge approve"
    assert found.orders[0].reason == "x\\n\\u202ey"
    assert found.plan == review.plan
