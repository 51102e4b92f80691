"""``up``, ``down``, ``ui``, ``doctor``, ``demo``."""

from __future__ import annotations

import asyncio
import importlib
import time
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from cli import words
from cli.exits import Exit
from cli.session import Session
from desk.desk import Desk
from desk.doctor import Check
from desk.doctor import examine as examine_home
from desk.up import Place
from kedge.model.errors import OrderError, PlanError
from kedge.model.outside import line as visible_line
from kedge.model.outside import lines as lines_of
from kedge.model.run import EnsureResult

FRESH = 2.0
"""Seconds after which a fleet is looked at again, while another one still was brought up, before anything is said of it."""
MARKS = {"ok": ("✓", "green"), "wrong": ("✗", "bold red"), "unknown": ("?", "yellow")}


def bring_up(
    session: Session,
    fleets: tuple[Path, ...],
    policy: Path | None,
    *,
    as_owner: bool = False,
    worker: bool = True,
) -> None:
    """Engine, worker, policies, fleets, nodes: whatever of them is not there yet."""
    place, results = session.run(
        _bring_up(session, fleets, policy, as_owner=as_owner, worker=worker)
    )
    session.say(*_place_lines(place))
    for result in results:
        session.say(*_fleet_lines(result))
    if not results:
        session.say("no fleet is known here: `kedge up --fleet F.yaml --policy P.yaml` adds one")
    session.document(
        {
            "place": place.model_dump(mode="json"),
            "fleets": [result.model_dump(mode="json") for result in results],
        }
    )
    if any(result.problems for result in results):
        session.note(
            "next: fix what is said above, then `kedge up` again; `kedge doctor` looks closer. A node that has not run yet"
            " gets what the documents say by then: fix them, then `kedge up --fleet FILE`"
        )
        raise typer.Exit(Exit.ENDED_BADLY)


async def _bring_up(
    session: Session,
    fleets: tuple[Path, ...],
    policy: Path | None,
    *,
    as_owner: bool,
    worker: bool,
) -> tuple[Place, list[EnsureResult]]:
    desk = session.desk()
    if policy is not None and not fleets:
        raise OrderError("a policy is pinned for fleets", next_step="name them with --fleet FILE")
    # Before anything is started: a document with a mistake should cost no waiting.
    known = [await desk.make_known(fleet, policy, as_owner=as_owner) for fleet in fleets]
    for name in known:
        session.note(
            f"fleet {name} is known here" + ("" if policy is None else ", its policy pinned")
        )
    place = await desk.start_up(session.note, worker=worker)
    names = [record.fleet for record in await desk.fleets.every()]
    for name in names:
        session.note(f"looks after the nodes of {name}")
    ended = await asyncio.gather(*(_ensure(desk, name) for name in names))
    latest = max((at for _, at in ended), default=0.0)
    return place, [
        result if latest - at < FRESH else await _looked_at_again(desk, result)
        for result, at in ended
    ]


async def _ensure(desk: Desk, fleet: str) -> tuple[EnsureResult, float]:
    result = await desk.ensure(fleet)
    return result, time.monotonic()


async def _looked_at_again(desk: Desk, result: EnsureResult) -> EnsureResult:
    """The same result with how the nodes are now: another fleet took its time meanwhile."""
    now = await desk.look(result.fleet)
    gone = [one for one in now.problems if one not in result.problems]
    return result.model_copy(
        update={
            "running": now.running,
            "stopped": now.stopped,
            "problems": (*result.problems, *gone),
        }
    )


def _place_lines(place: Place) -> list[Text]:
    def state(name: str, pid: int) -> str:
        return f"{'started' if name in place.started else 'runs'}, pid {pid}"

    lines = [Text("kedge is up", style="bold green")]
    if place.engine_pid is not None:
        lines.append(Text(f"   engine   {place.address} ({state('engine', place.engine_pid)})"))
    else:
        lines.append(Text(f"   engine   {place.address} (a cluster elsewhere)"))
    if place.worker_pid is not None:
        lines.append(Text(f"   worker   {state('worker', place.worker_pid)}"))
    else:
        lines.append(Text("   worker   none here: the cluster's own take the work"))
    if place.ui is not None:
        lines.append(Text(f"   web UI   {place.ui}"))
    lines.append(Text(f"   home     {place.home}"))
    lines.append(Text(f"   logs     {place.logs}"))
    lines.append(Text(f"   evidence signed by {place.checkpoint_key}"))
    return lines


def _fleet_lines(result: EnsureResult) -> list[Text]:
    result = lines_of(result)
    said = f"   fleet    {result.fleet}: {result.running} of {words.count(result.nodes, 'node')} running"
    if result.installed:
        said += f", {result.installed} installed"
    if result.started:
        said += f", {result.started} started"
    lines = [Text(said, style="red" if result.problems else "")]
    if result.stopped:
        names = words.listed(result.stopped)
        lines.append(Text(f"      stopped by a run: {names}", style="yellow"))
    lines += [Text(f"      {problem}", style="red") for problem in result.problems[:20]]
    if len(result.problems) > 20:
        lines.append(Text(f"      and {len(result.problems) - 20} more", style="red"))
    lines += [Text(f"      choose: {choice}") for choice in result.choices]
    return lines


def bring_down(session: Session) -> None:
    """Worker and engine end; nodes go on."""
    stopped = session.run(session.desk().shut_down())
    session.say(
        f"worker: {stopped.worker}; engine: {stopped.engine}",
        "nodes go on, and so will runs after the next `kedge up`",
    )
    session.document(stopped)


def serve_ui(session: Session, port: int) -> None:
    """Temporal's web UI, in the foreground."""
    from desk.ui_serving import serve  # noqa: PLC0415 - heavy, and for who serves

    session.run(serve(session.desk().settings, port, session.note))


def examine(session: Session) -> None:
    """Everything that is looked at, and what to do about what is not right."""
    checks = session.run(_examine(session.desk()))
    for check in checks:
        mark, style = MARKS[check.verdict]
        line = Text(f"{mark} ", style=style)
        line.append(f"{check.name:<16} ", style="bold")
        line.append(visible_line(check.said, 2000))
        session.say(line)
        if check.next_step and check.verdict != "ok":
            session.say(Text(f"  {'':<16} next: {check.next_step}", style="yellow"))
    session.document({"checks": [check.model_dump(mode="json") for check in checks]})
    if any(check.verdict == "wrong" for check in checks):
        raise typer.Exit(_worst(checks))


async def _examine(desk: Desk) -> tuple[Check, ...]:
    return await examine_home(desk)


def _worst(checks: tuple[Check, ...]) -> Exit:
    """5 when engine or worker are missing, otherwise 2: something here has to be put right."""
    missing = {check.name for check in checks if check.verdict == "wrong"}
    return Exit.UNREACHABLE if missing & {"engine", "worker", "background"} else Exit.BAD_INPUT


def run_demo(*, keep: bool) -> None:
    """Hands over to the demonstration, which is a package of its own."""
    try:
        demonstration: Any = importlib.import_module("demo.main")
    except ModuleNotFoundError as error:
        if error.name not in {"demo", "demo.main"}:
            raise
        raise PlanError(
            "the demonstration is not installed here",
            next_step="call `make demo` in a checkout of kedge",
        ) from error
    ended = demonstration.run(keep=keep)
    if isinstance(ended, int) and ended != 0:
        raise typer.Exit(ended)
