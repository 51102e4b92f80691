"""A workflow that somebody reset in the engine decides anew: the record has both."""

from __future__ import annotations

import dataclasses

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.orders import OrderActivities
from kedge.model.base import Json
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
    key = f"said/{of.id}@1/decision-wave-0"
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, workflow_id=of.id)

    async def decided(said: str, at: str) -> int:
        record: dict[str, Json] = {"what": "decision", "said": said, "at": at}
        note = Note(run=of, key="decision-wave-0", record=record)
        return (await environment.run(orders.record, note)).seq

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


async def test_a_workflow_writes_down_what_it_says_and_nothing_that_authorizes(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    orders = OrderActivities(ground_of(scene.drivers, client))
    of = Run(
        id=f"upgrade/{scene.name}/1", fleet=scene.name, plan="0" * 64, epoch=1, warrant="0" * 64
    )
    environment = ActivityEnvironment()
    for what in ("leg", "admitted", "order", "lease", "looked", "return", "end", "fence", "spent"):
        environment.info = dataclasses.replace(environment.info, workflow_id=of.id)
        with pytest.raises(ApplicationError, match="a workflow writes down"):
            await environment.run(orders.record, Note(run=of, key="k", record={"what": what}))
    environment.info = dataclasses.replace(environment.info, workflow_id="somebody")
    with pytest.raises(ApplicationError, match="only that one may"):
        await environment.run(orders.record, Note(run=of, key="k", record={"what": "decision"}))
    assert await scene.records() == []
