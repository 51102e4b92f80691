"""One call over HTTP/2 (RFC 9113), for gRPC: prior knowledge or ALPN, one stream, a small bounded answer.

Everything of ours is sent at once, before the server says anything. Whatever it sends then is counted, and what one call
does not need is an error.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Dict, List, NamedTuple, Tuple

from kedge.host import hpack
from kedge.host.dial import Broken, Line

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION = (
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    9,
)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
# No header table, no pushes, small header lists.
OURS = struct.pack(">HIHIHI", 1, 0, 2, 0, 6, 16 << 10)
FRAME_MAX = 16 << 10
FRAMES_MAX = 512
BLOCK_MAX = 64 << 10
BODY_MAX = 64 << 10
STREAM = 1
ERRORS = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
    "STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR",
    "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip


class Reply(NamedTuple):
    """An answer: its headers, with those that came at its end, and its body."""

    headers: Dict[str, str]
    body: bytes


class _Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def call(line: Line, headers: List[Tuple[str, str]], body: bytes) -> Reply:
    """Send one request and wait for the whole of its answer; Broken where there is none."""
    block = b"".join(hpack.header(name, value) for name, value in headers)
    if len(block) > FRAME_MAX:
        raise Broken(f"the headers of the request have more than {FRAME_MAX} bytes")
    line.send(
        PREFACE
        + _frame(SETTINGS, 0, 0, OURS)
        + _frame(HEADERS, END_HEADERS, STREAM, block)
        + _frame(DATA, END_STREAM, STREAM, body)
    )
    return _Answer(line).whole()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class _Answer:
    """Reads frames until the answer is whole."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._headers: Dict[str, str] = {}
        self._body = bytearray()
        self._over = False

    def whole(self) -> Reply:
        self._first()
        for _ in range(FRAMES_MAX):
            self._take(self._next())
            if self._over:
                return Reply(self._headers, bytes(self._body))
        raise Broken(f"the answer has more than {FRAMES_MAX} frames")

    def _first(self) -> None:
        """Settings come first from whoever speaks HTTP/2."""
        line = self._line
        while len(line.kept) < 9:
            line.go_on()
        if line.kept.startswith(b"\x15\x03"):
            raise Broken(f"{line.target} speaks TLS: write grpcs")
        if line.kept[3] != SETTINGS:
            spoken = "HTTP/1" if line.kept.startswith(b"HTTP/1") else "no HTTP/2"
            raise Broken(f"{line.target} speaks {spoken}, and gRPC needs HTTP/2")

    def _next(self) -> _Frame:
        head = self._line.exactly(9)
        size = int.from_bytes(head[:3], "big")
        if size > FRAME_MAX:
            raise Broken(f"a frame of the answer has more than {FRAME_MAX} bytes")
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        return _Frame(head[3], head[4], stream, self._line.exactly(size))

    def _take(self, frame: _Frame) -> None:
        if frame.kind == SETTINGS:
            if not frame.flags & ACK:
                self._acknowledge(_frame(SETTINGS, ACK, 0, b""))
        elif frame.kind == PING:
            if not frame.flags & ACK:
                self._acknowledge(_frame(PING, ACK, 0, frame.payload[:8]))
        elif frame.kind == GOAWAY:
            self._going_away(frame.payload)
        elif frame.kind in (PUSH_PROMISE, CONTINUATION):
            raise Broken("the answer has a frame where none may be")
        elif frame.kind in (DATA, HEADERS, RST_STREAM):
            if frame.stream != STREAM:
                raise Broken("the answer is to another request")
            self._of_stream(frame)

    def _acknowledge(self, frame: bytes) -> None:
        # A server that has answered may be gone already; what it said counts.
        with contextlib.suppress(Broken):
            self._line.send(frame)

    def _of_stream(self, frame: _Frame) -> None:
        if frame.kind == RST_STREAM:
            raise Broken(f"the call was reset: {_error(frame.payload)}")
        payload = _unpadded(frame)
        if frame.kind == DATA:
            self._body += payload
            if len(self._body) > BODY_MAX:
                raise Broken(f"the answer is larger than {BODY_MAX} bytes")
        else:
            self._read_headers(frame.flags, payload)
        self._over = bool(frame.flags & END_STREAM)

    def _read_headers(self, flags: int, block: bytes) -> None:
        while not flags & END_HEADERS:
            more = self._next()
            if more.kind != CONTINUATION or more.stream != STREAM:
                raise Broken("the headers of the answer are cut off")
            block += more.payload
            flags = more.flags
            if len(block) > BLOCK_MAX or not more.payload:
                raise Broken(
                    f"the headers of the answer have more than {BLOCK_MAX} bytes, or empty parts"
                )
        for name, value in hpack.headers(block):
            if name in self._headers and name in (":status", "grpc-status", "content-type"):
                raise Broken(f"the answer has {name} twice")
            self._headers[name] = value

    def _going_away(self, payload: bytes) -> None:
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        if len(payload) < 8 or last < STREAM or payload[4:8] != b"\0\0\0\0":
            why = payload[8:108].decode("utf-8", "replace")
            raise Broken(f"the server ended the connection: {_error(payload[4:8])} {why}".rstrip())


def _unpadded(frame: _Frame) -> bytes:
    payload = frame.payload
    padding = 0
    if frame.flags & PADDED:
        if not payload:
            raise Broken("a frame of the answer is cut off")
        padding, payload = payload[0], payload[1:]
    if frame.kind == HEADERS and frame.flags & PRIORITY:
        if len(payload) < 5:
            raise Broken("a frame of the answer is cut off")
        payload = payload[5:]
    if padding > len(payload):
        raise Broken("a frame of the answer has more padding than content")
    return payload[: len(payload) - padding]


def _error(raw: bytes) -> str:
    number = int.from_bytes(raw[:4], "big")
    return ERRORS[number] if number < len(ERRORS) else f"error {number}"
