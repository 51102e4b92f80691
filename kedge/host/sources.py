"""Where secrets are, and texts of which parts are secrets: checked as a whole before anything is done.

Rule 11 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import re
from typing import Any, Dict

from kedge.host.checks import REQUIRED, absolute, fields, list_of, seconds, word
from kedge.host.errors import BadRequest

MOST = 32
SECRET = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


def content(value: Any, where: str) -> Any:
    """A text, or the parts of one of which some are secrets: `["user=me pass=", {"secret": "db"}]`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not 1 <= len(value) <= 1024:
        raise BadRequest(f"{where}: a text is needed, or a list of its parts")
    for number, part in enumerate(value):
        if not isinstance(part, str):
            fields(part, {"secret": (secret_name, REQUIRED)}, f"{where}[{number}]")
    return value


def secret_name(value: Any, where: str) -> str:
    """The name of a secret."""
    if not isinstance(value, str) or not SECRET.match(value):
        raise BadRequest(f"{where}: the name of a secret is needed")
    return value


def variable(value: Any, where: str) -> str:
    """A variable of the host program that a secret may be read from."""
    if not isinstance(value, str) or not VARIABLE.match(value):
        raise BadRequest(f"{where}: the name of a variable is needed")
    own = value.startswith(("KEDGE_", "TEMPORAL_", "SSH_"))
    if own and not value.startswith("KEDGE_SECRET_"):
        raise BadRequest(f"{where}: {value} is not a daemon's secret")
    return value


def secrets(value: Any, where: str) -> Dict[str, Dict[str, Any]]:
    """Where secrets are, by name: one of a file, a variable of the host program, a command that prints it."""
    if not isinstance(value, dict) or len(value) > MOST:
        raise BadRequest(f"{where}: an object of at most {MOST} sources is needed")
    found = {}
    for key, one in value.items():
        place = f"{where}.{secret_name(key, where)}"
        kinds = [kind for kind in SOURCES if isinstance(one, dict) and kind in one]
        if len(kinds) != 1:
            raise BadRequest(f"{place}: one of {', '.join(sorted(SOURCES))} is needed")
        found[key] = fields(one, SOURCES[kinds[0]], place)
    return found


def command_seconds(value: Any, where: str) -> float:
    """How long a command may take to print a secret: at most 15 s."""
    if not 0 < seconds(value, where) <= 15:
        raise BadRequest(f"{where}: a command for a secret takes at most 15 s")
    return float(value)


SOURCES: Dict[str, Dict[str, Any]] = {
    "file": {"file": (absolute, REQUIRED)},
    "env": {"env": (variable, REQUIRED)},
    "command": {
        "command": (list_of(word, least=1, most=64), REQUIRED),
        "timeout": (command_seconds, 5.0),
    },
}
