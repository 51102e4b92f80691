"""What became of other runs, read from the engine itself."""

from __future__ import annotations

import asyncio

from temporalio import activity
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.service import RPCError, RPCStatusCode

from activities.admission import Admissions
from activities.callers import own
from activities.ground import Ground
from activities.heartbeats import pulse
from kedge.model.run import EndRequest, EndVerdict, HolderSeen, RunEnd

SOON = 20.0
"""Seconds a run that said that it ends is waited for."""


class RunActivities:
    """The lease is freed by what the engine says of its holder, not by what a signal says."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._admissions = Admissions(ground)

    @activity.defn
    async def end_run(self, request: EndRequest) -> EndVerdict:
        """Write down how a run ended, when the record bears it out: only its own workflow asks, and is not believed."""
        own(request.run.id)
        async with pulse():
            return await self._admissions.end(request)

    @activity.defn
    async def run_end(self, run: str) -> HolderSeen:
        """Whether ``run`` has ended, and how."""
        async with pulse():
            return await self._end_of(run)

    async def _end_of(self, run: str) -> HolderSeen:
        handle = self._ground.client.get_workflow_handle(run, result_type=RunEnd)
        try:
            described = await handle.describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return HolderSeen(ended=True)
            raise
        if described.status in (
            WorkflowExecutionStatus.RUNNING,
            WorkflowExecutionStatus.CONTINUED_AS_NEW,
        ):
            return HolderSeen(ended=False)
        try:
            return HolderSeen(ended=True, end=await self._recorded(run, await handle.result()))
        except (WorkflowFailureError, ValueError, RuntimeError):
            # It failed, or what it returned is not readable here (another version's word): in both cases it has ended,
            # and a fleet that asked for ever would take no order any more, not even one to roll back.
            return HolderSeen(ended=True)

    async def _recorded(self, run: str, said: RunEnd) -> RunEnd:
        """The end as the record has it: what a run returns is what some worker answered."""
        ended = None
        if run.count("/") == 2:
            ended = await self._admissions.ended(run.split("/")[1], run)
        release, document = None, None
        if ended is not None and ended[1] is not None:
            side = ended[2].after if ended[1] == "after" else ended[2].before
            release, document = side.version, side.document
        return said.model_copy(update={"release": release, "release_document": document})

    @activity.defn
    async def run_end_soon(self, run: str) -> HolderSeen:
        """The same, for a run that says that it ends: waits at most ``SOON`` seconds for its last word."""
        waited = 0.0
        async with pulse():
            while True:
                seen = await self._end_of(run)
                if seen.ended or waited >= SOON:
                    return seen
                await asyncio.sleep(0.1)
                waited += 0.1
