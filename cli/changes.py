"""What changed between two views of a run, as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cli import words
from cli.answers import answers
from cli.tree import PHASES, tally_words
from desk.views import DETAIL_LIMIT, NodeView, RunView, WaveView
from kedge.model.outside import lines as lines_of
from kedge.model.outside import quoted
from kedge.model.status import RunStatus

PART = 0.05
"""Of a large wave, a line comes with every twentieth of its nodes."""


def changes(
    before: RunView | None, after: RunView, program: Sequence[str] = ("kedge",)
) -> list[str]:
    """The lines to print for ``after``, when ``before`` was the view before it (None: the first)."""
    before, after = None if before is None else lines_of(before), lines_of(after)
    if before is None:
        status = after.status
        first = (
            f"{status.run} {status.before} → {status.after}: {words.count(status.nodes, 'node')}"
        )
        return [first, *_phase(None, status), *_waves(None, after), *_waiting(None, after, program)]
    if after.gone is not None:
        return (
            []
            if before.gone is not None
            else [f"{after.gone_why}; nothing is lost, the run goes on from there"]
        )
    lines = [] if before.gone is None else [f"answers again, after {words.duration(before.gone)}"]
    lines += _phase(before.status, after.status)
    lines += _waves(before, after)
    lines += _orders(before.status, after.status)
    lines += _waiting(before, after, program)
    return lines


def _phase(before: RunStatus | None, after: RunStatus) -> Iterator[str]:
    if before is None or before.phase != after.phase or before.said != after.said:
        said = after.said or PHASES.get(after.phase, after.phase)
        yield said if said.startswith(after.phase) else f"{after.phase}: {said}"
    held = before is not None and before.held
    if after.held != held:
        yield "paused: begins nothing further" if after.held else "resumed"
    if after.successor and (before is None or before.successor != after.successor):
        yield f"goes on as {after.successor}"


def _waves(before: RunView | None, after: RunView) -> Iterator[str]:
    known = {} if before is None else {wave.index: wave for wave in _all(before)}
    for wave in _all(after):
        yield from _wave(known.get(wave.index), wave)


def _all(view: RunView) -> tuple[WaveView, ...]:
    if view.back is None:
        return view.waves
    # The way back has an index of its own among the waves.
    return (*view.waves, view.back.model_copy(update={"index": -1}))


def _wave(before: WaveView | None, after: WaveView) -> Iterator[str]:
    if after.state == "waiting":
        return
    if before is None or before.state != after.state:
        yield f"wave {after.name}: {after.state}, {words.count(after.total, 'node')}"
    if after.total > DETAIL_LIMIT:
        yield from _share(before, after)
        return
    known = {} if before is None else {node.index: node for node in before.nodes}
    for node in after.nodes:
        said = _node(known.get(node.index), node)
        if said:
            yield f"  {node.name}: {said}"


def _share(before: WaveView | None, after: WaveView) -> Iterator[str]:
    step = max(1, int(after.total * PART))
    was = 0 if before is None else before.counts["done"]
    failed_before = 0 if before is None else before.counts["failed"]
    if after.counts["done"] // step > was // step or after.counts["failed"] > failed_before:
        yield (
            f"  {after.counts['done']} of {after.total} done, {after.counts['running']} running, "
            f"{after.counts['failed']} failed"
        )


def _node(before: NodeView | None, after: NodeView) -> str:
    if after.state == "failed":
        # The wave knows that it failed a moment before the run knows why: it is said once, with the reason.
        if not after.failed_said or (before is not None and before.failed_said):
            return ""
        return f"failed at {after.failed_step or 'its leg'}: {quoted(after.failed_said)}"
    if after.state == "done":
        return "done" if before is not None and before.state != "done" else ""
    if after.state == "running" and after.now is not None:
        step_before = before.now.step if before is not None and before.now is not None else ""
        return after.now.step if after.now.step != step_before else ""
    return ""


def _orders(before: RunStatus, after: RunStatus) -> Iterator[str]:
    known = {(verdict.digest, verdict.rule) for verdict in before.orders}
    for verdict in after.orders:
        if (verdict.digest, verdict.rule) not in known:
            how = "accepted" if verdict.accepted else f"refused, rule {verdict.rule}"
            yield f"order {how}: {verdict.said}"


def _waiting(before: RunView | None, after: RunView, program: Sequence[str]) -> Iterator[str]:
    offered = answers(after.asking, program)
    was = () if before is None else answers(before.asking, program)
    waiting = after.asking.waiting
    tally = waiting.tally if waiting is not None else None
    tally_was = None
    if before is not None and before.asking.waiting is not None:
        tally_was = before.asking.waiting.tally
    if offered and offered != was:
        if waiting is not None:
            what = f"{waiting.kind} {waiting.subject}"
            title = waiting.showing.title
            who = "" if after.asking is after.status else f"{after.asking.run} "
            yield f"{who}waits for {what}" if title == what else f"{who}waits for {what}: {title}"
        for answer in offered:
            yield f"  {answer.command}   ({answer.does})"
    if tally is not None and (tally_was is None or len(tally_was.signed) != len(tally.signed)):
        yield f"  {tally_words(tally)}"
