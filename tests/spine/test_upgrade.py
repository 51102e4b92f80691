"""Migrations end to end: a real Temporal server, a real worker, signed orders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.model.run import RunEnd
from tests.spine.scene import Scene, end_daemons, make_scene, settle

pytestmark = pytest.mark.temporal


@pytest.fixture(params=["sim", "local"])
async def scene(
    request: pytest.FixtureRequest, client: Client, tmp_path: Path
) -> AsyncIterator[Scene]:
    made = make_scene(client, tmp_path, transport=request.param)
    await settle(made)
    yield made
    end_daemons(made)


async def test_an_upgrade_goes_through_canary_gate_and_widening(scene: Scene) -> None:
    async with scene.working():
        await scene.ensure()
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        assert status.nodes_done == 1
        await scene.approve(run)
        end = await scene.client.get_workflow_handle(run, result_type=RunEnd).result()
    assert end.phase == "done"
    assert end.nodes_done == 3
    assert end.release == "1.1.0"
