"""Gates against what a policy asks at least: which are passed when, which ask for too little, and where one is missing.

Pure. The compiler says it to whoever writes a runbook; the warrant says it again to every plan that a worker is given.
"""

from __future__ import annotations

from kedge.model.plan import Gate, Plan
from kedge.model.policy import Minimum


def gates_before(plan: Plan, begun: int) -> tuple[str, ...]:
    """The gates that are passed before so many waves were begun, in the order in which they are met.

    Gates that no wave comes after are asked before the first wave. More than there are waves stands for the finalize steps.
    """
    moved = plan.moved_gates if begun > 0 else ()
    gates = [plan.start_gate, *moved, *(wave.gate for wave in plan.waves[:begun])]
    if plan.commit is not None:
        behind = len(plan.waves) if plan.commit.wave is None else plan.commit.wave
        if begun > behind:
            gates.append(plan.commit.gate)
    return tuple(dict.fromkeys(name for name in gates if name is not None))


def idle(plan: Plan) -> tuple[str, ...]:
    """Gates that the plan lists and that stand before nothing: people read of a signature that nobody would be asked."""
    asked = {*gates_before(plan, len(plan.waves) + 1), *(way.gate for way in plan.way_back)}
    return tuple(
        f"the plan lists the gate {gate.name}, and it stands before nothing"
        for gate in plan.gates
        if gate.name not in asked
    )


def unguarded(plan: Plan, least: Minimum) -> tuple[str, ...]:
    """Where the plan shuts the way back without people: none of the gates before asks for what a point of no return
    takes, and the plan has none there. Promise 5: that line is shown, and has a gate of its own.
    """
    shut = [way.from_wave for way in plan.way_back if way.kind == "forbidden"]
    if not plan.way_back:
        shut = [0]
    for begun in shut[:1]:
        names = gates_before(plan, begun)
        if plan.commit is not None and plan.commit.gate in names:
            return ()
        if not any(not below(named(plan, name), least) for name in names):
            first = (
                plan.waves[0].name
                if begun < 2
                else plan.waves[min(begun, len(plan.waves)) - 1].name
            )
            said = f"there is no way back once wave {first} began, and no gate before it asks for what the policy asks of a point of no return"
            return (said,)
    return ()


def named(plan: Plan, name: str) -> Gate | None:
    """The gate of that name, if the plan has it."""
    return next((gate for gate in plan.gates if gate.name == name), None)


def below(gate: Gate | None, least: Minimum) -> list[str]:
    """Where a gate asks for less than the policy's minimum; a gate that is not there asks for nothing."""
    if gate is None:
        return ["the plan names a gate and does not have it"]
    wrong = []
    if gate.threshold < least.threshold:
        wrong.append(
            f"the gate {gate.name} asks for {gate.threshold} people, the policy for {least.threshold}"
        )
    missing = [role for role in least.each_of if role not in gate.each_of]
    if missing:
        wrong.append(f"the gate {gate.name} does not ask for {', '.join(missing)}, the policy does")
    return wrong
