"""What a worker writes down is judged again: a policy that was replaced, a run's own policy, a release, a review.

Each case is a record that only who holds a worker's account could have written, with signatures that are good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from kedge.model.base import canonical, digest_of
from kedge.model.evidence import Document
from kedge.model.governance import BreakGlass, ReviewRule, Revoked
from kedge.model.order import Envelope, Expected
from kedge.model.plan import DocumentRef, Plan
from kedge.model.policy import EvidenceRules, Policy, ReleaseRules
from kedge.model.provenance import Builder
from kedge.model.run import Warrant
from kedge.plan.digest import plan_digest
from kedge.trust.docket import Papers
from kedge.trust.orders import judge
from kedge.trust.policies import policy_text, text_digest
from kedge.trust.retrial import Court
from tests.trust import building, world

GLASS = BreakGlass(
    roles=("on-call",),
    verbs=("rollback",),
    review=ReviewRule(roles=("sre", "on-call", "db-owner")),
)
FIRST = world.policy(break_glass=GLASS)
BACK = "rollback/db/2"
ROOT = "7" * 64


def after(policy: Policy, **changes: Any) -> Policy:
    fields = {"version": policy.version + 1, "previous": text_digest(policy_text(policy))}
    return Policy(**{**dict(policy), **fields, **changes})


class Record:
    """Records of one run, as a worker writes them, before a court that has its papers."""

    def __init__(self, *policies: Policy, began: Policy = FIRST) -> None:
        self.plan: Plan = world.plan(policy=DocumentRef(name="prod", digest=digest_of(began)))
        self.digest = plan_digest(self.plan)
        self.documents: dict[str, Document] = {}
        self.paper("plan", canonical(self.plan))
        trusted = {digest_of(one): one for one in (FIRST, began, *policies)}
        self.court = Court("db", Papers(self.documents, trusted), {}, 1)
        self.seq = 0
        self.nonces = iter(f"{number:032x}" for number in range(1, 100))

    def paper(self, what: Any, content: bytes) -> str:
        digest = text_digest(content.decode())
        made = Document(digest=digest, what=what, content=content.decode())
        self.documents[digest] = made
        return digest

    def next(self) -> int:
        self.seq += 1
        return self.seq

    def pinned(self, policy: Policy) -> None:
        self.court.policy(self.next(), {"what": "policy", "policies": [digest_of(policy)]})

    def said(
        self,
        by: tuple[Policy, ...],
        expected: Mapping[str, Any] = {},
        *,
        closes: bool = False,
        **order: Any,
    ) -> Envelope:
        """An order that the worker accepted, and by which policies it says it did."""
        fields = {"plan": self.digest, "nonce": next(self.nonces), "subject": "", **order}
        fields.setdefault("shown", self.digest)
        one = world.order(**fields)
        envelope = world.envelope(one)
        about = Expected(
            verbs=(one.verb,), target=one.target, plan=self.digest, now=world.NOW,
            **{"subjects": {one.subject: one.shown}, **expected},
        )  # fmt: skip
        gate = next((one for one in self.plan.gates if one.name == fields["subject"]), None)
        found = judge(envelope, about, by[0], gate=gate)
        assert found.accepted, found.said
        found = found.model_copy(update={"closes": closes})
        case = {
            "envelope": envelope.model_dump(mode="json"), "expected": about.model_dump(mode="json"),
            "gate": None if gate is None else gate.model_dump(mode="json"), "signed": [],
            "policies": [digest_of(policy) for policy in by],
        }  # fmt: skip
        record = {"what": "order", **found.model_dump(mode="json"), "case": case}
        self.court.order(self.next(), f"order/{found.digest}/accepted", record)
        return envelope

    def approved(self, *by: Policy, person: str = "carol") -> None:
        self.court.asked(
            self.next(), {"run": world.RUN, "subject": "ship-it", "shown": world.SHOWN}
        )
        given: dict[str, Any] = {"subjects": {"ship-it": world.SHOWN}, "requester": "alice"}
        self.said(by, given, subject="ship-it", shown=world.SHOWN, person=person)

    def started(self, *by: Policy) -> str:
        """The run has its lease; its warrant is in the file."""
        order = self.said(by, verb="start", target="fleet/db", person="alice")
        self.court.acts.lease(
            self.next(),
            {
                "order": judge(order, world.expected(), FIRST).digest,
                "run": world.RUN, "epoch": 7, "policies": [digest_of(by[0])],
            },
        )  # fmt: skip
        return self.paper("warrant", canonical(Warrant(start=order)))

    def allowed(self, warrant: str, *by: Policy) -> None:
        self.court.acts.allowed(
            self.next(),
            {
                "run": world.RUN, "epoch": 7, "program": "forward", "wave": None, "nodes": [],
                "plan": self.digest, "warrant": warrant, "policies": [digest_of(one) for one in by],
            },
        )  # fmt: skip

    def found(self) -> list[str]:
        return [f"{one.kind}: {one.said}" for one in self.court.findings]


def test_what_was_accepted_by_the_policies_of_its_time_holds() -> None:
    second = after(FIRST, clock_skew=31.0)
    record = Record(second)
    record.pinned(FIRST)
    record.allowed(record.started(FIRST), FIRST)
    record.approved(FIRST)
    record.pinned(second)
    record.approved(second, FIRST, person="bob")
    assert record.found() == []


def test_who_was_revoked_signs_nothing_by_the_version_before() -> None:
    second = after(FIRST, revoked=Revoked(people=("carol",)))
    record = Record(second)
    record.pinned(FIRST)
    record.pinned(second)
    record.approved(FIRST)
    (found,) = record.found()
    assert found.startswith("policy: version 2 of the policy was pinned before (record 2)")
    assert "it is revoked" in found


def test_an_order_about_a_run_is_held_against_the_policy_that_run_began_under() -> None:
    second = after(FIRST, requester_may_approve=False)
    record = Record(second)
    record.pinned(second)
    record.approved(second)
    (found,) = record.found()
    assert found.startswith("policy: it was not held against the policy that upgrade/db/1 began")


def test_a_run_is_allowed_by_the_policy_that_it_began_under_too() -> None:
    second = after(FIRST)
    record = Record(second)
    record.allowed(record.started(FIRST), second)
    (found,) = record.found()
    assert found.startswith("warrant: upgrade/db/1 was not held against the policy")


def test_an_order_names_the_end_that_was_seen_where_the_policy_asks_for_it() -> None:
    rules = EvidenceRules(signers=(world.public("worker"),), named="required")
    strict = world.policy(evidence=rules)
    record = Record(began=strict)
    record.approved(strict)
    (found,) = record.found()
    assert "it names none" in found


def test_who_broke_the_glass_does_not_review_it_whoever_is_said_to_have_broken_it() -> None:
    record = Record()
    why: dict[str, Any] = {"break_glass": True, "comment": "writes are lost every second"}
    order = record.said((FIRST,), verb="rollback", target="fleet/db", person="dora", **why)
    digest = judge(order, world.expected(), FIRST).digest
    record.court.acts.lease(
        record.next(), {"order": digest, "run": BACK, "epoch": 8, "policies": []}
    )
    for person, wrong in (("carol", 0), ("dora", 1)):
        given = {"reviews": {BACK: ("bob",)}}
        record.said((FIRST,), given, verb="review", target="fleet/db", subject=BACK, person=person)
        assert len(record.found()) == wrong, record.found()
    assert record.found() == ["order: dora broke the glass there, and reviews it"]


RELEASES: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    ("as it was", {}, ("a", "b"), ""),
    ("of another root", {"root": "9" * 64}, ("a", "b"), "before its release was verified"),
    ("another document", {"document": "9" * 64}, ("a", "b"), "on another release"),
    ("built by one builder", {}, ("a",), "is not proven: 1 builder"),
    ("built by nobody", {}, (), "is not proven"),
    ("at no time", {"at": "now"}, ("a", "b"), "nobody says when"),
]


@pytest.mark.parametrize(("threshold", "found"), [(1, 0), (2, 1)])
def test_a_review_closes_no_more_than_its_policy_says(threshold: int, found: int) -> None:
    """One of two signatures, and a worker writes down that it was the last."""
    rule = ReviewRule(threshold=threshold, roles=("sre", "on-call", "db-owner"))
    policy = world.policy(break_glass=GLASS.model_copy(update={"review": rule}))
    record = Record(policy)
    record.pinned(policy)
    record.said(
        (policy,),
        {"subjects": {BACK: world.SHOWN}, "reviews": {BACK: ("dora",)}},
        verb="review", target="fleet/db", person="carol", subject=BACK, shown=world.SHOWN, closes=True,
    )  # fmt: skip
    assert len(record.found()) == found, record.found()
    assert all("the policy asks for more signatures" in one for one in record.found())


@pytest.mark.parametrize(
    ("changes", "builders", "wrong"),
    [row[1:] for row in RELEASES],
    ids=[row[0] for row in RELEASES],
)
def test_a_release_that_is_said_to_be_verified(
    changes: dict[str, Any], builders: tuple[str, ...], wrong: str
) -> None:
    asked = world.policy(releases=ReleaseRules(root=ROOT, provenance=building.rules()))
    record = Record(began=asked)
    subject = {"subject": [{"name": "db", "digest": {"sha256": "d" * 64}}]}
    papers = [record.paper("attestation", building.envelope(one, subject)) for one in builders]
    verified = {
        "at": building.NOW, "ok": True, "run": world.RUN, "root": ROOT, "authors": [],
        "document": record.plan.after.document, "attestations": papers, **changes,
    }  # fmt: skip
    # Before anything says which plan the run follows.
    record.court.acts.released(record.next(), verified)
    record.allowed(record.started(asked), asked)
    gates = record.court.acts._unreleased(world.RUN, "forward", record.court.acts.plan_of(
        {"run": world.RUN, "token": [7, 0, 0], "program": "forward"}
    ))  # fmt: skip
    assert (gates is None) == (wrong == ""), gates
    assert wrong in (gates or "")
    assert record.found() == []


BUNDLE = b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}'
KEYLESS = "https://c.example.org/keyless"
BUNDLES: list[tuple[str, str, tuple[str, ...], str, str]] = [
    ("the others suffice", KEYLESS, ("a", "b"), "", ""),
    ("the others do not suffice", KEYLESS, ("a",), "", "rests on sigstore bundles"),
    ("nobody may sign so", "", ("a",), "is not proven: 1 builder", ""),
]


@pytest.mark.parametrize(
    ("keyless", "builders", "wrong", "said"),
    [row[1:] for row in BUNDLES],
    ids=[row[0] for row in BUNDLES],
)
def test_a_release_that_rests_on_bundles_which_nobody_judges_again_is_said_so(
    keyless: str, builders: tuple[str, ...], wrong: str, said: str
) -> None:
    identity: Any = {"issuer": "https://i.example.org", "subject": "x"}
    other = Builder(id=KEYLESS, identity=identity)
    rules = building.rules()
    if keyless:
        more = {"builders": (*rules.builders, other), "trusted_root": "0" * 64}
        rules = rules.model_copy(update=more)
    asked = world.policy(releases=ReleaseRules(root=ROOT, provenance=rules))
    record = Record(began=asked)
    subject = {"subject": [{"name": "db", "digest": {"sha256": "d" * 64}}]}
    papers = [record.paper("attestation", building.envelope(one, subject)) for one in builders]
    bundle = record.paper("attestation", BUNDLE)
    verified = {
        "at": building.NOW, "ok": True, "run": world.RUN, "root": ROOT, "authors": [],
        "document": record.plan.after.document, "attestations": [*papers, bundle],
    }  # fmt: skip
    record.court.acts.released(record.next(), verified)
    record.allowed(record.started(asked), asked)
    why = record.court.acts._unreleased(world.RUN, "forward", record.court.acts.plan_of(
        {"run": world.RUN, "token": [7, 0, 0], "program": "forward"}
    ))  # fmt: skip
    assert (why is None) == (wrong == ""), why
    assert wrong in (why or "")
    owed = [one for one in record.court.owed() if "sigstore bundles" in one]
    assert len(owed) == (1 if said else 0)
    assert all(said in one and bundle[:12] in one and world.RUN in one for one in owed)


def test_a_revoked_key_is_no_workers_either() -> None:
    line = world.public("worker")
    with pytest.raises(ValidationError, match="was revoked"):
        world.policy(evidence=EvidenceRules(signers=(line,)), revoked=Revoked(keys=(line,)))
