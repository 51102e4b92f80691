"""Which configuration ran with a release before the node was moved away from it: `.kedge/baseline.json`.

Written before the stop of an upgrade, read by the configuration step of a rollback and by every look. Of each
release the last generation counts; null: nobody knows which one ran.
"""

from __future__ import annotations

from typing import Optional, Tuple

from kedge.host import files, observe
from kedge.host.layout import Node

MAX_RELEASES = 8


def note(node: Node, release: str, generation: Optional[str]) -> None:
    """Write down what ran with a release. Callers hold `op.lock` and the fence."""
    known = observe.ran(node)
    if release in known and known[release] == generation:
        return
    known.pop(release, None)
    kept = [*known.items(), (release, generation)][-MAX_RELEASES:]
    files.write_atomic(node.baseline, files.to_json(kept))


def leaving(node: Node, target: str) -> Optional[Tuple[str, Optional[str]]]:
    """What was started last, with its configuration, when that is another release than `target`."""
    kept = observe.running(node)[1]
    release, generation = kept.get("release"), kept.get("generation")
    if not isinstance(release, str) or release == target:
        return None
    return release, generation if observe.is_generation(generation) else None


def before(node: Node, release: str) -> Optional[str]:
    """The generation that ran with `release` before an upgrade, or None when nobody knows.

    A node that never started another release since has it still.
    """
    known = observe.ran(node)
    if release in known:
        return known[release]
    kept = observe.running(node)[1]
    generation = kept.get("generation")
    return (
        generation if kept.get("release") == release and observe.is_generation(generation) else None
    )
