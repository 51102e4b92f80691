"""The lease is the record's: forged memories, terminated workflows and strange fences shut nobody out."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import Client

from desk.desk import Desk
from desk.runs import Runs
from kedge.drivers.ports import SessionRequest
from kedge.model.base import canonical
from kedge.model.run import MAX_EPOCH, FleetState
from kedge.plan.digest import plan_digest
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually
from tests.spine.test_rollback import NEW, OLD, ONE_BY_ONE, gate

pytestmark = pytest.mark.temporal


async def terminate_everything(scene: Scene) -> int:
    """What one request to Temporal's frontend does: every workflow that is open is over."""
    many = 0
    async for one in scene.client.list_workflows("ExecutionStatus = 'Running'"):
        if scene.name in one.id:
            await scene.client.get_workflow_handle(one.id, run_id=one.run_id).terminate("a test")
            many += 1
    return many


async def test_a_fleet_that_was_begun_with_a_forged_memory_shuts_nobody_out(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    forged = FleetState(
        fleet=scene.name,
        epoch=2**53 - 2,
        holder=f"upgrade/{scene.name}/99",
        last=f"upgrade/{scene.name}/99",
        plan="f" * 64,
        pin=2**50,
        refused=10_000,
        runs=(f"upgrade/{scene.name}/99",),
    )
    async with scene.playing():
        await client.start_workflow(
            "Fleet",
            args=[scene.name, forged],
            id=f"fleet/{scene.name}",
            task_queue=scene.settings.task_queue,
        )
        run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
        assert run == f"upgrade/{scene.name}/1"
        status = await scene.fleet_status()
        assert (status.holder, status.epoch < MAX_EPOCH) == (run, True)
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        back = await scene.rollback()
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert scene.running() == OLD


async def test_a_fleet_whose_workflows_were_all_terminated_is_taken_back(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    runs = Runs(client, scene.settings.task_queue)
    desk = Desk(scene.settings, scene.drivers)
    desk._runs = runs  # pyright: ignore[reportPrivateUsage]
    async with scene.playing():
        plan = scene.plan(scene.runbook(**ONE_BY_ONE))
        digest = await scene.drivers.blobs.put(canonical(plan))
        order = scene.envelope("start", f"fleet/{scene.name}", digest, "olga")
        await scene.open_fleet()
        run = (await scene.submit(f"fleet/{scene.name}", order)).run
        assert run is not None
        await scene.waits_for(run, "ship")
        await eventually(lambda: scene.running()["n0"] == "1.1.0")
        before = await scene.fleet_status()
        assert await terminate_everything(scene) >= 2
        # Whoever asks is told how it is, and the fleet is known by its record.
        assert (await runs.status(run)).phase == "terminated"
        status = await desk.fleet_status(scene.name)
        assert (status.holder, status.last, status.plan) == (None, run, plan_digest(plan))
        assert (status.epoch, status.runs) == (before.epoch, (run,))
        # What was spent stays spent; the way back is open.
        assert (await scene.submit(f"fleet/{scene.name}", order)).verdict.rule == "nonce-spent"
        back = await scene.rollback()
        assert back == f"rollback/{scene.name}/2"
        end = await scene.end_of(back)
        assert (end.phase, end.said) == ("rolled-back", "every node runs its baseline")
        assert (await scene.freed()).release == "1.0.0"
        assert await terminate_everything(scene) == 1
        # A fleet at rest knows what its last run left, too.
        status = await desk.fleet_status(scene.name)
        assert (status.last, status.release) == (back, "1.0.0")
    assert scene.running() == OLD


async def test_a_rollback_whose_workflow_was_terminated_is_ordered_again(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await gate(scene)
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        assert scene.running() == NEW
        first = await scene.rollback()
        await terminate_everything(scene)
        await scene.open_fleet()

        async def known() -> bool:
            return (await scene.fleet_status()).known

        await eventually(known)
        assert (await scene.fleet_status()).last == first
        second = await scene.rollback()
        assert (await scene.end_of(second)).phase == "rolled-back"
    assert scene.running() == OLD


async def test_an_order_takes_the_lease_above_a_fence_that_was_found_on_a_host(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await gate(scene)
        epoch = (await scene.fleet_status()).epoch
        strange = epoch + 1_000_000
        asked = SessionRequest(
            run="rollback/elsewhere/1",
            token=(strange, 0, 1),
            ops=({"key": "elsewhere/observe", "op": "observe"},),
        )
        await scene.drivers.transport.session(scene.node("n2"), asked, lambda _: None)
        first = await scene.rollback()
        parked = await scene.waits_for(first, "fence-1")
        assert f"epoch {strange}, which no lease in this record has" in parked.said
        assert scene.running()["n0"] == "1.0.0", "one host holds no other up"
        second = await scene.rollback()
        assert (await scene.end_of(second)).phase == "rolled-back"
        assert (await scene.fleet_status()).epoch == strange + 1
        assert (await scene.end_of(first)).phase == "preempted"
        assert (await scene.end_of(run)).phase == "preempted"
    found = await scene.records("fence-found")
    assert [(one["node"], one["epoch"], one["by"]) for one in found] == [
        ("n2", strange, "rollback/elsewhere/1")
    ]
    assert scene.running() == OLD


async def test_two_orders_at_once_never_both_get_the_fleet(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        plan = scene.plan(scene.runbook(**ONE_BY_ONE))
        digest = await scene.drivers.blobs.put(canonical(plan))
        target = f"fleet/{scene.name}"
        await scene.open_fleet()
        answers = await asyncio.gather(
            *(scene.submit(target, scene.envelope("start", target, digest, "olga")) for _ in "ab")
        )
        assert sorted(one.verdict.rule for one in answers) == ["accepted", "lease"]
        leases = await scene.records("lease")
    assert len(leases) == 1
