"""Orders and warrants judged again, from the record alone: what was accepted must be accepted again, by the same rules.

A worker writes down with every order what it was judged by: the envelope, what it had to say then, the gate, the
approvals before it, and the policies by digest. :class:`Court` walks over the records in their order and judges with that,
under the policies it trusts, whatever the record says came of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kedge.model.base import Digest, Json, canonical, digest_of
from kedge.model.evidence import Document, Finding, FindingKind
from kedge.model.order import Envelope, EvidenceSeen, Expected, OrderVerdict
from kedge.model.plan import Gate, Plan
from kedge.model.policy import Policy
from kedge.model.run import Warrant
from kedge.plan.digest import plan_digest
from kedge.plan.lease import UNSEEN, unseen
from kedge.trust.effects import KnownPlan
from kedge.trust.envelope import envelope_digest, read
from kedge.trust.orders import judge
from kedge.trust.refusal import RefusalError, quoted
from kedge.trust.released import retry
from kedge.trust.warrant import verify_warrant

AROUND = frozenset(
    {"lease", "policy", "evidence", "release", "plan", "not-open", "break-glass", "author"}
)
"""Rules that are decided around :func:`kedge.trust.orders.judge`, by what only the worker or the engine knew then."""

_SAME = (
    "verb", "target", "subject", "choice", "person", "key", "material", "touched", "pin_given", "nonce",
    "comment", "ticket", "break_glass", "plan", "shown", "issued", "digest",
)  # fmt: skip


@dataclass
class Papers:
    """Documents by digest, read once each. ``trusted`` are the policies that may be judged by."""

    documents: Mapping[Digest, Document]
    trusted: Mapping[Digest, Policy]
    _plans: dict[Digest, KnownPlan | None] = field(default_factory=dict)
    _warrants: dict[Digest, Warrant | None] = field(default_factory=dict)

    def plan(self, digest: Digest) -> KnownPlan | None:
        """The plan of that digest, when it is there and is one."""
        if digest not in self._plans:
            plan: Plan | None = self._read(digest, Plan)
            # Where its bytes fit but its meaning has another form, nobody signed that.
            good = plan is not None and plan_digest(plan) == digest
            self._plans[digest] = KnownPlan(plan) if plan is not None and good else None
        return self._plans[digest]

    def warrant(self, digest: Digest) -> Warrant | None:
        """The warrant of that digest, when it is there and is one."""
        if digest not in self._warrants:
            self._warrants[digest] = self._read(digest, Warrant)
        return self._warrants[digest]

    def _read(self, digest: Digest, kind: type[Any]) -> Any:
        found = self.documents.get(digest)
        if found is None:
            return None
        try:
            return kind.model_validate_json(found.content)
        except ValidationError:
            return None


@dataclass(frozen=True)
class Accepted:
    """An order that was accepted, and holds: its verdict, and where it stands."""

    verdict: OrderVerdict
    seq: int


class Court:
    """Judges the records of one fleet in their order; ``findings`` is what does not hold."""

    def __init__(
        self, fleet: str, papers: Papers, hashes: Mapping[int, Digest], first: int
    ) -> None:
        """``hashes`` are those of the chain by number of records; ``first`` is the first record that is there."""
        self._fleet = fleet
        self._papers = papers
        self._hashes = hashes
        self._first = first
        self.findings: list[Finding] = []
        self.accepted: dict[Digest, Accepted] = {}
        self.orders = 0
        self.refused = 0
        self.unjudged = 0
        """Orders that were written down without their envelope: they never reached a judgement."""
        self.policies: set[Digest] = set()
        self._wordless: set[str] = set()
        """Runs whose release was verified, and no metadata kept by which that can be judged again."""
        self._lineages: dict[Any, Any] = {}
        """What metadata were found to say, read once each (:func:`kedge.trust.custody.judge_custody`)."""
        self.requesters: dict[str, str] = {}
        """By run: the person of the order it acts on."""
        self._glass: dict[Digest, tuple[str, str]] = {}
        self._released: dict[str, list[Mapping[str, Any]]] = {}
        """By run: what was verified of a release for it."""
        self._pinned: tuple[int, int, Policy] | None = None
        """The newest policy that was pinned: its version, the record that says so, and it itself."""
        self._authors: dict[Digest, tuple[str, ...]] = {}
        """By release document: who made it, as was verified."""
        self._shown: set[tuple[Any, ...]] = set()
        self._nonces: dict[str, Digest] = {}
        self._leases: dict[Digest, tuple[str, int, Digest]] = {}
        """By order: the run and the epoch it was spent in, and the policy that was pinned then."""
        self._proven: dict[tuple[str, frozenset[str], int], str | None] = {}
        self._rests: dict[str, set[Digest]] = {}
        """By run: attestations that its release rests on and that were not judged again."""
        self._carried: dict[tuple[Any, ...], str | None] = {}
        self._allowed: set[tuple[Any, ...]] = set()
        self._warrants: dict[tuple[str, int, str], dict[str, Any]] = {}

    def _wrong(self, kind: FindingKind, seq: int, said: str) -> None:
        self.findings.append(Finding(kind=kind, said=said, seq=seq))

    # -- policies ----------------------------------------------------------------------------------------------------

    def policy(self, seq: int, record: Mapping[str, Any]) -> None:
        """A version of the policy was pinned: from here on it has a say in every order."""
        named = record.get("policies")
        digest = named[0] if isinstance(named, list) and named else None
        policy = self._papers.trusted.get(digest) if isinstance(digest, str) else None
        if policy is not None and (self._pinned is None or policy.version >= self._pinned[0]):
            self._pinned = (policy.version, seq, policy)

    def _began(self, run: str, plan: Plan) -> Digest | None:
        """The policy that a run began under: its plan's; of a way back that a person ordered, the one pinned then."""
        for order, (of, _, policy) in self._leases.items():
            known = self.accepted.get(order)
            if of == run and known is not None and known.verdict.verb == "rollback":
                return policy
        ordered = run.startswith("rollback/") and not run.endswith("-auto")
        return None if ordered else plan.policy.digest

    def _without(self, began: Digest | None, digests: Iterable[str]) -> bool:
        """Whether the policy that a run began under is missing among those that something was held against."""
        if began is None or began in digests:
            return False
        policy = self._papers.trusted.get(began)
        return policy is None or digest_of(policy) not in digests

    # -- orders ------------------------------------------------------------------------------------------------------

    def order(self, seq: int, key: str, record: Mapping[str, Any]) -> None:
        """A verdict about an order."""
        self.orders += 1
        case = record.get("case")
        accepted = record.get("accepted") is True
        if not accepted:
            self.refused += 1
        if not isinstance(case, dict):
            self.unjudged += 1
            if accepted:
                self._wrong("order", seq, "an accepted order without what it was judged by")
            else:
                self._closed(record)
            return
        try:
            envelope = Envelope.model_validate_json(canonical(case.get("envelope")))
            expected = Expected.model_validate_json(canonical(case.get("expected")))
            gate = None
            if case.get("gate") is not None:
                gate = Gate.model_validate_json(canonical(case["gate"]))
            signed = self._signed(case.get("signed"))
        except (ValidationError, ValueError) as error:
            self._wrong(
                "order", seq, f"what this order was judged by cannot be read: {str(error)[:200]}"
            )
            return
        digest = envelope_digest(envelope)
        if digest != record.get("digest") or key != f"order/{digest}/{record.get('rule')}":
            self._wrong("order", seq, "the verdict is not about the envelope beside it")
            return
        self._judged(seq, record, envelope, (expected, gate, signed))

    def _signed(self, digests: Json) -> tuple[OrderVerdict, ...]:
        """The approvals that counted before; raises ``ValueError`` for one that was not accepted in this record."""
        found: list[OrderVerdict] = []
        for digest in digests if isinstance(digests, list) else []:
            one = self.accepted.get(str(digest))
            if one is None:
                raise ValueError(f"the approval {str(digest)[:12]} before it is not in the record")
            found.append(one.verdict)
        return tuple(found)

    def _judged(
        self,
        seq: int,
        record: Mapping[str, Any],
        envelope: Envelope,
        by: tuple[Expected, Gate | None, tuple[OrderVerdict, ...]],
    ) -> None:
        expected, gate, signed = by
        accepted = record.get("accepted") is True
        named = record["case"].get("policies")
        digests = [str(one) for one in named] if isinstance(named, list) else []
        if accepted and not digests:
            self._wrong(
                "policy", seq, "the record does not say by which policy this order was accepted"
            )
        held: list[tuple[str, ...]] = []
        for digest in digests:
            policy = self._papers.trusted.get(digest)
            if policy is None:
                said = f"it was judged by the policy {digest[:12]}, which does not follow from the pinned one"
                self._wrong("policy", seq, said)
                return
            self.policies.add(digest)
            verdict = judge(envelope, expected, policy, signed=signed, gate=gate)
            if verdict.accepted != accepted and not (
                verdict.accepted and str(record.get("rule")) in AROUND
            ):
                said = f"the record says {record.get('rule')}, judged again it is {verdict.rule}: {verdict.said}"
                self._wrong("order", seq, said)
                return
            if accepted:
                self._accept(seq, record, verdict, expected, gate)
                held.append(verdict.roles)
            if accepted and unseen(verdict, policy) and read(envelope).evidence is None:
                self._wrong("order", seq, UNSEEN)
        if accepted:
            self._of_its_time(seq, envelope, by, digests)
            # By two policies a person has the roles that both give.
            roles = [role for role in held[0] if all(role in one for one in held)] if held else []
            if record.get("roles") != roles:
                self._wrong("order", seq, "the verdict says other roles than the signer has")
            self._seen(seq, envelope)

    def _of_its_time(
        self,
        seq: int,
        envelope: Envelope,
        by: tuple[Expected, Gate | None, tuple[OrderVerdict, ...]],
        digests: list[str],
    ) -> None:
        """An order holds by the policy that was pinned then; one about a run by the one that run began under too."""
        expected, gate, signed = by
        run, plan = expected.target, self._papers.plan(expected.plan)
        if plan is not None and not run.startswith("fleet/"):
            began = self._began(run, plan.plan)
            if self._without(began, digests):
                said = (
                    f"it was not held against the policy that {run} began under ({str(began)[:12]})"
                )
                self._wrong("policy", seq, said)
        if self._pinned is None:
            return
        version, since, policy = self._pinned
        if digest_of(policy) in digests:
            return
        verdict = judge(envelope, expected, policy, signed=signed, gate=gate)
        if not verdict.accepted:
            said = f"version {version} of the policy was pinned before (record {since}), and by that it is {verdict.rule}: {verdict.said}"
            self._wrong("policy", seq, said)

    def _accept(
        self,
        seq: int,
        record: Mapping[str, Any],
        verdict: OrderVerdict,
        expected: Expected,
        gate: Gate | None,
    ) -> None:
        told = verdict.model_dump(mode="json")
        other = [name for name in _SAME if record.get(name) != told[name]]
        if other:
            self._wrong("order", seq, f"the verdict says another {other[0]} than what was signed")
        before = self._nonces.setdefault(verdict.nonce, verdict.digest)
        if before != verdict.digest:
            self._wrong("order", seq, "its nonce was spent by another order before")
        plan = self._papers.plan(verdict.plan)
        if gate is not None and (plan is None or gate not in plan.plan.gates):
            self._wrong("gate", seq, f"the plan has no such gate {quoted(gate.name)}")
        known = None if plan is None else self._authors.get(plan.plan.after.document)
        if known is not None and verdict.verb in ("start", "approve") and expected.authors != known:
            self._wrong("order", seq, "the release was made by others than it was judged by")
        requester = self.requesters.get(verdict.target)
        if requester is not None and expected.requester not in (None, requester):
            self._wrong(
                "order", seq, f"the run was asked for by {requester}, not by {expected.requester}"
            )
        shown = (verdict.target, verdict.subject, verdict.shown)
        if verdict.verb in ("approve", "reject", "decide") and shown not in self._shown:
            self._wrong("order", seq, "nobody was shown what its signer says he was shown")
        hands = {verdict.person, verdict.key, verdict.material}
        if verdict.verb == "review" and hands & self._broke(verdict.subject):
            self._wrong("order", seq, f"{verdict.person} broke the glass there, and reviews it")
        self.accepted[verdict.digest] = Accepted(verdict, seq)
        if verdict.break_glass:
            said = f"{verdict.person} broke the glass (record {seq}, {verdict.verb})"
            self._glass.setdefault(verdict.digest, (verdict.target, said))
        if verdict.verb == "review" and record.get("closes") is True:
            # A rollback is said to the fleet, and reviewed under the run that it broke into.
            self._glass = {
                digest: (target, said)
                for digest, (target, said) in self._glass.items()
                if target != verdict.subject and not target.startswith("fleet/")
            }

    def _broke(self, run: str) -> set[str]:
        """Who broke the glass in a run, or began it by that: names and keys."""
        found = [one.verdict for one in self.accepted.values() if one.verdict.break_glass]
        return {
            hand
            for one in found
            for hand in (one.person, one.key, one.material)
            if run in (one.target, self._leases.get(one.digest, ("",))[0])
        }

    def _closed(self, record: Mapping[str, Any]) -> None:
        """An order that was accepted, and refused at once by who asked for the verdict: it counts for nothing."""
        digest = record.get("digest")
        if isinstance(digest, str) and str(record.get("rule")) in AROUND:
            self.accepted.pop(digest, None)

    def _seen(self, seq: int, envelope: Envelope) -> None:
        """The end of the record that an order names is one that the record had when it was accepted."""
        try:
            seen: EvidenceSeen | None = read(envelope).evidence
        except RefusalError:
            return
        if seen is None or seen.seq < self._first - 1:
            return
        if seen.seq >= seq:
            self._wrong(
                "order", seq, f"it names the end of the record at {seen.seq}, which came later"
            )
        elif self._hashes.get(seen.seq) != seen.hash:
            said = f"who signed it saw another record: at {seen.seq} it ended in {seen.hash[:12]}"
            self._wrong("rewritten", seq, said)

    def owed(self) -> tuple[str, ...]:
        """Where the glass was broken, and no review behind it closes that; what was built by whom is a worker's word."""
        glass = [
            f"{said}, and no review that closes that is in here" for _, said in self._glass.values()
        ]
        rests = [
            f"the release of {run} rests on sigstore bundles that were not judged again "
            f"({', '.join(one[:12] for one in sorted(digests)[:5])}): their trusted root is not in the file; "
            "take them out of it and verify them with cosign and the root that the policy names"
            for run, digests in self._rests.items()
            if digests
        ]
        words = [
            f"that the release of {run} was signed by the repository's keys is its worker's word: "
            "the repository's metadata are not in the file"
            for run in sorted(self._wordless - {""})
        ]
        return (*glass, *rests, *words)

    def asked(self, seq: int, record: Mapping[str, Any]) -> None:
        """People were asked: what they were shown is what its digest says."""
        shown, showing = record.get("shown"), record.get("showing")
        about = (record.get("run"), record.get("subject"), shown)
        if not all(isinstance(one, str) for one in about):
            self._wrong("order", seq, "this is no record of what people were asked")
            return
        if showing is not None and digest_of(showing) != shown:
            self._wrong(
                "order", seq, "what people were shown is not what its digest was taken over"
            )
        self._shown.add(about)

    # -- leases and warrants -----------------------------------------------------------------------------------------

    def lease(self, seq: int, record: Mapping[str, Any]) -> None:
        """An order was spent under an epoch: it stays that one."""
        order, run, epoch = record.get("order"), record.get("run"), record.get("epoch")
        if not isinstance(order, str) or not isinstance(run, str) or not isinstance(epoch, int):
            self._wrong("lease", seq, "this is no record of a lease")
            return
        known = self.accepted.get(order)
        if known is None and self._first == 1:
            self._wrong(
                "lease", seq, f"{run} acts on an order that was not accepted in this record"
            )
        if known is not None and known.verdict.verb in ("start", "rollback"):
            self.requesters[run] = known.verdict.person
        if order in self._leases:
            self._wrong("lease", seq, "the order was spent before, under another lease")
        under = record.get("policies")
        first = under[0] if isinstance(under, list) and under else ""
        self._leases[order] = (run, epoch, str(first))

    def allowed(self, seq: int, record: Mapping[str, Any]) -> None:
        """A worker found that the signatures carry an act: they do so again."""
        run, epoch, program = record.get("run"), record.get("epoch"), record.get("program")
        if (
            not isinstance(run, str)
            or not isinstance(epoch, int)
            or not isinstance(program, str)
            or not _is_wave(record.get("wave"))
            or not all(isinstance(record.get(name), str) for name in ("plan", "warrant"))
            or not isinstance(record.get("policies"), list)
        ):
            self._wrong("warrant", seq, "this is no record of what a run may do")
            return
        self._warrants[run, epoch, program] = dict(record)
        why = self._may(record, _numbers(record.get("nodes")))
        if why is not None:
            self._wrong("gate" if "gate" in why else "warrant", seq, why)
            return
        self._allowed.add((run, epoch, program, record.get("wave")))

    def acted(self, seq: int, record: Mapping[str, Any], plan: KnownPlan | None) -> None:
        """A leg was run: what carries it stands before it. A node of an earlier wave goes by that wave's own gates."""
        run, program, wave = str(record.get("run")), str(record.get("program")), record.get("wave")
        epoch = _epoch_of(record)
        if not _is_wave(wave):
            self._wrong("gate", seq, "this is no record of what was done in a wave")
            return
        name = str(record.get("node"))
        node = None if plan is None else plan.places.get(name)
        if program == "forward" and plan is not None:
            own = plan.waves.get(name)
            if own is None or not isinstance(wave, int) or own > wave:
                self._wrong(
                    "gate",
                    seq,
                    f"{record.get('node')} is not in wave {wave} of the plan, nor before",
                )
                return
            wave = own
        where = f"{run} {program}" + ("" if wave is None else f" in wave {wave}")
        if (run, epoch, program, wave) not in self._allowed:
            self._wrong("gate", seq, f"{where} acted before anything in the record allowed it")
            return
        why = self._unreleased(run, program, plan)
        if why is not None:
            self._wrong("release", seq, f"{where} acted {why}")
        if program in ("back", "restore") and plan is not None and node is not None:
            basis = self._warrants[run, int(epoch or 0), program]
            # What stands before a way back depends on the wave of a node: one of each is looked at.
            own = plan.waves.get(name)
            one = node if own is None else plan.plan.waves[own].nodes[0]
            why = self._may({**basis, "wave": wave}, (one,))
            if why is not None:
                self._wrong("gate", seq, f"{where}: {why}")

    def released(self, seq: int, record: Mapping[str, Any]) -> None:
        """A worker verified the release of a run: it is the plan's, and what it was built by is in the file."""
        run = record.get("run")
        if record.get("ok") is not True or not isinstance(run, str):
            return
        if record.get("custody") is None:
            self._wordless.add(run)
        else:
            # TUF's library takes a third of a second to load: only a file with metadata pays.
            from kedge.trust.custody import judge_custody  # noqa: PLC0415

            why = judge_custody(record, self._papers.documents, self._lineages)
            if why is not None:
                self._wrong("release", seq, f"the release was not signed as the record says: {why}")
                return
        authors = record.get("authors")
        if isinstance(authors, list):
            self._authors[str(record.get("document"))] = tuple(str(one) for one in authors)
        if not run:
            return
        basis = [one for (of, _, _), one in self._warrants.items() if of == run]
        plan = self._papers.plan(str(basis[-1].get("plan"))) if basis else None
        if plan is not None and record.get("document") != plan.plan.after.document:
            self._wrong("release", seq, f"what was verified is not the release that {run} moves to")
            return
        attestations = record.get("attestations")
        for digest in attestations if isinstance(attestations, list) else ():
            if str(digest) not in self._papers.documents:
                self._wrong(
                    "document", seq, f"the attestation {str(digest)[:12]} is not in the file"
                )
        self._released.setdefault(run, []).append(record)

    def _unreleased(self, run: str, program: str, plan: KnownPlan | None) -> str | None:
        """What is missing where a policy of a run wants signed releases; None where nothing is."""
        if program not in ("forward", "finalize"):
            return None
        named = frozenset(
            str(digest)
            for (of, _, _), one in self._warrants.items()
            if of == run
            for digest in one.get("policies") or ()
        )
        seen = self._released.get(run, [])
        asked = (run, named, len(seen))
        if asked not in self._proven:
            policies = (self._papers.trusted.get(digest) for digest in sorted(named))
            rules = [one.releases for one in policies if one is not None and one.releases]
            found = [retry(one, seen, plan, self._papers.documents) for one in rules]
            self._proven[asked] = next((one.why for one in found if one.why is not None), None)
            for one in found:
                self._rests.setdefault(run, set()).update(one.rests)
        return self._proven[asked]

    def plan_of(self, record: Mapping[str, Any]) -> KnownPlan | None:
        """The plan that the run of a record follows."""
        epoch = _epoch_of(record)
        if epoch is None:
            return None
        basis = self._warrants.get((str(record.get("run")), epoch, str(record.get("program"))))
        return None if basis is None else self._papers.plan(str(basis.get("plan")))

    def _may(self, record: Mapping[str, Any], nodes: tuple[int, ...]) -> str | None:
        """Why the warrant of a record does not carry its act; None when it does."""
        run, program, wave = str(record["run"]), record["program"], record.get("wave")
        digests = tuple(str(one) for one in record.get("policies") or ())
        asked = (run, program, wave, nodes, digests, record.get("warrant"), record.get("plan"))
        if asked not in self._carried:
            self._carried[asked] = self._reason(record, run, nodes, digests)
        return self._carried[asked]

    def _reason(
        self, record: Mapping[str, Any], run: str, nodes: tuple[int, ...], digests: tuple[str, ...]
    ) -> str | None:
        plan = self._papers.plan(str(record.get("plan")))
        warrant = self._papers.warrant(str(record.get("warrant")))
        if plan is None or warrant is None:
            what = "plan" if plan is None else "warrant"
            return f"the {what} that {run} acts on is not in the file"
        if not digests:
            return f"the record does not say by which policy {run} may act"
        missing = self._missing(warrant)
        if missing is not None:
            return missing
        wave = record.get("wave")
        if (
            record["program"] == "forward"
            and isinstance(wave, int)
            and 0 <= wave < len(plan.plan.waves)
        ):
            nodes = plan.plan.waves[wave].nodes
        lease = self._leases.get(envelope_digest(warrant.start))
        if lease is not None and lease[1] != record.get("epoch"):
            return f"the order of {run} was spent in epoch {lease[1]}, it acted in {record.get('epoch')}"
        began = self._began_by(warrant, plan.plan)
        if self._without(began, digests):
            return f"{run} was not held against the policy that it began under ({str(began)[:12]})"
        for digest in digests:
            policy = self._papers.trusted.get(digest)
            if policy is None:
                return f"the policy {digest[:12]} does not follow from the pinned one"
            self.policies.add(digest)
            verdict = verify_warrant(
                warrant,
                plan.plan,
                str(record.get("plan")),
                policy,
                fleet=self._fleet,
                wave=wave,
                run_id=run,
                program=record["program"],
                nodes=nodes,
                authors=self._authors.get(plan.plan.after.document, ()),
            )
            if not verdict.ok:
                return verdict.said
        return None

    def _began_by(self, warrant: Warrant, plan: Plan) -> Digest | None:
        try:
            ordered = read(warrant.start).verb == "rollback"
        except RefusalError:
            return plan.policy.digest
        lease = self._leases.get(envelope_digest(warrant.start))
        if ordered:
            return None if lease is None else lease[2]
        return plan.policy.digest

    def _missing(self, warrant: Warrant) -> str | None:
        """A signature in the warrant that was not accepted in the record."""
        if self._first > 1:
            # The order may have been given before the part of the record that is here.
            return None
        for envelope in (
            warrant.start,
            *(one for some in warrant.approvals.values() for one in some),
        ):
            if envelope_digest(envelope) not in self.accepted:
                return "the warrant has a signature that was not accepted in this record"
        return None


def _is_wave(value: object) -> bool:
    """Whether that may be the number of a wave, or none."""
    return value is None or type(value) is int


def _epoch_of(record: Mapping[str, Any]) -> int | None:
    """The epoch of a leg's token."""
    token = record.get("token")
    first = token[0] if isinstance(token, list) and token else None
    return first if type(first) is int else None


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(one for one in value if type(one) is int) if isinstance(value, list) else ()
