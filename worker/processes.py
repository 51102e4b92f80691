"""Detached processes that outlive whoever started them, and are found again by anyone.

A process id alone is reused by the system; the identity here is the id, the moment the kernel
started it, and the boot. Nothing is ever signalled unless all three agree.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kedge.drivers.files import open_private
from kedge.drivers.owners import make_folder

Stopped = Literal["already gone", "terminated", "killed", "still running"]
State = TypeVar("State", bound=BaseModel)

_POLL_SECONDS = 0.05


class ProcessError(Exception):
    """A detached process could not be started, found or stopped; the message says what to do."""


class ProcessIdentity(BaseModel):
    """One process of one boot. Equal values mean the very same process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: str
    """When it started, in the kernel's own words: clock ticks since boot, or a date without /proc."""
    boot: str
    """The id of the boot it belongs to; empty where the system has none."""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process started; None when it is gone or only waits to be reaped."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The name in parentheses may hold anything; the fields after the last one are fixed.
        fields = stat.rpartition(")")[2].split()
        # The first thread of a program that is killed may be gone while others still hold its ports.
        gone = fields[0] == "X" or (fields[0] == "Z" and int(fields[17]) <= 1)
        return None if gone else fields[19]
    shown = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    ).stdout.strip()
    state, _, moment = shown.partition(" ")
    return None if not moment or state.startswith("Z") else moment.strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a process that runs now, or None."""
    started = _started(pid)
    return None if started is None else ProcessIdentity(pid=pid, started=started, boot=_boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs (one that was killed and not yet reaped does not)."""
    return identity.boot == _boot_id() and _started(identity.pid) == identity.started


def start_detached(
    argv: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> ProcessIdentity:
    """Starts a program in a session of its own, in ``folder``, with its output appended to ``log``.

    It gets no standard input and no terminal, so neither a hang-up nor Ctrl-C at the starter
    reaches it. Raises ``ProcessError`` when the program cannot be started.
    """
    make_folder(log.parent)
    with open_private(log, os.O_APPEND) as output:
        try:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
                umask=0o077,
                env=None if environment is None else dict(environment),
            )
        except OSError as error:
            raise ProcessError(f"cannot start {argv[0]}: {error.strerror or error}") from error
    identity = identify(child.pid)
    # Reaps the child should it end before its starter; otherwise the thread ends with the starter.
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    if identity is None:
        raise ProcessError(f"{argv[0]} ended at once; its output: {tail(log)}")
    return identity


def send(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signals this very process; False when it is gone."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):
        # No pidfd on this system: a reuse of the id between the check and the kill stays possible.
        if not is_alive(identity):
            return False
        os.kill(identity.pid, number)
        return True
    try:
        # The descriptor holds on to one process, so the check cannot go stale before the signal.
        if not is_alive(identity):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(identity: ProcessIdentity, seconds: float) -> bool:
    """Waits until the process has ended; False when it has not within ``seconds``."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(AttributeError, OSError):
        descriptor = os.pidfd_open(identity.pid)
        try:
            if is_alive(identity):
                ended = select.poll()
                ended.register(descriptor, select.POLLIN)
                ended.poll(max(0, int(seconds * 1000)))
        finally:
            os.close(descriptor)
    while is_alive(identity):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def stop(identity: ProcessIdentity, *, grace: float, kill: bool) -> Stopped:
    """Asks with one SIGTERM and waits ``grace`` seconds for the end.

    ``kill`` allows SIGKILL after that: only for kedge's own processes, which keep nothing in
    memory that is not also on disk. Without it the process is left alone and reported.
    """
    if not send(identity, signal.SIGTERM):
        return "already gone"
    if wait_gone(identity, grace):
        return "terminated"
    if not kill:
        return "still running"
    send(identity, signal.SIGKILL)
    return "killed" if wait_gone(identity, 10) else "still running"


def write_state(path: Path, state: BaseModel) -> None:
    """Writes a state file, complete or not at all, durable on return."""
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open_private(draft, os.O_EXCL) as file:
        file.write(f"{state.model_dump_json(indent=2)}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_state(path: Path, kind: type[State]) -> State | None:
    """The state in a file; None when there is none, or none that this version understands."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message; a phrase of its own when there are none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(nothing)"


def trim_log(path: Path, limit: int = 20_000_000) -> None:
    """Puts a log over ``limit`` bytes aside as ``<name>.1``, in place of the one before."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > limit:
            path.replace(path.with_name(path.name + ".1"))


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float, what: str) -> Iterator[None]:
    """Holds a lock between processes; the kernel frees it when its holder dies.

    Raises ``ProcessError`` when another holds it for longer than ``seconds``; ``what`` names the
    work in that sentence.
    """
    make_folder(path.parent)
    deadline = time.monotonic() + seconds
    with open_private(path, os.O_APPEND) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ProcessError(
                        f"another process has been {what} for more than {seconds:.0f} s; "
                        "wait for it, or end it, and try again"
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
