"""What a node, a file name, a comment or a forged status says never begins a line of kedge's own, in any interface."""

from __future__ import annotations

import io
import json
import logging
import re
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, ValidationError
from rich.console import RenderableType

from cli.changes import changes
from cli.evidence import _story
from cli.plan_page import page
from cli.reviewing import owed_lines
from cli.runs import _fleet_lines, _table
from cli.session import Session, report
from cli.terminal import Terminal
from cli.tree import render, showing_lines, waiting_lines
from desk.runs import RunSummary
from desk.views import Pieces, RunView, StepNow, view_of
from kedge.model.errors import DriverError
from kedge.model.review import GlassBroken, Review
from kedge.model.status import FleetStatus, WaveProgress, WideningProgress
from kedge.plan.explain import explain
from kedge.plan.explain import lines as plain_page
from kedge.trust.story import happening
from tests.cli import worlds
from worker.logs import configure, get_logger

FAKE = "kedge approve upgrade/etcd/1 --key theirs"
EVIL = f"x\n  {FAKE}\r\n\x1b[2K\u202e\u200b\U000e0041\u2028{FAKE}" + " " * 300 + FAKE
SEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\U000e0000-\U000e0fff]")
M = TypeVar("M", bound=BaseModel)


def poisoned(value: M) -> M:
    """The same value with that text wherever its model lets a text be: as a query of a forged workflow may answer."""
    plain = value.model_dump(mode="python")
    for place in list(places(plain)):
        holder, key = at(plain, place)
        before = holder[key]
        if len(place) == 1 and place[0] == "now":
            continue
        set_at(plain, place, EVIL)
        try:
            type(value).model_validate(plain)
        except ValidationError:
            set_at(plain, place, before)
    found = type(value).model_validate(plain)
    assert EVIL in str(found.model_dump(mode="python").values()) or FAKE in repr(found)
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(value, str):
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, one in items:
        yield from places(one, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> tuple[Any, Any]:
    for key in path[:-1]:
        value = value[key]
    return value, path[-1]


def set_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Replace what is at a place; tuples on the way are made anew."""
    head, rest = path[0], path[1:]
    if not rest:
        value[head] = new
        return
    child = value[head]
    if isinstance(child, tuple):
        child = list(child)
        set_at(child, rest, new)
        value[head] = tuple(child)
    else:
        set_at(child, rest, new)


def drawn(*what: RenderableType) -> str:
    stream = io.StringIO()
    for one in what:
        Terminal(file=stream, width=4000).print(one, highlight=False, markup=False)
    return stream.getvalue()


def holds(text: str) -> None:
    """It is said, but in no line of its own, and with nothing that is not seen."""
    assert SEEN.search(text) is None, repr(text)
    for one in text.splitlines():
        assert not one.strip(" │├└─·▸✓✗◇■").startswith(FAKE), one
    assert "\x1b" not in text


def failed() -> RunView:
    status = worlds.parked()
    pieces = Pieces(
        status=status,
        wave=WaveProgress(
            wave=1, program="forward", waiting=(), running=(3,), done=(1,), failed=(2,)
        ),
        widening=WideningProgress(wave=1, state="upgrading", child=None),
        steps={3: StepNow(step="healthy", said="waits")},
    )
    return view_of(pieces, worlds.plan(), worlds.NOW)


VIEWS = [failed(), view_of(Pieces(status=worlds.at_gate()), worlds.plan(), worlds.NOW)]


@pytest.mark.parametrize("view", VIEWS, ids=["failed", "at a gate"])
def test_status_and_watch(view: RunView) -> None:
    bad = poisoned(view)
    holds(drawn(render(bad)))
    for before in (None, view, view.model_copy(update={"gone": 1.0})):
        told = "\n".join(changes(before, bad))
        holds(told)
        assert len(changes(before, bad)) == len(told.splitlines())
    holds(drawn(*waiting_lines(bad.status, bad.now)))
    assert bad.status.waiting is not None
    holds(drawn(*showing_lines(bad.status.waiting.showing)))


def test_what_a_node_says_stands_in_quotation_marks() -> None:
    view = failed()
    assert "NotHealthy: “not healthy for 5 s within 120 s: connection refused”" in drawn(
        render(view)
    )
    assert "“waits”" in drawn(render(view))


def test_lists_and_fleets() -> None:
    summary = RunSummary(
        run="upgrade/etcd/1",
        kind="upgrade",
        fleet="etcd",
        phase="gate",
        release="1",
        waiting_for="g",
        started=worlds.NOW,
    )
    holds(drawn(_table((poisoned(summary),))))
    glass = GlassBroken(
        digest="a" * 64, verb="rollback", person="eve", reason="r", ticket="t", at=worlds.NOW
    )
    review = Review(run="upgrade/etcd/1", plan="b" * 64, since=worlds.NOW, orders=(glass,))
    holds(drawn(*owed_lines((poisoned(review),), ("kedge",))))
    status = FleetStatus(
        fleet="etcd",
        epoch=1,
        holder="upgrade/etcd/1",
        last=None,
        release="1",
        runs=("upgrade/etcd/1",),
    )
    holds(drawn(*_fleet_lines(poisoned(status), poisoned(worlds.parked()))))


RECORDS: list[dict[str, Any]] = [
    {"what": "leg", "node": EVIL, "program": EVIL, "steps": [{"key": EVIL, "before": {"release": EVIL}}],
     "failed": {"key": EVIL, "type": EVIL, "message": EVIL}},
    {"what": "order", "person": EVIL, "verb": EVIL, "key": EVIL, "comment": EVIL, "target": EVIL, "said": EVIL},
    {"what": "decision", "stage": EVIL, "event": EVIL, "said": EVIL, "outcome": EVIL, "wave": 1},
    {"what": "asked", "subject": EVIL, "showing": {"title": EVIL}, "shown": EVIL},
    {"what": "looked", "why": EVIL, "nodes": {EVIL: {}}, "failures": [EVIL]},
    {"what": "parked", "said": EVIL},
    {"what": EVIL},
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record["what"])[:8])
def test_the_story_of_the_record(record: dict[str, Any]) -> None:
    told = happening(1, EVIL, {**record, "at": EVIL, "run": EVIL})
    text = drawn(*_story((told,)))
    holds(text)
    assert len(text.splitlines()) == 1 + len(told.details)


def test_a_plan_that_is_read_before_it_is_signed() -> None:
    told = poisoned(explain(worlds.plan()))
    holds(drawn(*page(told)))
    holds("\n".join(plain_page(told)))
    assert len(plain_page(told)) == len("\n".join(plain_page(told)).splitlines())


def test_logs_on_a_console() -> None:
    stream = io.StringIO()
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure("console", "info", stream)
        get_logger("kedge").warning(EVIL, node=EVIL, said={"deep": EVIL})
    finally:
        logging.getLogger().handlers[:] = before[0]
        logging.getLogger().setLevel(before[1])
    holds(stream.getvalue())
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("json_too", [False, True], ids=["in words", "as JSON"])
def test_errors(json_too: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 - a table
    error = DriverError("HostError", EVIL, retryable=False, next_step=EVIL)
    report(error, Session(json=json_too))
    told = capsys.readouterr()
    holds(told.err)
    assert len(told.err.splitlines()) == 2
    if json_too:
        holds(told.out)
        assert json.loads(told.out)["error"]["message"] == EVIL
