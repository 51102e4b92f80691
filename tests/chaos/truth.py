"""What really happened, told by nobody of kedge: the daemons' own log, the kernel's word on renames, bytes hashed anew.

Daemons and commands append a line for each real start, signal, stop and run to a log outside every node's root;
inotify counts the renames. Nothing here imports kedge.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import signal
import struct
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DAEMON = """#!{python} -IS
import fcntl, os, signal, sys, time
node, folder, root, linger = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
truth = os.open(folder + "/truth.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
def say(what):
    os.write(truth, f"{{what}} {{node}} {version} {{os.getpid()}}\\n".encode())
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
alone = os.open(f"{{folder}}/{{node}}.alone", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say("twin")
say("start")
with open(root + "/data/ledger", "a") as ledger:
    ledger.write("{version}\\n")
signal.sigwait([signal.SIGTERM])
say("signal")
until = time.monotonic() + linger
while time.monotonic() < until:
    if signal.sigtimedwait([signal.SIGTERM], until - time.monotonic()):
        say("signal")
say("stop")
"""
COMMAND = '#!/bin/sh\necho "run $1 {version} $$" >> "$2/truth.log"\n'
HEALTH = "#!/bin/sh\nexit {code}\n"

IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_Q_OVERFLOW = 0x4000
_HEAD = struct.Struct("iIII")


def release_files(version: str, *, healthy: bool = True) -> dict[str, bytes]:
    """What a release of the counting daemon consists of."""
    python = os.path.realpath(sys.executable)
    return {
        "daemon": DAEMON.format(python=python, version=version).encode(),
        "bin/tally": COMMAND.format(version=version).encode(),
        "bin/healthy": HEALTH.format(code=0 if healthy else 1).encode(),
        "share/ballast": version.encode() * 20_000,
    }


class Line(NamedTuple):
    """One line of the log: ``start``, ``signal``, ``stop``, ``run``, ``twin``."""

    what: str
    node: str
    version: str
    pid: int


def lines(folder: Path) -> list[Line]:
    """The log so far."""
    try:
        text = (folder / "truth.log").read_text()
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        what, node, version, pid = line.split()
        found.append(Line(what, node, version, int(pid)))
    return found


def told(folder: Path, node: str) -> list[tuple[str, str]]:
    """What happened to one node, in order."""
    return [(line.what, line.version) for line in lines(folder) if line.node == node]


def story(versions: Iterable[str], *, tallied: Iterable[str] = ()) -> list[tuple[str, str]]:
    """What must have happened to a node that went through these versions, each step once.

    Commands ran right before the start of their version, or, when that never started, of the last one.
    """
    went = list(versions)
    expected: list[tuple[str, str]] = []
    tallies, before = set(tallied), ""
    for number, version in enumerate(went):
        if before:
            expected += [("signal", before), ("stop", before)]
        for tallied_one in sorted(tallies):
            if tallied_one == version or (tallied_one not in went and number == len(went) - 1):
                expected.append(("run", tallied_one))
                tallies.discard(tallied_one)
        expected.append(("start", version))
        before = version
    return expected


# -- processes -----------------------------------------------------------------------------------------------------


def argv_of(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone, a zombie, or a thread of the kernel."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def everyone() -> Iterator[tuple[int, list[str]]]:
    """Every process with its command line."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            argv = argv_of(int(place.name))
            if argv:
                yield int(place.name), argv


def daemons(folder: Path) -> dict[int, str]:
    """The daemons of this log that live now, with their nodes."""
    place = str(folder)
    return {
        pid: argv[argv.index(place) - 1]
        for pid, argv in everyone()
        if place in argv and any(part.endswith("/daemon") for part in argv)
    }


def end_daemons(folder: Path) -> None:
    """For the end of a test: nothing of it stays."""
    for pid in daemons(folder):
        end(pid)


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_gone(pids: Iterable[int], seconds: float = 10) -> None:
    """Wait until none of these processes does anything any more."""
    until = time.monotonic() + seconds
    left = set(pids)
    while left:
        left = {pid for pid in left if argv_of(pid)}
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.005)


# -- renames -------------------------------------------------------------------------------------------------------


class Renames:
    """The kernel's count of renames in the folders of nodes, from its making on."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._folders: dict[int, tuple[str, str]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        for node, root in roots.items():
            for below in ("", "releases/", "config/", "snapshots/"):
                self._watch(node, root, below)

    def _watch(self, node: str, root: Path, below: str) -> None:
        path = os.fsencode(root / below)
        # Both ends of a rename: the kernel puts equal events into one, when nothing came in between.
        found = self._libc.inotify_add_watch(self._fd, path, IN_MOVED_FROM | IN_MOVED_TO)
        if found < 0:
            raise OSError(ctypes.get_errno(), f"inotify {root / below}")
        self._folders[found] = (node, below)

    def count(self) -> dict[str, dict[str, int]]:
        """By node: how often something was renamed onto each name (``current``, ``releases/<digest>``, …)."""
        while True:
            try:
                content = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            self._take(content)
        counted: dict[str, dict[str, int]] = {node: {} for node, _ in self._folders.values()}
        for (node, name), number in self._count.items():
            if number:
                counted[node][name] = number
        return counted

    def _take(self, content: bytes) -> None:
        at = 0
        while at < len(content):
            watched, mask, _, length = _HEAD.unpack_from(content, at)
            name = content[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0").decode()
            at += _HEAD.size + length
            assert not mask & IN_Q_OVERFLOW, "the kernel lost count"
            node, below = self._folders[watched]
            self._count[node, below + name] += bool(mask & IN_MOVED_TO)

    def close(self) -> None:
        """No more counting."""
        os.close(self._fd)


# -- what lies on the disk -------------------------------------------------------------------------------------------


def assert_release(root: Path, archive: Path) -> None:
    """``current`` points to the release of this archive, which holds these very bytes and nothing else."""
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert (root / "current").readlink() == Path("releases") / digest
    wanted = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            body = tar.extractfile(member)
            if body is not None:
                wanted[member.name] = hashlib.sha256(body.read()).hexdigest()
    top = root / "releases" / digest
    found = {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in top.rglob("*")
        if not path.is_dir()
    }
    assert found == wanted


def journal(root: Path) -> list[dict[str, object]]:
    """The records of a node's journal: whole lines, each key once, each line naming the hash of the one before."""
    text = (root / ".kedge" / "journal").read_bytes()
    assert text.endswith(b"\n"), "the last line is torn"
    before = "0" * 64
    records: list[dict[str, object]] = []
    for line in text.split(b"\n")[:-1]:
        record = json.loads(line)
        assert record["prev"] == before, f"the chain is broken at line {len(records) + 1}"
        before = hashlib.sha256(line).hexdigest()
        records.append(record)
    twice = [key for key, number in Counter(r["key"] for r in records).items() if number > 1]
    assert not twice, f"recorded twice: {twice}"
    return records


def leftovers(root: Path) -> list[str]:
    """What something that was interrupted left behind and nobody took away."""
    return [
        str(path.relative_to(root))
        for top in ("releases", "config", "snapshots")
        for path in (root / top).iterdir()
        if path.name.startswith(".")
    ] + [
        str(path.relative_to(root))
        for path in (root / ".kedge").iterdir()
        if path.is_dir() and path.name not in {"runs", "manifests", "written"}
    ]


def fingerprint(root: Path) -> dict[str, str]:
    """Every byte of a node but its locks': two equal fingerprints say that nothing was done to it meanwhile."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.suffix == ".lock":
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
