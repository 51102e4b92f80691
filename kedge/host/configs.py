"""Configuration by generations: a directory of files and `service.json`, and a link to the current one.

A generation is written beside, renamed into place and never changed again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Dict

from kedge.host import files, observe, points
from kedge.host.errors import Conflict, DigestMismatch, Fault
from kedge.host.layout import Node

if TYPE_CHECKING:
    from kedge.host.context import Context

SERVICE = "service.json"
NEW = ".new-"


def configure(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Write a generation unless it is there, and point `config/current` at it."""
    node, generation = ctx.node, op["generation"]
    content = {name: text.encode() for name, text in op["files"].items()}
    content[SERVICE] = files.to_json(op["service"])
    result = {"from": ctx.before["generation"], "to": generation}
    there = os.path.lexists(node.config(generation))
    if there:
        check(node, generation, content)
        if observe.current_config(node) == generation:
            return result
    ctx.acting()
    clean(node)
    sibling = f"{node.configs}/{NEW}{generation}"
    if not there:
        _write(sibling, content)
    with ctx.fence.act():
        points.reach("configure.before-rename")
        if not there:
            os.rename(sibling, node.config(generation))
        points.reach("configure.between-renames")
        files.relink(node.config_current, generation)
        points.reach("configure.after-rename")
    return result


def _write(sibling: str, content: Dict[str, bytes]) -> None:
    try:
        directories = {sibling}
        os.mkdir(sibling, 0o755)
        for name, text in sorted(content.items()):
            parent = os.path.dirname(f"{sibling}/{name}")
            while parent not in directories:
                os.makedirs(parent, 0o755, exist_ok=True)
                directories.add(parent)
                parent = os.path.dirname(parent)
            # Configuration may hold secrets: only the daemon's own user reads it.
            files.write_new(f"{sibling}/{name}", text, 0o600)
        for path in sorted(directories, reverse=True):
            files.sync_dir(path)
    except (Fault, OSError):
        files.remove_tree(sibling)
        raise


def check(node: Node, generation: str, content: Dict[str, bytes]) -> None:
    """Check that a generation on the host is what the caller calls by that name."""
    top = node.config(generation)
    found: Dict[str, bytes] = {}
    for path, status in files.walk(top):
        if stat.S_ISREG(status.st_mode):
            found[path] = files.read_bytes(f"{top}/{path}") or b""
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
    for name in os.listdir(node.configs):
        if name.startswith(NEW):
            files.remove_tree(f"{node.configs}/{name}")


def service_spec(node: Node, generation: str) -> Dict[str, Any]:
    """How the daemon of a generation is run; Conflict when the node was never configured."""
    kept = files.read_json(f"{node.config(generation)}/{SERVICE}")
    if not isinstance(kept, dict) or not kept.get("argv"):
        raise Conflict("the node has no configuration that says what to run: configure it first")
    return kept
