"""Unpack a zip archive (wheels are such) under the same rules as a tar archive.

Imported only when an archive is a zip: the standard library's reader is large.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from typing import Callable

from kedge.host.errors import ArchiveRefused
from kedge.host.unpacked import PATH_MAX, Unpacked, text_of

ENCRYPTED = 0x1
PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


END = b"PK\x05\x06"
END_SIZE = 22
END_64 = b"PK\x06\x07"
COMMENT_MAX = 65_535
ENTRY_MAX = 46 + 1024 + 512
"""What one member may take in the directory: its fixed part, a name, extra fields."""
DIRECTORY_MAX = 32 * 1024 * 1024


def check_directory(fd: int, members: int) -> None:
    """Look at the size of the archive's directory before it is read: the reader takes all of it into memory.

    Refused are more members than are admitted, more bytes than they may need, and the 64-bit form, which no release needs.
    """
    size = os.lseek(fd, 0, os.SEEK_END)
    begin = max(0, size - END_SIZE - COMMENT_MAX - 20)
    tail = os.pread(fd, size - begin, begin)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < END_SIZE:
        raise ArchiveRefused("the zip archive is broken: it has no end")
    if tail[max(0, at - 20) : at].startswith(END_64):
        raise ArchiveRefused("a zip archive in the 64-bit form is not unpacked")
    disks, count, whole, length = struct.unpack("<4xIHHI", tail[at : at + 16])
    if disks or count != whole:
        raise ArchiveRefused("a zip archive in several parts is not unpacked")
    if whole > members:
        raise ArchiveRefused(f"it has more than {members} members")
    if length > min(whole * ENTRY_MAX, DIRECTORY_MAX):
        raise ArchiveRefused("the zip archive's directory is larger than its members need")


def unpack_zip(fd: int, out: Unpacked, tick: Callable[[], None]) -> None:
    """Unpack from a descriptor whose bytes nobody else can change."""
    check_directory(fd, out.limits.members)
    try:
        with os.fdopen(os.dup(fd), "rb") as archive, zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) > out.limits.members:
                raise ArchiveRefused(f"it has more than {out.limits.members} members")
            for member in members:
                tick()
                _one(opened, member, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise ArchiveRefused(f"the zip archive is broken: {error}") from error


def _one(opened: zipfile.ZipFile, member: zipfile.ZipInfo, out: Unpacked) -> None:
    # What the reader made of the name is not what the archive says: it cuts at NUL.
    name = member.orig_filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    if member.flag_bits & ENCRYPTED:
        raise ArchiveRefused("encrypted members are not unpacked", name)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise ArchiveRefused("devices are not unpacked", name)
    if member.compress_type not in PLAIN:
        raise ArchiveRefused("a compression that is not read", name)
    if name.endswith("/") or kind == stat.S_IFDIR:
        if member.file_size:
            raise ArchiveRefused("a directory with content", name)
        out.admit(name, directory=True)
        return
    # A link without a target is an empty file, as unzip has it: packers of wheels write what was a link that way.
    if kind == stat.S_IFLNK and member.file_size:
        if member.file_size > PATH_MAX:
            raise ArchiveRefused("a link to a name that is too long", name)
        with opened.open(member) as content:
            out.link(name, text_of(content.read(PATH_MAX + 1)))
        return
    path = out.admit(name, directory=False)
    with opened.open(member) as content:
        out.write(path, member.file_size, member.external_attr >> 16, content.read)
        if content.read(1):
            raise ArchiveRefused("a member is longer than it says", name)
