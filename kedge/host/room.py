"""Room on the disk: what a snapshot or a restore will write is measured before the daemon is stopped.

Counted is what a copy takes: the data of a sparse file, and nothing where the file system shares blocks. A reserve
stays free, for the daemon goes on writing until it is stopped.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from kedge.host import files, observe, places, restores, snapshots
from kedge.host.errors import DigestMismatch, NoSpace
from kedge.host.layout import Node
from kedge.host.places import Place
from kedge.host.survey import BLOCK, Survey, taken

if TYPE_CHECKING:
    from kedge.host.context import Context

RESERVE = 4 << 20
RESERVE_SHARE = 20


def for_snapshot(ctx: Context, spec: Dict[str, Any], *, restored: bool) -> int:
    """The bytes that a snapshot will take; 0 when it is there already. NoSpace says what lacks, Conflict what is odd.

    `restored`: the plan has a way back that restores it, so that it must be one that can be restored.
    """
    node = ctx.node
    if snapshots.standing(node, spec) is not None:
        return 0
    need, regular, many, shared = 0, 0, 0, None
    entries = []
    live = observe.running(node)[0] is not None
    for one in Survey(node, spec, ctx.pulse.tick, live=live).walk():
        many += 1
        if one.followed:
            entries.append({"path": one.path, "followed": one.followed})
        if not stat.S_ISREG(one.status.st_mode):
            continue
        regular += 1
        if shared is None and one.status.st_size:
            shared = _shares_blocks(node, one.place)
        need += 0 if shared else taken(one.place, one.status)
    snapshots.expect_data(spec, regular)
    if restored:
        restores.can_be_restored(node, {"asked": spec, "entries": entries}).close()
    need += many * BLOCK
    _require(node.snapshots, (need, many), "the snapshot")
    return need


def for_restore(ctx: Context, spec: Dict[str, Any]) -> int:
    """The bytes that a restore will write beside what is there.

    NoSnapshot or DigestMismatch when it is not whole, Conflict when it cannot be put back.
    """
    node = ctx.node
    kept = snapshots.manifest(node, snapshots.standing(node, spec) or spec["id"])
    if restores.is_being_restored(node, kept["id"], ctx.run):
        return 0
    top = node.snapshot(kept["id"]) / "files"
    shared: Optional[bool] = None
    needs: Dict[int, Tuple[int, int, Place]] = {}
    with restores.can_be_restored(node, kept) as elsewhere:
        restores.newest_of(ctx, kept, spec["keep"])
        for entry in kept["entries"]:
            ctx.pulse.tick()
            source, live = top / entry["path"], elsewhere.live(node, entry["path"])
            if shared is None and entry["type"] == "file" and entry["size"]:
                shared = _shares_blocks(node, source)
            device = os.fstat(live.top.fd).st_dev
            size, many, where = needs.get(device, (0, 0, live))
            size += BLOCK + _of_entry(source, entry, shared=bool(shared) and live.top is node.top)
            needs[device] = (size, many + 1, where)
        for size, many, where in needs.values():
            _require(where, (size, many), "the restore")
    return sum(size for size, _, _ in needs.values())


def _of_entry(source: Place, entry: Dict[str, Any], *, shared: bool) -> int:
    status = places.status(source)
    whole = status is not None and (
        entry["type"] != "file"
        or (stat.S_ISREG(status.st_mode) and status.st_size == entry["size"])
    )
    if status is None or not whole:
        raise DigestMismatch(
            f"the snapshot's {entry['path']} is missing or has another length; the daemon was not"
            " stopped",
            {"path": entry["path"]},
        )
    return 0 if shared else taken(source, status)


def _shares_blocks(node: Node, sample: Place) -> bool:
    """Whether a copy of this file below the root shares its blocks: tried, and taken away again."""
    probe = node.own / "shares.new"
    files.drop(probe)
    try:
        reading = files.opened(sample, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        writing = files.opened(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            return snapshots.cloned(reading, writing)
        except OSError:
            return False
        finally:
            os.close(writing)
            files.drop(probe)
    finally:
        os.close(reading)


def _require(place: Place, need: Tuple[int, int], what: str) -> None:
    size, many = need
    found = os.fstatvfs(place.top.fd)
    free, reserve = found.f_bavail * found.f_frsize, RESERVE + size // RESERVE_SHARE
    where = place.top.path
    detail = {"needed": size, "reserve": reserve, "free": free, "path": where}
    if size + reserve > free:
        raise NoSpace(
            f"{what} takes {_size(size)} of disk space and {_size(reserve)} must stay free, but"
            f" {_size(free)} are free at {where}; the daemon was not stopped",
            detail,
        )
    if found.f_files and many > found.f_favail:
        raise NoSpace(
            f"{what} takes {many} inodes, but {found.f_favail} are free at {where}; the daemon was"
            " not stopped",
            detail,
        )


def _size(number: int) -> str:
    for unit, at in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= at:
            return f"{number / at:.1f} {unit}"
    return f"{number} B"
