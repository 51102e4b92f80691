"""``kedge release``: the signed repository of releases, for its keepers and its readers."""
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
    help="The signed repository of releases: add, sign, publish, verify, revoke; and what its keys are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--repository",
        metavar="FOLDER",
        help="The keepers' folder. [default: release_repository of the settings, if it is one]",
        show_default=False,
    ),
]
Location = Annotated[
    str | None,
    typer.Option(
        "--repository",
        metavar="PLACE",
        help="A folder or an address. [default: release_repository of the settings]",
        show_default=False,
    ),
]
Keys = Annotated[
    list[Path] | None,
    typer.Option("--key", metavar="FILE", help="Sign with this OpenSSH private key. Repeatable."),
]
Agents = Annotated[
    list[str] | None,
    typer.Option(
        "--agent",
        metavar="KEY",
        help="Sign with this key of the ssh-agent (SHA256:… or its .pub file). Repeatable.",
    ),
]
Publish = Annotated[
    bool,
    typer.Option("--publish", help="Publish at once, when that is signed by enough people."),
]
ReleaseArgument = Annotated[
    str, typer.Argument(metavar="RELEASE", help="A release's name: etcd@3.5.1.")
]
_MANY_KEYS = "THRESHOLD:FILE[,FILE…]"


@app.command()
def init(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    *,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--role",
            metavar=f"ROLE={_MANY_KEYS}",
            help="Public keys of root, targets, snapshot or timestamp, and how many must sign. Repeatable.",
        ),
    ] = None,
    expires: Annotated[
        list[str] | None,
        typer.Option(
            "--expires",
            metavar="ROLE=DAYS",
            help="After how many days metadata expires (also: components). Repeatable.",
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Make a repository. Roles that are not named take the keys given, any one of them.

    The digest of its first root metadata is what policies name (`releases: {root: …}`); it is pinned in this home.
    """
    from cli.releases import Signing, make

    make(
        begin(ctx, json=json),
        repository,
        Signing(key, agent),
        tuple(role or ()),
        tuple(expires or ()),
    )


@app.command()
def add(  # noqa: PLR0913 - as above
    ctx: typer.Context,
    document: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A Release document beside its archives; or, with --with, a release that is there: etcd@3.5.1.",
        ),
    ],
    *,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    author: Annotated[
        str,
        typer.Option(
            "--author",
            metavar="NAME",
            envvar="KEDGE_PERSON",
            help="Who made it. Otherwise the fingerprint of the first key.",
        ),
    ] = "",
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="What stands beside it: provenance-<n>.json or vendor-<name>. Repeatable.",
        ),
    ] = None,
    component: Annotated[
        str,
        typer.Option(
            "--component",
            metavar=_MANY_KEYS,
            help="The keys of a component that is new. [default: those of targets]",
            show_default=False,
        ),
    ] = "",
    publish: Publish = False,
    json: options.JsonOption = False,
) -> None:
    """Add a release: its document and every archive become files of the repository, and a draft lists them.

    What comes later, an attestation of another builder say, is put beside a release that is there by its name.
    """
    from cli.releases import Addition, Signing, add_release

    addition = Addition(document, author, tuple(beside or ()), component)
    add_release(begin(ctx, json=json), repository, Signing(key, agent, publish), addition)


@app.command()
def sign(  # noqa: PLR0913 - as above
    ctx: typer.Context,
    role: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROLE…]", help="Drafts to sign; all that the keys are of without."),
    ] = None,
    *,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge",
            metavar="FILE",
            help="Take over signatures from a copy of a draft. Repeatable.",
        ),
    ] = None,
    yes: options.YesOption = False,
    json: options.JsonOption = False,
) -> None:
    """Sign drafts, after seeing what they change. People who are elsewhere sign a copy of the folder and send back the files in drafts/."""
    from cli.releases import Signing, sign_drafts

    sign_drafts(
        begin(ctx, json=json),
        repository,
        Signing(key, agent),
        tuple(role or ()),
        tuple(merge or ()),
        yes=yes,
    )


@app.command(name="publish")
def publish_(  # noqa: PLR0913 - as above
    ctx: typer.Context,
    role: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROLE…]", help="With --renew: roles to renew beside the two."),
    ] = None,
    *,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Give snapshot and timestamp a new expiry.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Publish every draft that enough people signed. Exit code 7 when one still waits for signatures."""
    from cli.releases import Signing, publish_drafts

    roles = tuple(role or ())
    publish_drafts(
        begin(ctx, json=json), repository, Signing(key, agent), roles if renew or roles else None
    )


@app.command()
def verify(
    ctx: typer.Context,
    release: Annotated[
        str, typer.Argument(metavar="[RELEASE]", help="Only this one, etcd@3.5.1; all without.")
    ] = "",
    *,
    repository: Location = None,
    root: Annotated[
        str,
        typer.Option("--root", metavar="DIGEST", help="The pinned root. [default: this home's]"),
    ] = "",
    json: options.JsonOption = False,
) -> None:
    """Verify the repository as a worker does: every signature, and every byte of every release."""
    from cli.releases import verify_all

    verify_all(begin(ctx, json=json), repository, release, root)


@app.command(name="list")
def list_(
    ctx: typer.Context,
    *,
    repository: Location = None,
    drafts: Annotated[
        bool, typer.Option("--drafts", help="The roles, their keys, and what waits for whom.")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """List the releases, verified; or the roles of the keepers' folder."""
    from cli.releases import list_releases, list_roles

    session = begin(ctx, json=json)
    if drafts:
        list_roles(session, None if repository is None else Path(repository))
    else:
        list_releases(session, repository)


@app.command()
def show(
    ctx: typer.Context,
    release: ReleaseArgument,
    *,
    repository: Location = None,
    json: options.JsonOption = False,
) -> None:
    """Show one release: its archives, who made and signed it, what stands beside it. All of it verified."""
    from cli.releases import show_release

    show_release(begin(ctx, json=json), repository, release)


@app.command()
def revoke(  # noqa: PLR0913 - as above
    ctx: typer.Context,
    release: ReleaseArgument,
    *,
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why; everybody who asks for it is told."),
    ] = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Take a revocation back: list the same files again.")
    ] = False,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    person: options.PersonOption = "",
    publish: Publish = False,
    json: options.JsonOption = False,
) -> None:
    """Revoke a release. Runs that move to it stop at their next step and ask; ways back stay open."""
    from cli.releases import Signing, revoke_release

    session = begin(ctx, json=json)
    signing = Signing(key, agent, publish)
    revoke_release(session, repository, signing, release, None if undo else reason, by=person)


@app.command()
def rotate(  # noqa: PLR0913 - as above
    ctx: typer.Context,
    role: Annotated[
        str,
        typer.Argument(metavar="ROLE", help="root, targets, snapshot, timestamp or a component."),
    ],
    *,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            "--add", metavar="FILE", help="A public key that signs from now on. Repeatable."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove", metavar="KEY", help="A key (SHA256:… or .pub file) that does no more."
        ),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", metavar="N", min=1, help="How many must sign.")
    ] = None,
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    publish: Publish = False,
    json: options.JsonOption = False,
) -> None:
    """Change the keys of a role. Root keys sign for the four roles, those of targets for components."""
    from cli.releases import Change, Signing, rotate_keys

    change = Change(role, tuple(add or ()), tuple(remove or ()), threshold)
    rotate_keys(begin(ctx, json=json), repository, Signing(key, agent, publish), change)


@app.command()
def trust(
    ctx: typer.Context,
    root: Annotated[
        str,
        typer.Argument(metavar="DIGEST", help="sha256 of the repository's first root metadata."),
    ],
    *,
    repository: Location = None,
    json: options.JsonOption = False,
) -> None:
    """Pin the root of the repository in this home. The digest comes from who keeps its root keys, by another way."""
    from cli.releases import trust_root

    trust_root(begin(ctx, json=json), repository, root)
