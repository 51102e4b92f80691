"""What a request shows of this host's secrets: tokens in headers, passwords, keys. Rule 11 of `docs/host-protocol.md`.

A probe names secrets and says where they are; they are read here, and nothing of them is told or recorded.
"""

from __future__ import annotations

import base64
import os
import time
from typing import TYPE_CHECKING, Any, Dict, Iterable, Optional, Tuple

from kedge.host import files, secret
from kedge.host.dial import Broken
from kedge.host.errors import NoSecret

if TYPE_CHECKING:
    from kedge.host.context import Context

# A wait looks many times a second; a source may be a command.
FRESH_SECONDS = 5.0


def filled(ctx: Context, spec: Dict[str, Any]) -> Dict[str, Any]:
    """A request with the values of its secrets. Broken where one cannot be had, and never with a value."""
    values = _values(ctx, spec["secrets"]) if spec["secrets"] else {}
    headers = {name: secret.put(one, values) for name, one in spec["headers"].items()}
    if spec["basic_auth"] is not None:
        headers["Authorization"] = _basic(ctx, spec["basic_auth"], values)
    for name, one in headers.items():
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in one):
            raise Broken(
                f"the header {name} would have a line break or another control character: its secret must be one line"
            )
    tls = {
        name: one if one is None else secret.put(one, values) for name, one in spec["tls"].items()
    }
    if values:
        _remember(ctx, spec["secrets"], values)
    return {**spec, "headers": headers, "tls": tls}


def _basic(ctx: Context, login: Dict[str, Any], values: secret.Values) -> str:
    user, password = (secret.put(login[name], values) for name in ("user", "password"))
    if ":" in user:
        raise Broken("the user of `basic_auth` has a colon, which HTTP does not allow")
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    for part in login["password"] if isinstance(login["password"], list) else []:
        if isinstance(part, dict):
            ctx.told.learn({part["secret"]: encoded})
    return f"Basic {encoded}"


def _values(ctx: Context, sources: Dict[str, Dict[str, Any]]) -> secret.Values:
    """The values by name: read anew, unless this operation read them a moment ago."""
    key = files.to_json(sources)
    at, values = ctx.credentials.get(key, (0.0, {}))
    if values and time.monotonic() - at < FRESH_SECONDS:
        return values
    try:
        values = secret.resolve(ctx, sources)
    except NoSecret as fault:
        raise Broken(fault.message) from fault
    ctx.credentials[key] = (time.monotonic(), values)
    return values


def _remember(ctx: Context, sources: Dict[str, Dict[str, Any]], values: secret.Values) -> None:
    """Write down what this run's probes show: a daemon may say later what it was shown. Of values keyed digests."""
    kept = shown(ctx)
    if kept.get("run") != ctx.run:
        kept = {"run": ctx.run, "sources": {}, "salt": os.urandom(16).hex(), "of": {}}
    marks = {
        name: sorted({*kept["of"].get(name, ()), secret.mark(kept["salt"], value)})
        for name, value in values.items()
    }
    new = {**kept, "sources": {**kept["sources"], **sources}, "of": {**kept["of"], **marks}}
    if new != kept:
        with ctx.fence.act():
            files.write_atomic(ctx.node.shown_secrets, files.to_json(new))


def shown(ctx: Context) -> Dict[str, Any]:
    """What the probes of the last run that had secrets showed: `sources`, and `of` each the keyed digests of its values."""
    kept = files.read_json(ctx.node.shown_secrets)
    return kept if isinstance(kept, dict) else {}


def changed(kept: Dict[str, Any], values: Iterable[Tuple[str, str]]) -> Optional[str]:
    """The name of a secret that was shown and has another value by now; the one that was shown is known to nobody."""
    known = {(name, secret.mark(kept["salt"], value)) for name, value in values} if kept else set()
    for name, marks in sorted(kept.get("of", {}).items()):
        if any((name, mark) not in known for mark in marks):
            return str(name)
    return None


def forget(ctx: Context) -> None:
    """A daemon is started, with a log of its own: what was shown to the one before is no part of it."""
    kept = shown(ctx)
    if kept and kept["run"] != ctx.run:
        files.drop(ctx.node.shown_secrets)
    elif kept:
        files.write_atomic(ctx.node.shown_secrets, files.to_json({**kept, "of": {}}))
