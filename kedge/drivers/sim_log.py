"""The memory of simulated hosts in a file, so that they outlive a worker and are shared by several.

One JSON line per change, appended under a lock on the file. Whoever takes the lock first reads what
others appended: a worker that was stopped and goes on sees the fence as it is now, as on a real
host. The lines survive the death of a process, not of the machine.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import Any

from kedge.drivers.files import store_error
from kedge.drivers.owners import make_folder
from kedge.drivers.sim_host import Counts, Record, SimHost, State

_FACTS = (
    "token", "run", "state", "counts", "releases", "generations", "snapshots", "runs", "captured",
    "pids", "begun", "begun_run", "first",
    "replaced", "restored", "taken", "anew", "ran",
)  # fmt: skip


class SimLog(AbstractContextManager[None]):
    """The file at ``path``, entered for one turn at a time; ``host`` gives the simulated host of a key, made when it is new."""

    def __init__(self, path: Path, host: Callable[[str], SimHost]) -> None:
        make_folder(path.parent)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._host = host
        self._read_to = 0

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def __enter__(self) -> None:
        """Takes the lock; everything that others wrote has been taken in when it returns.

        Nothing awaits inside: a turn is one act of a host, microseconds long.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._catch_up()
        except BaseException:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            raise

    def __exit__(self, *_: object) -> None:
        """Lets the lock go."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, host: SimHost, before: tuple[Any, ...], key: str = "") -> None:
        """Appends what changed on ``host`` since ``before`` and, with ``key``, its journal record.

        Called within a turn.
        """
        line: dict[str, Any] = {
            name: value
            for name, value, old in zip(_FACTS, facts(host), before, strict=True)
            if value is not old
        }
        if "first" in line and host.first[1] is host.state:
            # The reader knows the state as it is now: the key says all.
            line["begun_key"] = line.pop("first")[0]
        if key:
            record = host.journal[key]
            told = None if record.before is host.first[1] else record.before
            line["journal"] = [key, record.op, record.at, record.result, record.skipped, told]
        elif not line:
            return
        text = json.dumps({"host": host.key, **line}, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(text)
        except OSError as error:
            raise store_error("keep the simulated hosts", error) from error

    def _append(self, text: bytes) -> None:
        written = os.write(self._fd, text)
        if written < len(text):
            os.ftruncate(self._fd, self._read_to)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._read_to += written

    def _catch_up(self) -> None:
        size = os.fstat(self._fd).st_size
        if size == self._read_to:
            return
        parts = []
        while self._read_to < size:
            part = os.pread(self._fd, size - self._read_to, self._read_to)
            self._read_to += len(part)
            parts.append(part)
        text = b"".join(parts)
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            # Its writer was killed within the write and told nobody: it never happened.
            self._read_to = size - (len(text) - whole)
            os.ftruncate(self._fd, self._read_to)
        for line in text[:whole].splitlines():
            _apply(json.loads(line), self._host)


facts: Callable[[SimHost], tuple[Any, ...]] = attrgetter(*_FACTS)
"""The fields of a host that a line may have; compared by identity, see :class:`SimHost`."""


def _apply(line: dict[str, Any], find: Callable[[str], SimHost]) -> None:
    host = find(line.pop("host"))
    journal = line.pop("journal", None)
    begun_key = line.pop("begun_key", None)
    for name, value in line.items():
        setattr(host, name, _READ.get(name, _same)(value))
    if begun_key is not None:
        host.first = (begun_key, host.state)
    if journal is not None:
        key, op, at, result, skipped, told = journal
        before = host.first[1] if told is None else _state(told)
        host.journal[key] = Record(op, before, host.state, at, result, skipped)


def _same(value: Any) -> Any:
    return value


def _state(value: list[Any]) -> State:
    state = State(*value)
    return state._replace(data=tuple(state.data))


_READ: dict[str, Callable[[Any], Any]] = {
    "state": _state,
    "first": lambda value: (value[0], _state(value[1])),
    "token": tuple,
    "counts": lambda value: Counts(*value),
    "releases": tuple,
    "replaced": tuple,
    "ran": lambda value: tuple(tuple(one) for one in value),
    "taken": lambda value: {name: tuple(told) for name, told in value.items()},
    "snapshots": lambda value: {name: tuple(data) for name, data in value.items()},
}
