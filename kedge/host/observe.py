"""What is there: which release and configuration, what runs, what should run.

Everything is looked at anew, from links, processes and files; what is remembered between looks is known to be
the same still.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from kedge.host import files, places, processes
from kedge.host.layout import DIGEST, NAME, REPLACED, Node
from kedge.host.places import Place
from kedge.host.processes import Incarnation

NAMES_MAX = 4096


def current_release(node: Node) -> Optional[str]:
    """The digest `current` points to, or None when there is no such link."""
    target = files.link_target(node.current) or ""
    prefix, _, digest = target.rpartition("/")
    return digest if prefix == "releases" and DIGEST.match(digest) else None


def current_config(node: Node) -> Optional[str]:
    """The generation `config/current` points to, or None."""
    target = files.link_target(node.config_current)
    return target if target and NAME.match(target) else None


def running(node: Node) -> Tuple[Optional[Incarnation], Dict[str, Any]]:
    """The daemon that kedge started and that still lives, and what was kept about its start."""
    try:
        kept = node.kept_service.value()
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        return None, {}
    return processes.known(kept), kept


def running_release(node: Node, one: Incarnation, kept: Dict[str, Any]) -> Optional[str]:
    """The release a daemon runs: by its executable where that is in a release, else as kept.

    A script runs by its interpreter, which is in no release.
    """
    program = processes.executable(one.pid)
    if "/releases/" in program:
        top = node.real_releases()
        digest = program[len(top) + 1 :].partition("/")[0]
        if program.startswith(f"{top}/") and DIGEST.match(digest):
            return digest
    told = kept.get("release")
    return told if isinstance(told, str) else None


def brief(node: Node) -> Dict[str, Any]:
    """What each operation is recorded with, before and after."""
    one, kept = running(node)
    return {
        "release": current_release(node),
        "generation": current_config(node),
        "running": one is not None,
        "pid": one.pid if one else None,
        "running_release": running_release(node, one, kept) if one else None,
        "running_generation": kept.get("generation") if one else None,
        "should_run": places.exists(node.should_run),
    }


def full(node: Node) -> Dict[str, Any]:
    """The observation a session ends with: `brief`, the fence and what is stored."""
    fence = files.read_json(node.fence)
    _, kept = running(node)
    return {
        **brief(node),
        # Also of a daemon that is gone: a start that failed may have touched the data all the same.
        "started_release": kept.get("release"),
        # Which configuration ran with each release before the node was moved away from it.
        "ran": ran(node),
        "token": fence.get("token") if isinstance(fence, dict) else None,
        "run": fence.get("run") if isinstance(fence, dict) else None,
        "releases": [name for name in _names(node.releases) if DIGEST.match(name)],
        "generations": [name for name in _names(node.configs) if name != "current"],
        "snapshots": snapshots(node),
        "replaced": [name for name in _names(node.snapshots) if name.startswith(REPLACED)],
    }


def ran(node: Node) -> Dict[str, Optional[str]]:
    """The generation that ran with each release before the node was moved away from it, oldest first; null: unknown."""
    kept = files.read_json(node.baseline)
    # A list of pairs: sorted keys would lose the order.
    return {
        release: generation
        for release, generation in (kept if isinstance(kept, list) else [])
        if DIGEST.match(release) and (generation is None or is_generation(generation))
    }


def is_generation(value: object) -> bool:
    """Whether a value is the name of a generation."""
    return isinstance(value, str) and NAME.match(value) is not None


def snapshots(node: Node) -> List[str]:
    """The complete snapshots."""
    return [name for name in _names(node.snapshots) if not name.startswith(REPLACED)]


def _names(place: Place) -> List[str]:
    """Names that kedge may have given: what else somebody put there is not told."""
    return [name for name in places.listed(place) if NAME.match(name)][:NAMES_MAX]
