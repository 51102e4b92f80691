"""Two whole workers of one home on one task queue, each a process of its own, that are killed and started anew."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.theatre import Theatre
from worker import processes
from worker.background import WORKER_ARGV
from worker.processes import ProcessIdentity

READY = b"takes work"
"""What a worker says in its log once it polls."""
STEPS, SPREE = 6, 8
"""After so many kills the next one waits until the hosts have done so many steps: however slow a machine is, a run ends."""


@dataclass
class One:
    """One of the two: its process, and how much of its log was written by those before."""

    log: Path
    identity: ProcessIdentity | None = None
    read: int = 0

    def is_ready(self) -> bool:
        """Whether it runs and has said that it takes work."""
        with self.log.open("rb") as log:
            log.seek(self.read)
            said = READY in log.read()
        return said and self.is_alive()

    def is_alive(self) -> bool:
        """Whether it runs, or starts."""
        return self.identity is not None and processes.is_alive(self.identity)

    def busy(self) -> bool:
        """Whether it has a session with a host open: a child of its own."""
        assert self.identity is not None
        threads = Path(f"/proc/{self.identity.pid}/task").glob("*/children")
        try:
            return any(one.read_text().strip() for one in threads)
        except OSError:
            return False


@dataclass
class Pair:
    """The two, and how often one of them was killed. ``under_way``: a run is, so that a kill counts."""

    theatre: Theatre
    dice: random.Random
    under_way: asyncio.Event = field(default_factory=asyncio.Event)
    kills: int = 0
    busy: int = 0
    """Kills of a worker that just then had a session with a host."""

    def __post_init__(self) -> None:
        folder = self.theatre.settings.log_dir
        self.two = tuple(One(folder / f"worker-{name}.log") for name in ("a", "b"))

    def start(self, one: One) -> None:
        """As ``kedge up`` starts one; returns at once."""
        one.log.parent.mkdir(parents=True, exist_ok=True)
        one.log.touch()
        one.read = one.log.stat().st_size
        told = {**self.theatre.settings.child_environment(), "PYTHONUNBUFFERED": "1"}
        one.identity = processes.start_detached(WORKER_ARGV, log=one.log, environment=told)

    def open(self) -> None:
        """Engine and both workers are started."""
        self.theatre.engine.start()
        for one in self.two:
            self.start(one)

    async def kill_often(self, wanted: int, most: float, steps: Callable[[], int]) -> None:
        """SIGKILL to one that takes work, at any instant within ``most`` seconds, while a run is under way; it is started
        anew at once. Chance says which, so that one may die while the other has not come back. ``steps``: how many the
        hosts have done.
        """
        enough, spared = 0, self.kills
        while self.kills < wanted:
            await asyncio.sleep(self.dice.uniform(0.02, most))
            await self.under_way.wait()
            if self.kills - spared >= SPREE:
                if await asyncio.to_thread(steps) < enough:
                    continue
                spared, enough = self.kills, await asyncio.to_thread(steps) + STEPS
            for one in self.two:
                assert one.is_alive(), f"a worker ended by itself: {processes.tail(one.log)}"
            ready = [one for one in self.two if one.is_ready()]
            if not ready:
                await asyncio.sleep(0.02)
                continue
            one = self.dice.choice(ready)
            busy = one.busy()
            assert one.identity is not None
            assert processes.send(one.identity, signal.SIGKILL)
            assert await asyncio.to_thread(processes.wait_gone, one.identity, 10)
            self.kills += 1
            self.busy += busy
            self.start(one)

    def close(self) -> None:
        """Neither is left, nor anything they started."""
        for one in self.two:
            if one.identity is not None:
                processes.send(one.identity, signal.SIGKILL)
                processes.wait_gone(one.identity, 10)
        self.theatre.close()
