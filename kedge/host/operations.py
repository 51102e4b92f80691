"""The table of operations: each name and the function that does it."""

from __future__ import annotations

from typing import Any, Callable, Dict

from kedge.host import (
    configs,
    edits,
    init,
    observe,
    preflight,
    probes,
    prune,
    releases,
    restores,
    runs,
    secret,
    services,
    snapshots,
    stops,
)
from kedge.host.context import Context

WORDS = 300

Act = Callable[[Context, Dict[str, Any]], Dict[str, Any]]


def _fence(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """The session raised the fence before its first operation; its token is the answer."""
    del op
    return {"token": list(ctx.fence.token)}


def _observe(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """The whole observation, and of a daemon that should run and does not the last line that it wrote."""
    del op
    seen = {**observe.full(ctx.node), "edited": edits.names_now(ctx.node)}
    if not seen["should_run"] or seen["running"]:
        return seen
    lines = services.service_of(ctx.node).last_words().strip().splitlines()
    return {**seen, "words": ctx.told.text(lines[-1])[:WORDS] if lines else ""}


def _verify(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Every file of a release against its manifest."""
    listed = releases.verify(ctx.node, op["digest"], ctx.pulse.tick)
    return {"files": len(listed["files"])}


OPERATIONS: Dict[str, Act] = {
    "fence": _fence,
    "observe": _observe,
    "secrets": secret.check,
    "stage": releases.stage,
    "verify": _verify,
    "check": preflight.check,
    "stop": stops.stop,
    "start": services.start,
    "switch": releases.switch,
    "configure": configs.configure,
    "init": init.init,
    "snapshot": snapshots.snapshot,
    "restore": restores.restore,
    "probe": probes.probe,
    "healthy": probes.healthy,
    "run": runs.run,
    "ensure": services.ensure,
    "prune": prune.prune,
}
