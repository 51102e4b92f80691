"""A small HTTP/1.1 client for probes: one request, one bounded answer, one deadline for all of it.

It follows no redirects, uses no proxies, keeps nothing open, and looks at the fence while it waits.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from kedge.host.waits import Pulse

HEAD_MAX = 64 << 10
BODY_MAX = 1 << 20


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
    """Wait until a socket is ready; Broken at the deadline."""
    if not pulse.rest(max(0.0, deadline - time.monotonic()), one.fileno(), events):
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
            one = _secured(one, host, deadline)
        _send(one, _request(spec, parts.netloc, parts.path or "/", parts.query), deadline, pulse)
        return _answer(_Reader(one, deadline, pulse), spec["method"])
    finally:
        one.close()


def _secured(one: socket.socket, host: str, deadline: float) -> socket.socket:
    import ssl  # noqa: PLC0415 -- large, and most probes are plain

    one.settimeout(max(0.01, deadline - time.monotonic()))
    found = ssl.create_default_context().wrap_socket(one, server_hostname=host)
    found.settimeout(max(0.01, deadline - time.monotonic()))
    return found


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
        content = content[one.send(content) :]


class _Reader:
    """Reads from a socket until the deadline, at most so much."""

    def __init__(self, one: socket.socket, deadline: float, pulse: Pulse) -> None:
        self._one = one
        self._deadline = deadline
        self._pulse = pulse
        self.kept = b""
        self.over = False

    def more(self) -> bool:
        """Read some; False at the end."""
        pending = getattr(self._one, "pending", None)
        if pending is None or not pending():
            wait(self._one, select.POLLIN, self._deadline, self._pulse)
        try:
            part = self._one.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return True
        self.over = not part
        self.kept += part
        return bool(part)

    def until(self, mark: bytes, limit: int) -> bytes:
        """What comes before a mark; the mark is taken away too."""
        while mark not in self.kept:
            if len(self.kept) > limit:
                raise Broken("the answer's head is too large")
            if not self.more():
                raise Broken("the connection was closed in the middle of the answer")
        found, _, self.kept = self.kept.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.kept) < size:
            if not self.more():
                raise Broken("the connection was closed in the middle of the answer")
        found, self.kept = self.kept[:size], self.kept[size:]
        return found


def _answer(reader: _Reader, method: str) -> Answer:
    status, headers = _head(reader)
    # 100 Continue and its like come before the answer itself.
    while 100 <= status < 200:
        status, headers = _head(reader)
    if method == "HEAD" or status in (204, 304):
        return Answer(status, b"")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return Answer(status, _chunked(reader))
    length = _length(headers)
    if length is not None:
        return Answer(status, reader.exactly(length))
    while reader.more():
        if len(reader.kept) > BODY_MAX:
            raise Broken(f"the body is larger than {BODY_MAX} bytes")
    return Answer(status, reader.kept)


def _head(reader: _Reader) -> Tuple[int, Dict[str, str]]:
    lines: List[str] = reader.until(b"\r\n\r\n", HEAD_MAX).decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise Broken("the answer is not HTTP/1")
    headers = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    return int(words[1]), headers


def _length(headers: Dict[str, str]) -> Optional[int]:
    told = headers.get("content-length")
    if told is None:
        return None
    if not told.isdigit() or len(told) > 12:
        raise Broken("the answer's length is no number")
    if int(told) > BODY_MAX:
        raise Broken(f"the body is larger than {BODY_MAX} bytes")
    return int(told)


def _chunked(reader: _Reader) -> bytes:
    body = b""
    while True:
        told = reader.until(b"\r\n", 1024).partition(b";")[0].strip()
        try:
            size = int(told, 16)
        except ValueError as error:
            raise Broken("a chunk's length is no number") from error
        if size < 0 or len(body) + size > BODY_MAX:
            raise Broken(f"the body is larger than {BODY_MAX} bytes")
        if size == 0:
            return body
        body += reader.exactly(size)
        reader.until(b"\r\n", 1024)
