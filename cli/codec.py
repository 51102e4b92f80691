"""``kedge codec``: what its commands do and say."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.text import Text

from cli.asking import agrees, passphrase_asker
from cli.exits import Exit
from cli.session import Session
from desk import codec as desk_codec
from desk.codec import RingShown
from kedge.model.errors import CodecError, OrderError


def make(session: Session, grace: str) -> None:
    """A new ring."""
    shown = desk_codec.init(session.desk().settings, grace)
    session.say(
        Text("payloads are sealed from now on", style="bold green"),
        *_lines(shown),
        "keep a copy of these files where you keep keys: without them no history can be read any more",
    )
    session.document(shown)


def show(session: Session) -> None:
    """The ring, without its keys."""
    shown = desk_codec.show(session.desk().settings)
    if not shown.required:
        session.say("payloads are in the open here: the setting payloads = open says so")
    elif not shown.keys:
        session.say(
            "no ring of keys yet; `kedge up` makes those of a new home, `kedge codec init` those of another"
        )
    session.say(*_lines(shown))
    session.document(shown)


def rotate(session: Session, *, prepare: bool, activate: str) -> None:
    """A new key, or another one of the ring."""
    if prepare and activate:
        raise CodecError("RingRefused", "--prepare and --activate are two steps", next_step="prepare, bring the ring everywhere, then activate")  # fmt: skip
    shown = desk_codec.rotate(session.desk().settings, prepare=prepare, activate=activate)
    session.say(*_lines(shown))
    session.document(shown)


def retire(session: Session, key: str, *, yes: bool) -> None:
    """A key less."""
    if not yes:
        if not sys.stdin.isatty():
            raise CodecError("RingRefused", "what was sealed with a retired key is lost for good", next_step="say --yes when that is wanted")  # fmt: skip
        if not agrees(f"what was sealed with {key} can never be read again; retire it?"):
            session.note("nothing was retired")
            raise typer.Exit(Exit.INTERRUPTED)
    shown = desk_codec.retire(session.desk().settings, key)
    session.say(*_lines(shown))
    session.document(shown)


def grace(session: Session, time: str) -> None:
    """A time of grace."""
    shown = desk_codec.grace(session.desk().settings, time)
    session.say(*_lines(shown))
    session.document(shown)


def serve(
    session: Session,
    where: tuple[str, int],
    named: tuple[tuple[str, ...], tuple[str, ...]],
    life: str,
    tls: tuple[Path | None, Path | None],
) -> None:
    """The codec server, in the foreground."""
    from desk.codec_serving import Serving  # noqa: PLC0415 - heavy, and for who serves
    from desk.codec_serving import serve as serve_codec  # noqa: PLC0415 - as above
    from worker.logs import configure  # noqa: PLC0415 - as above

    desk = session.desk()
    configure(desk.settings.log_format, desk.settings.log_level)
    how = Serving(
        host=where[0], port=where[1], names=named[0], origins=named[1],
        life=desk_codec.length_of(life), certificate=tls[0], key=tls[1],
    )  # fmt: skip
    session.run(serve_codec(desk, how, session.note))


def login(
    session: Session, key: Path | None, agent: str | None, server: str, *, code: bool
) -> None:
    """A token, or a one-time code, and what to do with it."""
    from desk.codec_serving import address  # noqa: PLC0415 - heavy, and for who signs in
    from desk.codec_serving import login as login_codec  # noqa: PLC0415 - as above
    from desk.orders import Signer  # noqa: PLC0415 - as above

    if (key is None) == (agent is None):
        raise OrderError("one key signs", next_step="name it with --key FILE, or with --agent KEY")
    url = address(session.desk().settings, server)
    asked = passphrase_asker()
    found = session.run(login_codec(url, Signer(key=key, agent=agent), asked, code=code))
    session.note(f"signed in to {found.server} as {found.person}, until {found.expires}")
    if code:
        session.note(f"open {found.server}/ and give it this code, once, within two minutes:")
    else:
        session.note(
            "for Temporal's command line: TEMPORAL_CODEC_ENDPOINT and TEMPORAL_CODEC_AUTH='Bearer TOKEN'"
        )
    if session.json:
        session.document(found)
    else:
        sys.stdout.write(f"{found.secret}\n")


def _lines(shown: RingShown) -> list[Text]:
    lines = []
    for use, where in (("workers", shown.where), ("clients", shown.clients)):
        if where:
            lines.append(Text(f"   {use:<8} {where}"))
        for key in shown.keys:
            if key.ring == use:
                made = f", made {key.made}" if key.made else ""
                lines.append(Text(f"   key      {key.id} {key.use}{made}"))
    if shown.plaintext_until:
        lines.append(
            Text(
                f"   grace    payloads in the open, and sealed as before, are read until {shown.plaintext_until}",
                style="yellow",
            )
        )
    return lines
