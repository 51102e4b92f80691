"""A server on a Unix socket: each connection is one session, in a child of its own while it lasts.

The server is single-threaded, so that forking is safe, and imports what sessions need before the first
fork. A child that has ended its session takes the next one: a fresh fork faults in about a thousand
pages, which costs more than the session itself. It ends when its standard input closes: then whoever started
it is gone. Sessions go on to their own end.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from typing import Dict, List, NoReturn

from kedge.host import session

BACKLOG = 512
# A Unix socket's address holds 107 bytes; a longer path is bound by its name from its directory.
ADDRESS_MAX = 100
# Idle children beyond these are let go, as are those that had many sessions: nothing may pile up.
IDLE_MAX = 32
IDLE_SECONDS = 60.0
SESSIONS_MAX = 500
DONE = b"d"


class Child:
    """One child as its server sees it."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid = pid
        self.line = line
        self.sessions = 0
        self.idle_since = 0.0


class Server:
    """The listening socket and the children."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = _bound(path)
        self.children: Dict[int, Child] = {}
        self.idle: List[Child] = []
        self.poller = select.poll()
        for fd in (self.listener.fileno(), 0):
            self.poller.register(fd, select.POLLIN)

    def run(self) -> None:
        """Serve until standard input closes."""
        while True:
            for fd, _event in self.poller.poll(int(IDLE_SECONDS * 1000)):
                if fd in self.children:
                    self._heard(self.children[fd])
                elif fd == self.listener.fileno():
                    self._accept()
                elif fd == 0 and not os.read(0, 4096):
                    return
            self._thin()

    def close(self) -> None:
        """Listen no more; idle children end when their line closes, the others after their session."""
        self.listener.close()
        _remove(self.path)

    def _accept(self) -> None:
        try:
            one, _address = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        try:
            while True:
                child = self.idle.pop() if self.idle else self._fork()
                try:
                    socket.send_fds(child.line, [DONE], [one.fileno()])
                except OSError:
                    # It was killed while idle: the next one.
                    self._gone(child)
                    continue
                child.sessions += 1
                return
        except OSError:
            # No more processes now: the caller sees a closed connection and tries again.
            return
        finally:
            one.close()

    def _fork(self) -> Child:
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            self._child(theirs)
        theirs.close()
        child = Child(pid, ours)
        self.children[ours.fileno()] = child
        self.poller.register(ours.fileno(), select.POLLIN)
        return child

    def _child(self, line: socket.socket) -> NoReturn:
        """A child's life: one session after another, until its line closes."""
        try:
            # The connection that is being accepted too: it comes again over the line, and whoever is
            # at its other end must see it close when the session ends.
            _close_others(line.fileno())
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 0)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            while _one_session(line):
                _reap()
        finally:
            os._exit(0)

    def _heard(self, child: Child) -> None:
        """A child is done with its session, or dead."""
        try:
            said = child.line.recv(16)
        except OSError:
            said = b""
        if not said or child.sessions >= SESSIONS_MAX:
            self._gone(child)
            return
        child.idle_since = time.monotonic()
        self.idle.append(child)

    def _thin(self) -> None:
        """Let go of idle children that are too many or too long idle. The longest idle is the first."""
        old = time.monotonic() - IDLE_SECONDS
        while self.idle and (len(self.idle) > IDLE_MAX or self.idle[0].idle_since < old):
            self._gone(self.idle[0])
        _reap()

    def _gone(self, child: Child) -> None:
        self.poller.unregister(child.line.fileno())
        del self.children[child.line.fileno()]
        child.line.close()
        if child in self.idle:
            self.idle.remove(child)


def _close_others(kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            try:
                os.close(int(name))
            except OSError:
                # The descriptor the directory was read by.
                continue


def _one_session(line: socket.socket) -> bool:
    """Wait for a connection and hold its session; False when the server is gone."""
    told, fds, _flags, _address = socket.recv_fds(line, 16, 1)
    if not told or not fds:
        return False
    os.set_inheritable(fds[0], False)  # noqa: FBT003 -- the standard library's signature
    os.set_blocking(fds[0], True)
    try:
        session.converse(session.Wire(fds[0], fds[0]))
    finally:
        os.close(fds[0])
    try:
        line.sendall(DONE)
    except OSError:
        return False
    return True


def serve(path: str) -> int:
    """Listen until standard input closes; gives the exit code."""
    server = Server(path)
    # A terminal's Ctrl-C is for whoever started us; our end is the end of our standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        server.run()
    finally:
        server.close()
    return 0


def _bound(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _remove(path)
    before = os.umask(0o177)
    if len(os.fsencode(path)) > ADDRESS_MAX:
        os.chdir(os.path.dirname(path))
        listener.bind(os.path.basename(path))
    else:
        listener.bind(path)
    os.umask(before)
    os.chdir("/")
    listener.listen(BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    return listener


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _reap() -> None:
    """Collect the children that ended: sessions of a server, daemons of a child."""
    while True:
        try:
            found, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if found == 0:
            return
