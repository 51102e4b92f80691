"""What is played: an upgrade through a gate, a way back that the runbook takes, one that a person orders, a restore."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from kedge.model.base import Json
from kedge.model.run import RunEnd
from tests.chaos.ground import assert_ground
from tests.chaos.theatre import BAD, NEW, OLD, Troupe

Plot = Callable[[Troupe], Coroutine[Any, Any, list[RunEnd]]]
"""Plays from the first order to the end of the last run, and asserts the ground it leaves."""


def quick_to_fail(troupe: Troupe) -> list[Json]:
    """The steps, with a short patience for the release that never gets healthy."""
    node = troupe.steps()["node"]
    assert isinstance(node, list)
    last = node[-1]
    assert isinstance(last, dict)
    healthy = last["healthy"]
    assert isinstance(healthy, dict)
    return [*node[:-1], {"healthy": {**healthy, "within": "300ms"}}]


async def upgrade(troupe: Troupe) -> list[RunEnd]:
    """A canary, its bake, two signatures, the other node."""
    run = await troupe.start(troupe.plan_to(NEW))
    await troupe.waits_for(run, "ship")
    await troupe.approve(run, "ada", "bob")
    end = await troupe.ended(run)
    assert end.phase == "done", end
    assert end.nodes_done == len(troupe.names)
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))
    return [end]


async def automatic(troupe: Troupe) -> list[RunEnd]:
    """The canary never gets healthy: the run goes back by itself."""
    plan = troupe.plan_to(
        BAD,
        node=quick_to_fail(troupe),
        on_failure="rollback",
        retry={"attempts": 1, "backoff": "50ms"},
    )
    run = await troupe.start(plan)
    end = await troupe.ended(run)
    assert end.phase == "rolled-back", end
    await assert_ground(troupe, {troupe.names[0]: (OLD, BAD, OLD)})
    return [end]


async def ordered(troupe: Troupe) -> list[RunEnd]:
    """At the gate, with the canary on the new release, an engineer on call orders the way back."""
    run = await troupe.start(troupe.plan_to(NEW))
    await troupe.waits_for(run, "ship")
    back = await troupe.rollback()
    end = await troupe.ended(back)
    assert end.phase == "rolled-back", end
    loser = await troupe.ended(run)
    assert loser.phase == "preempted", loser
    await assert_ground(troupe, {troupe.names[0]: (OLD, NEW, OLD)})
    return [end, loser]
