"""Header lists of HTTP/2 (RFC 7541), as far as one answer needs them: no table is kept between header blocks.

We tell servers that our table has no room, so nothing may refer to it. Of the static table only what an answer's meaning
hangs on is known here; other names of it come out empty.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

from kedge.host.dial import Broken

HEADERS_MAX = 256
TEXT_MAX = 16 << 10
KNOWN = {
    8: (":status", "200"), 9: (":status", "204"), 10: (":status", "206"), 11: (":status", "304"),
    12: (":status", "400"), 13: (":status", "404"), 14: (":status", "500"), 31: ("content-type", ""),
}  # fmt: skip
STATIC = 61
# How many bits the code of each byte has, A for 5 to Z for 30. The codes follow: they are canonical.
LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJB"
    "KABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRS"
    "VVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWV"
)
_codes: Dict[Tuple[int, int], int] = {}


def header(name: str, value: str) -> bytes:
    """A header as it is sent: both texts as they are, for no table."""
    return b"\0" + _text(name.encode()) + _text(value.encode())


def _text(raw: bytes) -> bytes:
    return _number(len(raw), 7) + raw


def _number(value: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out = [most]
    value -= most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def headers(block: bytes) -> List[Tuple[str, str]]:
    """The headers of a block, in order; Broken when it is none."""
    found: List[Tuple[str, str]] = []
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _read_number(block, at, 7)
            found.append(_known(index))
        elif first & 0x20 and not first & 0x40:
            _, at = _read_number(block, at, 5)
        else:
            index, at = _read_number(block, at, 6 if first & 0x40 else 4)
            name = _known(index)[0] if index else None
            if name is None:
                name, at = _read_text(block, at)
            value, at = _read_text(block, at)
            found.append((name, value))
        if len(found) > HEADERS_MAX:
            raise Broken(f"the answer has more than {HEADERS_MAX} headers")
    return found


def _known(index: int) -> Tuple[str, str]:
    if not 0 < index <= STATIC:
        raise Broken("a header refers to a table that we do not keep")
    return KNOWN.get(index, ("", ""))


def _read_number(block: bytes, at: int, bits: int) -> Tuple[int, int]:
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in (0, 7, 14, 21):
        if at >= len(block):
            break
        value += (block[at] & 127) << shift
        at += 1
        if block[at - 1] < 128:
            return value, at
    raise Broken("a header has a number that is none")


def _read_text(block: bytes, at: int) -> Tuple[str, int]:
    if at >= len(block):
        raise Broken("a header is cut off")
    packed = bool(block[at] & 0x80)
    size, at = _read_number(block, at, 7)
    raw = block[at : at + size]
    if len(raw) < size or size > TEXT_MAX:
        raise Broken("a header is cut off, or too long")
    return (unpacked(raw) if packed else raw).decode("utf-8", "replace"), at + size


def unpacked(raw: bytes) -> bytes:
    """A text from its Huffman code."""
    if not _codes:
        _fill()
    out = bytearray()
    code = length = 0
    for byte in raw:
        for shift in range(7, -1, -1):
            code = code << 1 | (byte >> shift & 1)
            length += 1
            symbol = _codes.get((length, code))
            if symbol is not None:
                out.append(symbol)
                code = length = 0
            elif length > 30:
                raise Broken("a header has a code that is none")
    if length > 7 or code != (1 << length) - 1:
        raise Broken("a header has a code that is cut off")
    return bytes(out)


def _fill() -> None:
    code = before = 0
    for symbol in sorted(range(256), key=lambda one: (LENGTHS[one], one)):
        length = ord(LENGTHS[symbol]) - 60
        code <<= length - before
        _codes[length, code] = symbol
        code, before = code + 1, length
