"""``approve``, ``reject``, ``pause``, ``resume``, ``abort``, ``decide``, ``rollback``, ``review``: words that move a run."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from typing import Annotated

import typer

from cli import naming, options
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
    break_glass: options.GlassOption = False,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Begin no further node; those in flight come to their end."""
    from cli.ordering import give

    give(begin(ctx, json=json), "pause", run, signing, break_glass=break_glass)


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
    break_glass: options.GlassOption = False,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """End a run as it stands: nodes stay as they are, nothing further is done."""
    from cli.ordering import give

    give(begin(ctx, json=json), "abort", run, signing, break_glass=break_glass)


@signed
def decide(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    choice: options.ChoiceOption = "",
    item: options.ItemOption = "",
    break_glass: options.GlassOption = False,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Answer a parked run: try again, go on without the node, take the fleet back, or end it."""
    from cli.ordering import give

    give(
        begin(ctx, json=json),
        "decide",
        run,
        signing,
        subject=item,
        choice=choice,
        break_glass=break_glass,
    )


@signed
def rollback(
    ctx: typer.Context,
    fleet: Annotated[
        str,
        typer.Argument(metavar="FLEET", help="A fleet's name.", callback=naming.a_run_or_fleet),
    ],
    *,
    break_glass: options.GlassOption = False,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Take a fleet back, at any moment, without asking the run that is in trouble.

    Prints the rollback's run id as the last line.
    """
    from cli.ordering import give

    give(begin(ctx, json=json), "rollback", fleet, signing, break_glass=break_glass)


@signed
def review(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The run for which the glass was broken, or its fleet's name.",
            callback=naming.a_run_or_fleet,
        ),
    ],
    *,
    signing: Signing,
    json: options.JsonOption = False,
) -> None:
    """Sign that you looked at what somebody broke the glass for. Without a key: show what is owed.

    Until it is signed by as many others as the policy asks for, no migration of the fleet is started.
    """
    from cli.reviewing import review_run

    review_run(begin(ctx, json=json), run, signing)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    for command in (approve, reject, pause, resume, abort, decide, rollback, review):
        app.command()(command)
