"""A command of which nobody knows how it ended: people are told what a retry does, and it does it once."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.spine.scene import Scene, make_scene, settle

COMMAND: list[Json] = [
    "stage",
    {"stop": {"signal": "TERM", "grace": "5s"}},
    {"run": {"argv": ["migrate"], "undo": "none"}},
    "switch",
    "configure",
    {"start": {"settle": "0s"}},
    {"healthy": {"service": {"running": True}, "for": "0s", "within": "5s", "interval": "50ms"}},
]


@pytest.fixture
async def scene(client: Client, tmp_path: Path) -> Scene:
    """Three simulated nodes."""
    made = make_scene(client, tmp_path)
    await settle(made)
    return made


@pytest.mark.temporal
async def test_a_signed_retry_executes_again_what_nobody_knows_the_end_of(scene: Scene) -> None:
    lost = Fault(do="die", node="n0", op="run", at="acted", nth=(1, 3))
    scene.sim.program(lost)
    async with scene.working():
        await scene.ensure()
        run = await scene.start(scene.plan(scene.runbook(node=COMMAND)))
        for time in (1, 2):
            status = await scene.waits_for(run, f"wave-{time}")
            assert status.waiting is not None
            assert "Unresolved" in status.waiting.showing.title
            assert "retry executes it again: " in status.waiting.showing.title
            assert scene.host("n0").counts.runs == time
            await scene.decide(run, "retry")
        await scene.waits_for(run, "ship")
    assert scene.host("n0").counts.runs == 3
