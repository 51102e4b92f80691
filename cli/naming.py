"""Names that people type: judged before anything is opened or asked, so that nothing but a name gets further.

A callback of an argument each. They raise ``typer.BadParameter``: exit code 2, and with ``--json`` its document.
Standard library and typer alone, since ``--help`` imports this.
"""

from __future__ import annotations

import re

import typer

_NAME = r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
_FLEET = re.compile(f"(?:fleet/)?{_NAME}")
_RUN = re.compile(rf"(?:upgrade|rollback)/{_NAME}/[0-9]{{1,18}}(?:-auto)?")
_MOST_PATH = 4096


def shown(text: str) -> str:
    """What was typed, in quotes: nothing in it moves a terminal's cursor, and no more of it than a line holds."""
    cut = text if len(text) <= 60 else f"{text[:60]}…"
    return ascii(cut).replace("\\u2026", "…")


def is_fleet(text: str) -> bool:
    """Whether a fleet may have this name."""
    return _FLEET.fullmatch(text) is not None


def a_run(text: str) -> str:
    """The id of a run."""
    if not _RUN.fullmatch(text):
        raise typer.BadParameter(
            f"{shown(text)} is no run's id, such as upgrade/etcd/1; `kedge list` shows the runs"
        )
    return text


def a_fleet(text: str) -> str:
    """The name of a fleet."""
    if not _FLEET.fullmatch(text):
        raise typer.BadParameter(
            f"{shown(text)} is no fleet's name: lower-case letters, digits, '.', '_' and '-', at most 63; "
            "`kedge list` shows runs with their fleets"
        )
    return text


def a_run_or_fleet(text: str) -> str:
    """Either."""
    if not _RUN.fullmatch(text) and not _FLEET.fullmatch(text):
        raise typer.BadParameter(
            f"{shown(text)} is neither a run's id, such as upgrade/etcd/1, nor a fleet's name; "
            "`kedge list` shows both"
        )
    return text


def fleets(names: list[str] | None) -> list[str] | None:
    """Names of fleets, or runs of them."""
    for one in names or ():
        a_run_or_fleet(one)
    return names


def a_fleet_or_none(text: str) -> str:
    """The name of a fleet, where the option may be left out."""
    return text and a_fleet(text)


def a_source(text: str) -> str:
    """A file, a fleet's name, or ``FLEET@NUMBER``."""
    if not text or len(text) > _MOST_PATH or not text.isprintable():
        raise typer.BadParameter(
            f"{shown(text)} is neither a policy's file nor a fleet's name nor FLEET@NUMBER"
        )
    return text
