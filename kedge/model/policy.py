"""Policy: who may say what, with which keys, and how many people must agree.

Rules the model itself keeps (so that no verification has to):

* a key line is one OpenSSH public key without options; what cannot be parsed, certificates, DSA and
  RSA below 2048 bits are refused;
* the same key *material* stands in the policy once, under whatever key type or comment;
* a verb that ``may`` does not name, nobody may say.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from kedge.model.base import Digest, Frozen, Name
from kedge.model.notation import Duration, Problem, refuse
from kedge.model.plan import Verb
from kedge.model.provenance import ProvenanceRules

_ED25519 = {"ssh-ed25519", "sk-ssh-ed25519@openssh.com"}
_ECDSA = {
    "ecdsa-sha2-nistp256": ("nistp256", 65),
    "ecdsa-sha2-nistp384": ("nistp384", 97),
    "ecdsa-sha2-nistp521": ("nistp521", 133),
    "sk-ecdsa-sha2-nistp256@openssh.com": ("nistp256", 65),
}
_KINDS = ("ssh-ed25519", "sk-ssh-ed25519@openssh.com", *_ECDSA, "ssh-rsa")


def _fields(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of an SSH wire blob; ``ValueError`` unless they fill it exactly."""
    found: list[bytes] = []
    offset = 0
    while offset < len(blob):
        if offset + 4 > len(blob):
            raise ValueError("its base64 part is cut off")
        (length,) = struct.unpack_from(">I", blob, offset)
        offset += 4
        if offset + length > len(blob):
            raise ValueError("its base64 part is cut off")
        found.append(blob[offset : offset + length])
        offset += length
    return found


def _check_curve(kind: str, fields: list[bytes]) -> bytes:
    curve, size = _ECDSA[kind]
    hardware = kind.startswith("sk-")
    if len(fields) != (4 if hardware else 3) or fields[1] != curve.encode():
        raise ValueError(f"its base64 part is not an {kind} key")
    if len(fields[2]) != size or fields[2][0] != 4:
        raise ValueError(f"its public point is not one of {curve}")
    return fields[2]


def key_material(line: str) -> bytes:
    """The public key itself (point or modulus) of an OpenSSH public key line, without type and comment.

    Two lines with the same material are the same key. ``ValueError`` says what is wrong with the line.
    """
    parts = line.split(None, 2)
    if len(parts) < 2 or "\n" in line.strip() or "\r" in line:
        raise ValueError("must be one line: key type, base64, comment")
    kind = parts[0]
    if kind.endswith("-cert-v01@openssh.com") or "-cert-v0" in kind:
        raise ValueError("is a certificate; write the public key itself")
    if kind not in _KINDS:
        raise ValueError(
            f"begins with {kind[:40]!r}; a key line begins with one of {', '.join(_KINDS)}"
        )
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its second word is not base64") from None
    fields = _fields(blob)
    if not fields or fields[0] != kind.encode():
        raise ValueError(f"says {kind} but its base64 part says otherwise")
    if kind in _ED25519:
        if len(fields) != (3 if kind.startswith("sk-") else 2) or len(fields[1]) != 32:
            raise ValueError(f"its base64 part is not an {kind} key")
        return fields[1]
    if kind in _ECDSA:
        return _check_curve(kind, fields)
    if len(fields) != 3:
        raise ValueError("its base64 part is not an ssh-rsa key")
    modulus = fields[2].lstrip(b"\0")
    if len(modulus) * 8 < 2048:
        raise ValueError("is an RSA key of less than 2048 bits")
    return modulus


def _key_line(line: str) -> str:
    try:
        key_material(line)
    except ValueError as error:
        raise PydanticCustomError(
            "kedge_key", "{said}", {"said": f"not usable: {error}"}
        ) from error
    return line


PublicKey = Annotated[
    str,
    Field(max_length=4096, description="an OpenSSH public key line: type, base64, comment"),
    AfterValidator(_key_line),
]


class Person(Frozen):
    """Someone who signs: ``keys`` are OpenSSH public key lines, ``roles`` what gates ask for."""

    name: Name
    roles: tuple[Name, ...] = Field(min_length=1)
    keys: tuple[PublicKey, ...] = Field(min_length=1)


class Minimum(Frozen):
    """What gates of one kind need at least, whatever a runbook says.

    ``threshold`` distinct people, and one person of each role in ``each_of``.
    """

    threshold: Annotated[int, Field(ge=1, le=20)] = 1
    each_of: tuple[Name, ...] = ()


class GateMinimums(Frozen):
    """Minimums by what the gate guards: every gate, the point of no return, a way back with data loss.

    ``start`` is ``required`` when no plan may begin without a gate before its first step.
    """

    every: Minimum = Minimum()
    point_of_no_return: Minimum = Minimum()
    data_loss: Minimum = Minimum()
    start: Literal["required", "optional"] = "optional"


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
    people: tuple[Person, ...] = Field(min_length=1)
    may: dict[Verb, tuple[Name, ...]] = Field(min_length=1)
    requester_may_approve: bool = False
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

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        names: dict[str, int] = {}
        material: dict[bytes, tuple[str, int, int]] = {}
        for index, person in enumerate(self.people):
            if person.name in names:
                first = names[person.name]
                problems.append(
                    (
                        ("people", index, "name"),
                        f"{person.name} is already person {first + 1}; one entry each",
                    )
                )
            names.setdefault(person.name, index)
            for place, line in enumerate(person.keys):
                key = key_material(line)
                if key in material:
                    owner = material[key][0]
                    problems.append(
                        (
                            ("people", index, "keys", place),
                            f"is the same key as one of {owner}; a key is of one person, once",
                        )
                    )
                material.setdefault(key, (person.name, index, place))
        problems += self._witness_problems(material)
        problems += self._role_problems()
        return problems

    def _witness_problems(self, people: dict[bytes, tuple[str, int, int]]) -> list[Problem]:
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
                        f"is the same key as one of {people[key][0]}; workers have keys of their own",
                    )
                )
            elif key in seen:
                problems.append((path, "stands there twice"))
            seen.add(key)
        return problems

    def _role_problems(self) -> list[Problem]:
        held = {role for person in self.people for role in person.roles}
        used: list[tuple[tuple[str | int, ...], str]] = [
            (("may", verb, place), role)
            for verb, roles in self.may.items()
            for place, role in enumerate(roles)
        ]
        readers = self.codec.readers if self.codec is not None else ()
        used += [(("codec", "readers", place), role) for place, role in enumerate(readers)]
        for kind in ("every", "point_of_no_return", "data_loss"):
            minimum: Minimum = getattr(self.gates, kind)
            used += [
                (("gates", kind, "each_of", place), role)
                for place, role in enumerate(minimum.each_of)
            ]
        return [
            (
                path,
                f"nobody has the role {role}; the roles people have are {', '.join(sorted(held))}",
            )
            for path, role in used
            if role not in held
        ]

    @property
    def max_lifetime_seconds(self) -> float:
        """Longest life of an order in seconds."""
        return self.max_lifetime

    @property
    def clock_skew_seconds(self) -> float:
        """How far in the future, in seconds, an order may have been issued."""
        return self.clock_skew

    def lifetime(self, verb: Verb) -> float:
        """Longest life in seconds of an order with this verb."""
        if verb in {"approve", "reject"} and self.approval_max_lifetime is not None:
            return self.approval_max_lifetime
        return self.max_lifetime

    def person(self, name: str) -> Person | None:
        """The person of that name, if there is one."""
        return next((person for person in self.people if person.name == name), None)

    def allows(self, person: Person, verb: Verb) -> bool:
        """Whether one of the person's roles may say this verb."""
        return bool(set(self.may.get(verb, ())) & set(person.roles))
