"""Whose key is it? The keys of a policy's people, looked up by the blob that stands in a signature.

The blob is compared byte by byte and never used itself: a certificate, or a second spelling of a key,
is simply not known.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict, defaultdict
from dataclasses import dataclass

from kedge.model.errors import OrderError
from kedge.model.policy import Person
from kedge.trust.keys import PublicKey, fingerprint, parse_public_key
from kedge.trust.refusal import RefusalError


@dataclass(frozen=True)
class Keyring:
    """``keys`` by blob; ``holders`` are the people of a key's material; ``barred`` blobs may not sign, and why."""

    keys: dict[bytes, PublicKey]
    holders: dict[str, frozenset[str]]
    barred: dict[bytes, OrderError]

    def key_of(self, blob: bytes, person: str) -> PublicKey:
        """The key with this blob, when it is this person's and no one else's.

        Raises ``RefusalError``: ``algorithm`` (a key that may not sign), ``unknown-key`` (nobody's or another's),
        ``duplicate-key`` (it stands under two people: who holds it could be two people at a gate).
        """
        if blob in self.barred:
            reason = self.barred[blob]
            raise RefusalError("algorithm", reason.message, next_step=reason.next_step)
        key = self.keys.get(blob)
        holders = self.holders[key.material] if key is not None else frozenset()
        said = fingerprint(blob)
        if key is None or person not in holders:
            whose = f"{min(holders)}'s" if holders else "nobody's"
            raise RefusalError(
                "unknown-key",
                f"the key {said} is {whose} in the policy"
                + (f", not {person}'s" if person else ""),
                next_step="sign with a key that stands under your name, or have this one added to the policy",
            )
        if len(holders) > 1:
            raise RefusalError(
                "duplicate-key",
                f"the key {said} stands under {' and '.join(sorted(holders))} in the policy",
                next_step="give each person a key of their own",
            )
        return key

    def owner(self, blob: bytes) -> str:
        """The one person whose key this is. Raises ``RefusalError`` as :meth:`key_of` does."""
        key = self.keys.get(blob)
        holders = self.holders[key.material] if key is not None else frozenset()
        person = min(holders, default="")
        self.key_of(blob, person)
        return person


_KEPT = 16
_recent: OrderedDict[int, tuple[tuple[Person, ...], Keyring]] = OrderedDict()


def keyring(people: tuple[Person, ...]) -> Keyring:
    """The keyring of a policy's people. A line that is no usable key makes no one able to sign.

    The last few are kept by the very tuple they were made of: to compare hundreds of people by value, as often as an
    order is judged, takes longer than a signature.
    """
    known = _recent.get(id(people))
    if known is not None and known[0] is people:
        return known[1]
    made = _keyring(people)
    _recent[id(people)] = (people, made)
    while len(_recent) > _KEPT:
        _recent.popitem(last=False)
    return made


def _keyring(people: tuple[Person, ...]) -> Keyring:
    keys: dict[bytes, PublicKey] = {}
    holders: defaultdict[str, set[str]] = defaultdict(set)
    barred: dict[bytes, OrderError] = {}
    for person in people:
        for line in person.keys:
            try:
                key = parse_public_key(line)
            except OrderError as error:
                barred[_blob(line)] = error
                continue
            keys[key.blob] = key
            holders[key.material].add(person.name)
    return Keyring(
        keys, {material: frozenset(names) for material, names in holders.items()}, barred
    )


def _blob(line: str) -> bytes:
    """The blob a line seems to hold, to recognise its signatures; the line itself when it holds none."""
    try:
        return base64.b64decode(line.split()[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return line.encode("utf-8", "replace")
