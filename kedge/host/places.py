"""Places below a node's root: reached from an open directory, one name at a time, through no link.

The text of a path is resolved anew by each call, and between two calls a daemon that owns `data/` can swap a directory
for a link that leads anywhere. A place is an open directory and the names below it: each step opens the next directory
with O_NOFOLLOW, and the call that counts gets the last name with `dir_fd`. So nothing outside the root is read or
changed, whatever is swapped meanwhile. Rule 12 of `docs/host-protocol.md`; the calls themselves are in `files`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from types import TracebackType
from typing import Iterator, List, Optional, Tuple, Type

from kedge.host.errors import Conflict, HostError

DEPTH_MAX = 256
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What the kernel says of a link where a directory has to be.
NO_DIRECTORY = (errno.ELOOP, errno.ENOTDIR)
Stat = os.stat_result


class Directory:
    """An open directory. `path` names it in sentences; it is opened at first use, and links in that path are followed:
    where a root lies is for its owner to say. `directory / "a/b"` is a place below it.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: str, fd: int = -1) -> None:
        self.path = path
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Let it go; the next use opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __truediv__(self, below: str) -> Place:
        return Place(self, names_of(below))

    def __enter__(self) -> Directory:  # noqa: PYI034 -- `Self` is newer than Python 3.9
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()


class Place:
    """A place below an open directory. `str(place)` is a path for sentences and for `exec`, never for a look or an act."""

    __slots__ = ("names", "top")

    def __init__(self, top: Directory, names: Tuple[str, ...]) -> None:
        self.top = top
        self.names = names

    def __truediv__(self, below: str) -> Place:
        return Place(self.top, self.names + names_of(below))

    def __str__(self) -> str:
        return "/".join((self.top.path, *self.names))

    @property
    def name(self) -> str:
        """The last name."""
        return self.names[-1]

    def beside(self, name: str) -> Place:
        """The place of another name in the same directory."""
        return Place(self.top, (*self.names[:-1], *names_of(name)))

    def above(self) -> List[Place]:
        """The directories between the top and this place, the uppermost first."""
        return [Place(self.top, self.names[:number]) for number in range(1, len(self.names))]

    @contextlib.contextmanager
    def held(self) -> Iterator[Tuple[int, str]]:
        """The directory this place is in, as a descriptor, and the last name: for calls with `dir_fd`.

        Conflict when what should be a directory on the way is none, a link say; OSError when it is not there.
        """
        fd, own = self.top.fd, -1
        try:
            for number, name in enumerate(self.names[:-1], 1):
                step = _step(fd, name, self, number)
                if own >= 0:
                    os.close(own)
                fd = own = step
            yield fd, self.names[-1]
        except OSError as error:
            if error.filename == self.names[-1]:
                error.filename = str(self)
            raise
        finally:
            if own >= 0:
                os.close(own)


def _step(fd: int, name: str, place: Place, number: int) -> int:
    try:
        return os.open(name, STEP, dir_fd=fd)
    except OSError as error:
        where = str(Place(place.top, place.names[:number]))
        if error.errno in NO_DIRECTORY:
            raise no_directory(where) from error
        error.filename = where
        raise


def no_directory(where: str) -> Conflict:
    """The fault for a link, or anything else, where kedge goes on through a directory."""
    return Conflict(
        f"{where} is not a directory: a link there may lead out of the node's root", {"path": where}
    )


def names_of(below: str) -> Tuple[str, ...]:
    """The names of a relative path. Conflict for one that goes up: it came out of a file that somebody changed."""
    names = tuple(below.split("/"))
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        raise Conflict(f"{below[:200]!r} is not a path below a directory")
    return names


def opened(place: Place) -> Directory:
    """A directory to list, to sync, or to reach what is in it. The caller closes it."""
    with place.held() as (fd, name):
        try:
            return Directory(str(place), os.open(name, READ, dir_fd=fd))
        except OSError as error:
            if error.errno in NO_DIRECTORY:
                raise no_directory(str(place)) from error
            raise


def followed(place: Place) -> Directory:
    """The directory that a link at a place leads to, wherever that is: only for links that a document names.

    What is below it is reached through no link again. The caller closes it.
    """
    with place.held() as (fd, name):
        found = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    return Directory(os.readlink(f"/proc/self/fd/{found}"), found)


def status(place: Place) -> Optional[Stat]:
    """What is at a place, a link itself and not what it leads to; None when nothing is."""
    try:
        with place.held() as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def exists(place: Place) -> bool:
    """Whether anything has that name."""
    return status(place) is not None


def is_directory(place: Place) -> bool:
    """Whether a directory is there, which a link to one is not."""
    found = status(place)
    return found is not None and stat.S_ISDIR(found.st_mode)


def listed(place: Place) -> List[str]:
    """The names in a directory, sorted; none when it is not there."""
    try:
        with opened(place) as directory:
            return sorted(os.listdir(directory.fd))
    except FileNotFoundError:
        return []


def make(place: Place, mode: int, *, there: bool = False) -> None:
    """Make a directory; with `there` it may have been made before."""
    with place.held() as (fd, name):
        try:
            os.mkdir(name, mode, dir_fd=fd)
        except FileExistsError:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not there:
                raise
            if not stat.S_ISDIR(found.st_mode):
                raise no_directory(str(place)) from None


def make_above(place: Place, mode: int) -> None:
    """Make the directories that lead to a place, where they are missing."""
    for one in place.above():
        make(one, mode, there=True)


def rename(source: Place, target: Place) -> None:
    """Give what is at one place the name of another, in one act."""
    with source.held() as (fd, name), target.held() as (other, new):
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=other)


def link(place: Place, to: str) -> None:
    """Make a symbolic link."""
    with place.held() as (fd, name):
        os.symlink(to, name, dir_fd=fd)


def change_mode(place: Place, mode: int) -> None:
    """Change the mode of a directory or a regular file; never of what a link leads to."""
    with place.held() as (fd, name):
        held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            if stat.S_ISLNK(os.fstat(held).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
            # By its descriptor: a file that may not be read can have its mode changed by its owner.
            os.chmod(f"/proc/self/fd/{held}", mode)
        finally:
            os.close(held)


class _Level:
    """A directory that a walk is in, and the directories in it that it has not been to."""

    def __init__(self, directory: Directory, below: str) -> None:
        self.directory = directory
        self.below = below
        self.deeper: List[Tuple[str, Stat]] = []


def walk(place: Place) -> Iterator[Tuple[str, Stat, Place]]:
    """Everything below a directory as (relative path, status, place), parents first, sorted by name.

    Links are told, never followed. A place is good until the walk is asked for the next one. HostError when a directory is
    swapped meanwhile, or for more than `DEPTH_MAX` directories in each other.
    """
    levels = [_Level(opened(place), "")]
    try:
        yield from _entries(levels[-1])
        while levels:
            level = levels[-1]
            if not level.deeper:
                levels.pop().directory.close()
                continue
            name, seen = level.deeper.pop()
            if len(levels) >= DEPTH_MAX:
                raise HostError(
                    f"{level.directory.path}: directories are nested deeper than {DEPTH_MAX}"
                )
            child = opened(level.directory / name)
            levels.append(_Level(child, f"{level.below}{name}/"))
            if not os.path.samestat(os.fstat(child.fd), seen):
                raise HostError(
                    f"{child.path} was replaced while it was read: is the daemon stopped?"
                )
            yield from _entries(levels[-1])
    finally:
        for level in levels:
            level.directory.close()


def _entries(level: _Level) -> Iterator[Tuple[str, Stat, Place]]:
    for name in sorted(os.listdir(level.directory.fd)):
        found = os.stat(name, dir_fd=level.directory.fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            level.deeper.append((name, found))
        yield f"{level.below}{name}", found, level.directory / name
    level.deeper.reverse()


def remove_tree(place: Place) -> None:
    """Remove what is at a place, a whole tree too, read-only directories and very deep ones as well."""
    with contextlib.suppress(FileNotFoundError), place.held() as (fd, name):
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            _remove_directory(fd, name)
        else:
            os.unlink(name, dir_fd=fd)


def _remove_directory(parent: int, name: str) -> None:
    """Empty a directory and remove it. Directories deeper than `DEPTH_MAX` are moved up to its top first."""
    top = _writable(parent, name)
    moved = False
    levels: List[Tuple[int, str, List[str]]] = [(top, name, os.listdir(top))]
    try:
        while levels:
            fd, own, left = levels[-1]
            if not left and fd == top and moved:
                moved = False
                left += os.listdir(top)
                continue
            if not left:
                os.close(levels.pop()[0])
                os.rmdir(own, dir_fd=levels[-1][0] if levels else parent)
                continue
            one = left.pop()
            if not stat.S_ISDIR(os.stat(one, dir_fd=fd, follow_symlinks=False).st_mode):
                os.unlink(one, dir_fd=fd)
                continue
            deeper = _writable(fd, one)
            if len(levels) < DEPTH_MAX:
                levels.append((deeper, one, os.listdir(deeper)))
                continue
            os.close(deeper)
            os.rename(one, f".deep-{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top)
            moved = True
    finally:
        for fd, _own, _left in levels:
            os.close(fd)


def _writable(parent: int, name: str) -> int:
    """A directory's descriptor, after its owner may change what is in it."""
    try:
        fd = os.open(name, READ, dir_fd=parent)
    except PermissionError:
        held = os.open(name, STEP, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{held}", 0o700)
        finally:
            os.close(held)
        fd = os.open(name, READ, dir_fd=parent)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd
