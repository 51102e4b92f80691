"""Configuration by generations: a directory of files and `service.json`, and a link to the current one.

A generation is written beside, renamed into place and never changed again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Dict, Tuple

from kedge.host import files, observe, places, points, secret, users
from kedge.host.errors import Conflict, DigestMismatch, Fault
from kedge.host.layout import Node
from kedge.host.places import Place

if TYPE_CHECKING:
    from kedge.host.context import Context

SERVICE = "service.json"
NEW = ".new-"


def configure(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Write a generation unless it is there, and point `config/current` at it."""
    node, generation = ctx.node, op["generation"]
    content, mixed = _content(op)
    values = secret.resolve(ctx, op["secrets"])
    result = {"from": ctx.before["generation"], "to": generation}
    there = places.exists(node.config(generation))
    if there:
        check(node, generation, content, mixed)
        if mixed:
            # A secret that was changed since is taken up here.
            with ctx.fence.act():
                secret.write(node, generation, mixed, values)
        if observe.current_config(node) == generation:
            return result
    ctx.acting()
    clean(node)
    sibling = node.configs / f"{NEW}{generation}"
    if not there:
        _write(sibling, content)
        for name in mixed:
            _place_link(sibling, generation, name)
    with ctx.fence.act():
        if not there:
            secret.write(node, generation, mixed, values)
        points.reach("configure.before-rename")
        if not there:
            places.rename(sibling, node.config(generation))
        points.reach("configure.between-renames")
        users.give(node, generation, users.of_spec(node, op["service"]))
        files.relink(node.config_current, generation)
        points.reach("configure.after-rename")
    return result


def _content(op: Dict[str, Any]) -> Tuple[Dict[str, bytes], Dict[str, Any]]:
    """The files of a generation as they are kept in it, and those with secrets, which are kept elsewhere."""
    mixed = {name: one for name, one in op["files"].items() if not isinstance(one, str)}
    content = {name: one.encode() for name, one in op["files"].items() if name not in mixed}
    content[SERVICE] = files.to_json(op["service"])
    if op["secrets"]:
        content[secret.RECIPE] = files.to_json({"sources": op["secrets"], "files": mixed})
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


def check(node: Node, generation: str, content: Dict[str, bytes], mixed: Dict[str, Any]) -> None:
    """Check that a generation on the host is what the caller calls by that name; of `mixed` files, that they lie
    where files with secrets do: their recipe is among `content`.
    """
    top = node.config(generation)
    links = {name: secret.link(generation, name).encode() for name in mixed}
    content = {**content, **links}
    found: Dict[str, bytes] = {}
    for path, status, place in places.walk(top):
        if stat.S_ISREG(status.st_mode):
            found[path] = files.read_bytes(place) or b""
        elif path in links:
            found[path] = os.fsencode(files.link_target(place) or "")
        elif not stat.S_ISDIR(status.st_mode):
            found[path] = b""
    if found != content:
        differing = sorted(
            name for name in {*found, *content} if found.get(name) != content.get(name)
        )
        raise DigestMismatch(
            f"generation {generation} on this host has other content: {', '.join(differing[:8])}",
            {"generation": generation, "files": differing[:32]},
        )


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
