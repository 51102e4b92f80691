"""Orders judged again, from the record alone: what was accepted must be accepted again, by the same rules.

A worker writes down with every order what it was judged by: the envelope, what it had to say then, the gate, the
approvals before it, and the policies by digest. :class:`Court` walks over the records in their order and judges with that,
under the policies it trusts, whatever the record says came of it. What was done on such orders is for its ``acts``
(:mod:`kedge.trust.acts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from kedge.model.base import Digest, Json, canonical, digest_of
from kedge.model.evidence import Finding
from kedge.model.order import Envelope, EvidenceSeen, Expected, OrderVerdict
from kedge.model.plan import Gate, Plan
from kedge.model.policy import Policy
from kedge.plan.lease import UNSEEN, closing, unseen
from kedge.trust.acts import Acts
from kedge.trust.admitted import AdmissionChecker
from kedge.trust.docket import Accepted, Docket, Papers
from kedge.trust.envelope import order_digest, order_key, read
from kedge.trust.orders import judge, refused
from kedge.trust.refusal import RefusalError, quoted

AROUND = frozenset(
    {"lease", "policy", "evidence", "release", "plan", "not-open", "break-glass", "author"}
)
"""Rules that are decided around :func:`kedge.trust.orders.judge`, by what only the worker or the engine knew then."""

_SAME = (
    "verb", "target", "subject", "choice", "person", "key", "material", "touched", "pin_given", "nonce",
    "comment", "ticket", "break_glass", "plan", "shown", "issued", "digest",
)  # fmt: skip


class Court:
    """Judges the records of one fleet in their order; ``findings`` is what does not hold."""

    def __init__(
        self, fleet: str, papers: Papers, hashes: Mapping[int, Digest], first: int
    ) -> None:
        """``hashes`` are those of the chain by number of records; ``first`` is the first record that is there."""
        self._docket = Docket(fleet, papers, hashes, first)
        self.acts = Acts(self._docket)
        self.admissions = AdmissionChecker(self._docket)
        self.orders = 0
        self.refused = 0
        self._glass: dict[Digest, tuple[str, str]] = {}
        self._pinned: tuple[int, int, Policy] | None = None
        """The newest policy that was pinned: its version, the record that says so, and it itself."""
        self._shown: set[tuple[Any, ...]] = set()
        self._nonces: dict[str, Digest] = {}

    @property
    def findings(self) -> list[Finding]:
        """What does not hold, of orders and of acts, in the order of the record."""
        return self._docket.findings

    @property
    def policies(self) -> set[Digest]:
        """The policies that anything was judged by."""
        return self._docket.policies

    # -- policies ----------------------------------------------------------------------------------------------------

    def policy(self, seq: int, record: Mapping[str, Any]) -> None:
        """A version of the policy was pinned: from here on it has a say in every order."""
        named = record.get("policies")
        digest = named[0] if isinstance(named, list) and named else None
        policy = self._docket.papers.trusted.get(digest) if isinstance(digest, str) else None
        if policy is not None and record.get("version", policy.version) != policy.version:
            self._docket.wrong("policy", seq, f"what was pinned is version {policy.version}")
        if policy is not None and (self._pinned is None or policy.version >= self._pinned[0]):
            self._pinned = (policy.version, seq, policy)

    def _began(self, run: str, plan: Plan) -> Digest | None:
        """The policy that a run began under: its plan's; of a way back that a person ordered, the one pinned then."""
        for order, (of, _, policy) in self._docket.leases.items():
            known = self._docket.accepted.get(order)
            if of == run and known is not None and known.verdict.verb == "rollback":
                return policy
        ordered = run.startswith("rollback/") and not run.endswith("-auto")
        return None if ordered else plan.policy.digest

    # -- orders ------------------------------------------------------------------------------------------------------

    def order(self, seq: int, key: str, record: Mapping[str, Any]) -> None:
        """A verdict about an order."""
        self.orders += 1
        case = record.get("case")
        accepted = record.get("accepted") is True
        if not accepted:
            self.refused += 1
        if not isinstance(case, dict):
            if accepted:
                self._docket.wrong("order", seq, "an accepted order without what it was judged by")
            return
        try:
            envelope = Envelope.model_validate_json(canonical(case.get("envelope")))
            expected = Expected.model_validate_json(canonical(case.get("expected")))
            gate = None
            if case.get("gate") is not None:
                gate = Gate.model_validate_json(canonical(case["gate"]))
            signed = self._signed(case.get("signed"))
        except (ValidationError, ValueError) as error:
            self._docket.wrong(
                "order", seq, f"what this order was judged by cannot be read: {str(error)[:200]}"
            )
            return
        digest = order_digest(envelope)
        if digest != record.get("digest") or key != order_key(
            digest, str(record.get("rule")), str(record.get("key"))
        ):
            self._docket.wrong("order", seq, "the verdict is not about the envelope beside it")
            return
        self._judged(seq, record, envelope, (expected, gate, signed))

    def _signed(self, digests: Json) -> tuple[OrderVerdict, ...]:
        """The approvals that counted before; raises ``ValueError`` for one that was not accepted in this record."""
        found: list[OrderVerdict] = []
        for digest in digests if isinstance(digests, list) else []:
            one = self._docket.accepted.get(str(digest))
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
            self._docket.wrong(
                "policy", seq, "the record does not say by which policy this order was accepted"
            )
        held: list[tuple[str, ...]] = []
        for digest in digests:
            policy = self._docket.papers.trusted.get(digest)
            if policy is None:
                said = f"it was judged by the policy {digest[:12]}, which does not follow from the pinned one"
                self._docket.wrong("policy", seq, said)
                return
            self._docket.policies.add(digest)
            verdict = judge(envelope, expected, policy, signed=signed, gate=gate)
            if verdict.accepted != accepted and not (
                verdict.accepted and str(record.get("rule")) in AROUND
            ):
                said = f"the record says {record.get('rule')}, judged again it is {verdict.rule}: {verdict.said}"
                self._docket.wrong("order", seq, said)
                return
            if not accepted:
                self._refuse(seq, record, envelope, verdict)
            else:
                self._accept(seq, record, verdict, expected, gate)
                held.append(verdict.roles)
                if record.get("closes") is True and not closing(verdict, signed, policy).closes:
                    said = "it does not close the review: the policy asks for more signatures"
                    self._docket.wrong("order", seq, said)
            if accepted and unseen(verdict, policy) and read(envelope).evidence is None:
                self._docket.wrong("order", seq, UNSEEN)
        self._saw(seq, record, envelope)
        if accepted:
            self._of_its_time(seq, envelope, by, digests)
            # By two policies a person has the roles that both give.
            roles = [role for role in held[0] if all(role in one for one in held)] if held else []
            if record.get("roles") != roles:
                self._docket.wrong("order", seq, "the verdict says other roles than the signer has")
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
        run, plan = expected.target, self._docket.papers.plan(expected.plan)
        if plan is not None and not run.startswith("fleet/"):
            began = self._began(run, plan.plan)
            if self._docket.without(began, digests):
                said = (
                    f"it was not held against the policy that {run} began under ({str(began)[:12]})"
                )
                self._docket.wrong("policy", seq, said)
        if self._pinned is None:
            return
        version, since, policy = self._pinned
        if digest_of(policy) in digests:
            return
        verdict = judge(envelope, expected, policy, signed=signed, gate=gate)
        if not verdict.accepted:
            said = f"version {version} of the policy was pinned before (record {since}), and by that it is {verdict.rule}: {verdict.said}"
            self._docket.wrong("policy", seq, said)

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
            self._docket.wrong(
                "order", seq, f"the verdict says another {other[0]} than what was signed"
            )
        before = self._nonces.setdefault(verdict.nonce, verdict.digest)
        if before != verdict.digest:
            self._docket.wrong("order", seq, "its nonce was spent by another order before")
        plan = self._docket.papers.plan(verdict.plan)
        if gate is not None and (plan is None or gate not in plan.plan.gates):
            self._docket.wrong("gate", seq, f"the plan has no such gate {quoted(gate.name)}")
        known = None if plan is None else self._docket.authors.get(plan.plan.after.document)
        if known is not None and verdict.verb in ("start", "approve") and expected.authors != known:
            self._docket.wrong("order", seq, "the release was made by others than it was judged by")
        requester = self._docket.requesters.get(verdict.target)
        if requester is not None and expected.requester != requester:
            by = expected.requester or "nobody"
            self._docket.wrong("order", seq, f"the run was asked for by {requester}, not by {by}")
        shown = (verdict.target, verdict.subject, verdict.shown)
        if verdict.verb in ("approve", "reject", "decide") and shown not in self._shown:
            self._docket.wrong("order", seq, "nobody was shown what its signer says he was shown")
        hands = {verdict.person, verdict.key, verdict.material}
        if verdict.verb == "review" and hands & self._broke(verdict.subject):
            self._docket.wrong(
                "order", seq, f"{verdict.person} broke the glass there, and reviews it"
            )
        self._docket.accepted[verdict.digest] = Accepted(verdict, seq)
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

    def _refuse(
        self, seq: int, record: Mapping[str, Any], envelope: Envelope, verdict: OrderVerdict
    ) -> None:
        """A refused order says what it claims, or what was proven of it; and why, where nobody else had a say in that."""
        told = verdict.model_dump(mode="json")
        claimed = refused(envelope, "policy", "").model_dump(mode="json")
        other = [name for name in _SAME if record.get(name) not in (told[name], claimed[name])]
        if other:
            self._docket.wrong("order", seq, f"the verdict says another {other[0]} than the order")
        # What a fleet is told is looked at first without the class of a plan that is not known yet.
        around = verdict.accepted or record.get("rule") in AROUND
        if (
            not around
            and not verdict.target.startswith("fleet/")
            and record["rule"] != verdict.rule
        ):
            said = f"the record says {record['rule']}, judged again it is {verdict.rule}: {verdict.said}"
            self._docket.wrong("order", seq, said)

    def _saw(self, seq: int, record: Mapping[str, Any], envelope: Envelope) -> None:
        """Which end of the record a signer saw stands beside the verdict as it stands in the order."""
        seen = None
        with suppress(RefusalError):
            seen = read(envelope).evidence
        if record.get("evidence") != (None if seen is None else seen.model_dump(mode="json")):
            said = "the verdict says another end of the record than its signer saw"
            self._docket.wrong("order", seq, said)

    def _broke(self, run: str) -> set[str]:
        """Who broke the glass in a run, or began it by that: names and keys."""
        found = [one.verdict for one in self._docket.accepted.values() if one.verdict.break_glass]
        return {
            hand
            for one in found
            for hand in (one.person, one.key, one.material)
            if run in (one.target, self._docket.leases.get(one.digest, ("",))[0])
        }

    def _seen(self, seq: int, envelope: Envelope) -> None:
        """The end of the record that an order names is one that the record had when it was accepted."""
        try:
            seen: EvidenceSeen | None = read(envelope).evidence
        except RefusalError:
            return
        if seen is None or seen.seq < self._docket.first - 1:
            return
        if seen.seq >= seq:
            self._docket.wrong(
                "order", seq, f"it names the end of the record at {seen.seq}, which came later"
            )
        elif self._docket.hashes.get(seen.seq) != seen.hash:
            said = f"who signed it saw another record: at {seen.seq} it ended in {seen.hash[:12]}"
            self._docket.wrong("rewritten", seq, said)

    def owed(self) -> tuple[str, ...]:
        """Where the glass was broken, and no review behind it closes that; and what of the acts is a worker's word."""
        glass = [
            f"{said}, and no review that closes that is in here" for _, said in self._glass.values()
        ]
        return (*glass, *self.acts.owed())

    def asked(self, seq: int, record: Mapping[str, Any]) -> None:
        """People were asked: what they were shown is what its digest says."""
        shown, showing = record.get("shown"), record.get("showing")
        about = (record.get("run"), record.get("subject"), shown)
        if not all(isinstance(one, str) for one in about):
            self._docket.wrong("order", seq, "this is no record of what people were asked")
            return
        if showing is not None and digest_of(showing) != shown:
            self._docket.wrong(
                "order", seq, "what people were shown is not what its digest was taken over"
            )
        self._shown.add(about)
