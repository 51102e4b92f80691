"""From a runbook's steps to programs: what is done on one node in each direction, as host operations."""

from __future__ import annotations

from typing import Any

from kedge.model.base import Json
from kedge.model.notation import Path
from kedge.model.plan import Effect, Leg, Program, Step
from kedge.model.probe import Probe
from kedge.model.runbook import AfterCommit, Runbook
from kedge.model.steps import (
    AnyStep,
    ConfigureStep,
    HealthyStep,
    NodeStep,
    ProbeStep,
    RunStep,
    SnapshotStep,
    StageStep,
    StartStep,
    StopStep,
    Undo,
    WaitStep,
)
from kedge.plan.conditions import Facts, probe_json

RUNS: dict[str, Json] = {"service": {"running": True}}
"""The condition that a node's daemon runs."""

MARGIN = 10.0
"""Seconds a step gets over what it waits for by itself."""


def step_names(steps: tuple[NodeStep, ...]) -> tuple[str, ...]:
    """The name of each step: its own, or its verb, numbered from the second on."""
    taken = {step.body.name for step in steps if step.body.name}
    names: list[str] = []
    counts: dict[str, int] = {}
    for step in steps:
        name = step.body.name
        while name is None or (name in names and not step.body.name):
            counts[step.verb] = counts.get(step.verb, 0) + 1
            number = counts[step.verb]
            candidate = step.verb if number == 1 else f"{step.verb}-{number}"
            name = None if candidate in taken else candidate
        names.append(name)
    return tuple(names)


class Maker:
    """Makes steps with one runbook's facts; ``start_effect`` is what a start of the new release costs."""

    def __init__(self, runbook: Runbook, start_effect: Effect) -> None:
        self.runbook = runbook
        self.facts: Facts = dict(runbook.facts)
        self.start_effect = start_effect

    def probe(self, probe: Probe, *, captured: bool = True) -> dict[str, Json] | None:
        """A probe as the host program takes it."""
        return probe_json(probe, self.facts, captured=captured)

    def step(self, name: str, written: NodeStep, *, captured: bool = True) -> Step | None:
        """The step, or None when nothing of its condition is left without captured values."""
        body = written.body
        made = self._params(body, captured=captured)
        if made is None:
            return None
        op, params, timeout = made
        return Step(
            name=name,
            op=op,
            params=params,
            when=self.probe(body.when, captured=captured) if body.when else None,
            effect=self.effect(written),
            # A command is ended at its time-out by who runs it, and its end is waited for a moment longer.
            timeout=timeout if isinstance(body, RunStep) else body.timeout or timeout,
            said=body.said,
        )

    def effect(self, written: NodeStep) -> Effect:
        """What undoing a step costs once it was begun."""
        if written.run is not None:
            return _undo_effect(written.run)
        if written.start is not None:
            return self.start_effect
        return "reversible" if written.verb in {"stop", "switch", "configure"} else "none"

    def _params(
        self, body: AnyStep, *, captured: bool
    ) -> tuple[str, dict[str, Json], float] | None:
        match body:
            case WaitStep():
                return self._waiting(body, captured=captured)
            case ProbeStep():
                probe = self.probe(body, captured=captured)
                return None if probe is None else ("probe", {"probe": probe}, 30.0 + MARGIN)
            case RunStep():
                timeout = body.timeout or 60.0
                return "run", self.run(body, timeout, body.output_max), timeout + MARGIN
            case _:
                return self._plain(body)

    def _plain(self, body: AnyStep) -> tuple[str, dict[str, Json], float]:
        match body:
            case StageStep():
                limits = {"max_bytes": body.max_bytes, "max_members": body.max_members}
                return (
                    "stage",
                    {key: value for key, value in limits.items() if value is not None},
                    900.0,
                )
            case StopStep():
                params: dict[str, Json] = {
                    "signal": body.signal,
                    "grace": body.grace,
                    "kill": body.then == "kill",
                }
                return "stop", params, body.grace + MARGIN
            case SnapshotStep():
                return "snapshot", snapshot_params(body), 3600.0
            case StartStep():
                return "start", {"settle": body.settle}, body.settle + 30.0 + MARGIN
            case ConfigureStep():
                return "configure", {}, 60.0
            case _:
                return "switch", {}, 300.0

    def _waiting(
        self, body: WaitStep, *, captured: bool
    ) -> tuple[str, dict[str, Json], float] | None:
        probe = self.probe(body, captured=captured)
        if probe is None:
            return None
        params: dict[str, Json] = {
            "probe": probe,
            "for": body.hold,
            "within": body.within,
            "interval": body.interval,
            "service": isinstance(body, HealthyStep) and body.alive,
        }
        return "healthy", params, body.within + body.hold + MARGIN

    def run(self, body: RunStep | Undo, timeout: float, output_max: int = 4096) -> dict[str, Json]:
        """The parameters of a ``run``."""
        return {
            "argv": list(body.argv),
            "env": {**body.env},
            "cwd": body.cwd,
            "timeout": timeout,
            "exit": list(body.exit),
            "check": self.probe(body.check) if body.check else None,
            "output_max": output_max,
        }


def snapshot_params(body: SnapshotStep) -> dict[str, Json]:
    """The parameters of a ``snapshot``, its name apart; what is as usual is not said."""
    made: dict[str, Json] = {"id": "", "paths": [*body.paths], "keep_out": [*body.keep_out]}
    if body.follow is not False:
        made["follow"] = True if body.follow is True else [*body.follow]
    if body.keep_links:
        made["keep_links"] = [*body.keep_links]
    if body.empty:
        made["empty"] = True
    return made


def _undo_effect(body: RunStep) -> Effect:
    if isinstance(body.undo, Undo):
        return "reversible"
    effects: dict[str, Effect] = {
        "none": "none",
        "snapshot": "restorable",
        "impossible": "irreversible",
    }
    return effects[body.undo]


def forward(runbook: Runbook, maker: Maker) -> Program:
    """The way to the new release."""
    names = step_names(runbook.node)
    steps: list[Step] = []
    for name, written in zip(names, runbook.node, strict=True):
        made = maker.step(name, written)
        if made is not None:
            steps.append(_with_snapshot(made, name))
    ends = [written.body.decision for written in runbook.node]
    at = next((at for at, step in enumerate(steps) if step.op == "stop"), None)
    if at is not None:
        restores = isinstance(runbook.rollback.after_commit, AfterCommit)
        returns = restores or runbook.rollback.before_commit == "switch-back"
        check = _check(steps, at, back=returns)
        if restores:
            check = check.model_copy(update={"params": {**check.params, "restores": True}})
        steps.insert(at, check)
        ends.insert(at, False)
    return Program(name="forward", legs=_legs(steps, ends, runbook))


CHECK_SAID = "looks, while the daemon still runs, at what the steps after the stop need"


def _check(steps: list[Step], stop: int, *, back: bool | None) -> Step:
    """The look right before the stop, made from the steps that follow it; ``back`` None: this is a way back."""
    taken = {step.name for step in steps}
    numbered = ("check", *(f"check-{number}" for number in range(2, len(taken) + 3)))
    name = next(candidate for candidate in numbered if candidate not in taken)
    params: dict[str, Json] = {} if back is None else {"back": back}
    later = steps[stop + 1 :]
    switched = next((at for at, step in enumerate(later) if step.op == "switch"), len(later))
    programs: list[Json] = [
        {"program": program, "release": "{release.digest}"}
        for step in later[switched:]
        if step.op == "run" and step.when is None and (program := _of_release(step)) is not None
    ]
    if programs:
        params["programs"] = programs
    for step in later:
        if step.op in {"snapshot", "restore"}:
            params[step.op] = {**step.params}
    return Step(name=name, op="check", params=params, timeout=900.0, said=CHECK_SAID)


def _of_release(step: Step) -> str | None:
    """The program of a command, when it is one that the release must have."""
    argv = step.params.get("argv")
    program = argv[0] if isinstance(argv, list) and argv else None
    return program if isinstance(program, str) and program.startswith("{node.current}/") else None


def _with_snapshot(step: Step, name: str) -> Step:
    if step.op != "snapshot":
        return step
    named: dict[str, Json] = {"id": _snapshot_id(name), "step": name}
    return step.model_copy(update={"params": {**step.params, **named}})


def _snapshot_id(name: str) -> str:
    return "e{snapshot.epoch}-" + name


def _legs(steps: list[Step], ends: list[bool], runbook: Runbook) -> tuple[Leg, ...]:
    bodies = [written.body for written in runbook.node]
    attempts = max([runbook.retry.attempts, *(body.attempts or 0 for body in bodies)])
    backoff = max([runbook.retry.backoff, *(body.backoff or 0.0 for body in bodies)])
    legs: list[Leg] = []
    begun: list[Step] = []
    for index, step in enumerate(steps):
        begun.append(step)
        if (index < len(ends) and ends[index]) or index == len(steps) - 1:
            legs.append(Leg(steps=tuple(begun), attempts=attempts, backoff=backoff))
            begun = []
    return tuple(legs)


def way_back(runbook: Runbook, maker: Maker, *, restore: bool) -> Program:
    """The way to the old release from anywhere in the forward program.

    Commands marked ``also_back`` keep their place. Commands that undo others run mirrored: those of steps behind the
    start before the stop, those of steps before the stop last. With ``restore``, the snapshot is put back
    between stop and switch.
    """
    names = step_names(runbook.node)
    all_steps = list(zip(names, runbook.node, strict=True))
    verbs = [written.verb for written in runbook.node]
    stop, start = verbs.index("stop"), verbs.index("start")
    before, between, behind = all_steps[:stop], all_steps[stop + 1 : start], all_steps[start + 1 :]
    moves = {written.verb: (name, written) for name, written in all_steps}
    steps: list[Step | None] = [
        # Only where it is missing does its archive have to be had: the leg brings it then.
        maker.step(*moves["stage"], captured=False) if "stage" in moves else None,
        *_again(before, maker),
        *_undone(behind, maker),
        maker.step(*moves["stop"], captured=False),
        *_undone(between, maker),
    ]
    if restore:
        steps.append(_restore(moves["snapshot"]))
    steps += [maker.step(*moves[verb], captured=False) for verb in ("switch", "configure")]
    steps += _again(between, maker)
    steps.append(maker.step(*moves["start"], captured=False))
    steps += _looked_at(behind, runbook, maker)
    steps += _again(behind, maker, conditions=False)
    steps += _undone(before, maker)
    done = [_lasting(step) for step in steps if step is not None]
    stops = next(at for at, step in enumerate(done) if step.op == "stop")
    done.insert(stops, _check(done, stops, back=None))
    return Program(name="restore" if restore else "back", legs=_legs(done, [], runbook))


def _lasting(step: Step) -> Step:
    """A step on the way back: what it costs to undo is not asked there."""
    return step.model_copy(update={"effect": "reversible" if step.effect != "none" else "none"})


def _again(
    steps: list[tuple[str, NodeStep]], maker: Maker, *, conditions: bool = True
) -> list[Step | None]:
    return [
        maker.step(name, written, captured=False)
        for name, written in steps
        if getattr(written.body, "also_back", False) and (conditions or written.run is not None)
    ]


def _undone(steps: list[tuple[str, NodeStep]], maker: Maker) -> list[Step | None]:
    found: list[Step | None] = []
    for name, written in reversed(steps):
        undo = written.run.undo if written.run is not None else None
        if isinstance(undo, Undo):
            params = maker.run(undo, undo.timeout)
            said = f"takes back {name}"
            timeout = undo.timeout + MARGIN
            found.append(
                Step(name=f"undo-{name}"[:63], op="run", params=params, timeout=timeout, said=said)
            )
    return found


def _restore(snapshot: tuple[str, NodeStep]) -> Step:
    name, written = snapshot
    body = written.snapshot or SnapshotStep()
    params: dict[str, Json] = {
        "id": _snapshot_id(name),
        "step": name,
        "keep": list(body.keep_newest),
    }
    return Step(
        name="restore",
        op="restore",
        params=params,
        effect="irreversible",
        timeout=body.timeout or 3600.0,
    )


def _looked_at(
    steps: list[tuple[str, NodeStep]], runbook: Runbook, maker: Maker
) -> list[Step | None]:
    if runbook.rollback.healthy is not None:
        return [maker.step("healthy", NodeStep(healthy=runbook.rollback.healthy))]
    return [
        maker.step(name, written, captured=False)
        for name, written in steps
        if written.verb in {"healthy", "wait", "probe"}
    ]


def finalize(runbook: Runbook, maker: Maker) -> Program | None:
    """The steps behind the last wave; None when the runbook has none."""
    if runbook.finalize is None:
        return None
    names = step_names(runbook.finalize.steps)
    steps = [
        made
        for name, written in zip(names, runbook.finalize.steps, strict=True)
        if (made := maker.step(name, written)) is not None
    ]
    return Program(name="finalize", legs=_legs(steps, [], runbook))


def bake_probe(runbook: Runbook, maker: Maker) -> dict[str, Json]:
    """What a bake looks at unless the runbook says otherwise: the daemon runs and every health condition holds."""
    parts: list[Json] = [{"service": {"running": True}}]
    for written in runbook.node:
        if written.healthy is not None:
            made = maker.probe(written.healthy)
            if made is not None:
                parts.append(made)
    return {"all": parts}


def step_paths(runbook: Runbook) -> list[tuple[Path, str, NodeStep]]:
    """Each written step with its place and its name."""
    lists: list[tuple[Path, tuple[NodeStep, ...]]] = [(("node",), runbook.node)]
    if runbook.finalize is not None:
        lists.append((("finalize", "steps"), runbook.finalize.steps))
    found: list[tuple[Path, str, NodeStep]] = []
    for base, steps in lists:
        for index, (name, step) in enumerate(zip(step_names(steps), steps, strict=True)):
            found.append(((*base, index), name, step))
    return found


def plain(value: Any) -> dict[str, Json]:
    """A model as the plain tree that placeholders are looked for in."""
    made: dict[str, Json] = value.model_dump(mode="json", by_alias=True)
    return made
