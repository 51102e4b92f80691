"""``Ordered``: what Upgrade and Rollback share: receiving signed orders, gates, time spent in phases, what people see.

An order is verified by an activity, one at a time (``_ordering``), against what is open at that instant; a verdict for
something that closed meanwhile is refused. Whatever is accepted is put in ``_inbox`` and wakes the run.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.orders import OrderActivities
    from kedge.model.base import Digest, Frozen, Json, digest_of
    from kedge.model.order import Envelope, EvidenceSeen, Expected, OrderVerdict, Tally
    from kedge.model.outside import markdown
    from kedge.model.plan import Choice, Gate, Verb
    from kedge.model.run import (
        GlassNotice,
        JudgeRequest,
        Note,
        Phase,
        PlanFacts,
        Preempted,
        Refused,
        Run,
        Submitted,
        WarrantUpdate,
    )
    from kedge.model.status import Showing, Waiting
    from kedge.plan.lease import refuse, unproven
    from kedge.trust.approvals import tally
    from kedge.trust.envelope import moment, open_envelope, read
    from kedge.trust.refusal import RefusalError

from workflows.calls import PHASE, WAITING, decide, plan_facts, why

KEPT_VERDICTS = 50
MOST_ORDERS = 400
"""Orders looked at in one history, refused ones included: then the run goes on in a new one, and looks at as many again.
Signals that come until then are dropped, so that a flood neither fills the history nor makes a run deaf for good."""
RESERVE = 100
"""As many more updates and notices of pre-emption are looked at meanwhile: they are people's, who see an answer."""
KEPT_REFUSALS = 200
"""Refusals of a run, or of a fleet since its last run began, that become evidence; further ones are only counted, unless
the order was proven to be of a person of the policy."""
MOST_GLASS = 20
"""Orders that broke the glass which a run says again at its end; its first opened the review."""
MOST_SHOWN = 200_000
"""Characters of what is shown that become evidence as they are; of more only the digest does."""
CROWD = 50
"""Orders looked at in one history before a wait is interrupted to begin a new one."""


class OrderMemory(Frozen):
    """What a run remembers of orders and time over continue-as-new."""

    verdicts: tuple[OrderVerdict, ...] = ()
    spent: tuple[str, ...] = ()
    received: int = 0
    refused: int = 0
    pin: int = 0
    """The highest number of a policy that a worker had pinned."""
    gate: str = ""
    signed: tuple[OrderVerdict, ...] = ()
    envelopes: tuple[Envelope, ...] = ()
    since: str = ""
    decided: Envelope | None = None
    """The last accepted order to decide: what a way back that people chose acts on."""
    glass: tuple[Envelope, ...] = ()
    """The orders that broke the glass here."""
    started: str
    seconds: dict[str, float] = {}
    warrant: Digest
    head: EvidenceSeen | None = None
    """The end of the fleet's evidence as of this run's last record: what people name in their orders."""


class Open(Frozen):
    """Something people may sign now: a gate or a parked item, and what they are shown."""

    subject: str
    showing: Showing
    shown: Digest
    gate: Gate | None = None
    choices: tuple[Choice, ...] = ()


def written(time: datetime) -> str:
    """A time as orders write it: RFC 3339, UTC, whole seconds."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def instant() -> str:
    """Now by the workflow's clock."""
    return written(workflow.now())


def envelope_of(sent: tuple[Any, ...]) -> Envelope:
    """The envelope in what a signal brought, whatever that is; raises ``RefusalError`` (``unreadable``)."""
    if len(sent) != 1:
        raise RefusalError(
            "unreadable", f"a signal brings one envelope, and this one brought {len(sent)} values"
        )
    return open_envelope(sent[0])


def unreadable(sent: tuple[Any, ...], refusal: RefusalError) -> OrderVerdict:
    """The verdict about something that is no envelope at all."""
    digest = hashlib.sha256(repr(sent).encode("utf-8", "replace")).hexdigest()
    return OrderVerdict(accepted=False, rule=refusal.rule, said=refusal.said, digest=digest)


class Ordered:
    """Base of the workflows that people order about."""

    def __init__(self, run: Run, requester: str, memory: OrderMemory | None) -> None:
        self._run = run
        self._requester = requester
        self._facts: PlanFacts | None = None
        self._open: Open | None = None
        self._inbox: deque[OrderVerdict] = deque()
        self._preempted: Preempted | None = None
        self._ordering = asyncio.Lock()
        self._phase: Phase = "preflight"
        self._phase_since = workflow.now()
        self._said = "admitted"
        self._asked_again = False
        """What was shown at a gate was not so any more when it was signed."""
        self._looked_at: str | None = None
        """When the nodes were last looked at for what is shown."""
        memory = memory or OrderMemory(
            started=written(workflow.info().start_time), warrant=run.warrant
        )
        self._memory = memory
        self._received_before = memory.received
        self._seconds = dict(memory.seconds)

    # -- what arrives ------------------------------------------------------------------------------------------

    @workflow.update(name="submit_order", description="A signed order; answers with the verdict.")
    async def submit_order(self, envelope: Envelope) -> Submitted:
        """Verify and apply a signed order; the answer says which rule decided."""
        return Submitted(verdict=await self._receive(envelope))

    @submit_order.validator
    def _bounded(self, envelope: Envelope) -> None:  # noqa: ARG002 - the handler's signature
        if self._full(RESERVE):
            raise ApplicationError(
                "too many orders at once: this run looks at more in a moment, send it again",
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
            await self._count()
            await self._keep(unreadable(sent, refusal))
        else:
            await self._receive(envelope)

    @workflow.signal(
        name="preempted", description="From the Fleet: an on-call rollback took the lease."
    )
    async def preempted(self, *sent: Any) -> None:
        """Believed only if it carries a rollback order for this fleet and plan that is younger than this run.

        An older one was for a run before. That the notice is not believed costs nothing but time: it is the fence on
        the hosts that stops this run.
        """
        if self._full(RESERVE):
            return
        await self._count()
        try:
            notice = Preempted.model_validate(sent[0] if sent else None)
            issued = moment(read(notice.envelope).issued)
        except (ValidationError, RefusalError):
            return
        if notice.epoch <= self._run.epoch or issued < moment(self._memory.started):
            return
        async with self._ordering:
            expected = Expected(
                verbs=("rollback",),
                target=f"fleet/{self._run.fleet}",
                plan=self._run.plan,
                now=instant(),
            )
            verdict = await self._judge(notice.envelope, expected)
            if verdict.accepted:
                self._preempted = notice
                await self._woken()

    def _looked(self) -> int:
        return self._memory.received - self._received_before

    def _full(self, reserve: int = 0) -> bool:
        """This history has had its share of orders: the run goes on in a new one as soon as it can."""
        return self._looked() >= MOST_ORDERS + reserve

    async def _count(self) -> None:
        self._memory = self._memory.model_copy(update={"received": self._memory.received + 1})
        if self._looked() == MOST_ORDERS:
            # A child that is waited for may take hours: it holds, is begun anew afterwards, and nothing is lost.
            await self._woken()

    async def _keep(self, verdict: OrderVerdict) -> None:
        """A verdict that no activity reached becomes evidence and is remembered."""
        if not unproven(verdict) or self._memory.refused < KEPT_REFUSALS:
            await decide(
                OrderActivities.keep_verdict,
                Refused(fleet=self._run.fleet, verdict=verdict),
                f"refused: {verdict.rule}",
            )
        self._remember(verdict)

    def _remember(self, verdict: OrderVerdict) -> None:
        kept = (*self._memory.verdicts, verdict)[-KEPT_VERDICTS:]
        refused = self._memory.refused + (not verdict.accepted)
        pin = max(self._memory.pin, verdict.pin)
        self._memory = self._memory.model_copy(
            update={"verdicts": kept, "refused": refused, "pin": pin}
        )

    def _spend(self, verdict: OrderVerdict) -> None:
        spent = (*self._memory.spent, verdict.nonce)
        self._memory = self._memory.model_copy(update={"spent": spent})

    async def _receive(self, envelope: Envelope) -> OrderVerdict:
        await self._count()
        async with self._ordering:
            await workflow.wait_condition(lambda: self._facts is not None)
            opened = self._open
            verdict = await self._judge(envelope, self._expected())
            if verdict.accepted:
                # The record has it as accepted, once for good: whatever becomes of it now, it does not come again.
                self._spend(verdict)
            if (
                verdict.accepted
                and verdict.verb in ("approve", "reject", "decide")
                and self._open != opened
            ):
                said = f"{verdict.subject} closed while the order was looked at"
                verdict = refuse(verdict, "not-open", said)
                await self._keep(verdict)
                return verdict
            if verdict.accepted and verdict.break_glass:
                verdict = await self._owe(envelope, verdict)
            self._remember(verdict)
            if verdict.accepted:
                await self._accept(envelope, verdict)
            return verdict

    async def _owe(self, envelope: Envelope, verdict: OrderVerdict) -> OrderVerdict:
        """The fleet is told that a review is owed before an order that breaks the glass is followed, or it is not."""
        opened = self._open
        notice = GlassNotice(run=self._run.id, envelope=envelope)
        fleet = workflow.get_external_workflow_handle(f"fleet/{self._run.fleet}")
        try:
            await fleet.signal("glass_broken", notice)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            said = f"the fleet could not be told that a review is owed: {why(error)}"
            verdict = refuse(verdict, "break-glass", said)
        else:
            self._memory = self._memory.model_copy(
                update={"glass": (*self._memory.glass, envelope)[:MOST_GLASS]}
            )
        if verdict.accepted and verdict.verb == "decide" and self._open != opened:
            said = f"{verdict.subject} closed while the fleet was told"
            verdict = refuse(verdict, "not-open", said)
        if not verdict.accepted:
            await decide(
                OrderActivities.keep_verdict,
                Refused(fleet=self._run.fleet, verdict=verdict),
                f"refused: {verdict.rule}",
            )
        return verdict

    async def _accept(self, envelope: Envelope, verdict: OrderVerdict) -> None:
        if verdict.verb == "approve":
            self._memory = self._memory.model_copy(
                update={
                    "signed": (*self._memory.signed, verdict),
                    "envelopes": (*self._memory.envelopes, envelope),
                }
            )
            if self._met():
                # Nobody is waited for any more, however long the run takes to look at the nodes before it passes.
                self._say("gate", f"gate {verdict.subject} has its signatures")
                self._advertise("")
        else:
            if verdict.verb == "decide":
                self._memory = self._memory.model_copy(update={"decided": envelope})
            self._inbox.append(verdict)
            await self._woken()

    def _crowded(self) -> bool:
        """So many orders were looked at in this history that it is better to wait on in a new one."""
        if self._full():
            return True
        return self._looked() >= CROWD and workflow.info().is_continue_as_new_suggested()

    def _long(self) -> bool:
        """It is time for a new history."""
        return self._full() or workflow.info().is_continue_as_new_suggested()

    def _disturbed(self) -> bool:
        """Something came that is for the run's main line, or its history became long while it waits."""
        return bool(self._inbox) or self._preempted is not None or self._crowded()

    async def _read_plan(self) -> PlanFacts | None:
        """The facts of the plan: asked for until they can be read, while people are told why not. None: pre-empted."""
        while self._preempted is None:
            try:
                return await plan_facts(self._run.plan)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                self._say(self._phase, f"the plan cannot be read: {why(error)}; it is tried again")
            try:
                await workflow.wait_condition(
                    lambda: self._preempted is not None,
                    timeout=timedelta(seconds=5),
                    timeout_summary="before the plan is asked for again",
                )
            except TimeoutError:
                continue
        return None

    async def _woken(self) -> None:
        """Called when an order other than an approval was accepted; may tell children to hold."""

    async def _judge(self, envelope: Envelope, expected: Expected) -> OrderVerdict:
        gate = self._open.gate if self._open is not None else None
        return await decide(
            OrderActivities.judge_order,
            JudgeRequest(
                envelope=envelope,
                expected=expected,
                fleet=self._run.fleet,
                run=self._run,
                gate=gate,
                signed=self._memory.signed,
                pin=self._memory.pin,
                quiet=self._memory.refused >= KEPT_REFUSALS,
            ),
            "verify an order",
        )

    def _verbs(self) -> tuple[Verb, ...]:
        """The words this run takes now."""
        return ("approve", "reject", "pause", "resume", "abort", "decide")

    def _expected(self) -> Expected:
        subjects: dict[str, Digest] = {}
        choices: dict[str, tuple[Choice, ...]] = {}
        if self._open is not None and not self._met():
            subjects[self._open.subject] = self._open.shown
            if self._open.gate is None:
                choices[self._open.subject] = self._open.choices
        return Expected(
            verbs=self._verbs(),
            target=self._run.id,
            plan=self._run.plan,
            subjects=subjects,
            choices=choices,
            requester=self._requester,
            spent=self._memory.spent,
            now=instant(),
        )

    # -- evidence ----------------------------------------------------------------------------------------------

    async def _write(self, key: str, record: dict[str, Json]) -> None:
        """Append to the fleet's evidence, once per key, and remember where it ends."""
        note = Note(run=self._run, key=key, record={**record, "at": instant()})
        head = await decide(OrderActivities.record, note, "write it down")
        self._memory = self._memory.model_copy(update={"head": head})

    async def _asked(self, showing: Showing, shown: Digest) -> None:
        """What people are about to be shown is evidence before they see it."""
        record: dict[str, Json] = {"what": "asked", "subject": showing.subject, "shown": shown}
        whole = showing.model_dump(mode="json")
        if len(str(whole)) <= MOST_SHOWN:
            record["showing"] = whole
        await self._write(f"asked-{showing.subject}-{shown[:16]}", record)

    # -- gates -------------------------------------------------------------------------------------------------

    def _tally(self) -> Tally | None:
        if self._open is None or self._open.gate is None:
            return None
        return tally(self._open.gate, self._memory.signed)

    async def _still(self, showing: Showing) -> bool:  # noqa: ARG002 - for who shows what may change
        """Whether what was shown is so now; asked before a gate passes."""
        return True

    async def _ask(self, gate: Gate, showing: Showing, again: float | None = None) -> str:
        """Opens ``gate`` and waits for signatures: ``passed``, ``expired``, or ``ordered`` when something else came, when
        what was shown is not so any more, or after ``again`` seconds.

        Signatures given so far stay when the wait is interrupted, as long as what is shown stays the same.
        """
        shown = digest_of(showing)
        if self._memory.gate != f"{gate.name}:{shown}":
            # A signature over what was shown before counts for nothing that is shown now.
            self._open = None
            before = self._memory.gate.startswith(f"{gate.name}:")
            self._asked_again = self._asked_again or (before and bool(self._memory.signed))
            self._memory = self._memory.model_copy(
                update={
                    "gate": f"{gate.name}:{shown}",
                    "signed": (),
                    "envelopes": (),
                    "since": instant(),
                }
            )
            await self._asked(showing, shown)
        self._open = Open(subject=gate.name, showing=showing, shown=shown, gate=gate)
        if not self._met():
            why = "; asked again: what was signed is not so any more" if self._asked_again else ""
            self._say("gate", f"waits for gate {gate.name}{why}")
            self._advertise(f"gate {gate.name}")
        since = workflow.now() - self._age()
        left = max(0.0, (since + timedelta(seconds=gate.expires) - workflow.now()).total_seconds())
        try:
            await workflow.wait_condition(
                lambda: self._met() or self._disturbed(),
                timeout=timedelta(seconds=left if again is None else min(left, again)),
                timeout_summary=f"gate {gate.name} expires",
            )
        except TimeoutError:
            if again is not None and again < left:
                return "ordered"
            self._close()
            self._forget_signatures()
            return "expired"
        if not self._met() or self._inbox or self._preempted is not None:
            return "ordered"
        if not await self._still(showing):
            self._asked_again = True
            self._close()
            self._forget_signatures()
            return "ordered"
        if self._inbox or self._preempted is not None:
            return "ordered"
        self._asked_again = False
        await self._passed(gate)
        return "passed"

    def _forget_signatures(self) -> None:
        """What was signed was for a gate that is over: who opens it again asks everybody again."""
        self._memory = self._memory.model_copy(update={"gate": "", "signed": (), "envelopes": ()})

    def _age(self) -> timedelta:
        """How long the open gate has been waiting."""
        since = datetime.strptime(self._memory.since, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return max(timedelta(0), workflow.now() - since)

    def _met(self) -> bool:
        counted = self._tally()
        return counted is not None and counted.met

    async def _passed(self, gate: Gate) -> None:
        """The warrant takes up the signatures: from now on activities may act behind this gate."""
        envelopes = self._memory.envelopes
        self._close()
        warrant = await decide(
            OrderActivities.write_warrant,
            WarrantUpdate(base=self._run.warrant, gate=gate.name, approvals=envelopes),
            f"gate {gate.name} passed",
        )
        self._run = self._run.model_copy(update={"warrant": warrant})
        self._memory = self._memory.model_copy(update={"warrant": warrant})
        self._forget_signatures()

    def _close(self) -> None:
        self._open = None
        self._advertise("")

    # -- what people see ---------------------------------------------------------------------------------------

    def _say(self, phase: Phase, said: str) -> None:
        """Enter a phase (or stay in it) and say in a sentence what goes on."""
        now = workflow.now()
        if phase != self._phase:
            spent = (now - self._phase_since).total_seconds()
            self._seconds[self._phase] = round(self._seconds.get(self._phase, 0.0) + spent, 3)
            self._phase, self._phase_since = phase, now
            workflow.upsert_search_attributes([PHASE.value_set(phase)])
        self._said = said
        workflow.set_current_details(
            f"**{phase}**: {markdown(said)}\n\nplan `{self._run.plan}`, epoch {self._run.epoch}"
        )

    def _advertise(self, waiting: str) -> None:
        workflow.upsert_search_attributes(
            [WAITING.value_set(waiting) if waiting else WAITING.value_unset()]
        )

    def _spent_seconds(self) -> dict[str, float]:
        spent = (workflow.now() - self._phase_since).total_seconds()
        return self._seconds | {self._phase: round(self._seconds.get(self._phase, 0.0) + spent, 3)}

    def _waiting(self) -> Waiting | None:
        if self._open is None or self._met():
            return None
        until = None
        if self._open.gate is not None and self._memory.since:
            left = timedelta(seconds=self._open.gate.expires) - self._age()
            until = written(workflow.now() + left)
        return Waiting(
            kind="gate" if self._open.gate is not None else "parked",
            subject=self._open.subject,
            since=self._memory.since or instant(),
            until=until,
            showing=self._open.showing,
            shown=self._open.shown,
            tally=self._tally(),
            looked=self._looked_at,
        )

    def _remembered(self) -> OrderMemory:
        return self._memory.model_copy(update={"seconds": self._spent_seconds()})
