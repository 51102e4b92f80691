"""What servers for browsers have in common: a socket, signals, and no patience with who says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kedge.model.errors import EngineError
from worker import processes
from worker.processes import ProcessIdentity

if TYPE_CHECKING:
    import uvicorn

HEAD_SECONDS = 10.0
"""So long may pass from a connection, or the end of an answer, to the end of the next request's head."""


def listen(host: str, port: int, what: str) -> socket.socket:
    """A socket that listens there (0: on a free port). Raises ``EngineError``; ``what`` names who wants to."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(64)
    except OSError as error:
        raise EngineError(
            f"{what} cannot listen on {host}:{port}: {error.strerror or error}",
            next_step="end what listens there, or name another port with --port",
        ) from error
    return listener


def myself() -> ProcessIdentity:
    """This process."""
    found = processes.identify(os.getpid())
    assert found is not None  # noqa: S101 - this process lives
    return found


def quiet(server: type[uvicorn.Server]) -> type[uvicorn.Server]:
    """The server without its own way with signals: it would raise them again at its end."""

    class Quiet(server):  # type: ignore[misc, valid-type]
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Quiet


def impatient() -> type[asyncio.Protocol]:
    """HTTP that hangs up on who does not come to the end of a request's head in time: connections are few, and whoever
    kept them open without a word would keep everybody else out.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415 - for who serves

    class Impatient(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head is not None:
                self._head.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._head is not None:
                self._head.cancel()
            self._head = self.loop.call_later(HEAD_SECONDS, self._hang_up)

        def _hang_up(self) -> None:
            # Who is being answered has said the head, and the body has a time of its own.
            answering: Any = self.cycle
            if answering is None or answering.response_complete:
                self.transport.abort()

    return Impatient
