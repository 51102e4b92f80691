"""The way back, computed from what the hosts show, not from what a run remembers."""

from __future__ import annotations

from typing import Literal

from kedge.model.base import Frozen, Name
from kedge.model.plan import Plan, WayBack
from kedge.model.run import Observed, PlanFacts


def way_back_at(ways: tuple[WayBack, ...], begun: int) -> WayBack:
    """The plan's way back once ``begun`` waves were begun; no entry at all is ``forbidden`` (fail-closed)."""
    fitting = [way for way in ways if way.from_wave <= begun]
    if not fitting:
        return WayBack(
            from_wave=begun, kind="forbidden", lost="the plan names no way back from here"
        )
    return max(fitting, key=lambda way: way.from_wave)


def automatic_way_back(facts: PlanFacts, *, begun: int, committed: bool) -> WayBack | None:
    """The way back a run may take without asking: never across the point of no return, never through a gate."""
    if committed:
        return None
    way = way_back_at(facts.way_back, begun)
    return way if way.kind in ("switch-back", "restore", "none") and way.gate is None else None


class Return(Frozen):
    """What a rollback does: which nodes by which program, in batches in order (last wave first), or why not."""

    verdict: Literal["go", "ask", "refuse", "nothing"]
    program: Literal["back", "restore"] = "back"
    gate: Name | None = None
    said: str
    lost: str = ""
    begun: int = 0
    """Number of waves begun, as observed."""
    waves: tuple[tuple[int, ...], ...] = ()
    parallel: tuple[int, ...] = ()


def choose(plan: Plan, seen: Observed, *, automatic: bool) -> Return:
    """Decide the way back from an observation of every node.

    The number of waves begun is one more than the last wave with a node on the new release. The point of no return is
    behind the fleet when a node of a wave behind it runs, or ever ran, the new release, or when the finalize steps were
    begun. Nodes whose release is neither of the plan's two are never touched: that is refused.
    """
    if seen.other:
        names = ", ".join(plan.nodes[node].name for node in seen.other[:5])
        return Return(
            verdict="refuse",
            said=f"{len(seen.other)} node(s) run a release this plan does not know: {names}",
        )
    touched = set(seen.after)
    broken = touched | (set(seen.stopped) & set(seen.before))
    begun = max((wave.index + 1 for wave in plan.waves if touched & set(wave.nodes)), default=0)
    if not broken:
        return Return(verdict="nothing", said="every node runs its baseline already")
    committed = _committed(plan, seen)
    if plan.commit is not None and plan.commit.wave is not None and not committed:
        # Nodes behind the point of no return may point to the new release without ever having started it.
        begun = min(begun, plan.commit.wave)
    way = way_back_at(plan.way_back, begun) if touched else WayBack(from_wave=0, kind="switch-back")
    if committed:
        # Nodes that started the new release may have been taken off it since: what they wrote is still there.
        way = _restoring(plan, way)
        begun = max(begun, way.from_wave)
    waves, parallel = _batches(plan, broken)
    if way.kind == "forbidden" or (committed and automatic):
        lost = plan.commit.lost if plan.commit is not None and committed else way.lost
        said = f"the point of no return is behind the fleet: {lost}" if committed else lost
        return Return(verdict="refuse", said=said, lost=lost)
    program: Literal["back", "restore"] = "restore" if way.kind == "restore" else "back"
    gate = way.gate
    if gate is not None and automatic:
        return Return(
            verdict="refuse",
            said=f"the way back asks for gate {gate}: it is not taken by itself",
            lost=way.lost,
        )
    said = f"{len(broken)} node(s) go back to {plan.before.version}" + (
        " from their snapshots" if program == "restore" else ""
    )
    return Return(
        verdict="ask" if gate is not None else "go",
        program=program,
        gate=gate,
        said=said,
        lost=way.lost,
        begun=begun,
        waves=waves,
        parallel=parallel,
    )


def _restoring(plan: Plan, way: WayBack) -> WayBack:
    """The way back behind the point of no return, wherever nodes are now: restoring, with its gate, or none."""
    if plan.after_commit == "restore":
        for one in plan.way_back:
            if one.kind == "restore":
                return one
    lost = plan.commit.lost if plan.commit is not None else way.lost
    return WayBack(from_wave=way.from_wave, kind="forbidden", lost=lost)


def _committed(plan: Plan, seen: Observed) -> bool:
    if plan.commit is None:
        return False
    if seen.restored:
        return True
    if plan.commit.wave is None:
        return seen.finalized
    behind = {node for wave in plan.waves if wave.index >= plan.commit.wave for node in wave.nodes}
    return bool(behind & set(seen.started_after))


def _batches(plan: Plan, broken: set[int]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    waves: list[tuple[int, ...]] = []
    parallel: list[int] = []
    for wave in reversed(plan.waves):
        for batch in reversed(wave.batches):
            nodes = tuple(node for node in reversed(batch) if node in broken)
            if nodes:
                waves.append(nodes)
                parallel.append(wave.max_unavailable)
    return tuple(waves), tuple(parallel)
