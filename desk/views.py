"""What a watcher sees of a run: plain values, put together by a pure function.

A run answers queries in pieces (its own status, the widening's progress, the wave's, the pending
activities' heartbeats). :func:`view_of` joins them with the plan's names; faces only draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from kedge.model.base import Frozen
from kedge.model.plan import Plan, Wave
from kedge.model.status import RunStatus, WaveProgress, WideningProgress

DETAIL_LIMIT = 60
"""Waves of more nodes than this are shown as counts, with only the nodes that run or failed."""

NodeState = Literal["waiting", "running", "done", "failed"]
WaveState = Literal["waiting", "running", "baking", "done", "stopped"]

ENDED = frozenset({"done", "aborted", "rolled-back", "preempted", "rejected", "terminated"})
"""The phases in which a run is over."""


class StepNow(Frozen):
    """What a pending activity said last about a node: the step's name and a few words."""

    step: str
    said: str = ""
    attempt: int = 1


class NodeView(Frozen):
    """One node of the wave that is shown."""

    index: int
    name: str
    state: NodeState
    now: StepNow | None = None
    failed_step: str = ""
    failed_said: str = ""


class WaveView(Frozen):
    """One wave. ``nodes`` are those worth a line of their own; ``counts`` are over all of them.

    ``until`` is the end of the bake while the wave bakes.
    """

    index: int
    name: str
    state: WaveState
    total: int
    counts: dict[NodeState, int]
    nodes: tuple[NodeView, ...] = ()
    gate: str | None = None
    until: str | None = None


class RunView(Frozen):
    """A run at one moment, as far as it could be asked.

    ``gone`` is for how many seconds the engine has not answered (None: it does); everything else is
    then as it was last seen. ``boundary`` is where the way back ends: a wave's index, or the
    number of waves for the finalize step.
    """

    status: RunStatus
    now: str
    waves: tuple[WaveView, ...] = ()
    back: WaveView | None = None
    boundary: int | None = None
    lost: str = ""
    way_back: str = ""
    gone: float | None = None
    gone_why: str = ""
    rollback: RunStatus | None = None
    """The rollback that goes on in an upgrade's place, as it is now."""

    @property
    def asking(self) -> RunStatus:
        """The run that asks people something when this one does: itself, or the rollback in its place."""
        back = self.rollback
        if back is None or back.phase in ENDED or self.status.waiting is not None:
            return self.status
        return back if back.waiting is not None or back.phase == "paused" else self.status

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self.status.phase in ENDED

    @property
    def well(self) -> bool:
        """Whether the run ended as it was meant to: an upgrade done, a rollback rolled back."""
        wanted = {"done"} if self.status.kind == "upgrade" else {"done", "rolled-back"}
        return self.status.phase in wanted


class Pieces(Frozen):
    """The answers of one round of questions; ``steps`` are by node index.

    ``back`` is the rollback that goes on in an upgrade's place: one that it takes by itself, or one that pre-empted it.
    """

    status: RunStatus
    widening: WideningProgress | None = None
    wave: WaveProgress | None = None
    steps: dict[int, StepNow] = Field(default_factory=dict)
    back: Pieces | None = None


def view_of(pieces: Pieces, plan: Plan | None, now: str) -> RunView:
    """Joins the pieces. Without the plan (it is in another home's store) there are no waves."""
    status = pieces.status
    rollback = None if pieces.back is None else pieces.back.status
    if plan is None:
        return RunView(status=status, now=now, rollback=rollback)
    waves = _upgrade_waves(pieces, plan) if status.kind == "upgrade" else (_way_back(pieces, plan),)
    boundary = None
    if plan.commit is not None:
        boundary = len(plan.waves) if plan.commit.wave is None else plan.commit.wave
    return RunView(
        status=status,
        now=now,
        waves=waves,
        back=None if pieces.back is None or status.phase in ENDED else _way_back(pieces.back, plan),
        rollback=rollback,
        boundary=boundary,
        lost=plan.commit.lost if plan.commit is not None else "",
        way_back=_way_back_now(status, plan),
    )


def _way_back_now(status: RunStatus, plan: Plan) -> str:
    """What kind of way back the plan has from where the run is."""
    begun = 0 if status.phase == "preflight" else min(status.wave + 1, len(plan.waves))
    if status.phase in {"finalizing", "done"}:
        begun = len(plan.waves)
    ways = [way for way in plan.way_back if way.from_wave <= begun]
    return max(ways, key=lambda way: way.from_wave).kind if ways else ""


def _upgrade_waves(pieces: Pieces, plan: Plan) -> tuple[WaveView, ...]:
    status = pieces.status
    current = pieces.widening.wave if pieces.widening is not None else status.wave
    # The run counts what came back to it, its widening what came back to that, a chunk what it does now.
    done = status.nodes_done
    if pieces.widening is not None:
        done += pieces.widening.nodes_done + (len(pieces.wave.done) if pieces.wave else 0)
    before = 0
    views = []
    for wave in plan.waves:
        state = _wave_state(pieces, wave, current, max(0, done - before))
        known = _known(pieces, wave, state, all_done=done >= before + len(wave.nodes))
        until = pieces.widening.until if pieces.widening and state == "baking" else None
        views.append(
            WaveView(
                index=wave.index,
                name=wave.name,
                state=state,
                total=len(wave.nodes),
                counts=_counts(known, wave.nodes, state, max(0, done - before)),
                nodes=_lines(pieces, plan, known, len(wave.nodes)) if known else (),
                gate=_gate_before(plan, wave, status),
                until=until,
            )
        )
        before += len(wave.nodes)
    return tuple(views)


def _gate_before(plan: Plan, wave: Wave, status: RunStatus) -> str | None:
    """The gate before a wave; of several before the first wave the one that waits now, or the first."""
    gates = [*(plan.moved_gates if wave.index == 0 else ()), *([wave.gate] if wave.gate else [])]
    waits = status.waiting.subject if status.waiting is not None else None
    return waits if waits in gates else next(iter(gates), None)


def _wave_state(pieces: Pieces, wave: Wave, current: int, done_here: int) -> WaveState:
    status = pieces.status
    if status.phase in {"finalizing", "done"} or wave.index < current:
        return "done"
    if wave.index > current or status.phase in {"preflight", "gate", "rejected"}:
        return "waiting"
    if pieces.widening is not None:
        return "baking" if pieces.widening.state == "baking" else "running"
    if status.phase == "widening":
        return "running"
    # Parked, paused, going back or over: what was begun stands still.
    touched = done_here > 0 or any(one.node in wave.nodes for one in status.failures)
    return "stopped" if touched and not _before_waves(status) else "waiting"


def _before_waves(status: RunStatus) -> bool:
    """Whether the run is parked on something that comes before the wave: preflight or a gate."""
    subject = status.waiting.subject if status.waiting is not None else ""
    return subject.startswith(("preflight-", "gate-"))


def _known(pieces: Pieces, wave: Wave, state: WaveState, *, all_done: bool) -> dict[int, NodeState]:
    """The nodes of a wave whose state is known one by one.

    A chunk's progress names the nodes it was given; failures name theirs. Of a wave at rest only
    how many are done is known, not which: nothing is claimed about single nodes then, unless
    all or none of them are done.
    """
    if state == "waiting":
        return {}
    inside = set(wave.nodes)
    known: dict[int, NodeState] = {}
    if state == "baking" or (all_done and state != "done"):
        known = dict.fromkeys(wave.nodes, "done")
    for failure in pieces.status.failures:
        if failure.node in inside:
            known[failure.node] = "failed"
    if pieces.wave is not None and pieces.wave.program == "forward":
        known |= {node: held for node, held in _named(pieces.wave).items() if node in inside}
    return known


def _named(progress: WaveProgress) -> dict[int, NodeState]:
    return {
        **dict.fromkeys(progress.waiting, "waiting"),
        **dict.fromkeys(progress.done, "done"),
        **dict.fromkeys(progress.failed, "failed"),
        **dict.fromkeys(progress.running, "running"),
    }


def _counts(
    known: Mapping[int, NodeState], nodes: tuple[int, ...], state: WaveState, done: int
) -> dict[NodeState, int]:
    """How many nodes are in which state; what is not known one by one is ``done`` or waits."""
    total = len(nodes)
    counts: dict[NodeState, int] = {"waiting": 0, "running": 0, "done": 0, "failed": 0}
    for held in known.values():
        counts[held] += 1
    if state in {"done", "baking"}:
        counts["done"] = total - counts["failed"] - counts["running"] - counts["waiting"]
    elif state != "waiting":
        rest = total - len(known)
        extra = min(rest, max(0, done - counts["done"]))
        counts["done"] += extra
        counts["waiting"] += rest - extra
    else:
        counts["waiting"] = total
    return counts


def _lines(
    pieces: Pieces, plan: Plan, known: Mapping[int, NodeState], total: int
) -> tuple[NodeView, ...]:
    """A line for each node, or in large waves only for those that run or failed."""
    failures = {failure.node: failure for failure in pieces.status.failures}
    lines = []
    for node, state in known.items():
        if total > DETAIL_LIMIT and state not in {"running", "failed"}:
            continue
        failure = failures.get(node) if state == "failed" else None
        lines.append(
            NodeView(
                index=node,
                name=plan.nodes[node].name,
                state=state,
                now=pieces.steps.get(node) if state == "running" else None,
                failed_step=failure.step if failure else "",
                failed_said=failure.said if failure else "",
            )
        )
    place = {node: at for at, node in enumerate(_order(plan))}
    return tuple(sorted(lines, key=lambda line: place[line.index]))


def _order(plan: Plan) -> list[int]:
    return [node for wave in plan.waves for node in wave.nodes]


def _way_back(pieces: Pieces, plan: Plan) -> WaveView:
    """A rollback as one wave: the nodes that have to go back."""
    status = pieces.status
    # A failure of the whole run is no node's (``THE_RUN``).
    nodes = range(len(plan.nodes))
    known: dict[int, NodeState] = {
        failure.node: "failed" for failure in status.failures if failure.node in nodes
    }
    if pieces.wave is not None:
        known |= _named(pieces.wave)
    ended = status.phase in ENDED
    state: WaveState = "running"
    if status.phase in {"preflight", "fencing", "gate"}:
        state = "waiting"
    elif ended:
        state = "done" if status.phase in {"done", "rolled-back"} else "stopped"
    elif status.phase in {"parked", "paused"}:
        state = "stopped"
    # How many nodes have to go back the run finds out by looking, part by part.
    total = status.nodes_done + len(known)
    named_done = sum(1 for held in known.values() if held == "done")
    counts = _counts(known, tuple(range(total)), state, status.nodes_done + named_done)
    lines = () if ended else _lines(pieces, plan, known, total)
    return WaveView(index=0, name="way back", state=state, total=total, counts=counts, nodes=lines)
