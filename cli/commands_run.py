"""``list``, ``status`` and ``watch``: what runs, and what it waits for."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from typing import Annotated

import typer

from cli import naming, options
from cli.session import begin


def list_(
    ctx: typer.Context,
    *,
    fleet: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Only the runs of this fleet.", callback=naming.a_fleet_or_none
        ),
    ] = "",
    json: options.JsonOption = False,
) -> None:
    """List the runs, newest first, and what each waits for."""
    from cli.runs import list_runs

    list_runs(begin(ctx, json=json), fleet)


def status(
    ctx: typer.Context,
    run: options.RunOrFleetArgument,
    *,
    result: Annotated[
        bool,
        typer.Option(
            "--result", help="Exit by how the run ended: 0 well, 6 badly, 7 when it still goes on."
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Say where a run is, what it waits for, and the command that answers it."""
    from cli.runs import show_status

    show_status(begin(ctx, json=json), run, result=result)


def watch(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    until_waiting: Annotated[
        bool,
        typer.Option(
            "--until-waiting", help="End with exit code 7 as soon as a person is waited for."
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Watch a run live, through every restart, until it ends.

    On a terminal a tree of waves, nodes and steps; otherwise a line for each change. The exit code says how the
    run ended: 0 well, 6 badly. Ctrl-C stops watching, never the run.
    """
    from cli.watching import watch_run

    watch_run(begin(ctx, json=json), run, until_waiting=until_waiting)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command("list")(list_)
    app.command()(status)
    app.command()(watch)
