"""Who a process is: its number, its start time and the boot it belongs to.

A number alone is used again by the system; the three together are not. A process in state Z or X whose
threads are all gone is dead: in a container nobody may ever collect it. Times: `start` in clock ticks since boot, as in field
22 of proc(5) stat.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

TICKS = os.sysconf("SC_CLK_TCK")
_boot = ""


class Incarnation(NamedTuple):
    """One life of one process."""

    pid: int
    start: int
    boot: str

    def wire(self) -> Dict[str, Any]:
        """As kept in files."""
        return {"pid": self.pid, "start": self.start, "boot": self.boot}

    def alive(self) -> bool:
        """Whether this very process still runs."""
        global _held  # noqa: PLW0603 -- the daemon that was asked for last, with a descriptor that means it alone
        if _held is not None and _held[0] == self:
            return not ended(_held[1])
        if self.boot != boot_id():
            return False
        fd = _opened(self.pid)
        # Looked at after the descriptor was opened: if the start fits now, the descriptor is this process's.
        if start_of(self.pid) != self.start:
            _close(fd)
            return False
        if fd >= 0:
            _close(_held[1] if _held is not None else -1)
            _held = (self, fd)
        return True

    def age(self) -> float:
        """Seconds since it started, suspended time included."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / TICKS)


_held: Optional[Tuple[Incarnation, int]] = None


def _opened(pid: int) -> int:
    """A descriptor of a process, or -1 where there is none."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def boot_id() -> str:
    """The kernel's name of this boot."""
    global _boot  # noqa: PLW0603 -- it cannot change while a process lives
    if not _boot:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as told:
            _boot = told.read().strip()
    return _boot


def fields_of(pid: int) -> Optional[List[bytes]]:
    """What proc(5) stat tells of a living process from its state on; None when there is none of that number."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 4096)
    except OSError:
        return None
    finally:
        os.close(fd)
    # The name in parentheses may hold spaces and parentheses itself: count from its end.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in (b"X", b"x"):
        return None
    # Of a daemon that ends the first thread may be gone while others still hold its data and its ports.
    if fields[0] == b"Z" and int(fields[17]) <= 1:
        return None
    return fields


def start_of(pid: int) -> Optional[int]:
    """The start time of a living process, or None when there is none of that number."""
    fields = fields_of(pid)
    return None if fields is None else int(fields[19])


def program_name(pid: int) -> str:
    """The name of a process, plain and short; a process may give itself any."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as told:
            name = told.read(64).decode("utf-8", "replace").strip()
    except OSError:
        return "gone"
    return "".join(one if one.isascii() and one.isprintable() else "?" for one in name) or "?"


def of_pid(pid: int) -> Optional[Incarnation]:
    """The living process of that number."""
    start = start_of(pid)
    return None if start is None else Incarnation(pid, start, boot_id())


def known(kept: Any) -> Optional[Incarnation]:
    """The living process that a file tells of, or None: not there, not readable, dead, other boot."""
    found = told(kept)
    return found if found is not None and found.alive() else None


def told(kept: Any) -> Optional[Incarnation]:
    """The process that a file tells of, alive or not."""
    if not isinstance(kept, dict):
        return None
    pid, start, boot = kept.get("pid"), kept.get("start"), kept.get("boot")
    if not isinstance(pid, int) or not isinstance(start, int) or not isinstance(boot, str):
        return None
    return Incarnation(pid, start, boot)


def watch(one: Incarnation) -> int:
    """A descriptor that becomes readable when the process ends, or -1 when there is none.

    The caller closes it. -1 means: dead already, or the kernel cannot watch (then poll `alive`).
    """
    fd = _opened(one.pid)
    if fd >= 0 and one.alive():
        return fd
    _close(fd)
    return -1


def send(one: Incarnation, number: int) -> bool:
    """Send one signal to this very process; False when it is gone already.

    Through a pidfd where the kernel has them: the number cannot become somebody else's in between.
    """
    fd = watch(one)
    try:
        if fd >= 0:
            signal.pidfd_send_signal(fd, number)
        elif one.alive():
            os.kill(one.pid, number)
        else:
            return False
    except ProcessLookupError:
        return False
    finally:
        _close(fd)
    return True


def ended(fd: int) -> bool:
    """Whether the process behind a watching descriptor has ended."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def exit_status(pid: int) -> Optional[int]:
    """The exit status (negative: signal) of a child of ours that ended; None when unknown."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if found == 0:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def executable(pid: int) -> str:
    """The file a process executes, or nothing when it cannot be seen."""
    try:
        found = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
    return found[: -len(" (deleted)")] if found.endswith(" (deleted)") else found
