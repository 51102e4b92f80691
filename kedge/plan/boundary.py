"""The point of no return: where it lies by what steps and releases say, and whether the runbook guards it.

A boundary is a position in the plan: the number of waves that are wholly before it, so 0 is before the first node and
the number of waves is before the finalize steps. The runbook may put its gate earlier than needed, never later.
"""

from __future__ import annotations

from dataclasses import dataclass

from kedge.model.plan import Effect, PointOfNoReturn, Wave, WayBack, WayBackKind
from kedge.model.release import Release
from kedge.model.runbook import AfterCommit, Runbook
from kedge.model.steps import RunStep, Undo
from kedge.plan.company import Where


@dataclass(frozen=True, slots=True)
class Boundary:
    """A reason for a point of no return: its position and why it lies there."""

    position: int
    why: str
    restorable: bool


def start_effect(before: Release, after: Release, runbook: Runbook) -> Effect:
    """What the start of the new release on one node costs to undo."""
    old, new = before.data_format, after.data_format
    if old is None or new is None or new.writes in old.reads or new.begins != "start":
        return "reversible"
    return "restorable" if _has_snapshot(runbook) else "irreversible"


def _has_snapshot(runbook: Runbook) -> bool:
    return any(step.verb == "snapshot" for step in runbook.node)


def _lasting(step: RunStep) -> bool:
    return not isinstance(step.undo, Undo) and step.undo != "none"


def boundaries(before: Release, after: Release, runbook: Runbook, waves: int) -> list[Boundary]:
    """Every reason for a point of no return, earliest first. ``waves`` is their number."""
    found: list[Boundary] = []
    old, new = before.data_format, after.data_format
    if old is not None and new is not None and new.writes not in old.reads:
        position, when = {
            "start": (0, "as soon as a node starts on it"),
            "last-node": (waves - 1, "once the last node runs it"),
            "finalize": (waves, "once the finalize steps are done"),
        }[new.begins]
        if new.begins != "finalize" or runbook.finalize is not None:
            why = f"{after.version} writes data format {new.writes}, which {before.version} cannot read, {when}"
            found.append(Boundary(position, why, _has_snapshot(runbook)))
    for step in runbook.node:
        if step.run is not None and _lasting(step.run):
            restorable = step.run.undo == "snapshot"
            why = f"{' '.join(step.run.argv[:3])} on each node can{'' if restorable else 'not'} be undone"
            found.append(
                Boundary(0, why + (" only from a snapshot" if restorable else ""), restorable)
            )
    for step in runbook.finalize.steps if runbook.finalize else ():
        if step.run is not None and _lasting(step.run):
            why = f"{' '.join(step.run.argv[:3])} in the finalize steps cannot be undone"
            found.append(Boundary(waves, why, restorable=False))
    return sorted(found, key=lambda boundary: boundary.position)


def committed_at(runbook: Runbook, waves: tuple[Wave, ...]) -> tuple[int | None, list[Where]]:
    """The position the runbook puts its point of no return at; None when it has none."""
    rule = runbook.commit
    if rule is None:
        return None, []
    if rule.before == "finalize":
        if runbook.finalize is None:
            said = "is before the finalize steps, and the runbook has none"
            return None, [("runbook", ("commit", "before"), said)]
        return len(waves), []
    for wave in waves:
        if wave.name == rule.before:
            return wave.index, []
    names = ", ".join([wave.name for wave in waves] + (["finalize"] if runbook.finalize else []))
    return None, [
        (
            "runbook",
            ("commit", "before"),
            f"no wave is named {rule.before}; this fleet's are {names}",
        )
    ]


def guard_problems(
    runbook: Runbook, waves: tuple[Wave, ...], reasons: list[Boundary], at: int | None
) -> list[Where]:
    """Why the runbook does not guard the point of no return where it lies."""
    if not reasons:
        return []
    first = reasons[0]
    names = [*(wave.name for wave in waves), "finalize"]
    if at is None:
        if runbook.commit is not None:
            return []
        said = f"is missing: {first.why}; write commit: {{before: {names[first.position]}, gate: …, lost: …}}"
        return [("runbook", ("commit",), said)]
    if at > first.position:
        said = f"is too late: {first.why}; write before: {names[first.position]}"
        return [("runbook", ("commit", "before"), said)]
    if isinstance(runbook.rollback.after_commit, AfterCommit):
        lasting = [reason for reason in reasons if not reason.restorable]
        if lasting:
            said = f"no snapshot brings it back: {lasting[0].why}; write after_commit: forbidden"
            return [("runbook", ("rollback", "after_commit"), said)]
    return []


def restore_problems(runbook: Runbook) -> list[Where]:
    """A restore needs a point of no return to stand behind, and a snapshot to restore."""
    if not isinstance(runbook.rollback.after_commit, AfterCommit):
        return []
    problems: list[Where] = []
    if not _has_snapshot(runbook):
        said = "restores a snapshot, and no step of the node makes one"
        problems.append(("runbook", ("rollback", "after_commit", "restore"), said))
    if runbook.commit is None:
        problems.append(
            (
                "runbook",
                ("rollback", "after_commit"),
                "stands behind a commit, and the runbook has none; write commit: {before: …, gate: …, lost: …}",
            )
        )
    return problems


def point(runbook: Runbook, at: int | None, waves: int) -> PointOfNoReturn | None:
    """The point of no return of the plan."""
    if runbook.commit is None or at is None:
        return None
    return PointOfNoReturn(
        wave=at if at < waves else None, gate=runbook.commit.gate, lost=runbook.commit.lost
    )


def ways_back(runbook: Runbook, at: int | None, waves: int) -> tuple[WayBack, ...]:
    """The way back by the number of waves begun: each entry holds until the next one.

    ``waves + 1`` stands for "the finalize steps were begun".
    """
    ways = [WayBack(from_wave=0, kind="none")]
    if at != 0:
        forbidden = runbook.rollback.before_commit == "forbidden"
        lost = "the runbook allows no way back" if forbidden else ""
        ways.append(
            WayBack(from_wave=1, kind="forbidden" if forbidden else "switch-back", lost=lost)
        )
    if at is not None and runbook.commit is not None:
        after, lost = runbook.rollback.after_commit, runbook.commit.lost
        gate = after.gate if isinstance(after, AfterCommit) else None
        kind: WayBackKind = "restore" if isinstance(after, AfterCommit) else "forbidden"
        ways.append(WayBack(from_wave=at + 1, kind=kind, gate=gate, lost=lost))
    return tuple(way for way in ways if way.from_wave <= waves + 1)
