"""``kedge order``: orders as files, for signing elsewhere (hardware keys, another machine, ``ssh-keygen``)."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import naming, options
from cli.listing import ListingGroup
from cli.session import begin

app = typer.Typer(
    cls=ListingGroup,
    help="Orders as files: write what is to be signed, send what was signed, look at it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_OptionalFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="For start: instead of --plan, as in `kedge plan`."),
]


@app.command()
def request(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    verb: Annotated[
        str,
        typer.Argument(
            metavar="VERB",
            help="start, approve, reject, pause, resume, abort, decide, rollback or review.",
        ),
    ],
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's id; for start and rollback the fleet's name.",
            callback=naming.a_run_or_fleet,
        ),
    ],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the order.")
    ],
    gate: options.GateOption = "",
    item: options.ItemOption = "",
    choice: options.ChoiceOption = "",
    plan: Annotated[
        str, typer.Option(metavar="DIGEST", help="For start: the plan, as `kedge plan` shows it.")
    ] = "",
    fleet: _OptionalFile = None,
    release: _OptionalFile = None,
    runbook: _OptionalFile = None,
    policy: _OptionalFile = None,
    before: options.FromFile = None,
    person: options.PersonOption = "",
    comment: options.CommentOption = "",
    ticket: options.TicketOption = "",
    break_glass: options.GlassOption = False,
    valid: options.ValidOption = "",
    json: options.JsonOption = False,
) -> None:
    """Write the exact bytes to sign, and say how to sign them with ssh-keygen alone."""
    from cli.documents import Documents
    from cli.order_files import Wanted, write_request

    documents = Documents(fleet, release, runbook, policy, before)
    wanted = Wanted(
        verb, run, gate or item, choice, plan, person, comment, ticket, break_glass, valid
    )
    write_request(begin(ctx, json=json), wanted, documents, output)


@app.command()
def send(
    ctx: typer.Context,
    order: Annotated[
        Path, typer.Argument(metavar="ORDER", help="What `kedge order request` wrote.")
    ],
    signature: Annotated[
        Path, typer.Argument(metavar="SIGNATURE", help="The .sig file that ssh-keygen made.")
    ],
    *,
    signal: Annotated[
        bool,
        typer.Option(
            "--signal", help="Send it as a plain signal, without waiting for the verdict."
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Send a signed order to whom it is for, and print the verdict."""
    from cli.order_files import send_files

    send_files(begin(ctx, json=json), order, signature, signal=signal)


@app.command()
def show(
    ctx: typer.Context,
    order: Annotated[Path, typer.Argument(metavar="ORDER", help="An order in a file.")],
    signature: Annotated[
        Path | None,
        typer.Argument(metavar="[SIGNATURE]", help="Its signature: then who signed is shown too."),
    ] = None,
    *,
    json: options.JsonOption = False,
) -> None:
    """Say what an order says, without sending it."""
    from cli.order_files import show_files

    show_files(begin(ctx, json=json), order, signature)
