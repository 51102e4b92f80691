"""``Fleet``: one per fleet, for ever. It admits signed orders, grants the lease, and starts the runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.orders import OrderActivities
    from activities.runs import RunActivities
    from kedge.model.order import Envelope, Expected, OrderVerdict
    from kedge.model.run import (
        FleetFacts,
        FleetJudged,
        FleetState,
        GlassNotice,
        GlassRequest,
        HolderSeen,
        JudgeRequest,
        Lease,
        PlanFacts,
        Preempted,
        Refused,
        RollbackRequest,
        Run,
        Submitted,
        UpgradeRequest,
    )
    from kedge.model.status import FleetStatus
    from kedge.plan.lease import MOST_REVIEWS, owed, refuse, signed_for, unproven
    from kedge.trust.envelope import order_digest, read
    from kedge.trust.refusal import RefusalError

from workflows.calls import attributes, decide, plan_facts, why
from workflows.ordered import (
    KEPT_REFUSALS,
    MOST_ORDERS,
    RESERVE,
    envelope_of,
    instant,
    unreadable,
)
from workflows.rollback import Rollback
from workflows.upgrade import Upgrade

KEPT = 100
"""Runs, verdicts and nonces a fleet remembers. A nonce is only needed until its order expires."""

NO_PLAN = "0" * 64


def glass_target(envelope: Envelope, run: str) -> str:
    """The run an order that broke the glass was for: the one that ended, or the way back that it went by itself."""
    try:
        return read(envelope).target
    except RefusalError:
        return run


@workflow.defn(name="Fleet")
class Fleet:
    """The lease of one fleet. ``holder`` has it; a start is admitted only when nobody has; a rollback takes it.

    What it knows of the lease it has from the record, from its first instant on: the worker computes epochs and grants
    leases there (``activities.leases``), so a Fleet that was terminated, reset or begun by somebody else is none the worse.
    """

    @workflow.init
    def __init__(self, fleet: str, state: FleetState | None = None) -> None:
        # Only its own continue-as-new hands a Fleet its memory: whoever else begins one may claim what he likes.
        carried = state if workflow.info().continued_run_id is not None else None
        self._state = carried or FleetState(fleet=fleet)
        self._known = False
        self._ordering = asyncio.Lock()
        self._received = 0
        self._told = 0
        self._looked = 0

    @workflow.run
    async def run(self, fleet: str, state: FleetState | None = None) -> None:  # noqa: ARG002 - read at init
        """Lives as long as the fleet; its history is renewed from time to time."""
        workflow.set_current_details(f"fleet **{fleet}**")
        await self._rebuild()
        while True:
            await workflow.wait_condition(lambda: self._told > self._looked or self._long())
            if self._told > self._looked:
                self._looked = self._told
                await self._look_at_holder(RunActivities.run_end_soon)
            if self._long():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[fleet, self._state])

    # -- what arrives --------------------------------------------------------------------------------------------

    @workflow.update(
        name="submit_order", description="A signed start or rollback; answers with the verdict."
    )
    async def submit_order(self, envelope: Envelope) -> Submitted:
        """Verify a start or rollback order and, if it holds, start the run."""
        return await self._receive(envelope)

    @submit_order.validator
    def _one_envelope(self, envelope: Envelope) -> None:  # noqa: ARG002 - the handler's signature
        """Whatever is no envelope is rejected before the handler sees it; so is what comes in a flood."""
        if self._full(RESERVE):
            raise ApplicationError(
                "too many orders at once: this fleet looks at more in a moment, send it again",
                type="TooManyOrders",
            )

    @workflow.signal(name="order", description="The same signed order, without an answer.")
    async def order(self, *sent: Any) -> None:
        """The same as ``submit_order``, for who cannot wait for an answer; takes whatever anybody sends."""
        if self._full():
            return
        try:
            envelope = envelope_of(sent)
        except RefusalError as refusal:
            self._received += 1
            await self._keep(unreadable(sent, refusal))
        else:
            await self._receive(envelope)

    @workflow.signal(
        name="run_ended", description="A run says that it ends; the Fleet looks for itself."
    )
    def run_ended(self, *sent: Any) -> None:
        """Only wakes the fleet: what became of the run is read from the run."""
        if sent and (sent[0] == self._state.holder or not self._known):
            self._told += 1

    @workflow.signal(
        name="glass_broken",
        description="From a run, before it follows an order that breaks the glass.",
    )
    async def glass_broken(self, *sent: Any) -> None:
        """Believed only with the signed order; what is dropped in a flood the run says again at its end."""
        if self._full(RESERVE):
            return
        self._received += 1
        try:
            notice = GlassNotice.model_validate(sent[0] if sent else None)
        except ValidationError:
            return
        await workflow.wait_condition(lambda: self._known)
        async with self._ordering:
            await self._owe(notice)

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
            reviews=state.reviews,
            known=self._known,
        )

    # -- decisions -----------------------------------------------------------------------------------------------

    def _full(self, reserve: int = 0) -> bool:
        """This history has had its share of orders (see ``Ordered``)."""
        return self._received >= MOST_ORDERS + reserve

    def _long(self) -> bool:
        return self._full() or workflow.info().is_continue_as_new_suggested()

    def _change(self, **update: object) -> None:
        self._state = self._state.model_copy(update=update)

    async def _receive(self, envelope: Envelope) -> Submitted:
        self._received += 1
        await workflow.wait_condition(lambda: self._known)
        async with self._ordering:
            await self._look_at_holder(RunActivities.run_end)
            judged = await decide(
                OrderActivities.judge_fleet_order,
                JudgeRequest(
                    envelope=envelope,
                    expected=self._expected(),
                    fleet=self._state.fleet,
                    signed=tuple(one for review in self._state.reviews for one in review.signed),
                    lease=Lease(
                        reviews={review.run: review.plan for review in self._state.reviews},
                        owed=self._state.reviews,
                    ),
                    pin=self._state.pin,
                    quiet=self._state.refused >= KEPT_REFUSALS,
                ),
                "verify an order to the fleet",
            )
            verdict = judged.verdict
            self._take(judged.facts)
            if not verdict.accepted:
                if verdict.rule == "break-glass" and verdict.verb == "start":
                    await self._take_up()
                self._remember(verdict)
                return Submitted(verdict=verdict)
            # The record has it as accepted, once for good: whatever becomes of it now, it does not come again.
            self._change(spent=(*self._state.spent, verdict.nonce)[-KEPT * 10 :])
            if judged.run is None:
                return Submitted(verdict=await self._reviewed(verdict))
            return await self._begin(envelope, judged, judged.run)

    async def _reviewed(self, verdict: OrderVerdict) -> OrderVerdict:
        """Take up an accepted review, if it is of what is owed now: the end of a run may have added to it meanwhile."""
        seen = {review.run: review.shown for review in self._state.reviews}
        if seen.get(verdict.subject) != verdict.shown:
            said = "the glass was broken once more while this review was looked at: look again"
            verdict = refuse(verdict, "shown", said)
            await self._keep(verdict)
            return verdict
        self._change(reviews=signed_for(self._state.reviews, verdict))
        self._remember(verdict)
        return verdict

    async def _owe(self, notice: GlassNotice) -> None:
        """Open a review for an order that broke the glass in a run, once, if the order holds."""
        if order_digest(notice.envelope) in self._state.glass:
            return
        verdict = await decide(
            OrderActivities.judge_glass,
            GlassRequest(fleet=self._state.fleet, notice=notice),
            f"the glass was broken in {notice.run}",
        )
        self._open_review(notice.run, verdict)

    def _open_review(self, run: str, verdict: OrderVerdict) -> None:
        if not (verdict.accepted and verdict.break_glass) or verdict.digest in self._state.glass:
            return
        self._change(
            reviews=owed(self._state.reviews, run, verdict, instant()),
            glass=(*self._state.glass, verdict.digest)[-KEPT * 10 :],
        )

    async def _take_up(self) -> None:
        """Know the reviews again that the record has as owed, and that this workflow, begun anew, does not."""
        found = await decide(
            OrderActivities.open_reviews, self._state.fleet, "the reviews that are owed"
        )
        known = {order.digest for review in self._state.reviews for order in review.orders}
        fresh = [
            review
            for review in found
            if not known.issuperset(order.digest for order in review.orders)
        ]
        renewed = {review.run for review in fresh}
        kept = tuple(review for review in self._state.reviews if review.run not in renewed)
        digests = (order.digest for review in fresh for order in review.orders)
        self._change(
            reviews=(*kept, *fresh)[:MOST_REVIEWS],
            glass=tuple(dict.fromkeys((*self._state.glass, *digests)))[-KEPT * 10 :],
        )

    async def _keep(self, verdict: OrderVerdict) -> None:
        """A verdict that no activity reached becomes evidence and is remembered."""
        if not unproven(verdict) or self._state.refused < KEPT_REFUSALS:
            await decide(
                OrderActivities.keep_verdict,
                Refused(fleet=self._state.fleet, verdict=verdict),
                f"refused: {verdict.rule}",
            )
        self._remember(verdict)

    def _remember(self, verdict: OrderVerdict) -> None:
        refused = self._state.refused + (not verdict.accepted)
        verdicts = (*self._state.verdicts, verdict)[-KEPT:]
        pin = max(self._state.pin, verdict.pin)
        self._change(verdicts=verdicts, refused=refused, pin=pin)

    def _expected(self) -> Expected:
        """An order to a fleet brings its own plan; the activity looks whether it is stored and of this fleet."""
        return Expected(
            verbs=("start", "rollback", "review"),
            target=f"fleet/{self._state.fleet}",
            plan=self._state.plan or NO_PLAN,
            subjects={review.run: review.shown for review in self._state.reviews},
            reviews={review.run: review.people for review in self._state.reviews},
            broken_with={review.run: review.keys for review in self._state.reviews},
            spent=self._state.spent,
            now=instant(),
        )

    async def _begin(self, envelope: Envelope, judged: FleetJudged, run: Run) -> Submitted:
        """Start the run that got the lease, and tell the one that lost it."""
        verdict = judged.verdict
        self._change(refused=0)
        try:
            facts = await plan_facts(run.plan)
            if verdict.verb == "start":
                await self._upgrade(run, verdict, facts)
            else:
                await self._roll_back(run, verdict, facts, of=judged.of)
        except (ActivityError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            # The lease is spent all the same: nothing acts under it, and the next order gets the next one.
            said = f"{run.id} did not begin: {why(error)}; order again"
            self._change(holder=None)
            verdict = refuse(verdict, "lease", said)
            await self._keep(verdict)
            return Submitted(verdict=verdict)
        if judged.loser is not None:
            notice = Preempted(epoch=run.epoch, successor=run.id, envelope=envelope)
            await self._tell(judged.loser, notice)
        self._remember(verdict)
        self._open_review(run.id, verdict)
        return Submitted(verdict=verdict, run=run.id)

    def _take(self, facts: FleetFacts) -> None:
        """Go by what the record has of the fleet."""
        fresh = facts.last != self._state.last
        self._change(
            epoch=facts.epoch,
            # That it ended is taken up with what it left, when it is looked at.
            holder=facts.holder if fresh or facts.holder is not None else self._state.holder,
            last=facts.last,
            plan=facts.plan,
            runs=facts.runs,
            release=None if fresh else self._state.release,
            release_document=None if fresh else self._state.release_document,
        )

    async def _rebuild(self) -> None:
        """Know the fleet as its record has it, whatever this workflow was begun with."""
        self._take(
            await decide(
                OrderActivities.fleet_of_record, self._state.fleet, "the fleet as its record has it"
            )
        )
        await self._take_up()
        await self._look_at_last()
        self._known = True

    async def _upgrade(self, run: Run, verdict: OrderVerdict, facts: PlanFacts) -> None:
        await workflow.start_child_workflow(
            Upgrade.run,
            UpgradeRequest(run=run, requester=verdict.person),
            id=run.id,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            search_attributes=attributes(run.fleet, "preflight", facts.after),
            static_summary=f"{facts.before} → {facts.after}, started by {verdict.person}",
        )

    async def _roll_back(
        self, run: Run, verdict: OrderVerdict, facts: PlanFacts, *, of: str
    ) -> None:
        await workflow.start_child_workflow(
            Rollback.run,
            RollbackRequest(
                run=run,
                requester=verdict.person,
                of=of,
                ordered=verdict if verdict.break_glass else None,
            ),
            id=run.id,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            search_attributes=attributes(run.fleet, "fencing", facts.before),
            static_summary=f"{facts.after} → {facts.before}, ordered by {verdict.person}",
        )

    async def _tell(self, loser: str, notice: Preempted) -> None:
        """Courtesy only: the fence on the hosts is what stops the older run."""
        try:
            await workflow.get_external_workflow_handle(loser).signal("preempted", notice)
        except Exception as error:  # noqa: BLE001 - it may be gone already
            workflow.logger.warning("%s could not be told that it lost the lease: %s", loser, error)

    async def _look_at_last(self) -> None:
        """What the last run left, when this workflow does not know it any more."""
        last = self._state.last
        if last is None or self._state.holder is not None or self._state.release is not None:
            return
        seen = await decide(RunActivities.run_end, last, f"how {last} ended")
        if seen.end is not None and self._state.last == last:
            self._change(release=seen.end.release, release_document=seen.end.release_document)

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
            release=end.release if end is not None else None,
            release_document=end.release_document if end is not None else None,
        )
        for envelope in end.glass if end is not None else ():
            await self._owe(GlassNotice(run=glass_target(envelope, holder), envelope=envelope))
