"""The lease of a fleet by its record: who has it, and the run that an accepted order begins."""

from __future__ import annotations

import time
from collections.abc import Sequence

from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.ground import Ground, now
from kedge.model.base import Digest, Json, canonical
from kedge.model.errors import DriverError
from kedge.model.order import Envelope, OrderVerdict
from kedge.model.run import FleetFacts, Run, Warrant
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from kedge.trust.leases import FENCE, LEASE, Leased, Leases, Order, grant, leases_of

MAX_LEASES = 100_000
KEPT_RUNS = 100
GOING_ON = (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW)


class FleetLeases:
    """Reads leases and grants them. Nothing that a workflow says of a lease is believed."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def of(self, fleet: str) -> Leases:
        """Every lease of the fleet. Raises ``DriverError`` where that cannot be said."""
        return leases_of(await self._entries(fleet))

    async def _entries(self, fleet: str) -> tuple[EvidenceEntry, ...]:
        evidence = self._ground.evidence
        granted = await evidence.under(fleet, LEASE, MAX_LEASES)
        if len(granted) == MAX_LEASES:
            said = "more leases were granted than can be looked at"
            raise DriverError("StoreError", said, retryable=False)
        return (*granted, *(await evidence.under(fleet, FENCE, MAX_LEASES)))

    async def facts(self, fleet: str) -> FleetFacts:
        """The fleet as its record has it, and whether the run that got the last lease still has it."""
        return await self._facts(fleet, await self.of(fleet))

    async def facts_around(self, fleet: str, order: Digest) -> tuple[FleetFacts, FleetFacts]:
        """The fleet as it is, and as it was before an order got its lease; the same where it has none.

        An activity that is tried again after its lease was written down must still find whose fleet it took.
        """
        leases = await self.of(fleet)
        earlier = leases.earlier_than(order)
        found = await self._facts(fleet, leases)
        return found, found if earlier == leases else await self._facts(fleet, earlier)

    async def _facts(self, fleet: str, leases: Leases) -> FleetFacts:
        holder = leases.last.run if leases.last is not None else None
        if holder is not None and not await self._is_there(holder):
            holder = None
        return facts_of(fleet, leases, holder)

    async def _is_there(self, run: str) -> bool:
        """Whether a run's workflow is there and goes on, as Temporal says."""
        status = await self._status(run)
        return status is not None and status in GOING_ON

    async def _status(self, run: str) -> WorkflowExecutionStatus | None:
        try:
            return (await self._ground.client.get_workflow_handle(run).describe()).status
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise

    async def grant(
        self, fleet: str, verdict: OrderVerdict, envelope: Envelope, policy: Digest
    ) -> tuple[Run, Leases] | None:
        """The run that an accepted order begins; None when another order got a lease since this one was judged.

        Asked for again, an order has the lease that it got. Raises ``DriverError``.
        """
        verb = verdict.verb
        if verb not in ("start", "rollback"):
            raise ValueError(f"an order to {verb} begins no run")
        order = Order(digest=verdict.digest, verb=verb, plan=verdict.plan)
        evidence = self._ground.evidence
        end = await evidence.head(fleet)
        known = await self._entries(fleet)
        before = leases_of(known)
        taken = 0 if before.of(order.digest) is not None else await self._taken(fleet, before)
        given: list[Leased] = []

        def decide(entries: Sequence[EvidenceEntry], _: EvidenceHead) -> Sequence[tuple[str, Json]]:
            seen = {entry.seq for entry in known}
            leases = leases_of((*known, *(one for one in entries if one.seq not in seen)))
            if leases.last != before.last and leases.of(order.digest) is None:
                return ()
            leased, record = grant(
                leases, order, fleet, policy=policy, seconds=int(time.time()), taken=taken
            )
            given[:] = [leased]
            if leases.of(order.digest) is not None:
                return ()
            return ((f"{LEASE}{order.digest}", {"at": now(), **record}),)

        try:
            await evidence.append_decided(fleet, end.seq, decide)
        except ValueError as error:
            raise DriverError("StoreError", str(error), retryable=False) from error
        if not given:
            return None
        leased = given[0]
        run = Run(
            id=leased.run,
            fleet=fleet,
            plan=leased.plan,
            epoch=leased.epoch,
            warrant=await self._ground.blobs.put(canonical(Warrant(start=envelope))),
            snapshots=leased.snapshots,
        )
        return run, await self.of(fleet)

    async def _taken(self, fleet: str, leases: Leases) -> int:
        """The highest number whose names are free of workflows that somebody else began, less one."""
        number = leases.count + 1
        while any([await self._status(f"{kind}/{fleet}/{number}") is not None for kind in KINDS]):
            number += 1
        return number - 1

    async def lend(self, run: Run, verdict: OrderVerdict, policy: Digest) -> bool:
        """Write down that an upgrade's decision to go back is spent under that upgrade's own lease.

        False: the run has no lease, or not this epoch.
        """
        leases = await self.of(run.fleet)
        own = next((one for one in leases.granted if one.run == run.id), None)
        if own is None or own.epoch != run.epoch:
            return False
        number = run.id.rpartition("/")[2]
        record: dict[str, Json] = {
            "what": "lease",
            "order": verdict.digest,
            "run": f"rollback/{run.fleet}/{number}-auto",
            "epoch": own.epoch,
            "policies": [policy],
        }
        await self._ground.note(run.fleet, f"{LEASE}{verdict.digest}", record)
        return True


KINDS = ("upgrade", "rollback")


def facts_of(fleet: str, leases: Leases, holder: str | None) -> FleetFacts:
    """A fleet in short."""
    last = leases.last
    return FleetFacts(
        fleet=fleet,
        epoch=leases.epoch,
        holder=holder,
        last=None if last is None else last.run,
        plan=None if last is None else last.plan,
        runs=tuple(one.run for one in leases.granted)[-KEPT_RUNS:],
    )
