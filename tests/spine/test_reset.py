"""A workflow that somebody reset in the engine decides anew: the record has both."""

from __future__ import annotations

import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.orders import OrderActivities
from kedge.model.run import Note, Run
from tests.spine.conftest import Stage
from worker.wiring import ground_of

pytestmark = pytest.mark.temporal


async def test_what_a_reset_workflow_decides_otherwise_stands_beside_what_it_decided_first(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    orders = OrderActivities(ground_of(scene.drivers, client))
    of = Run(
        id=f"upgrade/{scene.name}/1", fleet=scene.name, plan="0" * 64, epoch=1, warrant="0" * 64
    )
    key = f"{of.id}@1/decision-wave-0"

    async def decided(said: str, at: str) -> int:
        note = Note(run=of, key=key, record={"what": "decision", "said": said, "at": at})
        return (await ActivityEnvironment().run(orders.record, note)).seq

    first = await decided("goes on", "2026-01-01T00:00:00Z")
    # Tried again, or decided again in the same way: nothing new.
    assert await decided("goes on", "2026-01-01T00:00:05Z") == first
    other = await decided("goes back", "2026-01-01T00:00:09Z")
    assert other == first + 1
    assert await decided("goes back", "2026-01-01T00:00:11Z") == other
    assert await decided("goes on", "2026-01-01T00:00:12Z") == first
    kept = await scene.drivers.evidence.under(scene.name, key)
    assert [one.record["said"] for one in kept if isinstance(one.record, dict)] == [
        "goes on",
        "goes back",
    ]
