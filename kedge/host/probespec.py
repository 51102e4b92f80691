"""What a probe may look like: checked as a whole before anything is looked at.

Source: `docs/host-protocol.md`, Probes.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Tuple
from urllib.parse import urlsplit

from kedge.host import checks, metrics, sources
from kedge.host.errors import BadRequest

KINDS = ("http", "grpc", "command", "tcp", "service", "all", "any", "not")
WORDS = (
    "eq", "ne", "ge", "gt", "le", "lt", "in", "matches", "contains", "starts_with", "exists",
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT")
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}\Z")


def checked(value: Any, where: str) -> Dict[str, Any]:
    """A probe, its parameters complete with defaults; BadRequest when it is none."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where}: a probe is needed: one of {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in value]
    if len(kinds) != 1:
        raise BadRequest(f"{where}: a probe is one of {', '.join(KINDS)}; this has {len(kinds)}")
    kind = kinds[0]
    body = value[kind]
    here = f"{where}.{kind}"
    if kind in ("all", "any"):
        parts = checks.list_of(checked, least=1, most=64)(body, here)
        return {"kind": kind, "parts": parts, **_alone(value, where)}
    if kind == "not":
        return {"kind": kind, "parts": [checked(body, here)], **_alone(value, where)}
    if kind in ("tcp", "service", "grpc"):
        _alone(value, where)
        return {"kind": kind, **_named_secrets(checks.fields(body, LEAVES[kind], here), here)}
    rest = {key: one for key, one in value.items() if key != kind}
    told = checks.fields(rest, {"expect": (expectations, {}), "capture": (captures, {})}, where)
    found = _named_secrets(checks.fields(body, LEAVES[kind], here), here)
    return {"kind": kind, **found, **told}


def _named_secrets(found: Dict[str, Any], where: str) -> Dict[str, Any]:
    """The same; BadRequest when a request has a secret in it that nobody says where to find."""
    texts: List[Any] = [*found.get("headers", {}).values(), *found.get("tls", {}).values()]
    texts += (found.get("basic_auth") or {}).values()
    for part in (part for text in texts if isinstance(text, list) for part in text):
        if isinstance(part, dict) and part["secret"] not in found["secrets"]:
            raise BadRequest(f"{where}.secrets: {part['secret']} is missing")
    return found


def _alone(value: Dict[str, Any], where: str) -> Dict[str, Any]:
    if len(value) != 1:
        extra = sorted(key for key in value if key not in KINDS)[0]
        raise BadRequest(f"{where}: {extra[:80]!r} belongs to http and command probes only")
    return {}


def _url(schemes: Tuple[str, str], wanted: str) -> checks.Check:
    def checked_url(value: Any, where: str) -> str:
        try:
            parts = urlsplit(checks.text(value, where))
            good = parts.scheme in schemes and bool(parts.hostname)
            good = good and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or "@" in parts.netloc or any(ord(sign) < 33 for sign in value):
            brackets = "; an IPv6 address stands in brackets: [::1]" if "::" in str(value) else ""
            raise BadRequest(f"{where}: {wanted} is needed, without a password{brackets}")
        return str(value)

    return checked_url


url = _url(("http", "https"), "an http or https address")
grpc_url = _url(("grpc", "grpcs"), "a grpc or grpcs address with its port")


def method(value: Any, where: str) -> str:
    """An HTTP method."""
    if value not in METHODS:
        raise BadRequest(f"{where}: one of {', '.join(METHODS)} is needed")
    return str(value)


def headers(value: Any, where: str) -> Dict[str, Any]:
    """HTTP headers; parts of their values may be secrets."""
    if not isinstance(value, dict) or len(value) > 64:
        raise BadRequest(f"{where}: an object of at most 64 texts is needed")
    for key, one in value.items():
        plain = sources.content(one, f"{where}.{key[:80]}")
        plain = plain if isinstance(plain, list) else [plain]
        words = "".join(part for part in plain if isinstance(part, str))
        if not HEADER.match(key) or any(ord(sign) < 32 for sign in words) or len(words) > 1 << 14:
            raise BadRequest(f"{where}.{key[:80]}: a header's name or value that is none")
    return value


def tls(value: Any, where: str) -> Dict[str, Any]:
    """Whom to trust and what to show."""
    found = checks.fields(value, TLS, where)
    if found["key"] is not None and found["certificate"] is None:
        raise BadRequest(f"{where}: a key without its certificate")
    return found


def optional_content(value: Any, where: str) -> Any:
    """A text of which parts may be secrets, or null."""
    return None if value is None else sources.content(value, where)


def basic_auth(value: Any, where: str) -> Any:
    """A user and a password, or null."""
    return None if value is None else checks.fields(value, LOGIN, where)


def optional_socket(value: Any, where: str) -> Any:
    """The absolute path of a Unix socket, or null."""
    if value is None:
        return None
    if checks.absolute(value, where).endswith("/"):
        raise BadRequest(f"{where}: the path of a socket is needed")
    return value


def optional_series(value: Any, where: str) -> Any:
    """A series of a page of metrics, or null."""
    if value is None:
        return None
    try:
        metrics.series(checks.text(value, where))
    except ValueError as error:
        raise BadRequest(f"{where}: {error}") from error
    return value


def optional_text(value: Any, where: str) -> Any:
    """A string or null."""
    return None if value is None else checks.word(value, where)


def optional_flag(value: Any, where: str) -> Any:
    """True, false or null."""
    return None if value is None else checks.flag(value, where)


def optional_digest(value: Any, where: str) -> Any:
    """A sha256 or null."""
    return None if value is None else checks.digest(value, where)


def reading(value: Any, where: str) -> Any:
    """How a command's output is read."""
    if value not in (None, "json", "text"):
        raise BadRequest(f"{where}: json, text or null is needed")
    return value


def port(value: Any, where: str) -> int:
    """A port number."""
    if not 0 < checks.natural(value, where) < 1 << 16:
        raise BadRequest(f"{where}: a port between 1 and 65535 is needed")
    return int(value)


def captures(value: Any, where: str) -> Dict[str, str]:
    """Names for values, with the paths they are found at."""
    return checks.variables(value, where)


def expectations(value: Any, where: str) -> Dict[str, Any]:
    """Matchers by path."""
    if not isinstance(value, dict) or len(value) > 256:
        raise BadRequest(f"{where}: an object of matchers by path is needed")
    return {path: matcher(one, f"{where}.{path[:80]}") for path, one in value.items()}


def matcher(value: Any, where: str) -> Dict[str, Any]:
    """A matcher as an object of operators; a literal is `eq`."""
    if not isinstance(value, dict):
        return {"eq": value}
    if set(value) == {"captured"}:
        return {"eq": operand(value, where)}
    if not value or set(value) - set(WORDS):
        raise BadRequest(f"{where}: a literal, or an object of {', '.join(WORDS)}, is needed")
    for key, one in value.items():
        here = f"{where}.{key}"
        if key == "exists":
            checks.flag(one, here)
        elif key == "in":
            checks.list_of(operand, least=1)(one, here)
        elif key == "matches":
            _pattern(one, here)
        else:
            operand(one, here)
    return value


def operand(value: Any, where: str) -> Any:
    """A literal, or `{"captured": NAME}`."""
    if isinstance(value, dict) and not (
        set(value) == {"captured"} and isinstance(value["captured"], str)
    ):
        raise BadRequest(f'{where}: a literal or {{"captured": NAME}} is needed')
    return value


def _pattern(value: Any, where: str) -> None:
    try:
        re.compile(checks.text(value, where))
    except re.error as error:
        raise BadRequest(f"{where}: not a regular expression: {error}") from error


TLS: Dict[str, Any] = {
    "ca": (optional_content, None),
    "certificate": (optional_content, None),
    "key": (optional_content, None),
    "server_name": (optional_text, None),
}
LOGIN: Dict[str, Any] = {
    "user": (sources.content, checks.REQUIRED),
    "password": (sources.content, checks.REQUIRED),
}
REQUEST: Dict[str, Any] = {
    "headers": (headers, {}),
    "basic_auth": (basic_auth, None),
    "tls": (tls, dict.fromkeys(TLS)),
    "socket": (optional_socket, None),
    "secrets": (sources.secrets, {}),
}
LEAVES: Dict[str, Dict[str, Any]] = {
    "http": {
        "url": (url, checks.REQUIRED),
        "method": (method, "GET"),
        "body": (optional_text, None),
        **REQUEST,
        "timeout": (checks.seconds, 2.0),
        "status": (checks.list_of(checks.natural, least=1), [200]),
        "text": (checks.flag, False),
        "metric": (optional_series, None),
    },
    "grpc": {
        "url": (grpc_url, checks.REQUIRED),
        "service": (optional_text, None),
        **REQUEST,
        "timeout": (checks.seconds, 2.0),
    },
    "command": {
        "argv": (checks.argv, checks.REQUIRED),
        "env": (checks.variables, {}),
        "cwd": (checks.folder, None),
        "timeout": (checks.seconds, 5.0),
        "exit": (checks.codes, [0]),
        "parse": (reading, None),
    },
    "tcp": {
        "host": (checks.text, checks.REQUIRED),
        "port": (port, checks.REQUIRED),
        "timeout": (checks.seconds, 1.0),
    },
    "service": {"running": (optional_flag, None), "release": (optional_digest, None)},
}
