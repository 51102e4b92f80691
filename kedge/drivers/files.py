"""Files that are either there whole or not there, for the stores of one home directory."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from kedge.drivers.owners import make_folder
from kedge.model.errors import DriverError

_MAY_PASS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO})


def store_error(act: str, error: OSError) -> DriverError:
    """The one error of stores; retryable when the cause can pass by itself, a full disk say."""
    return DriverError(
        "StoreError",
        f"cannot {act}: {error.strerror or error}",
        retryable=error.errno in _MAY_PASS,
        detail={"errno": error.errno or 0},
    )


def write_atomic(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Puts ``content`` at ``path`` so that every reader, and every crash, finds all of it or none.

    Raises ``OSError``; nothing is left behind then.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_directory(path.parent)


def open_private(path: Path, flags: int = 0) -> BinaryIO:
    """A file to write to, made with mode 0600 whatever the umask when it is not there. Raises ``OSError``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    return os.fdopen(descriptor, "wb")


def sync_directory(path: Path) -> None:
    """Makes the names in ``path`` durable: a rename is only then on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MAX_KEY_FILE = 65_536
"""The largest file of one key, in bytes."""


def read_key_line(path: Path) -> str:
    """The text of a small file, such as a public key's line. Raises ``OSError`` and ``UnicodeDecodeError``; a larger file is
    cut off, and so no key.
    """
    # Not blocking: a pipe by that name would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_KEY_FILE).decode("utf-8").strip()


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The bytes at ``path``, or None where there is no such file.

    Raises ``OSError``, and ``DriverError`` kind ``StoreError`` for more than ``limit`` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return None
    if len(content) > limit:
        raise DriverError(
            "StoreError", f"{path.name} is larger than {limit} bytes", retryable=False
        )
    return content
