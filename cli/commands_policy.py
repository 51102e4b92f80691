"""``kedge policy``: who may say what, what another policy would change, and its versions with their signatures."""
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
    help="Policies: who may say what, what a change means, who signed which version.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Source = Annotated[
    str,
    typer.Argument(
        metavar="POLICY",
        help="A policy's file, or a fleet: the one pinned for it.",
        callback=naming.a_source,
    ),
]
_Signatures = Annotated[
    list[Path] | None,
    typer.Option(
        "--signature",
        metavar="FILE",
        help="A .sig file that `ssh-keygen -Y sign -n kedge-policy` made. May be repeated.",
    ),
]


@app.command()
def lint(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Policy documents.")],
    *,
    json: options.JsonOption = False,
) -> None:
    """Check policies: every mistake with its place, and what is allowed but worth a thought."""
    from cli.policies import lint_files

    lint_files(begin(ctx, json=json), tuple(files))


@app.command()
def explain(ctx: typer.Context, policy: _Source, *, json: options.JsonOption = False) -> None:
    """Say in words what a policy asks for."""
    from cli.policies import explain_policy

    explain_policy(begin(ctx, json=json), policy)


@app.command("who-can")
def who_can(
    ctx: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="start, approve, rollback, review …")],
    policy: _Source,
    *,
    risk: Annotated[
        str,
        typer.Option(
            metavar="CLASS", help="About a plan that is routine, elevated or irreversible."
        ),
    ] = "",
    json: options.JsonOption = False,
) -> None:
    """Say who can give an order, and what it needs beside the signature."""
    from cli.policies import tell_who_can

    tell_who_can(begin(ctx, json=json), verb, policy, risk)


@app.command()
def diff(
    ctx: typer.Context,
    old: Annotated[
        str,
        typer.Argument(
            metavar="OLD",
            help="A policy's file, a fleet, or FLEET@NUMBER.",
            callback=naming.a_source,
        ),
    ],
    new: Annotated[
        str,
        typer.Argument(
            metavar="NEW",
            help="The same, for what it is held against.",
            callback=naming.a_source,
        ),
    ],
    *,
    json: options.JsonOption = False,
) -> None:
    """Say what another policy would change: who could do more, who less, and what that means for runs under way."""
    from cli.policies import tell_differences

    tell_differences(begin(ctx, json=json), old, new)


@app.command()
def show(
    ctx: typer.Context,
    fleet: options.FleetArgument,
    *,
    number: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="That version alone, and who signed it.")
    ] = None,
    canonical: Annotated[
        bool,
        typer.Option("--canonical", help="Print the exact text that is signed, and nothing else."),
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Show every version of a policy that was pinned for a fleet here, and how each came to be."""
    from cli.policies import show_versions

    show_versions(begin(ctx, json=json), fleet, number, canonical=canonical)


@app.command()
def sign(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    policy: Annotated[
        Path, typer.Argument(metavar="FILE", help="A policy, or one that others signed already.")
    ],
    *,
    fleet: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="FLEET",
            help="Make it the next version of what is pinned for this fleet: version and previous are filled in.",
        ),
    ] = "",
    key: options.KeyOption = None,
    agent: options.AgentOption = None,
    signature: _Signatures = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where to write it; a signed FILE is written anew.",
        ),
    ] = None,
    yes: options.YesOption = False,
    json: options.JsonOption = False,
) -> None:
    """Sign the next version of a policy, after seeing what it changes.

    The file that is written goes to whoever signs next, and to `kedge policy pin` once enough have. Without a key it
    writes the text to sign elsewhere: `ssh-keygen -Y sign -n kedge-policy -f KEY TEXT`.
    """
    from cli.policy_signing import SignAsked, sign_policy

    asked = SignAsked(policy, fleet, key, agent, tuple(signature or ()), output, yes)
    sign_policy(begin(ctx, json=json), asked)


@app.command()
def pin(
    ctx: typer.Context,
    fleet: options.FleetArgument,
    policy: Annotated[Path, typer.Argument(metavar="FILE", help="A policy, with its signatures.")],
    *,
    signature: _Signatures = None,
    as_owner: options.AsOwnerOption = False,
    json: options.JsonOption = False,
) -> None:
    """Pin a policy for a fleet on this machine: its first one, or the properly signed next version."""
    from cli.policy_signing import pin_policy

    pin_policy(begin(ctx, json=json), fleet, policy, tuple(signature or ()), as_owner=as_owner)


@app.command()
def signers(ctx: typer.Context, policy: _Source, *, json: options.JsonOption = False) -> None:
    """Print a policy's people as an `allowed_signers` file for ssh-keygen and git."""
    from cli.policies import export_people

    export_people(begin(ctx, json=json), policy)


@app.command()
def people(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An `allowed_signers` file of OpenSSH.")
    ],
    *,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ROLE,…", help="The roles of one of them. May be repeated."),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Print the people of an `allowed_signers` file as they stand in a policy."""
    from cli.policies import import_people

    import_people(begin(ctx, json=json), file, tuple(role or ()))
