"""Small acts on files that are whole or not there at all, also after a power failure.

Every file is named by its place (`places`), so that no link on the way leads out of the node's root; the calls here
are the only ones in the package that write, so that fsync and rename are in one place to be read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from typing import Any, Callable, List, Optional, Tuple

from kedge.host import places
from kedge.host.places import Place

CHUNK = 1 << 20
NOTE = 4096


def nothing() -> None:
    """What long loops call between chunks when nobody wants to be asked."""


def sync_dir(place: Place) -> None:
    """Make the names in a directory durable."""
    with places.opened(place) as directory:
        os.fsync(directory.fd)


def sync_above(place: Place) -> None:
    """Make the name at a place durable."""
    if len(place.names) == 1:
        os.fsync(place.top.fd)
    else:
        sync_dir(Place(place.top, place.names[:-1]))


def opened(place: Place, flags: int, mode: int = 0o600) -> int:
    """A file's descriptor; OSError ELOOP for a link. The caller closes it."""
    with place.held() as (fd, name):
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=fd)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def write_new(place: Place, content: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Write a file of our own; it is removed again when it cannot be written whole.

    Anything that has the name is replaced first, a link too: the name is ours.
    """
    drop(place)
    fd = opened(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            write_all(fd, content)
            os.fchmod(fd, mode)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        drop(place)
        raise


def write_atomic(
    place: Place, content: bytes, *, sync: bool = True, sync_name: bool = True
) -> None:
    """Replace a file by a rename; with `sync` the bytes, with `sync_name` the name are durable.

    Callers hold a lock: two writers of one path would share the sibling's name.
    """
    sibling = place.beside(f"{place.name}.new")
    write_new(sibling, content, sync=sync)
    places.rename(sibling, place)
    if sync and sync_name:
        sync_above(place)


def note(place: Place, value: Any) -> None:
    """Write down something that a killed process must leave behind, but a power failure may take.

    In place, in one small write: replacing or truncating a file makes some file systems write it out at
    once, which costs more than all the rest. Readers see the old or the new value.
    """
    content = to_json(value)
    if len(content) >= NOTE:
        write_atomic(place, content, sync=False)
        return
    fd = opened(place, os.O_WRONLY | os.O_CREAT)
    try:
        if os.fstat(fd).st_size > NOTE:
            os.ftruncate(fd, 0)
        os.pwrite(fd, content.ljust(NOTE), 0)
    finally:
        os.close(fd)


def to_json(value: Any) -> bytes:
    """One line of compact JSON, keys sorted so that equal values are equal bytes."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def read_bytes(place: Place, limit: int = 64 << 20) -> Optional[bytes]:
    """The content of a file of ours, or None when it is not there. At most `limit` bytes."""
    try:
        fd = opened(place, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(place))
        parts: List[bytes] = []
        while True:
            part = os.read(fd, max(size + 1, 4096))
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def read_json(place: Place) -> Any:
    """The value in a file of ours, or None when it is not there or not JSON (torn by a crash)."""
    content = read_bytes(place)
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


class Kept:
    """A JSON file that is only ever replaced whole: parsed when it was replaced, not at each look.

    Its descriptor stays open, and while it does no other file can get its inode number: the same inode
    under the name is the same file. `close` lets it go.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._fd = -1
        self._seen: Tuple[int, ...] = ()
        self._value: Any = None

    def value(self) -> Any:
        """The value now; callers leave it as it is. None when there is no file; ValueError when it is no JSON."""
        found = places.status(self.place)
        if found is None:
            self.close()
            return None
        if _identity(found) != self._seen:
            self.close()
            self._read()
        return self._value

    def _read(self) -> None:
        try:
            self._fd = opened(self.place, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        status = os.fstat(self._fd)
        content = os.pread(self._fd, status.st_size + 1, 0)
        try:
            self._value = json.loads(content)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        self._seen = _identity(status)

    def close(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._seen, self._value = -1, (), None


def _identity(status: os.stat_result) -> Tuple[int, ...]:
    # Size and time are for a file that a person changed in place.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def drop(place: Place) -> None:
    """Remove a name that may not be there."""
    with contextlib.suppress(FileNotFoundError), place.held() as (fd, name):
        os.unlink(name, dir_fd=fd)


def link_target(place: Place) -> Optional[str]:
    """What a symlink points to, or None when there is no symlink."""
    try:
        with place.held() as (fd, name):
            return os.readlink(name, dir_fd=fd)
    except OSError:
        return None


def relink(place: Place, target: str) -> None:
    """Point a symlink elsewhere by one atomic rename, and make that durable."""
    sibling = place.beside(f".{place.name}.new")
    drop(sibling)
    places.link(sibling, target)
    places.rename(sibling, place)
    sync_above(place)


def hash_fd(fd: int, tick: Callable[[], None] = nothing) -> Tuple[str, int]:
    """The sha256 (hex) and length of what remains to be read from a descriptor."""
    found = hashlib.sha256()
    length = 0
    while True:
        part = os.read(fd, CHUNK)
        if not part:
            return found.hexdigest(), length
        found.update(part)
        length += len(part)
        if len(part) == CHUNK:
            tick()


def hash_file(place: Place, tick: Callable[[], None] = nothing) -> Tuple[str, os.stat_result]:
    """The sha256 (hex) of a regular file and its status; OSError ELOOP when it is a link."""
    fd = opened(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(place))
        return hash_fd(fd, tick)[0], status
    finally:
        os.close(fd)


def tail(place: Place, limit: int = 4096) -> str:
    """The last `limit` bytes of a text file, or nothing when it cannot be read."""
    try:
        fd = opened(place, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, limit, max(0, size - limit)).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
