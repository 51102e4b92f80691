"""``plan`` and ``start``: from four documents to a plan, and from a plan to a run."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

import typer

from cli import options
from cli.session import begin
from cli.signing import Signing, signed


def plan(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    *,
    fleet: options.FleetFile,
    release: options.ReleaseFile,
    runbook: options.RunbookFile,
    policy: options.PolicyFile,
    before: options.FromFile = None,
    json: options.JsonOption = False,
) -> None:
    """Show what would happen to which node when, what is reversible, and who must sign.

    Nothing is done and no engine is needed. The digest changes with every change of meaning; it is what
    people sign.
    """
    from cli.documents import Documents
    from cli.planning import show_plan

    show_plan(begin(ctx, json=json), Documents(fleet, release, runbook, policy, before))


@signed
def start(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    *,
    fleet: options.FleetFile,
    release: options.ReleaseFile,
    runbook: options.RunbookFile,
    policy: options.PolicyFile,
    before: options.FromFile = None,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Start a migration: plan it, sign the plan, send the order.

    Prints the run's id as the last line.
    """
    from cli.documents import Documents
    from cli.planning import start_run

    documents = Documents(fleet, release, runbook, policy, before)
    start_run(begin(ctx, json=json), documents, signing)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(plan)
    app.command()(start)
