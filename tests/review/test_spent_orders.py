"""An order moves a fleet under one lease: whoever starts workflows by himself with an old one moves nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.sim import SimTransport
from kedge.model.base import Json, canonical, digest_of
from kedge.model.run import LegFacts, Run, RunEnd, Warrant, WaveRequest, WaveResult
from tests.spine.scene import make_scene, settle

pytestmark = pytest.mark.temporal


async def test_an_order_that_was_spent_under_one_lease_does_not_act_under_another(
    client: Client, tmp_path: Path
) -> None:
    scene = make_scene(client, tmp_path)
    await settle(scene)
    waves: Json = {"widen": ["100%"], "max_unavailable": 1}
    plan = scene.plan(scene.runbook(waves=waves, gates={}))
    digest = await scene.drivers.blobs.put(canonical(plan))
    order = scene.envelope("start", f"fleet/{scene.name}", digest, "olga")
    async with scene.working():
        await scene.ensure()
        await scene.open_fleet()
        run = (await scene.submit(f"fleet/{scene.name}", order)).run
        assert run is not None
        handle = client.get_workflow_handle(run, result_type=RunEnd)
        assert (await asyncio.wait_for(handle.result(), 60)).phase == "done"
        back = await scene.rollback()
        await scene.until(back, "rolled-back")
        epoch = (await scene.fleet_status()).epoch
        # Somebody who reaches the engine, and knows what anybody there can read.
        forged = Run(
            id=run,
            fleet=scene.name,
            plan=digest,
            epoch=epoch + 1_000,
            warrant=digest_of(Warrant(start=order)),
        )
        result = await client.execute_workflow(
            "Wave",
            WaveRequest(
                run=forged,
                wave=0,
                program="forward",
                legs=(LegFacts(timeout=60, attempts=1, backoff=0.1),),
                nodes=(0,),
                parallel=1,
                budget=0,
                serial=1,
            ),
            id=f"forged-{scene.name}",
            task_queue=scene.settings.task_queue,
            result_type=WaveResult,
        )
    assert [failure.type for failure in result.failures] == ["NotAuthorised"]
    sim = scene.drivers.transport.named("sim")
    assert isinstance(sim, SimTransport)
    assert sim.host(plan.nodes[0]).state.release == plan.before.artifacts[0].digest
