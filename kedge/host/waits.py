"""Waiting: short steps first, the fence and the reader looked at all the time, monotonic seconds only.

A wait ends with Fenced within a second of a newer token, and with ReaderGone when nobody reads the
session any more. The wall clock may jump; no wait notices.
"""

from __future__ import annotations

import contextlib
import select
import signal
import threading
import time
from types import FrameType
from typing import Callable, Iterator, Optional

from kedge.host.errors import StepTimeout
from kedge.host.fence import Fence

SLICE = 0.25
SAY_EVERY = 1.0
WORKS = "works"


class LateError(Exception):
    """It took longer than it may."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let what runs inside take so long at most; LateError then. For work of the processor that looks at nothing itself.

    By a timer's signal, which the matching of patterns looks for; where there is another thread, nothing is limited.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _late(_number: int, _frame: Optional[FrameType]) -> None:
    raise LateError("it takes too long to compare")


class Pulse:
    """What a waiting operation calls: `tick` at each turn, `rest` between two looks."""

    def __init__(self, fence: Fence, say: Callable[[str], None], check: Callable[[], None]) -> None:
        self.fence = fence
        self.said = WORKS
        self._say = say
        self._check = check
        self._next = time.monotonic() + SAY_EVERY
        self._limit = float("inf")
        self._over = float("inf")

    def limit(self, seconds: Optional[float]) -> None:
        """From here on the operation may take so long (None: for ever): then a tick raises StepTimeout."""
        self._limit = float("inf") if seconds is None else seconds
        self._over = time.monotonic() + self._limit

    def tick(self) -> None:
        """Look at the fence, the reader and the limit; say what is waited for, at least once a second."""
        self.fence.check()
        self._check()
        now = time.monotonic()
        if now >= self._over:
            doing = "" if self.said == WORKS else f" (at the end: {self.said})"
            raise StepTimeout(
                f"did not end within {self._limit:g} s, its `timeout`{doing}. See why it takes so long and retry, or"
                " abort and give the step a longer `timeout` in the runbook",
                {"timeout": self._limit, "said": self.said},
            )
        if now >= self._next:
            self._next = now + SAY_EVERY
            self._say(self.said)

    def rest(self, seconds: float, watched: int = -1, events: int = select.POLLIN) -> bool:
        """Wait, in slices; True as soon as the watched descriptor is ready (or in error)."""
        poller = select.poll()
        if watched >= 0:
            poller.register(watched, events)
        until = time.monotonic() + seconds
        while True:
            self.tick()
            left = until - time.monotonic()
            # poll counts whole milliseconds and returns early rather than late: round up.
            pause = max(0.0, min(left, SLICE, self._over - time.monotonic()))
            if poller.poll(int(pause * 1000 + 0.999)):
                return True
            if time.monotonic() >= until:
                return False

    def until(self, deadline: Optional[float], watched: int) -> bool:
        """Wait for a descriptor until a monotonic instant (None: for ever)."""
        while deadline is None:
            if self.rest(60.0, watched):
                return True
        return self.rest(max(0.0, deadline - time.monotonic()), watched)
