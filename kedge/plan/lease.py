"""The lease's own rules, after the signature's: one migration of a fleet at a time, and a rollback takes it."""

from __future__ import annotations

from kedge.model.order import OrderVerdict, Rule
from kedge.model.policy import Policy
from kedge.model.run import Lease


def admit(verdict: OrderVerdict, lease: Lease) -> OrderVerdict:
    """The verdict about an accepted order to a fleet, as far as the lease allows it; others stay as they are."""
    if not verdict.accepted:
        return verdict
    if verdict.verb == "start" and lease.holder is not None:
        said = f"{lease.holder} has the lease of this fleet: wait for its end, or roll it back"
        return refuse(verdict, "lease", said)
    if verdict.verb == "rollback" and lease.plan is None:
        said = "no run of this fleet is known: there is nothing to roll back"
        return refuse(verdict, "not-open", said)
    if verdict.verb == "rollback" and verdict.plan != lease.plan:
        said = f"the order is about plan {verdict.plan}, this fleet's is {lease.plan}"
        return refuse(verdict, "plan", said)
    return verdict


def refuse(verdict: OrderVerdict, rule: Rule, said: str) -> OrderVerdict:
    """The same verdict, refused by a rule that is not about the signature; what was proven stays proven."""
    return verdict.model_copy(update={"accepted": False, "rule": rule, "said": said})


UNSEEN = (
    "the policy asks that this names the end of the record that its signer saw, and it names none"
)


def unseen(verdict: OrderVerdict, policy: Policy) -> bool:
    """Whether an order that names no end of the record has to name one: what people decide by what they were shown."""
    return (
        policy.evidence is not None
        and policy.evidence.named == "required"
        and verdict.verb in ("approve", "reject", "decide")
    )


_CLAIMS = frozenset(
    {
        "unreadable", "not-canonical", "unknown-person", "unknown-key", "duplicate-key",
        "algorithm", "namespace", "signature", "touch", "pin",
    }
)  # fmt: skip


def unproven(verdict: OrderVerdict) -> bool:
    """Whether an order was refused before it was known that a person of the policy signed it: anybody can make those."""
    return not verdict.accepted and verdict.rule in _CLAIMS
