"""The rings of payload keys of a home: making them, rotating them, ending a time of grace.

Nothing here shows a key. Everything that changes a ring replaces its file whole; workers and clients that run read
the new one with the next payload.
"""

from __future__ import annotations

import contextlib
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
from kedge.trust.payload_kinds import USES
from kedge.trust.payload_kinds import Use as Whose
from worker import processes
from worker.background import BackgroundWorker
from worker.rings import (
    KEYS_VARIABLES,
    checked,
    mark,
    marked_keys,
    required_mark,
    ring_file,
    rings_of,
    words_of,
)
from worker.settings import Settings

Use = Literal["seals", "reads"]


class KeyShown(Frozen):
    """A key by its name, and the ring it is in: ``seals`` (the active one) or only ``reads``; ``made`` is when."""

    id: str
    ring: Whose
    use: Use
    made: str


class RingShown(Frozen):
    """What is known of a home's rings, without their keys.

    ``where`` and ``clients`` say where the workers' and the clients' ring are: a file or a variable, empty where there is
    none. ``required``: nothing is written without them. ``plaintext_until``: open payloads are read until then, empty when
    they are refused.
    """

    where: str
    clients: str
    required: bool
    keys: tuple[KeyShown, ...] = ()
    plaintext_until: str = ""


def show(settings: Settings, now: datetime | None = None) -> RingShown:
    """The rings as they are. Raises ``CodecError`` when there should be some and they cannot be used."""
    if settings.payloads == "open":
        rings_of(settings)
        return RingShown(where="", clients="", required=False)
    if not required_mark(settings).exists() and not any(_there(settings, use) for use in USES):
        return RingShown(where="", clients="", required=True)
    found: dict[Whose, Ring] = {}
    for use in USES:
        if words_of(use):
            found[use] = checked(codec.ring_of_words(words_of(use)), settings, use)
        elif _there(settings, use) or marked_keys(settings, use):
            found[use] = checked(ring_file(settings, use).ring(), settings, use)
    if not found:
        rings_of(settings)
    return _shown(settings, found, now)


def _there(settings: Settings, use: Whose) -> bool:
    named = settings.codec_ring if use == "workers" else settings.codec_client_ring
    return bool(words_of(use)) or named is not None or ring_file(settings, use).there()


def _shown(settings: Settings, rings: dict[Whose, Ring], now: datetime | None = None) -> RingShown:
    keys: list[KeyShown] = []
    where: dict[Whose, str] = {}
    for use, ring in rings.items():
        where[use] = KEYS_VARIABLES[use] if words_of(use) else str(ring_file(settings, use).path)
        ordered = sorted(ring.keys.values(), key=lambda key: (key.id != ring.active, key.made, key.id))  # fmt: skip
        keys += [
            KeyShown(id=key.id, ring=use, use="seals" if key.id == ring.active else "reads", made=key.made)
            for key in ordered
        ]  # fmt: skip
    workers = rings.get("workers")
    grace = workers is not None and workers.reads_plaintext(now or _now())
    return RingShown(
        where=where.get("workers", ""),
        clients=where.get("clients", ""),
        required=True,
        keys=tuple(keys),
        plaintext_until=workers.plaintext_until if grace and workers is not None else "",
    )


def ensure(settings: Settings) -> None:
    """Gives a new home its rings. Raises ``CodecError`` where a home has none and should have, or cannot use what it has.

    A home that began in the open is not switched over silently: how long its histories are read, a person says.
    """
    new = (
        settings.payloads == "sealed"
        and settings.embedded
        and not required_mark(settings).exists()
        and not any(_there(settings, use) for use in USES)
    )
    if not new:
        rings_of(settings)
        return
    if may_have_runs(settings):
        raise CodecError(
            "NoRing",
            f"the runs of {settings.home} are in the open: there is no ring of payload keys",
            next_step="kedge down, then `kedge codec init --grace 7d` seals from now on and reads for so long what is in the open",
        )
    init(settings)


def init(settings: Settings, grace: str = "") -> RingShown:
    """Makes the rings that this home does not have, with one key each; from then on it needs them.

    ``grace`` (such as ``7d``; ``0s`` for none) is how long payloads that were written before are still read; it must be
    said where there are any. Raises ``CodecError``: there are rings, a worker runs, grace is not said.
    """
    workers, clients = _own_file(settings, "workers"), _own_file(settings, "clients")
    with _changing(workers):
        if workers.there() and clients.there():
            raise CodecError("RingRefused", f"there is a ring already: {workers.path}", next_step="kedge codec rotate gives it a new key")  # fmt: skip
        lost = marked_keys(settings, "clients") if workers.there() else required_mark(settings).exists()  # fmt: skip
        if lost or clients.there():
            path = clients.path if workers.there() else workers.path
            raise CodecError(
                "NoRing",
                f"this home had a ring, and {path} is not there any more",
                next_step="put it back from where you keep it; without it nothing that was sealed can be read, and "
                f"only a home without runs may begin anew (remove {required_mark(settings)})",
            )
        if BackgroundWorker(settings).state() is not None:
            raise CodecError("RingRefused", "a worker runs that has no rings, or one", next_step="kedge down, then again")  # fmt: skip
        if not grace and may_have_runs(settings):
            raise CodecError(
                "RingRefused",
                "there may be runs whose histories are in the open, or sealed with one ring for all",
                next_step="say how long they are read: --grace 7d, or --grace 0s when none of them matters",
            )
        first = workers.ring() if workers.there() else _new_ring()
        rings: dict[Whose, Ring] = {
            "workers": Ring(first.active, first.keys, _until(grace)),
            "clients": _new_ring(),
        }
        # The mark first: who dies between the two has a home that says what is missing, not one that writes in the open.
        mark(settings, {"workers": first.keys} if workers.there() else {})
        workers.write(rings["workers"])
        clients.write(rings["clients"])
        mark(settings, {use: ring.keys for use, ring in rings.items()})
        return _shown(settings, rings)


def _new_ring() -> Ring:
    return codec.new_ring(secrets.token_bytes(KEY_BYTES), _stamp(_now()))


def may_have_runs(settings: Settings) -> bool:
    """Whether there may be histories already: there is a cluster, or an engine was begun here."""
    return not settings.embedded or any(settings.engine_dir.glob("*.db"))


def rotate(settings: Settings, *, prepare: bool = False, activate: str = "") -> RingShown:
    """A new key in each ring seals from now on; with ``prepare`` it only reads until it is named to ``activate``.

    Where several machines have copies of a ring: prepare, bring the file everywhere, activate, bring it again.
    """
    with _rings(settings) as rings:
        if activate:
            use = _ring_with(rings, activate)
            rings[use] = codec.activated(checked(rings[use], settings, use), activate)
            return _written(settings, rings)
        for use, ring in rings.items():
            fresh = secrets.token_bytes(KEY_BYTES)
            own = checked(ring, settings, use)
            rings[use] = codec.with_key(own, fresh, _stamp(_now()), activate=not prepare)
        return _written(settings, rings)


def _ring_with(rings: dict[Whose, Ring], key: str) -> Whose:
    return next((use for use, ring in rings.items() if key in ring.keys), "workers")


@contextlib.contextmanager
def _rings(settings: Settings) -> Iterator[dict[Whose, Ring]]:
    """The rings in files of this home, to be changed. Raises ``CodecError`` where there are none, or not all."""
    files = {use: _own_file(settings, use) for use in USES}
    with contextlib.ExitStack() as locks:
        # Always in the same order, so that two who change both do not wait for each other.
        for use in USES:
            if files[use].there() or files[use].path.parent.is_dir():
                locks.enter_context(_changing(files[use]))
        if not required_mark(settings).exists() and not any(file.there() for file in files.values()):  # fmt: skip
            raise CodecError("NoRing", "there is no ring of keys here", next_step="`kedge codec init` makes the rings")  # fmt: skip
        wanted = [use for use in USES if files[use].there() or marked_keys(settings, use)]
        yield {use: files[use].ring() for use in wanted or ["workers"]}


def _written(settings: Settings, rings: dict[Whose, Ring], *, mark_first: bool = False) -> RingShown:  # fmt: skip
    keys = {use: ring.keys for use, ring in rings.items()}
    if mark_first:
        mark(settings, keys)
    for use, ring in rings.items():
        file = ring_file(settings, use)
        if file.ring() != ring:
            file.write(ring)
    mark(settings, keys)
    return _shown(settings, rings)


def retire(settings: Settings, key: str) -> RingShown:
    """Takes a key out of its ring: what was sealed with it can never be read again.

    One that another home with the same ring took out already is forgotten here too.
    """
    with _rings(settings) as rings:
        use = _ring_with(rings, key)
        known = {marked for one in USES for marked in marked_keys(settings, one)}
        if key in rings[use].keys or key not in known:
            rings[use] = codec.retired(rings[use], key)
        return _written(settings, rings, mark_first=True)


def grace(settings: Settings, time: str) -> RingShown:
    """Payloads from before are read for ``time`` from now (``0s``: no longer)."""
    with _rings(settings) as rings:
        ring = rings.get("workers")
        if ring is None:
            raise CodecError("NoRing", "the workers' ring is not here, and it says how long open payloads are read", next_step="say it on a worker's machine")  # fmt: skip
        rings["workers"] = Ring(ring.active, ring.keys, _until(time))
        return _written(settings, rings)


def _own_file(settings: Settings, use: Whose) -> RingFile:
    if words_of(use):
        raise CodecError(
            "RingRefused",
            f"the keys here come from {KEYS_VARIABLES[use]}, not from a file",
            next_step="change them where that variable is set; the first key seals, all of them read",
        )
    return ring_file(settings, use)


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
