"""A hash chain over records: each link's hash is over the one before it and the record's canonical form.

``hash = sha256("kedge-chain-1" 0x00 previous record)``, with ``previous`` as 32 bytes and ``record`` as RFC 8785
JSON. The first link follows :func:`genesis` of the chain's name, so that no chain can be passed off as another.

A chain proves itself only up to a hash that came from elsewhere: who can write all records can write them all
anew. ``known`` of :func:`verify` are such hashes (signed checkpoints, or the head a person saw when he signed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
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


def genesis(name: str) -> Digest:
    """What the first link of the chain of this name follows."""
    return hashlib.sha256(_DOMAIN + b"genesis\x00" + name.encode()).hexdigest()


def link(previous: Digest, record: Json) -> Digest:
    """The hash of a record that follows ``previous``; raises ``ValueError`` for what has no canonical form."""
    return hashlib.sha256(_DOMAIN + bytes.fromhex(previous) + canonical(record)).hexdigest()


def append(previous: Digest, record: Json) -> Link:
    """The link of a record that follows ``previous``; raises ``ValueError`` for what has no canonical form."""
    return Link(previous=previous, record=record, hash=link(previous, record))


def verify(
    name: str, links: Iterable[Link], *, known: Mapping[int, Digest] | None = None
) -> ChainVerdict:
    """Walk the chain of this name and say where it first breaks, and how.

    ``known`` gives, for a number of links, the hash of the last of them. ``edited``: a link's own hash is wrong.
    ``inserted``: a link follows an earlier one than it stands behind, so what stands between was put there (or
    the chain forks). ``reordered``: it follows one that only comes later. ``deleted``: it follows one that is not
    there. ``rewritten``: all fits, but not to a known hash. ``truncated``: it ends before a known length.
    Total: a record that has no canonical form is ``edited``.
    """
    known = known or {}
    everything = tuple(links)
    head = genesis(name)
    if known.get(0, head) != head:
        return _broken(
            0, head, "rewritten", "the chain begins as another than the one that is known"
        )
    earlier: set[Digest] = {head}
    for place, one in enumerate(everything):
        fault = _fault(one, head, earlier, everything, place)
        if fault is not None:
            return _broken(place, head, *fault)
        head = one.hash
        earlier.add(head)
        if known.get(place + 1, head) != head:
            return _broken(
                place,
                one.previous,
                "rewritten",
                "it fits its neighbours but not the hash that is known",
            )
    longest = max(known, default=0)
    if longest > len(everything):
        return _broken(
            len(everything), head, "truncated", f"{longest} records are known, the chain ends here"
        )
    return ChainVerdict(
        ok=True, said=f"{len(everything)} records, none changed", count=len(everything), head=head
    )


def _fault(
    one: Link, head: Digest, earlier: set[Digest], everything: tuple[Link, ...], place: int
) -> tuple[Fault, str] | None:
    try:
        sound = link(one.previous, one.record) == one.hash
    except ValueError:
        sound = False
    if not sound:
        return "edited", "the record is not the one its hash was taken over"
    if one.previous == head:
        return None
    if one.previous in earlier:
        return "inserted", "it follows an earlier record: what stands between was put there"
    if any(later.hash == one.previous for later in everything[place + 1 :]):
        return "reordered", "it follows a record that only comes later"
    return "deleted", "it follows a record that is not there"


def _broken(place: int, head: Digest, fault: Fault, why: str) -> ChainVerdict:
    return ChainVerdict(
        ok=False,
        said=f"record {place}: {fault}: {why}",
        count=place,
        head=head,
        place=place,
        fault=fault,
    )
