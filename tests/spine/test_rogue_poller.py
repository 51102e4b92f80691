"""Somebody polls the workers' queue and answers for legs that never ran: no run ends by that, and the record says why."""

from __future__ import annotations

import pytest
from temporalio import activity
from temporalio.worker import Worker

from activities.every import every_activity
from kedge.model.base import Json
from kedge.model.run import LegDone, LegRequest, TeamDone, TeamRequest
from tests.spine.conftest import Stage
from worker.client import connect
from worker.sandbox import ContextFreeRunner
from worker.settings import Settings
from worker.wiring import ground_of, restrictions
from workflows.every import EVERY_WORKFLOW

pytestmark = pytest.mark.temporal

LEGS = ("run_leg", "run_legs")


@activity.defn(name="run_leg")
async def answer_leg(request: LegRequest) -> LegDone:
    """All done, says the poller, and did nothing."""
    return LegDone(node=request.node, done=6, replayed=0, seconds=0.01)


@activity.defn(name="run_legs")
async def answer_legs(request: TeamRequest) -> TeamDone:
    """The same for a team."""
    done = (LegDone(node=node, done=6, replayed=0, seconds=0.01) for node in request.nodes)
    return TeamDone(done=tuple(done))


@pytest.mark.parametrize("bake", ["0s", "100ms"])
async def test_a_run_does_not_end_by_legs_that_somebody_else_answered(
    stage: Stage, engine_settings: Settings, bake: str
) -> None:
    scene = await stage()
    rogue = await connect(engine_settings, patience=10)
    waves: Json = {
        "canary": {"nodes": 1, "bake": {"duration": bake, "interval": "50ms"}},
        "widen": ["100%"],
        "max_unavailable": 2,
    }
    if bake == "0s":
        waves = {"widen": ["100%"], "max_unavailable": 2}
    plan = scene.plan(scene.runbook(gates={}, waves=waves))
    honest = every_activity(ground_of(scene.drivers, scene.client))
    queue = scene.settings.task_queue
    async with scene.working():
        await scene.ensure()
    async with (
        Worker(
            scene.client,
            task_queue=queue,
            workflows=EVERY_WORKFLOW,
            activities=[one for one in honest if one.__name__ not in LEGS],
            workflow_runner=ContextFreeRunner(restrictions=restrictions()),
        ),
        Worker(rogue, task_queue=queue, activities=[answer_leg, answer_legs]),
    ):
        run = await scene.start(plan)
        status = await scene.until(run, lambda s: s.waiting is not None or s.ended is not None, 90)
        assert status.ended is None, status.said
        assert await scene.records("end") == []
    assert set(scene.running().values()) == {"1.0.0"}
    async with scene.working():
        await scene.until(run, "parked")
        await scene.order("abort", run, "olga")
        assert (await scene.end_of(run)).phase == "aborted"
        assert (await scene.freed()).release == "1.0.0", "the record knows that nothing was moved"
