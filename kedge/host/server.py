"""A server on a Unix socket: it forks one child per connection, and each child is one session.

Single-threaded, so that forking is safe. What sessions need is imported before the first fork. It
ends when its standard input closes: then whoever started it is gone. Sessions go on to their own end.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from kedge.host import session

BACKLOG = 512
# A Unix socket's address holds 107 bytes; a longer path is bound by its name from its directory.
ADDRESS_MAX = 100


def serve(path: str) -> int:
    """Listen until standard input closes; gives the exit code."""
    listener = _bound(path)
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    # A terminal's Ctrl-C is for whoever started us; our end is the end of our standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    poller = select.poll()
    for fd in (listener.fileno(), woken, 0):
        poller.register(fd, select.POLLIN)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    try:
        while True:
            for fd, _event in poller.poll():
                if fd == woken:
                    _reap(woken)
                elif fd == listener.fileno():
                    _accept(listener)
                elif not os.read(0, 4096):
                    return 0
    finally:
        listener.close()
        _remove(path)


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


def _reap(woken: int) -> None:
    try:
        os.read(woken, 4096)
    except BlockingIOError:
        return
    while True:
        try:
            found, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if found == 0:
            return


def _accept(listener: socket.socket) -> None:
    try:
        one, _address = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return
    try:
        pid = os.fork()
    except OSError:
        # No more processes now: the caller sees a closed connection and tries again.
        one.close()
        return
    if pid == 0:
        _child(listener, one)
    one.close()


def _child(listener: socket.socket, one: socket.socket) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        one.setblocking(True)  # noqa: FBT003 -- the standard library's signature
        fd = one.detach()
        code = session.converse(session.Wire(fd, fd))
    finally:
        os._exit(code)
