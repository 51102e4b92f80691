"""The live tree of a run. ``render`` is pure: a view in, something rich can print out."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from cli import words
from cli.answers import answers, way_back
from desk.views import NodeView, RunView, WaveView
from kedge.model.order import Tally
from kedge.model.outside import line as visible
from kedge.model.outside import lines as lines_of
from kedge.model.outside import quoted
from kedge.model.run import Failure
from kedge.model.status import RunStatus, Showing

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "bold cyan"),
    "baking": ("◔", "bold cyan"),
    "done": ("✓", "green"),
    "gate": ("◇", "bold yellow"),
    "stopped": ("■", "bold yellow"),
    "failed": ("✗", "bold red"),
}
PHASES = {
    "preflight": "looks at every node before it touches one",
    "gate": "waits for signatures",
    "widening": "moves the fleet wave by wave",
    "parked": "parked: waits for a decision",
    "paused": "paused",
    "finalizing": "finishes: the way back ends here",
    "fencing": "raises the fence on every node",
    "going-back": "takes the nodes back",
    "done": "done",
    "aborted": "aborted",
    "rolled-back": "rolled back",
    "preempted": "pre-empted by a rollback",
    "terminated": "terminated in Temporal: its workflow is gone",
    "rejected": "rejected",
}
WAYS_BACK = {
    "none": "nothing was changed yet",
    "switch-back": "every node can be switched back",
    "restore": "by restoring snapshots; what was written since then is lost",
    "forbidden": "none; from here it only goes forward",
}
_GUIDE = "grey50"


def render(
    view: RunView, *, rows: int = 200, program: Sequence[str] = ("kedge",)
) -> RenderableType:
    """A run as a tree of phases, waves, nodes and steps, and below it what it waits for.

    ``rows`` is how many lines of nodes there is room for; waves that need more show counts and the
    nodes that run or failed. ``program`` is how this kedge is called, for the commands shown.
    """
    view = lines_of(view)
    parts: list[RenderableType] = []
    if view.gone is not None:
        parts.append(_gone(view))
    parts.append(_tree(view, rows))
    parts.extend(_glass(view, program))
    parts.extend(_below(view, program))
    return Group(*parts)


def _glass(view: RunView, program: Sequence[str]) -> list[Text]:
    """Who broke the glass for this run, and where it stands whether somebody reviewed that."""
    lines: list[Text] = []
    for verdict in view.status.orders:
        if verdict.accepted and verdict.break_glass:
            line = Text(f"{verdict.person} broke the glass to {verdict.verb}", style="bold red")
            line.append(f": {quoted(verdict.comment, 2000)}", style="not bold default")
            lines.append(line)
    if lines:
        command = words.command(*program, "review", view.status.run)
        lines.append(
            Text(
                f"somebody else reviews that; {command} says whether it is owed still", style="dim"
            )
        )
    return lines


def _gone(view: RunView) -> Text:
    text = Text("! ", style="bold red")
    text.append(f"engine unreachable for {words.duration(view.gone or 0)}", style="bold red")
    text.append(
        "; what follows was seen before. The run itself is safe: it goes on with the engine"
    )
    return text


def _tree(view: RunView, rows: int) -> Tree:
    tree = Tree(_title(view), guide_style=_GUIDE)
    status = view.status
    if status.kind == "upgrade":
        tree.add(_phase_line(status, "preflight", "preflight", before=("preflight",)))
        _add_waves(tree, view, rows)
        if view.back is not None:
            _add_wave(tree, view, view.back, rows)
        else:
            _add_finish(tree, view)
    else:
        tree.add(_phase_line(status, "fencing", "fence", before=("preflight", "fencing")))
        for wave in view.waves:
            _add_wave(tree, view, wave, rows)
    return tree


def _title(view: RunView) -> Text:
    status = view.status
    text = Text(status.run, style="bold")
    text.append(f"  {status.before} → {status.after}", style="bold magenta")
    text.append(f"  {PHASES.get(status.phase, status.phase)}", style=_phase_style(status))
    if status.held and status.phase != "paused":
        text.append("  paused: begins nothing further", style="bold yellow")
    took = words.between(status.started, status.ended or view.now)
    text.append(f"  {words.duration(took)}", style="dim")
    return text


def _phase_style(status: RunStatus) -> str:
    if status.phase == "done" or (status.phase == "rolled-back" and status.kind == "rollback"):
        return "bold green"
    if status.phase in {"parked", "paused", "gate"}:
        return "bold yellow"
    if status.phase in {"aborted", "rolled-back", "preempted", "rejected", "terminated"}:
        return "bold red"
    return "cyan"


def _phase_line(status: RunStatus, phase: str, name: str, before: tuple[str, ...]) -> Text:
    """One phase without waves; it is over once the run's phase is none of ``before``."""
    state = "running" if status.phase in before else "done"
    if state == "running" and status.waiting is not None:
        state = "stopped"
    text = _marked(state, name)
    spent = status.seconds.get(phase)
    if state == "done" and spent is not None:
        text.append(f"  {words.duration(spent)}", style="dim")
    elif state == "running" and status.said:
        text.append(f"  {status.said}", style="dim")
    return text


def _marked(state: str, name: str) -> Text:
    mark, style = MARKS[state]
    text = Text(f"{mark} ", style=style)
    text.append(name, style="" if state in {"running", "baking", "stopped", "gate"} else style)
    return text


def _add_waves(tree: Tree, view: RunView, rows: int) -> None:
    for wave in view.waves:
        if view.boundary == wave.index:
            tree.add(_boundary(view))
        _add_wave(tree, view, wave, rows)
    if not view.waves:
        status = view.status
        tree.add(
            Text(
                f"wave {min(status.wave + 1, status.waves)} of {status.waves}, "
                f"{status.nodes_done} of {words.count(status.nodes, 'node')} done"
            )
        )


def _add_finish(tree: Tree, view: RunView) -> None:
    status = view.status
    if view.boundary is not None and view.boundary >= max(len(view.waves), 1):
        tree.add(_boundary(view))
    state = {"finalizing": "running", "done": "done"}.get(status.phase, "waiting")
    tree.add(_marked(state, "finish"))


def _boundary(view: RunView) -> Text:
    text = Text("── point of no return", style="bold red" if _is_near(view) else "red")
    if view.lost:
        text.append(f": {view.lost}", style="dim")
    return text


def _is_near(view: RunView) -> bool:
    waiting = view.status.waiting
    return waiting is not None and bool(waiting.showing.lost)


def _add_wave(tree: Tree, view: RunView, wave: WaveView, rows: int) -> None:
    text = _marked("gate" if _is_at(view, wave) else wave.state, wave.name)
    text.append(f"  {_wave_words(view, wave)}", style="yellow" if _is_at(view, wave) else "dim")
    branch = tree.add(text)
    lines = wave.nodes
    if len(lines) > rows:
        lines = tuple(line for line in lines if line.state in {"running", "failed"})
    for line in lines[:rows]:
        branch.add(_node_line(line, max(len(one.name) for one in lines)))
    if len(lines) > rows:
        branch.add(Text(f"and {len(lines) - rows} more", style="dim"))


def _is_at(view: RunView, wave: WaveView) -> bool:
    """Whether the run waits at the gate before this wave."""
    waiting = view.status.waiting
    return (
        waiting is not None
        and waiting.kind == "gate"
        and waiting.subject == wave.gate
        and wave.state == "waiting"
    )


def _wave_words(view: RunView, wave: WaveView) -> str:
    if wave.state == "waiting":
        said = words.count(wave.total, "node") if wave.total else ""
        if wave.gate is None:
            return said
        return (
            f"{said}, gate {wave.gate} waits"
            if _is_at(view, wave)
            else f"{said}, behind gate {wave.gate}"
        )
    if wave.state == "done" and wave.counts["failed"] == 0:
        return words.count(wave.total, "node")
    said = f"{wave.counts['done']} of {words.count(wave.total, 'node')} done"
    if wave.counts["running"]:
        said += f", {wave.counts['running']} running"
    if wave.counts["failed"]:
        said += f", {wave.counts['failed']} failed"
    if wave.state == "baking":
        left = words.between(view.now, wave.until) if wave.until else 0
        said += f", baking: {words.duration(left)} left" if wave.until else ", baking"
    return said


def _node_line(line: NodeView, width: int) -> Text:
    text = _marked(line.state, line.name)
    room = " " * (width - len(line.name))
    if line.now is not None:
        text.append(f"{room}  {line.now.step}", style="cyan")
        if line.now.said:
            text.append(f"  {quoted(line.now.said)}", style="dim")
        if line.now.attempt > 1:
            text.append(f"  (attempt {line.now.attempt})", style="yellow")
    elif line.failed_step:
        text.append(f"{room}  {line.failed_step}: ", style="red")
        text.append(quoted(line.failed_said) if line.failed_said else "")
    return text


def _below(view: RunView, program: Sequence[str]) -> list[RenderableType]:
    status = view.status
    if view.ended:
        return _end_lines(view, program)
    lines: list[RenderableType] = []
    asked = _asked(view, program)
    if asked:
        lines += asked
    elif status.said:
        lines += ["", Text(status.said, style="dim")]
    back = way_back(status, program)
    if back is not None and view.back is None and view.way_back in {"switch-back", "restore"}:
        text = Text(f"{back.does}, at any moment: ", style="dim")
        text.append(back.command, style="bold not dim")
        lines.append(text)
    return lines


def _asked(view: RunView, program: Sequence[str]) -> list[RenderableType]:
    """What a run, or the rollback in its place, asks people, with the commands that answer it."""
    asking = view.asking
    open_answers = answers(asking, program)
    if not open_answers:
        return []
    lines: list[RenderableType] = [""]
    if asking is not view.status:
        text = Text(asking.run, style="bold")
        text.append(
            f" takes it back: {PHASES.get(asking.phase, asking.phase)}", style="bold yellow"
        )
        lines.append(text)
    lines += waiting_lines(asking, view.now)
    width = max(len(answer.does) for answer in open_answers)
    for answer in open_answers:
        # What it does comes first: a narrow screen may cut a command, never its meaning.
        text = Text(f"   {answer.does:<{width}}  ", style="dim")
        text.append(answer.command, style="bold not dim")
        lines.append(text)
    return lines


def waiting_lines(status: RunStatus, now: str) -> list[Text]:
    """What a run waits for, for how long, and what was said about it."""
    status = lines_of(status)
    waiting = status.waiting
    if waiting is None:
        return [Text(status.said or status.phase, style="bold yellow")] if status.said else []
    what = {"gate": "gate ", "parked": "a decision on ", "paused": "", "bake": "the bake of "}
    head = Text(f"waits for {what[waiting.kind]}{waiting.subject}", style="bold yellow")
    head.append(f"  for {words.duration(words.between(waiting.since, now))}")
    if waiting.until:
        head.append(f", until {words.clock(waiting.until, now)}", style="dim")
    lines = [head]
    if waiting.tally is not None:
        lines.append(Text("   " + tally_words(waiting.tally)))
    if waiting.looked is not None:
        age = words.duration(words.between(waiting.looked, now))
        lines.append(Text(f"   the nodes were looked at {age} ago", style="dim"))
    return lines + showing_lines(waiting.showing)


def showing_lines(showing: Showing) -> list[Text]:
    """What the run shows before someone signs: how far it is, what failed, what is lost."""
    showing = lines_of(showing)
    lines = [Text(f"   {said}") for said in showing.said]
    for failure in showing.failures[:5]:
        where = f" at {failure.step}" if failure.step else ""
        lines.append(
            Text(f"   {failure.name}{where}: {failure.type}: {quoted(failure.said)}", style="red")
        )
        lines += diff_lines(failure)
    if len(showing.failures) > 5:
        lines.append(Text(f"   and {len(showing.failures) - 5} more failures", style="red"))
    if showing.reversible:
        said = WAYS_BACK.get(showing.reversible, showing.reversible)
        lines.append(Text(f"   way back from here: {said}", style="dim"))
    if showing.lost:
        lines.append(Text(f"   lost for good behind it: {showing.lost}", style="red"))
    return lines


MAX_DIFF_LINES = 24


def diff_lines(failure: Failure) -> list[Text]:
    """What a person changed by hand on a node, as the host showed it."""
    diff = failure.saw.get("diff")
    shown = [visible(str(one)) for one in diff] if isinstance(diff, list) else []
    styles = {"+": "green", "-": "red"}
    lines = [Text(f"      {one}", style=styles.get(one[:1], "dim")) for one in shown]
    if len(lines) > MAX_DIFF_LINES:
        more = f"      and {len(lines) - MAX_DIFF_LINES} more lines: `kedge status RUN --json` has them"
        return [*lines[:MAX_DIFF_LINES], Text(more, style="dim")]
    return lines


def tally_words(tally: Tally) -> str:
    """``1 of 2 signatures (alice); still needs a sre``."""
    said = f"{len(tally.signed)} of {words.count(tally.threshold, 'signature')}"
    if tally.signed:
        said += f" ({words.listed(verdict.person for verdict in tally.signed)})"
    if tally.missing_roles:
        said += f"; still needs one of role {words.listed(tally.missing_roles)}"
    return said


def _end_lines(view: RunView, program: Sequence[str]) -> list[RenderableType]:
    status = view.status
    style = "green" if view.well else "red"
    text = Text(status.said or PHASES.get(status.phase, status.phase), style=f"bold {style}")
    lines: list[RenderableType] = ["", text]
    if status.successor:
        more = Text("it goes on as ")
        more.append(words.command(*program, "watch", status.successor), style="bold")
        lines.append(more)
        lines += _asked(view, program)
    return lines
