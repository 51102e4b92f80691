"""`check`: everything that can be known before the stop is looked at before the stop, while the daemon serves.

The release that comes and the one that a rollback needs are whole, what is to be executed is there and executable,
nobody edited the configuration by hand, secrets can be read, the snapshot has room, the one to restore is there.
Rule 14 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from kedge.host import baseline, configs, edits, launch, needs, observe, releases, room, secret
from kedge.host.errors import DigestMismatch, NoProgram, NoRelease
from kedge.host.layout import Node

if TYPE_CHECKING:
    from kedge.host.context import Context


def check(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Look at everything; raises the first thing that is wrong. Nothing that runs is changed."""
    node, tick = ctx.node, ctx.pulse.tick
    ctx.pulse.said = "looks at what the step after the stop will need"
    releases.verify(node, op["release"], tick)
    _way_back(ctx, op["back"])
    kept = _edits(ctx, op)
    _, written, known = configs.chosen(node, {**op, "files": {}})
    secret.resolve(ctx, written["secrets"])
    service = written["service"]
    needs.fits(ctx, {"user": service.get("user"), "ports": service.get("ports") or []})
    _program(node, service, op["release"])
    for one in op["programs"]:
        _executable(node, one["program"], one["program"], one["release"])
    result: Dict[str, Any] = {"bytes": None, "kept": kept}
    if op["snapshot"] is not None:
        result["bytes"] = room.for_snapshot(ctx, op["snapshot"], restored=op["restores"])
    if op["restore"] is not None:
        result["bytes"] = room.for_restore(ctx, op["restore"])
    if op["earlier"] is not None:
        result["known"] = known
    else:
        _note_baseline(ctx, op["release"])
    return result


def _way_back(ctx: Context, digest: Optional[str]) -> None:
    """The release that a rollback would switch to is whole; after the stop would be too late to learn that it is not."""
    if digest is None:
        return
    try:
        releases.verify(ctx.node, digest, ctx.pulse.tick)
    except (NoRelease, DigestMismatch) as fault:
        said = f"a rollback needs {fault.message}; the daemon was not stopped"
        raise type(fault)(said, {**fault.detail, "needed": digest}) from fault


def _edits(ctx: Context, op: Dict[str, Any]) -> Optional[str]:
    """Edits by hand in what runs, or on the way back in what would run; in what is about to be written too.

    On the way back the edits of the release that is left stay where they are: nothing of them is lost.
    """
    node, found = ctx.node, []
    if op["earlier"] is None:
        found = [edits.of_current(node), edits.of(node, op["generation"])]
    else:
        found = [edits.of_earlier(node, op["earlier"])]
    kept = None
    for edit in found:
        if edit is not None and (edit.moved or edits.of(node, edit.generation) is not None):
            kept = edits.settle(ctx, edit, op["anew"]) or kept
    return kept


def _note_baseline(ctx: Context, target: str) -> None:
    left = baseline.leaving(ctx.node, target)
    if left is not None:
        with ctx.fence.act():
            baseline.note(ctx.node, *left)


def _program(node: Node, service: Dict[str, Any], digest: str) -> None:
    """What the daemon executes, and every argument that names a file of the release, with this release as `current`."""
    argv: List[str] = service["argv"]
    told = service.get("env") or {}
    path = told.get("PATH")
    search = path if isinstance(path, str) else launch.ENVIRONMENT["PATH"]
    cwd = os.path.join(node.root, service.get("cwd") or ".")
    release = str(node.release(digest))
    found = launch.program_of(_in_release(node, argv[0], digest), release, cwd, search)
    _executable(node, argv[0], found, digest)
    for one in argv[1:]:
        there = _in_release(node, one, digest)
        if there != one and not os.path.lexists(there):
            raise NoProgram(
                f"{one} is named in the daemon's argv, and release {digest[:12]} does not have it;"
                " the daemon was not stopped",
                {"program": one, "release": digest},
            )


def _in_release(node: Node, path: str, digest: str) -> str:
    """A path below `current` as it will be once `current` is that release; any other as it stands."""
    current = str(node.current)
    if path != current and not path.startswith(f"{current}/"):
        return path
    return str(node.release(digest)) + path[len(current) :]


def _executable(node: Node, named: str, program: str, digest: str) -> None:
    """NoProgram unless a file is there and may be executed, and what its first line names too."""
    path = _in_release(node, program, digest)
    why = ""
    if "/" not in path:
        why = "is not on the daemon's PATH"
    elif not os.path.isfile(path):
        why = "is not there"
    elif not os.access(path, os.X_OK):
        why = "is not executable"
    else:
        interpreter = _interpreter(path)
        if interpreter and not os.access(_in_release(node, interpreter, digest), os.X_OK):
            why = f"wants {edits.shown(interpreter)}, which is not there or not executable"
    if why:
        raise NoProgram(
            f"{edits.shown(named)} {why} (release {digest[:12]}); the daemon was not stopped",
            {"program": named[:512], "release": digest},
        )


def _interpreter(path: str) -> str:
    """What the first line of a script names, or nothing."""
    try:
        with open(path, "rb") as script:
            first = script.readline(256)
    except OSError:
        return ""
    if not first.startswith(b"#!"):
        return ""
    words = first[2:].split()
    return words[0].decode("utf-8", "replace") if words and words[0].startswith(b"/") else ""


def stands(node: Node, name: str, recorded: Dict[str, Any]) -> bool:
    """Whether a recorded `check` answers for itself: the daemon it looked at does not run any more.

    While it does, the stop is still to come, and everything is looked at again.
    """
    if name != "check":
        return True
    one, _ = observe.running(node)
    return one is None or one.pid != recorded["before"].get("pid")
