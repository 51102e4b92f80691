"""A small HTTP/1.1 client for probes: one request, one bounded answer, one deadline for all of it.

It follows no redirects, uses no proxies, keeps nothing open, and looks at the fence while it waits.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Protocol, Tuple
from urllib.parse import urlsplit

from kedge.host import dial
from kedge.host.dial import Broken, Limit, Line, Target
from kedge.host.waits import Pulse

HEAD_MAX = 64 << 10
BODY_MAX = 1 << 20
HEADS_MAX = 16
PIECE = 1 << 16
TLS_ALERT = b"\x15\x03"
STATUS = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})( |\Z)")
LENGTH = re.compile(r"[0-9]{1,12}\Z")
CHUNK = re.compile(rb"[0-9a-fA-F]{1,8}\Z")


class Reader(Protocol):
    """Who takes a body piece by piece, at most `limit` bytes of it."""

    limit: int

    def feed(self, piece: bytes) -> None:
        """Take a piece."""


class Whole:
    """A body that is kept whole."""

    limit = BODY_MAX

    def __init__(self) -> None:
        self.content = bytearray()

    def feed(self, piece: bytes) -> None:
        """Keep a piece."""
        self.content += piece


class Answer(NamedTuple):
    """A status, the headers by their names in small letters, and a body unless somebody else took it."""

    status: int
    headers: Dict[str, str]
    body: bytes


def ask(spec: Dict[str, Any], pulse: Pulse, reader: Optional[Reader] = None) -> Answer:
    """Do the request of an http probe; Broken when there is no whole answer. `reader` takes the body of an answer that has
    one of the wanted statuses.
    """
    parts = urlsplit(spec["url"])
    secure = parts.scheme == "https"
    target = Target(parts.hostname or "", parts.port or (443 if secure else 80), spec["socket"])
    tls = (spec["tls"], "http/1.1") if secure else None
    line = dial.opened(target, tls, Limit.of(spec["timeout"]), pulse)
    try:
        line.send(_request(spec, parts.netloc, parts.path or "/", parts.query))
        return _answer(line, spec, reader)
    finally:
        line.close()


def _request(spec: Dict[str, Any], host: str, path: str, query: str) -> bytes:
    target = f"{path}?{query}" if query else path
    body = (spec["body"] or "").encode()
    headers = {"Host": host, "User-Agent": "kedge", "Accept": "*/*", "Connection": "close"}
    if spec["metric"] is not None:
        # A page of metrics may have megabytes; nothing else is asked for in a form that has to be unpacked.
        headers["Accept-Encoding"] = "gzip"
    if spec["body"] is not None:
        headers["Content-Length"] = str(len(body))
        headers["Content-Type"] = "application/json"
    headers.update(spec["headers"])
    lines = [f"{spec['method']} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _answer(line: Line, spec: Dict[str, Any], reader: Optional[Reader]) -> Answer:
    status, headers = _head(line)
    # 100 Continue and its like come before the answer itself.
    for _ in range(HEADS_MAX):
        if status >= 200:
            break
        status, headers = _head(line)
    else:
        raise Broken("no answer comes after all that announces one")
    whole = Whole()
    taker: Reader = reader if reader is not None and status in spec["status"] else whole
    if spec["method"] != "HEAD" and status not in (204, 304):
        size = 0
        for piece in _plain(_pieces(line, headers, taker.limit), headers):
            size += len(piece)
            if size > taker.limit:
                raise _too_large(taker.limit)
            taker.feed(piece)
    return Answer(status, headers, bytes(whole.content))


def _too_large(limit: int) -> Broken:
    more = ": ask for less, or for one series of a page of metrics with `metric`"
    return Broken(f"the body is larger than {limit} bytes{more if limit == BODY_MAX else ''}")


def _head(line: Line) -> Tuple[int, Dict[str, str]]:
    while len(line.kept) < len(TLS_ALERT):
        line.go_on()
    if line.kept.startswith(TLS_ALERT):
        raise Broken(f"{line.target} speaks TLS: write https")
    lines: List[str] = (
        line.until(b"\r\n\r\n", HEAD_MAX, "the head of the answer").decode("latin-1").split("\r\n")
    )
    found = STATUS.match(lines[0])
    if found is None:
        raise Broken(f"the answer is not HTTP/1: {lines[0][:60]!r}")
    headers = {}
    for one in lines[1:]:
        key, _, value = one.partition(":")
        headers[key.strip().lower()] = value.strip()
    return int(found.group(1)), headers


def _pieces(line: Line, headers: Dict[str, str], limit: int) -> Iterator[bytes]:
    """The body as it is sent, piece by piece."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        yield from _chunks(line, limit)
        return
    told = headers.get("content-length")
    if told is not None:
        if not LENGTH.match(told):
            raise Broken("the answer's length is no number")
        if int(told) > limit:
            raise _too_large(limit)
        yield from _sized(line, int(told))
        return
    while line.kept or line.more():
        yield line.take(PIECE)


def _sized(line: Line, size: int) -> Iterator[bytes]:
    while size:
        while not line.kept:
            line.go_on()
        piece = line.take(min(size, PIECE))
        size -= len(piece)
        yield piece


def _chunks(line: Line, limit: int) -> Iterator[bytes]:
    left = limit
    while True:
        told = line.until(b"\r\n", 1024, "the head of a chunk").partition(b";")[0].strip()
        if not CHUNK.match(told):
            raise Broken("a chunk's length is no number")
        size = int(told, 16)
        left -= size
        if left < 0:
            raise _too_large(limit)
        if size == 0:
            return
        yield from _sized(line, size)
        line.until(b"\r\n", 1024, "the end of a chunk")


def _plain(pieces: Iterator[bytes], headers: Dict[str, str]) -> Iterator[bytes]:
    """The body without its encoding: gzip is unpacked, never more at once than a piece."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip"):
        yield from _unpacked(pieces)
    else:
        raise Broken(
            f"the body is encoded with {encoding[:40]!r}: kedge reads plain and gzip bodies"
        )


def _unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    import zlib  # noqa: PLC0415 -- few bodies need it

    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        for piece in pieces:
            while piece:
                if unpacker.eof:
                    raise Broken("there is more after the end of the gzip body")
                yield unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail or unpacker.unused_data  # noqa: PLW2901 -- what is left of it
        while not unpacker.eof and (rest := unpacker.decompress(b"", PIECE)):
            yield rest
    except zlib.error as error:
        raise Broken("the body is called gzip and is not") from error
    if not unpacker.eof:
        raise Broken("the gzip body is cut off")
