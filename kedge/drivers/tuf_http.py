"""A release repository's files from a web server, which may be slow, silent or ill-disposed.

A server is heard for a bounded time, whatever it says meanwhile: its handshake, its headers, interim answers and trailers
count as the body does. A socket's own time-out begins anew with every byte, so somebody outside of the reader has to look at
the clock and cut the line (:class:`_Watch`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from kedge import __version__
from kedge.drivers.tuf_fetch import CHUNK, Fetched, Guarded

METADATA_SECONDS = 20.0
"""How long one metadata file may take, redirects and all."""
SLOWEST = 32 * 1024
"""Bytes a second that a target must come with at least, once ``METADATA_SECONDS`` are over."""
SILENCE = 5
"""Seconds in which at least one byte must come."""
_RETRIES = Retry(3, status=0, respect_retry_after_header=False)
"""A connection that broke is tried again at once. How long to wait, a server does not say."""


class HttpFetcher(Guarded, Urllib3Fetcher):
    """Files of a web server. What is too slow is given up; TUF decides what is too long."""

    def __init__(self, address: str, seen: Callable[[str], int]) -> None:
        Urllib3Fetcher.__init__(
            self, socket_timeout=SILENCE, chunk_size=CHUNK, app_user_agent=f"kedge/{__version__}"
        )
        self._address = address.rstrip("/") + "/"
        self.seen = seen
        self.last = Fetched()

    @property
    def base(self) -> str:
        """What addresses begin with."""
        return self._address

    def _fetch(self, url: str) -> Iterator[bytes]:
        """As the base class, under a watch that ends with the body."""
        where = parse_url(url)
        manager = self._proxy_env.get_pool_manager(where.scheme, where.host)
        manager.pool_classes_by_scheme = _POOLS
        watch = _now.watch = _Watch()
        try:
            response = manager.request(
                "GET", url, preload_content=False, timeout=Timeout(SILENCE), retries=_RETRIES
            )
        except HTTPError as error:
            watch.end()
            raise watch.said(error) from error
        except BaseException:
            watch.end()
            raise
        if response.status >= 400:
            watch.end()
            response.close()
            raise DownloadHTTPError(f"HTTP status {response.status}", response.status)
        return self._watched(response, watch)

    def _watched(self, response: BaseHTTPResponse, watch: _Watch) -> Iterator[bytes]:
        """The body, in pieces as they come."""
        try:
            while chunk := response.read1(CHUNK):
                watch.received += len(chunk)
                yield chunk
            if watch.late:
                # A line that was cut looks like an end.
                raise watch.said(None)
        except HTTPError as error:
            raise watch.said(error) from error
        finally:
            watch.end()
            response.close()


class _Watch:
    """Cuts the lines of one request when its time is over: ``METADATA_SECONDS``, and longer while enough comes."""

    def __init__(self) -> None:
        self.received = 0
        self.late = False
        self._begun = time.monotonic()
        self._lines: list[socket.socket] = []
        self._over = threading.Event()
        threading.Thread(target=self._run, name="release-fetch", daemon=True).start()

    def end(self) -> None:
        """The request is over."""
        self._over.set()

    def holds(self, line: socket.socket) -> None:
        """From now on it is this line, too. Raises ``TimeoutError`` when the time is over already.

        By a descriptor of its own: a handshake takes the other away, and a connection closes it before its body is read.
        """
        self._lines.append(socket.socket(fileno=os.dup(line.fileno())))
        if self.late:
            raise TimeoutError("too slow")

    def said(self, error: HTTPError | None) -> DownloadError:
        """What went wrong, as TUF's library knows it."""
        if self.late:
            return SlowRetrievalError(f"only {self.received} bytes came in {self._spent():.0f} s")
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if self.received:
            return SlowRetrievalError(f"it broke off after {self.received} bytes: {reason}")
        return DownloadError(str(reason)[:300])

    def _spent(self) -> float:
        return time.monotonic() - self._begun

    def _left(self) -> float:
        return max(METADATA_SECONDS, self.received / SLOWEST) - self._spent()

    def _run(self) -> None:
        try:
            self._cut()
        finally:
            # By nobody else: a descriptor that is closed while it is cut could be another's by then.
            for line in self._lines:
                line.close()

    def _cut(self) -> None:
        while (left := self._left()) > 0:
            if self._over.wait(left):
                return
        self.late = True
        # More than once: one that is just being connected comes late.
        until = time.monotonic() + 4 * SILENCE
        while not self._over.is_set() and time.monotonic() < until:
            for line in tuple(self._lines):
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            self._over.wait(0.2)


class _Now(threading.local):
    """The watch of the request that this thread makes."""

    watch: _Watch | None = None


_now = _Now()


class _Held:
    """A connection that each request's watch can cut, from its first byte on: a TLS handshake included."""

    sock: socket.socket | None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        _hold(made)
        return made

    def putrequest(self, *given: Any, **named: Any) -> None:
        """Before each request, also on a connection that was kept."""
        if self.sock is not None:
            _hold(self.sock)
        super().putrequest(*given, **named)  # type: ignore[misc]


def _hold(line: socket.socket) -> None:
    if _now.watch is not None:
        _now.watch.holds(line)


class _Plain(_Held, HTTPConnection):
    """``http:``."""


class _Secure(_Held, HTTPSConnection):
    """``https:``."""


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


_POOLS = {"http": _PlainPool, "https": _SecurePool}
