"""What is told of daemons and commands: their words without the secrets of the node.

Known are the secrets of the current configuration, of the daemon and of what probes showed it, as their sources have them now, as they were read
in this session, and as the daemon was given them: a source may have changed since. Where one of them is not known any
more, nothing of such words is told. Rule 11 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from kedge.host import credentials, files, observe, secret
from kedge.host.errors import (
    CommandFailed,
    Fault,
    NoSecret,
    NotHealthy,
    ProbeFailed,
    ServiceDied,
    StopTimeout,
    Unresolved,
)
from kedge.host.verdicts import FAIL, PASS, UNKNOWN

if TYPE_CHECKING:
    from kedge.host.context import Context

# Shorter values are not looked for in what is told: they are too likely to be something else.
SHORTEST = 6
# So much of a value's beginning is known again where the rest was cut off, and half of a short value's.
BEGINNING = 12
# A line of a value by itself, of a key in PEM say.
LINE = 16
# How often the beginning of a text is looked for inside a value.
TRIES = 4096
# What stands where a text was cut off: a mark of ours, or half of a letter.
CUT = "\u2026\ufffd"

# A letter as JSON escapes it.
_CAPITAL = re.compile(r"\\u([0-9a-f]{4})")

# The faults whose words may be those of a daemon or a command.
TALKING = (CommandFailed, NotHealthy, ProbeFailed, ServiceDied, StopTimeout, Unresolved)


class Told:
    """Takes secrets out of what is told. They are read when something is to be told for the first time."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._sources: Dict[str, Dict[str, Any]] = {}
        self._values: Set[Tuple[str, str]] = set()
        self._found: Optional[List[Tuple[str, str]]] = None
        self._lost = ""

    def learn(self, values: Dict[str, str]) -> None:
        """Values that must not be told."""
        fresh = set(values.items()) - self._values
        self._values |= fresh
        if fresh and self._found is not None:
            self._found = _every_form(self._values)

    def value(self, value: Dict[str, Any]) -> Dict[str, Any]:
        """A result or a fault's detail without secrets. Its names are ours and stay; further in everything is theirs."""
        # A verdict is a word of ours, and callers go by it.
        return {
            key: one
            if isinstance(one, (int, float)) or (key == "verdict" and one in (PASS, FAIL, UNKNOWN))
            else self._theirs(one)
            for key, one in value.items()
        }

    def _theirs(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self._theirs(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._theirs(one) for one in value]
        if isinstance(value, (int, float)) and len(repr(value)) >= SHORTEST:
            shown = repr(value)
            said = self.text(shown)
            return value if said == shown else said
        return value

    def text(self, text: str) -> str:
        """A text without secrets."""
        self.prepare()
        if self._lost:
            return self._lost
        known = [one for _, one in self._found or []]
        # Whole ones first: a piece of one form must not be taken out of the middle of another.
        for name, one in self._found or []:
            text = text.replace(one, f"[secret {name}]")
        for name, one in self._found or []:
            text = without(text, one, f"[secret {name}]", known)
        return text

    def prepare(self) -> None:
        """Read the secrets now; for who may not wait or be stopped later."""
        if self._found is None:
            self._found = []
            self._look()
            self._found = _every_form(self._values)

    def look_again(self) -> None:
        """Read them once more: a command that ran may have changed one and said the new one."""
        if self._sources:
            self._read(self._sources)

    def look_at_files(self) -> None:
        """As `look_again`, for who may not wait: the sources that are files."""
        try:
            self.learn(secret.of_files(self._sources))
        except NoSecret as fault:
            self._lose(fault.message)

    def _look(self) -> None:
        node = self._ctx.node
        one, kept = observe.running(node)
        recipes = {
            generation: secret.recipe(node, generation)
            for generation in (observe.current_config(node), kept.get("generation"))
            if generation
        }
        shown = credentials.shown(self._ctx)
        for sources in (
            *(recipe.get("sources") for recipe in recipes.values()),
            shown.get("sources"),
        ):
            if sources:
                self._sources = {**self._sources, **sources}
                self._read(sources)
        generation = kept.get("generation")
        if isinstance(generation, str) and kept.get("secrets"):
            self._given(generation, recipes[generation], kept["secrets"], one.pid if one else 0)
        name = credentials.changed(shown, self._values)
        if name is not None:
            self._lose(f"the secret {name} was changed since a probe showed it")

    def _read(self, sources: Dict[str, Dict[str, Any]]) -> None:
        said = self._ctx.pulse.said
        try:
            # It is learned there.
            secret.resolve(self._ctx, sources)
        except NoSecret as fault:
            self._lose(fault.message)
        finally:
            self._ctx.pulse.said = said

    def _lose(self, why: str) -> None:
        self._lost = f"[not told, its secrets cannot be kept out of it: {why}]"

    def _given(
        self, generation: str, recipe: Dict[str, Any], marks: Dict[str, Any], pid: int
    ) -> None:
        """Learn what the daemon was given, from its files and its environment, where the sources have it no more."""
        wanted = dict(marks["of"])
        for name, value in [*self._values, *_in_files(self._ctx, generation, recipe)]:
            self._know(wanted, marks["salt"], name, value)
        if wanted and pid:
            kept = files.read_json(self._ctx.node.config(generation) / "service.json") or {}
            for name, value in _in_environment(pid, kept.get("env") or {}):
                self._know(wanted, marks["salt"], name, value)
        if wanted:
            self._lose(f"the secret {min(wanted)} was changed since the daemon had it")

    def _know(self, wanted: Dict[str, str], salt: str, name: str, value: str) -> None:
        if wanted.get(name) == secret.mark(salt, value):
            del wanted[name]
            self.learn({name: value})


def without_secrets(fault: Fault, told: Told) -> Fault:
    """The same fault, its words without secrets where a daemon or a command may have said some of them."""
    if isinstance(fault, TALKING):
        fault.message = told.text(fault.message)
        fault.detail = told.value(fault.detail)
    return fault


# -- what a daemon was given --------------------------------------------------------------------------------------


def _in_files(ctx: Context, generation: str, recipe: Dict[str, Any]) -> Iterator[Tuple[str, str]]:
    top = secret.folder(ctx.node, generation)
    for path, parts in sorted((recipe.get("files") or {}).items()):
        content = files.read_bytes(top / path)
        if content is not None:
            yield from taken_apart(parts, content.decode("utf-8", "replace"))


def _in_environment(pid: int, told: Dict[str, Any]) -> Iterator[Tuple[str, str]]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = [one.partition(b"=") for one in file.read().split(b"\0")]
    except OSError:
        return
    has = {
        name.decode("utf-8", "replace"): one.decode("utf-8", "replace") for name, _, one in pairs
    }
    for name, parts in told.items():
        if name in has:
            yield from taken_apart(parts, has[name])


def taken_apart(parts: Any, text: str) -> Iterator[Tuple[str, str]]:
    """The values in a text that was put together of parts, by their names.

    Where a part is not found again, or two secrets touch, one name gets too much; who asks compares.
    """
    waiting: Optional[str] = None
    at = 0
    for number, part in enumerate([] if isinstance(parts, str) else parts):
        if isinstance(part, dict):
            waiting = waiting or part["secret"]
        elif waiting is None:
            at += len(part) if text.startswith(part, at) else 0
        else:
            last = number == len(parts) - 1
            found = len(text) - len(part) if last and text.endswith(part) else text.find(part, at)
            found = len(text) if found < at else found
            yield waiting, text[at:found]
            waiting, at = None, found + len(part)
    if waiting is not None:
        yield waiting, text[at:]


# -- how a value may be met ---------------------------------------------------------------------------------------


def _every_form(values: Set[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """All that is looked for, with its name: the longest first, one name for one form."""
    found: Dict[str, str] = {}
    for name, value in sorted(values):
        for one in forms(value):
            found.setdefault(one, name)
    return sorted(
        ((name, one) for one, name in found.items()), key=lambda one: (-len(one[1]), one[1])
    )


def forms(value: str) -> Set[str]:
    """A value as it may be met: whole, line by line, and in the encodings that logs and answers have."""
    if len(value) < SHORTEST:
        return set()
    lines = [line.strip() for line in value.splitlines()]
    found: Set[str] = set()
    for one in {value, *(line for line in lines if len(line) >= LINE)}:
        found |= {one, *_escaped(one)}
    return {one for one in {*found, *_encoded(value)} if len(one) >= SHORTEST}


def _escaped(value: str) -> Iterator[str]:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
        yield text
        yield text.replace("/", "\\/")
        # As Go and others write it, so that it may stand in a page; some in capitals.
        for special in ("", "<>&\u2028\u2029", "<>&\u2028\u2029='"):
            for form in ("\\u{:04x}", "\\u{:04X}"):
                made = "".join(form.format(ord(one)) if one in special else one for one in text)
                yield made
                yield _CAPITAL.sub(lambda found: "\\u" + found.group(1).upper(), made)
    yield repr(value)[1:-1]
    # Quoted for a shell, as `set -x` shows it.
    for apostrophe in ("'\\''", "'\"'\"'"):
        yield value.replace("'", apostrophe)


def _encoded(value: str) -> Iterator[str]:
    # Only a node with secrets that has something to tell needs it.
    from urllib.parse import quote  # noqa: PLC0415 -- as above

    raw = value.encode()
    for safe in ("", "/", "/:"):
        yield quote(value, safe=safe)
        yield re.sub("%[0-9A-F]{2}", lambda found: found.group().lower(), quote(value, safe=safe))
        yield quote(value, safe=f"{safe} ").replace(" ", "+")
    for apostrophe in ("&#x27;", "&#39;", "'"):
        text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield text
        yield text.replace('"', "&quot;").replace("'", apostrophe)
    yield raw.hex()
    yield raw.hex().upper()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            text = encode(b"\0" * offset + raw).decode().rstrip("=")
            # The letters at both ends hold bits of the neighbours.
            whole = (offset + len(raw)) % 3 == 0
            yield text[(0, 2, 3)[offset] : len(text) if whole else len(text) - 1]


# -- a text without one form --------------------------------------------------------------------------------------


def without(text: str, one: str, instead: str, known: Sequence[str] = ()) -> str:
    """A text without a secret, also where the secret was cut off at its end or, where the text begins, at its beginning.

    `known` are all forms: those that begin alike are taken out as far as any of them goes. One pass: a text may be a
    megabyte in which a daemon says the same thing all the time.
    """
    text = _behind(text, one, instead)
    begins = one[: max(SHORTEST, min(BEGINNING, len(one) // 2))]
    parts: List[str] = []
    start, at = 0, text.find(begins)
    alike = [one, *(form for form in known if form.startswith(begins))] if at >= 0 else []
    while at >= 0:
        parts += [text[start:at], instead]
        start = at + max(_alike(text, at, form) for form in alike)
        at = text.find(begins, start)
    return _ahead("".join([*parts, text[start:]]) if parts else text, begins, instead)


def _behind(text: str, one: str, instead: str) -> str:
    """A text that may begin in the middle of a secret, or be a piece of one, without that."""
    bare = text.lstrip(CUT)
    head = bare[:SHORTEST]
    if len(head) < SHORTEST:
        return text
    piece = bare.rstrip(CUT)
    at = one.find(head, 1)
    for _ in range(TRIES):
        if at < 0:
            break
        left = len(one) - at
        if left <= len(bare) and bare.startswith(one[at:]):
            return instead + bare[left:]
        if SHORTEST <= len(piece) < left and one.startswith(piece, at):
            return instead
        at = one.find(head, at + 1)
    return text


def _ahead(text: str, begins: str, instead: str) -> str:
    """A text that may end in the first letters of a secret, without those."""
    bare = text.rstrip(CUT)
    for count in range(len(begins) - 1, SHORTEST - 1, -1):
        if bare.endswith(begins[:count]):
            return bare[:-count] + instead
    return text


def _alike(text: str, at: int, one: str) -> int:
    """How many characters of a secret stand in a text from a place on."""
    count, most = 0, min(len(one), len(text) - at)
    while count < most and text[at + count] == one[count]:
        count += 1
    return count
