"""Unpack an archive that may be hostile: regular files and directories only, below one directory.

tar (plain, gzip, xz, bzip2) is read by a parser of our own, because the rule is the other way round than
in a general one: what is not known to be harmless is refused. Rule 8 of `docs/host-protocol.md`.
Refused: links, devices, fifos, sparse files, absolute names, `..`, control characters, names that are not UTF-8,
duplicates, a file where a directory is needed, too many or too large members, anything truncated.
Modes are reduced to "may be executed or not": setuid and the rest never reach the disk.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

from kedge.host import files, places, streams
from kedge.host.errors import ArchiveRefused
from kedge.host.places import Place

BLOCK = 512
NAME_MAX = 255
PATH_MAX = 1024
DEPTH_MAX = 32
HEADER_MAX = 1 << 16
TYPES = {
    b"1": "hard links are not unpacked",
    b"2": "symbolic links are not unpacked",
    b"3": "devices are not unpacked",
    b"4": "devices are not unpacked",
    b"6": "fifos are not unpacked",
    b"S": "sparse files are not unpacked",
}


class Limits(NamedTuple):
    """Caps on what comes out: bytes of files in all, and members."""

    bytes: int
    members: int


class Unpacked:
    """Where members go, what is there already, and what the release's manifest will say."""

    def __init__(self, top: Place, limits: Limits) -> None:
        self.top = top
        self.limits = limits
        self.files: List[Dict[str, Any]] = []
        self.directories: Set[str] = set()
        self.bytes = 0
        self._listed: Set[str] = set()
        self._files: Set[str] = set()
        self._members = 0

    def admit(self, name: str, *, directory: bool) -> str:
        """Check a member's name and make its parents; gives the plain relative path ("" is the top)."""
        self._members += 1
        if self._members > self.limits.members:
            raise ArchiveRefused(f"it has more than {self.limits.members} members")
        path = plain_name(name, directory=directory)
        if path in self._listed:
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

    def _make(self, path: str, member: str) -> None:
        missing = []
        while path and path not in self.directories:
            if path in self._files:
                raise ArchiveRefused("a directory has the name of a file", member)
            missing.append(path)
            path = path.rpartition("/")[0]
        for one in reversed(missing):
            places.make(self.top / one, 0o755)
            self.directories.add(one)

    def write(self, path: str, size: int, mode: int, some: Callable[[int], bytes]) -> None:
        """Write one file of a declared size from `some`, which gives at most that many bytes."""
        if self.bytes + size > self.limits.bytes:
            raise ArchiveRefused(f"it unpacks to more than {self.limits.bytes} bytes", path)
        mode = 0o555 if mode & 0o111 else 0o444
        found = hashlib.sha256()
        left = size
        fd = files.opened(self.top / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while left:
                part = some(min(left, streams.CHUNK))
                if not part:
                    raise ArchiveRefused("it ends in the middle", path)
                found.update(part)
                files.write_all(fd, part)
                left -= len(part)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.bytes += size
        self.files.append({"path": path, "mode": mode, "size": size, "sha256": found.hexdigest()})

    def close(self) -> None:
        """Make the names durable and the directories read-only, the deepest first."""
        for path in sorted(self.directories, key=lambda one: (-one.count("/"), one)):
            # The daemon may be another user.
            places.change_mode(self.top / path, 0o555)
            files.sync_dir(self.top / path)
        files.sync_dir(self.top)


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


class Member(NamedTuple):
    """One header: the name and size may come from the extended header before it."""

    name: str
    kind: bytes
    size: int
    mode: int


def unpack_tar(raw: streams.Raw, start: bytes, out: Unpacked, tick: Callable[[], None]) -> None:
    """Unpack a tar archive, read from its first byte to its last.

    The cap on the stream leaves room for headers and padding beside the files' bytes.
    """
    cap = out.limits.bytes + (out.limits.members + 64) * 4 * BLOCK
    reader = streams.Reader(streams.opened(raw, start), cap, tick)
    while True:
        member = next_member(reader)
        if member is None:
            break
        if member.kind == b"5":
            if member.size:
                raise ArchiveRefused("a directory with content", member.name)
            out.admit(member.name, directory=True)
        else:
            path = out.admit(member.name, directory=False)
            out.write(path, member.size, member.mode, reader.some)
            reader.exactly(-member.size % BLOCK)
    reader.rest_is_zero()
    if not out.files:
        raise ArchiveRefused("it has no files")


def next_member(reader: streams.Reader) -> Optional[Member]:
    """The next file or directory, with what extended headers say of it; None at the end."""
    name: Optional[str] = None
    size: Optional[int] = None
    extended = 0
    while True:
        block = reader.exactly(BLOCK)
        if not block.strip(b"\0"):
            if extended:
                raise ArchiveRefused("an extended header without a member")
            return None
        found = header(block)
        if found.kind not in (b"x", b"g", b"L"):
            break
        extended += 1
        if found.size > HEADER_MAX or extended > 4:
            raise ArchiveRefused("an extended header that is too large", found.name)
        body = reader.exactly(found.size)
        reader.exactly(-found.size % BLOCK)
        if found.kind == b"L":
            name = text_of(body.rstrip(b"\0"))
            continue
        told = records(body)
        if found.kind == b"g" and set(told) - {"comment"}:
            raise ArchiveRefused("a global header that changes members", found.name)
        name = told.get("path", name)
        size = number(told["size"]) if "size" in told else size
    return found._replace(
        name=found.name if name is None else name, size=found.size if size is None else size
    )


def header(block: bytes) -> Member:
    """One header block; ArchiveRefused when its checksum or a number is wrong or its type is refused."""
    claimed = octal(block[148:156])
    if claimed != sum(block[:148]) + 256 + sum(block[156:]):
        raise ArchiveRefused("it is no tar archive, or a header is broken")
    name = block[:100].split(b"\0")[0]
    # The prefix is POSIX's only: in GNU's older form the same bytes hold times.
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    full = text_of(prefix + b"/" + name if prefix else name)
    kind = block[156:157]
    if kind in (b"\0", b"7"):
        kind = b"0"
    if kind in TYPES:
        raise ArchiveRefused(TYPES[kind], full)
    if kind not in (b"0", b"5", b"x", b"g", b"L"):
        raise ArchiveRefused(f"members of type {kind.decode('latin-1')!r} are not unpacked", full)
    return Member(full, kind, octal(block[124:136]), octal(block[100:108]))


def octal(field: bytes) -> int:
    """A number of a header: octal digits, or for large ones big-endian binary."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    if not all(48 <= sign <= 55 for sign in text):
        raise ArchiveRefused("a header with a number that is none")
    return int(text or b"0", 8)


def records(body: bytes) -> Dict[str, str]:
    """The `length key=value` records of an extended header; sparse ones and torn ones are refused."""
    told: Dict[str, str] = {}
    while body:
        length_text, found, _ = body.partition(b" ")
        if not found or not length_text.isdigit() or len(length_text) > 6:
            raise ArchiveRefused("an extended header that is broken")
        length = int(length_text)
        record = body[len(length_text) + 1 : length]
        key, found, value = record[:-1].partition(b"=")
        if not found or record[-1:] != b"\n" or length > len(body):
            raise ArchiveRefused("an extended header that is broken")
        if key.startswith(b"GNU.sparse"):
            raise ArchiveRefused("sparse files are not unpacked")
        # Times, owners and attributes are left behind: they are not part of a release.
        if key in (b"path", b"size", b"comment") or not key:
            told[text_of(key)] = text_of(value)
        elif key in (b"hdrcharset", b"linkpath"):
            told[text_of(key)] = ""
        body = body[length:]
    return told


def number(text: str) -> int:
    """A decimal number of an extended header."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ArchiveRefused("a header with a number that is none")
    return int(text)
