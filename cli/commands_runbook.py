"""``kedge runbook``: documents by themselves."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.listing import ListingGroup
from cli.session import begin

app = typer.Typer(
    cls=ListingGroup,
    help="Documents by themselves: check them, and write their JSON Schemas for editors.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def lint(
    ctx: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="Fleet, Release, Runbook or Policy documents."),
    ],
    *,
    json: options.JsonOption = False,
) -> None:
    """Check documents. Every problem is `file:line:column: path: what is wrong, what would be right`."""
    from cli.documents import lint_files

    lint_files(begin(ctx, json=json), tuple(files))


@app.command()
def schema(
    ctx: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(metavar="[KIND]", help="Fleet, Release, Runbook or Policy; all without it."),
    ] = "",
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Write one file per kind there."),
    ] = None,
) -> None:
    """Print the JSON Schema of a document, or write all of them for an editor to use."""
    from cli.documents import write_schemas

    write_schemas(begin(ctx, json=True), kind, output)
