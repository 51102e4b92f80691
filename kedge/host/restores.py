"""The way back from a snapshot: built beside, checked against its manifest, swapped by renames.

What is about to be swapped is written down before; a session that finds a half-done swap completes it before anything
else. Data behind links are put back where the links lead (`anchors`).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple

from kedge.host import anchors, family, files, observe, places, points
from kedge.host.anchors import Anchors
from kedge.host.errors import Conflict, DigestMismatch, Fault, HostError, ReaderGone
from kedge.host.fence import Fence
from kedge.host.layout import REPLACED, Node
from kedge.host.places import Directory, Place
from kedge.host.snapshots import Entry, copy_file, copy_one, manifest, remove, standing
from kedge.host.survey import Survey, matches, outermost

if TYPE_CHECKING:
    from kedge.host.context import Context


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
    forget(node, ctx.fence)
    with can_be_restored(node, kept) as elsewhere:
        try:
            # Where else something is built is known before it is: a session that was killed leaves nothing behind.
            files.write_atomic(node.restoring_elsewhere, files.to_json(elsewhere.known))
            places.make(node.restore_new, 0o700)
            points.reach("restore.copying")
            with places.opened(node.restore_new) as top:
                count = _build(ctx, kept, op["keep"], (top, elsewhere))
            taken = [int(name[len(REPLACED) :]) for name in observe.full(node)["replaced"]]
            led = {one["path"] for one in elsewhere.known}
            intent = {
                "key": ctx.key,
                "id": kept["id"],
                "paths": [one for one in outermost(kept["asked"]["paths"]) if one not in led],
                "elsewhere": elsewhere.known,
                "files": count,
                "replaced": f"{REPLACED}{max(taken, default=0) + 1}",
            }
            points.reach("restore.before-intent")
            with ctx.fence.act():
                files.write_atomic(node.restoring, files.to_json(intent))
        except (Fault, OSError, ReaderGone):
            if files.read_json(node.restoring) is None:
                elsewhere.forget_new()
                places.remove_tree(node.restore_new)
            raise
    points.reach("restore.after-intent")
    return intent


def is_being_restored(node: Node, name: str, run: str) -> bool:
    """Whether a restore of a snapshot was begun or done in this run: its intent says so, and answers its key."""
    intent = files.read_json(node.restoring)
    return (
        isinstance(intent, dict)
        and intent.get("id") == name
        and str(intent.get("key")).startswith(f"{run}@")
    )


def can_be_restored(node: Node, kept: Dict[str, Any]) -> Anchors:
    """What a snapshot's links lead to now; Conflict, before anything is done, for what no renames can replace."""
    led = {entry["path"] for entry in kept["entries"] if "followed" in entry}
    paths = outermost(kept["asked"]["paths"])
    for path in paths:
        _through_directories(node.top / path)
    anchors.check_below_root(node, [path for path in paths if path not in led])
    return anchors.resolve(node, kept["entries"])


def forget(node: Node, fence: Fence) -> None:
    """Remove the intent of an earlier restore, and what was built for one that never had its intent."""
    with fence.act():
        files.drop(node.restoring)
    with Anchors(files.read_json(node.restoring_elsewhere) or []) as elsewhere:
        elsewhere.forget_new()
    places.remove_tree(node.restore_new)


def _through_directories(place: Place) -> None:
    """Conflict, before anything is done, when a link stands where a directory leads to a place."""
    for one in place.above():
        status = places.status(one)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            raise places.no_directory(str(one))


def _build(
    ctx: Context, kept: Dict[str, Any], keep: List[str], where: Tuple[Directory, Anchors]
) -> int:
    """The new trees: the snapshot's files, and of those to keep the newest, which is the one there."""
    count = 0
    top, elsewhere = where
    source = ctx.node.snapshot(kept["id"]) / "files"
    newest = newest_of(ctx, kept, keep)
    for entry in kept["entries"]:
        path = entry["path"]
        if "followed" in entry and path not in outermost(kept["asked"]["paths"]):
            _link_again(ctx.node, path, where)
        if path in newest or (entry["type"] != "directory" and matches(path, keep)):
            continue
        _put_back(source / path, elsewhere.new(top, path), entry, ctx.pulse.tick)
        count += entry["type"] == "file"
    for path, status in newest.items():
        target = elsewhere.new(top, path)
        places.make_above(target, 0o755)
        entry = copy_one(elsewhere.live(ctx.node, path), target, status, ctx.pulse.tick)
        if entry is not None:
            _dress(target, entry)
            count += entry["type"] == "file"
    directories = [one for one in kept["entries"] if one["type"] == "directory"]
    # Their names first: a directory that gets its own mode may be one that nobody reads.
    for path in sorted((one["path"] for one in directories), reverse=True):
        files.sync_dir(elsewhere.new(top, path))
    os.fsync(top.fd)
    for one in reversed(directories):
        _dress(elsewhere.new(top, one["path"]), one)
    return count


def _link_again(node: Node, path: str, where: Tuple[Directory, Anchors]) -> None:
    """A link whose data are restored where it leads stays, as it is now."""
    top, elsewhere = where
    to = files.link_target(elsewhere.live(node, path, outer=True))
    if to is None:
        raise Conflict(f"{path} is not a link any more: is the daemon stopped?")
    link = elsewhere.new(top, path, outer=True)
    places.make_above(link, 0o755)
    places.link(link, to)


def newest_of(ctx: Context, kept: Dict[str, Any], keep: List[str]) -> Dict[str, os.stat_result]:
    """The files that stay, from what is there now; Conflict when one of them is not there any more."""
    found: Dict[str, os.stat_result] = {}
    if not keep:
        return found
    node, asked = ctx.node, kept["asked"]
    led = [entry["path"] for entry in kept["entries"] if "followed" in entry]
    for path in outermost(asked["paths"]):
        if not places.exists(node.top / path):
            continue
        spec = {"paths": [path], "keep_out": [], "follow": led, "keep_links": ["*"]}
        for one in Survey(node, spec, ctx.pulse.tick).walk():
            if not stat.S_ISDIR(one.status.st_mode) and matches(one.path, keep):
                found[one.path] = one.status
    for entry in kept["entries"]:
        path = entry["path"]
        if entry["type"] != "directory" and matches(path, keep) and path not in found:
            raise Conflict(
                f"{path} is to keep its newest version, but is not there any more; the older one"
                " of the snapshot is not put back",
                {"path": path},
            )
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
    with Anchors(intent.get("elsewhere") or []) as elsewhere:
        below = [
            (node.restore_new / path, node.top / path, away / path) for path in intent["paths"]
        ]
        if elsewhere.known:
            anchors.note_replaced(away, elsewhere.replaced(intent["replaced"]))
        for unit in [*below, *elsewhere.units(intent["replaced"])]:
            _swap_one(*unit)
        for place in touched:
            files.sync_dir(place)
    os.fsync(node.top.fd)


def _swap_one(new: Place, live: Place, old: Place) -> None:
    if not places.exists(new):
        return
    if places.exists(live):
        if places.exists(old):
            raise HostError(f"{live} came back in the middle of a restore: is the daemon stopped?")
        places.make_above(old, 0o700)
        places.rename(live, old)
        files.sync_above(old)
        points.reach("restore.between-renames")
    places.make_above(live, 0o755)
    places.rename(new, live)
    files.sync_above(live)
    files.sync_above(new)
    points.reach("restore.between-paths")


def finish(node: Node, fence: Fence) -> None:
    """Complete a swap that a session was killed in. The intent stays: it answers its key's retry."""
    if not places.exists(node.restore_new):
        return
    intent = files.read_json(node.restoring)
    if not isinstance(intent, dict):
        forget(node, fence)
        return
    with fence.act():
        swap(node, intent)
    places.remove_tree(node.restore_new)
