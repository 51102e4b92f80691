"""``kedge release provenance | attest | import``: how releases were built, and releases from their vendors."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs: --help answers at once

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.commands_release import Agents, Folder, Keys, Publish
from cli.session import begin


def provenance(
    ctx: typer.Context,
    release: Annotated[
        str,
        typer.Argument(
            metavar="RELEASE", help="A Release document, or a release of the repository: etcd@3.5.1."
        ),
    ],
    *,
    policy: options.PolicyFile,
    attestation: Annotated[
        list[Path] | None,
        typer.Option(
            "--attestation", metavar="FILE", help="A DSSE envelope or sigstore bundle. Repeatable."
        ),
    ] = None,
    trusted_root: Annotated[
        Path | None,
        typer.Option(
            "--trusted-root",
            metavar="FILE",
            help="The sigstore trusted root that the policy pins; it is kept in this home.",
        ),
    ] = None,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Say what the policy makes of how a release was built, envelope by envelope.

    Of a release that was imported, the vendor's signatures that are kept beside it are judged again, too.
    Exit code 3 when it is not proven.
    """
    from cli.upstream import explain
    from desk.provenance import Asked

    explain(begin(ctx, json=json), release, Asked(policy, tuple(attestation or ()), trusted_root))


def attest(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="What was built.")],
    *,
    builder: Annotated[
        str, typer.Option("--builder", metavar="URI", help="The builder's id, as policies name it.")
    ],
    source: Annotated[
        str, typer.Option("--source", metavar="URI", help="What it was built from: repository@ref.")
    ],
    build_type: Annotated[
        str, typer.Option("--build-type", metavar="URI", help="How it was built.")
    ],
    started: Annotated[
        str, typer.Option("--started", metavar="TIME", help="Such as 2025-01-31T12:00:00Z.")
    ] = "",
    finished: Annotated[
        str, typer.Option("--finished", metavar="TIME", help="Otherwise now.")
    ] = "",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where to write the envelope.")
    ],
    key: options.KeyOption = None,
    agent: options.AgentOption = None,
    json: options.JsonOption = False,
) -> None:
    """As a builder, sign how files were built: a DSSE envelope with SLSA provenance v1."""
    from cli.upstream import sign_build
    from desk.orders import Signer
    from desk.provenance import Claim

    claim = Claim(
        builder=builder, build_type=build_type, source=source, started=started, finished=finished
    )
    signer = Signer(key=key, agent=agent)
    sign_build(begin(ctx, json=json), tuple(files), claim, signer, output)


def import_(  # noqa: PLR0913 - a command's options are its parameters
    ctx: typer.Context,
    release: Annotated[
        str, typer.Argument(metavar="RELEASE", help="What it will be called: etcd@3.5.1.")
    ],
    *,
    archive: Annotated[
        list[str],
        typer.Option(
            "--archive", metavar="PLATFORM=FILE", help="An archive, such as linux/amd64=FILE. Repeatable."
        ),
    ],
    sums: Annotated[
        Path, typer.Option("--sums", metavar="FILE", help="The vendor's list of sums (SHA256SUMS).")
    ],
    signature: Annotated[
        list[Path],
        typer.Option(
            "--signature", metavar="FILE", help="OpenPGP, minisign or SSH, over the sums. Repeatable."
        ),
    ],
    pin: Annotated[
        list[Path],
        typer.Option("--pin", metavar="FILE", help="A public key of the vendor's. Repeatable."),
    ],
    needed: Annotated[
        int, typer.Option("--needed", metavar="N", help="How many of the pinned keys must have signed.")
    ] = 1,
    complete: Annotated[
        bool, typer.Option("--complete", help="Every file of the sums has to be among the archives.")
    ] = False,
    in_spite: Annotated[
        str,
        typer.Option("--in-spite", metavar="REASON", help="Take it although it is a downgrade, and say why."),
    ] = "",
    like: Annotated[
        Path | None,
        typer.Option(
            "--like", metavar="FILE", help="A Release document that says the rest (protocols, configuration, …)."
        ),
    ] = None,
    upgrade_from: Annotated[
        str, typer.Option("--upgrade-from", metavar="RANGE", help="Versions it may be upgraded from.")
    ] = "",
    downgrade_to: Annotated[
        str, typer.Option("--downgrade-to", metavar="RANGE", help="Versions it may be switched back to.")
    ] = "",
    repository: Folder = None,
    key: Keys = None,
    agent: Agents = None,
    author: Annotated[
        str,
        typer.Option(
            "--author", metavar="NAME", envvar="KEDGE_PERSON", help="Who adds it. Otherwise the fingerprint of the first key."
        ),
    ] = "",
    publish: Publish = False,
    json: options.JsonOption = False,
) -> None:  # fmt: skip
    """Make a release of what a vendor published, and keep the vendor's signatures beside it.

    Nothing is added unless every archive is in sums that pinned keys signed. Exit code 3 when it is refused.
    """
    from cli.releases import Signing
    from cli.upstream import by_platform, import_release, named
    from desk.upstream import ImportRequest

    session = begin(ctx, json=json)
    request = ImportRequest(
        name=named(release), archives=by_platform(tuple(archive)), sums=sums, signatures=tuple(signature),
        pins=tuple(pin), like=like, upgrade_from=upgrade_from, downgrade_to=downgrade_to, needed=needed,
        complete=complete, in_spite=in_spite,
    )  # fmt: skip
    import_release(session, request, repository, Signing(key, agent, publish), author)


def register(app: typer.Typer) -> None:
    """Adds the commands of this module to ``kedge release``."""
    app.command("import")(import_)
    app.command()(provenance)
    app.command()(attest)
