"""What people are shown before they sign: the plan, the wave, what was seen, and what can still be undone."""

from __future__ import annotations

from kedge.model.plan import Choice
from kedge.model.run import WHOLE_FAILURES, Looked, PlanFacts, Run
from kedge.model.status import Showing
from kedge.plan.availability import serving_message
from kedge.plan.progress import UpgradeState
from kedge.plan.wayback import way_back_at


def showing_of(
    run: Run, state: UpgradeState, facts: PlanFacts, subject: str, looked: Looked | None = None
) -> Showing:
    """What people are shown at a gate or a parked item of an upgrade; of a gate, what a look at every node just saw."""
    parked = state.parked if state.parked is not None and state.parked.subject == subject else None
    behind = state.begun if parked else min(state.wave + 1, len(facts.waves))
    way = way_back_at(facts.way_back, behind)
    guards = facts.commit is not None and facts.commit.gate == subject
    choices: tuple[Choice, ...] = parked.choices if parked else ()
    said = [f"{facts.before} → {facts.after}", f"{state.done} of {facts.nodes} nodes done"]
    if parked:
        said.append(parked.said)
    elif state.wave < len(facts.waves):
        wave = facts.waves[state.wave]
        said.append(f"next: wave {wave.name}, {wave.size} nodes, {wave.parallel} at a time")
    else:
        said.append("next: the finalize steps")
    failures = parked.failures if parked else state.failures
    if looked is not None and not parked:
        problem = looked.problem
        said.append(
            serving_message(looked.nodes, looked.failures)
            if problem is None
            else f"the nodes could not be looked at: {problem.type}: {problem.said}"
        )
        failures = (*looked.failures, *failures)
    return Showing(
        run=run.id,
        plan=run.plan,
        subject=subject,
        title=parked.said if parked else f"gate {subject}",
        said=tuple(said),
        wave=state.wave if state.wave < len(facts.waves) else None,
        waves=len(facts.waves),
        nodes_done=state.done,
        nodes=facts.nodes,
        failures=failures[:WHOLE_FAILURES],
        reversible="the point of no return: behind this gate there is no plain way back"
        if guards
        else way.kind,
        lost=facts.commit.lost if guards and facts.commit else way.lost,
        choices=choices,
    )
