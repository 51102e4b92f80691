"""The lease's own rules, after the signature's: one migration of a fleet at a time, and a rollback takes it."""

from __future__ import annotations

from kedge.model.governance import revoked_fingerprints
from kedge.model.keyline import own_fingerprint
from kedge.model.order import OrderVerdict, Rule
from kedge.model.plan import Verb
from kedge.model.policy import Policy
from kedge.model.review import GlassBroken, Review
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
    if verdict.verb == "review" and verdict.plan != lease.reviews.get(verdict.subject):
        said = f"{verdict.subject} was about plan {lease.reviews.get(verdict.subject)}"
        return refuse(verdict, "plan", said)
    return verdict


def owing(verdict: OrderVerdict, lease: Lease, policy: Policy) -> OrderVerdict:
    """The verdict about a start while a review is owed. A policy that says nothing of it leaves nobody out of it."""
    rule = policy.break_glass
    free = rule is not None and not rule.review.blocks_start
    if not verdict.accepted or verdict.verb != "start" or not lease.reviews or free:
        return verdict
    runs = ", ".join(sorted(lease.reviews))
    said = f"the glass was broken for {runs}, and nobody reviewed it yet; kedge review {min(lease.reviews)}"
    return refuse(verdict, "break-glass", said)


def glass_of(verdict: OrderVerdict) -> GlassBroken | None:
    """What an accepted order says that breaks the glass; None for any other."""
    if not (verdict.accepted and verdict.break_glass) or verdict.verb is None:
        return None
    return GlassBroken(
        digest=verdict.digest,
        verb=verdict.verb,
        choice=verdict.choice,
        person=verdict.person,
        key=verdict.key,
        material=verdict.material,
        reason=verdict.comment[:500],
        ticket=verdict.ticket,
        at=verdict.issued,
    )


MOST_REVIEWS = 50
MOST_ORDERS = 20
"""Kept in full: of a run that is broken into again and again the first are, and one signature is for them all."""


def owed(
    reviews: tuple[Review, ...], run: str, verdict: OrderVerdict, now: str
) -> tuple[Review, ...]:
    """The open reviews with one more order that broke the glass. What was signed before did not see it."""
    glass = glass_of(verdict)
    if glass is None:
        return reviews
    there = next((one for one in reviews if one.run == run), None)
    if there is None:
        opened = Review(run=run, plan=verdict.plan, since=now, orders=(glass,))
        return (*reviews, opened)[:MOST_REVIEWS]
    orders = (*there.orders, glass)[:MOST_ORDERS]
    more = there.model_copy(update={"orders": orders, "signed": ()})
    return tuple(more if one.run == run else one for one in reviews)


def signed_for(reviews: tuple[Review, ...], verdict: OrderVerdict) -> tuple[Review, ...]:
    """The open reviews after an accepted one: those that have all their signatures are gone."""
    if not verdict.accepted or verdict.verb != "review":
        return reviews
    return tuple(
        one.model_copy(update={"signed": (*one.signed, verdict)})
        if one.run == verdict.subject
        else one
        for one in reviews
        if one.run != verdict.subject or not verdict.closes
    )


def standing(signed: tuple[OrderVerdict, ...], policy: Policy) -> tuple[OrderVerdict, ...]:
    """The reviews that count still: by people who may review, with keys that are theirs and were not revoked since.

    Who was given another key meanwhile signs again: what the old one signed counts for nothing, and bars nobody.
    """
    hands = {
        (person.name, fingerprint)
        for person in policy.people
        if policy.allows(person, "review")
        for fingerprint in map(own_fingerprint, person.keys)
    }
    gone = revoked_fingerprints(policy.revoked.keys)
    return tuple(one for one in signed if (one.person, one.key) in hands and one.key not in gone)


def closing(
    verdict: OrderVerdict, signed: tuple[OrderVerdict, ...], policy: Policy
) -> OrderVerdict:
    """An accepted review, which says whether the policy has the signatures it asks for with it.

    Only what counts still does (:func:`standing`), and no key twice.
    """
    rule = policy.break_glass
    if not verdict.accepted or verdict.verb != "review" or rule is None:
        return verdict
    counted = [verdict]
    for one in standing(signed, policy):
        if not one.accepted or one.subject != verdict.subject:
            continue
        if not any(_same_hand(one, other) for other in counted):
            counted.append(one)
    return verdict.model_copy(update={"closes": len(counted) >= rule.review.threshold})


def _same_hand(one: OrderVerdict, other: OrderVerdict) -> bool:
    """Whether two signatures may be of one person: by name, or by a key that is the same under whatever name."""
    same_key = one.key == other.key != "" or one.material == other.material != ""
    return one.person == other.person or same_key


def refuse(verdict: OrderVerdict, rule: Rule, said: str) -> OrderVerdict:
    """The same verdict, refused by a rule that is not about the signature; what was proven stays proven."""
    return verdict.model_copy(update={"accepted": False, "rule": rule, "said": said})


UNSEEN = (
    "the policy asks that this names the end of the record that its signer saw, and it names none"
)


WITNESSED: frozenset[Verb] = frozenset({"approve", "reject", "decide"})
"""What people decide by what they were shown."""


def unseen(verdict: OrderVerdict, policy: Policy) -> bool:
    """Whether an order that names no end of the record has to name one: what people decide by what they were shown."""
    return (
        policy.evidence is not None
        and policy.evidence.named == "required"
        and verdict.verb in WITNESSED
    )


_CLAIMS = frozenset(
    {
        "unreadable", "not-canonical", "unknown-person", "revoked", "unknown-key", "duplicate-key",
        "algorithm", "namespace", "signature", "touch", "pin",
    }
)  # fmt: skip


def unproven(verdict: OrderVerdict) -> bool:
    """Whether an order was refused before it was known that a person of the policy signed it: anybody can make those."""
    return not verdict.accepted and verdict.rule in _CLAIMS
