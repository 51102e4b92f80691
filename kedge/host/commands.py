"""Run a command with a deadline and a bounded output; used by command probes and by `run`.

The argv is a list, never shell text. The command gets a session of its own, so that a time-out ends
all of what it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

from kedge.host import family, files, launch, locks, observe, processes, users
from kedge.host.layout import Node
from kedge.host.users import User

OUTPUT_MAX = 1 << 20
KILL_AFTER = 2.0
# What may still be in the pipe of a command that ended. What it left running may write there without end.
PIPE_MAX = 1 << 20

# rest(seconds, descriptor) -> whether the descriptor is ready
Rest = Callable[[float, int], bool]


class Ended(NamedTuple):
    """How a command ended. `exit` is None when it ran out of time; negative for a signal."""

    exit: Optional[int]
    output: bytes
    cut: bool
    seconds: float


class Command(subprocess.Popen[bytes]):
    """A command that runs. Everything it starts has its mark."""

    mark = b""


def user_of(node: Node) -> User:
    """As whom commands of a runbook run on this node: as its daemon does."""
    generation = observe.current_config(node)
    kept = files.read_json(node.config(generation) / "service.json") if generation else None
    return users.of_spec(node, kept if isinstance(kept, dict) else None)


def spawn(
    node: Node,
    spec: Dict[str, Any],
    user: Optional[User] = None,
    *,
    key: str = "",
    errors: int = subprocess.STDOUT,
) -> Command:
    """Start the command of a spec with argv, env and cwd; its output comes through one pipe, `errors` says where the
    rest goes. Without a `user` it runs as kedge does here: what reads secrets. What it starts is known by `key`.
    """
    digest = observe.current_release(node)
    cwd = os.path.join(node.root, spec["cwd"] or ".")
    env = launch.environment(user.home if user else os.environ.get("HOME"), spec["env"])
    env[family.COMMAND] = mark = family.command_mark(node, key or os.urandom(16).hex())
    release = str(node.release(digest)) if digest else None
    argv: List[str] = list(spec["argv"])
    program = launch.program_of(argv[0], release, cwd, env["PATH"])
    made = Command(
        argv,
        executable=program,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
        # The session is one thread: nothing of it can hold a lock that the child would wait for.
        preexec_fn=(lambda: users.become(user)) if user and user.drops else None,
    )
    made.mark = f"{family.COMMAND}={mark}".encode()
    return made


def follow(one: Command, timeout: float, keep: int, rest: Rest, *, tail: bool) -> Ended:
    """Read the output until the command ends or its time is over; keep `keep` bytes of an end of it.

    A command that started something which keeps the pipe open is over when it itself is over.
    """
    begun = time.monotonic()
    kept, cut, out = b"", False, one.stdout.fileno() if one.stdout else -1
    os.set_blocking(out, False)
    pauses = locks.steps(0.001, 0.05)
    open_end, late, left = True, False, PIPE_MAX
    while True:
        code = one.poll()
        part = None
        if open_end and (code is not None or rest(next(pauses), out)):
            part = _read(out)
            open_end = part != b""
            kept += part or b""
            if part:
                pauses = locks.steps(0.001, 0.05)
            if len(kept) > keep:
                kept, cut = (kept[-keep:] if keep else b"") if tail else kept[:keep], True
        elif code is None:
            rest(next(pauses), -1)
        if code is not None:
            left -= len(part or b"")
            if not part or left <= 0:
                break
        elif time.monotonic() - begun > timeout:
            late = True
            end(one, rest)
            timeout = float("inf")
    if one.stdout:
        one.stdout.close()
    seconds = round(time.monotonic() - begun, 4)
    return Ended(None if late else one.returncode, kept, cut, seconds)


def _read(out: int) -> Optional[bytes]:
    """Some output; None when there is none now, empty at its end."""
    try:
        return os.read(out, 1 << 16)
    except BlockingIOError:
        return None


def end(one: Command, rest: Rest) -> None:
    """End a command and all that it started, in whatever session: SIGTERM, two seconds, SIGKILL."""
    signs = family.Signs(one.mark, processes.of_pid(one.pid))
    for number in (signal.SIGTERM, signal.SIGKILL):
        sent: Set[processes.Incarnation] = set()
        until = time.monotonic() + KILL_AFTER
        while time.monotonic() < until:
            alive = family.surely(signs).sure
            one.poll()
            if not alive:
                return
            for each in set(alive) - sent:
                processes.send(each, number)
            sent |= set(alive)
            rest(0.01, -1)
