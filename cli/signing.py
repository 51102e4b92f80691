"""How an order is signed, as options that every ordering command takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cli import options


@dataclass(frozen=True, slots=True)
class Signing:
    """By whom, with what, why, and for how long an order is signed."""

    key: Path | None = None
    agent: str | None = None
    person: str = ""
    comment: str = ""
    ticket: str = ""
    valid: str = ""
    yes: bool = False


_OPTIONS = {
    "key": options.KeyOption,
    "agent": options.AgentOption,
    "person": options.PersonOption,
    "comment": options.CommentOption,
    "ticket": options.TicketOption,
    "valid": options.ValidOption,
    "yes": options.YesOption,
}


def signed(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that takes ``signing`` the options for it.

    Typer reads a command's signature, so the one parameter is replaced there by one per option.
    """

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        signing = Signing(**{field.name: given.pop(field.name) for field in fields(Signing)})
        command(**given, signing=signing)

    plain = inspect.signature(command, eval_str=True)
    kept = [one for one in plain.parameters.values() if one.name != "signing"]
    defaults = Signing()
    extra = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(defaults, name),
            annotation=annotation,
        )
        for name, annotation in _OPTIONS.items()
    ]
    # The JSON option stays the last one listed.
    *first, last = kept
    with_options.__signature__ = plain.replace(parameters=[*first, *extra, last])  # type: ignore[attr-defined]
    return with_options
