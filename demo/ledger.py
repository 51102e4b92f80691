"""What was acknowledged and when. Pure: the clock is the caller's.

A *gap* is the time between two acknowledgements next to each other. Of a stretch of time, the edges are counted too:
from its beginning to the first acknowledgement, and from the last one to its end; so a writer that got
nothing acknowledged was without for the whole stretch.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

NOTICED = 0.25
"""Seconds from which on a gap counts as time without service. A put that only waits for its turn takes less."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A stretch of time as the writer saw it; times in seconds.

    ``longest`` is the longest gap, ``without`` the sum of all gaps of more than ``NOTICED``.
    """

    acknowledged: int
    seconds: float
    longest: float
    without: float


class Ledger:
    """Keys with their values in the order in which they were acknowledged. For one writer and many readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, str] = {}
        self._times: list[float] = []

    def acknowledge(self, key: str, value: str, now: float) -> None:
        """The cluster said that it has this key. Times must not go back; a key comes once."""
        with self._lock:
            if key in self._values:
                raise ValueError(f"{key} was acknowledged already")
            if self._times and now < self._times[-1]:
                raise ValueError("time went back")
            self._values[key] = value
            self._times.append(now)

    def __len__(self) -> int:
        with self._lock:
            return len(self._times)

    def values(self) -> Mapping[str, str]:
        """Everything that was acknowledged so far."""
        with self._lock:
            return dict(self._values)

    def figures(self, begin: float, end: float) -> Figures:
        """The stretch from ``begin`` to ``end``."""
        with self._lock:
            inside = self._times[bisect_left(self._times, begin) : bisect_right(self._times, end)]
        edges = [begin, *inside, end]
        gaps = [later - earlier for earlier, later in pairwise(edges)]
        return Figures(
            acknowledged=len(inside),
            seconds=end - begin,
            longest=max(gaps),
            without=sum(gap for gap in gaps if gap > NOTICED),
        )


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Every acknowledged write looked for through one member. ``lost`` and ``changed`` are keys."""

    member: str
    there: int
    lost: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every acknowledged write is there with its value."""
        return not self.lost and not self.changed


def compare(member: str, acknowledged: Mapping[str, str], found: Mapping[str, str]) -> ReadBack:
    """What one member has, against what was acknowledged. Keys that nobody acknowledged do not count."""
    lost = tuple(key for key in acknowledged if key not in found)
    changed = tuple(
        key for key, value in acknowledged.items() if key in found and found[key] != value
    )
    there = len(acknowledged) - len(lost) - len(changed)
    return ReadBack(member=member, there=there, lost=lost, changed=changed)
