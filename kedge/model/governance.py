"""The parts of a policy that say how power is shared, bounded and taken away.

Every part may be left out, and then asks for nothing beyond the general rules; none of them ever gives more than the
general rules give, but for break-glass, which says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from kedge.model.base import Frozen, Name
from kedge.model.keyline import fingerprint_of, fingerprints, key_material
from kedge.model.notation import Duration
from kedge.model.plan import Verb

__all__ = [
    "BreakGlass",
    "ChangeRule",
    "GateMinimums",
    "Hardware",
    "Minimum",
    "ReviewRule",
    "Revoked",
    "RiskRule",
    "Separation",
    "TicketRule",
]

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


class Minimum(Frozen):
    """What gates of one kind need at least, whatever a runbook says.

    ``threshold`` distinct people, and one person of each role in ``each_of``.
    """

    threshold: Annotated[int, Field(ge=1, le=20)] = 1
    each_of: tuple[Name, ...] = ()

    def and_more(self, other: Minimum) -> Minimum:
        """What satisfies both."""
        each = tuple(dict.fromkeys((*self.each_of, *other.each_of)))
        return Minimum(threshold=max(self.threshold, other.threshold), each_of=each)


class GateMinimums(Frozen):
    """Minimums by what the gate guards: every gate, the point of no return, a way back with data loss.

    ``start`` is ``required`` when no plan may begin without a gate before its first step.
    """

    every: Minimum = Minimum()
    point_of_no_return: Minimum = Minimum()
    data_loss: Minimum = Minimum()
    start: Literal["required", "optional"] = "optional"

    def and_more(self, other: GateMinimums) -> GateMinimums:
        """What satisfies both."""
        return GateMinimums(
            every=self.every.and_more(other.every),
            point_of_no_return=self.point_of_no_return.and_more(other.point_of_no_return),
            data_loss=self.data_loss.and_more(other.data_loss),
            start="required" if "required" in (self.start, other.start) else "optional",
        )


def _revoked_key(text: str) -> str:
    if _FINGERPRINT.fullmatch(text):
        return text
    try:
        key_material(text)
    except ValueError as error:
        said = f"is neither a fingerprint (SHA256:…, as ssh-keygen -l prints it) nor a key line: {error}"
        raise PydanticCustomError("kedge_key", "{said}", {"said": said}) from error
    return text


RevokedKey = Annotated[
    str,
    Field(max_length=4096, description="a fingerprint (SHA256:…) or an OpenSSH public key line"),
    AfterValidator(_revoked_key),
]


class Revoked(Frozen):
    """What signs nothing any more. A key that stands here stands under nobody; a person may still stand among the
    people, so that one line takes all power away, and a name that stands here is nobody's again.
    """

    keys: tuple[RevokedKey, ...] = ()
    people: tuple[Name, ...] = ()

    def has_line(self, line: str) -> bool:
        """Whether the key of a sound line is revoked, under whatever kind and comment."""
        known = bool(fingerprints(line) & revoked_fingerprints(self.keys))
        return known or key_material(line) in _revoked_material(self.keys)

    def has_blob(self, blob: bytes) -> bool:
        """Whether a key is revoked that stands in a signature."""
        return fingerprint_of(blob) in revoked_fingerprints(self.keys)


@lru_cache(maxsize=64)
def revoked_fingerprints(keys: tuple[str, ...]) -> frozenset[str]:
    """Every fingerprint under which one of these revoked keys could sign."""
    found: set[str] = set()
    for key in keys:
        if _FINGERPRINT.fullmatch(key):
            found.add(key)
        else:
            found |= fingerprints(key)
    return frozenset(found)


@lru_cache(maxsize=64)
def _revoked_material(keys: tuple[str, ...]) -> frozenset[bytes]:
    """The numbers of those that are revoked by their lines: an RSA modulus has another fingerprint with another exponent."""
    return frozenset(key_material(key) for key in keys if not _FINGERPRINT.fullmatch(key))


class Hardware(Frozen):
    """What is asked of hardware keys: that they were ``touch``ed, that they verified their person (``pin``).

    ``only_for`` names the verbs that a key in a file may not sign: only a hardware key may.
    """

    touch: bool = True
    pin: bool = False
    only_for: dict[Verb, Literal["required"]] = {}


_PATTERN_CHARS = 200


@lru_cache(maxsize=64)
def _matcher(pattern: str) -> TypeAdapter[str]:
    """The whole text, by the engine behind pydantic: it takes linear time whatever the pattern is."""
    return TypeAdapter(Annotated[str, Field(pattern=rf"\A(?:{pattern})\z")])


def _ticket_pattern(pattern: str) -> str:
    try:
        # By itself first: a pattern with a parenthesis too many would end the group that bounds it.
        TypeAdapter(Annotated[str, Field(pattern=pattern)])
        _matcher(pattern)
    except Exception as error:
        said = f"is not a regular expression (RE2 syntax, no look-around): {error}"[:300]
        raise PydanticCustomError("kedge_pattern", "{said}", {"said": said}) from error
    if matches(pattern, ""):
        raise PydanticCustomError(
            "kedge_pattern", "fits an empty ticket too, so it asks for nothing; write [A-Z]+-[0-9]+"
        )
    return pattern


def matches(pattern: str, text: str) -> bool:
    """Whether the pattern fits the whole of a text."""
    try:
        _matcher(pattern).validate_python(text)
    except ValidationError:
        return False
    return True


class TicketRule(Frozen):
    """Orders with these ``verbs`` name a change ticket, and the whole of it fits ``pattern``."""

    pattern: Annotated[
        str,
        Field(
            min_length=1,
            max_length=_PATTERN_CHARS,
            description="a regular expression for the whole ticket, such as CHG-[0-9]{4,}",
        ),
        AfterValidator(_ticket_pattern),
    ]
    verbs: Annotated[tuple[Verb, ...], Field(min_length=1)]


class Separation(Frozen):
    """What who made the release may do with it. Who asked for the run is under ``requester_may_approve``."""

    author_may_approve: bool = False
    author_may_start: bool = True


class RiskRule(Frozen):
    """What plans of one class ask for on top of the general rules, never instead of them.

    ``may``: for the verbs it names a person needs one of these roles too; ``gates``: minimums that hold too;
    ``max_lifetime``: no order about such a plan lives longer, approvals included.
    """

    may: dict[Verb, tuple[Name, ...]] = {}
    gates: GateMinimums = GateMinimums()
    max_lifetime: Annotated[Duration, Field(gt=0)] | None = None


class ReviewRule(Frozen):
    """What is owed once the glass was broken: so many distinct people of these roles look at it and sign, and nobody
    who broke it is among them. Until then no migration of the fleet is started, unless ``blocks_start`` is false.
    """

    threshold: Annotated[int, Field(ge=1, le=20)] = 1
    roles: Annotated[tuple[Name, ...], Field(min_length=1)]
    blocks_start: bool = True


class BreakGlass(Frozen):
    """What people of these ``roles`` may say alone in an emergency, whatever ``may`` and ``ticket`` say.

    The order says so itself, and gives a reason of ``reason_min`` characters at least. Gates stay: a way back that
    loses data still asks for its signatures.
    """

    roles: Annotated[tuple[Name, ...], Field(min_length=1)]
    verbs: Annotated[
        tuple[Literal["rollback", "pause", "abort", "decide"], ...], Field(min_length=1)
    ]
    reason_min: Annotated[int, Field(ge=1, le=1000)] = 10
    review: ReviewRule


class ChangeRule(Frozen):
    """Who signs the next version of this policy: so many distinct people with distinct keys, each of one of ``roles``,
    and one of each role in ``each_of`` among them.
    """

    threshold: Annotated[int, Field(ge=1, le=20)] = 1
    roles: Annotated[tuple[Name, ...], Field(min_length=1)]
    each_of: tuple[Name, ...] = ()
