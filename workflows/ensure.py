"""``Ensure``: what ``kedge up`` starts: install what was never installed, start what should run."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bringing_up import BringingUpActivities
    from kedge.model.run import EnsureResult

from workflows.calls import survey


@workflow.defn(name="Ensure")
class Ensure:
    """Moves nothing from one release to another: it keeps what each host's own mark says."""

    @workflow.run
    async def run(self, fleet: str) -> EnsureResult:
        """Brings up one fleet."""
        what = f"bring up fleet {fleet}"
        return await survey(BringingUpActivities.ensure_fleet, fleet, what, 3600)
