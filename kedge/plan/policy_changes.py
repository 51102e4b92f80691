"""What another policy would change: who could do more by it, who less. Pure.

Everything that may let something through that was refused before is told as wider, also where it may refuse something
else at the same time: a ticket's other pattern, another repository. What is not known here is told so, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from kedge.model.base import Frozen, Json
from kedge.model.keyline import named
from kedge.model.policy import Policy
from kedge.plan.policies import RISKS, VERBS, who_can

Effect = Literal["wider", "narrower", "other"]
_Lean = Literal["lets", "asks", "turns", "neither"]


class Difference(Frozen):
    """One thing that another policy has otherwise. ``effect``: somebody can do more by it, or less, or neither."""

    where: str
    said: str
    effect: Effect


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


def _values_differ(old: Policy, new: Policy) -> Iterator[Difference]:
    before, after = dict(_flat("", _plain(old))), dict(_flat("", _plain(new)))
    for where in (*before, *(key for key in after if key not in before)):
        was, now = before.get(where), after.get(where)
        if was == now:
            continue
        if isinstance(was, list) and isinstance(now, list):
            yield from _lists_differ(where, was, now)
            continue
        if where == "approval_max_lifetime":
            # Without one of their own approvals live as long as all others.
            lived, lives = was or old.max_lifetime, now or new.max_lifetime
            effect = "other" if lived == lives else _value_effect("lets", lived, lives)
        elif was is None or now is None:
            appears = was is None
            effect = _presence_effect(where, before if appears else after, appears=appears)
        else:
            effect = _value_effect(_lean(where), was, now)
        yield Difference(where=where, said=f"{_shown(was)} → {_shown(now)}", effect=effect)


def _lists_differ(where: str, was: list[Json], now: list[Json]) -> Iterator[Difference]:
    """One difference where a list only grew or shrank, two where it did both."""
    more, less = [one for one in now if one not in was], [one for one in was if one not in now]
    lean = _lean(where)
    arrow = f"{_shown(was)} → {_shown(now)}"
    if more:
        said = arrow if not less else f"has {_shown(more)} too"
        yield Difference(where=where, said=said, effect="narrower" if lean == "asks" else "wider")
    if less:
        said = arrow if not more else f"has {_shown(less)} no more"
        yield Difference(where=where, said=said, effect="wider" if lean == "asks" else "narrower")
    if not more and not less:
        yield Difference(where=where, said=arrow, effect="other")


_NEITHER = frozenset({"kind", "name", "environment", "version", "previous"})
_LETS = frozenset(
    {
        "max_lifetime", "approval_max_lifetime", "clock_skew", "max_age", "requester_may_approve",
        "author_may_approve", "author_may_start", "roles", "keys", "readers", "signers", "sources", "build_types",
        "builders",
    }
)  # fmt: skip
_ASKS = frozenset(
    {
        "threshold", "each_of", "reason_min", "builders_agree", "touch", "pin", "blocks_start", "start", "named",
    }
)  # fmt: skip
_GRANTING = frozenset({"people", "may", "change", "break_glass", "codec"})
"""Sections whose being there gives somebody something; all others ask for something."""


def _lean(where: str) -> _Lean:
    """Whether more of a value lets more through, or asks for more; ``turns``: any other value may let something through."""
    parts = where.split(".")
    section, field = parts[0], parts[-1]
    if section in _NEITHER:
        return "neither"
    if section == "revoked" or (section == "hardware" and "only_for" in parts):
        return "asks"
    if section == "may" or (section == "risk" and parts[2] == "may"):
        return "lets"
    if field == "verbs":
        return "lets" if section == "break_glass" else "asks"
    if field in _LETS:
        return "lets"
    return "asks" if field in _ASKS else "turns"


def _presence_effect(where: str, elsewhere: Collection[str], *, appears: bool) -> Effect:
    """What it means that a value is there in one of both policies only."""
    lean, section = _lean(where), where.partition(".")[0]
    if lean == "neither":
        return "other"
    grants = section in _GRANTING
    whole = not any(one == section or one.startswith(f"{section}.") for one in elsewhere)
    lets = grants and (whole or lean == "lets")
    return "wider" if lets == appears else "narrower"


def _value_effect(lean: _Lean, was: Json, now: Json) -> Effect:
    """What it means that a value became another."""
    if lean == "neither":
        return "other"
    if isinstance(was, bool | int | float) and isinstance(now, bool | int | float):
        more = now > was
    elif {was, now} == {"required", "optional"}:
        more = now == "required"
    else:
        return "wider"
    if lean == "turns":
        return "wider"
    return "wider" if more == (lean == "lets") else "narrower"


def _plain(policy: Policy) -> dict[str, Json]:
    """The document with people by name and keys by their fingerprints, so that neither order nor comments are a difference.

    A key line is too long to be read: who makes one can choose how it begins.
    """
    plain: dict[str, Json] = policy.model_dump(mode="json", exclude={"people", "revoked"})
    plain["people"] = {
        person.name: {
            "roles": list[Json](sorted(person.roles)),
            "keys": list[Json](sorted(named(line) for line in person.keys)),
        }
        for person in policy.people
    }
    if policy.evidence is not None:
        signers = list[Json](sorted(named(line) for line in policy.evidence.signers))
        plain["evidence"] = {"signers": signers, "named": policy.evidence.named}
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
        return ", ".join(str(one)[:100] for one in value)
    # As documents write it.
    return str(value).lower() if isinstance(value, bool) else str(value)[:200]
