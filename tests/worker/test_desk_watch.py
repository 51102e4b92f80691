"""Watching a run, as far as it needs no engine."""

from __future__ import annotations

from typing import Any

import pytest

from desk.watch import watch
from kedge.model.errors import DriverError, EngineError
from worker.settings import Settings


class Taken:
    """A run whose worker was just killed: it answers once another worker has taken it up, and then it is not there."""

    def __init__(self, after: float) -> None:
        self.after = after

    async def runs(self) -> Any:
        return self

    def hang_up(self) -> None:
        raise AssertionError("the first question has no view to go on from")

    async def plan(self, digest: str) -> Any:
        raise AssertionError(digest)

    async def pieces(self, run: str, *, seconds: float) -> Any:
        if seconds <= self.after:
            raise EngineError(f"{run} did not answer in time")
        raise DriverError("NotFound", f"there is no {run}", retryable=False)


async def test_the_first_question_is_answered_though_a_worker_was_just_killed() -> None:
    views = watch(Taken(Settings.load().sticky_queue_seconds), "upgrade/etcd/1")
    with pytest.raises(DriverError, match="there is no"):
        await anext(views)
