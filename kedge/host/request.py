"""A session's input: bounded, strict, and nothing of it believed before it is checked.

Rules: `docs/host-protocol.md` (A session, Operations). Unknown keys are errors, so that a caller's
slip is not a step left out.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from kedge.host import probespec, sockets
from kedge.host.checks import (
    REQUIRED,
    absolute,
    argv,
    codes,
    digest,
    fields,
    flag,
    folder,
    list_of,
    name,
    natural,
    relative,
    seconds,
    signal_name,
    snapshot,
    text,
    variables,
    word,
)
from kedge.host.errors import BadRequest
from kedge.host.layout import Token, below
from kedge.host.sources import content, secrets
from kedge.host.unpacked import MAX_MEMBERS, MAX_UNPACKED

MAX_BYTES = 8 << 20
MAX_DEPTH = 32
MAX_OPS = 256
LOOKING = frozenset({"fence", "observe", "secrets", "probe", "healthy"})
"""Operations that change nothing: all that a session that looks may ask."""
MAX_EPOCH = 1 << 48


class Operation(NamedTuple):
    """One operation as asked, its parameters complete with defaults."""

    key: str
    name: str
    params: Dict[str, Any]
    when: Optional[Dict[str, Any]]
    limit: Optional[float] = None


class Request(NamedTuple):
    """One session as asked."""

    root: str
    node: str
    run: str
    token: Token
    lock_wait: float
    ops: List[Operation]
    look: bool
    """Nothing but looking is asked: the journal takes nothing down, and answers for nothing."""


ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})?\Z")
GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\Z")


def optional_below(value: Any, where: str) -> Optional[str]:
    """A relative path, or null."""
    return None if value is None else below(text(value, where))


def config_files(value: Any, where: str) -> Dict[str, Any]:
    """Files of a configuration by their paths in it."""
    if not isinstance(value, dict) or len(value) > 1024:
        raise BadRequest(f"{where}: an object of at most 1024 texts is needed")
    found: Dict[str, Any] = {}
    for path, one in value.items():
        plain = below(path)
        if plain in found or plain in ("service.json", "secrets.json"):
            raise BadRequest(f"{where}.{path[:80]}: a text is needed, under a name of its own")
        found[plain] = content(one, f"{where}.{path[:80]}")
    for plain in found:
        if any(other.startswith(f"{plain}/") for other in found):
            raise BadRequest(f"{where}.{plain}: a file and a directory have one name")
    return found


def service_variables(value: Any, where: str) -> Dict[str, Any]:
    """An environment of which values may have secrets in them."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: an object of strings is needed")
    mixed = {
        key: content(one, f"{where}.{key}") for key, one in value.items() if isinstance(one, list)
    }
    plain = {key: "" if key in mixed else one for key, one in value.items()}
    return {**variables(plain, where), **mixed}


def user(value: Any, where: str) -> Optional[Dict[str, Any]]:
    """As whom a daemon runs: `{"name": "USER", "groups": [...]}`, null for kedge to choose."""
    if value is None:
        return None
    spec = {"name": (account, REQUIRED), "groups": (optional_groups, None)}
    return fields(value, spec, where)


def account(value: Any, where: str) -> str:
    """A user's name or number, and after a colon a group's: `postgres`, `70`, `70:70`."""
    if not isinstance(value, str) or not ACCOUNT.match(value):
        raise BadRequest(f"{where}: a user is needed: a name or a number, with a group USER:GROUP")
    return value


def optional_groups(value: Any, where: str) -> Optional[List[str]]:
    """Groups by name or number, or null for those that the account has."""
    return None if value is None else list(list_of(group, most=64)(value, where))


def group(value: Any, where: str) -> str:
    """A group's name or number."""
    if not isinstance(value, str) or not GROUP.match(value):
        raise BadRequest(f"{where}: a group is needed: a name or a number")
    return value


def port(value: Any, where: str) -> str:
    """A port, or an address and a port."""
    try:
        return sockets.port_of(text(value, where)).written
    except ValueError as error:
        raise BadRequest(f"{where}: {error}") from error


ports = list_of(port, most=256)


def daemon(value: Any, where: str) -> Optional[Dict[str, Any]]:
    """What a daemon will need that can be looked at before another one is stopped for it."""
    return None if value is None else fields(value, DAEMON, where)


DAEMON: Dict[str, Any] = {"user": (user, None), "ports": (ports, [])}


def service(value: Any, where: str) -> Dict[str, Any]:
    """How the daemon is run."""
    spec = {
        "kind": (text, "process"),
        "argv": (argv, REQUIRED),
        "env": (service_variables, {}),
        "cwd": (folder, None),
        **DAEMON,
    }
    found = fields(value, spec, where)
    # What is not said is not kept either, so that a configuration of before is the same one still.
    found = {key: one for key, one in found.items() if key not in ("user", "ports") or one}
    if not found["argv"][0]:
        raise BadRequest(f"{where}.argv: the program's name is empty")
    return found


def probe(value: Any, where: str) -> Dict[str, Any]:
    """A probe; see `probespec`."""
    return probespec.checked(value, where)


def optional_probe(value: Any, where: str) -> Optional[Dict[str, Any]]:
    """A probe or null."""
    return None if value is None else probespec.checked(value, where)


def output_size(value: Any, where: str) -> int:
    """How many bytes of an output are kept: at most 1 MiB, it goes into the journal."""
    if natural(value, where) > 1 << 20:
        raise BadRequest(f"{where}: at most {1 << 20} bytes of an output are kept")
    return int(value)


def optional_digest(value: Any, where: str) -> Optional[str]:
    """A digest or null."""
    return None if value is None else str(digest(value, where))


def optional_seconds(value: Any, where: str) -> Optional[float]:
    """Seconds or null."""
    return None if value is None else float(seconds(value, where))


def optional_absolute(value: Any, where: str) -> Optional[str]:
    """An absolute path or null."""
    return None if value is None else absolute(value, where)


def follow(value: Any, where: str) -> Any:
    """Which links are followed: true, all; false, none; or globs of their paths."""
    return value if isinstance(value, bool) else list_of(text, most=256)(value, where)


def program(value: Any, where: str) -> Dict[str, Any]:
    """A program that a later step executes, with the release that is `current` then."""
    return fields(value, PROGRAM, where)


def optional_snapshot(value: Any, where: str) -> Optional[Dict[str, Any]]:
    """The parameters of a snapshot or null."""
    return None if value is None else fields(value, SNAPSHOT, where)


def optional_restore(value: Any, where: str) -> Optional[Dict[str, Any]]:
    """The parameters of a restore or null."""
    return None if value is None else fields(value, RESTORE, where)


# What a snapshot is for: the step that takes it, and the release that is started after it.
SERIES: Dict[str, Any] = {"step": (text, ""), "before": (optional_digest, None)}

SNAPSHOT: Dict[str, Any] = {
    "id": (snapshot, REQUIRED),
    "paths": (list_of(relative, least=1, most=64), REQUIRED),
    "keep_out": (list_of(text, most=256), []),
    "follow": (follow, False),
    "keep_links": (list_of(text, most=256), []),
    "empty": (flag, False),
    **SERIES,
}
RESTORE: Dict[str, Any] = {
    "id": (snapshot, REQUIRED),
    "keep": (list_of(text, most=256), []),
    "drop_replaced": (flag, False),
    **SERIES,
}
PROGRAM: Dict[str, Any] = {"program": (word, REQUIRED), "release": (digest, REQUIRED)}
# Which configuration: the one given, or the one that ran with the release `earlier`, where the host knows it.
CONFIGURATION: Dict[str, Any] = {
    "generation": (name, REQUIRED),
    "service": (service, REQUIRED),
    "secrets": (secrets, {}),
    "earlier": (optional_digest, None),
}

COMMAND: Dict[str, Any] = {
    "argv": (argv, REQUIRED),
    "env": (variables, {}),
    "cwd": (folder, None),
    "timeout": (seconds, 60.0),
    "exit": (codes, [0]),
    "check": (optional_probe, None),
    "output_max": (output_size, 4096),
}

OPERATIONS: Dict[str, Dict[str, Any]] = {
    "fence": {},
    "observe": {},
    "stage": {
        "digest": (digest, REQUIRED),
        "length": (natural, REQUIRED),
        "source": (optional_absolute, None),
        "max_bytes": (natural, MAX_UNPACKED),
        "max_members": (natural, MAX_MEMBERS),
        "strip": (natural, 0),
        "program": (optional_below, None),
        "secrets": (secrets, {}),
        "daemon": (daemon, None),
    },
    "secrets": {"secrets": (secrets, REQUIRED)},
    "verify": {"digest": (digest, REQUIRED)},
    "stop": {
        "signal": (signal_name, "TERM"),
        "grace": (seconds, 60.0),
        "kill": (flag, False),
        "again": (flag, False),
    },
    "start": {"settle": (seconds, 0.0)},
    "switch": {"digest": (digest, REQUIRED)},
    "configure": {"files": (config_files, {}), **CONFIGURATION},
    "check": {
        **CONFIGURATION,
        "release": (digest, REQUIRED),
        "back": (optional_digest, None),
        "programs": (list_of(program, most=256), []),
        "snapshot": (optional_snapshot, None),
        "restores": (flag, False),
        "restore": (optional_restore, None),
        "anew": (natural, 0),
    },
    "snapshot": SNAPSHOT,
    "restore": RESTORE,
    "probe": {"probe": (probe, REQUIRED)},
    "healthy": {
        "probe": (probe, REQUIRED),
        "for": (seconds, 0.0),
        "within": (seconds, 60.0),
        "interval": (seconds, 0.1),
        "service": (flag, True),
    },
    "run": {**COMMAND, "anew": (natural, 0)},
    "init": {
        "name": (text, REQUIRED),
        "at": (natural, REQUIRED),
        "of": (natural, REQUIRED),
        **COMMAND,
    },
    "ensure": {"settle": (seconds, 0.0)},
    "prune": {
        "releases": (list_of(digest), REQUIRED),
        "snapshots": (list_of(name), REQUIRED),
    },
}


def operation(value: Any, where: str) -> Operation:
    """One operation."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: an object is needed")
    asked = value.get("op")
    if not isinstance(asked, str) or asked not in OPERATIONS:
        there = ", ".join(sorted(OPERATIONS))
        raise BadRequest(f"{where}.op: no operation {str(asked)[:80]!r}; there are: {there}")
    spec = {**OPERATIONS[asked], "op": (text, REQUIRED), "key": (key_text, REQUIRED)}
    every = {"when": (optional_probe, None), "limit": (optional_seconds, None)}
    found = fields(value, {**spec, **every}, where)
    if asked in ("configure", "check"):
        named_secrets(found, where)
    if asked == "init" and found["at"] >= found["of"]:
        raise BadRequest(f"{where}.at: {found['of']} steps are counted from 0")
    when, limit = found.pop("when"), found.pop("limit")
    key = found.pop("key")
    del found["op"]
    return Operation(key, asked, found, when, limit)


def named_secrets(found: Dict[str, Any], where: str) -> None:
    """BadRequest when a configuration has a secret in it that nobody says where to find."""
    for one in [*found.get("files", {}).values(), *found["service"]["env"].values()]:
        for part in one if isinstance(one, list) else []:
            if isinstance(part, dict) and part["secret"] not in found["secrets"]:
                raise BadRequest(f"{where}.secrets: {part['secret']} is missing")


def key_text(value: Any, where: str) -> str:
    """An idempotency key: at most 512 characters."""
    if len(text(value, where)) > 512:
        raise BadRequest(f"{where}: a key has at most 512 characters")
    return str(value)


def token(value: Any, where: str) -> Token:
    """`[epoch, leg, attempt]`; an epoch is bounded, so that no request raises a fence that none can pass."""
    parts = list_of(natural, least=3, most=3)(value, where)
    if parts[0] > MAX_EPOCH:
        raise BadRequest(f"{where}: the epoch {parts[0]} is higher than {MAX_EPOCH}")
    return (parts[0], parts[1], parts[2])


def parse(raw: bytes) -> Request:
    """The input as a request; BadRequest with the place and what is needed there."""
    if len(raw) > MAX_BYTES:
        raise BadRequest(f"the input has more than {MAX_BYTES} bytes")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the input is not JSON: {str(error)[:200]}") from error
    shallow(value)
    spec = {
        "kedge": (natural, REQUIRED),
        "root": (absolute, REQUIRED),
        "node": (text, REQUIRED),
        "run": (text, REQUIRED),
        "token": (token, REQUIRED),
        "lock_wait": (seconds, 30.0),
        "look": (flag, False),
        "ops": (list_of(operation, most=MAX_OPS), REQUIRED),
    }
    found = fields(value, spec, "input")
    if found["kedge"] != 1:
        raise BadRequest(f"input.kedge: protocol 1 is spoken here, not {found['kedge']}")
    keys = [one.key for one in found["ops"]]
    if len(set(keys)) != len(keys):
        raise BadRequest("input.ops: two operations have one key")
    root = found["root"].rstrip("/")
    if not root or "/../" in f"{root}/":
        raise BadRequest("input.root: an absolute path without `..`, not the host's own root")
    if found["look"]:
        looking(found["ops"])
    return Request(
        root,
        found["node"],
        found["run"],
        found["token"],
        found["lock_wait"],
        found["ops"],
        found["look"],
    )


def looking(ops: Iterable[Operation]) -> None:
    """BadRequest where an operation of a look does more than look."""
    for one in ops:
        if one.name not in LOOKING:
            raise BadRequest(f"input.ops: a session that looks does not {one.name}")


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def shallow(value: Any) -> None:
    """BadRequest when a value is nested deeper than `MAX_DEPTH`, or a string is not UTF-8."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: List[Any] = []
        for one in level:
            if isinstance(one, dict):
                deeper += [*one, *one.values()]
            elif isinstance(one, list):
                deeper += one
            elif isinstance(one, str):
                _utf8(one)
        level = deeper
        if not level:
            return
    raise BadRequest(f"the input is nested deeper than {MAX_DEPTH}")


def _utf8(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest("a string has half of a surrogate pair") from error
