"""Remove what is not needed any more: releases and snapshots that are not named to be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List

from kedge.host import files, observe, places, points, releases, snapshots
from kedge.host.layout import DIGEST, Node

if TYPE_CHECKING:
    from kedge.host.context import Context


def prune(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Remove what is not kept. The current release and the one that runs are always kept."""
    node = ctx.node
    doomed = [one for one in _releases(node) if one not in op["releases"]]
    saved = [one for one in _snapshots(node) if one not in op["snapshots"]]
    if doomed or saved:
        ctx.acting()
    releases.clean(node)
    snapshots.clean(node)
    for digest in doomed:
        ctx.pulse.tick()
        with ctx.fence.act():
            releases.remove(node, digest)
        points.reach("prune.between")
    for name in saved:
        ctx.pulse.tick()
        with ctx.fence.act():
            snapshots.remove(node, name)
    if doomed or saved:
        files.sync_dir(node.releases)
        files.sync_dir(node.snapshots)
    return {"removed": [*doomed, *saved]}


def _releases(node: Node) -> List[str]:
    one, kept = observe.running(node)
    used = {observe.current_release(node)}
    if one is not None:
        used |= {observe.running_release(node, one, kept), kept.get("release")}
    found = sorted(name for name in places.listed(node.releases) if DIGEST.match(name))
    return [name for name in found if name not in used]


def _snapshots(node: Node) -> List[str]:
    return sorted(name for name in places.listed(node.snapshots) if not name.startswith("."))
