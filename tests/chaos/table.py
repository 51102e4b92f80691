"""Every instant at which somebody is killed.

A point of the host program is reached by one node, so one run is killed at many of them at once: each node of the
fleet stands at another point of the same step when the blow comes. A point of the worker stops the whole worker, so
each has a run of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.chaos.theatre import Kind

SESSION = ("session.before", "fence.before", "fence.raised")

HOST: dict[str, tuple[str, ...]] = {
    "session": SESSION,
    "stage": ("before", "acting", "unpacking", "before-rename", "after-rename"),
    "probe": ("before",),
    "check": ("before",),
    "stop": ("before", "acting", "before-signal", "between-signal-and-note", "after-signal"),
    "snapshot": ("before", "acting", "copying", "before-rename", "after-rename"),
    "switch": ("before", "acting", "before-rename", "after-rename"),
    "configure": ("before", "acting", "before-rename", "between-renames", "after-rename"),
    "run": ("before", "acting", "intent", "forked", "before-spawn", "spawned", "outcome"),
    "start": (
        "before", "acting", "forked", "before-record", "between-fork-and-exec", "after-exec",
    ),
    "healthy": ("before",),
}  # fmt: skip
"""By step of a node's leg: the points up to the act. Each is followed by ``acted`` (observed, not yet in the
journal), ``recorded`` (in the journal, nobody was told) and ``told``."""

KINDS: tuple[Kind, ...] = ("host", "worker", "engine", "all", "frozen")

WATCHERS = ("run.before-spawn", "run.spawned", "run.outcome")
"""Points of the process that watches a command: it is never taken out of the way, so it is not left frozen."""

FORKED = ("start.before-record", "start.between-fork-and-exec")
"""Points of what is about to become the daemon. Killed alone there, the daemon counts as one that died at its start:
the leg is done again from its first step, and finds all but the start done."""


def points_of(step: str, kind: Kind) -> tuple[str, ...]:
    """The points of a step at which somebody is killed."""
    if step == "session":
        return SESSION
    finer = HOST[step]
    names = tuple(f"{step}.{name}" for name in (*finer, "acted", "recorded", "told"))
    return tuple(name for name in names if kind != "frozen" or name not in WATCHERS)


BACK = (
    "stop.before-signal", "stop.after-signal", "stop.acted", "switch.before-rename",
    "switch.after-rename", "switch.recorded", "configure.before-rename", "configure.after-rename",
    "start.forked", "start.between-fork-and-exec", "start.after-exec", "start.told",
)  # fmt: skip
"""Points on the way back: the same steps, other releases."""

RESTORE = (
    "before", "acting", "copying", "before-intent", "after-intent", "before-renames",
    "between-renames", "between-paths", "after-renames", "acted", "recorded", "told",
)  # fmt: skip


class Scene(NamedTuple):
    """A point of the worker: the ``nth`` time that an activity is asked for (before) or done (after)."""

    activity: str
    nth: int
    what: str
    """Which of them that is."""


UPGRADE: tuple[Scene, ...] = (
    Scene("fleet_of_record", 1, "the fleet reads its record"),
    Scene("judge_fleet_order", 1, "the order to start, and its lease"),
    Scene("plan_facts", 1, "the fleet reads the plan"),
    Scene("plan_facts", 2, "the run reads the plan"),
    Scene("observe_nodes", 1, "preflight"),
    Scene("record", 1, "preflight is written down"),
    Scene("look_nodes", 1, "the look before the canary"),
    Scene("open_wave", 1, "the canary opens"),
    Scene("run_leg", 1, "the leg of the canary"),
    Scene("check_nodes", 1, "a look in the bake"),
    Scene("record", 2, "the canary is written down"),
    Scene("look_nodes", 2, "the look that the gate shows"),
    Scene("judge_order", 1, "the first approval"),
    Scene("judge_order", 2, "the second approval"),
    Scene("look_nodes", 3, "the look when all have signed"),
    Scene("write_warrant", 1, "the gate is passed"),
    Scene("record", 3, "between the approval and the next wave"),
    Scene("open_wave", 2, "the next wave opens"),
    Scene("run_leg", 2, "the leg of the second node"),
    Scene("record", 4, "the last wave is written down"),
    Scene("look_nodes", 5, "the look at the end"),
    Scene("record", 5, "the end is written down"),
    Scene("run_end_soon", 1, "the fleet looks how the run ended"),
)
"""An upgrade with canary, bake, gate and a second wave, in order."""

AUTOMATIC: tuple[Scene, ...] = (
    Scene("run_leg", 1, "the leg that fails"),
    Scene("record", 2, "the failure is written down"),
    Scene("plan_facts", 3, "the way back reads the plan"),
    Scene("observe_nodes", 2, "the fence is raised"),
    Scene("choose_way_back", 1, "the way back is chosen"),
    Scene("run_leg", 2, "the leg back"),
    Scene("observe_nodes", 3, "the hosts are looked at again"),
    Scene("choose_way_back", 2, "nothing is left to do"),
    Scene("look_nodes", 2, "the look at the end of the way back"),
    Scene("record", 3, "the end of the way back is written down"),
    Scene("record", 4, "the end of the run is written down"),
)
"""A release that never gets healthy, taken back by the runbook."""

ORDERED: tuple[Scene, ...] = (
    Scene("run_end", 1, "the fleet looks at who has the lease"),
    Scene("judge_fleet_order", 2, "the order to go back, and its lease"),
    Scene("plan_facts", 3, "the fleet reads the plan"),
    Scene("plan_facts", 4, "the way back reads the plan"),
    Scene("judge_order", 1, "the loser looks at the order"),
    Scene("observe_nodes", 2, "the fence is raised"),
    Scene("choose_way_back", 1, "the way back is chosen"),
    Scene("run_leg", 2, "the leg back"),
    Scene("observe_nodes", 3, "the hosts are looked at again"),
    Scene("choose_way_back", 2, "nothing is left to do"),
    Scene("record", 4, "the end is written down"),
    Scene("run_end_soon", 1, "the fleet looks how it ended"),
)
"""An engineer on call takes the fleet back while the run waits at its gate."""

MORTALS: tuple[Kind, ...] = ("worker", "engine", "all")
"""Who dies where no host program is at work."""
