"""``Look``: what ``kedge doctor`` starts: how every node of a fleet is now, without doing anything to it."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bringing_up import BringingUpActivities
    from kedge.model.run import EnsureResult

from workflows.calls import survey


@workflow.defn(name="Look")
class Look:
    """Installs nothing and starts nothing."""

    @workflow.run
    async def run(self, fleet: str) -> EnsureResult:
        """Looks at one fleet."""
        what = f"look at the nodes of fleet {fleet}"
        return await survey(BringingUpActivities.look_at_fleet, fleet, what, 3600)
