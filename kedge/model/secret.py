"""Where a host finds a secret. A document names the place, never the value."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from kedge.model.base import Frozen
from kedge.model.notation import Duration, Problem, Text, refuse

MOST_SECRETS = 32
LONGEST_COMMAND = 15.0
"""Seconds a command may take to print a secret."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_OWN = ("KEDGE_", "TEMPORAL_", "SSH_")
"""Variables of kedge's own and of its surroundings: no secret of a daemon. ``KEDGE_SECRET_…`` is what it may be."""

SecretName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$",
        description="a secret's name: letters, digits, '_' and '-', a letter first",
    ),
]


class SecretSource(Frozen):
    """One of: ``file`` (an absolute path on the host), ``env`` (a variable of the host program), ``command`` (an
    argument list whose output is the secret). One newline at the end is not part of it. ``timeout`` is for a command.

    Files and commands may have placeholders of the node, so that every node has a secret of its own.
    """

    file: Annotated[Text, Field(min_length=1)] | None = None
    env: str | None = None
    command: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)] | None = None
    timeout: Annotated[Duration, Field(gt=0, le=LONGEST_COMMAND)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        said = [name for name in ("file", "env", "command") if getattr(self, name) is not None]
        if len(said) != 1:
            have = " and ".join(said) or "nothing"
            return [((), f"is one of file, env or command; here is {have}")]
        problems: list[Problem] = []
        if self.file is not None and not self.file.startswith(("/", "{")):
            problems.append((("file",), "must be an absolute path on the host"))
        if self.env is not None:
            if not _VARIABLE.fullmatch(self.env):
                problems.append((("env",), "must be the name of an environment variable"))
            elif self.env.startswith(_OWN) and not self.env.startswith("KEDGE_SECRET_"):
                said_so = "is a variable of kedge or its surroundings, no secret of a daemon; name it KEDGE_SECRET_…"
                problems.append((("env",), said_so))
        if self.timeout is not None and self.command is None:
            problems.append((("timeout",), "is for a command; take it out"))
        return problems
