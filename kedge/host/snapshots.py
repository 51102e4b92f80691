"""Snapshots: copies of the daemon's files that are complete or absent.

A snapshot has its manifest (every file with its sha256) before it gets its name. How one is put back: `restores`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from kedge.host import anchors, files, observe, outside, places, points
from kedge.host.errors import Conflict, Fault, HostError, NoSnapshot, ReaderGone
from kedge.host.layout import REPLACED, Node
from kedge.host.places import Directory, Place
from kedge.host.survey import Survey, extents

if TYPE_CHECKING:
    from kedge.host.context import Context

NEW = ".new-"
CLONE = 0x40049409  # FICLONE of linux/fs.h: share the blocks until one of the two is written
Entry = Dict[str, Any]


def expect_data(spec: Dict[str, Any], regular: int) -> None:
    """Conflict for a snapshot without a single file, unless the runbook says that there may be none."""
    if not regular and not spec["empty"]:
        raise Conflict(
            f"there is not one file in {', '.join(spec['paths'])}: a snapshot of nothing is no way"
            " back; in the runbook's snapshot step say `empty: true` when that is right",
            {"paths": spec["paths"]},
        )


def snapshot(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Copy paths of the root to `snapshots/<id>`; one that is complete already is the answer.

    So is an older one that stands (`standing`): what is there now was in the hands of the new release.
    """
    node, name = ctx.node, op["id"]
    asked = _asked(op)
    stands = standing(node, op)
    if stands is not None:
        kept = manifest(node, stands)
        if kept["asked"] != asked:
            raise Conflict(f"snapshot {stands} is there, of other paths", {"asked": kept["asked"]})
        return _told(kept)
    clean(node)
    ctx.acting()
    sibling = node.snapshots / f"{NEW}{name}"
    try:
        places.make(sibling, 0o700)
        places.make(sibling / "files", 0o700)
        points.reach("snapshot.copying")
        with places.opened(sibling / "files") as top:
            kept = {"id": name, "asked": asked}
            kept["entries"] = _written(_copy_out(ctx, op, top))
        starts = observe.running(node)[1].get("starts", 0)
        kept.update(step=op["step"], before=op["before"], starts=starts, at=time.time())
        kept["digest"] = hashlib.sha256(files.to_json(kept["entries"])).hexdigest()
        files.write_new(sibling / "manifest.json", files.to_json(kept))
        files.sync_dir(sibling)
        points.reach("snapshot.before-rename")
        with ctx.fence.act():
            places.rename(sibling, node.snapshot(name))
        points.reach("snapshot.after-rename")
        files.sync_dir(node.snapshots)
    except (Fault, OSError, ReaderGone):
        places.remove_tree(sibling)
        raise
    return _told(kept)


def _asked(op: Dict[str, Any]) -> Dict[str, Any]:
    """What a snapshot was asked for; what is as usual is not said."""
    follow = op["follow"]
    asked = {"paths": sorted(op["paths"]), "keep_out": sorted(op["keep_out"])}
    more = {"follow": follow if follow is True else sorted(follow or [])}
    more["keep_links"] = sorted(op["keep_links"])
    return {**asked, **{name: one for name, one in more.items() if one}}


def _told(kept: Dict[str, Any]) -> Dict[str, Any]:
    regular = [one for one in kept["entries"] if one["type"] == "file"]
    total = sum(one["size"] for one in regular)
    told = {"files": len(regular), "bytes": total, "digest": kept["digest"]}
    return {"id": kept["id"], **told}


def standing(node: Node, op: Dict[str, Any]) -> Optional[str]:
    """The snapshot that an operation means: the one it names, or, once the release `before` was started, the one
    that an earlier run took for the same step right before that release was first started. None: neither is there.

    Nothing may have been started between that snapshot and the first start: an older one is of other data. Of several
    the one that was taken last counts.
    """
    if places.is_directory(node.snapshot(op["id"])):
        return str(op["id"])
    last = observe.running(node)[1]
    if op["before"] is None or last.get("release") != op["before"]:
        return None
    found: List[Tuple[float, str]] = []
    for name in observe.snapshots(node):
        kept = files.read_json(node.snapshot(name) / "manifest.json")
        if (
            isinstance(kept, dict)
            and kept.get("step") == op["step"]
            and kept.get("before") == op["before"]
            and kept.get("starts") == last.get("first", 0) - 1
        ):
            found.append((kept["at"], name))
    return max(found)[1] if found else None


def manifest(node: Node, name: str) -> Dict[str, Any]:
    """What a snapshot holds, with the names of its files as they are; NoSnapshot when it is not there."""
    kept = files.read_json(node.snapshot(name) / "manifest.json")
    if not isinstance(kept, dict) or "entries" not in kept:
        raise NoSnapshot(f"there is no complete snapshot {name!r} on this host")
    return {**kept, "entries": _renamed(kept["entries"], outside.path_of)}


def _written(entries: List[Entry]) -> List[Entry]:
    """Entries as a manifest has them: a name need not be UTF-8, a line of JSON is."""
    return _renamed(entries, outside.name)


def _renamed(entries: List[Entry], how: Callable[[str], str]) -> List[Entry]:
    return [
        {key: how(one[key]) if key in ("path", "to", "followed") else one[key] for key in one}
        for one in entries
    ]


def _copy_out(ctx: Context, op: Dict[str, Any], top: Directory) -> List[Entry]:
    entries: List[Entry] = []
    for one in Survey(ctx.node, op, ctx.pulse.tick).walk():
        entry = copy_one(one.place, top / one.path, one.status, ctx.pulse.tick)
        if entry is not None:
            led = {"followed": one.followed, "to": one.to} if one.followed else {}
            entries.append({"path": one.path, **entry, **led})
    expect_data(op, sum(one["type"] == "file" for one in entries))
    _sync_directories(top, [one["path"] for one in entries if one["type"] == "directory"])
    return entries


def copy_one(source: Place, target: Place, status: os.stat_result, tick: Callable[[], None]) -> Any:
    """Copy one thing; gives its entry, or None for what is no file of its own (sockets, fifos)."""
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        places.make(target, 0o700, there=True)
        # Readable while it is filled; its own mode is in the entry and given at a restore.
        return {"type": "directory", "mode": mode, **_owner(status)}
    if stat.S_ISLNK(status.st_mode):
        to = files.link_target(source)
        if to is None:
            raise _changed(source)
        places.link(target, to)
        return {"type": "link", "to": to, **_owner(status)}
    if not stat.S_ISREG(status.st_mode):
        return None
    found, size, read = copy_file(source, target, tick)
    after = places.status(source)
    if after is None or not (_version(status) == _version(read) == _version(after)):
        raise _changed(source)
    told = {"type": "file", "mode": mode, "size": size, "sha256": found}
    return {**told, "mtime": status.st_mtime_ns, **_owner(status)}


def _changed(place: Place) -> HostError:
    return HostError(f"{place} changed while it was copied: is the daemon stopped?")


def _version(status: os.stat_result) -> Tuple[int, ...]:
    return (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)


def _owner(status: os.stat_result) -> Dict[str, int]:
    return {"uid": status.st_uid, "gid": status.st_gid}


def copy_file(
    source: Place, target: Place, tick: Callable[[], None]
) -> Tuple[str, int, os.stat_result]:
    """Copy the bytes of a regular file to a new one, durably; its sha256 and length, and what was read.

    The blocks are shared where the file system can do that (never by a hard link: the daemon goes on
    writing to its file). What is hashed is what the copy holds.
    """
    reading = files.opened(source, os.O_RDONLY | os.O_NONBLOCK)
    try:
        read = os.fstat(reading)
        if not stat.S_ISREG(read.st_mode):
            raise _changed(source)
        writing = files.opened(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if not cloned(reading, writing):
                _copy_data(reading, writing, read.st_size, tick)
            os.fsync(writing)
            os.lseek(writing, 0, os.SEEK_SET)
            return (*files.hash_fd(writing, tick), read)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_data(reading: int, writing: int, size: int, tick: Callable[[], None]) -> None:
    """Copy the data of a file and leave its holes: a sparse file stays one."""
    for start, end in extents(reading, size):
        at = os.lseek(reading, start, os.SEEK_SET)
        os.lseek(writing, start, os.SEEK_SET)
        while at < end:
            part = os.read(reading, min(files.CHUNK, end - at))
            if not part:
                return
            files.write_all(writing, part)
            at += len(part)
            tick()
    os.ftruncate(writing, size)


def cloned(reading: int, writing: int) -> bool:
    """Share the blocks of a file with a new one; False where the file system cannot."""
    try:
        fcntl.ioctl(writing, CLONE, reading)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return False
    return True


def _sync_directories(top: Directory, paths: List[str]) -> None:
    for path in sorted(paths, reverse=True):
        files.sync_dir(top / path)
    os.fsync(top.fd)


def clean(node: Node) -> None:
    """Remove what a killed copy or removal left behind. Callers hold `op.lock`."""
    for name in places.listed(node.snapshots):
        if name.startswith(NEW):
            places.remove_tree(node.snapshots / name)


def remove(node: Node, name: str) -> None:
    """Remove a snapshot: at no instant does half of it have its name."""
    gone = node.snapshots / f"{NEW}gone"
    places.remove_tree(gone)
    if name.startswith(REPLACED):
        anchors.remove_replaced(node.snapshot(name))
    places.rename(node.snapshot(name), gone)
    places.remove_tree(gone)
