"""YAML into plain values that know where they were written, with everything ambiguous refused.

The subset: one document; mappings with text keys, sequences, scalars; no anchors, aliases, tags or merge keys.
Plain scalars are ``null``, ``true``, ``false``, decimal numbers, or text; spellings that YAML versions read
differently (``yes``, ``010``, ``1_000``, ``12:30``) are problems, not guesses. The tree is built from parser events
without recursion and within bounds, so that no input can exhaust stack, memory or time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from kedge.model.base import Json
from kedge.model.notation import Path

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 300_000
MAX_OUTSIDE = 20_000
"""Values outside of the ``nodes`` of a fleet: what people write by hand."""
MAX_IN_NODE = 500
MAX_PROBLEMS = 200

_INT = re.compile(r"^-?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$")
_AMBIGUOUS = re.compile(
    r"^(?:[-+]?0[0-9_]+|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+|[-+]?[0-9][0-9_]*_[0-9_]*|\+[0-9.]+|[0-9]+(?::[0-5]?[0-9])+(?:\.[0-9]*)?"
    r"|\.[0-9]+|[0-9]+\.|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2})$"
)
_TRUE = {"yes", "on", "y"}
_FALSE = {"no", "off", "n"}
_NOT_FINITE = {
    ".inf",
    "-.inf",
    "+.inf",
    ".nan",
    "nan",
    "inf",
    "-inf",
    "+inf",
    "infinity",
    "-infinity",
}
_LARGEST = 2**53


class Spot:
    """Where one value was written: its own ``line`` and ``column`` (from 1) and those of its key.

    ``inside`` are the spots of its parts; ``source`` is a plain scalar's text as written.
    """

    __slots__ = ("column", "inside", "key_column", "key_line", "line", "source")

    def __init__(self, line: int, column: int) -> None:
        self.line = line
        self.column = column
        self.key_line = line
        self.key_column = column
        self.inside: dict[str, Spot] | list[Spot] | None = None
        self.source: str | None = None

    def part(self, part: str | int) -> Spot | None:
        """The spot of one part, if it was written."""
        inside = self.inside
        if isinstance(inside, dict):
            return inside.get(part) if isinstance(part, str) else None
        if isinstance(inside, list) and isinstance(part, int) and part < len(inside):
            return inside[part]
        return None

    def at(self, path: Path) -> tuple[Spot, Path]:
        """The deepest spot on ``path`` and the part of the path that leads there; unknown parts are skipped."""
        spot: Spot = self
        walked: list[str | int] = []
        for part in path:
            following = spot.part(part)
            if following is None:
                continue
            spot = following
            walked.append(part)
        return spot, tuple(walked)


class Tree:
    """A document as plain values, the spots they come from, and what was wrong with its YAML."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Json = None
        self.root = Spot(1, 1)
        self.found: list[tuple[int, int, str, str]] = []
        self.more = 0
        self.broken = False
        """Reading stopped before the end, so that what is missing means nothing."""
        self._places: set[tuple[int, int]] = set()

    def add(self, line: int, column: int, path: str, said: str) -> None:
        """Note a problem; a place is reported once, and at most ``MAX_PROBLEMS`` of them are kept."""
        if (line, column) in self._places:
            return
        if self.full:
            self.more += 1
            return
        self._places.add((line, column))
        self.found.append((line, column, _short(path), _short(said)))

    @property
    def full(self) -> bool:
        """Whether there are as many problems as anyone reads."""
        return len(self.found) >= MAX_PROBLEMS

    def refuse(self, path: Path, said: str, *, key: bool = False) -> None:
        """Note a problem at a path; ``key``: at the key rather than at its value."""
        spot, _ = self.root.at(path)
        line, column = (spot.key_line, spot.key_column) if key else (spot.line, spot.column)
        self.add(line, column, shown(path), said)

    def problems(self) -> tuple[str, ...]:
        """Every problem as ``file:line:column: path: sentence``, in the order of the file."""
        lines = [
            f"{self.name}:{line}:{column}: {f'{path}: ' if path else ''}{said}"
            for line, column, path, said in sorted(self.found)
        ]
        if self.more:
            lines.append(f"{self.name}:1:1: there are more problems than these {MAX_PROBLEMS}")
        return tuple(lines)


def _short(text: str) -> str:
    """A text that came from outside, in what a person can read."""
    return text if len(text) <= 600 else f"{text[:590]}…"


def shown(path: Path) -> str:
    """A path as people read it: ``nodes.3.labels.role``."""
    return ".".join(
        f'"{part}"' if isinstance(part, str) and "." in part else str(part) for part in path
    )


def read(content: bytes, name: str) -> Tree:
    """The tree of a document; its ``problems()`` are empty when its YAML is sound."""
    tree = Tree(name)
    if _unreadable(content, tree):
        tree.broken = True
        return tree
    builder = _Builder(tree)
    text = content.decode("utf-8")
    try:
        for event in _events(text):
            if not builder.take(event):
                tree.broken = True
                return tree
    except yaml.MarkedYAMLError as error:
        tree.broken = True
        _syntax(tree, error, text)
    except yaml.YAMLError as error:
        tree.broken = True
        tree.add(1, 1, "", f"is not YAML: {str(error).splitlines()[0][:200]}")
    if builder.documents == 0 and not tree.found:
        tree.add(
            1, 1, "", "is empty; a document begins with kind: Fleet, Release, Runbook or Policy"
        )
    return tree


def _events(text: str) -> Iterator[yaml.Event]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return iter(yaml.parse(text, Loader=loader))


def _unreadable(content: bytes, tree: Tree) -> bool:
    if len(content) > MAX_BYTES:
        tree.add(1, 1, "", f"has {len(content)} bytes; a document has at most {MAX_BYTES}")
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        tree.add(1, 1, "", "is UTF-16; save it as UTF-8")
    elif content.startswith(b"\xef\xbb\xbf"):
        tree.add(1, 1, "", "begins with a byte order mark; save it as UTF-8 without one")
    else:
        _bad_bytes(content, tree)
    return bool(tree.found)


def _bad_bytes(content: bytes, tree: Tree) -> None:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(content, error.start)
        tree.add(
            line, column, "", f"is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        )
        return
    for match in re.finditer(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff\ufffe\uffff]", text
    ):
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        tree.add(
            line,
            column,
            "",
            f"has the character U+{ord(match[0]):04X}, which no document has; take it out",
        )
        if len(tree.found) >= MAX_PROBLEMS:
            return


def _place(content: bytes, offset: int) -> tuple[int, int]:
    start = content.rfind(b"\n", 0, offset) + 1
    return content.count(b"\n", 0, offset) + 1, len(
        content[start:offset].decode("utf-8", "replace")
    ) + 1


def _syntax(tree: Tree, error: yaml.MarkedYAMLError, text: str) -> None:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n", line + 1)
    written = lines[line] if line < len(lines) else ""
    said = f"is not YAML: {error.problem or 'cannot be read'}"
    if error.context:
        said += f" {error.context}"
    if "\t" in written[: len(written) - len(written.lstrip())]:
        said += "; indent with spaces, not tabs"
    elif "mapping values are not allowed" in said:
        said += '; text with ": " in it is written in quotes'
    elif "expected" in said or "could not find" in said:
        said += (
            "; look at the indentation and at brackets and quotes that are not closed; text that begins with { or [ is"
            " written in quotes"
        )
    tree.add(line + 1, column + 1, "", said)


class _Frame:
    """A mapping or sequence that is being read; ``key`` is the one whose value comes next, ``last`` the last one."""

    __slots__ = ("key", "key_spot", "last", "spot", "value")

    def __init__(self, value: dict[str, Json] | list[Json], spot: Spot) -> None:
        self.value = value
        self.spot = spot
        self.key: str | None = None
        self.last = ""
        self.key_spot = spot


class _Builder:
    """Builds the tree event by event."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.stack: list[_Frame] = []
        self.documents = 0
        self.values = 0
        self.outside = 0
        self.in_node = 0

    def take(self, event: yaml.Event) -> bool:
        """Take one event; False when reading on would serve nobody (a bound was passed)."""
        if self.tree.more:
            return False
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            return self._open(event)
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._say(event, "a second document begins; one file is one document")
                return False
        return True

    def _scalar(self, event: yaml.ScalarEvent) -> bool:
        frame = self.stack[-1] if self.stack else None
        self._marked(event)
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._key(frame, event)
            return self._counted(event)
        spot = _spot(event)
        plain = bool(event.implicit[0]) and not event.style
        value: Json = event.value
        if plain:
            spot.source = event.value
            value, said = _resolve(event.value)
            if said:
                self._say(event, said)
        self._put(value, spot)
        return self._counted(event)

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> bool:
        self._marked(event)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._say(
                event,
                "a key is a text, not a list or a mapping; text that begins with { or [ is written in quotes",
            )
            return False
        if len(self.stack) >= MAX_DEPTH:
            self._say(event, f"is nested more than {MAX_DEPTH} levels deep")
            return False
        spot = _spot(event)
        value: dict[str, Json] | list[Json]
        if isinstance(event, yaml.MappingStartEvent):
            value, spot.inside = {}, {}
        else:
            value, spot.inside = [], []
        self._put(value, spot)
        self.stack.append(_Frame(value, spot))
        return self._counted(event)

    def _alias(self, event: yaml.AliasEvent) -> None:
        self._say(
            event,
            f"*{event.anchor} refers to another place; write it out, documents have no aliases",
        )
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            frame.key, frame.key_spot = f"*{event.anchor}", _spot(event)
        else:
            self._put(None, _spot(event))

    def _key(self, frame: _Frame, event: yaml.ScalarEvent) -> None:
        key, spot = event.value, _spot(event)
        inside = frame.spot.inside
        if isinstance(inside, dict) and key in inside:
            first = inside[key].key_line
            self._say(
                event,
                f"{key!r} stands here a second time (first in line {first}); a key is written once",
            )
        elif key == "<<" and not event.style:
            self._say(event, "<< merges other places; write it out, documents have no merge keys")
        elif not key:
            self._say(event, "a key is empty; write a name before the colon")
        frame.key, frame.last, frame.key_spot = key, key, spot

    def _put(self, value: Json, spot: Spot) -> None:
        if not self.stack:
            self.tree.value, self.tree.root = value, spot
            return
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            if isinstance(frame.spot.inside, list):
                frame.spot.inside.append(spot)
            return
        key = frame.key or ""
        spot.key_line, spot.key_column = frame.key_spot.line, frame.key_spot.column
        if isinstance(frame.spot.inside, dict) and key not in frame.spot.inside:
            frame.value[key] = value
            frame.spot.inside[key] = spot
        frame.key = None

    def _marked(self, event: yaml.NodeEvent) -> None:
        if event.anchor is not None:
            self._say(
                event,
                f"&{event.anchor} names this place for aliases; documents have none, take it out",
            )
        elif (tag := getattr(event, "tag", None)) is not None:
            self._say(event, f"{tag} is a tag; documents have none, take it out")

    def _counted(self, event: yaml.Event) -> bool:
        self.values += 1
        stack = self.stack
        if len(stack) > 1 and stack[0].last == "nodes":
            # A node begins when its list is the innermost thing that is open, or just below it.
            self.in_node = (
                1
                if len(stack) <= 3 and isinstance(event, yaml.MappingStartEvent)
                else self.in_node + 1
            )
        else:
            self.outside += 1
        for count, most, where in (
            (self.values, MAX_VALUES, "; split the fleet"),
            (self.outside, MAX_OUTSIDE, " outside of nodes"),
            (self.in_node, MAX_IN_NODE, " in one node"),
        ):
            if count > most:
                self._say(event, f"has more than {most} values{where}")
                return False
        return True

    def _say(self, event: yaml.Event, said: str) -> None:
        path: list[str | int] = []
        for depth, frame in enumerate(self.stack):
            top = depth == len(self.stack) - 1
            if isinstance(frame.value, list):
                # The list of an inner frame already counts the value that is being read.
                path.append(len(frame.value) - (0 if top else 1))
            elif frame.key is not None or not top:
                path.append(frame.last)
        line, column = _mark(event)
        self.tree.add(line, column, shown(tuple(path)), said)


def _spot(event: yaml.Event) -> Spot:
    return Spot(*_mark(event))


def _mark(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _resolve(text: str) -> tuple[Json, str]:
    """The value of a plain scalar, and what is wrong with it (empty: nothing)."""
    first = text[:1]
    if first and first not in "-+.0123456789tTfFnNyYoO~iI":
        return text, ""
    low = text.lower()
    if text in {"", "~", "null"}:
        return None, ""
    if text in {"true", "false"}:
        return text == "true", ""
    if _INT.match(text):
        if len(text) > 17 or abs(int(text)) > _LARGEST:
            return 0, f"{text[:20]}… is too large a number; as text write it in quotes" if len(
                text
            ) > 20 else (f'{text} is too large a number; as text write "{text}"')
        return int(text), ""
    if _FLOAT.match(text):
        number = float(text)
        if number in {float("inf"), float("-inf")}:
            return 0, f"{text[:80]} is too large a number; as text write it in quotes"
        return number, ""
    return _ambiguous(text, low)


def _ambiguous(text: str, low: str) -> tuple[Json, str]:
    if low in _TRUE:
        return (
            True,
            f'{text} is a word for true in some YAML and text in other; write true or "{text}"',
        )
    if low in _FALSE:
        return (
            False,
            f'{text} is a word for false in some YAML and text in other; write false or "{text}"',
        )
    if low in {"true", "false", "null"}:
        return text, f'write {low}, or "{text}" if it is a text'
    if low in _NOT_FINITE:
        return 0, f'{text} is no number that a document may have; as text write "{text}"'
    if _AMBIGUOUS.match(text):
        return (
            text,
            f'{text[:80]} is read differently by different YAML; as text write "{text[:80]}"',
        )
    return text, ""
