"""Read a tar archive that may be hostile: what is not known to be harmless is refused.

tar (plain, gzip, xz, bzip2, zstd) is read by a parser of our own, because the rule is the other way round than
in a general one. Rule 8 of `docs/host-protocol.md`.
Refused: devices, fifos, sparse files, links out of the archive, absolute names, `..`, control characters, names that are
not UTF-8, duplicates, a file where a directory is needed, too many or too large members, anything truncated.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Optional

from kedge.host import filetypes, streams
from kedge.host.errors import ArchiveRefused
from kedge.host.unpacked import Unpacked, text_of

BLOCK = 512
HEADER_MAX = 1 << 16
EXTENDED = (b"x", b"g", b"L", b"K")
LINKS = (b"1", b"2")
TYPES = {
    b"3": "devices are not unpacked",
    b"4": "devices are not unpacked",
    b"6": "fifos are not unpacked",
    b"S": "sparse files are not unpacked",
}


class Member(NamedTuple):
    """One header: the name, size and link may come from the extended header before it."""

    name: str
    kind: bytes
    size: int
    mode: int
    link: str = ""


def unpack_tar(raw: streams.Raw, start: bytes, out: Unpacked, tick: Callable[[], None]) -> None:
    """Unpack a tar archive, read from its first byte to its last.

    The cap on the stream leaves room for headers and padding beside the files' bytes.
    """
    cap = out.limits.bytes + (out.limits.members + 64) * 4 * BLOCK
    with streams.opened(raw, start) as stream:
        reader = streams.Reader(stream, cap, tick)
        first = reader.exactly(BLOCK)
        if first.strip(b"\0") and not filetypes.is_tar(first):
            raise ArchiveRefused(f"it is {filetypes.describe(start)} and holds no tar archive")
        reader.put_back(first)
        while True:
            member = next_member(reader)
            if member is None:
                break
            _take(member, out, reader)
        reader.rest_is_zero()


def _take(member: Member, out: Unpacked, reader: streams.Reader) -> None:
    """One member: a directory, a link or a file."""
    if member.kind == b"5" or member.kind in LINKS:
        if member.size:
            what = "a directory" if member.kind == b"5" else "a link"
            raise ArchiveRefused(f"{what} with content", member.name)
        if member.kind == b"5":
            out.admit(member.name, directory=True)
        elif member.kind == b"2":
            out.link(member.name, member.link)
        else:
            out.copy(member.name, member.link, member.mode)
        return
    path = out.admit(member.name, directory=False)
    out.write(path, member.size, member.mode, reader.some)
    reader.exactly(-member.size % BLOCK)


def next_member(reader: streams.Reader) -> Optional[Member]:
    """The next file or directory, with what extended headers say of it; None at the end."""
    name: Optional[str] = None
    link: Optional[str] = None
    size: Optional[int] = None
    extended = 0
    while True:
        block = reader.exactly(BLOCK)
        if not block.strip(b"\0"):
            if extended:
                raise ArchiveRefused("an extended header without a member")
            return None
        found = header(block)
        if found.kind not in EXTENDED:
            break
        extended += 1
        if found.size > HEADER_MAX or extended > 4:
            raise ArchiveRefused("an extended header that is too large", found.name)
        body = reader.exactly(found.size)
        reader.exactly(-found.size % BLOCK)
        if found.kind == b"L":
            name = text_of(body.rstrip(b"\0"))
            continue
        if found.kind == b"K":
            link = text_of(body.rstrip(b"\0"))
            continue
        told = records(body)
        if found.kind == b"g" and set(told) - {"comment"}:
            raise ArchiveRefused("a global header that changes members", found.name)
        name = told.get("path", name)
        link = told.get("linkpath", link)
        size = number(told["size"]) if "size" in told else size
    return found._replace(
        name=found.name if name is None else name,
        link=found.link if link is None else link,
        size=found.size if size is None else size,
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
    if kind not in (b"0", b"5", *LINKS, *EXTENDED):
        raise ArchiveRefused(f"members of type {kind.decode('latin-1')!r} are not unpacked", full)
    link = text_of(block[157:257].split(b"\0")[0]) if kind in LINKS else ""
    return Member(full, kind, octal(block[124:136]), octal(block[100:108]), link)


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
        if key in (b"path", b"linkpath", b"size", b"comment") or not key:
            told[text_of(key)] = text_of(value)
        elif key == b"hdrcharset":
            told[text_of(key)] = ""
        body = body[length:]
    return told


def number(text: str) -> int:
    """A decimal number of an extended header."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ArchiveRefused("a header with a number that is none")
    return int(text)
