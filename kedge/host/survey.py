"""What a snapshot is of: every file below its paths, with the links that lead to data and those that do not.

A link whose target is in the snapshot too, or is kedge's own, is copied as a link. Any other leads out of what is
copied: it is followed where the runbook names it (`follow`, or a path right in the root), copied as a link where it says that no data lies there, and
otherwise the snapshot is refused with its name. Nothing is left out without a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from fnmatch import fnmatchcase
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from kedge.host import files, places
from kedge.host.errors import Conflict, HostError
from kedge.host.layout import Node
from kedge.host.places import Directory, Place

MAX_FOLLOWED = 64
BLOCK = 4096


class Found(NamedTuple):
    """One thing: its path from the root, where it lies (good until the next is asked for), and its status.

    Of a link that is followed, `followed` is where it leads and `to` what it says; place and status are the target's.
    """

    path: str
    place: Place
    status: os.stat_result
    followed: str = ""
    to: str = ""


def matches(path: str, globs: List[str]) -> bool:
    """Whether a path, or a directory above it, matches a glob; one without `/` matches any name."""
    parts = path.split("/")
    for number in range(len(parts)):
        above = "/".join(parts[: number + 1])
        for one in globs:
            if fnmatchcase(above, one) or ("/" not in one and fnmatchcase(parts[number], one)):
                return True
    return False


def outermost(paths: List[str]) -> List[str]:
    """The paths that lie below no other of them, sorted."""
    return sorted(
        path for path in set(paths) if not any(path.startswith(f"{other}/") for other in paths)
    )


class Survey:
    """One walk below the paths of a snapshot. `live`: the daemon runs, and files may vanish meanwhile."""

    def __init__(
        self, node: Node, spec: Dict[str, Any], tick: Callable[[], None], *, live: bool = False
    ) -> None:
        self._node = node
        self._spec = spec
        self._tick = tick
        self._live = live
        self.followed: Dict[str, str] = {}
        """By the path of each followed link where it leads."""
        tops = [f"{node.root}/{path}" for path in spec["paths"]]
        self._tops = [os.path.realpath(top) for top in tops if not os.path.islink(top)]
        own = (node.releases, node.configs, node.current, node.logs, node.secrets)
        self._own = [os.path.realpath(str(place)) for place in own]

    def walk(self) -> Iterator[Found]:
        """Everything that belongs to the snapshot, parents first, sorted by name."""
        for path in outermost(self._spec["paths"]):
            place = self._node.top / path
            if not places.exists(place):
                raise HostError(f"{path} is not there: a snapshot without it would be no way back")
            yield from self._above(place)
            yield from self._one(path, place, 0)
        self._apart()

    def _above(self, place: Place) -> Iterator[Found]:
        for one in place.above():
            status, path = places.status(one), "/".join(one.names)
            if status is None or not stat.S_ISDIR(status.st_mode):
                raise places.no_directory(str(one))
            if not matches(path, self._spec["keep_out"]):
                yield Found(path, one, status)

    def _one(self, path: str, place: Place, depth: int) -> Iterator[Found]:
        self._tick()
        if matches(path, self._spec["keep_out"]):
            return
        if depth > places.DEPTH_MAX:
            raise HostError(f"{place}: directories are nested deeper than {places.DEPTH_MAX}")
        status = places.status(place)
        if status is None:
            if not self._live:
                raise HostError(f"{place} is not there any more: is the daemon stopped?")
        elif stat.S_ISLNK(status.st_mode):
            yield from self._link(path, place, status, depth)
        elif stat.S_ISDIR(status.st_mode):
            yield Found(path, place, status)
            with contextlib.ExitStack() as stack:
                try:
                    directory = stack.enter_context(places.opened(place))
                except FileNotFoundError:
                    if self._live:
                        return
                    raise
                if not os.path.samestat(os.fstat(directory.fd), status):
                    raise HostError(
                        f"{place} was replaced while it was read: is the daemon stopped?"
                    )
                yield from self._below(path, directory, depth)
        else:
            yield Found(path, place, status)

    def _below(self, path: str, directory: Directory, depth: int) -> Iterator[Found]:
        for name in sorted(os.listdir(directory.fd)):
            yield from self._one(f"{path}/{name}", directory / name, depth + 1)

    # -- links ---------------------------------------------------------------------------------------------------

    def _link(self, path: str, place: Place, status: os.stat_result, depth: int) -> Iterator[Found]:
        to, follow = files.link_target(place) or "", self._spec["follow"]
        # A link right in the root is no daemon's: to name it as a path is to name what it leads to.
        named = "/" not in path and path in self._spec["paths"]
        named = named or (isinstance(follow, list) and matches(path, follow))
        kept = not named and matches(path, self._spec["keep_links"])
        if kept or self._is_inside(os.path.realpath(str(place))):
            yield Found(path, place, status)
            return
        if not named and follow is not True:
            raise Conflict(
                f"{path} is a link to {to}: what lies there would not be in the snapshot; in the"
                f" runbook's snapshot step say `follow: [{path}]`, or `keep_links: [{path}]` when no"
                " data lies there",
                {"link": path[:512], "to": to[:512]},
            )
        with self._followed(path, place, to) as (real, target):
            found = places.status(target)
            if found is None:
                raise _gone(path, to)
            yield Found(path, target, found, followed=real, to=to)
            if stat.S_ISDIR(found.st_mode):
                with places.opened(target) as directory:
                    yield from self._below(path, directory, depth)

    def _is_inside(self, real: str) -> bool:
        tops = [*self._tops, *self._own, *self.followed.values()]
        return any(real == top or real.startswith(f"{top}/") for top in tops)

    @contextlib.contextmanager
    def _followed(self, path: str, place: Place, to: str) -> Iterator[Tuple[str, Place]]:
        """Where a link really leads, as a place below the open directory it lies in."""
        led = leads_to(place)
        if led is None:
            raise _gone(path, to)
        real, status = led
        own = os.path.realpath(self._node.root)
        kedges = real.startswith((f"{own}/.kedge", f"{own}/snapshots"))
        if (
            kedges
            or f"{own}/".startswith(f"{real.rstrip('/')}/")
            or len(self.followed) >= MAX_FOLLOWED
        ):
            raise Conflict(
                f"{path} is a link to {to}, which cannot be followed: it leads to kedge's own, or to a"
                f" folder above it, or more than {MAX_FOLLOWED} links are followed",
                {"link": path[:512], "to": to[:512]},
            )
        self.followed[path] = real
        with parent_of(real) as parent:
            target = parent / os.path.basename(real)
            found = places.status(target)
            if found is None or not os.path.samestat(found, status):
                raise HostError(f"{place} was changed while it was read: is the daemon stopped?")
            yield real, target

    def _apart(self) -> None:
        """Two followed links whose targets lie in each other could not be put back one by one."""
        known = sorted((real, path) for path, real in self.followed.items())
        for (real, path), (other, second) in zip(known, known[1:]):
            if other == real or other.startswith(f"{real}/"):
                raise Conflict(
                    f"{path} and {second} are links to folders of which one lies in the other:"
                    " follow one of them, and name the other in keep_links",
                    {"links": [path[:512], second[:512]]},
                )


def _gone(path: str, to: str) -> Conflict:
    return Conflict(
        f"{path} is a link to {to}, which is not there: is its disk mounted?",
        {"link": path[:512], "to": to[:512]},
    )


def leads_to(place: Place) -> Optional[Tuple[str, os.stat_result]]:
    """The real path and the status of what a link leads to; None when it is no link or nothing is there.

    Conflict when whoever can change the link could lead kedge with it to what is not theirs.
    """
    if files.link_target(place) is None:
        return None
    with contextlib.ExitStack() as stack:
        try:
            fd, name = stack.enter_context(place.held())
            found = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
        except OSError:
            return None
        stack.callback(os.close, found)
        status = os.fstat(found)
        if not _may_lead(os.fstat(fd), status):
            raise Conflict(
                f"{place} is a link that the owner of its directory can change, and leads to what is"
                " not theirs: it is not followed",
                {"link": str(place)[:512]},
            )
        return os.readlink(f"/proc/self/fd/{found}"), status


def _may_lead(holder: os.stat_result, target: os.stat_result) -> bool:
    """Whether a link in a directory may be followed to a target.

    In a directory that nobody else can write, the link is the administrator's. Elsewhere it is as good as its owner:
    it leads to nothing but what is theirs, whatever it is swapped for.
    """
    ours = holder.st_uid in (0, os.geteuid()) and not holder.st_mode & 0o022
    return ours or target.st_uid == holder.st_uid


def parent_of(real: str) -> Directory:
    """The directory that a real path lies in, opened; Conflict when a name on the way was swapped for a link since."""
    parent = os.path.dirname(real)
    directory = Directory(parent)
    if os.readlink(f"/proc/self/fd/{directory.fd}") != parent:
        directory.close()
        raise places.no_directory(parent)
    return directory


# -- holes ------------------------------------------------------------------------------------------------------


def extents(fd: int, size: int) -> Iterator[Tuple[int, int]]:
    """Where a file has data, as (start, end); all of it where the file system does not say."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield at, size
            # Otherwise nothing but a hole is left.
            return
        if start >= size:
            return
        yield start, min(end, size)
        at = end


def taken(place: Place, status: os.stat_result) -> int:
    """What a copy of a file takes on disk: its data, without holes, in whole blocks."""
    if not stat.S_ISREG(status.st_mode):
        return 0
    if status.st_blocks * 512 >= status.st_size:
        return -(-status.st_size // BLOCK) * BLOCK
    try:
        fd = files.opened(place, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        # It vanished, or became something else: the copy looks again.
        return 0
    try:
        found = extents(fd, status.st_size)
        return sum(-(-(end - start) // BLOCK) * BLOCK for start, end in found)
    finally:
        os.close(fd)
