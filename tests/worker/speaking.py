"""A workflow and an activity that only log; in a module of their own, for the SDK's sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    from worker import logs


@dataclass
class Leg:
    run: str
    wave: int
    node: str


@activity.defn
async def speaks(leg: Leg) -> None:
    activity.logger.info("from the activity of %s", leg.node)
    logs.get_logger("driver").info("from structlog")


@workflow.defn
class Speaks:
    @workflow.run
    async def run(self, leg: Leg) -> None:
        workflow.logger.info("from the workflow", extra={"wave": leg.wave})
        await workflow.execute_activity(speaks, leg, start_to_close_timeout=timedelta(seconds=10))
