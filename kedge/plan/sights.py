"""What looks at nodes say together: which release each is on, what runs, and what was ever started."""

from __future__ import annotations

from collections.abc import Mapping

from kedge.model.base import Json
from kedge.model.plan import Plan
from kedge.model.run import Observed

Sight = Mapping[str, Json]


def configuration_of(seen: Sight, *, edited: bool) -> tuple[str, ...]:
    """What a look says against the configuration of a node, for the release that it had before an upgrade.

    ``reconfigured``: another one than ran before; ``unsure``: nobody knows which one did; ``edited``: somebody changed it
    by hand. A host that never moved the node away from its release has nothing to compare with, and nothing to say.
    """
    running = bool(seen.get("running"))
    release = seen.get("running_release" if running else "release")
    found = seen.get("running_generation" if running else "generation")
    ran = seen.get("ran")
    said: list[str] = []
    if isinstance(ran, dict) and isinstance(release, str) and release in ran:
        if ran[release] is None:
            said.append("unsure")
        elif ran[release] != found:
            said.append("reconfigured")
    return (*said, "edited") if edited else tuple(said)


def sorted_sights(plan: Plan, sights: Mapping[int, Sight]) -> Observed:
    """Sort nodes by the release ``current`` points to; nodes without a sight are unreachable. Pure."""
    before = {artifact.digest for artifact in plan.before.artifacts}
    after = {artifact.digest for artifact in plan.after.artifacts}
    kinds: dict[str, list[int]] = {"before": [], "after": [], "other": [], "empty": []}
    stopped: list[int] = []
    started: list[int] = []
    mixed: list[int] = []
    configured: dict[str, list[int]] = {"reconfigured": [], "unsure": [], "edited": []}
    for index, sight in sights.items():
        digest = sight.get("release")
        runs = sight.get("running_release") or digest
        kind = "before" if digest in before else "after" if digest in after else "other"
        if runs not in before | after:
            kind = "other"
        elif runs != digest:
            mixed.append(index)
        kinds["empty" if digest is None else kind].append(index)
        if not sight.get("running"):
            stopped.append(index)
        # A host that does not say what it started last is taken to have started what it is on.
        if sight.get("started_release", digest) in after:
            started.append(index)
        said = sight.get("configuration")
        for one in said if isinstance(said, list) and kind == "before" else ():
            if isinstance(one, str) and one in configured:
                configured[one].append(index)
    return Observed(
        before=tuple(kinds["before"]),
        after=tuple(kinds["after"]),
        other=tuple(kinds["other"]),
        empty=tuple(kinds["empty"]),
        stopped=tuple(stopped),
        started_after=tuple(started),
        mixed=tuple(mixed),
        reconfigured=tuple(configured["reconfigured"]),
        unsure=tuple(configured["unsure"]),
        edited=tuple(configured["edited"]),
    )
