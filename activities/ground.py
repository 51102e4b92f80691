"""What activities stand on: the ports, handed in by the composition root, and plans read once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from pydantic import ValidationError
from temporalio.client import Client

from activities.looks import Looks
from activities.recorded import Recorded
from activities.trusted import ReleaseTrust
from kedge.drivers.ports import (
    Artifacts,
    Blobs,
    Evidence,
    Fleets,
    PolicyPins,
    Releases,
    Transport,
)
from kedge.model.base import Digest, Json, canonical, digest_of
from kedge.model.errors import DriverError, OrderError
from kedge.model.order import Envelope, OrderVerdict
from kedge.model.plan import Artifact, Plan, PlannedNode, ProgramName
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.run import Run, Warrant
from kedge.model.signed_policy import KeptPolicy
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from kedge.trust.envelope import order_digest, order_key, read
from kedge.trust.orders import signer_of
from kedge.trust.policies import text_digest, verify_kept
from kedge.trust.run_history import SAID
from kedge.trust.warrant import verify_warrant
from kedge.trust.wholeness import acts_as

Act: TypeAlias = tuple[str, str, str, int, str, str, int | None, int | None]

POLICY_SECONDS = 1.0
"""How long a policy that was read is gone by: who is taken out of it acts no longer than this."""
KEPT_POLICIES = 16
KEPT_PLANS = 4
KEPT_WARRANTS = 256


def now() -> str:
    """This moment as records have it: RFC 3339, UTC, whole seconds."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def goes_back(run: str) -> bool:
    """Whether a run is a way back, by its id."""
    return run.startswith("rollback/")


@dataclass(frozen=True, slots=True)
class Pinned:
    """A policy with its digest, the number under which it was pinned here, and the digest of its text as it was pinned."""

    policy: Policy
    digest: Digest
    seq: int
    text: Digest = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """An act that the signatures have to carry."""

    run: Run
    program: ProgramName
    wave: int | None
    nodes: tuple[int, ...]


def _verb_of(envelope: Envelope) -> str:
    try:
        return read(envelope).verb
    except OrderError:
        return ""


def _plan_of(digest: Digest, content: bytes) -> Plan:
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        said = f"what is stored under {digest[:12]} is no plan: {first['msg']}"[:500]
        raise DriverError(
            "NotAuthorised",
            said,
            retryable=False,
            next_step="`kedge plan` makes a plan from the documents; start with that one",
        ) from error


def _timeless(record: Mapping[str, Json]) -> bytes:
    return canonical({name: value for name, value in record.items() if name != "at"})


@dataclass(frozen=True, slots=True)
class _Lease:
    """What an order was spent for: a run, its epoch, and the policy that was pinned then."""

    run: str
    epoch: int
    policy: Digest


def _lease_of(entry: EvidenceEntry | None) -> _Lease | None:
    """A lease as it stands in the record; None for what is none."""
    record = entry.record if entry is not None else None
    if not isinstance(record, dict):
        return None
    run, epoch, policies = record.get("run"), record.get("epoch"), record.get("policies")
    first = policies[0] if isinstance(policies, list) and policies else ""
    if not isinstance(run, str) or not isinstance(epoch, int) or not isinstance(first, str):
        return None
    return _Lease(run, epoch, first)


@dataclass
class Ground:
    """The ports of one worker. Everything in it may be used by many activities at once."""

    transport: Transport
    blobs: Blobs
    artifacts: Artifacts
    evidence: Evidence
    pins: PolicyPins
    fleets: Fleets
    releases: Releases
    client: Client
    trust: ReleaseTrust = field(init=False)
    looks: Looks = field(init=False)
    recorded: Recorded = field(init=False)
    _plans: OrderedDict[str, Plan] = field(default_factory=OrderedDict)
    _allowed: OrderedDict[Act, None] = field(default_factory=OrderedDict)
    _waves: dict[str, dict[int, int]] = field(default_factory=dict)
    """Of the plan asked for last: the wave of each node."""
    _leases: OrderedDict[tuple[str, Digest], _Lease] = field(default_factory=OrderedDict)
    """What each order was spent for."""
    _policies: dict[str, tuple[float, Pinned]] = field(default_factory=dict)
    _earlier: OrderedDict[Digest, Pinned] = field(default_factory=OrderedDict)
    """Policies that runs under way began under."""
    _noted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Keys of records that this worker has written and need not write again."""
    _stored: set[Digest] = field(default_factory=set)
    """Policies that are in the store, where who verifies the record later finds them."""
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        """What is known of releases goes with the ports."""
        self.trust = ReleaseTrust(self.releases, self.blobs, self.evidence)
        self.looks = Looks(self)
        self.recorded = Recorded(self.evidence, self._policy_read)

    def _policy_read(self, fleet: str) -> Policy | None:
        """The policy that was read last for a fleet."""
        known = self._policies.get(fleet)
        return known[1].policy if known is not None else None

    async def warrant(self, run: Run) -> Warrant:
        """The signed orders that a run says it acts on; nothing of them is believed by that."""
        return Warrant.model_validate_json(await self.blobs.get(run.warrant))

    async def stands(self, run: Run, *, within: float = 2.0) -> None:
        """Raise ``DriverError`` unless the release a run goes to may still be moved to (``activities.trusted``).

        By the policy that is pinned now, and by the one that the run began under: taking its rules for releases out of a
        policy frees no run under way of them.
        """
        plan, now = await self.plan(run.plan), await self.pinned(run.fleet)
        rules = [now.policy.releases]
        if plan.policy.digest != now.digest:
            began = (await self.began_under(run)).policy.releases
            rules += [began] if began not in rules else []
        for one in rules:
            if one is not None:
                await self.trust.stands(run, plan, one, within=within)

    async def went_back(self, run: Run) -> None:
        """Write down how the release stands that a way back leads to. Nothing is closed by it, whatever is wrong."""
        with suppress(DriverError):
            policy = (await self.pinned(run.fleet)).policy
            await self.trust.went_back(run, await self.plan(run.plan), policy)

    async def baseline(self, fleet: str, release: Release, platforms: frozenset[str]) -> str | None:
        """None when a fleet's first release may be installed, else why not. Raises ``DriverError`` without a policy."""
        policy = (await self.pinned(fleet)).policy
        return await self.trust.baseline(release, policy, platforms)

    async def baseline_stands(self, fleet: str, release: Release) -> str | None:
        """None when a first release that was found good may be installed still, else why not. Raises as :meth:`baseline`."""
        return await self.trust.baseline_stands(release, (await self.pinned(fleet)).policy)

    async def plan(self, digest: str) -> Plan:
        """The plan of that digest, verified when it is read and kept for a while (the last few).

        Raises ``DriverError`` NotAuthorised for what is no plan, or contradicts itself: nobody signed what it would do.
        """
        async with self._reading:
            kept = self._plans.get(digest)
            if kept is None:
                kept = _plan_of(digest, await self.blobs.get(digest))
                self._plans[digest] = kept
                while len(self._plans) > KEPT_PLANS:
                    self._plans.popitem(last=False)
            else:
                self._plans.move_to_end(digest)
            return kept

    async def with_sources(
        self, node: PlannedNode, ops: Iterable[dict[str, Json]], artifacts: Iterable[Artifact]
    ) -> tuple[dict[str, Json], ...]:
        """The operations, those that stage with the archive verified here, brought to the host, and its path there.

        The host verifies it again. Raises ``DriverError`` where that cannot be.
        """
        known = {artifact.digest: artifact for artifact in artifacts}
        made: list[dict[str, Json]] = []
        for op in ops:
            if op["op"] == "stage":
                artifact = known[str(op["digest"])]
                path = await self.artifacts.fetch(self.trust.source(artifact))
                source = await self.transport.put(node, path, artifact.digest, artifact.length)
                made.append({**op, "source": source})
            else:
                made.append(op)
        return tuple(made)

    async def authorise(
        self,
        run: Run,
        *,
        program: ProgramName = "forward",
        wave: int | None = None,
        node: int | None = None,
    ) -> None:
        """Raise ``DriverError`` NotAuthorised unless the warrant's signatures carry this act.

        Whatever a workflow claims: what counts are the signatures, checked against the policy that is pinned on this
        worker (``kedge.trust.warrant``). A refusal is not remembered, an allowance is, for as long as that policy stands.
        """
        plan = await self.plan(run.plan)
        if program == "forward" and node is not None:
            wave = self._own_wave(run.plan, plan, node, wave)
        now = await self.pinned(run.fleet)
        asked = (
            now.digest,
            run.warrant,
            run.id,
            run.epoch,
            run.plan,
            program,
            wave,
            None if program == "forward" else node,
        )
        if asked in self._allowed:
            self._allowed.move_to_end(asked)
            return
        # A wave is allowed as a whole, also when it is only looked at: its legs find that allowance.
        nodes: tuple[int, ...] = () if node is None else (node,)
        if program == "forward" and wave is not None and 0 <= wave < len(plan.waves):
            nodes = plan.waves[wave].nodes
        warrant = Warrant.model_validate_json(await self.blobs.get(run.warrant))
        act = Asked(run=run, program=program, wave=wave, nodes=nodes)
        said = await self._carried(act, plan, warrant, now.policy)
        digests = [now.digest]
        began = await self._began_under(run, plan, warrant, now)
        if began.digest != now.digest:
            # What was changed since takes power away at once, and gives none to a run under way.
            await self._carried(
                act, plan, warrant, began.policy, began="as it was when this run began: "
            )
            digests.append(began.digest)
        await self._note_allowed(act, node, said, digests)
        self._allowed[asked] = None
        while len(self._allowed) > KEPT_WARRANTS:
            self._allowed.popitem(last=False)

    async def _carried(
        self, act: Asked, plan: Plan, warrant: Warrant, policy: Policy, began: str = ""
    ) -> str:
        """What the signatures say that carry an act under one policy. Raises ``DriverError`` NotAuthorised."""
        verdict = verify_warrant(
            warrant,
            plan,
            act.run.plan,
            policy,
            fleet=act.run.fleet,
            wave=act.wave,
            run_id=act.run.id,
            program=act.program,
            nodes=act.nodes,
            authors=await self._authors(plan, policy, act.run, act.program),
        )
        if not verdict.ok:
            detail: dict[str, Json] = (
                {"gates": list[Json](verdict.lacking)} if verdict.lacking else {}
            )
            said = f"by the policy {policy.name} {began}{verdict.said}" if began else verdict.said
            raise DriverError("NotAuthorised", said, retryable=False, detail=detail)
        return verdict.said

    async def began_under(self, run: Run) -> Pinned:
        """The policy that a run is pinned to: the one its plan was made with; of a way back that a person ordered, the
        one that was pinned when it first acted. Raises ``DriverError``.
        """
        plan = await self.plan(run.plan)
        warrant = Warrant.model_validate_json(await self.blobs.get(run.warrant))
        return await self._began_under(run, plan, warrant, await self.pinned(run.fleet))

    async def _began_under(self, run: Run, plan: Plan, warrant: Warrant, now: Pinned) -> Pinned:
        ordered = await self._leased(run, warrant)
        digest = ordered if _verb_of(warrant.start) == "rollback" else plan.policy.digest
        if digest == now.digest:
            return now
        known = self._earlier.get(digest)
        if known is None:
            try:
                content = await self.blobs.get(digest)
                known = Pinned(Policy.model_validate_json(content), digest, 0)
            except (DriverError, ValidationError) as error:
                said = (
                    f"the policy that {run.id} began under ({digest[:12]}) cannot be read: {error}"
                )
                raise DriverError("NotAuthorised", said, retryable=False) from error
            self._earlier[digest] = known
            while len(self._earlier) > KEPT_POLICIES:
                self._earlier.popitem(last=False)
        return known

    async def _authors(
        self, plan: Plan, policy: Policy, run: Run, program: ProgramName
    ) -> tuple[str, ...]:
        """Who made the release. A repository that does not answer, or does not list it any more, closes no way back:
        there, what was judged when the orders were accepted stands.
        """
        try:
            return await self.trust.authors(plan, policy)
        except DriverError:
            if program in {"back", "restore"} or goes_back(run.id):
                return ()
            raise

    async def _note_allowed(
        self, act: Asked, node: int | None, said: str, policies: list[Digest]
    ) -> None:
        """Once for each wave or program, not for each node: what the act stands on, so that others can judge it again."""
        run, program, wave = act.run, act.program, act.wave
        key = f"{run.id}@{run.epoch}/allowed/{program}/{wave}/{run.warrant[:16]}/{policies[0][:16]}"
        if key in self._noted:
            return
        record: dict[str, Json] = {
            "what": "allowed",
            "run": run.id,
            "epoch": run.epoch,
            "plan": run.plan,
            "program": program,
            "wave": wave,
            "nodes": [] if program == "forward" or node is None else [node],
            "warrant": run.warrant,
            "policies": list[Json](policies),
            "said": said,
        }
        await self.note(run.fleet, key, record)
        self._noted[key] = None
        while len(self._noted) > KEPT_WARRANTS:
            self._noted.popitem(last=False)

    def _own_wave(self, digest: str, plan: Plan, node: int, claimed: int | None) -> int:
        """The wave a node is in, which may be one before the wave that takes it up again.

        Raises ``DriverError`` NotAuthorised for a node of a wave behind that, or of none.
        """
        if digest not in self._waves:
            self._waves.clear()
            self._waves[digest] = {
                node: at for at, wave in enumerate(plan.waves) for node in wave.nodes
            }
        own = self._waves[digest].get(node)
        if own is None or claimed is None or own > claimed:
            said = f"node {node} is not in wave {claimed} of the plan, nor in one before"
            raise DriverError("NotAuthorised", said, retryable=False)
        return own

    async def _leased(self, run: Run, warrant: Warrant) -> Digest:
        """The policy that was pinned when the order of a run was spent. It is spent under one lease, by the record.

        Signatures say nothing of the epoch: without this, whoever reaches the engine could begin a workflow of his own
        with an old order and a fence above all others. Raises ``DriverError`` NotAuthorised for a run without that lease.
        """
        order = order_digest(warrant.start)
        known = self._leases.get((run.fleet, order))
        if known is None:
            known = _lease_of(await self.evidence.find(run.fleet, f"lease/{order}"))
            accepted = await self.evidence.find(run.fleet, order_key(order, "accepted", ""))
            record = accepted.record if accepted is not None else None
            signer = record.get("key") if isinstance(record, dict) else None
            if known is None or signer != signer_of(warrant.start):
                said = f"no lease was granted for the order of {run.id}, as it is signed here"
                raise DriverError("NotAuthorised", said, retryable=False)
            self._leases[run.fleet, order] = known
            while len(self._leases) > KEPT_WARRANTS:
                self._leases.popitem(last=False)
        if known.run not in acts_as(run.id):
            said = f"the order of {run.id} was spent by {known.run}"
            raise DriverError("NotAuthorised", said, retryable=False)
        if known.epoch != run.epoch:
            said = f"the order of this run was spent in epoch {known.epoch}; it does not act in epoch {run.epoch}"
            raise DriverError("NotAuthorised", said, retryable=False)
        return known.policy

    async def pinned(self, fleet: str, *, fresh: bool = False) -> Pinned:
        """The policy that is pinned now; read again when it was read longer than a moment ago, or ``fresh``.

        One that follows another by signatures is judged here too, and never is one gone by that was pinned before
        another that this worker has seen. Raises ``DriverError`` as :meth:`kedge.drivers.ports.PolicyPins.policy`.
        """
        known = self._policies.get(fleet)
        if not fresh and known is not None and time.monotonic() - known[0] <= POLICY_SECONDS:
            return known[1]
        kept = await self.pins.pinned(fleet)
        before = known[1] if known is not None else None
        if before is not None and kept.seq < before.seq:
            said = f"the policy pinned for {fleet} was put back: number {before.seq} was pinned here, now it is {kept.seq}"
            raise DriverError(
                "StoreError",
                said,
                retryable=False,
                next_step="`kedge policy show FLEET` shows every version",
            )
        if before is None or text_digest(kept.document.policy) != before.text:
            before = await self._taken_up(fleet, kept)
        self._policies[fleet] = (time.monotonic(), before)
        return before

    async def _taken_up(self, fleet: str, kept: KeptPolicy) -> Pinned:
        """A version that is new to this worker: looked at, kept in the store, and written down."""
        chain = verify_kept(await self.pins.kept(fleet))
        if not chain.ok:
            raise DriverError(
                "StoreError",
                f"the policies pinned for {fleet} do not follow each other: {chain.said}",
                retryable=False,
                next_step="`kedge policy show FLEET` shows every version and who signed it",
            )
        policy = await self.pins.policy(fleet)
        digest = await self.keep_policy(policy)
        text = text_digest(kept.document.policy)
        record: dict[str, Json] = {
            "what": "policy",
            "number": kept.seq,
            "version": policy.version,
            "by": kept.by,
            "policies": [digest],
            "text": text,
            "previous": policy.previous,
            "signatures": list[Json](kept.document.signatures),
        }
        await self.note(fleet, f"policy/{kept.seq}/{text}", record)
        return Pinned(policy, digest, kept.seq, text)

    async def keep_policy(self, policy: Policy) -> Digest:
        """The digest of a policy that something is judged by; it is in the store from then on."""
        digest = digest_of(policy)
        if digest not in self._stored:
            await self.blobs.put(canonical(policy))
            self._stored.add(digest)
        return digest

    async def note(
        self, fleet: str, key: str, record: Mapping[str, Json], *, strict: bool = False
    ) -> EvidenceHead:
        """Append to the fleet's evidence, once per key, with the time where the record has none.

        ``strict``: a key that holds another record is an error (``KeyTaken``), as it is for all that authorizes.
        """
        return await self.evidence.append(fleet, key, {"at": now(), **record}, strict=strict)

    async def note_apart(self, fleet: str, key: str, record: Mapping[str, Json]) -> EvidenceHead:
        """As :meth:`note`; where the key holds something else, the record stands beside it, under a key of its own.

        A workflow that somebody reset in the engine comes to the same place again and may decide otherwise there: what
        was decided first stays, and nothing that was decided is lost. When it was decided makes no difference.
        """
        head, first = await self._first(fleet, key, record)
        said = _timeless(record)
        if isinstance(first, dict) and _timeless(first) == said:
            return head
        return await self.note(fleet, f"{key}/{hashlib.sha256(said).hexdigest()[:16]}", record)

    async def _first(
        self, fleet: str, key: str, record: Mapping[str, Json]
    ) -> tuple[EvidenceHead, Json]:
        """As :meth:`note`, with what stands under the key: it is of whoever was first, and may not be this record."""
        head = await self.note(fleet, key, record)
        (entry,) = await self.evidence.read(fleet, head.seq - 1, 1)
        return head, entry.record

    async def note_said(self, fleet: str, verdict: OrderVerdict) -> None:
        """A refusal that a workflow says of itself: it stands apart from what was judged, and takes nobody's key."""
        key = SAID + order_key(verdict.digest, verdict.rule, verdict.key)
        await self.note(fleet, key, {"what": "order", **verdict.model_dump(mode="json")})

    async def note_verdict(
        self, fleet: str, verdict: OrderVerdict, case: Mapping[str, Json] | None = None
    ) -> None:
        """Every order looked at is evidence, refused ones too, with the ``case``: what it was judged by."""
        await self.note(
            fleet,
            order_key(verdict.digest, verdict.rule, verdict.key),
            {"what": "order", **verdict.model_dump(mode="json"), **(case or {})},
        )
