"""Snapshots: copies of the daemon's files that are complete or absent; and the way back from them.

A snapshot has its manifest (every file with its sha256) before it gets its name. A restore builds the new
tree beside, checked against the manifest, writes down what it is about to swap, and swaps by renames; a
session that finds a half-done swap completes it before anything else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

from kedge.host import family, files, observe, outside, places, points
from kedge.host.errors import Conflict, DigestMismatch, Fault, HostError, NoSnapshot, ReaderGone
from kedge.host.fence import Fence
from kedge.host.layout import REPLACED, Node
from kedge.host.places import Directory, Place

if TYPE_CHECKING:
    from kedge.host.context import Context

NEW = ".new-"
CLONE = 0x40049409  # FICLONE of linux/fs.h: share the blocks until one of the two is written
Entry = Dict[str, Any]


def matches(path: str, globs: List[str]) -> bool:
    """Whether a path, or a directory above it, matches a glob; one without `/` matches any name."""
    parts = path.split("/")
    for number in range(len(parts)):
        above = "/".join(parts[: number + 1])
        for one in globs:
            if fnmatchcase(above, one) or ("/" not in one and fnmatchcase(parts[number], one)):
                return True
    return False


def snapshot(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Copy paths of the root to `snapshots/<id>`; one that is complete already is the answer.

    So is an older one that stands (`standing`): what is there now was in the hands of the new release.
    """
    node, name = ctx.node, op["id"]
    asked = {"paths": sorted(op["paths"]), "keep_out": sorted(op["keep_out"])}
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
        {key: how(one[key]) if key in ("path", "to") else one[key] for key in one}
        for one in entries
    ]


def _copy_out(ctx: Context, op: Dict[str, Any], top: Directory) -> List[Entry]:
    entries: List[Entry] = []
    for path in sorted(op["paths"]):
        if not places.exists(ctx.node.top / path):
            raise HostError(f"{path} is not there: a snapshot without it would be no way back")
        for one, status, source in _tree(ctx.node.top / path):
            if matches(one, op["keep_out"]):
                continue
            entry = _copy_one(source, top / one, status, ctx.pulse.tick)
            if entry is not None:
                entries.append({"path": one, **entry})
    _sync_directories(top, [one["path"] for one in entries if one["type"] == "directory"])
    return entries


def _tree(place: Place) -> Iterator[Tuple[str, os.stat_result, Place]]:
    """A place of the root and everything below it, parents first; the directories above it too.

    Each as its path from the root, its status, and a place that is good until the next one is asked for.
    """
    for one in place.above():
        status = _there(one)
        if not stat.S_ISDIR(status.st_mode):
            raise places.no_directory(str(one))
        yield "/".join(one.names), status, one
    path, status = "/".join(place.names), _there(place)
    yield path, status, place
    if stat.S_ISDIR(status.st_mode):
        for below, found, one in places.walk(place):
            yield f"{path}/{below}", found, one


def _there(place: Place) -> os.stat_result:
    status = places.status(place)
    if status is None:
        raise HostError(f"{place} is not there any more: is the daemon stopped?")
    return status


def _copy_one(
    source: Place, target: Place, status: os.stat_result, tick: Callable[[], None]
) -> Any:
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
            if not _cloned(reading, writing):
                while True:
                    part = os.read(reading, files.CHUNK)
                    if not part:
                        break
                    files.write_all(writing, part)
                    tick()
            os.fsync(writing)
            os.lseek(writing, 0, os.SEEK_SET)
            return (*files.hash_fd(writing, tick), read)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _cloned(reading: int, writing: int) -> bool:
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
    places.rename(node.snapshot(name), gone)
    places.remove_tree(gone)


def restore(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Put the files of a snapshot back; what was there goes to `snapshots/replaced-<n>`."""
    node = ctx.node
    kept = manifest(node, standing(node, op) or op["id"])
    intent = files.read_json(node.restoring)
    if not isinstance(intent, dict) or intent.get("key") != ctx.key:
        alive = family.of_daemon(node).every
        if alive:
            raise Conflict(
                f"the daemon runs ({family.named(alive)}): stop it before its files are replaced"
            )
        ctx.acting()
        intent = _prepare(ctx, op, kept)
        with ctx.fence.act():
            points.reach("restore.before-renames")
            swap(node, intent)
        points.reach("restore.after-renames")
        places.remove_tree(node.restore_new)
    replaced = intent["replaced"]
    if op["drop_replaced"] and places.is_directory(node.snapshot(replaced)):
        with ctx.fence.act():
            remove(node, replaced)
    gone = op["drop_replaced"]
    return {
        "id": intent["id"],
        "files": intent["files"],
        "replaced": None if gone else replaced,
    }


def _prepare(ctx: Context, op: Dict[str, Any], kept: Dict[str, Any]) -> Dict[str, Any]:
    """Build the new trees beside and write the intent; until that is written nothing has changed."""
    node = ctx.node
    for path in kept["asked"]["paths"]:
        _through_directories(node.top / path)
    with ctx.fence.act():
        files.drop(node.restoring)
    places.remove_tree(node.restore_new)
    try:
        places.make(node.restore_new, 0o700)
        points.reach("restore.copying")
        with places.opened(node.restore_new) as top:
            count = _build(ctx, kept, op["keep"], top)
        taken = [int(name[len(REPLACED) :]) for name in observe.full(node)["replaced"]]
        intent = {
            "key": ctx.key,
            "id": kept["id"],
            "paths": kept["asked"]["paths"],
            "files": count,
            "replaced": f"{REPLACED}{max(taken, default=0) + 1}",
        }
        points.reach("restore.before-intent")
        with ctx.fence.act():
            files.write_atomic(node.restoring, files.to_json(intent))
    except (Fault, OSError, ReaderGone):
        if files.read_json(node.restoring) is None:
            places.remove_tree(node.restore_new)
        raise
    points.reach("restore.after-intent")
    return intent


def _through_directories(place: Place) -> None:
    """Conflict, before anything is done, when a link stands where a directory leads to a place."""
    for one in place.above():
        status = places.status(one)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise places.no_directory(str(one))


def _build(ctx: Context, kept: Dict[str, Any], keep: List[str], top: Directory) -> int:
    """The new trees: the snapshot's files, and of those to keep the newest, which is the one there."""
    count = 0
    source = ctx.node.snapshot(kept["id"]) / "files"
    newest = _newest(ctx.node, kept["asked"]["paths"], keep)
    for entry in kept["entries"]:
        path = entry["path"]
        if entry["type"] != "directory" and matches(path, keep):
            if path not in newest:
                raise Conflict(
                    f"{path} is to keep its newest version, but is not there any more; the older one"
                    " of the snapshot is not put back",
                    {"path": path},
                )
            continue
        _put_back(source / path, top / path, entry, ctx.pulse.tick)
        count += entry["type"] == "file"
    for path, status in newest.items():
        places.make_above(top / path, 0o755)
        entry = _copy_one(ctx.node.top / path, top / path, status, ctx.pulse.tick)
        if entry is not None:
            _dress(top / path, entry)
            count += entry["type"] == "file"
    directories = [one for one in kept["entries"] if one["type"] == "directory"]
    # Their names first: a directory that gets its own mode may be one that nobody reads.
    _sync_directories(top, [one["path"] for one in directories])
    for one in reversed(directories):
        _dress(top / one["path"], one)
    return count


def _newest(node: Node, paths: List[str], keep: List[str]) -> Dict[str, os.stat_result]:
    """The files that stay, from what is there now."""
    found: Dict[str, os.stat_result] = {}
    for path in paths:
        if not keep or not places.exists(node.top / path):
            continue
        tree = ((one, status) for one, status, _ in _tree(node.top / path))
        kept = ((one, status) for one, status in tree if not stat.S_ISDIR(status.st_mode))
        found.update((one, status) for one, status in kept if matches(one, keep))
    return found


def _put_back(source: Place, target: Place, entry: Entry, tick: Callable[[], None]) -> None:
    if entry["type"] == "directory":
        places.make_above(target, 0o755)
        places.make(target, 0o700, there=True)
        return
    places.make_above(target, 0o755)
    if entry["type"] == "link":
        places.link(target, entry["to"])
    else:
        found, size, _ = copy_file(source, target, tick)
        if found != entry["sha256"] or size != entry["size"]:
            raise DigestMismatch(
                f"the snapshot's {entry['path']} has other content", {"path": entry["path"]}
            )
    _dress(target, entry)


def _dress(target: Place, entry: Entry) -> None:
    """Give owner, mode and time as they were; owners only when we may."""
    if os.geteuid() == 0:
        with target.held() as (fd, name):
            os.chown(name, entry["uid"], entry["gid"], dir_fd=fd, follow_symlinks=False)
    if entry["type"] != "link":
        places.change_mode(target, entry["mode"])
    if "mtime" in entry:
        with target.held() as (fd, name):
            times = (entry["mtime"], entry["mtime"])
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)


def swap(node: Node, intent: Dict[str, Any]) -> None:
    """Do the renames of an intent that are not done yet. Each state tells which is next.

    For each path: old and new there → the old one is moved away; only new → it gets the name; no new →
    done. Callers hold `op.lock` and the fence.
    """
    away = node.snapshot(intent["replaced"])
    touched = [node.own, node.snapshots]
    for path in intent["paths"]:
        new, live, old = node.restore_new / path, node.top / path, away / path
        if not places.exists(new):
            continue
        if places.exists(live):
            if places.exists(old):
                raise HostError(
                    f"{live} came back in the middle of a restore: is the daemon stopped?"
                )
            places.make_above(old, 0o700)
            places.rename(live, old)
            touched += old.above()[-1:]
            points.reach("restore.between-renames")
        places.make_above(live, 0o755)
        places.rename(new, live)
        touched += [*live.above()[-1:], *new.above()[-1:]]
        points.reach("restore.between-paths")
    for place in touched:
        files.sync_dir(place)
    os.fsync(node.top.fd)


def finish(node: Node, fence: Fence) -> None:
    """Complete a swap that a session was killed in. The intent stays: it answers its key's retry."""
    if not places.exists(node.restore_new):
        return
    intent = files.read_json(node.restoring)
    if not isinstance(intent, dict):
        places.remove_tree(node.restore_new)
        return
    with fence.act():
        swap(node, intent)
    places.remove_tree(node.restore_new)
