"""Migrations end to end: a real Temporal server, a real worker, signed orders."""

from __future__ import annotations

import pytest

from tests.spine.conftest import Stage

pytestmark = pytest.mark.temporal


@pytest.mark.parametrize("transport", ["sim", "local"])
async def test_an_upgrade_goes_through_canary_gate_and_widening(
    stage: Stage, transport: str
) -> None:
    scene = await stage(transport=transport)
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        assert status.nodes_done == 1
        await scene.approve(run)
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.nodes_done == 3
    assert end.release == "1.1.0"
