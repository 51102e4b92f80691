"""The ring of payload keys of a home: making it, rotating it, ending a time of grace.

Nothing here shows a key. Everything that changes the ring replaces its file whole; workers and clients that run read
the new one with the next payload.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

from kedge.drivers.codec_ring import RingFile
from kedge.model.base import Frozen
from kedge.model.errors import CodecError
from kedge.model.notation import seconds
from kedge.trust import codec
from kedge.trust.codec import KEY_BYTES, Ring
from worker import processes
from worker.background import BackgroundWorker
from worker.codec import KEYS_VARIABLE, checked, mark, marked_keys, required_mark, ring_file
from worker.settings import Settings

Use = Literal["seals", "reads"]


class KeyShown(Frozen):
    """A key by its name: ``seals`` (the active one) or only ``reads``; ``made`` is when."""

    id: str
    use: Use
    made: str


class RingShown(Frozen):
    """What is known of a home's ring, without its keys.

    ``where`` is its file or ``KEDGE_CODEC_KEYS``, empty where payloads are in the open. ``required``: nothing is
    written without it. ``plaintext_until``: open payloads are read until then, empty when they are refused.
    """

    where: str
    required: bool
    keys: tuple[KeyShown, ...] = ()
    plaintext_until: str = ""


def show(settings: Settings, now: datetime | None = None) -> RingShown:
    """The ring as it is. Raises ``CodecError`` when there should be one and it cannot be used."""
    wanted = (
        required_mark(settings).exists()
        or settings.codec_required
        or settings.codec_ring is not None
    )
    words = os.environ.get(KEYS_VARIABLE, "")
    if words.strip():
        return _shown(checked(codec.ring_of_words(words), settings), KEYS_VARIABLE, now)
    file = ring_file(settings)
    if not file.there() and not wanted:
        return RingShown(where="", required=False)
    return _shown(checked(file.ring(), settings), str(file.path), now)


def _shown(ring: Ring, where: str, now: datetime | None) -> RingShown:
    keys = sorted(ring.keys.values(), key=lambda key: (key.id != ring.active, key.made, key.id))
    return RingShown(
        where=where,
        required=True,
        keys=tuple(
            KeyShown(id=key.id, use="seals" if key.id == ring.active else "reads", made=key.made)
            for key in keys
        ),
        plaintext_until=ring.plaintext_until if ring.reads_plaintext(now or _now()) else "",
    )


def init(settings: Settings, grace: str = "") -> RingShown:
    """Makes a ring with one key; from then on the home needs it.

    ``grace`` (such as ``7d``; ``0s`` for none) is how long payloads that were written before are still read; it must be
    said where there are any. Raises ``CodecError``: there is a ring, a worker runs, grace is not said.
    """
    file = _own_file(settings)
    with _changing(file):
        if file.there():
            raise CodecError("RingRefused", f"there is a ring already: {file.path}", next_step="kedge codec rotate gives it a new key")  # fmt: skip
        if required_mark(settings).exists():
            raise CodecError(
                "NoRing",
                f"this home had a ring, and {file.path} is not there any more",
                next_step="put it back from where you keep it; without it nothing that was sealed can be read, and "
                f"only a home without runs may begin anew (remove {required_mark(settings)})",
            )
        if BackgroundWorker(settings).state() is not None:
            raise CodecError("RingRefused", "a worker runs that writes in the open", next_step="kedge down, then again")  # fmt: skip
        if not grace and may_have_runs(settings):
            raise CodecError(
                "RingRefused",
                "there may be runs whose histories are in the open",
                next_step="say how long they are read: --grace 7d, or --grace 0s when none of them matters",
            )
        ring = codec.new_ring(secrets.token_bytes(KEY_BYTES), _stamp(_now()), _until(grace))
        # The mark first: who dies between the two has a home that says what is missing, not one that writes in the open.
        mark(settings, ())
        file.write(ring)
        mark(settings, ring.keys)
        return _shown(ring, str(file.path), None)


def may_have_runs(settings: Settings) -> bool:
    """Whether there may be histories in the open already: there is a cluster, or an engine was begun here."""
    return not settings.embedded or (settings.engine_dir / "temporal.db").exists()


def rotate(settings: Settings, *, prepare: bool = False, activate: str = "") -> RingShown:
    """A new key seals from now on; with ``prepare`` it only reads until it is named to ``activate``.

    Where several machines have copies of a ring: prepare, bring the file everywhere, activate, bring it again.
    """
    file = _own_file(settings)
    with _changing(file):
        _begun(file, settings)
        ring = checked(file.ring(), settings)
        if activate:
            ring = codec.activated(ring, activate)
        else:
            fresh = secrets.token_bytes(KEY_BYTES)
            ring = codec.with_key(ring, fresh, _stamp(_now()), activate=not prepare)
        file.write(ring)
        mark(settings, ring.keys)
        return _shown(ring, str(file.path), None)


def _begun(file: RingFile, settings: Settings) -> None:
    """Raises ``CodecError`` in a home that never had a ring: nothing was lost there."""
    if not file.there() and not required_mark(settings).exists():
        raise CodecError("NoRing", "payloads are in the open here: there is no ring of keys", next_step="`kedge codec init` makes one")  # fmt: skip


def retire(settings: Settings, key: str) -> RingShown:
    """Takes a key out of the ring: what was sealed with it can never be read again.

    One that another home with the same ring took out already is forgotten here too.
    """
    file = _own_file(settings)
    with _changing(file):
        _begun(file, settings)
        ring = file.ring()
        if key in ring.keys or key not in marked_keys(settings):
            ring = codec.retired(ring, key)
        mark(settings, ring.keys)
        file.write(ring)
        return _shown(ring, str(file.path), None)


def grace(settings: Settings, time: str) -> RingShown:
    """Payloads in the open are read for ``time`` from now (``0s``: no longer)."""
    file = _own_file(settings)
    with _changing(file):
        _begun(file, settings)
        ring = file.ring()
        ring = Ring(ring.active, ring.keys, _until(time))
        file.write(ring)
        return _shown(ring, str(file.path), None)


def _own_file(settings: Settings) -> RingFile:
    if os.environ.get(KEYS_VARIABLE, "").strip():
        raise CodecError(
            "RingRefused",
            f"the keys here come from {KEYS_VARIABLE}, not from a file",
            next_step="change them where that variable is set; the first key seals, all of them read",
        )
    return ring_file(settings)


@contextlib.contextmanager
def _changing(file: RingFile) -> Iterator[None]:
    """One change at a time, also from several homes with one ring: two would each lose the other's key."""
    try:
        with processes.exclusive(file.lock(), seconds=10, what="changing the ring"):
            yield
    except OSError as error:
        raise CodecError(
            "RingRefused",
            f"the ring of payload keys {file.path} cannot be changed: {error.strerror}",
            next_step="change it where its file may be written",
        ) from error
    except processes.ProcessError as error:
        raise CodecError("RingRefused", str(error)) from error


def length_of(time: str) -> float:
    """Seconds of a time as people write it. Raises ``CodecError``."""
    try:
        return seconds(time) if time else 0.0
    except ValueError as error:
        raise CodecError("RingRefused", f"{time[:40]!r} is no time: {error}", next_step="such as 12h or 7d") from error  # fmt: skip


def _until(time: str) -> str:
    length = length_of(time)
    return _stamp(_now() + timedelta(seconds=length)) if length else ""


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
