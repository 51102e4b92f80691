"""The ring of payload keys in a file: readable by its owner alone, replaced whole, seen anew when it was replaced.

A rotation is a rename, so a process that runs reads either the old ring or the new one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from kedge.drivers.files import write_atomic
from kedge.drivers.owners import check_owners, make_folder
from kedge.model.errors import CodecError, DriverError
from kedge.trust.codec import MAX_RING, Ring, parse_ring, ring_document

_Seen = tuple[int, int, int, int]


class Rings(Protocol):
    """Where a ring comes from."""

    def ring(self) -> Ring:
        """The ring as it is now. Raises ``CodecError``: ``NoRing``, ``RingRefused``."""
        ...


class RingFile:
    """:class:`Rings` in one file. A look costs one ``stat`` while the file stays the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: _Seen | None = None
        self._ring: Ring | None = None

    def there(self) -> bool:
        """Whether there is a file of that name, whatever is in it."""
        return os.path.lexists(self.path)

    def ring(self) -> Ring:
        """See :meth:`Rings.ring`."""
        try:
            seen = _identity(self.path.stat())
            if self._ring is None or seen != self._seen:
                self._ring, self._seen = self._read()
        except FileNotFoundError as error:
            raise CodecError(
                "NoRing",
                f"the ring of payload keys {self.path} is not there",
                next_step="put it back from where you keep it; what was sealed with its keys cannot be read without it",
            ) from error
        except OSError as error:
            raise CodecError(
                "RingRefused",
                f"the ring of payload keys {self.path} cannot be read: {error.strerror}",
                next_step="check who may read it: its owner alone (chmod 600)",
            ) from error
        return self._ring

    def _read(self) -> tuple[Ring, _Seen]:
        # Not blocking: a pipe by that name would be waited for.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise CodecError("RingRefused", f"{self.path} is not a file")
            if mode & 0o077:
                raise CodecError(
                    "RingRefused",
                    f"{self.path} can be read or written by others than its owner (mode {mode:04o})",
                    next_step=f"chmod 600 {self.path}, and `kedge codec rotate` if others may have read it",
                )
            if status.st_uid not in (os.geteuid(), 0):
                raise CodecError("RingRefused", f"{self.path} belongs to somebody else", next_step="chown it to whom kedge runs as, after checking where it comes from")  # fmt: skip
            _check_chain(self.path)
            return parse_ring(file.read(MAX_RING + 1)), _identity(status)

    def write(self, ring: Ring) -> None:
        """Puts a ring in the place of the one before; durable when it returns. Raises ``OSError``.

        Where the name is a link the file it leads to is replaced: others read it by that name.
        """
        make_folder(self.path.parent)
        write_atomic(self.path.resolve(), ring_document(ring))

    def lock(self) -> Path:
        """The file by whose lock changes are made one at a time: beside the ring, for all homes that share it."""
        whole = self.path.resolve()
        return whole.with_name(f".{whole.name}.lock")


class FixedRing:
    """:class:`Rings` of what a process was started with."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def ring(self) -> Ring:
        """See :meth:`Rings.ring`."""
        return self._ring


def _check_chain(path: Path) -> None:
    try:
        check_owners(path)
    except DriverError as error:
        raise CodecError("RingRefused", error.message, next_step=error.next_step) from error


def _identity(status: os.stat_result) -> _Seen:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
