"""An order moves a fleet under one lease: whoever starts workflows by himself with an old one moves nothing."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.sim import SimTransport
from kedge.model.base import Json, canonical, digest_of
from kedge.model.order import Envelope
from kedge.model.run import LegFacts, Run, RunEnd, Warrant, WaveRequest, WaveResult
from kedge.trust.sshsig import BEGIN, END, unarmor
from tests.spine.conftest import Stage
from tests.spine.scene import make_scene, settle

pytestmark = pytest.mark.temporal


def wrapped(envelope: Envelope, width: int) -> Envelope:
    """The same signed order, its signature in lines of another width."""
    text = base64.b64encode(unarmor(envelope.signature)).decode()
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return Envelope(order=envelope.order, signature="\n".join([BEGIN, *lines, END, ""]))


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


async def test_an_order_in_lines_of_another_width_is_spent_wherever_it_is_sent(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(waves={"widen": ["100%"], "max_unavailable": 1}, gates={}))
    digest = await scene.drivers.blobs.put(canonical(plan))
    order = scene.envelope("start", f"fleet/{scene.name}", digest, "olga")
    async with scene.playing():
        await scene.open_fleet()
        run = (await scene.submit(f"fleet/{scene.name}", order)).run
        assert run is not None
        assert (await scene.end_of(run)).phase == "done"
        await scene.until(await scene.rollback(), "rolled-back")
        epoch = (await scene.fleet_status()).epoch
        # To the fleet that knows it, to a fleet begun anew, and in a warrant that somebody made from it.
        again = await scene.submit(f"fleet/{scene.name}", wrapped(order, 64))
        await client.get_workflow_handle(f"fleet/{scene.name}").terminate("by a test")
        await scene.open_fleet()
        anew = await scene.submit(f"fleet/{scene.name}", wrapped(order, 76))
        warrant = await scene.drivers.blobs.put(canonical(Warrant(start=wrapped(order, 64))))
        failures = [
            (await forged_wave(scene.settings.task_queue, client, forged)).failures
            for forged in (
                Run(id=run, fleet=scene.name, plan=digest, epoch=epoch + 1000, warrant=warrant),
                Run(
                    id=f"upgrade/{scene.name}/9", fleet=scene.name, plan=digest, epoch=epoch + 1000, warrant=warrant,
                ),
            )
        ]  # fmt: skip
        assert set(scene.running().values()) == {"1.0.0"}
    assert [one.verdict.rule for one in (again, anew)] == ["nonce-spent", "nonce-spent"]
    assert (again.run, anew.run) == (None, None)
    assert [[one.type for one in some] for some in failures] == [["NotAuthorised"]] * 2


async def forged_wave(task_queue: str, client: Client, run: Run, *, node: int = 0) -> WaveResult:
    """What becomes of a wave that somebody starts by himself."""
    result: WaveResult = await client.execute_workflow(
        "Wave",
        WaveRequest(
            run=run,
            wave=0,
            program="forward",
            legs=(LegFacts(timeout=60, attempts=1, backoff=0.1),),
            nodes=(node,),
            parallel=1,
            budget=0,
            serial=1,
        ),
        id=f"forged-{run.fleet}-{run.id.replace('/', '-')}",
        task_queue=task_queue,
        result_type=WaveResult,
    )
    return result
