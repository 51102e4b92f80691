"""What moving nodes costs without kedge: a plain asyncio script that does the same to each host and remembers nothing.

It verifies the archive's digest, unpacks it, stops the daemon, switches the symlink, writes the configuration, starts
the daemon and looks whether it lives. No journal, no fence, no fsync, no second look: when it is killed, nobody
knows where it was. It is written to be fast: the ruler must not be soft.

Run as ``python -m bench.bare``: one JSON line on standard input says what to do, one on standard output how long it
took.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from kedge.model.base import Frozen

PAUSE = 0.2
"""Seconds between two looks at a daemon that has to live for a while."""


class Work(Frozen):
    """What to do: bring the nodes below ``folder`` to one release, ``at_once`` at a time."""

    folder: str
    nodes: tuple[str, ...]
    archive: str
    digest: str
    version: str
    at_once: int
    healthy_for: float


async def move(work: Work, node: str) -> None:
    """One node, whether or not it has a release yet."""
    root = Path(work.folder) / node
    stage(work, root)
    await stop(root / "pid")
    daemon = begin(work, root)
    until = time.monotonic() + work.healthy_for
    while True:
        if daemon.poll() is not None:
            raise RuntimeError(f"{node}: the daemon ended with {daemon.returncode}")
        left = until - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(left, PAUSE))


def stage(work: Work, root: Path) -> None:
    """The archive, verified and unpacked. Blocking, like all of its file work: handing it over costs more."""
    release = root / "releases" / work.digest
    content = Path(work.archive).read_bytes()
    if hashlib.sha256(content).hexdigest() != work.digest:
        raise RuntimeError(f"{work.archive} is not what was promised")
    release.mkdir(parents=True, exist_ok=True)
    with tarfile.open(work.archive) as tar:
        tar.extractall(release)


def begin(work: Work, root: Path) -> subprocess.Popen[bytes]:
    """The symlink switched, the configuration written, the daemon started."""
    link = root / "current.new"
    link.symlink_to(f"releases/{work.digest}")
    link.rename(root / "current")
    (root / "daemon.conf").write_text(f"name = {root.name}\nrelease = {work.version}\n")
    with (root / "log").open("ab") as log:
        daemon = subprocess.Popen(
            [str(root / "current" / "daemon")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            start_new_session=True,
        )
    (root / "pid").write_text(str(daemon.pid))
    return daemon


def pid_in(file: Path) -> int | None:
    """The process that an earlier call started."""
    return int(file.read_text()) if file.exists() else None


async def stop(file: Path) -> None:
    """Ends the daemon that an earlier call started, and waits until it is gone."""
    pid = pid_in(file)
    if pid is None:
        return
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(ended, gone.set)
        signal.pidfd_send_signal(ended, signal.SIGTERM)
        await gone.wait()
    except ProcessLookupError:
        return
    finally:
        loop.remove_reader(ended)
        os.close(ended)


async def move_all(work: Work) -> float:
    """All nodes; the seconds it took."""
    slots = asyncio.Semaphore(work.at_once)

    async def one(node: str) -> None:
        async with slots:
            await move(work, node)

    begun = time.monotonic()
    await asyncio.gather(*(one(node) for node in work.nodes))
    return time.monotonic() - begun


def end_all(folder: Path, nodes: Sequence[str]) -> None:
    """Ends every daemon that this script started below ``folder``."""
    for node in nodes:
        try:
            os.kill(int((folder / node / "pid").read_text()), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            continue


def main() -> None:
    """Does what standard input says."""
    seconds = asyncio.run(move_all(Work.model_validate_json(sys.stdin.readline())))
    used = time.process_time()
    print(json.dumps({"seconds": seconds, "processor": used}))


if __name__ == "__main__":
    main()
