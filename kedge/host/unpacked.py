"""Where the members of an archive go: below one directory, whatever the archive says. Rule 8 of `docs/host-protocol.md`.

Modes are reduced to "may be executed or not": setuid and the rest never reach the disk. Links are made last, when every
member is known, and only those that lead to a member of the same archive.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

from kedge.host import files, filetypes, places, streams
from kedge.host.errors import ArchiveRefused
from kedge.host.places import Place

NAME_MAX = 255
PATH_MAX = 1024
DEPTH_MAX = 32
LINKS_MAX = 16
"""Links that one link may lead through."""
MAX_UNPACKED = 4 << 30
MAX_MEMBERS = 100_000
"""Caps where a runbook says nothing: bytes of files in all, and members."""

Some = Callable[[int], bytes]


class Limits(NamedTuple):
    """Caps on what comes out: bytes of files in all, and members; `strip` leading directories are left out of names."""

    bytes: int
    members: int
    strip: int = 0


class Unpacked:
    """Where members go, what is there already, and what the release's manifest will say.

    With no `top` nothing is written: the archive is only judged.
    """

    def __init__(self, top: Optional[Place], limits: Limits) -> None:
        self.top = top
        self.limits = limits
        self.files: List[Dict[str, Any]] = []
        self.directories: Set[str] = set()
        self.bytes = 0
        self._links: Dict[str, str] = {}
        self._by_path: Dict[str, Dict[str, Any]] = {}
        self._listed: Set[str] = set()
        self._files: Set[str] = set()
        self._members = 0

    @property
    def links(self) -> List[Dict[str, str]]:
        """The links as the manifest lists them."""
        return [{"path": path, "to": to} for path, to in sorted(self._links.items())]

    def admit(self, name: str, *, directory: bool) -> str:
        """Check a member's name and make its parents; gives the plain relative path ("" is the top)."""
        self._members += 1
        if self._members > self.limits.members:
            raise ArchiveRefused(f"it has more than {self.limits.members} members")
        path = self._stripped(plain_name(name, directory=directory), name, directory=directory)
        if path in self._listed and not (directory and not path and self.limits.strip):
            raise ArchiveRefused("a name comes twice", name)
        self._listed.add(path)
        if directory:
            self._make(path, name)
            return path
        if path in self.directories:
            raise ArchiveRefused("a file has the name of a directory", name)
        self._files.add(path)
        self._make(path.rpartition("/")[0], name)
        return path

    def _stripped(self, path: str, name: str, *, directory: bool) -> str:
        parts = path.split("/") if path else []
        if len(parts) <= self.limits.strip and not directory and self.limits.strip:
            raise ArchiveRefused(
                f"a file that lies above the {self.limits.strip} folder(s) that `strip` takes away",
                name,
            )
        return "/".join(parts[self.limits.strip :])

    def _make(self, path: str, member: str) -> None:
        missing = []
        while path and path not in self.directories:
            if path in self._files:
                raise ArchiveRefused("a directory has the name of a file", member)
            missing.append(path)
            path = path.rpartition("/")[0]
        for one in reversed(missing):
            if self.top is not None:
                places.make(self.top / one, 0o755)
            self.directories.add(one)

    def write(self, path: str, size: int, mode: Optional[int], some: Some) -> None:
        """Write one file of a declared size from `some`, which gives at most that many bytes.

        What begins as a program may be executed, whatever its mode says: archives made on other systems have none.
        """
        if self.bytes + size > self.limits.bytes:
            raise ArchiveRefused(f"it unpacks to more than {self.limits.bytes} bytes", path)
        found = hashlib.sha256()
        left, head = size, b""
        fd = -1
        if self.top is not None:
            fd = files.opened(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while left:
                part = some(min(left, streams.CHUNK))
                if not part:
                    raise ArchiveRefused("it ends in the middle", path)
                head = head or part[: filetypes.HEAD]
                found.update(part)
                if fd >= 0:
                    files.write_all(fd, part)
                left -= len(part)
            mode = 0o555 if (mode or 0) & 0o111 or filetypes.is_program(head) else 0o444
            if fd >= 0:
                os.fchmod(fd, mode)
                os.fsync(fd)
        finally:
            if fd >= 0:
                os.close(fd)
        self.bytes += size
        self._list({"path": path, "mode": mode, "size": size, "sha256": found.hexdigest()})

    def _list(self, entry: Dict[str, Any]) -> None:
        self.files.append(entry)
        self._by_path[entry["path"]] = entry

    def link(self, name: str, to: str) -> None:
        """Take up a symbolic link; where it leads is judged when every member is known."""
        self._links[self.admit(name, directory=False)] = target(to, name)

    def copy(self, name: str, of: str, mode: int) -> None:
        """A hard link becomes a file of its own, with the bytes of the member that it names."""
        original = self._stripped(plain_name(of, directory=False), of, directory=False)
        known = self._by_path.get(original)
        if known is None:
            raise ArchiveRefused(f"a hard link to {of[:200]!r}, which is no file before it", name)
        path = self.admit(name, directory=False)
        if self.top is None:
            self._count_copy(path, known)
            return
        fd = files.opened(self.top / original, os.O_RDONLY)
        try:
            self.write(path, known["size"], mode | known["mode"], lambda most: os.read(fd, most))
        finally:
            os.close(fd)

    def _count_copy(self, path: str, known: Dict[str, Any]) -> None:
        self.bytes += known["size"]
        if self.bytes > self.limits.bytes:
            raise ArchiveRefused(f"it unpacks to more than {self.limits.bytes} bytes", path)
        self._list({**known, "path": path})

    def close(self) -> None:
        """Judge and make the links, make the names durable and the directories read-only, the deepest first."""
        if not self.files:
            raise ArchiveRefused("it has no files")
        for path in sorted(self._links):
            self._led(path)
        if self.top is None:
            return
        for path, to in self._links.items():
            places.link(self.top / path, to)
        for path in sorted(self.directories, key=lambda one: (-one.count("/"), one)):
            # The daemon may be another user.
            places.change_mode(self.top / path, 0o555)
            files.sync_dir(self.top / path)
        files.sync_dir(self.top)

    def _led(self, path: str) -> None:
        """ArchiveRefused unless a link leads, perhaps through others, to a member of this archive."""
        at = path.split("/")[:-1]
        left = self._links[path].split("/")
        through = 1
        while left:
            part, left = left[0], left[1:]
            if part in ("", "."):
                continue
            if part == "..":
                if not at:
                    raise ArchiveRefused(
                        f"a link out of the archive, to {self._links[path][:200]!r}", path
                    )
                at = at[:-1]
                continue
            at = [*at, part]
            further = self._links.get("/".join(at))
            if further is not None:
                through += 1
                if through > LINKS_MAX:
                    raise ArchiveRefused(
                        f"a link that leads through more than {LINKS_MAX} others", path
                    )
                at, left = at[:-1], [*further.split("/"), *left]
            elif left and "/".join(at) not in self.directories:
                break
        there = "/".join(at)
        if left or (there and there not in self.directories and there not in self._files):
            raise ArchiveRefused(
                f"a link to {self._links[path][:200]!r}, which is not in the archive", path
            )


def target(to: str, name: str) -> str:
    """Where a link leads, as a relative path; ArchiveRefused when it is absolute, or no path."""
    if not to:
        raise ArchiveRefused("a link that names nothing", name)
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in to):
        raise ArchiveRefused("a link to a name with control characters", name)
    if to.startswith("/"):
        raise ArchiveRefused(f"a link to an absolute name, {to[:200]!r}", name)
    if len(to.encode()) > PATH_MAX:
        raise ArchiveRefused("a link to a name that is too long", name)
    return to


def plain_name(name: str, *, directory: bool) -> str:
    """A member's name as a relative path; ArchiveRefused when it is not one."""
    if name.startswith("/"):
        raise ArchiveRefused("an absolute name", name)
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise ArchiveRefused("a name with control characters", name)
    if name.endswith("/") and not directory:
        raise ArchiveRefused("a file whose name ends like a directory's", name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveRefused("a name with `..`", name)
    if not parts and not directory:
        raise ArchiveRefused("a file without a name", name)
    if len(parts) > DEPTH_MAX:
        raise ArchiveRefused(f"a name deeper than {DEPTH_MAX} directories", name)
    path = "/".join(parts)
    if len(path.encode()) > PATH_MAX or any(len(part.encode()) > NAME_MAX for part in parts):
        raise ArchiveRefused("a name that is too long", name)
    return path


def text_of(raw: bytes) -> str:
    """A name's bytes as text; ArchiveRefused when they are not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArchiveRefused("a name that is not UTF-8", raw.decode("latin-1")) from error
