"""What a plan puts at stake: its class of risk. Pure."""

from __future__ import annotations

from kedge.model.base import Frozen
from kedge.model.plan import Plan, Risk


class RiskFound(Frozen):
    """The class of a plan, and why it is that one."""

    risk: Risk
    why: str


def risk_of(plan: Plan) -> Risk:
    """The class of a plan."""
    return risk_found(plan).risk


def risk_found(plan: Plan) -> RiskFound:
    """The class of a plan, the worst that holds.

    - ``irreversible``: from somewhere on there is no way back at all, or a step cannot be undone;
    - ``elevated``: a way back restores data, and loses what was written since;
    - ``routine``: every node can be switched back, and nothing is lost.

    It is read off the plan as it was compiled. What a command of a runbook does the runbook says, and people sign it.
    """
    shut = [way for way in plan.way_back if way.kind == "forbidden"]
    if shut:
        where = shut[0].from_wave
        names = [wave.name for wave in plan.waves]
        begun = f"wave {names[where - 1]}" if 0 < where <= len(names) else "the finalize steps"
        return RiskFound(risk="irreversible", why=f"there is no way back once {begun} began")
    if not plan.way_back:
        return RiskFound(risk="irreversible", why="the plan names no way back")
    effects = {
        step.effect: step.name
        for program in plan.programs
        if program.name in {"forward", "finalize"}
        for leg in program.legs
        for step in leg.steps
    }
    if "irreversible" in effects:
        return RiskFound(
            risk="irreversible", why=f"the step {effects['irreversible']} cannot be undone"
        )
    restored = [way for way in plan.way_back if way.kind == "restore"]
    if restored:
        lost = f": {restored[0].lost}" if restored[0].lost else ""
        return RiskFound(risk="elevated", why=f"a way back restores data{lost}")
    if "restorable" in effects:
        return RiskFound(
            risk="elevated",
            why=f"the step {effects['restorable']} is undone only from a snapshot: writes since then are lost",
        )
    return RiskFound(risk="routine", why="every node can be switched back, and nothing is lost")
