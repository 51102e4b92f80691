"""Connections of probes: TCP or a Unix socket, in the open or by TLS, one deadline for all of it.

Every failure is a `Broken` that says what happened and what to do next. A `Line` looks at the fence while it waits.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from typing import Any, Dict, NamedTuple, Optional, Tuple

from kedge.host.waits import Pulse

# By name: the module of secured sockets is large, and most probes are plain.
WANTS = {"SSLWantReadError": select.POLLIN, "SSLWantWriteError": select.POLLOUT}


class Broken(Exception):
    """No answer, or one that is not of the protocol; the message says which."""


class Refused(Broken):
    """Nothing listens there: the one failure to connect that is an answer."""


class Limit(NamedTuple):
    """When an exchange must be over: a monotonic instant, and the seconds it was given."""

    at: float
    seconds: float

    @classmethod
    def of(cls, seconds: float) -> Limit:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds, seconds)

    def left(self, doing: str) -> float:
        """The seconds that are left; Broken when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise Broken(f"timed out after {self.seconds:g} s while {doing}")
        return left


class Target(NamedTuple):
    """Where to connect: a host and a port, or the path of a Unix socket."""

    host: str
    port: int
    path: Optional[str] = None

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def connected(target: Target, limit: Limit, pulse: Pulse) -> socket.socket:
    """A connected, non-blocking socket; Refused or Broken."""
    if target.path is not None:
        return _to_unix(target.path, limit, pulse)
    failure: Broken = Broken(f"the name {target.host} has no address")
    for family, kind, number, _, address in _addresses(target):
        one = socket.socket(family, kind, number)
        code = _reached(one, address, limit, pulse)
        if code == 0:
            return one
        failure = _unreachable(target, code)
    raise failure


def _addresses(target: Target) -> Any:
    try:
        # As bytes: a text would load the tables of international names first.
        name = target.host.encode("ascii" if target.host.isascii() else "idna")
        return socket.getaddrinfo(name, target.port, 0, socket.SOCK_STREAM)
    except UnicodeError as error:
        raise Broken(f"{target.host[:100]!r} is not a host name") from error
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            said = f"the name {target.host} cannot be resolved now: the name server does not answer"
        else:
            said = f"the host name {target.host} is unknown here: check its spelling, DNS and /etc/hosts"
        raise Broken(said) from error


def _reached(one: socket.socket, address: Any, limit: Limit, pulse: Pulse) -> int:
    """The error number of an attempt to connect, zero when it is connected; closed otherwise."""
    good = False
    try:
        one.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        code = one.connect_ex(address)
        if code == errno.EINPROGRESS:
            wait(one, select.POLLOUT, limit, pulse, "connecting")
            code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        good = code == 0
        return code
    finally:
        if not good:
            one.close()


def _unreachable(target: Target, code: int) -> Broken:
    if code == errno.ECONNREFUSED:
        return Refused(f"connection refused: nothing listens at {target}")
    return Broken(f"{target} cannot be reached: {os.strerror(code)}")


def _to_unix(path: str, limit: Limit, pulse: Pulse) -> socket.socket:
    """A connection to a Unix socket. By its open folder: the path of a socket has 107 bytes at most."""
    folder, _, name = path.rpartition("/")
    try:
        fd = os.open(folder or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Broken(f"the socket {path} cannot be reached: {error.strerror}") from error
    try:
        mode = os.stat(name, dir_fd=fd).st_mode
        if not stat.S_ISSOCK(mode):
            raise Broken(f"{path} is not a socket")
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        code = _reached(one, f"/proc/self/fd/{fd}/{name}", limit, pulse)
    except FileNotFoundError as error:
        raise Broken(
            f"there is no socket {path}: is the daemon up, and is this its path?"
        ) from error
    except OSError as error:
        raise Broken(f"the socket {path} cannot be reached: {error.strerror}") from error
    finally:
        os.close(fd)
    if code:
        raise _unreachable(Target("", 0, path), code)
    return one


def wait(one: socket.socket, events: int, limit: Limit, pulse: Pulse, doing: str) -> None:
    """Wait until a socket is ready; Broken at the limit, also for one that is ready all the time."""
    if not pulse.rest(limit.left(doing), one.fileno(), events):
        raise Broken(f"timed out after {limit.seconds:g} s while {doing}")


def not_yet(error: OSError) -> bool:
    """Whether an error says that a socket, a secured one too, has nothing now."""
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in WANTS


class Line:
    """An open connection: what is sent and read, each within the limit. `kept` was read and not taken yet."""

    def __init__(self, one: socket.socket, target: Target, limit: Limit, pulse: Pulse) -> None:
        self.kept = bytearray()
        self.heard = False
        self._own_ca = False
        self.target = target
        self.limit = limit
        self._one = one
        self._pulse = pulse

    def close(self) -> None:
        """Let it go."""
        self._one.close()

    def secure(self, options: Dict[str, Any], host: str, protocol: str) -> None:
        """Go on by TLS; Broken where a certificate is refused. `options`: ca, certificate, key, server_name."""
        from kedge.host import tls  # noqa: PLC0415 -- large, and most probes are plain

        context = tls.context(options, protocol)
        name = options["server_name"] or host
        self._own_ca = options["ca"] is not None
        secured = context.wrap_socket(
            self._one, server_hostname=name, do_handshake_on_connect=False
        )
        self._one = secured
        wanted = select.POLLOUT
        while wanted:
            wait(secured, wanted, self.limit, self._pulse, "the TLS handshake was going on")
            wanted = self._shaken(secured, name)
        chosen = secured.selected_alpn_protocol()
        if chosen not in (None, protocol):
            raise Broken(f"{self.target} speaks {chosen} by TLS, not {protocol}")

    def _shaken(self, secured: Any, name: str) -> int:
        """Go on with a handshake: what it waits for, or nothing when it is done."""
        try:
            secured.do_handshake()
        except OSError as error:
            if type(error).__name__ not in WANTS:
                raise self._failed(error, name) from error
            return WANTS[type(error).__name__]
        return 0

    def _failed(self, error: OSError, name: str = "") -> Broken:
        kind = type(error).__name__
        if kind.startswith("SSL"):
            from kedge.host import tls  # noqa: PLC0415 -- it is loaded: this is its error

            return Broken(tls.sentence(error, str(self.target), name, own_ca=self._own_ca))
        if error.errno in (errno.ECONNRESET, errno.EPIPE):
            may = "" if self.heard or hasattr(self._one, "cipher") else ": it may want TLS"
            return Broken(f"{self.target} reset the connection{may}")
        return Broken(f"the connection to {self.target} failed: {error.strerror or error}")

    def send(self, content: bytes) -> None:
        """Send every byte."""
        while content:
            wait(self._one, select.POLLOUT, self.limit, self._pulse, "the request was sent")
            try:
                content = content[self._one.send(content) :]
            except OSError as error:
                if not not_yet(error):
                    raise self._failed(self._heard_instead(error)) from error

    def _heard_instead(self, error: OSError) -> OSError:
        """Why nothing can be sent any more, where the other side said it before it closed."""
        if not hasattr(self._one, "cipher"):
            return error
        try:
            self._one.recv(1)
        except OSError as other:
            return other if getattr(other, "reason", None) else error
        return error

    def more(self) -> bool:
        """Read some; False at the end."""
        pending = getattr(self._one, "pending", None)
        if pending is None or not pending():
            wait(self._one, select.POLLIN, self.limit, self._pulse, "waiting for the answer")
        self.limit.left("the answer was read")
        try:
            part = self._one.recv(1 << 16)
        except OSError as error:
            if not_yet(error):
                return True
            raise self._failed(error) from error
        self.kept += part
        self.heard = self.heard or bool(part)
        return bool(part)

    def go_on(self) -> None:
        """Read some more of an answer that is not whole yet."""
        if not self.more():
            what = "in the middle of its answer" if self.heard else "without an answer"
            raise Broken(f"{self.target} closed the connection {what}")

    def until(self, mark: bytes, most: int, what: str) -> bytes:
        """What comes before a mark; the mark is taken away too."""
        seen = 0
        while True:
            at = self.kept.find(mark, max(0, seen - len(mark)))
            if at > most or (at < 0 and len(self.kept) > most + len(mark)):
                raise Broken(f"{what} is larger than {most} bytes")
            if at >= 0:
                return self.take(at + len(mark))[:at]
            seen = len(self.kept)
            self.go_on()

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.kept) < size:
            self.go_on()
        return self.take(size)

    def take(self, size: int) -> bytes:
        """At most so many bytes of what was read."""
        found = bytes(self.kept[:size])
        del self.kept[:size]
        return found


def opened(
    target: Target, tls: Optional[Tuple[Dict[str, Any], str]], limit: Limit, pulse: Pulse
) -> Line:
    """A line to a target, by TLS with these options for this protocol where there are any; the caller closes it."""
    pulse.tick()
    line = Line(connected(target, limit, pulse), target, limit, pulse)
    good = False
    try:
        if tls is not None:
            line.secure(tls[0], target.host, tls[1])
        good = True
        return line
    finally:
        if not good:
            line.close()
