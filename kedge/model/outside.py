"""Text from outside, fit to be shown: one line, with nothing in it that a reader does not see.

A node, a file name, a comment, a repository or a forged payload may hold newlines, escapes of a terminal, characters that
turn the line round or that have no width. Such text is made into one visible line where it enters, and once more where it
is drawn; where it stands inside a sentence of ours it is quoted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

LINE_MAX = 600
"""Characters of a line that people read."""

_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)
"""Letters, symbols and marks by their class that show nothing, or only choose how another is drawn."""

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MARKS = 3
"""Marks on one letter: more of them are drawn over the lines around."""
_QUOTES = re.compile("[“”]")
_MARKDOWN = re.compile(r"[\\`*_\[\]<>&~|@#]|:(?=//)|www\.")
_SPACES = re.compile(r"(?<= {2}) +")


def line(text: str, most: int = LINE_MAX) -> str:
    r"""Text as one visible line of at most ``most`` characters (what is cut off is an ellipsis).

    What cannot be seen is written as an escape: ``\n``, ``\x1b``, ``\u202e``. So are spaces beyond two in a row, which
    would push what follows to where a line begins, and marks beyond three on one letter.
    """
    if len(text) > most:
        text = text[: most - 1] + "…"
    if not (text.isascii() and text.isprintable()):
        text = "".join(_seen(text))
    if "   " in text:
        text = _SPACES.sub(lambda found: "\\x20" * len(found.group()), text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _seen(text: str) -> list[str]:
    found: list[str] = []
    marks = 0
    for one in text:
        marks = marks + 1 if unicodedata.category(one) in ("Mn", "Me", "Mc") else 0
        plain = one.isprintable() and one not in _UNSEEN and marks <= _MARKS
        found.append(one if plain else _escaped(one))
    return found


def _escaped(one: str) -> str:
    if one in _NAMED:
        return _NAMED[one]
    code = ord(one)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


def visible(text: str) -> str:
    """Text of several lines of ours with nothing unseen in it: the last guard where it is drawn, as wide as before."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        one if one in "\n\t" or (one.isprintable() and one not in _UNSEEN) else "\ufffd"
        for one in text
    )


def quoted(text: str, most: int = LINE_MAX) -> str:
    """The same in quotation marks, to stand inside a sentence of ours: where it begins and ends is seen.

    The marks are “ and ”; in the text they are escapes, so nothing in it looks like its end.
    """
    return f"“{_QUOTES.sub(lambda found: _escaped(found.group()), line(text, most))}”"


def markdown(text: str, most: int = LINE_MAX) -> str:
    """One visible line as Markdown draws it: for Temporal's UI, where text may be a link, a picture or a heading."""
    return _MARKDOWN.sub(
        lambda found: f"{found.group()[:-1]}\\{found.group()[-1]}", line(text, most)
    )


def is_line(text: str) -> bool:
    """Whether a text is one visible line as it stands."""
    return line(text, max(1, len(text))) == text


def lines(model: M, most: int = LINE_MAX) -> M:
    """The same value, every text in it one visible line: for what is drawn, never for what digests are taken over."""
    return type(model).model_validate(_each(model.model_dump(mode="python"), most))


def _each(value: Any, most: int) -> Any:
    if isinstance(value, str):
        return line(value, most)
    if isinstance(value, Mapping):
        return {_each(key, most): _each(one, most) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each(one, most) for one in value)
    return value
