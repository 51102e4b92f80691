"""Histories that are renewed again and again: everything that counts is carried across."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import Client

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.spine.conftest import Stage
from tests.spine.latches import PACED, STEPS, in_flight, latch, let_through
from tests.spine.scene import Scene, eventually

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]


async def renewals(scene: Scene, workflow: str) -> int:
    """How often a workflow went on in a new history."""
    run: str | None = None
    count = 0
    while True:
        history = await scene.client.get_workflow_handle(workflow, run_id=run).fetch_history()
        begun = history.events[0].workflow_execution_started_event_attributes
        run = begun.continued_execution_run_id
        if not run:
            return count
        count += 1


async def say(scene: Scene, run: str, *verbs: str) -> None:
    for verb in verbs:
        assert (await scene.order(verb, run, "olga")).accepted  # type: ignore[arg-type]


async def test_signatures_and_time_are_carried_across(staged: Stage, renewing: Client) -> None:
    scene = await staged(renewing)
    async with scene.playing():
        run = await scene.start(scene.plan())
        first = await scene.waits_for(run, "ship")
        await scene.approve(run, "ada")
        for _ in range(4):
            await say(scene, run, "pause", "resume")
        status = await scene.waits_for(run, "ship")
        assert await renewals(scene, run) >= 2
        assert first.waiting is not None
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert [one.person for one in status.waiting.tally.signed] == ["ada"]
        assert status.waiting.since == first.waiting.since
        assert status.started == first.started
        assert len(status.orders) == 9
        assert (await scene.order("approve", run, "ada")).rule == "duplicate-person"
        await scene.approve(run, "bob")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert all(scene.host(name).counts[:3] == (2, 1, 2) for name in ("n0", "n1", "n2"))


async def test_what_was_spent_before_is_spent_after(staged: Stage, renewing: Client) -> None:
    scene = await staged(renewing)
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        pause = scene.envelope("pause", run, status.plan, "olga")
        assert (await scene.submit(run, pause)).verdict.accepted
        for _ in range(3):
            await say(scene, run, "resume", "pause")
        await say(scene, run, "resume")
        assert await renewals(scene, run) >= 1
        assert (await scene.submit(run, pause)).verdict.rule == "nonce-spent"
        parked_by = Fault(do="fail", op="healthy", node="n1", run="upgrade/*")
        scene.sim.program(parked_by)
        await scene.approve(run)
        parked = await scene.waits_for(run, "wave-1")
        for _ in range(3):
            await say(scene, run, "pause", "resume")
        again = await scene.waits_for(run, "wave-1")
        assert again.waiting is not None
        assert parked.waiting is not None
        assert again.waiting.shown == parked.waiting.shown
        assert again.failures == parked.failures
        scene.sim.clear()
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"


async def test_waves_go_on_in_new_histories_and_no_node_is_moved_twice(
    staged: Stage, renewing: Client
) -> None:
    zones = [{"name": f"n{at}", "labels": {"zone": f"z{at}"}} for at in range(12)]
    scene = await staged(renewing, fleet={"nodes": zones})
    waves: Json = {
        "canary": {"nodes": 1},
        "widen": ["30%", "100%"],
        "domain": "zone",
        "max_unavailable": 2,
    }
    async with scene.playing():
        sick = Fault(do="fail", op="healthy", node="n2", run="upgrade/*")
        scene.sim.program(sick)
        book = scene.runbook(waves=waves, gates={}, failure_budget=1, retry={"attempts": 1})
        run = await scene.start(scene.plan(book))
        status = await scene.waits_for(run, "end")
        widening = f"{run}/widening/1"
        # A renewal between the failure domains of one wave, and one between waves.
        assert await renewals(scene, widening) >= 3
        assert [failure.name for failure in status.failures] == ["n2"]
        assert status.nodes_done == 11
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert (end.phase, end.nodes_done) == ("done", 12)
    assert set(scene.running().values()) == {"1.1.0"}
    counts = {name: scene.host(name).counts[:3] for name in scene.running()}
    assert all(found == (2, 1, 2) for name, found in counts.items() if name != "n2"), counts


ZONES: Json = [{"name": f"n{at}", "labels": {"zone": f"z{at}"}} for at in range(8)]


async def test_a_hold_is_not_lost_between_histories(staged: Stage, renewing: Client) -> None:
    scene = await staged(renewing, fleet={"nodes": ZONES}, options=PACED)
    waves: Json = {"canary": {"nodes": 1}, "widen": ["100%"], "domain": "zone"}
    latched = ["n1", "n3", "n5"]
    async with scene.playing():
        latch(scene, *latched)
        run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={}, node=STEPS)))
        while latched:
            node = latched.pop(0)
            await in_flight(scene, node)
            await say(scene, run, "pause")
            let_through(scene, but=tuple(latched))
            await scene.until(run, "paused")
            held = scene.running()
            assert held[f"n{int(node[1]) + 1}"] == "1.0.0", "no further node was begun"
            await asyncio.sleep(0.3)
            assert scene.running() == held
            await say(scene, run, "resume")
        assert (await scene.end_of(run)).phase == "done"
        assert await renewals(scene, f"{run}/widening/1") + await renewals(scene, run) >= 1
    assert all(scene.host(name).counts[:3] == (2, 1, 2) for name in scene.running())


async def test_a_way_back_goes_on_in_new_histories_also_when_it_was_paused(
    staged: Stage, renewing: Client
) -> None:
    scene = await staged(renewing, fleet={"nodes": ZONES}, options=PACED)
    waves: Json = {"widen": ["100%"], "domain": "zone"}
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={}, node=STEPS)))
        assert (await scene.end_of(run)).phase == "done"
        latch(scene, "n4", run="rollback/*")
        back = await scene.rollback()
        await in_flight(scene, "n4", "1.0.0")
        await say(scene, back, "pause")
        let_through(scene)
        await scene.until(back, "paused")
        held = scene.running()
        assert [held[f"n{at}"] for at in range(8)] == ["1.1.0"] * 4 + ["1.0.0"] * 4
        renewed = await renewals(scene, back)
        assert renewed >= 1
        await asyncio.sleep(0.3)
        assert scene.running() == held
        await say(scene, back, "resume")
        end = await scene.end_of(back)
        assert await renewals(scene, back) > renewed
    assert end.phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}
    assert all(scene.host(name).counts[:3] == (3, 2, 3) for name in scene.running())


async def test_a_fleet_remembers_its_lease_its_nonces_and_its_epoch(
    staged: Stage, renewing: Client
) -> None:
    scene = await staged(renewing)
    target = f"fleet/{scene.name}"
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        fleet = await scene.fleet_status()
        for _ in range(8):
            refused = scene.envelope("start", target, status.plan, "olga")
            assert (await scene.submit(target, refused)).verdict.rule == "lease"

        async def renewed() -> bool:
            return await renewals(scene, target) >= 2

        await eventually(renewed)
        after = await scene.fleet_status()
        assert (after.holder, after.epoch, after.plan) == (run, fleet.epoch, fleet.plan)
        assert len(after.verdicts) == 9
        back = await scene.rollback()
        assert back == f"rollback/{scene.name}/2"
        assert (await scene.end_of(back)).phase == "rolled-back"
        assert (await scene.end_of(run)).phase == "preempted"
        freed = await scene.freed()
        assert freed.epoch > fleet.epoch
        assert freed.release == "1.0.0"


async def test_a_crowd_of_orders_at_a_gate_does_not_fill_one_history(
    staged: Stage, renewing: Client
) -> None:
    scene = await staged(renewing)
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        await scene.approve(run, "ada")
        for _ in range(60):
            await scene.signal(run, {"order": "spam"})
        again = scene.envelope("approve", run, status.plan, "olga")
        assert (await scene.submit(run, again)).verdict.rule == "subject"

        async def renewed() -> bool:
            return await renewals(scene, run) >= 1

        await eventually(renewed)
        await scene.waits_for(run, "ship")
        await scene.approve(run, "bob")
        assert (await scene.end_of(run)).phase == "done"
