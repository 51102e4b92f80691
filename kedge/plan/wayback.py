"""The way back, computed from what the hosts show, not from what a run remembers."""

from __future__ import annotations

from typing import Literal

from kedge.model.base import Frozen, Name
from kedge.model.plan import Plan, WayBack
from kedge.model.run import Observed, PlanFacts

MAX_NAMED = 20
"""Nodes that a sentence names."""


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

    verdict: Literal["go", "ask", "refuse", "nothing", "unclear"]
    program: Literal["back", "restore"] = "back"
    gate: Name | None = None
    said: str
    lost: str = ""
    begun: int = 0
    """Number of waves begun, as observed."""
    waves: tuple[tuple[int, ...], ...] = ()
    parallel: tuple[int, ...] = ()


def choose_around(
    plan: Plan,
    seen: Observed,
    *,
    unseen: tuple[int, ...],
    given_up: tuple[int, ...],
    automatic: bool,
) -> Return:
    """Decide the rollback of the nodes that were seen, while ``unseen`` and ``given_up`` are left alone.

    Nobody knows how far an unseen node went: it may run the old release or the new one. The others go back at once
    where that makes no difference. Where it does (behind the point of no return, or where another way back begins), the
    verdict is ``unclear`` and a person decides. A node that was given up is out of the fleet by a person's word.
    """
    alone = {*unseen, *given_up}
    rest = _without(seen, alone)
    choice = choose(plan, rest, automatic=automatic)
    missing = tuple(sorted(set(unseen) - set(given_up)))
    if choice.verdict == "nothing":
        said = _seen_on_baseline(plan, rest, missing, given_up)
        return choice.model_copy(update={"said": said})
    if not missing or choice.verdict == "refuse":
        return choice
    furthest = rest.model_copy(
        update={
            "after": (*rest.after, *missing),
            "started_after": (*rest.started_after, *missing),
        }
    )
    worst = choose(plan, furthest, automatic=automatic)
    between = {
        (way.kind, way.gate)
        for begun in range(choice.begun, worst.begun + 1)
        for way in (way_back_at(plan.way_back, begun),)
    }
    same = (worst.verdict, worst.program, worst.gate) == (
        choice.verdict,
        choice.program,
        choice.gate,
    )
    if same and (len(between) == 1 or not choice.begun):
        return choice
    names = _named(plan, missing)
    said = f"the way back depends on how far {names} went, which nobody can see: {worst.lost or worst.said}"
    return Return(verdict="unclear", said=said, lost=worst.lost)


def _without(seen: Observed, alone: set[int]) -> Observed:
    """The same observation without these nodes."""
    lists = (
        "before", "after", "other", "empty", "stopped", "started_after", "mixed", "reconfigured",
        "unsure", "edited",
    )  # fmt: skip
    return seen.model_copy(
        update={name: tuple(n for n in getattr(seen, name) if n not in alone) for name in lists}
    )


def _seen_on_baseline(
    plan: Plan, seen: Observed, unseen: tuple[int, ...] = (), given_up: tuple[int, ...] = ()
) -> str:
    """What may be said at the end: what was looked at, and no more.

    Nothing of nodes that were not looked at; and of one whose earlier configuration nobody knows, or that somebody edited
    by hand, not that it is what ran before.
    """
    alone, whole = {*unseen, *given_up}, not seen.unsure and not seen.edited
    many = f"{len(plan.nodes) - len(alone)} of {len(plan.nodes)} nodes run"
    if whole:
        said = f"{many} their baseline" if alone else "every node runs its baseline"
    else:
        said = f"{many if alone else 'every node runs'} {plan.before.version}"
    for nodes, what in (
        (seen.unsure, "the configuration that ran before is not known of"),
        (seen.edited, "the configuration was changed by hand on"),
    ):
        if nodes:
            said += f"; {what} {_named(plan, nodes)}"
    for nodes, what in ((unseen, "not seen"), (given_up, "given up, and not known to be back")):
        if nodes:
            said += f"; {what}: {_named(plan, nodes)}"
    return said


def _named(plan: Plan, nodes: tuple[int, ...]) -> str:
    """The first few names, and how many more there are."""
    names = ", ".join(plan.nodes[node].name for node in nodes[:MAX_NAMED])
    more = len(nodes) - MAX_NAMED
    return f"{names} and {more} more" if more > 0 else names


def choose(plan: Plan, seen: Observed, *, automatic: bool) -> Return:
    """Decide the way back from an observation of every node.

    The point of no return is behind the fleet when a node of a wave behind it runs, or ever ran, the new release, or
    when the finalize steps were begun, or a way back began to restore: then it is the way back from there that counts,
    wherever nodes are now, with its gate. Otherwise the number of waves begun is one more than the last wave with a
    node on the new release, and never leads behind it.
    Nodes whose release is neither of the plan's two are never touched: that is refused. Nodes that merely stopped, and
    never started the new release, are only started again; they have no snapshot, and so wait until no other is left.
    """
    if seen.other:
        names = ", ".join(plan.nodes[node].name for node in seen.other[:5])
        return Return(
            verdict="refuse",
            said=f"{len(seen.other)} node(s) run a release this plan does not know: {names}",
        )
    # A daemon that still runs the new release is not on its baseline, wherever `current` points meanwhile.
    # Neither is one that runs the old release with the configuration of the new one.
    touched = {*seen.after, *seen.mixed, *seen.reconfigured}
    asleep = set(seen.stopped) & set(seen.before)
    if touched == set(seen.reconfigured) and touched and _has(plan, "back"):
        # Their release and their data are back already: no snapshot is put back a second time.
        return _configured_back(plan, touched | (set() if _lasts(plan) else asleep))
    if not touched and not asleep:
        return Return(verdict="nothing", said=_seen_on_baseline(plan, seen))
    moved = touched | (asleep if _lasts(plan) else asleep & set(seen.started_after))
    if not moved:
        return _awake(plan, asleep)
    committed = _committed(plan, seen)
    begun = _begun(plan, touched, committed=committed)
    way = way_back_at(plan.way_back, begun)
    if way.kind == "forbidden" or (committed and automatic):
        lost = plan.commit.lost if committed and plan.commit else way.lost
        here = (
            "the point of no return is behind the fleet"
            if committed
            else "there is no way back from here"
        )
        return Return(verdict="refuse", said=f"{here}: {lost}", lost=lost)
    if way.gate is not None and automatic:
        return Return(
            verdict="refuse",
            said=f"the way back asks for gate {way.gate}: it is not taken by itself",
            lost=way.lost,
        )
    program: Literal["back", "restore"] = "restore" if way.kind == "restore" else "back"
    if not _has(plan, program):
        return Return(
            verdict="refuse", said=f"the plan has no steps of the way {program} from here"
        )
    going = moved if program == "restore" else touched | asleep
    # Who is down already goes first: otherwise more than the wave allows would be down at once.
    waves, parallel = _batches(plan, going & set(seen.stopped))
    later, beside = _batches(plan, going - set(seen.stopped))
    said = f"{len(going)} node(s) go back to {plan.before.version}" + (
        " from their snapshots" if program == "restore" else ""
    )
    return Return(
        verdict="ask" if way.gate is not None else "go",
        program=program,
        gate=way.gate,
        said=said,
        lost=way.lost,
        begun=begun,
        waves=(*waves, *later),
        parallel=(*parallel, *beside),
    )


def _configured_back(plan: Plan, nodes: set[int]) -> Return:
    """Nodes on the old release with the configuration of the new one: they get back the one that ran before."""
    waves, parallel = _batches(plan, nodes)
    said = f"{len(nodes)} node(s) get back the configuration of {plan.before.version}"
    return Return(verdict="go", program="back", said=said, waves=waves, parallel=parallel)


def _awake(plan: Plan, asleep: set[int]) -> Return:
    """Nodes that stand on their baseline and stopped: they are started again, and nothing is lost by that."""
    if not _has(plan, "back"):
        names = ", ".join(plan.nodes[node].name for node in sorted(asleep)[:5])
        said = f"{len(asleep)} node(s) stand on {plan.before.version} and are stopped ({names}); the runbook has no steps that start them"
        return Return(verdict="refuse", said=said)
    waves, parallel = _batches(plan, asleep)
    said = f"{len(asleep)} node(s) start {plan.before.version} again"
    return Return(verdict="go", program="back", said=said, waves=waves, parallel=parallel)


def _begun(plan: Plan, touched: set[int], *, committed: bool) -> int:
    """The number of waves begun; the finalize steps count as one more."""
    begun = max(
        (at + 1 for at, wave in enumerate(plan.waves) if touched & set(wave.nodes)), default=0
    )
    if plan.commit is None:
        return begun
    line = len(plan.waves) if plan.commit.wave is None else plan.commit.wave
    if committed:
        return max(begun, line + 1)
    return min(begun, line) if _has(plan, "back") else begun


def _has(plan: Plan, name: str) -> bool:
    return any(program.name == name for program in plan.programs)


def _committed(plan: Plan, seen: Observed) -> bool:
    if plan.commit is None:
        return False
    if seen.restored:
        return True
    if plan.commit.wave is None:
        return seen.finalized
    crossed = set(seen.started_after)
    if _lasts(plan):
        # A command that cannot be undone may have run before the start: nobody sees whether it did.
        crossed |= {*seen.after, *seen.stopped}
    behind = {node for wave in plan.waves[plan.commit.wave :] for node in wave.nodes}
    return bool(behind & crossed)


def _lasts(plan: Plan) -> bool:
    """Whether a command of the way forward leaves something that no way back takes away without a snapshot."""
    return any(
        step.op == "run" and step.effect in {"restorable", "irreversible"}
        for leg in plan.program("forward").legs
        for step in leg.steps
    )


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
