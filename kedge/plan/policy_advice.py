"""What a policy allows and what is still worth a thought: above all where people would lock themselves out. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from kedge.model.governance import Minimum
from kedge.model.plan import Risk, Verb
from kedge.model.policy import Person, Policy
from kedge.plan.policies import RISKS, VERBS, armed, hardware_keys, who_can


def advice(policy: Policy) -> tuple[str, ...]:
    """The sentences, each with the place it is about."""
    found = (
        *_verbs(policy),
        *_gates(policy),
        *_asking(policy),
        *_change(policy),
        *_glass(policy),
        *_people(policy),
    )
    return tuple(dict.fromkeys(found))


def _who(policy: Policy, verb: Verb, risk: Risk | None) -> list[str]:
    """Who can say a verb by a role."""
    return [one.person for one in who_can(policy, verb, risk) if not one.glass]


def _verbs(policy: Policy) -> Iterator[str]:
    """Words that nobody can say, or only one person, about plans of any class that is not bounded more."""
    told: tuple[Verb, ...] = ("start", "rollback", "abort", "decide")
    for verb in VERBS:
        if verb == "review":
            continue
        general = _who(policy.model_copy(update={"risk": {}}), verb, None)
        if not general:
            yield f"may.{verb}: nobody can {verb}"
        elif verb in told and len(general) == 1 and len(policy.people) > 1:
            yield f"may.{verb}: only {general[0]} can {verb}"
        for risk, rule in policy.risk.items():
            if verb in rule.may and general and not _who(policy, verb, risk):
                yield f"risk.{risk}.may.{verb}: nobody can {verb} a plan that is {risk}"


def _gates(policy: Policy) -> Iterator[str]:
    """Gates that too few can sign, by numbers, by roles, and once one of them asked for the run."""
    for risk in RISKS:
        least = policy.minimums(risk)
        asked = least.every.and_more(least.point_of_no_return).and_more(least.data_loss)
        where = f"risk.{risk}.gates" if risk in policy.risk else "gates"
        approvers = [
            person for person in policy.people if person.name in _who(policy, "approve", risk)
        ]
        names = ", ".join(person.name for person in approvers) or "nobody"
        if len(approvers) < asked.threshold:
            yield f"{where}: up to {asked.threshold} must sign, and only {names} can approve"
            continue
        lonely = [role for role in asked.each_of if not _of_role(approvers, role)]
        if lonely:
            yield f"{where}: one of {' and one of '.join(lonely)} must sign, and only {names} can approve"
            continue
        if not policy.requester_may_approve:
            yield from _without_requester(policy, risk, approvers, asked, where)


def _without_requester(
    policy: Policy, risk: Risk, approvers: list[Person], asked: Minimum, where: str
) -> Iterator[str]:
    for starter in _who(policy, "start", risk):
        rest = [person for person in approvers if person.name != starter]
        if len(rest) < asked.threshold or any(not _of_role(rest, role) for role in asked.each_of):
            names = ", ".join(person.name for person in rest) or "nobody"
            each = f", {' and '.join(asked.each_of)} among them" if asked.each_of else ""
            yield f"{where}: where {starter} starts a run, only {names} can approve it, and up to {asked.threshold}{each} must"


def _of_role(people: list[Person], role: str) -> bool:
    return any(role in person.roles for person in people)


def _asking(policy: Policy) -> Iterator[str]:
    if policy.requester_may_approve and len(policy.people) > 1:
        yield "requester_may_approve: one person can start a run and sign for it"


def _change(policy: Policy) -> Iterator[str]:
    """Who loses a key must not lock everybody out of the policy."""
    rule = policy.change
    if rule is None:
        yield "change: nobody can change this policy by signature"
        return
    able = [
        person
        for person in policy.people
        if set(rule.roles) & set(person.roles) and person.name not in policy.revoked.people
    ]
    for person in able if len(policy.people) > 1 else ():
        rest = [one for one in able if one is not person]
        if len(rest) < rule.threshold or any(not _of_role(rest, role) for role in rule.each_of):
            yield f"change: without {person.name} nobody can change this policy by signature"


def _glass(policy: Policy) -> Iterator[str]:
    rule = policy.break_glass
    if rule is None:
        if len(policy.people) > 1:
            yield "break_glass: nobody can act alone in an emergency beyond their roles"
        return
    breakers = [
        person
        for person in policy.people
        if set(rule.roles) & set(person.roles) and person.name not in policy.revoked.people
    ]
    for verb in rule.verbs:
        if not any(armed(policy, person, verb) for person in breakers):
            yield f"break_glass.verbs: nobody can break the glass to {verb}"
    reviewers = _who(policy, "review", None)
    by_all = [name for name in reviewers if name not in {one.name for one in breakers}]
    if len(by_all) < rule.review.threshold and len(breakers) > 1:
        yield (
            f"break_glass.review: once all of {', '.join(one.name for one in breakers)} broke it for one run, only "
            f"{', '.join(by_all) or 'nobody'} can review it, and {rule.review.threshold} must"
        )
    for breaker in breakers:
        rest = [name for name in reviewers if name != breaker.name]
        if len(rest) < rule.review.threshold:
            yield (
                f"break_glass.review: once {breaker.name} broke the glass, only {', '.join(rest) or 'nobody'} can review "
                f"it, and {rule.review.threshold} must"
            )


def _people(policy: Policy) -> Iterator[str]:
    for person in policy.people:
        if person.name in policy.revoked.people:
            yield f"people: {person.name} was revoked and still stands there, which is harmless"
        unusable = [verb for verb in policy.hardware.only_for if policy.allows(person, verb)]
        if unusable and not hardware_keys(person):
            yield f"hardware: {person.name} may {', '.join(unusable)} and has no hardware key"
