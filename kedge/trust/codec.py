"""Payloads as Temporal keeps them: sealed with AES-256-GCM under a ring of keys, bound to the workflow they belong to.

A ring has one active key, which seals, and older ones, which only open. A key is known by an id made from its bytes
(:func:`key_id`), so an id never stands for another key. A payload is bound to five things that stay readable beside it,
as associated data (NIST SP 800-38D, 7.1): the format, the key's id, the workflow it is for (``<namespace>/<workflow id>``,
or ``<namespace>`` alone where the sender knew no more), its kind (:mod:`kedge.trust.payload_kinds`), and the digest of the
request that it answers (empty where it answers none). A change of any of them, or of one bit of the content, is found.

Nonces are 96 random bits, given by the caller. Under one key at most 2^32 payloads may be sealed (SP 800-38D, 8.3):
rotate long before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field, ValidationError

from kedge.model.base import Frozen, canonical
from kedge.model.errors import CodecError
from kedge.trust.wire import string

KEY_BYTES = 32
NONCE_BYTES = 12
_TAG_BYTES = 16
MOST_KEYS = 64
MAX_RING = 65_536
"""The largest ring, in bytes."""
MAX_CONTENT = 16 * 1024 * 1024
"""The largest payload that is sealed or opened, in bytes; Temporal itself takes 2 MiB."""

_FORMAT = b"kedge-payload-2"
_FIRST_FORMAT = b"kedge-payload-1"
"""Bound to format, key and workflow alone. It is read in a time of grace only, as payloads in the open are."""
_ID = re.compile(r"[0-9a-f]{16}")
_MAKE_ONE = "`kedge codec init` makes a ring; `kedge codec show` tells which keys one has"


def key_id(secret: bytes) -> str:
    """The name of a key: 16 hex digits over its bytes. It tells nothing about them."""
    return hashlib.sha256(b"kedge-codec-key\0" + secret).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RingKey:
    """One key of a ring; ``made`` is when, RFC 3339 in UTC, empty where nobody said."""

    id: str
    secret: bytes = field(repr=False)
    made: str = ""

    def __post_init__(self) -> None:
        """Raises ``CodecError`` for a key that is not 32 bytes, or goes by the name of another."""
        if len(self.secret) != KEY_BYTES:
            raise CodecError("RingRefused", f"a key has {KEY_BYTES} bytes, and this one has {len(self.secret)}")  # fmt: skip
        if self.id != key_id(self.secret):
            raise CodecError("RingRefused", f"key {self.id} is not the key of that name: its bytes were changed")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ring:
    """One active key and older ones for reading.

    ``plaintext_until`` is the end of a time of grace in which payloads that were never sealed are still read
    (RFC 3339, UTC); empty: they are refused. Nothing is ever written in the open.
    """

    active: str
    keys: Mapping[str, RingKey]
    plaintext_until: str = ""

    def __post_init__(self) -> None:
        """Raises ``CodecError`` for a ring without its active key, or with too many."""
        if self.active not in self.keys:
            raise CodecError("RingRefused", "the ring does not have the key that it calls active")
        if len(self.keys) > MOST_KEYS:
            raise CodecError("RingRefused", f"a ring has at most {MOST_KEYS} keys", next_step="kedge codec retire KEY")  # fmt: skip

    def reads_plaintext(self, now: datetime) -> bool:
        """Whether payloads that were never sealed are still read at ``now``."""
        return bool(self.plaintext_until) and now < moment(self.plaintext_until)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed payload: nonce, ciphertext and tag in ``content``; the rest stands beside it in the open.

    ``kind`` says what the payload is, ``request`` names what it answers. Both are None in the first format.
    """

    key: str
    bound: str
    content: bytes
    kind: str | None = None
    request: str | None = None


def seal(
    ring: Ring, content: bytes, bound: str, nonce: bytes, kind: str = "", request: str = ""
) -> Sealed:
    """``content`` under the ring's active key. ``nonce`` must be fresh random bytes each time."""
    if len(content) > MAX_CONTENT:
        raise CodecError("TooLarge", f"a payload of {len(content)} bytes is more than can be sealed")  # fmt: skip
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    key = ring.keys[ring.active]
    made = Sealed(key.id, bound, b"", kind, request)
    sealed = AESGCM(key.secret).encrypt(nonce, content, _associated(made))
    return replace(made, content=nonce + sealed)


def open_sealed(ring: Ring, sealed: Sealed) -> bytes:
    """What was sealed. Raises ``CodecError``: ``UnknownKey`` when the ring has no key of that id, ``Tampered`` when
    content, key id, binding, kind or request are not what was sealed.
    """
    if not _ID.fullmatch(sealed.key):
        raise CodecError("Tampered", "a payload names no key of any ring")
    if len(sealed.content) > MAX_CONTENT + NONCE_BYTES + _TAG_BYTES:
        raise CodecError("Tampered", "a payload is larger than any that was sealed")
    key = ring.keys.get(sealed.key)
    if key is None:
        raise CodecError(
            "UnknownKey",
            f"a payload is sealed with key {sealed.key}, which is not in the ring here "
            f"(it has {', '.join(sorted(ring.keys))})",
            next_step="bring the ring that has this key here; rotate with --prepare where machines share no file",
        )
    nonce, body = sealed.content[:NONCE_BYTES], sealed.content[NONCE_BYTES:]
    try:
        return AESGCM(key.secret).decrypt(nonce, body, _associated(sealed))
    except (InvalidTag, ValueError) as error:
        raise CodecError(
            "Tampered",
            f"a payload does not fit key {sealed.key}: it was changed, forged, or moved from another workflow",
            next_step="find out who can write to Temporal or its database; the payload is not believed",
        ) from error


def _associated(sealed: Sealed) -> bytes:
    named = string(sealed.key.encode()) + string(sealed.bound.encode())
    if sealed.kind is None:
        return string(_FIRST_FORMAT) + named
    return (
        string(_FORMAT)
        + named
        + string(sealed.kind.encode())
        + string((sealed.request or "").encode())
    )


# -- rings as documents ------------------------------------------------------------------------------------------


class _KeyDocument(Frozen):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    key: Annotated[str, Field(min_length=44, max_length=44)]
    made: Annotated[str, Field(max_length=32)] = ""


class _RingDocument(Frozen):
    format: Literal[1] = 1
    active: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    keys: Annotated[tuple[_KeyDocument, ...], Field(min_length=1, max_length=MOST_KEYS)]
    plaintext_until: Annotated[str, Field(max_length=32)] = ""


def parse_ring(content: bytes) -> Ring:
    """A ring from its file. Raises ``CodecError`` (``RingRefused``), which repeats nothing of the file's content."""
    if len(content) > MAX_RING:
        raise _not_a_ring(f"it has more than {MAX_RING} bytes")
    try:
        read = _RingDocument.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _not_a_ring(f"at {place or 'its beginning'}") from None
    if len({key.id for key in read.keys}) != len(read.keys):
        raise _not_a_ring("a key stands there twice")
    if read.plaintext_until:
        moment(read.plaintext_until)
    keys = {key.id: RingKey(key.id, _bytes_of(key.key), key.made) for key in read.keys}
    return Ring(read.active, keys, read.plaintext_until)


def ring_document(ring: Ring) -> bytes:
    """The file of a ring. It has the keys: mode 0600."""
    document = _RingDocument(
        active=ring.active,
        keys=tuple(
            _KeyDocument(id=key.id, key=base64.b64encode(key.secret).decode(), made=key.made)
            for key in ring.keys.values()
        ),
        plaintext_until=ring.plaintext_until,
    )
    return canonical(document) + b"\n"


def ring_of_words(text: str) -> Ring:
    """A ring from base64 keys separated by blanks or commas, the first one active; for environments of clusters.

    Raises ``CodecError`` (``RingRefused``), which repeats nothing of the text.
    """
    if len(text) > MAX_RING:
        raise _not_a_ring(f"it has more than {MAX_RING} characters")
    secrets = [_bytes_of(word) for word in re.split(r"[\s,]+", text.strip()) if word]
    if not secrets:
        raise _not_a_ring("it has no key")
    keys = [RingKey(key_id(secret), secret) for secret in secrets]
    if len({key.id for key in keys}) != len(keys):
        raise _not_a_ring("a key stands there twice")
    return Ring(keys[0].id, {key.id: key for key in keys})


def new_ring(secret: bytes, made: str, plaintext_until: str = "") -> Ring:
    """A ring with one key."""
    key = RingKey(key_id(secret), secret, made)
    return Ring(key.id, {key.id: key}, plaintext_until)


def with_key(ring: Ring, secret: bytes, made: str, *, activate: bool = True) -> Ring:
    """The ring with one more key, which seals from now on, or with ``activate=False`` only opens until it is activated."""
    key = RingKey(key_id(secret), secret, made)
    if key.id in ring.keys:
        raise CodecError("RingRefused", f"key {key.id} is in the ring already")
    keys = {**ring.keys, key.id: key}
    return replace(ring, keys=keys, active=key.id if activate else ring.active)


def activated(ring: Ring, identity: str) -> Ring:
    """The ring with another of its keys active."""
    _there(ring, identity)
    return replace(ring, active=identity)


def retired(ring: Ring, identity: str) -> Ring:
    """The ring without a key: nothing that was sealed with it can be read from then on. Never the active one."""
    _there(ring, identity)
    if identity == ring.active:
        raise CodecError(
            "RingRefused", f"key {identity} is the active one", next_step="kedge codec rotate, and retire it then"
        )  # fmt: skip
    return replace(ring, keys={name: key for name, key in ring.keys.items() if name != identity})


def _there(ring: Ring, identity: str) -> None:
    if identity not in ring.keys:
        raise CodecError(
            "UnknownKey", f"no key {identity[:32]!r} is in the ring", next_step="kedge codec show lists its keys"
        )  # fmt: skip


def moment(text: str) -> datetime:
    """A time of a ring; raises ``CodecError`` (``RingRefused``)."""
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise _not_a_ring("a time in it is not like 2026-01-31T12:00:00Z") from error


def _bytes_of(word: str) -> bytes:
    try:
        secret = base64.b64decode(word.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _not_a_ring("a key in it is not base64") from None
    if len(secret) != KEY_BYTES:
        raise _not_a_ring(f"a key in it has {len(secret)} bytes instead of {KEY_BYTES}")
    return secret


def _not_a_ring(why: str) -> CodecError:
    return CodecError("RingRefused", f"what should be a ring of payload keys is none: {why}", next_step=_MAKE_ONE)  # fmt: skip
