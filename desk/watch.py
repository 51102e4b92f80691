"""Watching a run: questions over and over, through every restart of the engine and the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Protocol

from pydantic import ValidationError

from desk.runs import ANSWER_SECONDS, NoWorkerError, Runs
from desk.views import RunView, view_of
from kedge.model.errors import DriverError, EngineError
from kedge.model.plan import Plan

INTERVAL_SECONDS = 0.7
ROUND_SECONDS = 3.0
"""How long one question may take while somebody watches; the first one may take as long as any other question, for a
workflow whose worker was just killed waits for that long before another worker takes it up."""


class Asking(Protocol):
    """What watching needs of the desk."""

    async def runs(self) -> Runs:
        """A connection, made anew when there is none. Raises ``EngineError``."""
        ...

    def hang_up(self) -> None:
        """Forget the connection, so that the next question makes a new one."""
        ...

    async def plan(self, digest: str) -> Plan:
        """The plan under a digest. Raises ``DriverError`` kind ``NotFound``."""
        ...


async def watch(
    desk: Asking, run: str, *, interval: float = INTERVAL_SECONDS
) -> AsyncIterator[RunView]:
    """Views of a run until it is over; the last one shows its end.

    The first question has to be answered: until then this raises ``NotFound`` or ``EngineError``. From then on
    silence is a view of its own (``gone``), for as long as it lasts.
    """
    last: RunView | None = None
    plan: Plan | None = None
    answered = time.monotonic()
    while True:
        try:
            runs = await desk.runs()
            seconds = ANSWER_SECONDS if last is None else ROUND_SECONDS
            pieces = await runs.pieces(run, seconds=seconds)
        except EngineError as error:
            if last is None:
                raise
            desk.hang_up()
            why = "no worker answers" if isinstance(error, NoWorkerError) else "engine unreachable"
            silence = {"gone": time.monotonic() - answered, "gone_why": why, "now": utc_now()}
            yield last.model_copy(update=silence)
        else:
            answered = time.monotonic()
            if plan is None:
                plan = await _plan(desk, pieces.status.plan)
            last = view_of(pieces, plan, utc_now())
            yield last
            if last.ended:
                return
        await asyncio.sleep(interval)


async def _plan(desk: Asking, digest: str) -> Plan | None:
    """The plan, for its names; a home without it can watch all the same."""
    try:
        return await desk.plan(digest)
    except (DriverError, ValidationError):
        return None


def utc_now() -> str:
    """Now, as the models write instants."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
