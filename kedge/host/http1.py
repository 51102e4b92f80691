"""A small HTTP/1.1 client for probes: one request, one bounded answer, one deadline for all of it.

It follows no redirects, uses no proxies, keeps nothing open, and looks at the fence while it waits.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from kedge.host.waits import Pulse

HEAD_MAX = 64 << 10
BODY_MAX = 1 << 20
HEADS_MAX = 16
# By name: the module of secured sockets is large, and most probes are plain.
WANTS = {"SSLWantReadError": select.POLLIN, "SSLWantWriteError": select.POLLOUT}
STATUS = re.compile(r"HTTP/1\.[0-9] ([1-9][0-9]{2})( |\Z)")
LENGTH = re.compile(r"[0-9]{1,12}\Z")
CHUNK = re.compile(rb"[0-9a-fA-F]{1,8}\Z")


class Broken(Exception):
    """No answer, or one that is not HTTP; the message says which."""


class Answer(NamedTuple):
    """A status and a body."""

    status: int
    body: bytes


def connect(host: str, port: int, deadline: float, pulse: Pulse) -> socket.socket:
    """A connected, non-blocking socket; OSError when refused, Broken at the deadline."""
    # As bytes: a text would load the tables of international names first.
    infos = socket.getaddrinfo(host.encode("idna" if not host.isascii() else "ascii"), port, 0, 1)
    last: OSError = OSError("no address")
    for family, kind, number, _, address in infos:
        one = socket.socket(family, kind, number)
        good = False
        try:
            one.setblocking(False)  # noqa: FBT003 -- the standard library's signature
            code = one.connect_ex(address)
            if code in (0, errno.EINPROGRESS):
                wait(one, select.POLLOUT, deadline, pulse)
                code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                good = True
                return one
            last = OSError(code, os.strerror(code))
        finally:
            if not good:
                one.close()
    raise last


def wait(one: socket.socket, events: int, deadline: float, pulse: Pulse) -> None:
    """Wait until a socket is ready; Broken at the deadline, also for one that is ready all the time."""
    left = deadline - time.monotonic()
    if left <= 0 or not pulse.rest(left, one.fileno(), events):
        raise Broken("timed out")


def ask(spec: Dict[str, Any], pulse: Pulse) -> Answer:
    """Do the request of an http probe; OSError or Broken when there is no whole answer."""
    parts = urlsplit(spec["url"])
    deadline = time.monotonic() + spec["timeout"]
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    one = connect(host, parts.port or (443 if secure else 80), deadline, pulse)
    try:
        if secure:
            one = _secured(one, host, deadline, pulse)
        _send(one, _request(spec, parts.netloc, parts.path or "/", parts.query), deadline, pulse)
        return _answer(_Reader(one, deadline, pulse), spec["method"])
    finally:
        one.close()


def _secured(one: socket.socket, host: str, deadline: float, pulse: Pulse) -> socket.socket:
    import ssl  # noqa: PLC0415 -- large, and most probes are plain

    context = ssl.create_default_context()
    found = context.wrap_socket(one, server_hostname=host, do_handshake_on_connect=False)
    good = False
    try:
        wanted = select.POLLOUT
        while wanted:
            wait(found, wanted, deadline, pulse)
            wanted = _shaken(found)
        good = True
        return found
    finally:
        if not good:
            found.close()


def _shaken(one: Any) -> int:
    """Go on with a handshake: what it waits for, or nothing when it is done."""
    try:
        one.do_handshake()
    except OSError as error:
        kind = type(error).__name__
        if kind not in WANTS:
            raise
        return WANTS[kind]
    return 0


def _request(spec: Dict[str, Any], host: str, path: str, query: str) -> bytes:
    target = f"{path}?{query}" if query else path
    body = (spec["body"] or "").encode()
    headers = {"Host": host, "User-Agent": "kedge", "Accept": "*/*", "Connection": "close"}
    if spec["body"] is not None:
        headers["Content-Length"] = str(len(body))
        headers["Content-Type"] = "application/json"
    headers.update(spec["headers"])
    lines = [f"{spec['method']} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _send(one: socket.socket, content: bytes, deadline: float, pulse: Pulse) -> None:
    while content:
        wait(one, select.POLLOUT, deadline, pulse)
        try:
            content = content[one.send(content) :]
        except OSError as error:
            if not _not_yet(error):
                raise


def _not_yet(error: OSError) -> bool:
    """Whether an error says that a socket, a secured one too, has nothing now."""
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in WANTS


class _Reader:
    """Reads from a socket until the deadline, at most so much."""

    def __init__(self, one: socket.socket, deadline: float, pulse: Pulse) -> None:
        self._one = one
        self._deadline = deadline
        self._pulse = pulse
        self.kept = bytearray()

    def more(self) -> bool:
        """Read some; False at the end."""
        pending = getattr(self._one, "pending", None)
        if pending is None or not pending():
            wait(self._one, select.POLLIN, self._deadline, self._pulse)
        try:
            part = self._one.recv(1 << 16)
        except OSError as error:
            if _not_yet(error):
                return True
            raise
        self.kept += part
        return bool(part)

    def until(self, mark: bytes, limit: int) -> bytes:
        """What comes before a mark; the mark is taken away too."""
        seen = 0
        while True:
            at = self.kept.find(mark, max(0, seen - len(mark)))
            if at > limit or (at < 0 and len(self.kept) > limit + len(mark)):
                raise Broken("the answer's head is too large")
            if at >= 0:
                found = bytes(self.kept[:at])
                del self.kept[: at + len(mark)]
                return found
            seen = len(self.kept)
            self._go_on()

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.kept) < size:
            self._go_on()
        found = bytes(self.kept[:size])
        del self.kept[:size]
        return found

    def _go_on(self) -> None:
        if not self.more():
            raise Broken("the connection was closed in the middle of the answer")

    def rest(self) -> bytes:
        """All there is until the end."""
        while self.more():
            if len(self.kept) > BODY_MAX:
                raise Broken(f"the body is larger than {BODY_MAX} bytes")
        return bytes(self.kept)


def _answer(reader: _Reader, method: str) -> Answer:
    status, headers = _head(reader)
    # 100 Continue and its like come before the answer itself.
    for _ in range(HEADS_MAX):
        if status >= 200:
            break
        status, headers = _head(reader)
    else:
        raise Broken("no answer comes after all that announces one")
    if method == "HEAD" or status in (204, 304):
        return Answer(status, b"")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Answer(status, _chunked(reader))
    length = _length(headers)
    return Answer(status, reader.rest() if length is None else reader.exactly(length))


def _head(reader: _Reader) -> Tuple[int, Dict[str, str]]:
    lines: List[str] = reader.until(b"\r\n\r\n", HEAD_MAX).decode("latin-1").split("\r\n")
    found = STATUS.match(lines[0])
    if found is None:
        raise Broken("the answer is not HTTP/1")
    headers = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    return int(found.group(1)), headers


def _length(headers: Dict[str, str]) -> Optional[int]:
    told = headers.get("content-length")
    if told is None:
        return None
    if not LENGTH.match(told):
        raise Broken("the answer's length is no number")
    if int(told) > BODY_MAX:
        raise Broken(f"the body is larger than {BODY_MAX} bytes")
    return int(told)


def _chunked(reader: _Reader) -> bytes:
    body = bytearray()
    while True:
        told = reader.until(b"\r\n", 1024).partition(b";")[0].strip()
        if not CHUNK.match(told):
            raise Broken("a chunk's length is no number")
        size = int(told, 16)
        if len(body) + size > BODY_MAX:
            raise Broken(f"the body is larger than {BODY_MAX} bytes")
        if size == 0:
            return bytes(body)
        body += reader.exactly(size)
        reader.until(b"\r\n", 1024)
