"""Whatever a node says, its leg has a record and an end, and a look has a verdict: nothing is tried again in silence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import activities.sessions
from activities.errors import LOST
from activities.legs import LegActivities
from kedge.drivers.ports import SessionEnd, SessionRequest
from kedge.model.base import canonical
from kedge.model.outside import is_line
from kedge.model.plan import Plan, PlannedNode
from kedge.model.run import Failure, LegDone, LegRequest, Run
from tests.drivers.lying import CHANGES, Lying, changed, honest, lines, raw
from tests.review.test_looks import Looks, looks

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
"""An example is a whole leg with its record."""
SURROGATE = "\ud800"


class Lied(Looks):
    """Activities whose nodes are behind a host program that lies."""

    lying: Lying
    serial: int = 0

    async def leg(self) -> LegDone | Failure:
        """One leg of the first node, as the engine would have it: done, or failed with a failure as its detail."""
        self.serial += 1
        await self.begin()
        request = LegRequest(
            run=self.run, node=0, program="forward", leg=0, serial=self.serial, wave=0
        )
        try:
            return await ActivityEnvironment().run(LegActivities(self.ground).run_leg, request)
        except ApplicationError as error:
            failure, final = Failure.model_validate(error.details[0]), error.non_retryable
        # Only what was lost on the way is the engine's to try again.
        assert final == (failure.type not in LOST)
        return failure

    async def records(self) -> list[Any]:
        """What stands in the record of the leg that was tried last."""
        prefix = f"{self.run.id}@{self.run.epoch}/n0/forward/0/"
        found = await self.ground.evidence.under(self.scene.name, prefix)
        return [entry.record for entry in found]


async def let_go(
    _run: Run, _plan: Plan, _wave: int, batch: tuple[int, ...], _accepted: object
) -> tuple[tuple[int, ...], None]:
    """Every node may be stopped."""
    return batch, None


@pytest.fixture
async def lied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lied]:
    monkeypatch.setattr(activities.sessions, "PAUSES", (0.0,))
    one = await looks(tmp_path, 2)
    made = Lied(one.scene, one.ground, one.plan, one.run)
    made.lying = Lying(tmp_path / "lying")
    made.ground.transport = made.lying.transport
    # A leg behind whose look nobody lied: what looks do about liars is shown below.
    monkeypatch.setattr(made.ground.looks, "before_stop", let_go)
    yield made
    await made.lying.close()
    await made.scene.drivers.aclose()


def fits(failure: Failure) -> None:
    """A failure that travels, and that is drawn in one line."""
    canonical(failure)
    assert is_line(failure.said)
    assert len(failure.model_dump_json()) < 8192


@FEW
@given(changes=CHANGES)
@example([(0, "fail", SURROGATE)])
@example([(0, "fail", float("inf"))])
@example([(1, "result", {"waited": 1e308, "saw": SURROGATE})])
@example([(1, "before", {"release": [SURROGATE]})])
@example([(2, "bytes", "no host program")])
@example([(1, "key", "another")])
async def test_whatever_a_node_says_its_leg_has_a_record_and_an_end(
    lied: Lied, changes: Any
) -> None:
    lied.lying.says = honest
    assert isinstance(await lied.leg(), LegDone)
    lied.lying.says = changed(changes)
    found = await lied.leg()
    records = await lied.records()
    assert len(records) == 1
    failed = records[0]["failed"]
    if isinstance(found, LegDone):
        assert failed is None
        assert len(records[0]["steps"]) == found.done + found.replayed
    else:
        assert failed["type"] == found.type
        assert is_line(failed["message"])
        fits(found)


@FEW
@given(changes=CHANGES)
@example([(0, "fail", SURROGATE)])
@example([(1, "ok", SURROGATE), (2, "observed", {"release": [1]})])
async def test_whatever_a_node_says_a_bake_has_a_verdict(lied: Lied, changes: Any) -> None:
    lied.lying.says = changed(changes)
    checked = await lied.check()
    for failure in checked.failures:
        fits(failure)
    if "fail" in [what for _, what, _ in changes]:
        assert checked.failures
    lied.lying.says = honest
    assert (await lied.check()).failures == ()


@FEW
@given(changes=CHANGES)
@example([(2, "observed", {"release": {"a": 1}, "running_release": [1]})])
async def test_whatever_nodes_say_a_look_has_each_of_them_once(lied: Lied, changes: Any) -> None:
    lied.lying.says = changed(changes)
    seen = await lied.observe()
    lists = (seen.before, seen.after, seen.other, seen.empty, seen.unreachable)
    assert sorted(node for one in lists for node in one) == [0, 1]
    for failure in seen.problems:
        fits(failure)


async def test_a_detail_of_many_parts_does_not_fill_a_message(lied: Lied) -> None:
    """Two thousand parts, each small, were a failure that the engine refused to take: so nobody heard of it."""
    detail = {f"part-{number}": "é" * 900 for number in range(2000)}
    error = {"type": "NotHealthy", "message": "é" * 10**6, "retryable": True, "detail": detail}

    def says(asked: dict[str, Any]) -> bytes:
        told = lines(asked)[:1]
        return raw([*told, {**told[0], "ev": "failed", "error": error}, {"ev": "end", "ok": False}])

    lied.lying.says = says
    found = await lied.leg()
    assert isinstance(found, Failure)
    fits(found)


async def test_what_nobody_thought_of_is_a_failure_of_that_node(
    lied: Lied, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(node: PlannedNode, _request: SessionRequest, _on_event: Any) -> SessionEnd:
        raise ZeroDivisionError(f"of {node.name}\n{SURROGATE}")

    monkeypatch.setattr(lied.lying.transport, "session", broken)
    found = await lied.leg()
    assert isinstance(found, Failure)
    assert found.type == "Unexpected"
    assert "ZeroDivisionError" in found.said
    fits(found)
    assert [record["failed"]["type"] for record in await lied.records()] == ["Unexpected"]
    assert [failure.type for failure in (await lied.check()).failures] == ["Unexpected"] * 2
    assert (await lied.observe()).unreachable == (0, 1)
