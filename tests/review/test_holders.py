"""A lease is freed however its holder ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from activities.runs import RunActivities
from kedge.model.base import Json
from tests.spine.scene import make_scene
from worker.wiring import ground_of

pytestmark = pytest.mark.temporal


@workflow.defn(name="Strange", sandboxed=False)
class Strange:
    """A run of another version: it ends with a word that is not known here."""

    @workflow.run
    async def run(self) -> Json:
        """Ends at once."""
        return {"run": "upgrade/t/1", "phase": "some-new-phase", "said": "", "more": 1}


async def test_a_holder_whose_last_word_cannot_be_read_has_ended(
    client: Client, tmp_path: Path
) -> None:
    scene = make_scene(client, tmp_path)
    queue, name = f"{scene.name}-strange", f"upgrade/{scene.name}/1"
    async with Worker(client, task_queue=queue, workflows=[Strange]):
        await client.execute_workflow("Strange", id=name, task_queue=queue)
    runs = RunActivities(ground_of(scene.drivers, client))
    seen = await asyncio.wait_for(ActivityEnvironment().run(runs.run_end, name), 20)
    assert seen.ended
    assert seen.end is None
