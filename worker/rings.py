"""The two rings of payload keys of a home or a process: where they come from, and whether they are this home's.

The workers' ring is ``<home>/trust/codec.json``, the clients' ring ``<home>/trust/codec-clients.json``; other files, or
keys in variables, where the settings say so. A mark outside of that folder says that the home seals, and with which keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from temporalio.converter import DataConverter

from kedge.drivers.codec_ring import FixedRing, RingFile, Rings
from kedge.drivers.files import sync_directory, write_atomic
from kedge.model.errors import CodecError
from kedge.trust.codec import Ring, ring_of_words
from kedge.trust.payload_kinds import USES, Use
from worker.codec import KeyRings, client_converter, open_converter
from worker.logs import get_logger
from worker.settings import Settings

KEYS_VARIABLES: Mapping[Use, str] = {
    "workers": "KEDGE_CODEC_KEYS",
    "clients": "KEDGE_CODEC_CLIENT_KEYS",
}
"""Keys for machines that have no file for them: base64, separated by blanks, the first one active."""
_NAMES: Mapping[Use, str] = {"workers": "codec.json", "clients": "codec-clients.json"}
_COMPLAIN_EVERY = 60.0
_ID = re.compile(r"[0-9a-f]{16}")


class LivingRing:
    """A ring that is followed while a process runs: a rotated one is taken up, a lost one changes nothing.

    A process that has read its ring once goes on with it when the file is lost or broken: what it writes is sealed
    all the same. It complains in the log.
    """

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._last = rings.ring()
        self._complained = -_COMPLAIN_EVERY

    def ring(self) -> Ring:
        """The ring as it is now, or as it was last good."""
        try:
            self._last = self._rings.ring()
        except CodecError as error:
            if time.monotonic() - self._complained >= _COMPLAIN_EVERY:
                self._complained = time.monotonic()
                get_logger("codec").error("the ring is lost, the last one is used", reason=error.message, next=error.next_step)  # fmt: skip
        return self._last


class OwnRing:
    """A home's own ring in its file: another one is refused whenever it comes, also while a process runs."""

    def __init__(self, file: Rings, settings: Settings, use: Use) -> None:
        self._file = file
        self._settings = settings
        self._use = use
        self._good: Ring | None = None

    def ring(self) -> Ring:
        """The ring as it is now. Raises ``CodecError``."""
        found = self._file.ring()
        if found is not self._good:
            self._good = checked(found, self._settings, self._use)
        return found


def ring_file(settings: Settings, use: Use = "workers") -> RingFile:
    """Where a ring of these settings is, whether or not it is there."""
    return RingFile(_named(settings, use) or settings.home / "trust" / _NAMES[use])


def _named(settings: Settings, use: Use) -> Path | None:
    return settings.codec_ring if use == "workers" else settings.codec_client_ring


def required_mark(settings: Settings) -> Path:
    """The file that says that this home seals: without its rings nothing is written any more."""
    return settings.home / "codec.required"


def mark(settings: Settings, keys: Mapping[Use, Iterable[str]]) -> None:
    """Notes that this home seals, and the names of its keys: a wrong one is known by them. Raises ``OSError``."""
    path = required_mark(settings)
    text = "This home seals what it gives to Temporal (docs/secrets.md). Keys:"
    lines = [f"{key} {use}" for use in USES for key in sorted(keys.get(use, ()))]
    write_atomic(path, "\n".join([text, *lines, ""]).encode())
    sync_directory(path.parent)


def marked_keys(settings: Settings, use: Use) -> tuple[str, ...]:
    """The names of the keys of that ring this home is known to have sealed with; a line of before names a worker's."""
    try:
        lines = required_mark(settings).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ()
    found = [line.split() for line in lines]
    return tuple(
        words[0]
        for words in found
        if words and _ID.fullmatch(words[0]) and (words[1:] or ["workers"]) == [use]
    )


def checked(ring: Ring, settings: Settings, use: Use) -> Ring:
    """The ring, if it is this home's. Raises ``CodecError`` (``RingRefused``) for another one, before anything is
    written with it that nobody here could read.
    """
    missing = [key for key in marked_keys(settings, use) if key not in ring.keys]
    if missing:
        raise CodecError(
            "RingRefused",
            f"this is not the {use}' ring of {settings.home}: it has no key {', '.join(missing[:4])}, with which payloads here are sealed",
            next_step="bring the home's own ring back; keys that nobody needs any more go with `kedge codec retire`",
        )
    return ring


def words_of(use: Use) -> str:
    """Keys of that ring in this process's environment; empty where there are none."""
    return os.environ.get(KEYS_VARIABLES[use], "").strip()


def rings_of(settings: Settings) -> KeyRings | None:
    """The rings these settings mean; None where the settings say that payloads are in the open.

    Raises ``CodecError`` where there are none, where one is lost, or cannot be used.
    """
    if settings.payloads == "open":
        if required_mark(settings).exists():
            raise CodecError(
                "RingRefused",
                f"{settings.home} gave sealed payloads to Temporal, and payloads = open would write in the open",
                next_step="unset KEDGE_PAYLOADS (payloads in kedge.toml): payloads are sealed then",
            )
        return None
    workers, clients = _ring(settings, "workers"), _ring(settings, "clients")
    if clients is None:
        raise _missing(settings, workers)
    if workers is not None and set(workers.ring().keys) & set(clients.ring().keys):
        raise CodecError(
            "RingRefused",
            "one key is in both rings, so that clients could write what only workers may",
            next_step="`kedge codec show` lists the keys of both; give each ring keys of its own",
        )
    if settings.home.is_dir() and not required_mark(settings).exists():
        # Without names: which keys a variable has is changed where it is set. Who may not write here notes nothing.
        with contextlib.suppress(OSError):
            mark(settings, {})
    return KeyRings(clients=clients, workers=workers)


def _ring(settings: Settings, use: Use) -> Rings | None:
    if words := words_of(use):
        return LivingRing(FixedRing(checked(ring_of_words(words), settings, use)))
    file = ring_file(settings, use)
    if file.there() or _named(settings, use) is not None or marked_keys(settings, use):
        return LivingRing(OwnRing(file, settings, use))
    return None


def _missing(settings: Settings, workers: Rings | None) -> CodecError:
    """Why there is no clients' ring: this home has one ring of before, lost what it had, or never had any."""
    if workers is not None and not words_of("workers"):
        return CodecError(
            "NoRing",
            f"{settings.home} has one ring of payload keys, from before workers and clients had each their own",
            next_step="kedge down, then `kedge codec init --grace 7d` makes the clients' ring; runs under way go on",
        )
    if workers is not None:
        return CodecError(
            "NoRing",
            f"{KEYS_VARIABLES['workers']} has the workers' keys, and the clients' ring is not here",
            next_step=f"set {KEYS_VARIABLES['clients']} too (base64, 32 bytes): `head -c 32 /dev/urandom | base64` makes a key",
        )
    if required_mark(settings).exists():
        return CodecError(
            "NoRing",
            f"{settings.home} gave sealed payloads to Temporal, with keys that are not here now",
            next_step=f"set {KEYS_VARIABLES['workers']} and {KEYS_VARIABLES['clients']} as they were, or put "
            f"{ring_file(settings).path} and {ring_file(settings, 'clients').path} back",
        )
    return CodecError(
        "NoRing",
        "payloads are sealed, and there is no ring of keys here",
        next_step="`kedge up` makes the rings of a new home, `kedge codec init` those of another; or bring the clients' ring: "
        "KEDGE_CODEC_CLIENT_RING names its file",
    )


def converter_of(settings: Settings) -> DataConverter:
    """The data converter for every connection of these settings. Raises ``CodecError`` as :func:`rings_of`."""
    rings = rings_of(settings)
    return open_converter() if rings is None else client_converter(rings)
