"""Which processes belong to a node's daemon: the first one, and everything that came of it.

A process belongs to the daemon when it is in the daemon's cgroup, carries its mark in the environment it was
executed with, is in its session or process group, runs under a user that is this node's alone, or descends from
one of these. A process group, a session and a number may be used again by the system: what only a number says
is named and never signalled. Rule 4 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from kedge.host import cgroups, files, places, processes, users
from kedge.host.layout import Node
from kedge.host.processes import Incarnation

# In the environment of a daemon, and of a command that kedge runs.
DAEMON = "KEDGE_DAEMON"
COMMAND = "KEDGE_COMMAND"
SHOWN = 4
LOOKS_AGAIN = (0.002, 0.01)


class Look(NamedTuple):
    """The processes that were there at one look. `unsure` are those that only a number connects with the daemon."""

    sure: Tuple[Incarnation, ...]
    unsure: Tuple[Incarnation, ...]

    @property
    def every(self) -> Tuple[Incarnation, ...]:
        """All of them."""
        return self.sure + self.unsure


class Signs(NamedTuple):
    """By what the processes of a daemon, or of a command, are known."""

    mark: bytes
    first: Optional[Incarnation] = None
    cgroup: Optional[str] = None
    user: Optional[int] = None
    known: Tuple[Incarnation, ...] = ()


class _Seen(NamedTuple):
    """One line of the system's table of processes."""

    parent: int
    group: int
    session: int
    start: int


def mark_of(node: Node) -> str:
    """The mark of this node's daemons. A copy of the root elsewhere has another one."""
    kept = files.read_json(node.identity)
    status = places.status(node.own)
    place = [status.st_dev, status.st_ino] if status is not None else []
    if isinstance(kept, dict) and kept.get("place") == place and isinstance(kept.get("id"), str):
        return str(kept["id"])
    made = {"id": hashlib.sha256(os.urandom(32)).hexdigest()[:32], "place": place}
    files.write_atomic(node.identity, files.to_json(made))
    return str(made["id"])


def command_mark(node: Node, key: str) -> str:
    """The mark of the command that is executed for a key."""
    return hashlib.sha256(f"{mark_of(node)}\n{key}".encode()).hexdigest()[:32]


def of_daemon(node: Node) -> Look:
    """Everything that lives of any start of this node."""
    kept = files.read_json(node.service)
    kept = kept if isinstance(kept, dict) else {}
    stopping = files.read_json(node.stopping)
    first = processes.told(kept)
    return surely(
        Signs(
            mark=f"{DAEMON}={mark_of(node)}".encode(),
            first=first,
            cgroup=kept.get("cgroup") if first and first.boot == processes.boot_id() else None,
            user=users.own_uid(node),
            known=known_of(stopping),
        )
    )


def of_command(node: Node, key: str, first: Optional[Incarnation]) -> Look:
    """Everything that lives of the command that was executed for a key."""
    return surely(Signs(mark=f"{COMMAND}={command_mark(node, key)}".encode(), first=first))


def known_of(stopping: object) -> Tuple[Incarnation, ...]:
    """The processes that a stop saw while the daemon's first one lived: they are the daemon's for ever."""
    if not isinstance(stopping, dict) or stopping.get("boot") != processes.boot_id():
        return ()
    boot = stopping["boot"]
    return tuple(
        Incarnation(one[0], one[1], boot)
        for one in stopping.get("family") or ()
        if isinstance(one, list) and len(one) == 2 and all(isinstance(part, int) for part in one)
    )


def surely(signs: Signs) -> Look:
    """Look until somebody is there, or nobody was at several looks.

    The table is read line by line: a process may be made behind the place where one is reading, by one that ends before
    it is come to.
    """
    found = look(signs)
    for pause in LOOKS_AGAIN:
        if found.every:
            break
        time.sleep(pause)
        found = look(signs)
    return found


def look(signs: Signs) -> Look:
    """Look through the system's processes, once."""
    seen = _table()
    boot = processes.boot_id()
    sure = {pid for pid in seen if _carries(pid, signs.mark)}
    if signs.cgroup:
        sure |= seen.keys() & cgroups.members(signs.cgroup)
    if signs.user is not None:
        sure |= {pid for pid in seen if _user_of(pid) == signs.user}
    sure |= {one.pid for one in signs.known if _same(seen.get(one.pid), one, boot)}
    first = signs.first
    unsure: Set[int] = set()
    if first is not None and first.boot == boot:
        numbered = {
            pid
            for pid, one in seen.items()
            if first.pid in (one.session, one.group) and one.start >= first.start
        }
        if _same(seen.get(first.pid), first, boot):
            sure |= numbered | {first.pid}
        elif first.pid not in seen:
            # The first one is gone. Its number is not used again while its session lives; but a number that
            # was used again may have had a session too, whose first process is gone as well.
            unsure = numbered
    sure = _with_children(sure, seen) - {os.getpid()}
    return Look(_lives(sure, seen, boot), _lives(unsure - sure - {os.getpid()}, seen, boot))


def _same(found: Optional[_Seen], one: Incarnation, boot: str) -> bool:
    return found is not None and found.start == one.start and one.boot == boot


def _lives(pids: Iterable[int], seen: Dict[int, _Seen], boot: str) -> Tuple[Incarnation, ...]:
    return tuple(Incarnation(pid, seen[pid].start, boot) for pid in sorted(pids))


def _with_children(pids: Set[int], seen: Dict[int, _Seen]) -> Set[int]:
    found = set(pids)
    while True:
        more = {pid for pid, one in seen.items() if one.parent in found} - found
        if not more:
            return found
        found |= more


def _table() -> Dict[int, _Seen]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = processes.fields_of(int(name))
            # Children of 2 are the kernel's own.
            if fields is not None and fields[1] != b"2":
                numbers = (int(fields[at]) for at in (1, 2, 3, 19))
                found[int(name)] = _Seen(*numbers)
    return found


def _carries(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as told:
            text = told.read(1 << 21)
    except OSError:
        return False
    return mark in text and mark in text.split(b"\0")


def _user_of(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def named(found: Iterable[Incarnation]) -> str:
    """Processes as a person looks for them: number and program."""
    every = list(found)
    words = [f"pid {one.pid} ({processes.program_name(one.pid)})" for one in every[:SHOWN]]
    if len(every) > SHOWN:
        words.append(f"{len(every) - SHOWN} more")
    return ", ".join(words)


def listed(found: Iterable[Incarnation]) -> List[Dict[str, object]]:
    """Processes as an error's detail."""
    return [
        {"pid": one.pid, "program": processes.program_name(one.pid)} for one in list(found)[:32]
    ]


def to_keep(found: Iterable[Incarnation]) -> List[List[int]]:
    """Processes as a file keeps them; as many as fit into a small one."""
    return [[one.pid, one.start] for one in list(found)[:64]]
