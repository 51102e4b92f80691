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
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from kedge.host import files, observe, points
from kedge.host.errors import Conflict, DigestMismatch, Fault, HostError, NoSnapshot, ReaderGone
from kedge.host.fence import Fence
from kedge.host.layout import REPLACED, Node

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
    sibling = f"{node.snapshots}/{NEW}{name}"
    try:
        os.mkdir(sibling, 0o700)
        os.mkdir(f"{sibling}/files", 0o700)
        points.reach("snapshot.copying")
        kept = {"id": name, "asked": asked, "entries": _copy_out(ctx, op, f"{sibling}/files")}
        starts = observe.running(node)[1].get("starts", 0)
        kept.update(step=op["step"], before=op["before"], starts=starts, at=time.time())
        kept["digest"] = hashlib.sha256(files.to_json(kept["entries"])).hexdigest()
        files.write_new(f"{sibling}/manifest.json", files.to_json(kept))
        files.sync_dir(sibling)
        points.reach("snapshot.before-rename")
        with ctx.fence.act():
            os.rename(sibling, node.snapshot(name))
        points.reach("snapshot.after-rename")
        files.sync_dir(node.snapshots)
    except (Fault, OSError, ReaderGone):
        files.remove_tree(sibling)
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
    if os.path.isdir(node.snapshot(op["id"])):
        return str(op["id"])
    last = observe.running(node)[1]
    if op["before"] is None or last.get("release") != op["before"]:
        return None
    found: List[Tuple[float, str]] = []
    for name in observe.snapshots(node):
        kept = files.read_json(f"{node.snapshot(name)}/manifest.json")
        if (
            isinstance(kept, dict)
            and kept.get("step") == op["step"]
            and kept.get("before") == op["before"]
            and kept.get("starts") == last.get("first", 0) - 1
        ):
            found.append((kept["at"], name))
    return max(found)[1] if found else None


def manifest(node: Node, name: str) -> Dict[str, Any]:
    """What a snapshot holds; NoSnapshot when it is not there."""
    kept = files.read_json(f"{node.snapshot(name)}/manifest.json")
    if not isinstance(kept, dict) or "entries" not in kept:
        raise NoSnapshot(f"there is no complete snapshot {name!r} on this host")
    return kept


def _copy_out(ctx: Context, op: Dict[str, Any], top: str) -> List[Entry]:
    entries: List[Entry] = []
    for path in sorted(op["paths"]):
        if not os.path.lexists(f"{ctx.node.root}/{path}"):
            raise HostError(f"{path} is not there: a snapshot without it would be no way back")
        for one, status in _tree(ctx.node.root, path):
            if matches(one, op["keep_out"]):
                continue
            entry = _copy_one(f"{ctx.node.root}/{one}", f"{top}/{one}", status, ctx.pulse.tick)
            if entry is not None:
                entries.append({"path": one, **entry})
    _sync_directories(top, [one["path"] for one in entries if one["type"] == "directory"])
    return entries


def _tree(root: str, path: str) -> List[Tuple[str, os.stat_result]]:
    """A path of the root and everything below it, parents first; the parents of the path too."""
    found: List[Tuple[str, os.stat_result]] = []
    parts = path.split("/")
    for number in range(1, len(parts)):
        above = "/".join(parts[:number])
        found.append((above, os.lstat(f"{root}/{above}")))
        if not stat.S_ISDIR(found[-1][1].st_mode):
            raise Conflict(f"{above} is not a directory: it may lead out of the node's root")
    status = os.lstat(f"{root}/{path}")
    found.append((path, status))
    if stat.S_ISDIR(status.st_mode):
        found += [(f"{path}/{one}", told) for one, told in files.walk(f"{root}/{path}")]
    return found


def _copy_one(source: str, target: str, status: os.stat_result, tick: Callable[[], None]) -> Any:
    """Copy one thing; gives its entry, or None for what is no file of its own (sockets, fifos)."""
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        if not os.path.isdir(target):
            os.mkdir(target, 0o700)
        # Readable while it is filled; its own mode is in the entry and given at a restore.
        return {"type": "directory", "mode": mode, **_owner(status)}
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
        return {"type": "link", "to": os.readlink(source), **_owner(status)}
    if not stat.S_ISREG(status.st_mode):
        return None
    found, size = copy_file(source, target, tick)
    after = os.lstat(source)
    if (after.st_mtime_ns, after.st_size, after.st_ino) != (
        status.st_mtime_ns,
        status.st_size,
        status.st_ino,
    ):
        raise HostError(f"{source} changed while it was copied: is the daemon stopped?")
    told = {"type": "file", "mode": mode, "size": size, "sha256": found}
    return {**told, "mtime": status.st_mtime_ns, **_owner(status)}


def _owner(status: os.stat_result) -> Dict[str, int]:
    return {"uid": status.st_uid, "gid": status.st_gid}


def copy_file(source: str, target: str, tick: Callable[[], None]) -> Tuple[str, int]:
    """Copy the bytes of a regular file to a new one, durably; its sha256 and length.

    The blocks are shared where the file system can do that (never by a hard link: the daemon goes on
    writing to its file). What is hashed is what the copy holds.
    """
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        writing = os.open(target, flags, 0o600)
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
            return files.hash_fd(writing, tick)
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


def _sync_directories(top: str, paths: List[str]) -> None:
    for path in sorted(paths, reverse=True):
        files.sync_dir(f"{top}/{path}")
    files.sync_dir(top)


def clean(node: Node) -> None:
    """Remove what a killed copy or removal left behind. Callers hold `op.lock`."""
    for name in os.listdir(node.snapshots):
        if name.startswith(NEW):
            files.remove_tree(f"{node.snapshots}/{name}")


def remove(node: Node, name: str) -> None:
    """Remove a snapshot: at no instant does half of it have its name."""
    gone = f"{node.snapshots}/{NEW}gone"
    files.remove_tree(gone)
    os.rename(node.snapshot(name), gone)
    files.remove_tree(gone)


def restore(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Put the files of a snapshot back; what was there goes to `snapshots/replaced-<n>`."""
    node = ctx.node
    kept = manifest(node, standing(node, op) or op["id"])
    intent = files.read_json(node.restoring)
    if not isinstance(intent, dict) or intent.get("key") != ctx.key:
        if observe.running(node)[0] is not None:
            raise Conflict("the daemon runs: stop it before its files are replaced")
        ctx.acting()
        intent = _prepare(ctx, op, kept)
        with ctx.fence.act():
            points.reach("restore.before-renames")
            swap(node, intent)
        points.reach("restore.after-renames")
        files.remove_tree(node.restore_new)
    replaced = intent["replaced"]
    if op["drop_replaced"] and os.path.isdir(node.snapshot(replaced)):
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
    node, top = ctx.node, ctx.node.restore_new
    with ctx.fence.act():
        files.drop(node.restoring)
    files.remove_tree(top)
    try:
        os.mkdir(top, 0o700)
        points.reach("restore.copying")
        count = _build(ctx, kept, op["keep"])
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
            files.remove_tree(top)
        raise
    points.reach("restore.after-intent")
    return intent


def _build(ctx: Context, kept: Dict[str, Any], keep: List[str]) -> int:
    """The new trees: the snapshot's files, and of those to keep the newest, which is the one there."""
    top, count = ctx.node.restore_new, 0
    source = f"{ctx.node.snapshot(kept['id'])}/files"
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
        _put_back(f"{source}/{path}", f"{top}/{path}", entry, ctx.pulse.tick)
        count += entry["type"] == "file"
    for path, status in newest.items():
        _parents(top, path)
        entry = _copy_one(f"{ctx.node.root}/{path}", f"{top}/{path}", status, ctx.pulse.tick)
        if entry is not None:
            _dress(f"{top}/{path}", entry)
            count += entry["type"] == "file"
    directories = [one for one in kept["entries"] if one["type"] == "directory"]
    for one in reversed(directories):
        _dress(f"{top}/{one['path']}", one)
    _sync_directories(top, [one["path"] for one in directories])
    return count


def _newest(node: Node, paths: List[str], keep: List[str]) -> Dict[str, os.stat_result]:
    """The files that stay, from what is there now."""
    found: Dict[str, os.stat_result] = {}
    for path in paths:
        if not keep or not os.path.lexists(f"{node.root}/{path}"):
            continue
        tree = _tree(node.root, path)
        kept = [(one, told) for one, told in tree if not stat.S_ISDIR(told.st_mode)]
        found.update((one, told) for one, told in kept if matches(one, keep))
    return found


def _parents(top: str, path: str) -> None:
    os.makedirs(os.path.dirname(f"{top}/{path}"), 0o755, exist_ok=True)


def _put_back(source: str, target: str, entry: Entry, tick: Callable[[], None]) -> None:
    if entry["type"] == "directory":
        os.makedirs(target, 0o700, exist_ok=True)
        return
    _parents(os.path.dirname(target), os.path.basename(target))
    if entry["type"] == "link":
        os.symlink(entry["to"], target)
    else:
        found, size = copy_file(source, target, tick)
        if found != entry["sha256"] or size != entry["size"]:
            raise DigestMismatch(
                f"the snapshot's {entry['path']} has other content", {"path": entry["path"]}
            )
    _dress(target, entry)


def _dress(target: str, entry: Entry) -> None:
    """Give owner, mode and time as they were; owners only when we may."""
    if os.geteuid() == 0:
        os.chown(target, entry["uid"], entry["gid"], follow_symlinks=False)
    if entry["type"] != "link":
        os.chmod(target, entry["mode"])
    if "mtime" in entry:
        os.utime(target, ns=(entry["mtime"], entry["mtime"]))


def swap(node: Node, intent: Dict[str, Any]) -> None:
    """Do the renames of an intent that are not done yet. Each state tells which is next.

    For each path: old and new there → the old one is moved away; only new → it gets the name; no new →
    done. Callers hold `op.lock` and the fence.
    """
    away = node.snapshot(intent["replaced"])
    touched = {node.own, node.snapshots}
    for path in intent["paths"]:
        new, live, old = f"{node.restore_new}/{path}", f"{node.root}/{path}", f"{away}/{path}"
        if not os.path.lexists(new):
            continue
        if os.path.lexists(live):
            if os.path.lexists(old):
                raise HostError(
                    f"{live} came back in the middle of a restore: is the daemon stopped?"
                )
            os.makedirs(os.path.dirname(old), 0o700, exist_ok=True)
            os.rename(live, old)
            touched.add(os.path.dirname(old))
            points.reach("restore.between-renames")
        os.makedirs(os.path.dirname(live), 0o755, exist_ok=True)
        os.rename(new, live)
        touched |= {os.path.dirname(live), os.path.dirname(new)}
        points.reach("restore.between-paths")
    for path in sorted(touched):
        files.sync_dir(path)


def finish(node: Node, fence: Fence) -> None:
    """Complete a swap that a session was killed in. The intent stays: it answers its key's retry."""
    if not os.path.lexists(node.restore_new):
        return
    intent = files.read_json(node.restoring)
    if not isinstance(intent, dict):
        files.remove_tree(node.restore_new)
        return
    with fence.act():
        swap(node, intent)
    files.remove_tree(node.restore_new)
