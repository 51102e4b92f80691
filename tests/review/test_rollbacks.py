"""Ways back under way: what the hosts show counts, not what an earlier turn did."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.run import RunEnd
from tests.spine.scene import Scene, make_scene, settle

pytestmark = pytest.mark.temporal


@pytest.fixture
async def scene(client: Client, tmp_path: Path) -> Scene:
    """Three simulated nodes of which each stop takes a while."""
    made = make_scene(client, tmp_path, options={"seconds": {"stop": 0.6}, "pace": 1})
    await settle(made)
    return made


def sim(scene: Scene) -> SimTransport:
    """The simulator behind a scene's transport."""
    found = scene.drivers.transport.named("sim")
    assert isinstance(found, SimTransport)
    return found


async def test_a_node_that_went_back_and_died_before_the_end_is_started_again(scene: Scene) -> None:
    plan = scene.plan()
    async with scene.working():
        await scene.ensure()
        run = await scene.start(plan)
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        end = await scene.client.get_workflow_handle(run, result_type=RunEnd).result()
        assert end.phase == "done"
        crash = Fault(do="crash", op="start", node="n2", run="rollback/*", nth=(1,), seconds=0.3)
        sim(scene).program(crash)
        back = await scene.rollback()
        await scene.until(back, "rolled-back", 30)
        records = await scene.drivers.evidence.read(scene.name, 0, 1000)
    hosts = [sim(scene).host(node) for node in plan.nodes]
    assert [host.state.pid is not None for host in hosts] == [True, True, True]
    assert sim(scene).counts().starts == 3 + 3 + 4
    said = [
        entry.record["said"]
        for entry in records
        if isinstance(entry.record, dict) and entry.record.get("what") == "way-back"
    ]
    assert said == [
        "3 node(s) go back to 1.0.0",
        "1 node(s) start 1.0.0 again",
        "every node runs its baseline",
    ]


async def test_a_parked_way_back_and_its_upgrade_end_when_a_rollback_takes_the_lease(
    scene: Scene,
) -> None:
    plan = scene.plan(scene.runbook(on_failure="rollback"))
    sim(scene).program(
        Fault(do="fail", op="healthy", run="upgrade/*"),
        Fault(do="unreachable", node="n1", run="rollback/*-auto"),
    )
    async with scene.working():
        await scene.ensure()
        run = await scene.start(plan)
        parked = await scene.until(run, lambda status: status.successor is not None, 30)
        assert parked.successor is not None
        await scene.waits_for(parked.successor, "fence")
        back = await scene.rollback()
        await scene.until(back, "rolled-back", 30)
        handle = scene.client.get_workflow_handle(run, result_type=RunEnd)
        end = await asyncio.wait_for(handle.result(), 20)
        assert end.phase == "preempted"


async def test_an_upgrade_given_up_on_a_mixed_fleet_does_not_call_it_whole(scene: Scene) -> None:
    first = scene.plan()
    gates: dict[str, Json] = {
        name: {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}}
        for name in ("ship", "begin")
    }
    second = scene.plan(scene.runbook(start={"gate": "begin"}, gates=gates))
    async with scene.working():
        await scene.ensure()
        run = await scene.start(first)
        await scene.waits_for(run, "ship")
        await scene.order("abort", run, "olga")
        await scene.client.get_workflow_handle(run).result()
        run = await scene.start(second)
        await scene.waits_for(run, "begin")
        await scene.order("abort", run, "olga")
        end = await scene.client.get_workflow_handle(run, result_type=RunEnd).result()
    assert end.release is None
