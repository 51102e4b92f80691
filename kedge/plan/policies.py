"""Policies in words: what one asks for, who can say what, what another one would change. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from kedge.model.base import Frozen
from kedge.model.governance import GateMinimums, Minimum
from kedge.model.keyline import named
from kedge.model.plan import Risk, Verb
from kedge.model.policy import Person, Policy
from kedge.model.provenance import ProvenanceRules
from kedge.plan.lease import WITNESSED

VERBS: tuple[Verb, ...] = get_args(Verb)
RISKS: tuple[Risk, ...] = get_args(Risk)


class Able(Frozen):
    """Somebody who can say a verb; ``conditions`` are what the order needs beside a signature."""

    person: str
    roles: tuple[str, ...]
    glass: bool = False
    """Only by breaking the glass."""
    conditions: tuple[str, ...] = ()


def who_can(policy: Policy, verb: Verb, risk: Risk | None = None) -> tuple[Able, ...]:
    """Who can say a verb about a plan of this class (None: of any), those who break the glass for it last.

    Exactly those whose well-made order the judge accepts (:mod:`kedge.trust.orders`). Somebody stands there twice who can
    by a role, and by breaking the glass without the ticket that the role's order needs.
    """
    found: list[Able] = []
    rule = policy.break_glass
    for person in policy.people:
        if person.name in policy.revoked.people or not armed(policy, person, verb):
            continue
        able = policy.allows(person, verb, risk)
        breaks = (
            rule is not None and verb in rule.verbs and bool(set(rule.roles) & set(person.roles))
        )
        if able:
            found.append(_able(policy, person, verb, risk, glass=False))
        if breaks and not (able and not _ticketed(policy, verb)):
            found.append(_able(policy, person, verb, risk, glass=True))
    return tuple(sorted(found, key=lambda one: one.glass))


def armed(policy: Policy, person: Person, verb: Verb) -> bool:
    """Whether a person has a key that may sign this verb: a hardware key, where only those may."""
    return verb not in policy.hardware.only_for or bool(hardware_keys(person))


def hardware_keys(person: Person) -> int:
    """How many hardware keys a person has."""
    return sum(line.split(None, 1)[0].startswith("sk-") for line in person.keys)


def _ticketed(policy: Policy, verb: Verb) -> bool:
    return policy.ticket is not None and verb in policy.ticket.verbs


def _able(policy: Policy, person: Person, verb: Verb, risk: Risk | None, *, glass: bool) -> Able:
    conditions = tuple(_conditions(policy, person, verb, risk, glass=glass))
    return Able(person=person.name, roles=person.roles, glass=glass, conditions=conditions)


def _conditions(
    policy: Policy, person: Person, verb: Verb, risk: Risk | None, *, glass: bool
) -> Iterator[str]:
    if verb in policy.hardware.only_for:
        yield "with a hardware key"
    if policy.hardware.pin and hardware_keys(person):
        yield "a hardware key with its PIN"
    if policy.ticket is not None and _ticketed(policy, verb) and not glass:
        yield f"with a ticket {policy.ticket.pattern}"
    if glass and policy.break_glass is not None:
        yield f"with a reason of {policy.break_glass.reason_min} characters, and owes a review"
    if policy.evidence is not None and policy.evidence.named == "required" and verb in WITNESSED:
        yield "naming the end of the record that was seen"
    if verb in {"approve", "reject"}:
        yield "at gates for one of these roles"
    if verb == "approve" and not policy.requester_may_approve:
        yield "unless the run was asked for by the same person"
    if verb == "approve" and not policy.separation.author_may_approve:
        yield "unless the release was made by the same person"
    if verb == "start" and not policy.separation.author_may_start:
        yield "unless the release was made by the same person"
    if verb == "review":
        yield "unless the glass was broken by the same person"
    yield f"for {_time(policy.lifetime(verb, risk))} at most"


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def explained(policy: Policy) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A policy as titled paragraphs of sentences: the whole of it, keys by their fingerprints."""
    parts: list[tuple[str, list[str]]] = [
        ("Who stands in it", [_person_words(person) for person in policy.people]),
        ("Who may say what", [_verb_words(policy, verb) for verb in VERBS]),
        ("What gates need at least", list(_minimum_words(policy.gates))),
    ]
    for risk, rule in policy.risk.items():
        said = [f"to {verb}: also one of {', '.join(roles)}" for verb, roles in rule.may.items()]
        said += [line for line in _minimum_words(rule.gates) if rule.gates != GateMinimums()]
        if rule.max_lifetime is not None:
            said.append(f"no order about it lives longer than {_time(rule.max_lifetime)}")
        parts.append((f"On top, for a plan that is {risk}", said or ["nothing more"]))
    parts.append(("Who does not count", list(_separation_words(policy))))
    parts.append(("Keys, tickets, time", list(_bounds_words(policy))))
    parts.append(("In an emergency", list(_glass_words(policy))))
    parts.append(("What runs, and what counts of it", list(_ground_words(policy))))
    parts.append(("Who may change this", list(_change_words(policy))))
    return tuple((title, tuple(said)) for title, said in parts)


def asks(policy: Policy, risk: Risk) -> tuple[str, ...]:
    """What a policy asks for a plan of this class, in a few sentences."""
    verbs: tuple[Verb, ...] = ("start", "rollback")
    said = [
        f"{verb} by {', '.join(one.person for one in who_can(policy, verb, risk) if not one.glass) or 'nobody'}"
        for verb in verbs
    ]
    said += _minimum_words(policy.minimums(risk))
    said.append(f"an order lives {_time(policy.lifetime('start', risk))} at most")
    if policy.ticket is not None:
        said.append(
            f"a ticket that fits {policy.ticket.pattern} to {', '.join(policy.ticket.verbs)}"
        )
    if policy.hardware.only_for:
        said.append(f"only hardware keys sign to {', '.join(policy.hardware.only_for)}")
    return tuple(said)


def _person_words(person: Person) -> str:
    keys = "; ".join(named(line) for line in person.keys)
    return f"{person.name} ({', '.join(person.roles)}): {keys}"


def _verb_words(policy: Policy, verb: Verb) -> str:
    able = who_can(policy, verb)
    usual = ", ".join(one.person for one in able if not one.glass) or "nobody"
    glass = ", ".join(one.person for one in able if one.glass)
    return f"{verb:<8} {usual}" + (f"; by breaking the glass {glass}" if glass else "")


def _minimum_words(gates: GateMinimums) -> Iterator[str]:
    names = {
        "every": "every gate",
        "point_of_no_return": "the point of no return",
        "data_loss": "a way back that loses data",
    }
    for field, what in names.items():
        # What every gate needs, these need as well.
        minimum: Minimum = gates.every.and_more(getattr(gates, field))
        each = f", {' and '.join(minimum.each_of)} among them" if minimum.each_of else ""
        many = "1 person" if minimum.threshold == 1 else f"{minimum.threshold} different people"
        yield f"{what}: {many}{each}"
    if gates.start == "required":
        yield "no plan begins without a gate before its first step"


def _separation_words(policy: Policy) -> Iterator[str]:
    rule = policy.separation
    yield (
        "who asked for a run signs for it too"
        if policy.requester_may_approve
        else "who asked for a run"
    )
    yield (
        "who made the release approves it too"
        if rule.author_may_approve
        else "who made the release, at its gates"
    )
    if not rule.author_may_start:
        yield "who made the release, at its start"
    if policy.revoked.people or policy.revoked.keys:
        keys = (key if key.startswith("SHA256:") else named(key) for key in policy.revoked.keys)
        yield "revoked: " + ", ".join((*policy.revoked.people, *keys))


def _bounds_words(policy: Policy) -> Iterator[str]:
    approvals = policy.approval_max_lifetime
    yield f"an order lives {_time(policy.max_lifetime)} at most"
    if approvals is not None and approvals != policy.max_lifetime:
        yield f"an approval {_time(approvals)}"
    yield f"clocks may differ by {_time(policy.clock_skew)}"
    hardware = policy.hardware
    yield "hardware keys must be touched" if hardware.touch else "hardware keys need no touch"
    if hardware.pin:
        yield "hardware keys must verify their person (PIN)"
    if hardware.only_for:
        yield f"only hardware keys sign to {', '.join(hardware.only_for)}"
    if policy.ticket is not None:
        yield f"a ticket that fits {policy.ticket.pattern} to {', '.join(policy.ticket.verbs)}"


def _glass_words(policy: Policy) -> Iterator[str]:
    rule = policy.break_glass
    if rule is None:
        yield "nobody breaks the glass"
        return
    yield f"{', '.join(rule.roles)} may {', '.join(rule.verbs)} alone, with a reason of {rule.reason_min} characters"
    blocks = (
        "until then nothing is started" if rule.review.blocks_start else "meanwhile all goes on"
    )
    yield f"{rule.review.threshold} other(s) of {', '.join(rule.review.roles)} review it afterwards; {blocks}"


def _ground_words(policy: Policy) -> Iterator[str]:
    releases, evidence = policy.releases, policy.evidence
    if releases is None:
        yield "releases from files, by their digests alone"
    else:
        yield f"only releases of the repository that begins with the root {releases.root}"
        rules = releases.provenance
        if rules is None:
            yield "however they were built"
        else:
            builders = ", ".join(builder.id for builder in rules.builders)
            yield f"built alike by {rules.builders_agree} of {builders}, from {', '.join(rules.sources)}"
            yield f"by builds of the type {', '.join(rules.build_types)}"
            yield from _provenance_bounds(rules)
    if evidence is not None:
        yield f"the record is sealed by {'; '.join(named(line) for line in evidence.signers)}"
        if evidence.named == "required":
            yield f"who says {', '.join(sorted(WITNESSED))} names the end of the record that was seen"
    readers = ", ".join(policy.codec.readers) if policy.codec is not None else "nobody"
    yield f"sealed payloads are read through the codec server by {readers}"


def _provenance_bounds(rules: ProvenanceRules) -> Iterator[str]:
    if rules.max_age is not None:
        yield f"builds that ended {_time(rules.max_age)} ago at most"
    if rules.trusted_root is not None:
        yield f"identities by the sigstore trusted root {rules.trusted_root}"


def _change_words(policy: Policy) -> Iterator[str]:
    rule = policy.change
    if rule is None:
        yield "nobody by signature; who has the machine pins another with --as-owner, and that is evidence"
        return
    each = f", {' and '.join(rule.each_of)} among them" if rule.each_of else ""
    yield f"{rule.threshold} different people of {', '.join(rule.roles)}{each}"
