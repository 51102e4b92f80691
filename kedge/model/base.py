"""The base of every value, and the small types that many of them share."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, JsonValue

Digest = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="sha256, 64 lower-case hex digits")
]
Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        description="lower-case letters, digits, '.', '_' and '-'",
    ),
]
MOST_ATTEMPTS = 20
"""How often a leg may be tried at most: each attempt is events in a history that a hundred nodes share."""

Seconds = Annotated[
    float, Field(ge=0, le=30 * 86400, allow_inf_nan=False, description="seconds, at most 30 days")
]
RunId = Annotated[str, Field(pattern=r"^[a-z]+/[a-z0-9._-]+/[a-z0-9.-]+$", max_length=200)]
Json = JsonValue


class Frozen(BaseModel):
    """An immutable value. Unknown keys are refused; types are strict (no ``"1"`` for ``1``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def canonical(value: BaseModel | Json) -> bytes:
    """The RFC 8785 bytes of a value: what digests and signatures are taken over.

    Raises ``ValueError`` for NaN, integers beyond 2^53 and lone surrogates.
    """
    plain: Any = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    known = _fast(plain)
    if known is not None:
        return known
    try:
        return rfc8785.dumps(plain)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error


_FAST = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)
_MOST = 2**53 - 1
_SCALARS = frozenset({str, bool, type(None)})


def _fast(value: Any) -> bytes | None:
    """The canonical bytes by the standard library's encoder, or None where it may say the value otherwise.

    In ASCII text keys sort alike by code point and in UTF-16, and strings are escaped alike. Floats, large integers
    and keys that are no text take the careful way.
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind in _SCALARS:
            continue
        if kind is dict:
            if not all(type(key) is str for key in one):
                return None
            waiting += one.values()
        elif kind is list or kind is tuple:
            waiting += one
        elif kind is not int or not -_MOST <= one <= _MOST:
            return None
    text = _FAST.encode(value)
    return text.encode() if text.isascii() else None


def digest_of(value: BaseModel | Json) -> str:
    """sha256 (hex) over :func:`canonical`."""
    return hashlib.sha256(canonical(value)).hexdigest()
