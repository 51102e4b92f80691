"""Secrets that the requests of probes show: by name in a plan, with their places where a host is asked, never a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kedge.model.base import Json
from kedge.model.notation import Path
from kedge.plan.template import placeholders, strings

MARK = "\0"
"""Around the name of a secret in a rendered text. No document has it, and a host refuses it everywhere else."""

_REQUESTS = ("http", "grpc")
_SHOWN = ("headers", "basic_auth", "tls")
_WRITTEN = ("ca", "certificate", "key")


def parts(text: str) -> Json:
    """A rendered text as the host program takes it: itself, or with secrets a list of texts and ``{"secret": NAME}``."""
    if MARK not in text:
        return text
    pieces = text.split(MARK)
    return [
        {"secret": piece} if at % 2 else piece for at, piece in enumerate(pieces) if at % 2 or piece
    ]


def names(texts: Iterable[Json]) -> set[str]:
    """The secrets in texts that :func:`parts` made."""
    return {
        str(part["secret"])
        for text in texts
        if isinstance(text, list)
        for part in text
        if isinstance(part, dict)
    }


def shown(template: Json) -> set[str]:
    """The secrets that a tree with placeholders names."""
    return {
        name.removeprefix("secret.")
        for _, text in strings(template)
        for name in placeholders(text)
        if name.startswith("secret.")
    }


def may_show(path: Path) -> bool:
    """Whether a secret may stand at this place of a runbook: in what a request shows to its server."""
    for at, key in enumerate(path):
        if key in _REQUESTS:
            rest = path[at + 1 :]
            return rest[:1] in {("headers",), ("basic_auth",)} or rest in {
                (one,) for one in _WRITTEN
            }
    return False


def with_sources(rendered: Json, source: Callable[[str], Json]) -> Json:
    """The same tree with each request's secrets as parts, and where they are beside them."""
    if isinstance(rendered, list):
        return [with_sources(part, source) for part in rendered]
    if not isinstance(rendered, dict):
        return rendered
    return {
        key: _completed(part, source)
        if key in _REQUESTS and isinstance(part, dict)
        else with_sources(part, source)
        for key, part in rendered.items()
    }


def _completed(request: dict[str, Json], source: Callable[[str], Json]) -> Json:
    found: set[str] = set()
    made: dict[str, Json] = dict(request)
    for key in _SHOWN:
        texts = request.get(key)
        if isinstance(texts, dict):
            inner = {
                name: parts(text) if isinstance(text, str) else text for name, text in texts.items()
            }
            found |= names(inner.values())
            made[key] = inner
    if found:
        made["secrets"] = {name: source(name) for name in sorted(found)}
    return made
