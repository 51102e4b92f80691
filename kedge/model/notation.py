"""Small types in the form in which people write them in documents, and problems that know their place.

Each of them reads text and keeps a plain value, so that two spellings of the same value
(``60s`` and ``1m``) are the same document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from kedge.model.base import Frozen

Path = tuple[str | int, ...]
Problem = tuple[Path, str]
"""Where in a document, and the sentence."""

IN_DOCUMENT = {"document": True}
"""Validation context of text that a person wrote: a duration without a unit is then refused."""

PROBLEMS = "kedge_problems"
"""Error type of :func:`refuse`; its context carries the problems with their own places."""


class Entry(Frozen):
    """A part of a document that also has shorter spellings (``- stage``, ``bake: 10m``).

    What a shorter spelling was expanded to reaches pydantic as plain objects, so lists are taken for tuples here;
    numbers and truth values stay strict by :data:`Count` and :data:`Flag`.
    """

    model_config = ConfigDict(strict=False)


Count = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]

LONGEST = 30 * 86400.0
"""The longest duration in seconds."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)(ms|s|m|h|d)")
_DURATION = r"^(\d{1,7}(\.\d{1,3})?(ms|s|m|h|d)){1,5}$"
_PERCENT = re.compile(r"^(\d{1,3}(?:\.\d{1,2})?)%$")


def refuse(problems: Iterable[Problem]) -> None:
    """Raise one validation error that carries every problem with its place; nothing when there is none."""
    found = [(list(path), said) for path, said in problems]
    if found:
        said = "; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in found)
        raise PydanticCustomError(
            PROBLEMS,
            "{said}",
            {"said": said.replace("{", "(").replace("}", ")"), "problems": found},
        )


def seconds(text: str) -> float:
    """The seconds of a duration such as ``30s``, ``1h30m`` or ``3d``; ``ValueError`` for anything else."""
    if not re.match(_DURATION, text):
        raise ValueError(
            "a duration is a number and a unit: ms, s, m, h or d, such as 30s, 5m or 1h30m"
        )
    total = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))
    if total > LONGEST:
        raise ValueError("a duration is at most 30d")
    return round(total, 3)


def _duration(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        try:
            return seconds(value)
        except ValueError as error:
            raise PydanticCustomError("kedge_duration", "{said}", {"said": str(error)}) from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("kedge_duration", _NO_DURATION)
    if (info.context or {}).get("document"):
        said = f"a duration has a unit: write {value:g}s"
        raise PydanticCustomError("kedge_duration", "{said}", {"said": said})
    return float(value)


_NO_DURATION = "must be a duration such as 30s, 5m, 2h or 3d"


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    Field(ge=0, le=LONGEST, allow_inf_nan=False),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": _DURATION,
            "description": "a duration: 30s, 5m, 2h, 3d, 1h30m",
        }
    ),
]
"""Seconds, written as ``30s``, ``5m``, ``2h``, ``3d`` or ``1h30m``; at most 30 days."""


def _share(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("kedge_share", "must be a number of nodes (3) or a part (30%)")
    if isinstance(value, int):
        if value < 1:
            raise PydanticCustomError(
                "kedge_share", "must be at least 1 node, or a part such as 30%"
            )
        return value
    match = _PERCENT.match(value)
    if not match or not 0 < float(match[1]) <= 100:
        raise PydanticCustomError(
            "kedge_share", "must be a number of nodes (3) or a part more than 0% and at most 100%"
        )
    return f"{float(match[1]):g}%"


Share = Annotated[
    int | str,
    BeforeValidator(_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,2})?%$"},
            ],
            "description": "a number of nodes, or a part of the fleet such as 30%",
        }
    ),
]
"""A count of nodes (``int``) or a part of the fleet (``"30%"``)."""


def share_of(share: int | str, total: int) -> float:
    """How many nodes of ``total`` a share is, not rounded."""
    if isinstance(share, int):
        return float(share)
    return float(share.rstrip("%")) * total / 100.0


Version = Annotated[
    str,
    Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}$", description='a version, as text: "1.10"'),
]
Range = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        description='a range of versions as npm writes them: ">=3.4.0 <3.6.0"',
    ),
]
Key = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        description="letters, digits, '_', '.' and '-'",
    ),
]
"""A name that the component gives (a flag, a label, a variable): upper case allowed."""
Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
"""Text that may become part of a command line or a file: no NUL."""
Content = Annotated[str, Field(max_length=262_144, pattern=r"^[^\x00]*$")]
"""The text of a file: at most 256 KiB, no NUL."""
FileName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$",
        max_length=200,
        description="a file's name, with folders if wanted: no leading '/' or '.'",
    ),
]
