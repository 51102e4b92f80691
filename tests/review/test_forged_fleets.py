"""A Fleet under another name: whoever reaches the engine can begin one, and it spends nobody's order."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.service import RPCError

from kedge.model.order import Envelope
from kedge.model.run import FleetState, Submitted
from tests.spine.scene import Scene, make_scene, settle

pytestmark = pytest.mark.temporal


@pytest.fixture
async def scene(client: Client, tmp_path: Path) -> Scene:
    """Three simulated nodes."""
    made = make_scene(client, tmp_path)
    await settle(made)
    return made


async def forged(scene: Scene, envelope: Envelope) -> None:
    """A Fleet of the same fleet under another id, with a memory of its own; it is given the order, and ends."""
    handle: WorkflowHandle[object, object] = await scene.client.start_workflow(
        "Fleet",
        args=[scene.name, FleetState(fleet=scene.name, epoch=2**53 - 2)],
        id=f"forged/{scene.name}",
        task_queue=scene.settings.task_queue,
    )
    with pytest.raises((WorkflowUpdateFailedError, RPCError)):
        await handle.execute_update("submit_order", envelope, result_type=Submitted)
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    assert "only that one may" in str(failed.value.cause.__cause__)


async def test_an_order_that_is_given_to_a_forged_fleet_begins_nothing_and_stays_unspent(
    scene: Scene,
) -> None:
    target = f"fleet/{scene.name}"
    async with scene.working():
        await scene.ensure()
        plan = scene.plan()
        run = await scene.start(plan)
        await scene.waits_for(run, "ship")
        envelope = scene.envelope(
            "rollback", target, (await scene.fleet_status()).plan or "", "eve"
        )
        await forged(scene, envelope)
        assert (await scene.fleet_status()).holder == run
        submitted = await scene.submit(target, envelope)
        assert submitted.verdict.accepted
        assert submitted.run is not None
        assert (await scene.end_of(submitted.run)).phase == "rolled-back"
