"""``kedge codec``: the keys that payloads are sealed with, and the server that opens them for Temporal's own tools."""
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
    help="Payloads that Temporal sees only sealed: the two rings of keys, and the codec server for its UI.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Key = Annotated[
    str, typer.Argument(metavar="KEY", help="A key's name, as `kedge codec show` lists it.")
]


@app.command()
def init(
    ctx: typer.Context,
    *,
    grace: Annotated[
        str,
        typer.Option(
            "--grace",
            metavar="TIME",
            help="How long payloads written before are still read, such as 7d; 0s for not at all.",
        ),
    ] = "",
    json: options.JsonOption = False,
) -> None:
    """Make the rings that are missing, for workers and for clients. From then on this home gives Temporal sealed payloads only."""
    from cli.codec import make

    make(begin(ctx, json=json), grace)


@app.command()
def show(ctx: typer.Context, *, json: options.JsonOption = False) -> None:
    """Say where the rings are and which keys they have, by their names."""
    from cli.codec import show as show_ring

    show_ring(begin(ctx, json=json))


@app.command()
def rotate(
    ctx: typer.Context,
    *,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="The new keys only read, until they are everywhere and activated."
        ),
    ] = False,
    activate: Annotated[
        str,
        typer.Option(
            "--activate", metavar="KEY", help="Seal with this key of its ring from now on."
        ),
    ] = "",
    json: options.JsonOption = False,
) -> None:
    """Seal with new keys from now on, one in each ring. The old ones still read; runs under way notice nothing."""
    from cli.codec import rotate as rotate_ring

    rotate_ring(begin(ctx, json=json), prepare=prepare, activate=activate)


@app.command()
def retire(
    ctx: typer.Context,
    key: _Key,
    *,
    yes: options.YesOption = False,
    json: options.JsonOption = False,
) -> None:
    """Take a key out of its ring: what was sealed with it can never be read again."""
    from cli.codec import retire as retire_key

    retire_key(begin(ctx, json=json), key, yes=yes)


@app.command()
def grace(
    ctx: typer.Context,
    time: Annotated[str, typer.Argument(metavar="TIME", help="Such as 12h; 0s ends it.")],
    *,
    json: options.JsonOption = False,
) -> None:
    """Read payloads from before for a while: in the open, or sealed with one ring. None is written any more."""
    from cli.codec import grace as give_grace

    give_grace(begin(ctx, json=json), time)


@app.command()
def serve(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    *,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Where to listen; other machines need --tls-cert."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="A free one is taken without it.")
    ] = 0,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="A name by which it is called; behind a proxy the whole address, such as https://codec.internal. "
            "May be repeated.",
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A Temporal UI that may call it, such as https://temporal.internal. May be repeated. "
            "[default: the embedded engine's]",
        ),
    ] = None,
    life: Annotated[
        str, typer.Option(metavar="TIME", help="How long a sign-in is good, at most 12h.")
    ] = "1h",
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Its certificate.")] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key.")
    ] = None,
) -> None:
    """Open payloads for Temporal's UI and command line, until it is ended. Who may read says the policy."""
    from cli.codec import serve as serve_codec

    named = tuple(name or ()), tuple(origin or ())
    serve_codec(begin(ctx), (host, port), named, life, (tls_cert, tls_key))


@app.command()
def login(
    ctx: typer.Context,
    *,
    key: options.KeyOption = None,
    agent: options.AgentOption = None,
    server: Annotated[
        str, typer.Option(metavar="URL", help="The codec server. [default: this home's]")
    ] = "",
    code: Annotated[
        bool, typer.Option("--code", help="A one-time code for a browser instead of a token.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Sign in to a codec server with an SSH key. The token is the last line of standard output."""
    from cli.codec import login as login_codec

    login_codec(begin(ctx, json=json), key, agent, server, code=code)
