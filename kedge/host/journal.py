"""What was done on this node: JSON lines, each with the hash of the one before.

A line is appended with one write and an fsync, under `op.lock`. A last line that was torn by a crash is
no line: nobody was told of it, and it is cut off before the next one is written. Every other line
that does not fit is an error: the record was changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, Optional, Tuple

from kedge.host import files, places
from kedge.host.errors import HostError
from kedge.host.places import Place

FIRST = "0" * 64
LIMIT = 1 << 30


def digest_of(line: bytes) -> str:
    """The hash a line is known by in the next one (without its newline)."""
    return hashlib.sha256(line).hexdigest()


class Journal:
    """The journal of one node, as read by one session. Callers hold `op.lock`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.looked = False
        self._text = b""

    def refresh(self) -> None:
        """Read what others appended since the last look; leave a torn last line out."""
        self.looked = True
        found = places.status(self.place)
        if found is None:
            self._text = b""
            return
        if found.st_size != len(self._text):
            self._text = whole_lines(files.read_bytes(self.place, LIMIT) or b"")
            last_links(self._text)

    def find(self, key: str) -> Optional[Dict[str, Any]]:
        """The record of a key, or None. The newest when there are several."""
        # Keys are written first in a line: the bytes of the key find it without parsing the rest.
        needle = b'{"key":' + json.dumps(key).encode() + b","
        start = self._text.rfind(b"\n" + needle)
        if start < 0 and not self._text.startswith(needle):
            return None
        end = self._text.index(b"\n", start + 1)
        return parse(self._text[start + 1 : end])

    def append(self, key: str, record: Dict[str, Any]) -> None:
        """Add a record durably; a torn last line is cut off first. Callers hold the fence."""
        line = self._line(key, record)
        fresh = not self._text
        fd = files.opened(self.place, os.O_WRONLY | os.O_CREAT)
        try:
            size = os.fstat(fd).st_size
            if size != len(self._text):
                os.ftruncate(fd, len(self._text))
            os.lseek(fd, len(self._text), os.SEEK_SET)
            try:
                files.write_all(fd, line)
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, len(self._text))
                raise
        finally:
            os.close(fd)
        if fresh:
            files.sync_above(self.place)
        self._text += line

    def head(self) -> Tuple[int, str]:
        """How many lines there are, and the hash of the last: whoever keeps it notices a change."""
        return self._text.count(b"\n"), self._head()

    def _head(self) -> str:
        if not self._text:
            return FIRST
        start = self._text.rfind(b"\n", 0, len(self._text) - 1) + 1
        return digest_of(self._text[start:-1])

    def _line(self, key: str, record: Dict[str, Any]) -> bytes:
        told = {"key": key, "prev": self._head(), **record}
        return json.dumps(told, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def whole_lines(text: bytes) -> bytes:
    """The text without a torn last line: one without an end, or one that is no JSON object."""
    text = text[: text.rfind(b"\n") + 1]
    if not text:
        return b""
    start = text.rfind(b"\n", 0, len(text) - 1) + 1
    try:
        parse(text[start:-1])
    except HostError:
        return text[:start]
    return text


def last_links(text: bytes) -> None:
    """Check that the last line names the one before; raises HostError when it does not.

    The whole chain is for auditors (`check_chain`); a session checks what it is about to extend.
    """
    lines = text[:-1].rsplit(b"\n", 2)[-2:] if text else []
    if not lines:
        return
    wanted = digest_of(lines[0]) if len(lines) == 2 else FIRST
    if parse(lines[-1]).get("prev") != wanted:
        raise HostError("the journal's chain is broken at its last line: it was changed by hand")


def check_chain(text: bytes) -> Tuple[int, str]:
    """Check every link of a journal; the number of lines and the last hash, or HostError."""
    before = FIRST
    lines = whole_lines(text).split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        if parse(line).get("prev") != before:
            raise HostError(f"the journal's chain is broken at line {number}")
        before = digest_of(line)
    return len(lines), before


def parse(line: bytes) -> Dict[str, Any]:
    """One line as a record; HostError when it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HostError(
            "the journal has a line that is not JSON: it was changed by hand"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("prev"), str):
        raise HostError("the journal has a line that is no record: it was changed by hand")
    return record
