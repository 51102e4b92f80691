"""Workflows that were changed so that they no longer agree with what is recorded: replay must find out."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from kedge.model.run import RunEnd, UpgradeRequest, WaveRequest, WaveResult

from workflows.upgrade import Upgrade
from workflows.wave import Wave


@workflow.defn(name="Upgrade")
class SlowerUpgrade(Upgrade):
    """Waits a second before everything else."""

    @workflow.init
    def __init__(self, request: UpgradeRequest) -> None:
        super().__init__(request)

    @workflow.run
    async def run(self, request: UpgradeRequest) -> RunEnd:
        """What the upgrade does, later."""
        await workflow.sleep(timedelta(seconds=1))
        return await super().run(request)


@workflow.defn(name="Wave")
class IdleWave(Wave):
    """Does nothing to its nodes."""

    @workflow.init
    def __init__(self, request: WaveRequest) -> None:
        super().__init__(request)

    @workflow.run
    async def run(self, request: WaveRequest) -> WaveResult:
        """Nothing, and says so."""
        return WaveResult(done=len(request.nodes), steps=0, replayed=0)
