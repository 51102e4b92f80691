"""Nodes on this machine: the host program runs as a server of one's own, a session per connection.

The server is started with the first session, ends with this object (its standard input closes, also
when this process is killed), and is started anew when it is gone. Daemons are not its children in
any sense that matters: they outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kedge.drivers import protocol
from kedge.drivers.files import open_private, write_atomic
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.drivers.protocol import ProtocolError
from kedge.host import bundle
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.outside import line
from kedge.model.plan import PlannedNode

MOST_SESSIONS = 400
"""Sessions at a time unless told otherwise: fewer than the server lets wait to be accepted, since a
full queue refuses connections as if nobody listened."""
START_WAIT = 15.0
"""Seconds that the server has to answer."""
STOP_WAIT = 5.0
"""Seconds that the server has to end once its standard input is closed."""

_SOCKET_PREFIX = "kedge-host-"
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "KEDGE_POINTS")
"""What the host program sees of this process's environment, and what begins with ``KEDGE_SECRET_``: secrets of daemons.
Keys of Temporal and of the payload codec are not among it.
"""


class LocalTransport:
    """:class:`kedge.drivers.ports.Transport` to roots on this machine.

    ``home`` gets the host program in ``host/<digest>.pyz``; ``python`` runs it (3.9 or newer);
    ``limit`` is how many sessions run at a time (``MOST_SESSIONS`` when None); others wait.
    """

    def __init__(
        self, home: Path, *, python: str = sys.executable, limit: int | None = None
    ) -> None:
        self._server = _Server(home / "host", python)
        self._nowhere = limit == 0
        self._slots = asyncio.Semaphore(MOST_SESSIONS if limit is None else limit)

    async def session(
        self,
        node: PlannedNode,
        request: SessionRequest,
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        """See :meth:`kedge.drivers.ports.Transport.session`."""
        asked = _request_line(node, request)
        if self._nowhere:
            raise DriverError(
                "Unreachable",
                f"{node.name} is on a worker's own machine, and this worker is on none (local_limit 0)",
                retryable=True,
                next_step="`kedge up` on the machine of the nodes starts a worker there",
            )
        async with self._slots:
            return await self._session(node.name, request, asked, on_event)

    async def _session(
        self,
        name: str,
        request: SessionRequest,
        asked: bytes,
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        conversation = await self._server.connect(
            lambda: _Conversation(asked, protocol.Conversation(request.ops), on_event)
        )
        try:
            return await conversation.end
        except ProtocolError as error:
            raise DriverError(
                "ProtocolError",
                f"{name}: the host program does not speak its protocol: {error}",
                retryable=False,
            ) from error
        except (OSError, EOFError) as error:
            raise DriverError(
                "TransportLost",
                f"{name}: the host program's answer broke off: {str(error) or type(error).__name__}",
                retryable=True,
            ) from error
        finally:
            # Also on cancellation: the host program sees that nobody reads, and stops.
            conversation.close()

    async def put(self, node: PlannedNode, artifact: Path, digest: Digest, length: int) -> str:  # noqa: ARG002 - the port's signature
        """See :meth:`kedge.drivers.ports.Transport.put`: the file is on the host already."""
        return str(artifact)

    async def aclose(self) -> None:
        """See :meth:`kedge.drivers.ports.Transport.aclose`."""
        await self._server.stop()


def _request_line(node: PlannedNode, request: SessionRequest) -> bytes:
    asked = {
        "kedge": 1,
        "root": node.root,
        "node": node.name,
        "run": request.run,
        "token": request.token,
        "lock_wait": request.lock_wait,
        "look": request.look,
        "ops": request.ops,
    }
    try:
        return json.dumps(asked, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise DriverError("BadRequest", f"{node.name}: {error}", retryable=False) from error


class _Conversation(asyncio.Protocol):
    """One session on one connection: the request goes out at once, lines are taken as they come.

    ``end`` is done when the last line was read. It has ``EOFError`` or ``OSError`` when the
    session breaks off, ``ProtocolError`` for what is not of the protocol. Lines are read in
    the callback and not by a task: a leg has two dozen of them.
    """

    def __init__(
        self, asked: bytes, told: protocol.Conversation, on_event: Callable[[HostEvent], None]
    ) -> None:
        self.end: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._told = told
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def close(self) -> None:
        """Lets the connection go, whatever is under way."""
        self.end.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream is all we connect to
        self._transport = transport
        transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        """Takes the lines that are whole by now."""
        first, *others = data.split(b"\n")
        self._parts.append(first)
        self._size += len(first)
        for part in others:
            whole = b"".join(self._parts)
            self._parts, self._size = [part], len(part)
            self._take(whole)
        if self._size > protocol.MAX_LINE:
            self._break_off(ProtocolError(f"a line of more than {protocol.MAX_LINE} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The end without a last line: what failed before is told, otherwise it broke off."""
        end = self._told.broken()
        if end is not None and not self.end.done():
            self.end.set_result(end)
        self._break_off(exc or EOFError("it ended without its last line"))

    def _break_off(self, error: Exception) -> None:
        if not self.end.done():
            self.end.set_exception(error)
        if self._transport is not None:
            # Nothing more of it is read: it may say anything without end.
            self._transport.abort()

    def _take(self, whole: bytes) -> None:
        if self.end.done():
            return
        try:
            event = self._told.read(whole)
            if event is not None:
                self._on_event(event)
            elif self._told.end is not None:
                self.end.set_result(self._told.end)
        except Exception as error:  # noqa: BLE001 - it is raised to whoever waits for the session
            self._break_off(error)


class _Server:
    """The host program's server: started when it is needed, connected to, stopped."""

    def __init__(self, folder: Path, python: str) -> None:
        self._folder = folder
        self._python = python
        self._running: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self._address: str | None = None
        self._starting = asyncio.Lock()

    async def connect(self, conversation: Callable[[], _Conversation]) -> _Conversation:
        """A conversation with the server, which is started when it is not there.

        Raises ``DriverError`` kind ``Unreachable`` when it cannot be started or does not answer.
        """
        connected = await self._try(conversation)
        if connected is not None:
            return connected
        async with self._starting:
            # Whoever waited for the lock finds the server that another one started.
            connected = await self._try(conversation)
            if connected is None:
                await self._start()
                connected = await self._answers(conversation)
            return connected

    async def _try(self, conversation: Callable[[], _Conversation]) -> _Conversation | None:
        if self._running is None or self._address is None:
            return None
        loop = asyncio.get_running_loop()
        try:
            _, connected = await loop.create_unix_connection(conversation, self._address)
        except OSError:
            return None
        return connected

    async def _answers(self, conversation: Callable[[], _Conversation]) -> _Conversation:
        until = time.monotonic() + START_WAIT
        while time.monotonic() < until:
            connected = await self._try(conversation)
            if connected is not None:
                return connected
            if self._running is not None and self._running.poll() is not None:
                break
            await asyncio.sleep(0.005)
        said = self._last_words()
        await self._end()
        raise DriverError(
            "Unreachable",
            f"the host program does not run on this machine: {said or 'it does not answer'}",
            retryable=True,
            next_step=f"Try it by hand: {self._python} -I -S -X utf8 {self._folder}/<digest>.pyz serve /tmp/s",
        )

    async def _start(self) -> None:
        await self._end()
        try:
            await asyncio.to_thread(self._spawn)
        except OSError as error:
            raise DriverError(
                "Unreachable", f"the host program cannot be started: {error}", retryable=True
            ) from error

    def _spawn(self) -> None:
        program = self._program()
        self._sockets = _socket_folder()
        self._address = str(self._sockets / "s")
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in _PASSED_ON or name.startswith(("LC_", "KEDGE_SECRET_"))
        }
        with open_private(self._folder / "server.log", os.O_TRUNC) as log:
            self._running = subprocess.Popen(
                [self._python, "-I", "-S", "-X", "utf8", str(program), "serve", self._address],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                # Ctrl-C at a terminal is for kedge, which then ends sessions between operations.
                start_new_session=True,
            )

    def _program(self) -> Path:
        """The host program's file, checked against its digest: written anew when it differs."""
        content = bundle.bundle()
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / f"{digest}.pyz"
        if not path.is_file() or path.read_bytes() != content:
            write_atomic(path, content, 0o600)
        return path

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            words = (self._folder / "server.log").read_text(errors="replace")
            return line(words.strip()[-500:])
        return ""

    async def stop(self) -> None:
        """Closes the server's standard input and waits for its end."""
        async with self._starting:
            await self._end()

    async def _end(self) -> None:
        running, self._running = self._running, None
        sockets, self._sockets = self._sockets, None
        if running is not None:
            await asyncio.to_thread(_end_child, running)
        if sockets is not None:
            await asyncio.to_thread(shutil.rmtree, sockets, ignore_errors=True)


def _end_child(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.wait(STOP_WAIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _socket_folder() -> Path:
    """A directory of our own with a name short enough for a socket's address (107 bytes)."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime if 0 < len(os.fsencode(runtime)) < 60 else "/tmp")  # noqa: S108 - mkdtemp makes it ours
    if not os.access(base, os.W_OK):
        base = Path("/tmp")  # noqa: S108 - as above
    _sweep(base)
    return Path(tempfile.mkdtemp(prefix=f"{_SOCKET_PREFIX}{os.getpid()}-", dir=base))


def _sweep(base: Path) -> None:
    """Removes what killed workers of this user left behind."""
    for path in base.glob(f"{_SOCKET_PREFIX}*"):
        pid = path.name.removeprefix(_SOCKET_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            found = path.stat()
            # A minute: a worker in another container has processes that are not seen here.
            old = time.time() - found.st_mtime > 60
            if old and found.st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(path, ignore_errors=True)
