"""Configuration by generations: a directory of files and `service.json`, and a link to the current one.

A generation is written beside, renamed into place and never changed again. What kedge wrote is kept in
`.kedge/written/<generation>.json` too: by that an edit by hand is found, and a generation can be written again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from kedge.host import baseline, files, observe, places, points, secret, users
from kedge.host.errors import Conflict, DigestMismatch, Fault
from kedge.host.layout import Node
from kedge.host.places import Place

if TYPE_CHECKING:
    from kedge.host.context import Context

SERVICE = "service.json"
NEW = ".new-"
Written = Dict[str, Any]
"""What makes a generation: `files`, `service` and `secrets`, as an operation has them."""


def configure(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Write a generation unless it is there, and point `config/current` at it.

    With `earlier` it is the generation that ran with that release before it was moved away; the one given is for
    a host that does not know (`known` says which of the two it was).
    """
    node = ctx.node
    generation, written, known = chosen(node, op)
    _write_generation(ctx, generation, written)
    result = {"from": ctx.before["generation"], "to": generation}
    if op["earlier"] is None:
        return result
    if not known:
        # Every look says from now on that nobody knows, whatever is started.
        with ctx.fence.act():
            baseline.note(node, op["earlier"], None)
    return {**result, "known": known}


def chosen(node: Node, op: Dict[str, Any]) -> Tuple[str, Written, bool]:
    """The generation that an operation means, what makes it, and whether the host knew it by itself."""
    given = {name: op[name] for name in ("files", "service", "secrets")}
    if op["earlier"] is None:
        return op["generation"], given, True
    generation = baseline.before(node, op["earlier"])
    written = as_written(node, generation) if generation is not None else None
    if generation is None or written is None:
        return op["generation"], given, False
    return generation, written, True


def as_written(node: Node, generation: str) -> Optional[Written]:
    """What makes a generation that this host has or had; None when neither it nor what kedge wrote is there.

    One that was written before kedge kept that is read from its directory.
    """
    kept = recorded(node, generation)
    if kept is not None:
        return kept
    top = node.config(generation)
    if not places.is_directory(top):
        return None
    service = files.read_json(top / SERVICE)
    if not isinstance(service, dict):
        return None
    recipe = files.read_json(top / secret.RECIPE) or {}
    texts: Dict[str, Any] = dict(recipe.get("files") or {})
    for path, status, place in places.walk(top):
        if stat.S_ISREG(status.st_mode) and path not in (SERVICE, secret.RECIPE):
            texts[path] = (files.read_bytes(place) or b"").decode("utf-8", "replace")
    return {"files": texts, "service": service, "secrets": recipe.get("sources") or {}}


def recorded(node: Node, generation: str) -> Optional[Written]:
    """What kedge wrote as a generation, or None when that was not kept."""
    kept = files.read_json(node.written(generation))
    return kept if isinstance(kept, dict) and "service" in kept else None


def _write_generation(ctx: Context, generation: str, written: Written) -> None:
    node = ctx.node
    content, mixed = content_of(written)
    values = secret.resolve(ctx, written["secrets"])
    there = places.exists(node.config(generation))
    if there:
        check(node, generation, content, mixed)
        if recorded(node, generation) is None:
            _keep_written(node, generation, written)
        if mixed:
            # A secret that was changed since is taken up here.
            with ctx.fence.act():
                secret.write(node, generation, mixed, values)
        if observe.current_config(node) == generation:
            return
    ctx.acting()
    clean(node)
    sibling = node.configs / f"{NEW}{generation}"
    if not there:
        _write(sibling, content)
        for name in mixed:
            _place_link(sibling, generation, name)
        _keep_written(node, generation, written)
    with ctx.fence.act():
        if not there:
            secret.write(node, generation, mixed, values)
        points.reach("configure.before-rename")
        if not there:
            places.rename(sibling, node.config(generation))
        points.reach("configure.between-renames")
        users.give(node, generation, users.of_spec(node, written["service"]))
        files.relink(node.config_current, generation)
        points.reach("configure.after-rename")


def _keep_written(node: Node, generation: str, written: Written) -> None:
    places.make(node.written_texts, 0o700, there=True)
    files.write_atomic(node.written(generation), files.to_json(written))


def content_of(written: Written) -> Tuple[Dict[str, bytes], Dict[str, Any]]:
    """The files of a generation as they are kept in it, and those with secrets, which are kept elsewhere."""
    mixed = {name: one for name, one in written["files"].items() if not isinstance(one, str)}
    content = {name: one.encode() for name, one in written["files"].items() if name not in mixed}
    content[SERVICE] = files.to_json(written["service"])
    if written["secrets"]:
        content[secret.RECIPE] = files.to_json({"sources": written["secrets"], "files": mixed})
    return content, mixed


def _place_link(sibling: Place, generation: str, name: str) -> None:
    """A file with secrets lies below `.kedge`, so that no copy of the configuration has it."""
    place = sibling / name
    places.make_above(place, 0o755)
    places.link(place, secret.link(generation, name))
    files.sync_above(place)


def _write(sibling: Place, content: Dict[str, bytes]) -> None:
    try:
        places.make(sibling, 0o755)
        directories = [sibling]
        for name, text in sorted(content.items()):
            for above in (sibling / name).above()[len(sibling.names) :]:
                if not places.exists(above):
                    places.make(above, 0o755)
                    directories.append(above)
            # Configuration may hold secrets: only the daemon's own user reads it.
            files.write_new(sibling / name, text, 0o600)
        for place in reversed(directories):
            files.sync_dir(place)
    except (Fault, OSError):
        places.remove_tree(sibling)
        raise


def found(node: Node, generation: str, mixed: Dict[str, Any]) -> Dict[str, bytes]:
    """The files of a generation as they are there now; of files with secrets where their links lead."""
    there: Dict[str, bytes] = {}
    for path, status, place in places.walk(node.config(generation)):
        if stat.S_ISREG(status.st_mode):
            there[path] = files.read_bytes(place) or b""
        elif path in mixed:
            there[path] = os.fsencode(files.link_target(place) or "")
        elif not stat.S_ISDIR(status.st_mode):
            there[path] = b""
    return there


def links(generation: str, mixed: Dict[str, Any]) -> Dict[str, bytes]:
    """Where the names of a generation's files with secrets lead."""
    return {name: secret.link(generation, name).encode() for name in mixed}


def check(node: Node, generation: str, content: Dict[str, bytes], mixed: Dict[str, Any]) -> None:
    """Check that a generation on the host is what the caller calls by that name; of `mixed` files, that they lie
    where files with secrets do: their recipe is among `content`.
    """
    content = {**content, **links(generation, mixed)}
    there = found(node, generation, mixed)
    if there != content:
        differing = sorted(
            name for name in {*there, *content} if there.get(name) != content.get(name)
        )
        raise DigestMismatch(
            f"generation {generation} on this host has other content: {', '.join(differing[:8])}",
            {"generation": generation, "files": differing[:32]},
        )


def write_again(ctx: Context, generation: str) -> None:
    """Make a generation what kedge wrote as it; what is there goes to `.kedge/edits`. Callers hold the fence."""
    node = ctx.node
    written = recorded(node, generation)
    if written is None:
        raise Conflict(f"what kedge wrote as generation {generation} is not on this host any more")
    content, mixed = content_of(written)
    values = secret.resolve(ctx, written["secrets"])
    clean(node)
    sibling = node.configs / f"{NEW}{generation}"
    _write(sibling, content)
    for name in mixed:
        _place_link(sibling, generation, name)
    places.make(node.edits, 0o700, there=True)
    taken = [int(name.rpartition("-")[2]) for name in places.listed(node.edits)]
    if places.exists(node.config(generation)):
        aside = node.edits / f"{generation}-{max(taken, default=0) + 1}"
        places.rename(node.config(generation), aside)
    places.rename(sibling, node.config(generation))
    # Of files with secrets no copy is kept: every start writes them anew.
    secret.write(node, generation, mixed, values)
    for place in (node.configs, node.edits):
        files.sync_dir(place)


def clean(node: Node) -> None:
    """Remove what a killed `configure` left behind. Callers hold `op.lock`."""
    for name in places.listed(node.configs):
        if name.startswith(NEW):
            places.remove_tree(node.configs / name)


def service_spec(node: Node, generation: str) -> Dict[str, Any]:
    """How the daemon of a generation is run; Conflict when the node was never configured."""
    kept = files.read_json(node.config(generation) / SERVICE)
    if not isinstance(kept, dict) or not kept.get("argv"):
        raise Conflict("the node has no configuration that says what to run: configure it first")
    return kept
