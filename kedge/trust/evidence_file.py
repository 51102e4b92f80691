"""Exported evidence: one file of JSON lines, written the same from the same record, read with bounds.

Every line is the RFC 8785 form of an object with one key, and ends in a newline:

1. ``header``: which fleet and run, where the part of the chain in the file begins and ends;
2. ``document``, one for each that records name by digest (plan, policies, warrants, releases), by digest;
3. ``entry``: the records in their order, and ``checkpoint`` behind the entry it is about, by key;
4. ``seal``: the number of lines before it, and the sha256 over them.

Reading believes nothing: what is wrong with a line is a finding at that line, and the rest is read on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pydantic import ValidationError

from kedge.model.base import Digest, Json, canonical
from kedge.model.bounds import most_values
from kedge.model.evidence import Checkpoint, Document, ExportHeader, ExportSeal, Finding
from kedge.trust.chain import EvidenceEntry
from kedge.trust.strict_json import too_deep

MAX_LINE = 96 * 1024 * 1024
"""The longest line of a document, in bytes: its text is one string, which costs some four times as much memory."""
MAX_ENTRY = 2 * 1024 * 1024
"""The longest other line, in bytes, looked at before it is parsed: small values may cost thirty times their text. A record
has at most 1 MiB."""
MAX_ENTRIES = 5_000_000
MAX_VALUES = 40_000_000
"""Values in all lines but documents, counted before they are parsed, by the signs that begin and part them."""
MAX_FILE = 4 * 1024 * 1024 * 1024
MAX_DEPTH = 64
MAX_FINDINGS = 100
"""Findings told one by one; a file with more is not read on."""

_DOCUMENT = b'{"document":{"content":"'
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
"""The rest of a JSON string, its closing quote with it."""
_AROUND = 1024
_ENTRY_KEYS = {"seq", "key", "record", "previous", "hash"}


@dataclass
class Parts:
    """What stands in a file. ``lines`` gives the line of each entry, by its place in ``entries``."""

    header: ExportHeader | None = None
    documents: dict[Digest, Document] = field(default_factory=dict)
    papers: dict[Digest, int] = field(default_factory=dict)
    """The line of each document."""
    entries: list[EvidenceEntry] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    checkpoints: list[tuple[Checkpoint, int]] = field(default_factory=list)
    """With the line each stands in."""
    findings: list[Finding] = field(default_factory=list)
    sealed: bool = False

    def wrong(self, line: int, said: str, seq: int | None = None) -> None:
        """Notes that a line does not hold."""
        self.findings.append(Finding(kind="unreadable", said=said, line=line, seq=seq))


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, with bounds: only a document's may be as long as ``MAX_LINE``. A longer one comes in parts."""
    while line := file.readline(MAX_ENTRY + 1):
        if not line.endswith(b"\n") and line.startswith(_DOCUMENT):
            line += file.readline(MAX_LINE - len(line) + 1)
        yield line


def write(
    header: ExportHeader,
    documents: Iterable[Document],
    entries: Iterable[EvidenceEntry],
    checkpoints: Iterable[Checkpoint],
) -> Iterator[bytes]:
    """The lines of a file, in order; the same from the same record."""
    count, sealed = 0, hashlib.sha256()
    waiting = sorted(checkpoints, key=lambda one: (one.seq, one.key, one.hash))
    for line in _lines(header, documents, entries, waiting):
        count += 1
        sealed.update(line)
        yield line
    yield _line("seal", ExportSeal(lines=count, digest=sealed.hexdigest()).model_dump())


def _lines(
    header: ExportHeader,
    documents: Iterable[Document],
    entries: Iterable[EvidenceEntry],
    waiting: list[Checkpoint],
) -> Iterator[bytes]:
    yield _line("header", header.model_dump(mode="json"))
    for document in sorted(documents, key=lambda one: one.digest):
        yield _line("document", document.model_dump(mode="json"))
    at = 0
    for seq, line in _places(header.after.seq, entries):
        if line:
            yield line
        while at < len(waiting) and waiting[at].seq <= seq:
            yield _line("checkpoint", waiting[at].model_dump(mode="json"))
            at += 1


def _places(begin: int, entries: Iterable[EvidenceEntry]) -> Iterator[tuple[int, bytes]]:
    yield begin, b""
    for entry in entries:
        yield entry.seq, entry_line(entry)


def entry_line(entry: EvidenceEntry) -> bytes:
    """One record as its line."""
    return _line(
        "entry",
        {
            "seq": entry.seq,
            "key": entry.key,
            "record": entry.record,
            "previous": entry.previous,
            "hash": entry.hash,
        },
    )


def _line(what: str, value: Json) -> bytes:
    return canonical({what: value}) + b"\n"


def read(lines: Iterable[bytes]) -> Parts:
    """The parts of a file from its lines (each with its newline). Total: whatever is wrong is in ``findings``."""
    parts = Parts()
    sealed = hashlib.sha256()
    number = size = values = 0
    for line in lines:
        number += 1
        size += len(line)
        values += 0 if line.startswith(_DOCUMENT) else most_values(line)
        if values > MAX_VALUES:
            parts.wrong(number, f"the records have more than {MAX_VALUES} values: export a run instead of the whole fleet")  # fmt: skip
            break
        if size > MAX_FILE or len(parts.entries) > MAX_ENTRIES:
            parts.wrong(
                number, f"the file is larger than {MAX_FILE} bytes or {MAX_ENTRIES} records"
            )
            break
        if parts.sealed:
            parts.wrong(number, "there is more behind the line that seals the file")
            break
        found = _parsed(line, number, parts)
        if found is not None:
            if found[0] == "seal":
                _seal(found[1], number, sealed.hexdigest(), parts)
            else:
                _take(*found, number, parts)
        sealed.update(line)
        if len(parts.findings) > MAX_FINDINGS:
            break
    if parts.header is None and not parts.findings:
        parts.wrong(1, "the file does not begin with a header: it is no exported evidence")
    elif not parts.sealed and len(parts.findings) <= MAX_FINDINGS:
        cut = Finding(
            kind="truncated", said="the line that seals the file is not there", line=number + 1
        )
        parts.findings.append(cut)
    return parts


def _parsed(line: bytes, number: int, parts: Parts) -> tuple[str, Any] | None:
    """What a line holds, by its one key."""
    if not line.endswith(b"\n") or (len(line) > MAX_ENTRY and not line.startswith(_DOCUMENT)):
        parts.wrong(number, "the line has no end: the file was cut off in it, or it is too long")
        return None
    if line.startswith(_DOCUMENT):
        return _parsed_document(line, number, parts)
    try:
        value = _loaded(line)
        exact = canonical(value) == line[:-1]
    except (ValueError, RecursionError):
        parts.wrong(number, "this is no line of JSON in its one canonical form (RFC 8785)")
        return None
    if not isinstance(value, dict) or len(value) != 1:
        parts.wrong(number, "a line is an object with one key")
        return None
    ((what, held),) = value.items()
    if not exact:
        parts.wrong(number, "the line is not in its canonical form (RFC 8785)", _seq_of(held))
    return what, held


def _parsed_document(line: bytes, number: int, parts: Parts) -> tuple[str, Any] | None:
    """A document's line: its text is one string, and what stands around that is short. Nothing else is parsed."""
    end = _STRING.match(line, len(_DOCUMENT))
    rest = b"" if end is None else line[end.end() :]
    if end is None or len(rest) > _AROUND or not rest.startswith(b","):
        parts.wrong(
            number,
            "a document's line has its content as a text, and its digest and its kind behind that",
        )
        return None
    text = line[len(_DOCUMENT) - 1 : end.end()]
    try:
        held = json.loads(b"{" + rest[1:-2])
        content = json.loads(text)
        exact = canonical(content) == text and canonical(held) == b"{" + rest[1:-2]
    except (ValueError, RecursionError):
        parts.wrong(number, "this is no line of JSON in its one canonical form (RFC 8785)")
        return None
    if not exact or not isinstance(held, dict) or min(held, default="") <= "content":
        parts.wrong(number, "the line is not in its canonical form (RFC 8785)")
        return None
    return "document", {"content": content, **held}


def _loaded(line: bytes) -> Any:
    """The value of a line; ``ValueError`` or ``RecursionError`` for what is none, or nested too deep."""
    value = json.loads(line)
    if too_deep(value, MAX_DEPTH):
        raise ValueError("nested too deep")
    return value


def _seq_of(held: object) -> int | None:
    seq = held.get("seq") if isinstance(held, dict) else None
    return seq if type(seq) is int else None


def _take(what: str, held: Any, number: int, parts: Parts) -> None:
    if (what == "header") != (number == 1):
        parts.wrong(number, "the header is the first line, and stands there once")
        return
    try:
        if what == "header":
            parts.header = ExportHeader.model_validate_json(canonical(held))
            if canonical(parts.header) != canonical(held):
                # `true` passes for 1 where only one number is allowed.
                parts.wrong(number, "the header is not in its one form")
        elif what == "document":
            _document(Document.model_validate(held), number, parts)
        elif what == "checkpoint":
            parts.checkpoints.append((Checkpoint.model_validate_json(canonical(held)), number))
        elif what == "entry":
            parts.entries.append(_entry(held))
            parts.lines.append(number)
        else:
            parts.wrong(number, f"there are no lines of the kind {ascii(what)[:40]}")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        parts.wrong(number, f"{what}: {where}: {problem['msg']}", _seq_of(held))
    except ValueError as error:
        parts.wrong(number, f"{what}: {error}", _seq_of(held))


def _document(document: Document, number: int, parts: Parts) -> None:
    if parts.entries or parts.checkpoints:
        parts.wrong(number, "documents stand before the records")
    if hashlib.sha256(document.content.encode()).hexdigest() != document.digest:
        said = f"the {document.what} {document.digest[:12]} is not what its digest was taken over"
        parts.findings.append(Finding(kind="document", said=said, line=number))
        return
    if document.digest in parts.documents:
        parts.wrong(number, f"the document {document.digest[:12]} stands there twice")
    elif document.digest < next(reversed(parts.documents), ""):
        parts.wrong(number, "documents stand in the order of their digests")
    parts.documents[document.digest] = document
    parts.papers[document.digest] = number


def _entry(held: Any) -> EvidenceEntry:
    if not isinstance(held, dict) or set(held) != _ENTRY_KEYS:
        raise ValueError("it has exactly seq, key, record, previous and hash")
    seq, key, previous, digest = held["seq"], held["key"], held["previous"], held["hash"]
    if type(seq) is not int or not isinstance(key, str):
        raise ValueError("seq is a number, key a text")
    for name in (previous, digest):
        if not isinstance(name, str) or len(name) != 64 or set(name) - set("0123456789abcdef"):
            raise ValueError("previous and hash are 64 lower-case hex digits")
    return EvidenceEntry(seq, key, held["record"], previous, digest)


def _seal(held: Any, number: int, digest: str, parts: Parts) -> None:
    parts.sealed = True
    try:
        seal = ExportSeal.model_validate(held)
    except ValidationError:
        parts.wrong(number, "seal: it has the number of lines and a digest")
        return
    if seal.lines != number - 1:
        parts.wrong(number, f"{seal.lines} lines were sealed, {number - 1} stand before it")
    elif seal.digest != digest:
        parts.wrong(number, "the lines before it are not those that were sealed")
