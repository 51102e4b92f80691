"""A plan as a person wants to read it before signing: what happens to whom when, and what cannot be undone."""

from __future__ import annotations

from collections.abc import Iterable

from kedge.model import outside
from kedge.model.base import Digest, Frozen, Json
from kedge.model.plan import (
    Effect,
    Gate,
    Plan,
    PointOfNoReturn,
    Program,
    Risk,
    Step,
    Wave,
    WayBack,
)
from kedge.model.policy import Policy
from kedge.plan.digest import plan_digest
from kedge.plan.policies import asks
from kedge.plan.risk import risk_found

_SHOWN_NODES = 8
MOVED = "this fleet has no wave after it"
"""Why a gate is asked before the first stop."""


class ExplainedStep(Frozen):
    """One step in words. ``timeout`` in seconds."""

    name: str
    op: str
    said: str
    effect: Effect
    timeout: float
    when: bool = False


class ExplainedProgram(Frozen):
    """What is done on one node in one direction; ``legs`` are the lists of its steps."""

    name: str
    legs: tuple[tuple[ExplainedStep, ...], ...]


class ExplainedWave(Frozen):
    """One wave: its nodes by name in order (batches one after the other), and what stands before and behind it."""

    index: int
    name: str
    nodes: int
    batches: tuple[tuple[str, ...], ...]
    max_unavailable: int
    gate: str | None
    bake_seconds: float
    total_after: int
    way_back: str


class ExplainedGate(Frozen):
    """Who must sign, and before what."""

    name: str
    threshold: int
    roles: tuple[str, ...]
    each_of: tuple[str, ...]
    requester_counts: bool
    expires_seconds: float
    reason: str
    before: tuple[str, ...]


class Explanation(Frozen):
    """The whole plan, JSON-able."""

    digest: Digest
    fleet: str
    environment: str
    component: str
    before: str
    after: str
    nodes: int
    programs: tuple[ExplainedProgram, ...]
    waves: tuple[ExplainedWave, ...]
    gates: tuple[ExplainedGate, ...]
    moved_gates: tuple[str, ...] = ()
    """Gates that are asked before the first stop, because this fleet has no wave after them."""
    preflight: int
    preflight_said: tuple[str, ...] = ()
    """What must hold on every node before the first step, in words."""
    last_rule: bool
    point_of_no_return: str
    lost: str
    mixed: tuple[str, ...]
    settings_changed: tuple[str, ...]
    failure_budget: int
    on_failure: str
    risk: Risk = "irreversible"
    risk_why: str = ""
    policy_asks: tuple[str, ...] = ()
    """What the policy asks for a plan of this class, where the policy is known."""


def duration(seconds: float) -> str:
    """Seconds as people write them: ``90`` is ``1m30s``."""
    if seconds != int(seconds):
        return f"{seconds:g}s"
    left, parts = int(seconds), ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        parts += f"{count}{unit}" if count else ""
    return parts or "0s"


def explain(plan: Plan, policy: Policy | None = None) -> Explanation:
    """The plan in words, with what the policy it was made with asks for it."""
    done = 0
    risk = risk_found(plan)
    waves: list[ExplainedWave] = []
    for wave in plan.waves:
        done += len(wave.nodes)
        waves.append(_wave(plan, wave, done))
    return Explanation(
        digest=plan_digest(plan),
        fleet=plan.fleet.name,
        environment=plan.environment,
        component=plan.after.component,
        before=plan.before.version,
        after=plan.after.version,
        nodes=len(plan.nodes),
        programs=tuple(_program(program) for program in plan.programs),
        waves=tuple(waves),
        gates=tuple(_gate(plan, gate) for gate in plan.gates),
        moved_gates=plan.moved_gates,
        preflight=len(plan.preflight),
        preflight_said=tuple(_condition(step.params.get("probe")) for step in plan.preflight),
        last_rule=any(wave.rules for wave in plan.waves),
        point_of_no_return=_point(plan, plan.commit),
        lost=plan.commit.lost if plan.commit else "",
        mixed=tuple(
            f"{state.said}: {'may live together' if state.ok else 'may not'}, {state.why}"
            for state in plan.mixed
        ),
        settings_changed=_settings(plan),
        failure_budget=plan.failure_budget,
        on_failure=plan.on_failure,
        risk=risk.risk,
        risk_why=risk.why,
        policy_asks=asks(policy, risk.risk) if policy is not None else (),
    )


def _program(program: Program) -> ExplainedProgram:
    return ExplainedProgram(
        name=program.name,
        legs=tuple(tuple(_step(step) for step in leg.steps) for leg in program.legs),
    )


def _step(step: Step) -> ExplainedStep:
    return ExplainedStep(
        name=step.name,
        op=step.op,
        said=step.said or _words(step.op, step.params),
        effect=step.effect,
        timeout=step.timeout,
        when=step.when is not None,
    )


_FIXED = {
    "stage": "bring the archive to the host, verify it, unpack it beside what runs",
    "switch": "point current at the release",
    "configure": "write its configuration",
    "restore": "put the snapshot back; writes since then are lost",
    "check": "look, while the daemon still runs, at what the steps after the stop need",
}


def _words(op: str, params: dict[str, Json]) -> str:
    match op:
        case "probe":
            return f"must hold now: {_condition(params.get('probe'))}"
        case "healthy":
            hold, within = _number(params, "for"), _number(params, "within")
            held = f" for {duration(hold)}" if hold else ""
            return f"wait until {_condition(params.get('probe'))}{held}, at most {duration(within)}"
        case "run":
            return f"run {_line(params.get('argv'))}"
        case "stop":
            end = "then kill it" if params.get("kill") else "then park; it is never killed"
            grace = duration(_number(params, "grace"))
            return f"SIG{params.get('signal')} once, wait up to {grace}, {end}"
        case "snapshot":
            return f"copy {_line(params.get('paths'))}, complete or not at all{_links(params)}"
        case "start":
            return f"it must stay alive for {duration(_number(params, 'settle'))}"
        case _:
            return _FIXED.get(op, op)


def _links(params: dict[str, Json]) -> str:
    follow = params.get("follow")
    if not follow:
        return ""
    return f"; links followed: {'all' if follow is True else _line(follow)}"


def _number(params: dict[str, Json], key: str) -> float:
    value = params.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _line(value: Json) -> str:
    text = " ".join(str(part) for part in value) if isinstance(value, list) else ""
    return text if len(text) <= 100 else text[:97] + "…"


def _condition(probe: Json) -> str:
    if not isinstance(probe, dict):
        return "nothing"
    for key, join in (("all", " and "), ("any", " or ")):
        parts = probe.get(key)
        if isinstance(parts, list):
            return join.join(dict.fromkeys(_condition(part) for part in parts))
    if "not" in probe:
        return f"not ({_condition(probe['not'])})"
    expect = probe.get("expect")
    wanted = ", ".join(expect) if isinstance(expect, dict) else ""
    return _asked(probe) + (f" ({wanted})" if wanted else "")


def _asked(probe: dict[str, Json]) -> str:
    http, grpc = probe.get("http"), probe.get("grpc")
    command, tcp = probe.get("command"), probe.get("tcp")
    if isinstance(http, dict):
        metric = f", its {http['metric']} fits" if "metric" in http else ""
        return f"{http.get('method')} {http.get('url')} answers{metric}"
    if isinstance(grpc, dict):
        return " ".join(
            str(part) for part in (grpc.get("url"), grpc.get("service"), "serves") if part
        )
    if isinstance(command, dict):
        return f"{_line(command.get('argv'))} succeeds"
    if isinstance(tcp, dict):
        return f"{tcp.get('host')}:{tcp.get('port')} accepts"
    return "the daemon runs"


def _wave(plan: Plan, wave: Wave, done: int) -> ExplainedWave:
    return ExplainedWave(
        index=wave.index,
        name=wave.name,
        nodes=len(wave.nodes),
        batches=tuple(tuple(plan.nodes[node].name for node in batch) for batch in wave.batches),
        max_unavailable=wave.max_unavailable,
        gate=wave.gate,
        bake_seconds=wave.bake.duration if wave.bake else 0.0,
        total_after=done,
        way_back=way_back_words(plan, wave.index + 1),
    )


def way_back_words(plan: Plan, begun: int) -> str:
    """The way back once so many waves were begun, in words."""
    way = max(
        (way for way in plan.way_back if way.from_wave <= begun),
        key=lambda way: way.from_wave,
        default=None,
    )
    if way is None or way.kind == "forbidden":
        return "none: " + (way.lost if way and way.lost else "the plan names none")
    return _kind(plan, way)


def _kind(plan: Plan, way: WayBack) -> str:
    if way.kind == "none":
        return "nothing to take back"
    if way.kind == "switch-back":
        return f"switch back to {plan.before.version}, nothing is lost"
    gate = f", behind gate {way.gate}" if way.gate else ""
    return f"restore the snapshots of {plan.before.version}{gate}; lost: {way.lost}"


def _gate(plan: Plan, gate: Gate) -> ExplainedGate:
    before: list[str] = []
    if plan.start_gate == gate.name:
        before.append("the first step")
    if gate.name in plan.moved_gates:
        before.append(f"the first stop ({MOVED})")
    before += [f"wave {wave.name}" for wave in plan.waves if wave.gate == gate.name]
    if plan.commit is not None and plan.commit.wave is None and plan.commit.gate == gate.name:
        before.append("the finalize steps")
    if any(way.gate == gate.name for way in plan.way_back):
        before.append("a way back that loses writes")
    return ExplainedGate(
        name=gate.name,
        threshold=gate.threshold,
        roles=gate.roles,
        each_of=gate.each_of,
        requester_counts=gate.requester_counts,
        expires_seconds=gate.expires,
        reason=gate.reason,
        before=tuple(before),
    )


def _point(plan: Plan, commit: PointOfNoReturn | None) -> str:
    if commit is None:
        return "there is none: every node can be switched back at any moment"
    where = (
        f"wave {plan.waves[commit.wave].name}" if commit.wave is not None else "the finalize steps"
    )
    return f"before {where}, behind gate {commit.gate}"


def _settings(plan: Plan) -> tuple[str, ...]:
    old, new = plan.before.configuration.settings, plan.after.configuration.settings
    said: list[str] = []
    gone = {key for key in old if key not in new}
    for key in sorted(set(new) - set(old)):
        origin = next(
            (name for name in sorted(gone) if plan.after.configuration.renamed.get(name) == key),
            None,
        )
        said.append(f"{origin} becomes {key}" if origin else f"{key}={new[key]} is new")
        gone.discard(origin or "")
    said += [f"{key} is dropped" for key in sorted(gone)]
    return tuple(
        said
        + [
            f"{key} was {old[key]}, is {new[key]}"
            for key in sorted(set(old) & set(new))
            if old[key] != new[key]
        ]
    )


def lines(told: Explanation) -> tuple[str, ...]:
    """An explanation as plain text, one line each; no colours, no width."""
    return tuple(_lines(outside.lines(told, 1 << 20)))


def _lines(told: Explanation) -> Iterable[str]:
    yield f"{told.component} on fleet {told.fleet} ({told.environment}): {told.before} → {told.after}, {told.nodes} node(s)"
    yield f"plan {told.digest}"
    yield ""
    yield "On each node:"
    for program in told.programs:
        if program.name == "forward":
            yield from _step_lines(program)
    for change in told.settings_changed:
        yield f"    setting {change}"
    yield ""
    yield from _before_lines(told)
    for wave in told.waves:
        yield from _wave_lines(told, wave)
    yield f"  more than {told.failure_budget} failed node(s): {'go back by itself' if told.on_failure == 'rollback' else 'park and ask'}"
    yield ""
    yield f"Point of no return: {told.point_of_no_return}"
    if told.lost:
        yield f"  behind it is lost: {told.lost}"
    for program in told.programs:
        if program.name != "forward":
            yield ""
            yield {
                "back": "The way back, on each node:",
                "restore": "The way back from snapshots, on each node:",
            }.get(program.name, "Finalize, on one node:")
            yield from _step_lines(program)
    yield ""
    yield "Signatures:" if told.gates else "Signatures: none"
    for one in told.gates:
        yield from _gate_lines(one)
    yield ""
    yield "Releases live together:"
    for state in told.mixed:
        yield f"  {state}"


def _before_lines(told: Explanation) -> Iterable[str]:
    if told.preflight:
        yield f"Before the first step {told.preflight} condition(s) must hold on every node:"
        for condition in told.preflight_said:
            yield f"    {condition}"
    yield "Waves:"
    for gate in told.moved_gates:
        yield f"  ── gate {gate} (before the first stop: {MOVED})"


def _step_lines(program: ExplainedProgram) -> Iterable[str]:
    for number, leg in enumerate(program.legs):
        if number:
            yield "    ── a decision stands here"
        for step in leg:
            effect = f"  [{step.effect}]" if step.effect != "none" else ""
            when = " (if its condition holds)" if step.when else ""
            yield f"    {step.name}: {step.said}{when}{effect}"


def _wave_lines(told: Explanation, wave: ExplainedWave) -> Iterable[str]:
    if wave.gate:
        yield f"  ── gate {wave.gate}"
    at_once = f", {wave.max_unavailable} at a time" if wave.nodes > 1 else ""
    yield f"  {wave.index}. {wave.name}: {wave.nodes} node(s){at_once}, then {wave.total_after} of {told.nodes} are on {told.after}"
    for batch in wave.batches[:_SHOWN_NODES]:
        more = f" and {len(batch) - _SHOWN_NODES} more" if len(batch) > _SHOWN_NODES else ""
        yield f"       {', '.join(batch[:_SHOWN_NODES])}{more}"
    if len(wave.batches) > _SHOWN_NODES:
        yield f"       and {len(wave.batches) - _SHOWN_NODES} more batches"
    if told.last_rule and wave.nodes > 1:
        yield "       the node that is special when the wave opens (the leader, say) comes last"
    if wave.bake_seconds:
        yield f"       then looked at for {duration(wave.bake_seconds)}"
    yield f"       way back: {wave.way_back}"


def _gate_lines(gate: ExplainedGate) -> Iterable[str]:
    each = f", {' and '.join(gate.each_of)} among them" if gate.each_of else ""
    who = "" if gate.requester_counts else ", not counting whoever started it"
    yield f"  {gate.name}: {gate.threshold} of {' or '.join(gate.roles)}{each}{who}; before {' and '.join(gate.before)}"
    if gate.reason:
        yield f"       {gate.reason}"
    yield f"       waits {duration(gate.expires_seconds)}, then parks"
