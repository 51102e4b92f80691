"""The base of every value, and the small types that many of them share."""

from __future__ import annotations

import hashlib
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
    try:
        return rfc8785.dumps(plain)
    except rfc8785.CanonicalizationError as error:
        raise ValueError(f"not canonical JSON: {error}") from error


def digest_of(value: BaseModel | Json) -> str:
    """sha256 (hex) over :func:`canonical`."""
    return hashlib.sha256(canonical(value)).hexdigest()
