"""Secrets of a daemon: read on this host from where its configuration says, and kept out of all that is told.

A value is in three places only: in the memory of a session that needs it, in a file of mode 0600 below
`.kedge/secrets/` where the daemon reads one, and in the daemon's environment. What a daemon or a command says is
looked through before it is told or recorded (`kedge/host/told.py`). Rule 11 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any, Dict, Optional

from kedge.host import commands, files, places
from kedge.host.errors import NoSecret
from kedge.host.layout import Node
from kedge.host.places import Place

if TYPE_CHECKING:
    from kedge.host.context import Context

RECIPE = "secrets.json"
LARGEST = 64 << 10
ALTOGETHER = 25.0
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
    # What was read is known from now on, whatever becomes of its source: nothing of it is told.
    ctx.told.learn(found)
    return found


def of_files(sources: Dict[str, Dict[str, Any]]) -> Values:
    """The values of those secrets that are in files: read at once, without asking or running anybody. NoSecret."""
    kept = {name: source["file"] for name, source in sorted(sources.items()) if "file" in source}
    return {name: _value(name, _of_file(name, path), path) for name, path in kept.items()}


def marks(values: Values) -> Dict[str, Any]:
    """What is kept about the values a daemon was given, to know later whether a value is that one: keyed digests."""
    salt = os.urandom(16).hex()
    return {"salt": salt, "of": {name: mark(salt, one) for name, one in sorted(values.items())}}


def mark(salt: str, value: str) -> str:
    """A value's digest under a salt."""
    return mark_of(salt, value.encode())


def mark_of(salt: str, value: bytes) -> str:
    """The same of bytes."""
    return hashlib.blake2b(value, key=salt.encode(), digest_size=16).hexdigest()


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
    kept = files.read_json(node.config(generation) / RECIPE)
    return kept if isinstance(kept, dict) else {}


def folder(node: Node, generation: str) -> Place:
    """Where files with secrets of a generation are."""
    return node.secrets / generation


def link(generation: str, path: str) -> str:
    """What the name of such a file in its generation points to, relative: a root may be moved."""
    up = "../" * (path.count("/") + 2)
    return f"{up}.kedge/secrets/{generation}/{path}"


def write(node: Node, generation: str, content: Dict[str, Any], values: Values) -> None:
    """Write the files of a generation that have secrets, each whole and for its owner alone. Callers hold the fence."""
    top = folder(node, generation)
    for path, parts in sorted(content.items()):
        for above in (top / path).above()[len(node.own.names) :]:
            # For their owner alone, also where they were there before.
            places.make(above, 0o700, there=True)
            places.change_mode(above, 0o700)
        text = put(parts, values).encode()
        if files.read_bytes(top / path) != text:
            files.write_atomic(top / path, text)
    if content:
        # By these an edit by hand is told from a secret that its source changed.
        texts = {path: put(parts, values) for path, parts in content.items()}
        places.make(node.written_texts, 0o700, there=True)
        files.write_atomic(_marks_of(node, generation), files.to_json(marks(texts)))


def _marks_of(node: Node, generation: str) -> Place:
    return node.written_texts / f"{generation}.marks"


def is_as_written(node: Node, generation: str, path: str) -> bool:
    """Whether a file with secrets is not there, or has what kedge wrote last; True when nobody knows."""
    text = files.read_bytes(folder(node, generation) / path)
    kept = files.read_json(_marks_of(node, generation))
    if text is None or not isinstance(kept, dict) or path not in kept.get("of", {}):
        return True
    return bool(mark_of(str(kept["salt"]), text) == kept["of"][path])


def forget_others(node: Node, generation: str) -> None:
    """Remove the files with secrets of all other generations: their next start reads them anew."""
    for name in places.listed(node.secrets):
        if name != generation:
            places.remove_tree(node.secrets / name)
