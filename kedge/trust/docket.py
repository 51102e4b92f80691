"""What a verification has established so far, record by record: for who judges orders again, and who judges acts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kedge.model.base import Digest, digest_of
from kedge.model.evidence import Document, Finding, FindingKind
from kedge.model.order import OrderVerdict
from kedge.model.plan import Plan
from kedge.model.policy import Policy
from kedge.model.run import Warrant
from kedge.plan.digest import plan_digest
from kedge.trust.effects import KnownPlan


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


@dataclass
class Docket:
    """The record of one fleet, as far as it was walked over; ``findings`` is what does not hold.

    ``hashes`` are those of the chain by number of records; ``first`` is the first record that is there.
    """

    fleet: str
    papers: Papers
    hashes: Mapping[int, Digest]
    first: int
    findings: list[Finding] = field(default_factory=list)
    accepted: dict[Digest, Accepted] = field(default_factory=dict)
    policies: set[Digest] = field(default_factory=set)
    """Those that anything was judged by."""
    requesters: dict[str, str] = field(default_factory=dict)
    """By run: the person of the order it acts on."""
    authors: dict[Digest, tuple[str, ...]] = field(default_factory=dict)
    """By release document: who made it, as was verified."""
    leases: dict[Digest, tuple[str, int, Digest]] = field(default_factory=dict)
    """By order: the run and the epoch it was spent in, and the policy that was pinned then."""

    def wrong(self, kind: FindingKind, seq: int, said: str) -> None:
        """Notes what does not hold, and at which record."""
        self.findings.append(Finding(kind=kind, said=said, seq=seq))

    def without(self, began: Digest | None, digests: Iterable[str]) -> bool:
        """Whether the policy that a run began under is missing among those that something was held against."""
        if began is None or began in digests:
            return False
        policy = self.papers.trusted.get(began)
        return policy is None or digest_of(policy) not in digests
