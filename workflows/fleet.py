"""``Fleet``: one per fleet, for ever. It admits signed orders, grants the lease, and starts the runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from activities.orders import OrderActivities
    from activities.plans import PlanActivities
    from activities.runs import RunActivities
    from kedge.model.order import Envelope, Expected, OrderVerdict
    from kedge.model.run import (
        FleetState,
        FleetStatus,
        HolderSeen,
        JudgeRequest,
        Preempted,
        RollbackRequest,
        Run,
        Submitted,
        UpgradeRequest,
        WarrantUpdate,
    )

from workflows.calls import attributes, decide
from workflows.ordered import instant
from workflows.rollback import Rollback
from workflows.upgrade import Upgrade

KEPT = 100
"""Runs, verdicts and nonces a fleet remembers. A nonce is only needed until its order expires."""

NO_PLAN = "0" * 64


@workflow.defn(name="Fleet")
class Fleet:
    """The lease of one fleet. ``holder`` has it; a start is admitted only when nobody has; a rollback takes it.

    The epoch grows with every lease and is never below the seconds since 1970, so that it keeps growing when the
    engine's database was lost and hosts still remember the old fence.
    """

    @workflow.init
    def __init__(self, fleet: str, state: FleetState | None = None) -> None:
        self._state = state or FleetState(fleet=fleet)
        self._ordering = asyncio.Lock()
        self._told = 0
        self._looked = 0

    @workflow.run
    async def run(self, fleet: str, state: FleetState | None = None) -> None:  # noqa: ARG002 - read at init
        """Lives as long as the fleet; its history is renewed from time to time."""
        workflow.set_current_details(f"fleet **{fleet}**")
        while True:
            await workflow.wait_condition(
                lambda: self._told > self._looked or workflow.info().is_continue_as_new_suggested()
            )
            if self._told > self._looked:
                self._looked = self._told
                await self._look_at_holder(RunActivities.run_end_soon)
            if workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[fleet, self._state])

    # -- what arrives --------------------------------------------------------------------------------------------

    @workflow.update(
        name="submit_order", description="A signed start or rollback; answers with the verdict."
    )
    async def submit_order(self, envelope: Envelope) -> Submitted:
        """Verify a start or rollback order and, if it holds, start the run."""
        return await self._receive(envelope)

    @workflow.signal(name="order", description="The same signed order, without an answer.")
    async def order(self, envelope: Envelope) -> None:
        """The same as ``submit_order``, for who cannot wait for an answer."""
        await self._receive(envelope)

    @workflow.signal(
        name="run_ended", description="A run says that it ends; the Fleet looks for itself."
    )
    def run_ended(self, run: str) -> None:
        """Only wakes the fleet: what became of the run is read from the run."""
        if run == self._state.holder:
            self._told += 1

    @workflow.query(description="Who has the lease, and which release is on the fleet.")
    def status(self) -> FleetStatus:
        """Who has the lease, and which release is on the fleet."""
        state = self._state
        return FleetStatus(
            fleet=state.fleet,
            epoch=state.epoch,
            holder=state.holder,
            last=state.last,
            plan=state.plan,
            release=state.release,
            release_document=state.release_document,
            runs=state.runs,
            verdicts=state.verdicts,
        )

    # -- decisions -----------------------------------------------------------------------------------------------

    def _change(self, **update: object) -> None:
        self._state = self._state.model_copy(update=update)

    async def _receive(self, envelope: Envelope) -> Submitted:
        async with self._ordering:
            await self._look_at_holder(RunActivities.run_end)
            verdict = await decide(
                OrderActivities.judge_order,
                JudgeRequest(
                    envelope=envelope,
                    expected=self._expected(),
                    fleet=self._state.fleet,
                    any_plan=True,
                ),
                "verify an order to the fleet",
            )
            verdict = self._admit(verdict)
            run = await self._begin(envelope, verdict) if verdict.accepted else None
            spent = (
                (*self._state.spent, verdict.nonce)[-KEPT * 10 :]
                if verdict.accepted
                else self._state.spent
            )
            self._change(verdicts=(*self._state.verdicts, verdict)[-KEPT:], spent=spent)
            return Submitted(verdict=verdict, run=run)

    def _expected(self) -> Expected:
        """A start brings its own plan (``any_plan``): the activity checks that it is stored and of this fleet."""
        return Expected(
            verbs=("start", "rollback"),
            target=f"fleet/{self._state.fleet}",
            plan=self._state.plan or NO_PLAN,
            spent=self._state.spent,
            now=instant(),
        )

    def _admit(self, verdict: OrderVerdict) -> OrderVerdict:
        """The lease's own rules, after the signature's."""
        if not verdict.accepted:
            return verdict
        if verdict.verb == "start" and self._state.holder is not None:
            said = f"{self._state.holder} has the lease of this fleet: wait for its end, or roll it back"
            return verdict.model_copy(update={"accepted": False, "rule": "lease", "said": said})
        if verdict.verb == "rollback" and self._state.plan is None:
            said = "no run of this fleet is known: there is nothing to roll back"
            return verdict.model_copy(update={"accepted": False, "rule": "not-open", "said": said})
        if verdict.verb == "rollback" and verdict.plan != self._state.plan:
            said = f"the order is about plan {verdict.plan}, this fleet's is {self._state.plan}"
            return verdict.model_copy(update={"accepted": False, "rule": "plan", "said": said})
        return verdict

    async def _begin(self, envelope: Envelope, verdict: OrderVerdict) -> str:
        """Grant the lease with a new epoch and start the run under it."""
        warrant = await decide(
            OrderActivities.write_warrant, WarrantUpdate(start=envelope), "store the warrant"
        )
        facts = await decide(PlanActivities.plan_facts, verdict.plan, "read the plan")
        state = self._state
        epoch = max(state.epoch + 1, int(workflow.now().timestamp()))
        kind = "upgrade" if verdict.verb == "start" else "rollback"
        identity = f"{kind}/{state.fleet}/{state.count + 1}"
        run = Run(
            id=identity,
            fleet=state.fleet,
            plan=verdict.plan,
            epoch=epoch,
            warrant=warrant,
            snapshots=0 if kind == "upgrade" else state.snapshots,
        )
        loser = state.holder
        self._change(
            epoch=epoch,
            count=state.count + 1,
            holder=identity,
            last=identity,
            plan=verdict.plan,
            snapshots=epoch if kind == "upgrade" else state.snapshots,
            runs=(*state.runs, identity)[-KEPT:],
            release=None if kind == "upgrade" else state.release,
            release_document=None if kind == "upgrade" else state.release_document,
        )
        if kind == "upgrade":
            await workflow.start_child_workflow(
                Upgrade.run,
                UpgradeRequest(run=run, requester=verdict.person),
                id=identity,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                search_attributes=attributes(state.fleet, "preflight", facts.after),
                static_summary=f"{facts.before} → {facts.after}, started by {verdict.person}",
            )
        else:
            await workflow.start_child_workflow(
                Rollback.run,
                RollbackRequest(run=run, requester=verdict.person, of=loser or state.last or ""),
                id=identity,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                search_attributes=attributes(state.fleet, "fencing", facts.before),
                static_summary=f"{facts.after} → {facts.before}, ordered by {verdict.person}",
            )
        if loser is not None:
            await self._tell(loser, Preempted(epoch=epoch, successor=identity, envelope=envelope))
        return identity

    async def _tell(self, loser: str, notice: Preempted) -> None:
        """Courtesy only: the fence on the hosts is what stops the older run."""
        try:
            await workflow.get_external_workflow_handle(loser).signal("preempted", notice)
        except ApplicationError as error:
            workflow.logger.warning("%s could not be told that it lost the lease: %s", loser, error)
        except Exception as error:  # noqa: BLE001 - it may be gone already
            workflow.logger.warning("%s could not be told that it lost the lease: %s", loser, error)

    async def _look_at_holder(
        self, look: Callable[[RunActivities, str], Coroutine[Any, Any, HolderSeen]]
    ) -> None:
        """Frees the lease when its holder has ended, however it ended.

        Orders may come in while this looks (a forged ``run_ended`` must not hold them up): the lease is only freed
        if it is still the same run's.
        """
        holder = self._state.holder
        if holder is None:
            return
        seen = await decide(look, holder, f"how {holder} ended")
        if not seen.ended or self._state.holder != holder:
            return
        end = seen.end
        self._change(
            holder=None,
            last=holder,
            release=end.release if end is not None else None,
            release_document=end.release_document if end is not None else None,
        )
