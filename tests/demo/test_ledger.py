"""The writer's accounting, with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.ledger import NOTICED, Figures, Ledger, compare


def ledger_of(*times: float) -> Ledger:
    ledger = Ledger()
    for number, moment in enumerate(times):
        ledger.acknowledge(f"k{number}", f"v{number}", moment)
    return ledger


@pytest.mark.parametrize(
    ("said", "times", "begin", "end", "wanted"),
    [
        ("a steady writer has no time without", (1.0, 1.1, 1.2), 0.9, 1.3, (3, 0.1, 0.0)),
        ("one gap in the middle", (1.0, 3.0, 3.1), 0.9, 3.2, (3, 2.0, 2.0)),
        ("two gaps are added up", (1.0, 2.0, 2.1, 3.6), 1.0, 3.6, (4, 1.5, 2.5)),
        ("nothing acknowledged is without for the whole stretch", (), 1.0, 5.0, (0, 4.0, 4.0)),
        ("silence before the first one counts", (5.0,), 1.0, 5.1, (1, 4.0, 4.0)),
        ("silence behind the last one counts", (1.0,), 0.9, 5.0, (1, 4.0, 4.0)),
        ("what is outside of the stretch does not", (0.0, 1.0, 1.1, 9.0), 1.0, 1.1, (2, 0.1, 0.0)),
        (
            "a gap that reaches into the stretch counts its part",
            (0.0, 9.0),
            4.0,
            9.0,
            (1, 5.0, 5.0),
        ),
    ],
)
def test_figures(
    said: str, times: tuple[float, ...], begin: float, end: float, wanted: tuple[int, float, float]
) -> None:
    figures = ledger_of(*times).figures(begin, end)
    found = (figures.acknowledged, figures.longest, figures.without)
    assert found == pytest.approx(wanted), said
    assert figures.seconds == pytest.approx(end - begin)


@given(
    gaps=st.lists(st.floats(min_value=0, max_value=10), min_size=1, max_size=50),
    before=st.floats(min_value=0, max_value=10),
    behind=st.floats(min_value=0, max_value=10),
)
def test_gaps_make_up_the_stretch(gaps: list[float], before: float, behind: float) -> None:
    times: list[float] = []
    now = before
    for gap in gaps:
        times.append(now)
        now += gap
    end = times[-1] + behind
    figures = ledger_of(*times).figures(0.0, end)
    every = [before, *gaps[:-1], behind]
    assert figures.longest == pytest.approx(max(every))
    assert figures.without <= figures.seconds + 1e-9
    # A gap at the very threshold may fall to either side once the sums are rounded.
    if all(abs(gap - NOTICED) > 1e-6 for gap in every):
        assert figures.without == pytest.approx(sum(gap for gap in every if gap > NOTICED))


def test_one_stretch_is_the_sum_of_its_parts_in_acknowledgements() -> None:
    ledger = ledger_of(*(number / 10 for number in range(100)))
    parts = (ledger.figures(0.0, 4.95), ledger.figures(4.95, 20.0))
    assert sum(part.acknowledged for part in parts) == ledger.figures(0.0, 20.0).acknowledged == 100


def test_a_key_is_acknowledged_once_and_time_goes_on() -> None:
    ledger = ledger_of(1.0)
    with pytest.raises(ValueError, match="already"):
        ledger.acknowledge("k0", "other", 2.0)
    with pytest.raises(ValueError, match="went back"):
        ledger.acknowledge("k1", "v", 0.5)
    assert ledger.values() == {"k0": "v0"}


def test_figures_of_a_stretch_are_plain_values() -> None:
    figures = ledger_of(1.0).figures(1.0, 1.0)
    assert figures == Figures(acknowledged=1, seconds=0.0, longest=0.0, without=0.0)


def test_what_was_read_back_is_compared_key_by_key() -> None:
    acknowledged = {"a": "1", "b": "2", "c": "3"}
    read = compare("etcd-1", acknowledged, {"a": "1", "b": "other", "stranger": "9"})
    assert (read.there, read.lost, read.changed, read.whole) == (1, ("c",), ("b",), False)
    assert compare("etcd-1", acknowledged, {**acknowledged, "unacknowledged": "x"}).whole
