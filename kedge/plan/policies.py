"""Policies in words: what one asks for, who can say what, what another one would change. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from kedge.model.base import Frozen, Json
from kedge.model.governance import GateMinimums, Minimum
from kedge.model.plan import Risk, Verb
from kedge.model.policy import Person, Policy

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
    """Who can say a verb about a plan of this class (None: of any), those who break the glass for it last."""
    found: list[Able] = []
    rule = policy.break_glass
    for person in policy.people:
        able = policy.allows(person, verb, risk)
        breaks = (
            rule is not None
            and verb in rule.verbs
            and bool(set(rule.roles) & set(person.roles))
            and person.name not in policy.revoked.people
        )
        if able or breaks:
            found.append(
                Able(
                    person=person.name,
                    roles=person.roles,
                    glass=not able,
                    conditions=tuple(_conditions(policy, person, verb, risk, glass=not able)),
                )
            )
    return tuple(sorted(found, key=lambda one: one.glass))


def _conditions(
    policy: Policy, person: Person, verb: Verb, risk: Risk | None, *, glass: bool
) -> Iterator[str]:
    if verb in policy.hardware.only_for:
        hardware = [line for line in person.keys if line.startswith("sk-")]
        yield (
            "with a hardware key" if hardware else "with a hardware key, and has none in the policy"
        )
    if policy.ticket is not None and verb in policy.ticket.verbs and not glass:
        yield f"with a ticket {policy.ticket.pattern}"
    if glass and policy.break_glass is not None:
        yield f"with a reason of {policy.break_glass.reason_min} characters, and owes a review"
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
    """A policy as titled paragraphs of sentences."""
    parts: list[tuple[str, list[str]]] = [
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
        minimum: Minimum = getattr(gates, field)
        each = f", {' and '.join(minimum.each_of)} among them" if minimum.each_of else ""
        yield f"{what}: {minimum.threshold} of different people{each}"
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
        people = ", ".join(policy.revoked.people)
        keys = len(policy.revoked.keys)
        yield "revoked: " + " and ".join(
            part for part in (people, f"{keys} key(s)" if keys else "") if part
        )


def _bounds_words(policy: Policy) -> Iterator[str]:
    approvals = (
        policy.lifetime("approve", "routine") if not policy.risk else policy.approval_max_lifetime
    )
    yield f"an order lives {_time(policy.max_lifetime)} at most"
    if approvals is not None and approvals != policy.max_lifetime:
        yield f"an approval {_time(approvals)}"
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


def _change_words(policy: Policy) -> Iterator[str]:
    rule = policy.change
    if rule is None:
        yield "nobody by signature; who has the machine pins another with --as-owner, and that is evidence"
        return
    each = f", {' and '.join(rule.each_of)} among them" if rule.each_of else ""
    yield f"{rule.threshold} different people of {', '.join(rule.roles)}{each}"


def advice(policy: Policy) -> tuple[str, ...]:
    """What is allowed and still worth a thought."""
    found: list[str] = []
    told: tuple[Verb, ...] = ("start", "rollback", "abort", "decide")
    for verb in told:
        usual = who_can(policy, verb, "routine")
        if not usual:
            found.append(f"may.{verb}: nobody can {verb}")
        elif len(usual) == 1 and len(policy.people) > 1:
            found.append(f"may.{verb}: only {usual[0].person} can {verb}")
    most = max(
        minimum.threshold
        for risk in (*RISKS, None)
        for minimum in (
            policy.minimums(risk).every,
            policy.minimums(risk).point_of_no_return,
            policy.minimums(risk).data_loss,
        )
    )
    approvers = [one.person for one in who_can(policy, "approve", "routine")]
    if len(approvers) < most:
        found.append(
            f"gates: up to {most} must sign, and only {', '.join(approvers) or 'nobody'} can approve"
        )
    if policy.requester_may_approve and len(policy.people) > 1:
        found.append("requester_may_approve: one person can start a run and sign for it")
    if policy.change is None:
        found.append("change: nobody can change this policy by signature")
    if policy.break_glass is None and len(policy.people) > 1:
        found.append("break_glass: nobody can act alone in an emergency beyond their roles")
    for person in policy.people:
        if person.name in policy.revoked.people:
            found.append(
                f"people: {person.name} was revoked and still stands there, which is harmless"
            )
        unusable = [
            verb for verb in policy.hardware.only_for
            if policy.allows(person, verb) and not any(line.startswith("sk-") for line in person.keys)
        ]  # fmt: skip
        if unusable:
            found.append(
                f"hardware: {person.name} may {', '.join(unusable)} and has no hardware key"
            )
    return tuple(found)


class Difference(Frozen):
    """One thing that another policy has otherwise. ``effect``: somebody can do more by it, or less, or neither."""

    where: str
    said: str
    effect: Literal["wider", "narrower", "other"]


def differences(old: Policy, new: Policy) -> tuple[Difference, ...]:
    """What changes from one policy to another: first who can say what, then every value that is another."""
    return (*_who_differs(old, new), *_values_differ(old, new))


def _who_differs(old: Policy, new: Policy) -> Iterator[Difference]:
    for verb in VERBS:
        told: set[str] = set()
        for risk in RISKS:
            before = {(one.person, one.glass) for one in who_can(old, verb, risk)}
            after = {(one.person, one.glass) for one in who_can(new, verb, risk)}
            for person, glass in sorted(after - before):
                how = " by breaking the glass" if glass else ""
                said = f"{person} can {verb}{how}"
                if said not in told:
                    yield Difference(where=f"who can {verb}", said=said, effect="wider")
                told.add(said)
            for person, glass in sorted(before - after):
                said = f"{person} can {verb} no more" + (" by breaking the glass" if glass else "")
                if said not in told:
                    yield Difference(where=f"who can {verb}", said=said, effect="narrower")
                told.add(said)


_MORE_IS_WIDER = ("max_lifetime", "approval_max_lifetime", "clock_skew")
_TRUE_IS_WIDER = ("requester_may_approve", "author_may_approve", "author_may_start")
_MORE_IS_NARROWER = ("threshold", "reason_min", "builders_agree", "touch", "pin", "blocks_start")


def _values_differ(old: Policy, new: Policy) -> Iterator[Difference]:
    before, after = dict(_flat("", _plain(old))), dict(_flat("", _plain(new)))
    for where in (*before, *(key for key in after if key not in before)):
        was, now = before.get(where), after.get(where)
        if was != now:
            said = f"{_shown(was)} → {_shown(now)}"
            yield Difference(where=where, said=said, effect=_effect(where, was, now))


def _effect(where: str, was: Json, now: Json) -> Literal["wider", "narrower", "other"]:
    field = where.rsplit(".", 1)[-1]
    if where.startswith("revoked."):
        return "narrower" if was is None else "wider"
    if field == "each_of" or where in {"ticket", "releases", "evidence"}:
        grown = len(str(now or "")) > len(str(was or ""))
        return "narrower" if grown else "wider"
    if field == "start":
        return "narrower" if now == "required" else "wider"
    if isinstance(was, bool | int | float) and isinstance(now, bool | int | float):
        if field in _MORE_IS_WIDER or field in _TRUE_IS_WIDER:
            return "wider" if now > was else "narrower"
        if field in _MORE_IS_NARROWER:
            return "narrower" if now > was else "wider"
    return "other"


def _plain(policy: Policy) -> dict[str, Json]:
    """The document with people by name, so that an order of people is no difference."""
    plain: dict[str, Json] = policy.model_dump(mode="json", exclude={"people", "revoked"})
    plain["people"] = {
        person.name: {
            "roles": list[Json](sorted(person.roles)),
            "keys": list[Json](sorted(person.keys)),
        }
        for person in policy.people
    }
    plain["revoked"] = {
        "keys": dict.fromkeys(policy.revoked.keys, "revoked"),
        "people": dict.fromkeys(policy.revoked.people, "revoked"),
    }
    return plain


def _flat(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else key, inner)
    elif value not in ({}, [], None):
        yield path, value


def _shown(value: Json) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return ", ".join(str(one)[:60] for one in value)
    return str(value)[:200]
