"""Checks of single values in a session's input: each gives the value back or raises BadRequest.

`where` is the place of the value in the input, for the sentence.
"""

from __future__ import annotations

import math
import signal
from typing import Any, Callable, Dict, List, Optional

from kedge.host.errors import BadRequest
from kedge.host.layout import DIGEST, NAME, REPLACED, below

LONGEST = 30 * 86400.0
REQUIRED = object()

Check = Callable[[Any, str], Any]


def text(value: Any, where: str) -> str:
    """A string that is not empty, of at most 64 KiB."""
    if not isinstance(value, str) or not value or len(value) > 1 << 16 or "\0" in value:
        raise BadRequest(f"{where}: a string is needed, without NUL, not empty")
    return value


def flag(value: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise BadRequest(f"{where}: true or false is needed")
    return value


def natural(value: Any, where: str) -> int:
    """A whole number, zero or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise BadRequest(f"{where}: a whole number, zero or more, is needed")
    return value


def seconds(value: Any, where: str) -> float:
    """A finite number of seconds, zero to thirty days."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{where}: a number of seconds is needed")
    if not math.isfinite(value) or not 0 <= value <= LONGEST:
        raise BadRequest(f"{where}: seconds between 0 and {LONGEST:g} are needed")
    return float(value)


def digest(value: Any, where: str) -> str:
    """The sha256 of something, as 64 hexadecimal digits."""
    if not isinstance(value, str) or not DIGEST.match(value):
        raise BadRequest(f"{where}: a sha256 as 64 lower-case hexadecimal digits is needed")
    return value


def name(value: Any, where: str) -> str:
    """A name that becomes a directory's: letters, digits and `._:@+-`, not `current`."""
    if not isinstance(value, str) or not NAME.match(value) or value in ("current",):
        raise BadRequest(f"{where}: a name of letters, digits and ._:@+- is needed")
    return value


def snapshot(value: Any, where: str) -> str:
    """The name of a snapshot; `replaced-…` is what a restore names."""
    if name(value, where).startswith(REPLACED):
        raise BadRequest(f"{where}: {REPLACED}… is the name of what a restore moved away")
    return str(value)


def absolute(value: Any, where: str) -> str:
    """An absolute path on the host."""
    if not text(value, where).startswith("/"):
        raise BadRequest(f"{where}: an absolute path is needed")
    return str(value)


def list_of(check: Check, *, most: int = 4096, least: int = 0) -> Check:
    """A list of things that each pass a check."""

    def checked(value: Any, where: str) -> List[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise BadRequest(f"{where}: a list of {least} to {most} is needed")
        return [check(one, f"{where}[{number}]") for number, one in enumerate(value)]

    return checked


def relative(value: Any, where: str) -> str:
    """A path below the node's root, not of kedge's own."""
    path = below(text(value, where))
    if path.split("/")[0] in (".kedge", "snapshots", "releases", "current"):
        raise BadRequest(f"{where}: {path!r} is kedge's own, not the daemon's")
    return path


def word(value: Any, where: str) -> str:
    """One argument: a string without NUL, which may be empty."""
    if not isinstance(value, str) or "\0" in value or len(value) > 1 << 17:
        raise BadRequest(f"{where}: a string without NUL is needed")
    return value


def variables(value: Any, where: str) -> Dict[str, str]:
    """An environment."""
    if not isinstance(value, dict) or len(value) > 1024:
        raise BadRequest(f"{where}: an object of strings is needed")
    for key in value:
        if not key or "=" in key or "\0" in key:
            raise BadRequest(f"{where}: {key[:80]!r} is no name of a variable")
    return {key: word(one, f"{where}.{key}") for key, one in value.items()}


def signal_name(value: Any, where: str) -> str:
    """A signal's name without SIG."""
    if not isinstance(value, str) or f"SIG{value}" not in signal.Signals.__members__:
        raise BadRequest(f"{where}: a signal's name such as TERM or USR2 is needed")
    return value


def folder(value: Any, where: str) -> Optional[str]:
    """A working directory: absolute, or below the node's root; None is the root itself."""
    if value is None or value == ".":
        return None
    return value if text(value, where).startswith("/") else below(value)


argv = list_of(word, least=1)
codes = list_of(natural, least=1, most=256)


def fields(value: Any, spec: Dict[str, Any], where: str) -> Dict[str, Any]:
    """An object with exactly the fields of a table `{name: (check, default)}`."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: an object is needed")
    unknown = sorted(set(value) - set(spec))
    if unknown:
        known = ", ".join(sorted(spec)) or "none"
        raise BadRequest(f"{where}: unknown {unknown[0][:80]!r}; there are: {known}")
    found = {}
    for key, (check, default) in spec.items():
        if key in value:
            found[key] = check(value[key], f"{where}.{key}")
        elif default is REQUIRED:
            raise BadRequest(f"{where}.{key}: is missing")
        else:
            found[key] = default
    return found
