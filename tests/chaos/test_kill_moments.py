"""Deaths while nothing is acted: a gate waits, somebody signs, a run is parked, held, or bakes."""

from __future__ import annotations

import asyncio

import pytest

from kedge.model.base import Json
from tests.chaos import plots
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground
from tests.chaos.theatre import BAD, NEW, OLD, Kind, Theatre, Troupe, persist

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

MORTALS: tuple[Kind, ...] = ("worker", "engine", "all")


async def at_the_gate(troupe: Troupe) -> str:
    run = await troupe.start(troupe.plan_to(NEW))
    await troupe.waits_for(run, "ship")
    return run


async def shipped(troupe: Troupe, run: str) -> None:
    end = await troupe.ended(run)
    assert end.phase == "done", end
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))


@pytest.mark.parametrize("kind", ["host", *MORTALS])
async def test_a_gate_waits_on(theatre: Theatre, cast: Cast, kind: Kind) -> None:
    troupe = await cast(theatre)
    run = await at_the_gate(troupe)
    before = (await troupe.status(run)).waiting
    await theatre.strike(kind)
    after = (await troupe.waits_for(run, "ship")).waiting
    assert after == before
    await troupe.approve(run, "ada", "bob")
    await shipped(troupe, run)


@pytest.mark.parametrize("kind", MORTALS)
async def test_a_signature_counts_although_somebody_died_since(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    troupe = await cast(theatre)
    run = await at_the_gate(troupe)
    await troupe.approve(run, "ada")
    await theatre.strike(kind)
    await troupe.approve(run, "bob")
    await shipped(troupe, run)


@pytest.mark.parametrize("kind", MORTALS)
async def test_an_order_is_not_lost_that_came_while_nobody_worked(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    troupe = await cast(theatre)
    run = await at_the_gate(troupe)
    status = await troupe.status(run)
    assert status.waiting is not None
    shown = {"subject": status.waiting.subject, "shown": status.waiting.shown}
    orders = [troupe.envelope("approve", run, status.plan, who, **shown) for who in ("ada", "bob")]
    theatre.kill("worker")
    handle = troupe.client.get_workflow_handle(run)
    await persist(lambda: handle.signal("order", orders[0]))
    if kind != "worker":
        theatre.kill("engine")
    sent = asyncio.create_task(troupe.submit(run, orders[1]))
    await theatre.restart()
    assert (await sent).verdict.accepted
    await shipped(troupe, run)


@pytest.mark.parametrize("kind", MORTALS)
async def test_a_run_stays_parked_and_takes_a_decision(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    troupe = await cast(theatre)
    plan = troupe.plan_to(
        BAD, node=plots.quick_to_fail(troupe), retry={"attempts": 1, "backoff": "50ms"}
    )
    run = await troupe.start(plan)
    before = (await troupe.waits_for(run, "wave")).waiting
    await theatre.strike(kind)
    assert (await troupe.waits_for(run, "wave")).waiting == before
    await troupe.decide(run, "rollback")
    end = await troupe.ended(run)
    assert end.phase == "rolled-back", end
    await assert_ground(troupe, {troupe.names[0]: (OLD, BAD, OLD)})


@pytest.mark.parametrize("kind", MORTALS)
async def test_a_held_run_stays_held(theatre: Theatre, cast: Cast, kind: Kind) -> None:
    troupe = await cast(theatre)
    slow: Json = {"canary": {"nodes": 1, "bake": {"duration": "60s", "interval": "200ms"}}}
    run = await troupe.start(troupe.plan_to(NEW, waves=slow, gates={}))
    await troupe.until(run, "widening")
    await theatre.points.nth("activity.check_nodes.after", 1, "wait")
    await theatre.points.reached("activity.check_nodes.after")
    theatre.points.release("activity.check_nodes.after")
    assert (await troupe.order("pause", run, "eve")).accepted
    await troupe.until(run, "paused")
    await theatre.strike(kind)
    await troupe.until(run, "paused")
    assert (await troupe.order("abort", run, "eve")).accepted
    assert (await troupe.ended(run)).phase == "aborted"
    await assert_ground(troupe, {troupe.names[0]: (OLD, NEW)})


@pytest.mark.parametrize("kind", MORTALS)
async def test_a_bake_is_not_cut_short(theatre: Theatre, cast: Cast, kind: Kind) -> None:
    troupe = await cast(theatre)
    bake: Json = {"canary": {"nodes": 1, "bake": {"duration": "3s", "interval": "1s"}}}
    run = await troupe.start(troupe.plan_to(NEW, waves=bake, gates={}))
    await theatre.points.nth("activity.check_nodes.before", 1, "wait")
    await theatre.strike(kind, "activity.check_nodes.before")
    await shipped(troupe, run)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", MORTALS)
async def test_bringing_a_fleet_up_goes_on(
    theatre: Theatre, cast: Cast, kind: Kind, when: str
) -> None:
    troupe = await cast(theatre)
    point = f"activity.ensure_fleet.{when}"
    theatre.points.arm(point, "wait")
    handle = await troupe.client.start_workflow(
        "Ensure", troupe.name, id=f"again/{troupe.name}", task_queue=troupe.settings.task_queue
    )
    await theatre.strike(kind, point)
    result = await persist(handle.result)
    assert result["running"] == 2, result
    assert result["started"] == 0
    await assert_ground(troupe, {})


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("session.before", 1),
        ("fence.before", 1),
        ("fence.raised", 1),
        ("observe.before", 1),
        ("observe.recorded", 1),
        ("healthy.before", 2),
        ("healthy.recorded", 2),
        ("healthy.told", 2),
    ],
)
async def test_a_host_program_that_dies_while_it_looks_is_no_verdict(
    theatre: Theatre, cast: Cast, point: str, nth: int
) -> None:
    # Preflight observes, the leg is the first to ask for health, the bake the second.
    troupe = await cast(theatre)
    post = f"{point}@{troupe.names[0]}"
    async with asyncio.TaskGroup() as both:
        killing = both.create_task(theatre.points.nth(post, nth, "kill"))
        await asyncio.sleep(0)
        both.create_task(plots.upgrade(troupe))
    assert killing.done()
    assert theatre.points.is_reached(post)
