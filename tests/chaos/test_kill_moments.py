"""Deaths while nothing is acted: a gate waits, somebody has signed, an order is on its way, a run is parked, held, bakes.

One blow falls on all of these at once, each in a fleet of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kedge.model.base import Json
from kedge.model.status import Waiting
from tests.chaos import plots
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground
from tests.chaos.table import MORTALS
from tests.chaos.theatre import BAD, NEW, OLD, Kind, Theatre, Troupe, persist

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


class Blow:
    """What all wait for: each is where it wants to be hit, then somebody dies and is started anew."""

    def __init__(self, parties: int) -> None:
        self._there = asyncio.Barrier(parties + 1)
        self._done = asyncio.Event()

    async def falls(self) -> None:
        """I am there; go on when it is over."""
        await self._there.wait()
        await self._done.wait()

    async def strike(self, theatre: Theatre, kind: Kind) -> None:
        """When all are there."""
        await self._there.wait()
        await theatre.strike(kind)
        self._done.set()


async def at_the_gate(troupe: Troupe) -> str:
    run = await troupe.start(troupe.plan_to(NEW))
    await troupe.waits_for(run, "ship")
    return run


async def shipped(troupe: Troupe, run: str) -> None:
    end = await troupe.ended(run)
    assert end.phase == "done", end
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))


async def a_gate_waits_on(troupe: Troupe, blow: Blow) -> None:
    run = await at_the_gate(troupe)
    before = (await troupe.status(run)).waiting
    await blow.falls()
    after = (await troupe.waits_for(run, "ship")).waiting
    assert after == before
    await troupe.approve(run, "ada", "bob")
    await shipped(troupe, run)


async def a_signature_still_counts(troupe: Troupe, blow: Blow) -> None:
    run = await at_the_gate(troupe)
    await troupe.approve(run, "ada")
    await blow.falls()
    await troupe.approve(run, "bob")
    await shipped(troupe, run)


async def orders_on_their_way_arrive(troupe: Troupe, blow: Blow) -> None:
    run = await at_the_gate(troupe)
    status = await troupe.status(run)
    assert status.waiting is not None
    shown = {"subject": status.waiting.subject, "shown": status.waiting.shown}
    orders = [troupe.envelope("approve", run, status.plan, who, **shown) for who in ("ada", "bob")]
    # Looked at, but not answered, when the blow falls; the other one comes as a plain signal behind it.
    post = f"activity.judge_order.before@{troupe.name}"
    troupe.theatre.points.arm(post, "wait")
    sent = asyncio.create_task(troupe.submit(run, orders[0]))
    await troupe.theatre.points.reached(post)
    handle = troupe.client.get_workflow_handle(run)
    await persist(lambda: handle.signal("order", orders[1]))
    await blow.falls()
    troupe.theatre.points.release(post)
    assert (await sent).verdict.accepted
    await shipped(troupe, run)


async def a_parked_run_takes_a_decision(troupe: Troupe, blow: Blow) -> None:
    retry: Json = {"attempts": 1, "backoff": "50ms"}
    run = await troupe.start(troupe.plan_to(BAD, node=plots.quick_to_fail(troupe), retry=retry))
    before = waiting((await troupe.waits_for(run, "wave")).waiting)
    await blow.falls()
    assert waiting((await troupe.waits_for(run, "wave")).waiting) == before
    await troupe.decide(run, "rollback")
    end = await troupe.ended(run)
    assert end.phase == "rolled-back", end
    await assert_ground(troupe, {troupe.names[0]: (OLD, BAD, OLD)})


def waiting(seen: Waiting | None) -> Waiting:
    assert seen is not None
    return seen


async def a_held_run_stays_held(troupe: Troupe, blow: Blow) -> None:
    slow: Json = {"canary": {"nodes": 1, "bake": {"duration": "60s", "interval": "200ms"}}}
    post = f"activity.check_nodes.after@{troupe.name}"
    troupe.theatre.points.arm(post, "wait")
    run = await troupe.start(troupe.plan_to(NEW, waves=slow, gates={}))
    await troupe.theatre.points.reached(post)
    troupe.theatre.points.release(post)
    assert (await troupe.order("pause", run, "eve")).accepted
    await troupe.until(run, "paused")
    await blow.falls()
    await troupe.until(run, "paused")
    assert (await troupe.order("abort", run, "eve")).accepted
    assert (await troupe.ended(run)).phase == "aborted"
    await assert_ground(troupe, {troupe.names[0]: (OLD, NEW)})


async def a_bake_is_not_cut_short(troupe: Troupe, blow: Blow) -> None:
    bake: Json = {"canary": {"nodes": 1, "bake": {"duration": "4s", "interval": "1s"}}}
    post = f"activity.check_nodes.after@{troupe.name}"
    troupe.theatre.points.arm(post, "wait")
    run = await troupe.start(troupe.plan_to(NEW, waves=bake, gates={}))
    await troupe.theatre.points.reached(post)
    troupe.theatre.points.release(post)
    await blow.falls()
    await shipped(troupe, run)


async def brought_up(troupe: Troupe, blow: Blow, when: str) -> None:
    post = f"activity.ensure_fleet.{when}@{troupe.name}"
    troupe.theatre.points.arm(post, "wait")
    handle = await troupe.client.start_workflow(
        "Ensure",
        troupe.name,
        id=f"ensure/{troupe.name}",
        task_queue=troupe.settings.task_queue,
    )
    await troupe.theatre.points.reached(post)
    await blow.falls()
    troupe.theatre.points.release(post)
    result = await persist(handle.result)
    assert result["running"] == 2, result
    assert result["started"] == 0, result
    await assert_ground(troupe, {})


async def a_fleet_is_about_to_be_brought_up(troupe: Troupe, blow: Blow) -> None:
    await brought_up(troupe, blow, "before")


async def a_fleet_was_brought_up(troupe: Troupe, blow: Blow) -> None:
    await brought_up(troupe, blow, "after")


MOMENTS: tuple[Callable[[Troupe, Blow], Coroutine[Any, Any, None]], ...] = (
    a_gate_waits_on,
    a_signature_still_counts,
    orders_on_their_way_arrive,
    a_parked_run_takes_a_decision,
    a_held_run_stays_held,
    a_bake_is_not_cut_short,
    a_fleet_is_about_to_be_brought_up,
    a_fleet_was_brought_up,
)


@pytest.mark.parametrize("kind", ["host", *MORTALS])
async def test_what_waits_goes_on_waiting(theatre: Theatre, cast: Cast, kind: Kind) -> None:
    troupes = await asyncio.gather(*(cast(theatre) for _ in MOMENTS))
    blow = Blow(len(MOMENTS))
    async with asyncio.TaskGroup() as together:
        for moment, troupe in zip(MOMENTS, troupes, strict=True):
            together.create_task(moment(troupe, blow))
        together.create_task(blow.strike(theatre, kind))


LOOKS = (
    ("look.session.before", 1),
    ("look.fence.before", 1),
    ("look.fence.raised", 1),
    ("look.observe.before", 1),
    ("look.observe.recorded", 1),
    ("look.healthy.before", 2),
    ("look.healthy.recorded", 2),
    ("look.healthy.told", 2),
)
"""Preflight observes; the looks before and after it and the bake ask for health."""


async def test_a_host_program_that_dies_while_it_looks_is_no_verdict(
    theatre: Theatre, cast: Cast
) -> None:
    troupes = await asyncio.gather(*(cast(theatre) for _ in LOOKS))
    posts = [
        f"{point}@{troupe.names[0]}" for troupe, (point, _) in zip(troupes, LOOKS, strict=True)
    ]
    async with asyncio.TaskGroup() as together:
        for post, (_, nth) in zip(posts, LOOKS, strict=True):
            together.create_task(theatre.points.nth(post, nth, "kill"))
        for troupe in troupes:
            together.create_task(plots.upgrade(troupe))
