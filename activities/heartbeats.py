"""Heartbeats: every activity gives them, so that a worker that dies is noticed in seconds, whatever it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity

EVERY = 2.0
"""Seconds between heartbeats: twice in the time after which a worker is given up. Each is a transaction of the engine,
and most legs are over before the first."""


class Pulse:
    """What the activity is at, by node; told to the server with every beat."""

    def __init__(self) -> None:
        self.at: dict[int, tuple[object, ...]] = {}

    async def beat(self) -> None:
        """Beat until cancelled. The first one comes after a while: most activities are over by then."""
        while True:
            await asyncio.sleep(EVERY)
            activity.heartbeat(*(list(one) for one in self.at.values()))


@asynccontextmanager
async def pulse() -> AsyncIterator[Pulse]:
    """Heartbeats for the length of the block; ``Pulse.at`` is what they carry."""
    beating = Pulse()
    task = asyncio.create_task(beating.beat())
    try:
        yield beating
    finally:
        task.cancel()
