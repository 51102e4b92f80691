"""JSON from outside, read so that one text has one meaning for everybody who reads it.

Parsers differ on duplicate keys, numbers that are none, and what stands behind the value; an attestation that says one
thing to its signer and another to its reader would pass between them. So: UTF-8 without a byte order mark, no duplicate
keys, no ``NaN`` or ``Infinity``, one value, bounded in bytes, depth and values.
"""

from __future__ import annotations

import json
import math

from kedge.model.base import Json
from kedge.model.bounds import check_values
from kedge.trust.refusal import quoted

MOST_DEEP = 32


def read_json(content: bytes, *, most_bytes: int, most_deep: int = MOST_DEEP) -> Json:
    """The value; ``ValueError`` with a clause that says what is wrong."""
    if len(content) > most_bytes:
        raise ValueError(f"is longer than {most_bytes} bytes")
    check_values(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    if text.startswith("\ufeff"):
        raise ValueError("begins with a byte order mark")
    try:
        value: Json = json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_no_number, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"is nested more than {most_deep} deep") from error
    if too_deep(value, most_deep):
        raise ValueError(f"is nested more than {most_deep} deep")
    return value


def _pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"has the key {quoted(key)} twice")
        found[key] = value
    return found


def _no_number(text: str) -> Json:
    raise ValueError(f"has {text}, which is no number of JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("has a number that is too large")
    return number


def too_deep(value: Json, most_deep: int) -> bool:
    """Whether lists and objects are nested in each other more than ``most_deep`` times."""
    level: list[Json] = [value]
    for _ in range(most_deep + 1):
        below: list[Json] = []
        for one in level:
            if isinstance(one, dict):
                below += one.values()
            elif isinstance(one, list):
                below += one
        if not below:
            return False
        level = below
    return True
