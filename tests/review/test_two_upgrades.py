"""Two upgrades by the same plan, the first of them aborted half-way: the snapshots of before it are the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.sim_faults import Fault
from tests.spine.scene import Scene, make_scene, settle
from tests.spine.test_commit import GUARDED
from tests.spine.test_rollback import NEW, OLD

pytestmark = pytest.mark.temporal


@pytest.fixture
async def scene(client: Client, tmp_path: Path) -> Scene:
    """Three simulated nodes."""
    made = make_scene(client, tmp_path)
    await settle(made)
    return made


async def test_nodes_that_an_aborted_upgrade_moved_are_restored_from_its_snapshots(
    scene: Scene,
) -> None:
    plan = scene.plan(scene.runbook(**GUARDED))
    crash = Fault(do="crash", node="n1", op="start", run="upgrade/*/1", seconds=0.0)
    scene.sim.program(crash)
    async with scene.working():
        await scene.ensure()
        first = await scene.start(plan)
        await scene.waits_for(first, "wave")
        assert (await scene.order("abort", first, "eve")).accepted
        await scene.end_of(first)
        await scene.freed()
        # n1 is down, and the preflight of the next would park: `kedge up` starts it first.
        await scene.ensure()
        second = await scene.start(plan)
        await scene.waits_for(second, "commit")
        await scene.approve(second)
        assert (await scene.end_of(second)).phase == "done"
        assert scene.running() == NEW
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        await scene.approve(back, "bob")
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert scene.running() == OLD
    for name in OLD:
        host = scene.host(name)
        assert host.state.data == (scene.digest("1.0.0"),), "what the new release wrote is gone"
        assert len(host.snapshots) == 1, "what the new release had is not copied"
