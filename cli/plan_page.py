"""A plan as a page to read before signing. Pure: an explanation in, lines with styles out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from cli import words
from kedge.model.outside import lines as each_line
from kedge.plan.explain import (
    MOVED,
    ExplainedGate,
    ExplainedProgram,
    ExplainedStep,
    ExplainedWave,
    Explanation,
)

EFFECTS = {
    "none": ("", ""),
    "reversible": ("can be undone", "green"),
    "restorable": ("undone from a snapshot: writes since then are lost", "yellow"),
    "irreversible": ("cannot be undone", "bold red"),
}
PROGRAMS = {
    "forward": "On each node",
    "back": "The way back, on each node",
    "restore": "The way back from snapshots, on each node",
    "finalize": "Finalize, on one node",
}
SHOWN = 8
WHOLE = 1 << 20


def page(told: Explanation) -> list[Text]:
    """The whole plan, line by line."""
    # Nothing is cut: a reader signs for all of it.
    told = each_line(told, WHOLE)
    return [line for part in _parts(told) for line in part]


def _parts(told: Explanation) -> Iterator[Iterator[Text]]:
    yield _head(told)
    yield _programs(told, ("forward",))
    yield _waves(told)
    yield _boundary(told)
    yield _risk(told)
    yield _gates(told)
    yield _programs(told, ("back", "restore", "finalize"))
    yield _company(told)


def _title(text: str) -> Text:
    return Text(text, style="bold underline")


def _head(told: Explanation) -> Iterator[Text]:
    head = Text(f"{told.component} on fleet {told.fleet}", style="bold")
    head.append(f"  {told.before} → {told.after}", style="bold magenta")
    head.append(f"  {words.count(told.nodes, 'node')}, {told.environment}")
    yield head
    yield Text(f"plan {told.digest}", style="bold cyan")


def _programs(told: Explanation, wanted: tuple[str, ...]) -> Iterator[Text]:
    for program in told.programs:
        if program.name in wanted and program.legs:
            yield Text()
            yield _title(PROGRAMS.get(program.name, program.name))
            yield from _steps(program)
            if program.name == "forward":
                for change in told.settings_changed:
                    yield Text(f"     setting: {change}", style="dim")


def _steps(program: ExplainedProgram) -> Iterator[Text]:
    number = 0
    width = max(len(step.name) for leg in program.legs for step in leg)
    for place, leg in enumerate(program.legs):
        if place:
            yield Text("     ── what comes next is decided here", style="dim")
        for step in leg:
            number += 1
            yield _step(number, step, width)


def _step(number: int, step: ExplainedStep, width: int) -> Text:
    text = Text(f"  {number:>2} ", style="dim")
    text.append(f"{step.name:<{width}}", style="bold not dim")
    text.append(f"  {step.said}", style="not dim")
    if step.when:
        text.append(" (if its condition holds)", style="italic")
    said, style = EFFECTS[step.effect]
    if said:
        text.append(f"  {said}", style=f"not dim {style}")
    return text


def _waves(told: Explanation) -> Iterator[Text]:
    yield Text()
    yield _title("Waves")
    if told.preflight:
        held = words.count(told.preflight, "condition")
        yield Text(f"     first, {held} must hold on every node")
        for condition in told.preflight_said:
            yield Text(f"       {condition}", style="dim")
    for gate in told.moved_gates:
        yield Text(f"     ◇ gate {gate}, before the first stop: {MOVED}", style="yellow")
    for wave in told.waves:
        yield from _wave(told, wave)
    what = (
        "the fleet goes back by itself"
        if told.on_failure == "rollback"
        else "the run parks and asks"
    )
    more = f"more than {words.count(told.failure_budget, 'node')} fail"
    when = "a node fails" if told.failure_budget == 0 else more
    yield Text(f"     when {when}, {what}")


def _wave(told: Explanation, wave: ExplainedWave) -> Iterator[Text]:
    if wave.gate:
        yield Text(f"     ◇ gate {wave.gate}", style="yellow")
    text = Text(f"  {wave.index:>2} ", style="dim")
    text.append(wave.name, style="bold not dim")
    text.append(f"  {words.count(wave.nodes, 'node')}", style="not dim")
    if wave.nodes > 1:
        text.append(f", {wave.max_unavailable} at a time", style="not dim")
    text.append(f"; then {wave.total_after} of {told.nodes} are on {told.after}")
    yield text
    for batch in wave.batches[:SHOWN]:
        yield Text(f"       {words.listed(batch, most=SHOWN)}")
    if len(wave.batches) > SHOWN:
        yield Text(f"       and {len(wave.batches) - SHOWN} more batches, one after the other")
    if told.last_rule and wave.nodes > 1:
        yield Text(
            "       whoever is special when the wave opens (the leader, say) comes last",
            style="dim",
        )
    if wave.bake_seconds:
        yield Text(f"       then looked at for {words.duration(wave.bake_seconds)}", style="dim")
    yield Text(f"       way back: {wave.way_back}", style="dim")


def _boundary(told: Explanation) -> Iterator[Text]:
    yield Text()
    yield _title("Point of no return")
    yield Text(f"     {told.point_of_no_return}", style="red" if told.lost else "green")
    if told.lost:
        yield Text(f"     lost behind it: {told.lost}", style="red")


RISKS = {"routine": "green", "elevated": "yellow", "irreversible": "bold red"}


def _risk(told: Explanation) -> Iterator[Text]:
    yield Text()
    yield _title("What is at stake")
    line = Text(f"     {told.risk}", style=RISKS[told.risk])
    line.append(f": {told.risk_why}", style="not bold default")
    yield line
    for said in told.policy_asks:
        yield Text(f"     {said}", style="dim")


def _gates(told: Explanation) -> Iterator[Text]:
    yield Text()
    yield _title("Who signs")
    if not told.gates:
        yield Text("     nobody but whoever starts it")
    for gate in told.gates:
        yield from _gate(gate)


def _gate(gate: ExplainedGate) -> Iterator[Text]:
    text = Text(f"     ◇ {gate.name}  ", style="bold yellow")
    people = f"{words.count(gate.threshold, 'person', 'people')} of role {' or '.join(gate.roles)}"
    text.append(people, style="not bold default")
    if gate.each_of:
        text.append(f", with {' and '.join(gate.each_of)} among them", style="not bold default")
    if not gate.requester_counts:
        text.append(", whoever starts it does not count", style="not bold dim default")
    yield text
    where = " and ".join(gate.before)
    waits = f"waits {words.duration(gate.expires_seconds)}, then parks"
    yield Text(f"       before {where}; {waits}" if where else f"       {waits}", style="dim")
    if gate.reason:
        yield Text(f"       {gate.reason}", style="dim")


def _company(told: Explanation) -> Iterator[Text]:
    if told.mixed:
        yield Text()
        yield _title("Releases that live together meanwhile")
        for state in told.mixed:
            yield Text(f"     {state}")
