"""Fork and execute a daemon that outlives everything of kedge.

Between fork and exec the child itself writes down who it is, still holding `op.lock`: whoever holds that lock
sees either no start at all or the one that happened. Rule 4 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

from kedge.host import cgroups, files, places, points, processes, users
from kedge.host.errors import ServiceDied
from kedge.host.places import Place
from kedge.host.processes import Incarnation
from kedge.host.users import User

KEEP_LOGS = 5
READY = b"r"
# A daemon gets this and what its configuration says, nothing of whoever started kedge. Releases are
# immutable, so a Python daemon must not write its caches beside its code.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Launch(NamedTuple):
    """What to execute, and where what is known about it is kept."""

    program: str
    argv: List[str]
    env: Dict[str, str]
    cwd: str
    log: Place
    service: Place
    kept: Dict[str, Any]
    user: User
    cgroup: Optional[str]


def environment(home: Optional[str], more: Dict[str, str]) -> Dict[str, str]:
    """The environment of what kedge starts; `home` is that of the user it runs as."""
    return {**ENVIRONMENT, **({"HOME": home} if home else {}), **more}


def program_of(argv0: str, release: Optional[str], cwd: str, path: str) -> str:
    """The file an argv starts with.

    With a slash: in the release, else below `cwd`, else as it stands. Without: on PATH. What is
    found nowhere is given back as it is, for exec to say so.
    """
    if argv0.startswith("/"):
        return argv0
    if "/" in argv0:
        tops = [release] if release else []
        candidates = [f"{top}/{argv0}" for top in [*tops, cwd]]
    else:
        candidates = [f"{top}/{argv0}" for top in path.split(":") if top.startswith("/")]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return candidates[0] if "/" in argv0 else argv0


def rotate(log: Place) -> None:
    """Keep the last few logs; the one that begins now is empty."""
    if not places.exists(log):
        return
    older = [log, *(log.beside(f"{log.name}.{number}") for number in range(1, KEEP_LOGS + 1))]
    for number in range(KEEP_LOGS - 1, -1, -1):
        if places.exists(older[number]):
            places.rename(older[number], older[number + 1])


def launch(what: Launch) -> Incarnation:
    """Start the daemon; returns when it executes its program.

    ServiceDied when the program cannot be executed. The daemon stays our child until this process
    ends, so its exit status can be told as long.
    """
    ready = _prepare(what)
    reading, writing = os.pipe()
    try:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(what, ready, writing)
    finally:
        os.close(ready.nowhere)
        os.close(ready.out)
    os.close(writing)
    points.reach("start.forked")
    try:
        said = b""
        for part in iter(lambda: os.read(reading, 256), b""):
            said += part
    finally:
        os.close(reading)
    kept = processes.told(files.read_json(what.service))
    if said != READY or kept is None or kept.pid != pid:
        os.waitpid(pid, 0)
        text = said[len(READY) :].decode("utf-8", "replace") or "ended before it was executed"
        raise ServiceDied(f"{what.program}: {text}", {"argv": what.argv[:8], "log": ""})
    return kept


class Ready(NamedTuple):
    """What the child needs, made before the fork: every page a child touches is copied for it."""

    nowhere: int
    out: int
    ignored: List[int]
    head: bytes


def _prepare(what: Launch) -> Ready:
    _keep_from_daemons()
    rotate(what.log)
    out = files.opened(what.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    if what.user.drops:
        # A daemon may open its own /dev/stderr once more.
        os.fchown(out, what.user.uid, what.user.gid)
    return Ready(
        nowhere=os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC),
        out=out,
        ignored=ignored_signals(),
        head=files.to_json(what.kept)[:-1],
    )


def _child(what: Launch, ready: Ready, writing: int) -> None:
    """The forked child: never returns."""
    said = READY
    try:
        gc.disable()
        os.setsid()
        one = processes.of_pid(os.getpid())
        if one is None:
            os._exit(127)
        os.dup2(ready.nowhere, 0)
        os.dup2(ready.out, 1)
        os.dup2(ready.out, 2)
        inside = json.dumps(cgroups.join(what.cgroup))
        points.reach("start.before-record")
        who = f',"at":{time.time()!r},"boot":"{one.boot}","cgroup":{inside},"pid":{one.pid},"start":{one.start}}}'
        files.write_atomic(what.service, ready.head + who.encode(), sync_name=False)
        points.reach("start.between-fork-and-exec")
        os.umask(0o022)
        plain_signals(ready.ignored)
        users.become(what.user)
        _stand(what)
        os.write(writing, READY)
        said = b""
        os.execve(what.program, what.argv, what.env)  # noqa: S606 -- that there is no shell is the point
    except OSError as error:
        text = error.strerror or str(error)
        if error.errno == errno.ENOEXEC:
            text += " (not a program of this machine, or a script without `#!`)"
        os.write(writing, said + text.encode())
    except BaseException as error:  # noqa: BLE001 -- a child must never return into its parent's code
        os.write(writing, said + repr(error).encode()[:200])
    finally:
        os._exit(127)


def _stand(what: Launch) -> None:
    """Go to the daemon's folder as its user; the error names the folder that is closed to it."""
    try:
        os.chdir(what.cwd)
    except PermissionError as error:
        above = users.blocked_here(what.cwd) or what.cwd
        raise OSError(error.errno, users.unreachable(what.user, what.cwd, above).message) from error


def _keep_from_daemons() -> None:
    """Of all that is open here a daemon gets its three streams and nothing else: the rest is closed by exec."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)  # noqa: FBT003 -- the library's signature
            except OSError:
                continue


def ignored_signals() -> List[int]:
    """The signals that are ignored here: Python ignores some, and exec would keep that."""
    every = range(1, signal.NSIG)
    return [number for number in every if signal.getsignal(number) == signal.SIG_IGN]


def plain_signals(ignored: List[int]) -> None:
    """Give a program the signals a fresh login has, before it is executed."""
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
