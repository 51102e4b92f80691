"""``list`` and ``status``: what runs, and what it waits for."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from cli import words
from cli.answers import answers, way_back
from cli.exits import Exit
from cli.reviewing import owed_lines
from cli.session import Session
from cli.tree import PHASES, render
from desk.desk import Desk
from desk.runs import RunSummary
from desk.views import ENDED, RunView, view_of
from desk.watch import utc_now
from kedge.model.base import Digest, digest_of
from kedge.model.errors import DriverError
from kedge.model.outside import lines as lines_of
from kedge.model.status import FleetStatus, RunStatus


def list_runs(session: Session, fleet: str) -> None:
    """All runs, newest first."""
    found = session.run(session.desk().every_run(fleet or None))
    if not found:
        session.say("no run yet; `kedge start` begins one")
    else:
        session.say(_table(found))
    session.document({"runs": [one.model_dump(mode="json") for one in found]})


def _table(found: tuple[RunSummary, ...]) -> Table:
    now = utc_now()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "phase", "release", "waits for", "began", "took"):
        table.add_column(name, no_wrap=name == "run")
    for one in map(lines_of, found):
        table.add_row(
            Text(one.run, style="bold"),
            one.phase,
            one.release,
            Text(one.waiting_for, style="yellow"),
            words.clock(one.started, now),
            words.duration(words.between(one.started, one.ended or now)),
        )
    return table


def show_status(session: Session, run: str, *, result: bool) -> None:
    """A run, or a fleet when a fleet's name was given."""
    if run.count("/") >= 2:
        _show_run(session, run, result=result)
    else:
        _show_fleet(session, run.removeprefix("fleet/"))


def _show_run(session: Session, run: str, *, result: bool) -> None:
    desk = session.desk()
    view = session.run(_view(desk, run))
    status = view.status
    session.say(render(view, program=session.program))
    pinned = session.run(_pinned(desk, status.fleet))
    if pinned is not None and status.policy not in {None, pinned} and not view.ended:
        session.say(
            Text(
                "the policy was changed since this run began: both hold for it, so it lost what was taken away and got "
                "nothing that was added; `kedge policy show` lists the versions",
                style="yellow",
            )
        )
    document = status.model_dump(mode="json")
    document["policy_now"] = pinned
    document["answers"] = [one.command for one in answers(view.asking, session.program)]
    back = way_back(status, session.program)
    document["rollback"] = back.command if back is not None else None
    session.document(document)
    if result:
        raise typer.Exit(ending(view))


async def _pinned(desk: Desk, fleet: str) -> Digest | None:
    """The digest of the policy pinned here now; None where none is, or none that can be gone by."""
    try:
        policy = await desk.policy(fleet)
    except DriverError:
        return None
    return None if policy is None else digest_of(policy)


async def _view(desk: Desk, run: str) -> RunView:
    runs = await desk.runs()
    pieces = await runs.pieces(run, seconds=15)
    try:
        plan = await desk.plan(pieces.status.plan)
    except DriverError:
        plan = None  # another home's: the run is shown without its nodes' names
    return view_of(pieces, plan, utc_now())


def ending(view: RunView) -> Exit:
    """The exit code that says how a run ended, or that it has not."""
    if not view.ended:
        return Exit.WAITING
    return Exit.DONE if view.well else Exit.ENDED_BADLY


def _show_fleet(session: Session, fleet: str) -> None:
    desk = session.desk()
    status, last = session.run(_fleet(desk, fleet))
    session.say(*_fleet_lines(status, last), *owed_lines(status.reviews, session.program))
    document: dict[str, Any] = status.model_dump(mode="json")
    session.document(document)


async def _fleet(desk: Desk, fleet: str) -> tuple[FleetStatus, RunStatus | None]:
    status = await desk.fleet_or_new(fleet)
    run = status.holder or status.last
    if run is None:
        return status, None
    try:
        return status, await desk.status_of(run)
    except DriverError:
        return status, None


def _fleet_lines(status: FleetStatus, last: RunStatus | None) -> list[Text]:
    status, last = lines_of(status), None if last is None else lines_of(last)
    head = Text(f"fleet {status.fleet}", style="bold")
    if status.release:
        head.append(f"  on {status.release}", style="bold magenta")
    lines = [head]
    if status.holder:
        lines.append(Text(f"   {status.holder} has it", style="cyan"))
    if last is not None:
        how = "runs" if last.phase not in ENDED else "last"
        lines.append(Text(f"   {how}: {last.run}: {PHASES.get(last.phase, last.phase)}"))
    lines.append(Text(f"   {words.count(len(status.runs), 'run')} so far", style="dim"))
    return lines
