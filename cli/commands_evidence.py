"""``kedge evidence``: what happened, as a record that others can verify."""
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
    help="What happened, as a record that others can verify: show, export, verify, check.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def show(
    ctx: typer.Context,
    name: options.RunOrFleetArgument,
    *,
    json: options.JsonOption = False,
) -> None:
    """Tell what happened in a run, in order: who signed what, which bytes went where, what was seen."""
    from cli.evidence import show_record

    show_record(begin(ctx, json=json), name)


@app.command()
def export(
    ctx: typer.Context,
    run: options.RunArgument,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where to write it. [default: RUN.evidence]"
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="From the fleet's first record on, not from the checkpoint before."
        ),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Write the evidence of a run into one file, with everything it takes to verify it elsewhere."""
    from cli.evidence import export_run

    export_run(begin(ctx, json=json), run, output, whole=whole)


@app.command()
def verify(  # noqa: PLR0913 - its options
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file.")],
    *,
    policy: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The policy you trust. [default: the one pinned here]"),
    ] = None,
    root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIGEST", help="Its digest instead: the policy itself is in the file."
        ),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SEQ:HASH", help="An end of the record that you wrote down. May be repeated."
        ),
    ] = None,
    journal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE=FILE",
            help="A host's .kedge/journal, compared step by step. May be repeated.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the verdict, not what happened.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Verify an exported file. Needs neither network, nor database, nor Temporal.

    Exit code 0: all of it holds and the run ends in it; 3: something does not, and it is said where; 7: all holds, but
    the run goes on behind the end of the file.
    """
    from cli.evidence import Trusted, verify_export

    trusted = Trusted(
        policies=tuple(policy or ()),
        roots=tuple(root or ()),
        heads=tuple(head or ()),
        journals=tuple(journal or ()),
    )
    verify_export(begin(ctx, json=json), file, trusted, quiet=quiet)


@app.command()
def check(
    ctx: typer.Context,
    fleets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FLEET…]",
            help="Fleets; all that are known here without one.",
            callback=naming.fleets,
        ),
    ] = None,
    *,
    json: options.JsonOption = False,
) -> None:
    """Verify the whole record of a fleet as it stands in the store now."""
    from cli.evidence import check_fleets

    check_fleets(begin(ctx, json=json), tuple(fleets or ()))
