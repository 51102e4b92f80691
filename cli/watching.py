"""``kedge watch``: a live tree on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from cli.answers import answers
from cli.changes import changes
from cli.runs import ending
from cli.session import Session
from cli.terminal import Terminal
from cli.tree import render
from desk.views import RunView
from desk.watch import utc_now

FRAMES_PER_SECOND = 4.0
SILENCE_SECONDS = 3.0
"""A question that takes longer than this is told at once, before it has failed."""


def watch_run(session: Session, run: str, *, until_waiting: bool) -> None:
    """Watches until the run ends (or waits for a person, when that was asked for)."""
    live = sys.stdout.isatty() and not session.json
    view = session.run(
        _live(session, run, until_waiting=until_waiting)
        if live
        else _lines(session, run, until_waiting=until_waiting)
    )
    session.document(view.status)
    raise typer.Exit(ending(view))


def _is_enough(view: RunView, *, until_waiting: bool) -> bool:
    return view.ended or (until_waiting and view.gone is None and bool(answers(view.asking)))


async def _lines(session: Session, run: str, *, until_waiting: bool) -> RunView:
    """A line for each change, with the time; on standard error with ``--json``."""
    last: RunView | None = None
    views = cast("AsyncGenerator[RunView]", session.desk().watch(run))
    async with aclosing(views):
        async for view in views:
            for line in changes(last, view, session.program):
                session.say(f"{time.strftime('%H:%M:%S')} {line}")
            last = view
            if _is_enough(view, until_waiting=until_waiting):
                break
    assert last is not None  # noqa: S101 - watching gives a view or raises
    return last


async def _live(session: Session, run: str, *, until_waiting: bool) -> RunView:
    """The tree, drawn again while a second task asks: clocks go on when nobody answers."""
    console = Terminal()
    latest: list[tuple[RunView, float]] = []

    async def ask() -> None:
        views = cast("AsyncGenerator[RunView]", session.desk().watch(run))
        async with aclosing(views):
            async for view in views:
                latest[:] = [(view, time.monotonic())]
                if _is_enough(view, until_waiting=until_waiting):
                    return

    asking = asyncio.create_task(ask())
    try:
        with Live(console=console, auto_refresh=False, transient=False) as screen:
            while not asking.done():
                await asyncio.wait({asking}, timeout=1 / FRAMES_PER_SECOND)
                if latest:
                    screen.update(_drawn(latest[0], console, session), refresh=True)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    if not asking.cancelled() and (error := asking.exception()) is not None:
        raise error
    return latest[0][0]


def _drawn(latest: tuple[RunView, float], console: Console, session: Session) -> RenderableType:
    """The view as it is now: clocks moved on by the time since it was asked."""
    view, asked = latest
    moved: dict[str, object] = {"now": utc_now()}
    silent = time.monotonic() - asked
    if view.gone is not None:
        moved["gone"] = view.gone + silent
    elif silent > SILENCE_SECONDS:
        moved |= {"gone": silent, "gone_why": "no answer"}
    # What stands around the nodes: title, phases, waves, what is waited for and how to answer.
    around = 14 + len(view.waves)
    rows = max(3, console.height - around)
    return render(view.model_copy(update=moved), rows=rows, program=session.program)
