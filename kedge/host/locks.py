"""Locks on files that wait with patience, and take a stuck older session out of the way.

A session that was stopped (SIGSTOP, a frozen container) keeps its locks. Killing a session is safe at
every instant, so a session with a newer token kills an older one that still stands in its way after
`PATIENCE` seconds; the runner of a command is never killed, its end is waited for.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from typing import Any, Callable, Iterator, List, Optional

from kedge.host import files, places, processes
from kedge.host.errors import Busy
from kedge.host.layout import Token
from kedge.host.places import Place

PATIENCE = 2.0
ROOM = 2048


class Lock:
    """One flock on one file. The kernel lets go of it when the last copy of the descriptor closes.

    It is never unlocked by a call: a forked child that still holds it would lose it too.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.fd = -1

    def open(self) -> None:
        """Open the file, not yet locked."""
        self.fd = files.opened(self.place, os.O_RDWR | os.O_CREAT)

    def attempt(self, mode: int) -> bool:
        """Take the lock if it is free now."""
        try:
            fcntl.flock(self.fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def say(self, who: Any) -> None:
        """Write who holds it, for those who wait. Not durable: it means nothing after a crash."""
        # Padded, never truncated: a truncated file is written out by some file systems at once.
        os.pwrite(self.fd, json.dumps(who).encode().ljust(ROOM), 0)

    def close(self) -> None:
        """Let this process's copy go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def steps(first: float = 0.001, last: float = 0.05) -> Iterator[float]:
    """Pauses in seconds that double from `first` to `last`: short waits are not charged a long one."""
    pause = first
    while True:
        yield pause
        pause = min(pause * 2, last)


def acquire(
    lock: Lock,
    mode: int,
    limit: float,
    tick: Callable[[], None],
    clear: Callable[[], None],
) -> None:
    """Take a lock within `limit` seconds or raise Busy.

    `tick` is called at each turn (it may raise Fenced); `clear` is called about once a second after
    `PATIENCE`, to take stuck older sessions out of the way.
    """
    if lock.attempt(mode):
        return
    begun = time.monotonic()
    clearing = begun + PATIENCE
    for pause in steps():
        tick()
        time.sleep(pause)
        if lock.attempt(mode):
            return
        now = time.monotonic()
        if now >= clearing:
            clear()
            clearing = now + 1.0
        if now - begun >= limit:
            raise Busy(f"the node is held by another session ({limit:g} s waited)", held_by(lock))


def held_by(lock: Lock) -> Any:
    """What the holder wrote about itself."""
    try:
        told = json.loads(os.pread(lock.fd, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def holders(place: Place) -> List[int]:
    """The processes that hold a flock on a file, as far as this user may see."""
    there = places.status(place)
    if there is None:
        return []
    inode = there.st_ino
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fdinfo"):
                with open(f"/proc/{name}/fdinfo/{fd}", encoding="latin-1") as told:
                    if any(f":{inode} " in line for line in told if line.startswith("lock:")):
                        found.append(int(name))
                        break
        except OSError:
            continue
    return found


def clear_older(op_lock: Place, fence_lock: Place, mine: Token) -> None:
    """Kill the sessions that hold the locks for an older token; never the runner of a command."""
    said = _read(op_lock)
    runner = said.get("runner")
    stuck = holders(op_lock) if _older(said, mine) else []
    raising = _read(fence_lock)
    for pid in holders(fence_lock):
        if pid in stuck or _older(raising, mine):
            stuck.append(pid)
    for pid in stuck:
        one = processes.of_pid(pid)
        # Asked again for each: between the look and the signal it may have gone.
        if one is None or pid in (runner, os.getpid()):
            continue
        if pid in holders(op_lock) or pid in holders(fence_lock):
            processes.send(one, signal.SIGKILL)


def _older(said: Any, mine: Token) -> bool:
    token = token_of(said.get("token"))
    return token is not None and token < mine


def _read(place: Place) -> Any:
    lock = Lock(place)
    try:
        lock.fd = files.opened(place, os.O_RDONLY)
        return held_by(lock)
    except OSError:
        return {}
    finally:
        lock.close()


def token_of(value: Any) -> Optional[Token]:
    """A token as kept in a file."""
    if isinstance(value, list) and len(value) == 3 and all(isinstance(part, int) for part in value):
        return (value[0], value[1], value[2])
    return None
