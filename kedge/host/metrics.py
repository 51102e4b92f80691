"""One series of a page of metrics (Prometheus text, OpenMetrics), found line by line: a page may have megabytes.

Only a whole page says something: a line that is malformed, one without its end, or anything after `# EOF` is no data.
No series, two that match, and a value that is not finite are no data either.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, Dict, List, Optional, Pattern, Tuple

from kedge.host.dial import Broken

PAGE_MAX = 16 << 20
LINE_MAX = 64 << 10
NAMED = 3

_QUOTED = r'"(?:[^"\\\n]|\\[^\n])*"'
_LABEL = rf"(?:[a-zA-Z_][a-zA-Z0-9_]*|{_QUOTED})[ \t]*=[ \t]*{_QUOTED}[ \t]*"
_REST = rf"(?:,[ \t]*{_LABEL})*(?:,[ \t]*)?"
_LABELS = rf"\{{[ \t]*(?:{_LABEL}{_REST})?\}}"
_WITHIN = rf"\{{[ \t]*{_QUOTED}[ \t]*{_REST}\}}"
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SERIES = rf"({_NAME}(?:[ \t]*{_LABELS})?|{_WITHIN})"
_NUMBER = r"[+-]?(?:(?:[0-9]{1,64}\.?[0-9]{0,64}|\.[0-9]{1,64})(?:[eE][+-]?[0-9]{1,4})?|[Ii]nf(?:inity)?|[Nn]a[Nn])"
ESCAPED = re.compile(r'\\(["\\n])')

Series = Tuple[str, Dict[str, str]]


# Compiled when they are needed: that takes longer than a whole look, and most probes are of no metric.
@functools.lru_cache(None)
def _line() -> Pattern[str]:
    return re.compile(
        rf"{_SERIES}[ \t]+({_NUMBER})(?:[ \t]+[-+0-9.eE]{{1,32}})?(?:[ \t]+#[^\n]*)?[ \t]*\r?\Z"
    )


@functools.lru_cache(None)
def _whole() -> Pattern[str]:
    return re.compile(rf"{_SERIES}[ \t]*\Z")


@functools.lru_cache(None)
def _part() -> Pattern[str]:
    return re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*|{_QUOTED})[ \t]*(?:=[ \t]*({_QUOTED}))?")


def series(text: str) -> Series:
    """A name and labels from `name{label="x"}`; ValueError when it is none."""
    if not _whole().match(text):
        raise ValueError('a series is needed, such as name or name{label="x"}')
    name, labels = "", {}
    for key, value in _part().findall(text):
        word = _unquoted(key)
        if not value:
            name = word
        elif word in labels:
            raise ValueError(f"the label {word} stands twice")
        else:
            labels[word] = _unquoted(value)
    return name, labels


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    return ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], text[1:-1])


class Page:
    """Looks for one series in a page that comes piece by piece."""

    limit = PAGE_MAX

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._name, self._labels = series(wanted)
        self._begun = b""
        self._number = 0
        self._over = False
        self._found: List[Tuple[str, str]] = []
        self._alike: List[str] = []

    def feed(self, piece: bytes) -> None:
        """Take a piece; Broken at a line that is malformed."""
        *whole, self._begun = (self._begun + piece).split(b"\n")
        if len(self._begun) > LINE_MAX:
            raise Broken(f"line {self._number + 1} of the metrics is longer than {LINE_MAX} bytes")
        for line in whole:
            self._take(line)

    def _take(self, raw: bytes) -> None:
        self._number += 1
        line = raw.strip()
        if not line:
            return
        if self._over:
            raise Broken(f"line {self._number} of the metrics comes after # EOF")
        if line.startswith(b"#"):
            self._over = line == b"# EOF"
            return
        try:
            found = _line().match(line.decode("utf-8")) if len(line) <= LINE_MAX else None
        except UnicodeDecodeError:
            found = None
        if found is None:
            shown = line[:60].decode("utf-8", "replace")
            raise Broken(f"line {self._number} is not a line of metrics: {shown!r}")
        self._compare(found[1], found[2])

    def _compare(self, text: str, value: str) -> None:
        if self._name not in text:
            return
        name, labels = series(text)
        if name != self._name:
            return
        if all(labels.get(key) == one for key, one in self._labels.items()):
            self._found = [*self._found[:NAMED], (text, value)]
        elif len(self._alike) < NAMED:
            self._alike.append(text)

    def value(self) -> Any:
        """The number; Broken where there is not exactly one."""
        if self._begun:
            raise Broken("the last line of the metrics is cut off")
        if not self._found:
            alike = f"; it has {', '.join(self._alike)}"[:300] if self._alike else ""
            raise Broken(f"the page has no {self._wanted}{alike}")
        if len(self._found) > 1 and len({text for text, _ in self._found}) == 1:
            raise Broken(f"the page has {self._found[0][0]} twice")
        if len(self._found) > 1:
            several = ", ".join(text for text, _ in self._found[:NAMED])[:300]
            raise Broken(f"several series match {self._wanted}: {several}; write more labels")
        number = quantity(self._found[0][1])
        if number is None:
            raise Broken(f"{self._wanted} is {self._found[0][1]}, which is no data")
        return number


def quantity(text: str) -> Optional[float]:
    """A value as a finite number, whole ones as such; None for NaN and infinities."""
    if text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else None
