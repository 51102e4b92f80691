"""``approve``, ``reject``, ``pause``, ``resume``, ``abort``, ``decide``, ``rollback``: words that move a run."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

import typer

from cli import options
from cli.session import begin
from cli.signing import Signing, signed


@signed
def approve(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    gate: options.GateOption = "",
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Sign for a gate, after seeing what is signed.

    Shows the plan, the wave, what was seen so far and what can still be undone; then signs exactly that
    and sends it. Prints the verdict and how many signatures the gate has.
    """
    from cli.ordering import give

    give(begin(ctx, json=json), "approve", run, signing, subject=gate)


@signed
def reject(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    gate: options.GateOption = "",
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Refuse a gate. Before the first wave this ends the run, later it parks."""
    from cli.ordering import give

    give(begin(ctx, json=json), "reject", run, signing, subject=gate)


@signed
def pause(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Begin no further node; those in flight come to their end."""
    from cli.ordering import give

    give(begin(ctx, json=json), "pause", run, signing)


@signed
def resume(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Go on after a pause."""
    from cli.ordering import give

    give(begin(ctx, json=json), "resume", run, signing)


@signed
def abort(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """End a run as it stands: nodes stay as they are, nothing further is done."""
    from cli.ordering import give

    give(begin(ctx, json=json), "abort", run, signing)


@signed
def decide(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    choice: options.ChoiceOption = "",
    item: options.ItemOption = "",
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Answer a parked run: try again, go on without the node, take the fleet back, or end it."""
    from cli.ordering import give

    give(begin(ctx, json=json), "decide", run, signing, subject=item, choice=choice)


@signed
def rollback(
    ctx: typer.Context,
    fleet: options.FleetArgument,
    *,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Take a fleet back, at any moment, without asking the run that is in trouble.

    Prints the rollback's run id as the last line.
    """
    from cli.ordering import give

    give(begin(ctx, json=json), "rollback", fleet, signing)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (approve, reject, pause, resume, abort, decide, rollback):
        app.command()(command)
