"""Exported evidence changed by somebody: with a text editor, with the program, or with the worker's own key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from kedge.drivers.checkpoints import CheckpointKey
from kedge.model.base import Json, canonical
from kedge.model.evidence import CheckpointStatement
from kedge.trust.chain import link, linked

Entry = dict[str, Any]
Change = Callable[[list[Entry]], object]


def split(lines: list[bytes]) -> list[dict[str, Any]]:
    """Every line as the object it is."""
    return [json.loads(line) for line in lines]


def entries_of(lines: list[bytes]) -> list[Entry]:
    """The records, in their order."""
    return [one["entry"] for one in split(lines) if "entry" in one]


def joined(objects: list[dict[str, Any]]) -> list[bytes]:
    """Lines again, with a seal that fits: who changes a file knows how it is sealed."""
    body = [canonical(one) + b"\n" for one in objects if "seal" not in one]
    seal: Json = {"lines": len(body), "digest": hashlib.sha256(b"".join(body)).hexdigest()}
    return [*body, canonical({"seal": seal}) + b"\n"]


def changed(lines: list[bytes], change: Change) -> list[bytes]:
    """The records changed, and nothing else but the seal."""
    objects = split(lines)
    entries = [one["entry"] for one in objects if "entry" in one]
    first = next(at for at, one in enumerate(objects) if "entry" in one)
    change(entries)
    others = [one for one in objects if "entry" not in one]
    before = [one for one in others if "header" in one or "document" in one]
    behind = [one for one in others if "checkpoint" in one]
    assert len(before) <= first
    return joined([*before, *({"entry": one} for one in entries), *behind])


def relinked(
    lines: list[bytes], change: Change, key: CheckpointKey | None = None, *, drop: bool = False
) -> list[bytes]:
    """The records changed, numbered and hashed anew, and the header with them.

    With ``key`` the checkpoints are signed anew too; with ``drop`` those are left out that do not fit any more.
    """
    objects = split(lines)
    header = next(one["header"] for one in objects if "header" in one)
    entries = [one["entry"] for one in objects if "entry" in one]
    change(entries)
    previous = header["after"]["hash"]
    hashes = {header["after"]["seq"]: previous}
    for number, entry in enumerate(entries, header["after"]["seq"] + 1):
        entry["seq"], entry["previous"] = number, previous
        previous = entry["hash"] = link(previous, linked(entry["key"], entry["record"]))
        hashes[number] = previous
    header["end"] = {"seq": max(hashes), "hash": previous}
    checkpoints = []
    for one in (one["checkpoint"] for one in objects if "checkpoint" in one):
        seq = min(one["seq"], max(hashes)) if key is not None else one["seq"]
        if drop and hashes.get(seq) != one["hash"]:
            continue
        made = one
        if key is not None:
            statement = CheckpointStatement(
                fleet=one["fleet"], seq=seq, hash=hashes[seq], at=one["at"]
            )
            made = key.sign(statement).model_dump(mode="json")
        if {"checkpoint": made} not in checkpoints:
            checkpoints.append({"checkpoint": made})
    header["checkpoints"] = len(checkpoints)
    documents = [one for one in objects if "document" in one]
    records = [{"entry": one} for one in entries]
    return joined(placed([{"header": header}, *documents, *records, *checkpoints]))


def placed(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with every checkpoint behind the record that it is over."""
    header = next(one["header"] for one in objects if "header" in one)
    checkpoints = [one["checkpoint"] for one in objects if "checkpoint" in one]
    checkpoints.sort(key=lambda one: (one["seq"], one["key"], one["hash"]))
    found: list[dict[str, Any]] = []
    at = header["after"]["seq"]
    for one in (one for one in objects if "checkpoint" not in one and "seal" not in one):
        if "entry" in one:
            found += [{"checkpoint": held} for held in checkpoints if held["seq"] == at]
            at = one["entry"]["seq"]
        found.append(one)
    return [*found, *({"checkpoint": held} for held in checkpoints if held["seq"] >= at)]
