"""The payload codec by itself: what is sealed opens under its ring and nowhere else, and every change is found."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kedge.model.errors import CodecError
from kedge.trust import codec
from kedge.trust.codec import Ring, Sealed

NONCE = b"n" * codec.NONCE_BYTES
FIRST, SECOND = b"1" * 32, b"2" * 32
MADE = "2026-01-01T00:00:00Z"
RING = codec.with_key(codec.new_ring(FIRST, MADE), SECOND, MADE)


def refused(kind: str, act: Callable[[], object]) -> CodecError:
    with pytest.raises(CodecError) as caught:
        act()
    assert caught.value.kind == kind, caught.value
    return caught.value


def test_what_is_sealed_opens_again() -> None:
    for content in (b"", b"x", os.urandom(100_000)):
        sealed = codec.seal(RING, content, "default/upgrade/etcd/1", os.urandom(12))
        assert codec.open_sealed(RING, sealed) == content
        assert len(content) < 8 or content not in sealed.content


def test_the_active_key_seals_and_older_ones_open() -> None:
    before = codec.seal(codec.new_ring(FIRST, MADE), b"old", "", NONCE)
    assert codec.open_sealed(RING, before) == b"old"
    assert codec.seal(RING, b"new", "", NONCE).key == codec.key_id(SECOND)


def test_a_key_that_is_only_prepared_opens_and_does_not_seal() -> None:
    ring = codec.with_key(codec.new_ring(FIRST, MADE), SECOND, MADE, activate=False)
    assert codec.seal(ring, b"x", "", NONCE).key == codec.key_id(FIRST)
    assert codec.open_sealed(ring, codec.seal(RING, b"x", "", NONCE)) == b"x"
    assert codec.activated(ring, codec.key_id(SECOND)).active == codec.key_id(SECOND)


def test_every_bit_of_what_is_sealed_counts() -> None:
    sealed = codec.seal(RING, b"twelve bytes", "default/upgrade/etcd/1", NONCE)
    for place in range(len(sealed.content) * 8):
        content = bytearray(sealed.content)
        content[place // 8] ^= 1 << place % 8
        changed = replace(sealed, content=bytes(content))
        refused("Tampered", lambda changed=changed: codec.open_sealed(RING, changed))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("another workflow", Sealed(codec.key_id(SECOND), "default/upgrade/etcd/2", b"")),
        ("no workflow", Sealed(codec.key_id(SECOND), "", b"")),
        ("another key of the ring", Sealed(codec.key_id(FIRST), "default/upgrade/etcd/1", b"")),
        ("no key at all", Sealed("", "default/upgrade/etcd/1", b"")),
        ("a key that is no id", Sealed("../" * 5, "default/upgrade/etcd/1", b"")),
    ],
)
def test_what_stands_beside_the_content_is_bound_to_it(what: str, changed: Sealed) -> None:  # noqa: ARG001 - the name of the case
    sealed = codec.seal(RING, b"content", "default/upgrade/etcd/1", NONCE)
    moved = replace(sealed, key=changed.key, bound=changed.bound)
    refused("Tampered", lambda: codec.open_sealed(RING, moved))


@pytest.mark.parametrize(
    "changed", [{"kind": "result"}, {"kind": ""}, {"kind": None}, {"request": "b"}, {"request": ""}]
)
def test_kind_and_request_are_bound_to_the_content(changed: dict[str, str | None]) -> None:
    sealed = codec.seal(RING, b"content", "default/upgrade/etcd/1", NONCE, "client", "a")
    assert codec.open_sealed(RING, sealed) == b"content"
    moved = Sealed(**{**{name: getattr(sealed, name) for name in sealed.__slots__}, **changed})
    refused("Tampered", lambda: codec.open_sealed(RING, moved))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27])
def test_what_is_too_short_to_be_sealed_is_tampered_with(length: int) -> None:
    sealed = Sealed(codec.key_id(FIRST), "", b"\0" * length)
    refused("Tampered", lambda: codec.open_sealed(RING, sealed))


def test_a_key_that_is_not_in_the_ring_is_said_by_its_name() -> None:
    sealed = codec.seal(codec.new_ring(b"3" * 32, MADE), b"x", "", NONCE)
    error = refused("UnknownKey", lambda: codec.open_sealed(RING, sealed))
    assert codec.key_id(b"3" * 32) in error.message
    assert error.next_step


def test_too_much_is_neither_sealed_nor_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_CONTENT", 10)
    refused("TooLarge", lambda: codec.seal(RING, b"x" * 11, "", NONCE))
    sealed = Sealed(RING.active, "", b"x" * 100)
    refused("Tampered", lambda: codec.open_sealed(RING, sealed))


def test_a_ring_reads_back_as_it_was_written() -> None:
    assert codec.parse_ring(codec.ring_document(RING)) == RING


def document(**changes: object) -> bytes:
    import json

    return json.dumps({**json.loads(codec.ring_document(RING)), **changes}).encode()


def keys(*secrets: bytes, name: str = "") -> list[dict[str, str]]:
    return [
        {"id": name or codec.key_id(one), "key": base64.b64encode(one).decode(), "made": MADE}
        for one in secrets
    ]


BROKEN = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "another format": document(format=2),
    "an unknown field": document(note="x"),
    "no keys": document(keys=[]),
    "an active key that is not there": document(active="0" * 16),
    "a key under another's name": document(keys=keys(FIRST, name=codec.key_id(SECOND))),
    "a key twice": document(keys=keys(SECOND, SECOND)),
    "a short key": document(keys=keys(b"short", SECOND)),
    "a key that is no base64": document(
        keys=[{"id": codec.key_id(SECOND), "key": "!" * 44, "made": ""}]
    ),
    "a time that is none": document(plaintext_until="tomorrow"),
    "too long": b" " * (codec.MAX_RING + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_ring_is_refused_and_nothing_of_it_repeated(name: str) -> None:
    error = refused("RingRefused", lambda: codec.parse_ring(BROKEN[name]))
    for secret in (FIRST, SECOND):
        assert base64.b64encode(secret).decode()[:12] not in error.message
        assert secret.decode()[:12] not in error.message


def test_a_ring_shows_no_key_where_it_is_printed() -> None:
    for text in (repr(RING), str(RING.keys)):
        assert "1111" not in text
        assert base64.b64encode(FIRST).decode()[:8] not in text


def test_keys_from_the_environment_make_a_ring_of_which_the_first_is_active() -> None:
    words = " ".join(base64.b64encode(one).decode() for one in (SECOND, FIRST))
    ring = codec.ring_of_words(f"\n{words} ")
    assert ring.active == codec.key_id(SECOND)
    assert codec.open_sealed(ring, codec.seal(RING, b"x", "", NONCE)) == b"x"
    for bad in ("", "   ", "short", base64.b64encode(b"x" * 31).decode(), f"{words} {words}"):
        refused("RingRefused", lambda bad=bad: codec.ring_of_words(bad))  # type: ignore[misc]


def test_the_active_key_cannot_be_retired() -> None:
    refused("RingRefused", lambda: codec.retired(RING, RING.active))
    refused("UnknownKey", lambda: codec.retired(RING, "nobody"))
    left = codec.retired(RING, codec.key_id(FIRST))
    sealed = codec.seal(codec.new_ring(FIRST, MADE), b"x", "", NONCE)
    refused("UnknownKey", lambda: codec.open_sealed(left, sealed))


def test_grace_ends_when_it_says() -> None:
    ring = Ring(RING.active, RING.keys, "2026-01-02T00:00:00Z")
    assert ring.reads_plaintext(datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC))
    assert not ring.reads_plaintext(datetime(2026, 1, 2, tzinfo=UTC))
    assert not RING.reads_plaintext(datetime(2026, 1, 1, tzinfo=UTC))
