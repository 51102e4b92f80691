"""Policy: who may say what, with which keys, and how many people must agree.

Rules the model itself keeps (so that no verification has to):

* a key line is one OpenSSH public key without options; what cannot be parsed, certificates, DSA and
  RSA below 3072 bits are refused;
* the same key *material* stands in the policy once, under whatever key type or comment;
* a key that was revoked stands under nobody, under whatever key type, comment or name;
* a verb that ``may`` does not name, nobody may say;
* what a class of risk says comes on top of the general rules: it asks for more, never for less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kedge.model.base import Digest, Frozen, Name
from kedge.model.governance import (
    BreakGlass,
    ChangeRule,
    GateMinimums,
    Hardware,
    Minimum,
    Revoked,
    RiskRule,
    Separation,
    TicketRule,
)
from kedge.model.keyline import PublicKey, key_material
from kedge.model.notation import Duration, Path, Problem, refuse
from kedge.model.plan import Risk, Verb
from kedge.model.provenance import ProvenanceRules

__all__ = ["GateMinimums", "Minimum", "Person", "Policy", "key_material"]


class Person(Frozen):
    """Someone who signs: ``keys`` are OpenSSH public key lines, ``roles`` what gates ask for."""

    name: Name
    roles: tuple[Name, ...] = Field(min_length=1)
    keys: tuple[PublicKey, ...] = Field(min_length=1)


class ReleaseRules(Frozen):
    """Only releases of one signed repository may be moved to: the one that begins with this root metadata.

    ``root`` is the sha256 of the repository's first root metadata (``1.root.json``): whoever holds its keys decides,
    through the rotations it signs, which keys sign releases.
    """

    root: Digest
    provenance: ProvenanceRules | None = None
    """What must be shown about how its artifacts were built; None: nothing."""


class EvidenceRules(Frozen):
    """Who bears witness to the record. ``signers`` are the public key lines of the workers' checkpoint keys
    (``kedge up`` makes one and says it); a checkpoint by any other key proves nothing.

    ``named``: whether approvals, rejections and decisions must name the end of the record that their signer saw.
    """

    signers: tuple[PublicKey, ...] = Field(min_length=1)
    named: Literal["required", "optional"] = "optional"


class CodecRules(Frozen):
    """Who may read sealed payloads through the codec server: people with one of these roles."""

    readers: tuple[Name, ...] = Field(min_length=1)


class Policy(Frozen):
    """Who may do what in one environment.

    ``may`` gives for each verb the roles of which a person needs one; for approve and reject the
    person needs one of the gate's own roles as well. Lifetimes and skew are seconds.
    """

    kind: Literal["Policy"] = "Policy"
    name: Name
    environment: Name
    version: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Grows by one with each change, and never goes back."""
    previous: Digest | None = None
    """The digest of the version before; None for the first."""
    change: ChangeRule | None = None
    """Who signs the next version; None: nobody can, and only who has the machine can pin another policy."""
    people: tuple[Person, ...] = Field(min_length=1)
    may: dict[Verb, tuple[Name, ...]] = Field(min_length=1)
    requester_may_approve: bool = False
    separation: Separation = Separation()
    max_lifetime: Annotated[Duration, Field(gt=0)] = 3600.0
    """Longest time between an order's ``issued`` and ``expires``."""
    approval_max_lifetime: Annotated[Duration, Field(gt=0)] | None = None
    """The same for approve and reject, where people far apart sign; None: as ``max_lifetime``."""
    clock_skew: Annotated[Duration, Field(le=3600)] = 30.0
    """How far an order's ``issued`` may lie in the future."""
    gates: GateMinimums = GateMinimums()
    releases: ReleaseRules | None = None
    """None: releases are taken from files, by their digests alone."""
    evidence: EvidenceRules | None = None
    codec: CodecRules | None = None
    """None: nobody reads sealed payloads through the codec server."""
    risk: dict[Risk, RiskRule] = {}
    """What plans of a class ask for on top of all this."""
    revoked: Revoked = Revoked()
    hardware: Hardware = Hardware()
    ticket: TicketRule | None = None
    break_glass: BreakGlass | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        return [
            *self._people_problems(),
            *self._key_problems(),
            *self._role_problems(),
            *self._review_problems(),
            *self._version_problems(),
        ]

    def _people_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        names: dict[str, int] = {}
        for index, person in enumerate(self.people):
            if person.name in names:
                said = f"{person.name} is already person {names[person.name] + 1}; one entry each"
                problems.append((("people", index, "name"), said))
            names.setdefault(person.name, index)
        return problems

    def _key_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        owners: dict[bytes, str] = {}
        for index, person in enumerate(self.people):
            for place, line in enumerate(person.keys):
                path = ("people", index, "keys", place)
                key = key_material(line)
                if key in owners:
                    said = f"is the same key as one of {owners[key]}; a key is of one person, once"
                    problems.append((path, said))
                owners.setdefault(key, person.name)
                if self.revoked.has_line(line):
                    said = (
                        f"was revoked (it stands under revoked.keys); {person.name} needs a new key"
                    )
                    problems.append((path, said))
        problems += self._witness_problems(owners)
        return problems

    def _witness_problems(self, people: dict[bytes, str]) -> list[Problem]:
        """A checkpoint key is nobody's and stands there once: a worker must not be able to sign as a person."""
        problems: list[Problem] = []
        seen: set[bytes] = set()
        for place, line in enumerate(self.evidence.signers if self.evidence is not None else ()):
            key = key_material(line)
            path = ("evidence", "signers", place)
            if key in people:
                problems.append(
                    (
                        path,
                        f"is the same key as one of {people[key]}; workers have keys of their own",
                    )
                )
            elif key in seen:
                problems.append((path, "stands there twice"))
            if self.revoked.has_line(line):
                problems.append((path, "was revoked (it stands under revoked.keys)"))
            seen.add(key)
        return problems

    def _role_problems(self) -> list[Problem]:
        held = {role for person in self.people for role in person.roles}
        return [
            (
                path,
                f"nobody has the role {role}; the roles people have are {', '.join(sorted(held))}",
            )
            for path, role in self._roles_used()
            if role not in held
        ]

    def _version_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        if (self.version == 1) != (self.previous is None):
            said = (
                "the first version has none before it"
                if self.version == 1
                else f"is missing: version {self.version} names the digest of the one before (kedge policy show)"
            )
            problems.append((("previous",), said))
        rule = self.change
        if rule is None:
            return problems
        able = [
            person
            for person in self.people
            if set(rule.roles) & set(person.roles) and person.name not in self.revoked.people
        ]
        if len(able) < rule.threshold:
            who = ", ".join(person.name for person in able) or "nobody"
            said = f"{rule.threshold} must sign a change, and only {who} may: nobody could ever change this policy"
            problems.append((("change", "threshold"), said))
        problems += [
            (("change", "each_of", place), f"nobody who may sign a change has the role {role}")
            for place, role in enumerate(rule.each_of)
            if not any(role in person.roles for person in able)
        ]
        return problems

    def _review_problems(self) -> list[Problem]:
        said = "who reviews what broke the glass stands under break_glass.review.roles"
        problems: list[Problem] = [(("may", "review"), said)] if "review" in self.may else []
        rule = self.break_glass
        if rule is None:
            return problems
        able = {person.name for person in self.people if self.allows(person, "review")}
        for person in self.people:
            left = able - {person.name}
            if set(rule.roles) & set(person.roles) and len(left) < rule.review.threshold:
                who = ", ".join(sorted(left)) or "nobody"
                said = f"{rule.review.threshold} must sign, and once {person.name} broke the glass only {who} may"
                problems.append((("break_glass", "review", "threshold"), said))
        return problems

    def _roles_used(self) -> Iterator[tuple[Path, str]]:
        yield from _of_verbs(("may",), self.may)
        yield from _of_gates(("gates",), self.gates)
        if self.codec is not None:
            yield from _of_roles(("codec", "readers"), self.codec.readers)
        for risk, rule in self.risk.items():
            yield from _of_verbs(("risk", risk, "may"), rule.may)
            yield from _of_gates(("risk", risk, "gates"), rule.gates)
        if self.change is not None:
            yield from _of_roles(("change", "roles"), self.change.roles)
        if self.break_glass is not None:
            yield from _of_roles(("break_glass", "roles"), self.break_glass.roles)
            yield from _of_roles(("break_glass", "review", "roles"), self.break_glass.review.roles)

    @property
    def max_lifetime_seconds(self) -> float:
        """Longest life of an order in seconds."""
        return self.max_lifetime

    @property
    def clock_skew_seconds(self) -> float:
        """How far in the future, in seconds, an order may have been issued."""
        return self.clock_skew

    def of_class(self, risk: Risk | None) -> tuple[RiskRule, ...]:
        """What holds on top for plans of this class; of a class that is not known, what holds for any of them."""
        if risk is None:
            return tuple(self.risk.values())
        return (self.risk[risk],) if risk in self.risk else ()

    def minimums(self, risk: Risk | None) -> GateMinimums:
        """What gates of plans of this class need at least."""
        asked = self.gates
        for rule in self.of_class(risk):
            asked = asked.and_more(rule.gates)
        return asked

    def lifetime(self, verb: Verb, risk: Risk | None = None) -> float:
        """Longest life in seconds of an order with this verb about a plan of this class."""
        longest = self.max_lifetime
        if verb in {"approve", "reject"} and self.approval_max_lifetime is not None:
            longest = self.approval_max_lifetime
        bounds = [rule.max_lifetime for rule in self.of_class(risk)]
        return min([longest, *(bound for bound in bounds if bound is not None)])

    def person(self, name: str) -> Person | None:
        """The person of that name, if there is one."""
        return next((person for person in self.people if person.name == name), None)

    def allows(self, person: Person, verb: Verb, risk: Risk | None = None) -> bool:
        """Whether the person's roles may say this verb about a plan of this class. Revoked people say nothing."""
        if person.name in self.revoked.people:
            return False
        if verb == "review":
            rule = self.break_glass
            return rule is not None and bool(set(rule.review.roles) & set(person.roles))
        asked = [self.may.get(verb, ())]
        asked += [rule.may[verb] for rule in self.of_class(risk) if verb in rule.may]
        return all(set(roles) & set(person.roles) for roles in asked)


def _of_verbs(path: Path, may: Mapping[Verb, tuple[str, ...]]) -> Iterator[tuple[Path, str]]:
    for verb, roles in may.items():
        yield from _of_roles((*path, verb), roles)


def _of_roles(path: Path, roles: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    for place, role in enumerate(roles):
        yield (*path, place), role


def _of_gates(path: Path, gates: GateMinimums) -> Iterator[tuple[Path, str]]:
    for kind in ("every", "point_of_no_return", "data_loss"):
        minimum: Minimum = getattr(gates, kind)
        yield from _of_roles((*path, kind, "each_of"), minimum.each_of)
