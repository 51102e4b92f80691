"""Small sentences that several faces share. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from datetime import datetime


def duration(seconds: float) -> str:
    """A length of time as people say it: ``4 s``, ``3 min 10 s``, ``2 h 5 min``, ``1 d 4 h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(place for place, (_, size) in enumerate(units) if whole >= size)
    (name, size), (next_name, next_size) = units[first], units[first + 1]
    rest = whole % size // next_size
    return f"{whole // size} {name}" + (f" {rest} {next_name}" if rest else "")


def instant(text: str) -> datetime:
    """An RFC 3339 instant as the models write it (``…Z``); ``ValueError`` when it is not one."""
    return datetime.fromisoformat(text)


def between(start: str, end: str) -> float:
    """Seconds from one instant to another; 0 when they are the wrong way round or unreadable."""
    try:
        return max(0.0, (instant(end) - instant(start)).total_seconds())
    except ValueError:
        return 0.0


def clock(text: str, now: str) -> str:
    """An instant as local wall-clock time, with the date when it is on another day than ``now``."""
    try:
        moment, present = instant(text).astimezone(), instant(now).astimezone()
    except ValueError:
        return text
    return moment.strftime("%H:%M:%S" if moment.date() == present.date() else "%Y-%m-%d %H:%M")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 node``, ``3 nodes``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """Names joined by commas, cut after ``most``: ``a, b and 3 more``."""
    all_names = list(names)
    if len(all_names) <= most:
        return ", ".join(all_names)
    return f"{', '.join(all_names[:most])} and {len(all_names) - most} more"


def command(*words: str) -> str:
    """A command line to copy. A ``<placeholder>`` stays readable; everything else is quoted as needed."""
    return " ".join(
        word if word.startswith("<") and word.endswith(">") else shlex.quote(word) for word in words
    )


def short(digest: str) -> str:
    """The first 12 digits of a digest: enough for people to compare."""
    return digest[:12]
