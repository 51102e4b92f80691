"""``init``, ``up``, ``down``, ``ui``, ``doctor``, ``demo``: the home, its engine and its worker."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.session import begin


def init(
    ctx: typer.Context,
    *,
    person: Annotated[
        str,
        typer.Option(
            "--person",
            metavar="NAME",
            envvar="KEDGE_PERSON",
            help="What the policy calls you. [default: your login name]",
            show_default=False,
        ),
    ] = "",
    environment: Annotated[
        str,
        typer.Option(
            "--environment", metavar="NAME", help="What the policy is for; fleets say the same."
        ),
    ] = "laptop",
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Your OpenSSH private key. Otherwise one of the ssh-agent, one of ~/.ssh, or a new one in keys/.",
        ),
    ] = None,
    agent: options.AgentOption = None,
    json: options.JsonOption = False,
) -> None:
    """Make everything that one person needs, in this folder: policy, keys, release repository.

    Safe as it is. What is there already is left alone, so it can be called again.
    """
    from cli.beginning import initialise

    initialise(begin(ctx, json=json), person=person, environment=environment, key=key, agent=agent)


def up(
    ctx: typer.Context,
    *,
    fleet: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A Fleet document to make known and bring up. May be repeated."
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The Policy to pin for these fleets on this machine."),
    ] = None,
    as_owner: options.AsOwnerOption = False,
    no_worker: Annotated[
        bool,
        typer.Option(
            "--no-worker",
            help="Start none here: a cluster's workers, which share this home, do it all.",
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Start the engine and a worker, and bring up the nodes of every known fleet.

    Both outlive this command. Called again it does what is missing: after a reboot it starts what should run.
    """
    from cli.home import bring_up

    bring_up(
        begin(ctx, json=json), tuple(fleet or ()), policy, as_owner=as_owner, worker=not no_worker
    )


def down(ctx: typer.Context, *, json: options.JsonOption = False) -> None:
    """Stop the worker and the engine. Nodes go on, and runs continue at the next `kedge up`."""
    from cli.home import bring_down

    bring_down(begin(ctx, json=json))


def doctor(ctx: typer.Context, *, json: options.JsonOption = False) -> None:
    """Check everything kedge needs here, and say what to do about what is not right."""
    from cli.home import examine

    examine(begin(ctx, json=json))


def ui(
    ctx: typer.Context,
    *,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.", show_default=True
        ),
    ] = 0,
) -> None:
    """Serve Temporal's own web UI for the embedded engine, until Ctrl-C.

    It asks for the one-time code that stands on this terminal, and only reads. What is sealed it shows sealed; `kedge
    codec serve` opens it for people whom the policy lets read.
    """
    from cli.home import serve_ui

    serve_ui(begin(ctx), port)


def demo(
    ctx: typer.Context,
    *,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Leave the cluster, the worker and the engine running at the end."
        ),
    ] = False,
) -> None:
    """Watch a real etcd cluster move, fail, go back and go on.

    It runs in .kedge/demo below the current folder, and what an earlier one left there is stopped and removed first.
    """
    from cli.home import run_demo

    begin(ctx)
    run_demo(keep=keep)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (init, up, down, ui, doctor, demo):
        app.command()(command)
