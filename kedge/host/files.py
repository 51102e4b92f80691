"""Small acts on files that are whole or not there at all, also after a power failure.

Paths are plain strings: they come from a checked root and checked names, and the calls here are the
only ones in the package that write, so that fsync and rename are in one place to be read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from typing import Any, Callable, Iterator, List, Optional, Tuple

CHUNK = 1 << 20
NOTE = 4096
OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def nothing() -> None:
    """What long loops call between chunks when nobody wants to be asked."""


def sync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, OPEN_DIR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def write_new(path: str, content: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Write a file of our own; it is removed again when it cannot be written whole.

    Anything that has the name is replaced first, a link too: the name is ours.
    """
    drop(path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, content)
            os.fchmod(fd, mode)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        drop(path)
        raise


def write_atomic(path: str, content: bytes, *, sync: bool = True, sync_name: bool = True) -> None:
    """Replace a file by a rename; with `sync` the bytes, with `sync_name` the name are durable.

    Callers hold a lock: two writers of one path would share the sibling's name.
    """
    sibling = f"{path}.new"
    write_new(sibling, content, sync=sync)
    os.rename(sibling, path)
    if sync and sync_name:
        sync_dir(os.path.dirname(path))


def note(path: str, value: Any) -> None:
    """Write down something that a killed process must leave behind, but a power failure may take.

    In place, in one small write: replacing or truncating a file makes some file systems write it out at
    once, which costs more than all the rest. Readers see the old or the new value.
    """
    content = to_json(value)
    if len(content) >= NOTE:
        write_atomic(path, content, sync=False)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size > NOTE:
            os.ftruncate(fd, 0)
        os.pwrite(fd, content.ljust(NOTE), 0)
    finally:
        os.close(fd)


def to_json(value: Any) -> bytes:
    """One line of compact JSON, keys sorted so that equal values are equal bytes."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def read_bytes(path: str, limit: int = 64 << 20) -> Optional[bytes]:
    """The content of a file of ours, or None when it is not there. At most `limit` bytes."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        parts: List[bytes] = []
        while True:
            part = os.read(fd, max(size + 1, 4096))
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def read_json(path: str) -> Any:
    """The value in a file of ours, or None when it is not there or not JSON (torn by a crash)."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None


class Kept:
    """A JSON file that is only ever replaced whole: parsed when it was replaced, not at each look.

    Its descriptor stays open, and while it does no other file can get its inode number: the same inode
    under the name is the same file. `close` lets it go.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._seen: Tuple[int, ...] = ()
        self._value: Any = None

    def value(self) -> Any:
        """The value now; callers leave it as it is. None when there is no file; ValueError when it is no JSON."""
        try:
            seen = _identity(os.stat(self.path))
        except FileNotFoundError:
            self.close()
            return None
        if seen != self._seen:
            self.close()
            self._read()
        return self._value

    def _read(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        status = os.fstat(self._fd)
        content = os.pread(self._fd, status.st_size + 1, 0)
        self._value = json.loads(content)
        self._seen = _identity(status)

    def close(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._seen, self._value = -1, (), None


def _identity(status: os.stat_result) -> Tuple[int, ...]:
    # Size and time are for a file that a person changed in place.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def drop(path: str) -> None:
    """Remove a name that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def link_target(path: str) -> Optional[str]:
    """What a symlink points to, or None when there is no symlink."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def relink(path: str, target: str) -> None:
    """Point a symlink elsewhere by one atomic rename, and make that durable."""
    directory, name = os.path.split(path)
    sibling = f"{directory}/.{name}.new"
    drop(sibling)
    os.symlink(target, sibling)
    os.rename(sibling, path)
    sync_dir(directory)


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


def hash_file(path: str, tick: Callable[[], None] = nothing) -> Tuple[str, os.stat_result]:
    """The sha256 (hex) of a regular file and its status; OSError ELOOP when it is a link."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return hash_fd(fd, tick)[0], status
    finally:
        os.close(fd)


def walk(top: str) -> Iterator[Tuple[str, os.stat_result]]:
    """Everything below a directory as (relative path, lstat), parents first, sorted by name.

    Links are told, never followed.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{top}/{below}" if below else top) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        deeper = []
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            status = entry.stat(follow_symlinks=False)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                deeper.append(path)
        waiting.extend(reversed(deeper))


def remove_tree(path: str) -> None:
    """Remove a tree of ours, read-only directories too; nothing outside is touched."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    directories = [path]
    os.chmod(path, 0o700)
    # Not `walk`: a directory must be made writable before it is read.
    for directory in directories:
        with os.scandir(directory) as found:
            for entry in list(found):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    directories.append(entry.path)
                else:
                    os.unlink(entry.path)
    for directory in reversed(directories):
        os.rmdir(directory)


def tail(path: str, limit: int = 4096) -> str:
    """The last `limit` bytes of a text file, or nothing when it cannot be read."""
    try:
        with open(path, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - limit))
            return log.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
