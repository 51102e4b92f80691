"""Secrets of a daemon: read on this host from where its configuration says, and kept out of all that is told.

A value is in three places only: in the memory of a session that needs it, in a file of mode 0600 below
`.kedge/secrets/` where the daemon reads one, and in the daemon's environment. What a daemon or a command says is
looked through before it is told or recorded (`Told`). Rule 11 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from kedge.host import commands, files, observe
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
from kedge.host.layout import Node

if TYPE_CHECKING:
    from kedge.host.context import Context

RECIPE = "secrets.json"
LARGEST = 64 << 10
ALTOGETHER = 25.0
# Shorter values are not looked for in what is told: they are too likely to be something else.
SHORTEST = 6
# So much of a value's beginning is known again where the rest was cut off.
BEGINNING = 12
LINE = 16

# The faults whose words may be those of a daemon or a command.
TALKING = (CommandFailed, NotHealthy, ProbeFailed, ServiceDied, StopTimeout, Unresolved)

Values = Dict[str, str]


def resolve(ctx: Context, sources: Dict[str, Dict[str, Any]]) -> Values:
    """The values of secrets, by name; NoSecret says which one cannot be had and why, never what it is."""
    until = time.monotonic() + ALTOGETHER
    found: Values = {}
    for name, source in sorted(sources.items()):
        ctx.pulse.said = f"reads the secret {name}"
        ctx.pulse.tick()
        if "file" in source:
            raw, where = _of_file(name, source["file"]), source["file"]
        elif "env" in source:
            raw, where = _of_env(name, source["env"]), f"the variable {source['env']}"
        else:
            left = until - time.monotonic()
            raw, where = _of_command(ctx, name, source, left), source["command"][0]
        found[name] = _value(name, raw, where)
    return found


def _missing(name: str, why: str) -> NoSecret:
    return NoSecret(f"the secret {name} cannot be had: {why}", {"secret": name})


def _of_file(name: str, path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise _missing(name, f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _missing(name, f"{path} is not a file")
        if status.st_mode & 0o007:
            raise _missing(
                name,
                f"{path} is open to everybody on this host: chmod o-rwx, and change the secret",
            )
        return _read(fd)
    except OSError as error:
        raise _missing(name, f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    """All there is, and one byte more than there may be."""
    content = b""
    while len(content) <= LARGEST:
        part = os.read(fd, LARGEST + 1 - len(content))
        if not part:
            break
        content += part
    return content


def _of_env(name: str, variable: str) -> bytes:
    value = os.environb.get(variable.encode())
    if value is None:
        raise _missing(name, f"the host program has no variable {variable}")
    return value


def _of_command(ctx: Context, name: str, source: Dict[str, Any], left: float) -> bytes:
    """What a command prints. What it says on its error stream is not kept: nobody knows what is in it."""
    program = source["command"][0]
    if left <= 0:
        raise _missing(name, f"reading all of them takes longer than {ALTOGETHER:g} s")
    spec = {"argv": source["command"], "env": {}, "cwd": None}
    try:
        one = commands.spawn(ctx.node, spec, errors=subprocess.DEVNULL)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _missing(name, f"{program}: {why}") from error
    limit = min(source["timeout"], left)
    try:
        ended = commands.follow(one, limit, LARGEST + 1, ctx.pulse.rest, tail=False)
    finally:
        if one.poll() is None:
            commands.end(one, _slept)
    if ended.exit is None:
        raise _missing(name, f"{program} still ran after {limit:.3g} s")
    if ended.exit != 0:
        raise _missing(name, f"{program} ended with {ended.exit}")
    return ended.output


def _slept(seconds: float, _fd: int) -> bool:
    time.sleep(seconds)
    return False


def _value(name: str, raw: bytes, where: str) -> str:
    """A value from its bytes: text, not empty, not too long, without the one newline that editors leave."""
    if len(raw) > LARGEST:
        raise _missing(name, f"{where} has more than {LARGEST} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        # Without the error itself: it has the bytes.
        raise _missing(name, f"{where} is not UTF-8 text") from None
    text = text[:-1] if text.endswith("\n") else text
    text = text[:-1] if text.endswith("\r") else text
    if not text:
        raise _missing(name, f"{where} is empty")
    if "\0" in text:
        raise _missing(name, f"{where} has a NUL in it")
    return text


def put(content: Any, values: Values) -> str:
    """A text of which parts are secrets, with the values in it."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else values[part["secret"]] for part in content)


def check(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Whether every secret can be had, now; nothing of them is kept."""
    resolve(ctx, op["secrets"])
    return {"secrets": sorted(op["secrets"])}


# -- a generation's secrets -------------------------------------------------------------------------------------


def recipe(node: Node, generation: Optional[str]) -> Dict[str, Any]:
    """What a generation needs: `sources` by name, and `files` of which parts are secrets. Empty: it has none."""
    if generation is None:
        return {}
    kept = files.read_json(f"{node.config(generation)}/{RECIPE}")
    return kept if isinstance(kept, dict) else {}


def folder(node: Node, generation: str) -> str:
    """Where files with secrets of a generation are."""
    return f"{node.secrets}/{generation}"


def link(generation: str, path: str) -> str:
    """What the name of such a file in its generation points to, relative: a root may be moved."""
    up = "../" * (path.count("/") + 2)
    return f"{up}.kedge/secrets/{generation}/{path}"


def write(node: Node, generation: str, content: Dict[str, Any], values: Values) -> None:
    """Write the files of a generation that have secrets, each whole and for its owner alone. Callers hold the fence."""
    top = folder(node, generation)
    for path, parts in sorted(content.items()):
        parent = os.path.dirname(f"{top}/{path}")
        os.makedirs(parent, 0o700, exist_ok=True)
        text = put(parts, values).encode()
        if files.read_bytes(f"{top}/{path}") != text:
            files.write_atomic(f"{top}/{path}", text)


def forget_others(node: Node, generation: str) -> None:
    """Remove the files with secrets of all other generations: their next start reads them anew."""
    try:
        names = os.listdir(node.secrets)
    except FileNotFoundError:
        return
    for name in names:
        if name != generation:
            files.remove_tree(f"{node.secrets}/{name}")


# -- what is told -----------------------------------------------------------------------------------------------


class Told:
    """Takes the secrets of a node's daemon out of what is told.

    Known are those of the current generation and of the one that runs. They are read when something is to be told for
    the first time; where they cannot be read, nothing of what a daemon or a command said is told.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._found: Optional[List[Tuple[str, str]]] = None
        self._lost = ""

    def value(self, value: Any) -> Any:
        """A value of JSON without secrets; keys are ours and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            # A verdict is a word of ours, and callers go by it.
            return {key: one if key == "verdict" else self.value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.value(one) for one in value]
        return value

    def text(self, text: str) -> str:
        """A text without secrets."""
        self.prepare()
        if self._lost:
            return self._lost
        for name, secret in self._found or []:
            text = _without(text, secret, f"[secret {name}]")
        return text

    def prepare(self) -> None:
        """Read the secrets now; for who may not wait or be stopped later."""
        if self._found is None:
            self._found = self._known()

    def _known(self) -> List[Tuple[str, str]]:
        node = self._ctx.node
        found: List[Tuple[str, str]] = []
        for generation in {
            observe.current_config(node),
            observe.running(node)[1].get("generation"),
        }:
            sources = recipe(node, generation).get("sources")
            if not sources:
                continue
            said = self._ctx.pulse.said
            try:
                for name, value in resolve(self._ctx, sources).items():
                    found += [(name, one) for one in _forms(value)]
            except NoSecret as fault:
                self._lost = f"[not told, its secrets cannot be kept out of it: {fault.message}]"
            finally:
                self._ctx.pulse.said = said
        return sorted(set(found), key=lambda one: (-len(one[1]), one))


def _forms(value: str) -> List[str]:
    """A value as it may be met: whole, and line by line."""
    lines = [line.strip() for line in value.splitlines()]
    return [
        one
        for one in {value, *(line for line in lines if len(line) >= LINE)}
        if len(one) >= SHORTEST
    ]


def _without(text: str, secret: str, instead: str) -> str:
    """A text without a secret, also where the secret was cut off at its end or, where the text begins, at its beginning.

    One pass: a text may be a megabyte in which a daemon says the same thing all the time.
    """
    text = _behind(text, secret, instead)
    begins = secret[:BEGINNING]
    parts: List[str] = []
    start, at = 0, text.find(begins)
    while at >= 0:
        parts += [text[start:at], instead]
        start = at + _alike(text, at, secret)
        at = text.find(begins, start)
    return "".join([*parts, text[start:]]) if parts else text


def _behind(text: str, secret: str, instead: str) -> str:
    """A text that may begin in the middle of a secret, without that."""
    for cut in range(1, min(len(secret) - SHORTEST, 4096) + 1):
        if text.startswith(secret[cut : cut + BEGINNING]) and text.startswith(secret[cut:]):
            return instead + text[len(secret) - cut :]
    return text


def _alike(text: str, at: int, secret: str) -> int:
    """How many characters of a secret stand in a text from a place on."""
    count, most = 0, min(len(secret), len(text) - at)
    while count < most and text[at + count] == secret[count]:
        count += 1
    return count


def without(fault: Fault, told: Told) -> Fault:
    """The same fault, its words without secrets where a daemon or a command may have said some of them."""
    if isinstance(fault, TALKING):
        fault.message = told.text(fault.message)
        fault.detail = told.value(fault.detail)
    return fault
