"""``kedge codec``: what its commands do and say."""

from __future__ import annotations

import sys

import typer
from rich.text import Text

from cli.exits import Exit
from cli.session import Session
from kedge.model.errors import CodecError
from worker import desk_codec
from worker.desk_codec import RingShown


def make(session: Session, grace: str) -> None:
    """A new ring."""
    shown = desk_codec.init(session.desk().settings, grace)
    session.say(
        Text("payloads are sealed from now on", style="bold green"),
        *_lines(shown),
        "keep a copy of that file where you keep keys: without it no history can be read any more",
    )
    session.document(shown)


def show(session: Session) -> None:
    """The ring, without its keys."""
    shown = desk_codec.show(session.desk().settings)
    if not shown.where:
        session.say("payloads are in the open here; `kedge codec init` makes a ring of keys")
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
        if not typer.confirm(
            f"what was sealed with {key} can never be read again; retire it?", err=True
        ):
            raise typer.Exit(Exit.INTERRUPTED)
    shown = desk_codec.retire(session.desk().settings, key)
    session.say(*_lines(shown))
    session.document(shown)


def grace(session: Session, time: str) -> None:
    """A time of grace."""
    shown = desk_codec.grace(session.desk().settings, time)
    session.say(*_lines(shown))
    session.document(shown)


def _lines(shown: RingShown) -> list[Text]:
    if not shown.where:
        return []
    lines = [Text(f"   ring     {shown.where}")]
    for key in shown.keys:
        made = f", made {key.made}" if key.made else ""
        lines.append(Text(f"   key      {key.id} {key.use}{made}"))
    if shown.plaintext_until:
        lines.append(
            Text(
                f"   grace    payloads in the open are read until {shown.plaintext_until}",
                style="yellow",
            )
        )
    return lines
