"""A hash chain over records: each link's hash is over the one before it and the record's canonical form.

``hash = sha256("kedge-chain-1" 0x00 previous record)``, with ``previous`` as 32 bytes and ``record`` as RFC 8785
JSON. The first link follows :func:`genesis` of the chain's name, so that no chain can be passed off as another.

A chain proves itself only up to a hash that came from elsewhere: who can write all records can write them all
anew. ``known`` of :func:`verify` are such hashes (signed checkpoints, or the head a person saw when he signed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kedge.model.base import Digest, Frozen, Json, canonical

_DOMAIN = b"kedge-chain-1\x00"

Fault = Literal["edited", "inserted", "reordered", "deleted", "truncated", "rewritten"]


class Link(Frozen):
    """One record in its place."""

    previous: Digest
    record: Json
    hash: Digest


class ChainVerdict(Frozen):
    """Whether the chain holds.

    ``place`` is the index (from 0) of the first link that does not fit, ``head`` the last hash that does, ``count``
    how many links fit.
    """

    ok: bool
    said: str
    count: int
    head: Digest
    place: int | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class EvidenceHead:
    """A place in a fleet's chain: ``seq`` entries (0: none yet) and the ``hash`` of the last.

    Of an empty chain ``hash`` is :func:`genesis` of the fleet's name.
    """

    seq: int
    hash: Digest


def linked(key: str, record: Json) -> Json:
    """What the chain's hash is over: the record together with the key it was appended under."""
    return {"key": key, "record": record}


@dataclass(frozen=True, slots=True)
class EvidenceEntry:
    """One entry, the ``seq``-th of its fleet's chain (from 1), under the key it was appended with."""

    seq: int
    key: str
    record: Json
    previous: Digest
    hash: Digest

    def link(self) -> Link:
        """This entry as :func:`verify` takes it; the chain's name is the fleet's."""
        record = linked(self.key, self.record)
        # Unchecked: whatever somebody wrote there, it is for `verify` to say that it does not fit.
        return Link.model_construct(previous=self.previous, record=record, hash=self.hash)


def genesis(name: str) -> Digest:
    """What the first link of the chain of this name follows."""
    return hashlib.sha256(_DOMAIN + b"genesis\x00" + name.encode()).hexdigest()


def link(previous: Digest, record: Json) -> Digest:
    """The hash of a record that follows ``previous``; raises ``ValueError`` for what has no canonical form."""
    return hashlib.sha256(_DOMAIN + bytes.fromhex(previous) + canonical(record)).hexdigest()


def link_text(previous: Digest, key: str, text: bytes) -> Digest:
    """:func:`link` of what is :func:`linked`, where the canonical form of the record is at hand."""
    whole = b"".join((b'{"key":', canonical(key), b',"record":', text, b"}"))
    return hashlib.sha256(_DOMAIN + bytes.fromhex(previous) + whole).hexdigest()


def append(previous: Digest, record: Json) -> Link:
    """The link of a record that follows ``previous``; raises ``ValueError`` for what has no canonical form."""
    return Link(previous=previous, record=record, hash=link(previous, record))


def verify(
    name: str,
    links: Iterable[Link],
    *,
    known: Mapping[int, Digest] | None = None,
    after: EvidenceHead | None = None,
) -> ChainVerdict:
    """Walk the chain of this name and say where it first breaks, and how.

    ``after`` is where the links begin (a part of a chain); else at its genesis. ``known`` gives, for a number of
    records since the genesis, the hash of the last of them. ``edited``: a link's own hash is wrong. ``inserted``: a link
    follows an earlier one than it stands behind, so what stands between was put there (or the chain forks); the place is
    the first that was. ``reordered``: it follows one that only comes later. ``deleted``: it follows one that is not
    there. ``rewritten``: all fits, but not to a known hash. ``truncated``: it ends before a known length.
    Total: a record that has no canonical form is ``edited``.
    """
    known = known or {}
    everything = tuple(links)
    start = after or EvidenceHead(0, genesis(name))
    head = start.hash
    if known.get(start.seq, head) != head:
        return _broken(
            0, head, "rewritten", "the chain begins as another than the one that is known"
        )
    earlier: dict[Digest, int] = {head: 0}
    heads = [head]
    for place, one in enumerate(everything):
        fault = _fault(one, head, earlier, everything, place)
        if fault is not None:
            return _broken(fault[0], heads[fault[0]], fault[1], fault[2])
        head = one.hash
        heads.append(head)
        earlier[head] = place + 1
        if known.get(start.seq + place + 1, head) != head:
            return _broken(
                place,
                heads[place],
                "rewritten",
                "it fits its neighbours but not the hash that is known",
            )
    longest = max(known, default=0)
    if longest > start.seq + len(everything):
        return _broken(
            len(everything), head, "truncated", f"{longest} records are known, the chain ends here"
        )
    return ChainVerdict(
        ok=True, said=f"{len(everything)} records, none changed", count=len(everything), head=head
    )


def _fault(
    one: Link,
    head: Digest,
    earlier: Mapping[Digest, int],
    everything: tuple[Link, ...],
    place: int,
) -> tuple[int, Fault, str] | None:
    """Where it breaks, how and why, when the link at ``place`` does not fit; ``earlier`` has by hash how many links."""
    try:
        sound = link(one.previous, one.record) == one.hash
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        return place, "edited", "the record is not the one its hash was taken over"
    if one.previous == head:
        return None
    if one.hash in earlier:
        return place, "inserted", "it stands there a second time"
    if one.previous in earlier:
        first = earlier[one.previous]
        many = f"{place - first} records from here on are" if place - first > 1 else "it is"
        return first, "inserted", f"{many} not what the next one follows: put there, or a fork"
    if any(later.hash == one.previous for later in everything[place + 1 :]):
        return place, "reordered", "it follows a record that only comes later"
    why = "it follows a record that is not there: taken out before it, or replaced"
    return place, "deleted", why


def _broken(place: int, head: Digest, fault: Fault, why: str) -> ChainVerdict:
    return ChainVerdict(
        ok=False,
        said=f"record {place}: {fault}: {why}",
        count=place,
        head=head,
        place=place,
        fault=fault,
    )
