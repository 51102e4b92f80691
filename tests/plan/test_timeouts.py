"""What a step's `timeout` becomes on hosts, and timeouts that a step could never keep."""

from __future__ import annotations

import pytest

from kedge.model.errors import DocumentError
from kedge.model.runbook import Runbook
from kedge.plan.programs import MARGIN
from kedge.plan.render import operations
from tests.plan.samples import RUNBOOK, plan, read, replaced

STEPS = """node:
  - stage: {TIMEOUT}
  - probe: {TIMEOUT tcp: "h:1"}
  - wait: {TIMEOUT tcp: "h:1", within: 9s}
  - run: {TIMEOUT argv: [x], undo: {argv: [back], timeout: 3s}}
  - stop: {TIMEOUT grace: 4s}
  - snapshot: {TIMEOUT}
  - switch: {TIMEOUT}
  - configure: {TIMEOUT}
  - start: {TIMEOUT settle: 2s}
  - healthy: {TIMEOUT tcp: "h:1", for: 1s, within: 9s}
waves:
"""
BOOK = RUNBOOK[: RUNBOOK.index("node:\n")] + STEPS + RUNBOOK.partition("waves:\n")[2]


def limits(timeout: str, program: str = "forward") -> dict[str, object]:
    """The limit of every operation, by the last part of its key."""
    book = BOOK.replace("TIMEOUT ", timeout).replace("TIMEOUT", timeout.rstrip(", "))
    made = plan(runbook=book)
    name = made.program(program).name  # type: ignore[arg-type]
    ops = operations(made, 0, name, 0, run_id="r", epoch=1)
    return {str(op["key"]).rsplit("/", 1)[1]: op["limit"] for op in ops}


def test_every_step_is_bounded_by_its_timeout_or_by_what_its_kind_has() -> None:
    assert limits("timeout: 7s, ") == {
        "stage": 7.0, "probe": 7.0, "wait": 7.0, "run": 7.0 + MARGIN, "check": 900.0, "stop": 7.0, "snapshot": 7.0,
        "switch": 7.0, "configure": 7.0, "start": 7.0, "healthy": 7.0,
    }  # fmt: skip
    assert limits("") == {
        "stage": 900.0, "probe": 40.0, "wait": 9.0 + MARGIN, "run": 60.0 + MARGIN, "check": 900.0, "stop": 4.0 + MARGIN,
        "snapshot": 3600.0, "switch": 300.0, "configure": 60.0, "start": 42.0, "healthy": 10.0 + MARGIN,
    }  # fmt: skip


def test_the_way_back_is_bounded_as_the_way_forward() -> None:
    assert limits("timeout: 7s, ", "back") == {
        "stage": 7.0, "check": 900.0, "stop": 7.0, "switch": 7.0, "configure": 7.0, "start": 7.0, "healthy": 7.0,
        "undo-run": 3.0 + MARGIN,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("stop: {TIMEOUT grace: 4s}", "stop: {timeout: 3s, grace: 4s}", "node.4.stop.grace: 4 s are longer"),
        ("stop: {TIMEOUT grace: 4s}", "stop: {timeout: 30s}", "node.4.stop.grace: 60 s are longer"),
        ("settle: 2s", "settle: 2s, timeout: 1s", "node.8.start.settle: 2 s are longer"),
        ("for: 1s", "for: 11s, timeout: 10s", "node.9.healthy.for: 11 s are longer"),
    ],
)  # fmt: skip
def test_a_timeout_that_the_step_could_never_keep_is_a_mistake(
    old: str, new: str, says: str
) -> None:
    text = replaced(BOOK, old, new).replace("TIMEOUT ", "").replace("TIMEOUT", "")
    with pytest.raises(DocumentError) as caught:
        read(text, Runbook)
    assert says in str(caught.value)
    assert "than the step's timeout" in str(caught.value)
