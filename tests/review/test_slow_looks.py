"""Looks right before a stop that take long: they starve no node that waits, and no place is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.legs import LegActivities
from activities.looks import RunLooks
from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.run import LegRequest
from kedge.plan import availability
from kedge.plan.availability import UNAVAILABLE, rests
from tests.review.test_looks import Looks, looks

NODES = 8
LOOK = 0.3
"""Seconds that a look takes here, and SLOW is less."""


class Slow(Looks):
    """Activities whose nodes answer late."""

    @property
    def sim(self) -> SimTransport:
        """The simulated hosts."""
        sim = self.scene.drivers.transport.named("sim")
        assert isinstance(sim, SimTransport)
        return sim

    @property
    def known(self) -> RunLooks:
        """What this worker knows of the run."""
        return self.ground.looks.of(self.run, self.plan)

    async def stop(self, *nodes: int) -> tuple[tuple[int, ...], DriverError | None]:
        """Ask whether nodes may be stopped."""
        return await self.ground.looks.before_stop(self.run, self.plan, 0, nodes, ())

    async def looked(self) -> list[set[str]]:
        """The nodes of each look before a stop, by the record."""
        prefix = f"{self.run.id}@{self.run.epoch}/looked-stop"
        found: list[Any] = [
            entry.record for entry in await self.ground.evidence.under(self.scene.name, prefix)
        ]
        return [set(record["nodes"]) for record in found]

    def die(self, node: int) -> None:
        """The daemon of a node dies."""
        self.sim.host(self.plan.nodes[node]).become(pid=None)


@pytest.fixture
async def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Slow]:
    monkeypatch.setattr(availability, "SLOW", LOOK / 10)
    waves: Json = {"widen": ["100%"], "max_unavailable": NODES - 1}
    one = await looks(tmp_path, NODES, waves=waves)
    made = Slow(one.scene, one.ground, one.plan, one.run)
    # Seen once: from here on, nodes are looked at because one is about to be stopped.
    assert await made.ground.looks.look(made.run, made.plan, range(NODES), key="all", why="wave")
    made.sim.program(Fault(do="hang", op="observe", seconds=LOOK))
    yield made
    await made.scene.drivers.aclose()


async def test_stops_that_wait_for_a_look_share_the_next_one(slow: Slow) -> None:
    answers = await asyncio.gather(*(slow.stop(node) for node in range(6)))
    assert [going for going, _ in answers] == [(node,) for node in range(6)]
    assert slow.known.flying == set(range(6))
    assert len(await slow.looked()) <= 2, (
        "the first begins alone, the others are looked at together"
    )


async def test_what_was_looked_at_slowly_is_not_looked_at_again_at_once(slow: Slow) -> None:
    for node in range(6):
        assert await slow.stop(node) == ((node,), None)
        slow.ground.looks.ended(slow.run, slow.plan, 0, node, done=True)
    looked = await slow.looked()
    assert all(f"n{node}" in seen for node, seen in enumerate(looked)), "who is about to be stopped"
    others = [len(seen) > 1 for seen in looked]
    assert any(others), "nodes that were moved are looked at too"
    assert not any(two == (True, True) for two in pairwise(others)), "not all the time"


async def test_a_node_that_answers_late_and_does_not_serve_holds_up_nobody_but_whom_it_matters_to(
    slow: Slow,
) -> None:
    slow.sim.clear()
    slow.sim.program(Fault(do="hang", op="observe", node="n7", seconds=LOOK))
    slow.die(7)
    assert await slow.stop(7) == ((7,), None)
    slow.known.flying.discard(7)
    assert await slow.stop(0, 1) == ((0, 1), None)
    assert "n7" not in (await slow.looked())[-1]
    going, refusal = await slow.stop(2, 3, 4, 5, 6)
    assert going == (2, 3, 4, 5)
    assert refusal is not None
    assert refusal.kind == UNAVAILABLE
    assert "n7" in (await slow.looked())[-1], "nobody is refused because of it before it was seen"


async def test_stops_that_are_given_up_leave_no_place_behind(slow: Slow) -> None:
    leading, waiting, staying = (asyncio.create_task(slow.stop(node)) for node in range(3))
    await asyncio.sleep(LOOK / 3)
    waiting.cancel()
    leading.cancel()
    assert await staying == ((2,), None)
    for one in (leading, waiting):
        with pytest.raises(asyncio.CancelledError):
            await one
    assert slow.known.flying == {2}
    assert slow.known.waiting == []


async def test_a_place_is_given_back_when_the_record_cannot_be_asked(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> object:
        raise DriverError("StoreError", "the store is away", retryable=True)

    monkeypatch.setattr(slow.ground.recorded, "ask", gone)
    leg = LegRequest(run=slow.run, node=0, program="forward", leg=0, serial=1, wave=0)
    with pytest.raises((DriverError, ApplicationError)):
        await ActivityEnvironment().run(LegActivities(slow.ground).run_leg, leg)
    assert slow.known.flying == set()


@pytest.mark.parametrize(
    ("age", "took", "rest"),
    [(0.0, 0.9, False), (0.0, 1.1, True), (1.0, 1.1, True), (1.2, 1.1, False), (59.0, 60.0, True)],
)
def test_only_a_slow_look_is_not_repeated_for_as_long_as_it_took(
    age: float, took: float, *, rest: bool
) -> None:
    assert rests(age, took) is rest
