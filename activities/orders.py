"""Orders verified against the policy pinned on this worker, and what was decided written down."""

from __future__ import annotations

from contextlib import suppress

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.callers import own
from activities.ground import Ground, Pinned, goes_back
from activities.hearings import Hearing
from activities.heartbeats import pulse
from activities.leases import FleetLeases, facts_of
from activities.reviews import OwedReviews
from activities.spent import SpentOrders
from kedge.model.base import Json, canonical, digest_of
from kedge.model.errors import DriverError, OrderError
from kedge.model.order import EvidenceSeen, Expected, OrderVerdict
from kedge.model.plan import Plan
from kedge.model.policy import Policy
from kedge.model.review import Review
from kedge.model.run import (
    FleetFacts,
    FleetJudged,
    GlassRequest,
    JudgeRequest,
    Lease,
    Note,
    Refused,
    Warrant,
    WarrantUpdate,
)
from kedge.plan.lease import UNSEEN, admit, closing, owing, refuse, standing, unproven, unseen
from kedge.plan.risk import risk_of
from kedge.trust.chain import genesis
from kedge.trust.envelope import order_digest
from kedge.trust.orders import judge, read, refused
from kedge.trust.run_history import SAID

SAID_KINDS = frozenset({"decision", "asked", "parked", "way-back", "ended"})
"""What a workflow says of its decisions. It is told to people, and authorizes nothing."""
AUTHORS_MATTER = frozenset({"start", "approve"})
"""The words that a policy may forbid to who made the release."""


class OrderActivities:
    """Verification is here and not in workflows, because the policy is the worker's own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._reviews = OwedReviews(ground)
        self._spent = SpentOrders(ground)
        self._leases = FleetLeases(ground)

    @activity.defn
    async def judge_order(self, request: JudgeRequest) -> OrderVerdict:
        """The verdict about an order to a run; it is evidence before it is answered (see :meth:`_verdict`)."""
        if request.run is None:
            said = "an order to a fleet is judged with the fleet's lease"
            raise ApplicationError(said, type="NotAuthorised", non_retryable=True)
        own(request.run.id)
        async with pulse():
            verdict = await self._verdict(request)
            back = verdict.verb == "decide" and verdict.choice == "rollback"
            if verdict.accepted and back and request.expected.target == request.run.id:
                policy = (await self._ground.pinned(request.fleet)).digest
                if not await self._leases.lend(request.run, verdict, policy):
                    said = (
                        f"{request.run.id} has no lease of epoch {request.run.epoch} in the record"
                    )
                    verdict = refuse(verdict, "lease", said)
        return verdict

    @activity.defn
    async def judge_fleet_order(self, request: JudgeRequest) -> FleetJudged:
        """The verdict about an order to a fleet, and the lease of the run that it begins.

        Who has the fleet, its plan and its epochs are read from the record, whatever the workflow remembers.
        """
        fleet = request.fleet
        own(f"fleet/{fleet}")
        async with pulse():
            order = order_digest(request.envelope)
            before, earlier = await self._leases.facts_around(fleet, order)
            told = request.lease or Lease()
            lease = told.model_copy(update={"holder": earlier.holder, "plan": earlier.plan})
            asked = request.model_copy(update={"run": None, "lease": lease})
            verdict = await self._verdict(asked)
            if not verdict.accepted or verdict.verb not in ("start", "rollback"):
                return FleetJudged(verdict=verdict, facts=before)
            policy = (await self._ground.pinned(fleet)).digest
            granted = await self._leases.grant(fleet, verdict, request.envelope, policy)
            if granted is None:
                said = "another order got the lease of this fleet in this moment: order again"
                return FleetJudged(verdict=refuse(verdict, "lease", said), facts=before)
            run, leases = granted
        return FleetJudged(
            verdict=verdict,
            facts=facts_of(fleet, leases, run.id),
            run=run,
            of=earlier.holder or earlier.last or "",
            loser=earlier.holder,
        )

    @activity.defn
    async def fleet_of_record(self, fleet: str) -> FleetFacts:
        """The fleet as its record has it: what a workflow goes by that was begun anew, or begun by somebody else."""
        own(f"fleet/{fleet}")
        async with pulse():
            return await self._leases.facts(fleet)

    async def _verdict(self, request: JudgeRequest) -> OrderVerdict:
        """The verdict about an order; it is evidence before it is answered (in a flood of refusals, unless unproven)."""
        hearing = Hearing(request.envelope)
        verdict = await self._judged(request, hearing)
        if verdict.accepted:
            verdict = await self._witnessed(request, verdict)
        by = activity.info().workflow_id or ""
        if verdict.accepted:
            verdict, hearing = await self._accepted(request, verdict, hearing, by)
        if not verdict.accepted and not (request.quiet and unproven(verdict)):
            await self._ground.note_verdict(request.fleet, verdict, {**hearing.case(), "by": by})
        reviews = request.lease.owed if request.lease is not None else ()
        await self._reviews.noted(request.fleet, verdict, reviews, by)
        return verdict

    async def _accepted(
        self, request: JudgeRequest, verdict: OrderVerdict, hearing: Hearing, by: str
    ) -> tuple[OrderVerdict, Hearing]:
        """The verdict about an order that is accepted by all rules, after a look at what the record has of it."""
        if request.run is not None and request.expected.target != request.run.id:
            # A run is told of an order to its fleet: that one is spent by the fleet.
            if await self._spent.accepted(request.fleet, verdict.digest) is None:
                said = "its fleet did not accept this order, so no run loses the lease by it"
                verdict = refuse(verdict, "lease", said)
            return verdict, hearing
        case: dict[str, Json] = {**hearing.case(), "by": by}
        spent = await self._spent.spend(request.fleet, verdict, case)
        if spent is not None:
            return spent, hearing
        # Whatever the workflow remembers: the record knows this order, or another with its nonce.
        expected = request.expected.model_copy(update={"spent": (verdict.nonce,)})
        again = Hearing(request.envelope)
        found = await self._judged(request.model_copy(update={"expected": expected}), again)
        return found, again

    @activity.defn
    async def open_reviews(self, fleet: str) -> tuple[Review, ...]:
        """The reviews that the fleet owes, by its record."""
        own(f"fleet/{fleet}")
        async with pulse():
            return await self._reviews.open(fleet)

    async def _witnessed(self, request: JudgeRequest, verdict: OrderVerdict) -> OrderVerdict:
        """The verdict about an accepted order, after a look at the end of the record that its signer says he saw."""
        seen = read(request.envelope).evidence
        if seen is None:
            policies = [(await self._ground.pinned(request.fleet)).policy]
            if request.run is not None and request.expected.target == request.run.id:
                # What a run began under is asked of it to its end, as in all else.
                policies.append((await self._ground.began_under(request.run)).policy)
            if any(unseen(verdict, policy) for policy in policies):
                return refuse(verdict, "evidence", UNSEEN)
            return verdict
        entries = await self._ground.evidence.read(request.fleet, max(0, seen.seq - 1), 1)
        stands = entries[0].hash if entries and seen.seq else genesis(request.fleet)
        if (seen.seq and not entries) or stands != seen.hash:
            said = f"who signed this saw the record end in {seen.hash[:12]} at {seen.seq}; here it never did"
            return refuse(verdict, "evidence", said)
        return verdict

    async def _judged(self, request: JudgeRequest, hearing: Hearing) -> OrderVerdict:
        try:
            now = await self._ground.pinned(request.fleet, fresh=True)
        except DriverError as error:
            return refused(
                request.envelope,
                "policy",
                f"no policy is pinned for fleet {request.fleet}: {error.message}",
            )
        if now.seq < request.pin:
            said = f"the policy pinned on this worker was put back: number {request.pin} was seen, here it is {now.seq}"
            return refused(request.envelope, "policy", said)
        if request.lease is not None:
            verdict = await self._judged_for_fleet(request, request.lease, now.policy, hearing)
        else:
            verdict = await self._judged_for_run(request, now, hearing)
        return verdict.model_copy(update={"pin": now.seq})

    async def _judged_for_run(
        self, request: JudgeRequest, now: Pinned, hearing: Hearing
    ) -> OrderVerdict:
        """An order about a run holds by the policy that is pinned now, and by the one the run began under.

        So a change takes power away at once, and gives none to a run under way. (An order to the fleet that a run is told
        of, because it lost the lease by it, is judged as the fleet judged it.)
        """
        plan = await self._ground.plan(request.expected.plan)
        verdict = await self._wholly(request, request.expected, plan, now.policy, hearing)
        run = request.run
        if not verdict.accepted or run is None or request.expected.target != run.id:
            return verdict
        try:
            began = await self._ground.began_under(run)
        except DriverError as error:
            return refused(request.envelope, "policy", error.message)
        if began.digest == now.digest:
            return verdict
        then = await self._wholly(request, request.expected, plan, began.policy, hearing)
        if not then.accepted:
            said = f"the policy was another when this run began, and a change gives no power over it: {then.said}"
            return then.model_copy(update={"said": said})
        both = tuple(role for role in verdict.roles if role in then.roles)
        return verdict.model_copy(update={"roles": both})

    async def _judged_for_fleet(
        self, request: JudgeRequest, lease: Lease, policy: Policy, hearing: Hearing
    ) -> OrderVerdict:
        """An order to a fleet names its plan itself, which is read once it is known that a person of the policy says so:
        first the general rules, then those for plans of its class.
        """
        expected = request.expected
        with suppress(OrderError):
            expected = expected.model_copy(update={"plan": read(request.envelope).plan})
        general = policy.model_copy(update={"risk": {}})
        digest = await self._ground.keep_policy(policy)
        signed = standing(request.signed, policy)
        verdict = hearing.judge(expected, general, digest, signed=signed)
        verdict = owing(admit(verdict, lease), lease, policy)
        if verdict.accepted and verdict.verb == "start":
            try:
                reviews = {one.run: one.plan for one in await self._reviews.open(request.fleet)}
            except DriverError as error:
                said = f"whether a review is owed cannot be said: {error.message}"
                return refuse(verdict, "break-glass", said)
            verdict = owing(verdict, lease.model_copy(update={"reviews": reviews}), policy)
        if not verdict.accepted:
            return verdict
        if verdict.verb == "review":
            verdict = hearing.judge(expected, policy, digest, signed=signed)
            return closing(verdict, signed, policy)
        return await self._planned(verdict, request, policy, hearing)

    async def _planned(
        self, verdict: OrderVerdict, request: JudgeRequest, policy: Policy, hearing: Hearing
    ) -> OrderVerdict:
        """The verdict about an accepted order to a fleet, after a look at the plan that it names."""
        try:
            plan = await self._ground.plan(verdict.plan)
        except DriverError as error:
            said = f"the plan this order names cannot be read: {error.message}"
            return refuse(verdict, "plan", said)
        except ValueError:
            said = "what is stored under this order's plan digest is no plan"
            return refuse(verdict, "plan", said)
        if plan.fleet.name != request.fleet:
            return refuse(verdict, "plan", f"the plan is for fleet {plan.fleet.name}")
        # A way back is not closed because the policy became another since: it is held to the new one leg by leg.
        if verdict.verb == "start" and plan.policy.digest != digest_of(policy):
            said = "the plan was made with another policy than the one pinned for this fleet: make it again"
            return refuse(verdict, "policy", said)
        if verdict.verb == "start":
            verdict = await self._released(verdict, request.fleet, plan, policy)
        if not verdict.accepted:
            return verdict
        expected = request.expected.model_copy(update={"plan": verdict.plan})
        return await self._wholly(request, expected, plan, policy, hearing)

    async def _wholly(
        self,
        request: JudgeRequest,
        expected: Expected,
        plan: Plan,
        policy: Policy,
        hearing: Hearing,
    ) -> OrderVerdict:
        """The verdict with what only the plan says: what it puts at stake, and who made its release.

        Both are read here, never taken from who asks.
        """
        authors: tuple[str, ...] = ()
        verb = None
        with suppress(OrderError):
            verb = read(request.envelope).verb
        if verb in AUTHORS_MATTER:
            try:
                authors = await self._ground.trust.authors(plan, policy)
            except DriverError as error:
                if request.run is None or not goes_back(request.run.id):
                    said = f"who made the release of this plan cannot be said: {error.message}"
                    return refused(request.envelope, "release", said)
        update = {"risk": risk_of(plan), "authors": authors}
        return hearing.judge(
            expected.model_copy(update=update),
            policy,
            await self._ground.keep_policy(policy),
            signed=request.signed,
            gate=request.gate,
        )

    @activity.defn
    async def judge_glass(self, request: GlassRequest) -> OrderVerdict:
        """The verdict about an order that broke the glass in a run, at its own moment: its run accepted it, and tells."""
        own(f"fleet/{request.fleet}")
        async with pulse():
            return await self._glass(request)

    async def _glass(self, request: GlassRequest) -> OrderVerdict:
        envelope, run = request.notice.envelope, request.notice.run
        try:
            order = read(envelope)
        except OrderError as error:
            return refused(envelope, "unreadable", error.message)
        if not run.startswith((f"upgrade/{request.fleet}/", f"rollback/{request.fleet}/")):
            return refused(envelope, "target", f"{run} is no run of the fleet {request.fleet}")
        if not order.break_glass:
            return refused(envelope, "break-glass", "this order breaks no glass")
        if order.target == run:
            before = await self._spent.accepted(request.fleet, order_digest(envelope))
            if before is not None:
                return before
        try:
            policy = (await self._ground.pinned(request.fleet, fresh=True)).policy
        except DriverError as error:
            return refused(envelope, "policy", error.message)
        expected = Expected(
            verbs=(order.verb,),
            target=run,
            plan=order.plan,
            subjects={order.subject: order.shown},
            choices={order.subject: (order.choice,)} if order.choice is not None else {},
            now=order.issued,
        )
        # What its plan's class asks for was looked at by the run, and must not lose the fleet its review.
        return judge(envelope, expected, policy.model_copy(update={"risk": {}}))

    async def _released(
        self, verdict: OrderVerdict, fleet: str, plan: Plan, policy: Policy
    ) -> OrderVerdict:
        """The verdict about a start, after a look at the release: it is refused unless that is the signed one."""
        if policy.releases is None:
            return verdict
        try:
            found = await self._ground.trust.judged(plan, policy.releases)
        except DriverError as error:
            return refuse(verdict, "release", error.message)
        await self._ground.trust.note(fleet, f"release/order/{verdict.digest}", "", found)
        return verdict if found.ok else refuse(verdict, "release", found.said)

    @activity.defn
    async def keep_verdict(self, refusal: Refused) -> None:
        """Write down a verdict that was reached without judging an envelope."""
        if refusal.verdict.accepted:
            raise ApplicationError(
                "only the judgement of an order accepts it",
                type="NotAuthorised",
                non_retryable=True,
            )
        async with pulse():
            await self._ground.note_said(refusal.fleet, refusal.verdict)

    @activity.defn
    async def write_warrant(self, update: WarrantUpdate) -> str:
        """Store a warrant and return its digest."""
        async with pulse():
            return await self._warranted(update)

    async def _warranted(self, update: WarrantUpdate) -> str:
        signed = (*((update.start,) if update.start is not None else ()), *update.approvals)
        for envelope in signed:
            # The Fleet acts on what was said to it, a run on what was said to that run.
            try:
                own(read(envelope).target)
            except OrderError as error:
                raise ApplicationError(
                    str(error), type="NotAuthorised", non_retryable=True
                ) from error
        if update.start is not None:
            warrant = Warrant(start=update.start)
        else:
            base = update.base or ""
            warrant = Warrant.model_validate_json(await self._ground.blobs.get(base))
        if update.gate is not None:
            approvals = {**warrant.approvals, update.gate: update.approvals}
            warrant = warrant.model_copy(update={"approvals": approvals})
        return await self._ground.blobs.put(canonical(warrant))

    @activity.defn
    async def record(self, note: Note) -> EvidenceSeen:
        """Append a decision of a workflow to the fleet's evidence; where that ends then is what people are shown."""
        own(note.run.id)
        if note.record.get("what") not in SAID_KINDS:
            # What orders, leases, admissions and legs are noted as is for the activities that see to them.
            said = f"a workflow writes down {', '.join(sorted(SAID_KINDS))}, not {note.record.get('what')}"
            raise ApplicationError(said[:500], type="NotAuthorised", non_retryable=True)
        name = f"{SAID}{note.run.id}@{note.run.epoch}/{note.key}"
        record = {**note.record, "run": note.run.id, "epoch": note.run.epoch}
        async with pulse():
            head = await self._ground.note_apart(note.run.fleet, name, record)
        return EvidenceSeen(seq=head.seq, hash=head.hash)
