"""The lines of a host program, read strictly: what a node says becomes typed, bounded and clean here, whatever carries it.

A line is of docs/host-protocol.md or it is refused; what is in it of a daemon's or a file's words is bounded, can be
written into a record, and is one visible line where it is a sentence. So nothing that a node says is met by anybody further
in as a value he did not expect. :func:`said` does the same to events that were not read from a line (the simulator's).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from kedge.drivers.ports import HostEvent, HostFault, SessionEnd
from kedge.host import errors as host_errors
from kedge.host import outside as host_outside
from kedge.model.base import Json
from kedge.model.bounds import check_values
from kedge.model.outside import line as visible

MAX_LINE = 8 * 1024 * 1024
"""The longest line of the host program that is read, in bytes; its own bounds are far below."""
MAX_MESSAGE = 600
MAX_SAID = 200
MAX_KEY = 512
MAX_OTHERS = 16
"""Fields of an observation that are not known here and are kept all the same, where they are small."""
MAX_DETAIL = 8192
"""Characters of a failure's detail, as JSON: many failures travel together."""

NONE: Final[Mapping[str, Json]] = {}
KINDS: Final = frozenset(
    one.kind
    for one in vars(host_errors).values()
    if isinstance(one, type) and issubclass(one, host_errors.Fault)
)
"""The error types of the host program. What a node calls by another name is no error of kedge's own."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}")


class ProtocolError(ValueError):
    """What a host program said is not of its protocol: a fact about that node, and no lost connection."""


def read(raw: bytes) -> HostEvent | SessionEnd:
    """One line. Raises :class:`ProtocolError`. The end has no events: who reads the session has them."""
    if len(raw) > MAX_LINE:
        raise ProtocolError(f"a line of more than {MAX_LINE} bytes")
    try:
        check_values(raw)
        told = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a line that is not JSON: {visible(str(error), 200)}") from error
    if not isinstance(told, dict):
        raise ProtocolError("a line that is no object")
    if told.get("ev") == "end":
        return SessionEnd(
            ok=_flag(told, "ok"), done=(), observed=_observation(told.get("observed"), "observed")
        )
    return _event(told)


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _event(told: Mapping[str, Any]) -> HostEvent:
    kind = told.get("ev")
    if kind not in ("begin", "progress", "done", "failed"):
        raise ProtocolError(f"a line of the kind {visible(repr(kind), 80)}")
    return HostEvent(
        ev=kind,
        key=_text(told, "key"),
        op=_text(told, "op"),
        said=visible(_text(told, "said", 1 << 16), MAX_SAID),
        replayed=_flag(told, "replayed"),
        skipped=_flag(told, "skipped"),
        result=_object(told, "result"),
        before=_observation(told.get("before"), "before"),
        after=_observation(told.get("after"), "after"),
        error=_fault(told.get("error")) if kind == "failed" else None,
    )


def _fault(told: Any) -> HostFault:
    if not isinstance(told, dict) or not isinstance(told.get("type"), str):
        raise ProtocolError("a failure without a type")
    if not isinstance(told.get("message"), str) or not isinstance(told.get("retryable"), bool):
        raise ProtocolError("a failure without a message, or without a word on another try")
    return fault(
        told["type"], told["message"], _object(told, "detail"), retryable=told["retryable"]
    )


def fault(kind: str, message: str, detail: Mapping[str, Any], *, retryable: bool) -> HostFault:
    """A failure as a node may say it: of a kind that host programs know, its sentence one visible line."""
    if kind not in KINDS:
        message, kind = f"{visible(kind, 64)}: {message}", host_errors.HostError.kind
    return HostFault(kind, visible(message, MAX_MESSAGE), retryable, _small(detail))


def said(event: HostEvent) -> HostEvent:
    """An event that a node says otherwise than by a line, as strictly bounded as one that was read."""
    error = event.error
    if error is None and not event.said and host_outside.is_small_and_clean(event.result):
        return event
    if error is not None:
        error = fault(error.type, error.message, error.detail, retryable=error.retryable)
    result = event.result and host_outside.value(dict(event.result))
    return replace(event, said=visible(event.said, MAX_SAID), result=result, error=error)


def _small(detail: Mapping[str, Any]) -> dict[str, Json]:
    """As much of a detail as there is room for, the smaller parts first."""
    found: dict[str, Json] = host_outside.value(dict(detail))
    sizes = {key: len(key) + len(json.dumps(one)) for key, one in found.items()}
    room = MAX_DETAIL
    kept: set[str] = set()
    for key in sorted(found, key=lambda key: sizes[key]):
        room -= sizes[key]
        if room < 0:
            break
        kept.add(key)
    return {key: one for key, one in found.items() if key in kept}


# -- single values -------------------------------------------------------------------------------------------------


def _text(told: Mapping[str, Any], name: str, most: int = MAX_KEY) -> str:
    value = told.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise ProtocolError(f"{name}: a text of at most {most} characters is needed")
    return host_outside.text(value, most)


def _flag(told: Mapping[str, Any], name: str) -> bool:
    value = told.get(name, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name}: true or false is needed")
    return value


def _object(told: Mapping[str, Any], name: str) -> Mapping[str, Json]:
    value = told.get(name)
    if value is None:
        return NONE
    if not isinstance(value, dict):
        raise ProtocolError(f"{name}: an object is needed")
    found: dict[str, Json] = host_outside.value(value)
    return found


def _observation(value: Any, where: str) -> Mapping[str, Json]:
    """What a node says it looks like: what kedge goes by has the type it must have; of the rest, small values stay."""
    if value is None:
        return NONE
    if not isinstance(value, dict):
        raise ProtocolError(f"{where}: an object is needed")
    found: dict[str, Json] = {}
    room = MAX_OTHERS
    for key, one in host_outside.value(value).items():
        check = _OBSERVED.get(key)
        if check is None:
            if room and len(key) <= 64 and _is_small(one):
                found[key] = one
                room -= 1
        elif one is None or check(one):
            found[key] = one
        else:
            raise ProtocolError(f"{where}.{key}: {visible(repr(one), 80)} is not what it may be")
    return found


def _is_small(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or _is_text(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_token(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_count, value))


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and _is_digest(value[1])
    )


def _is_ran(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_OTHERS
        and all(_is_digest(key) and (one is None or _is_name(one)) for key, one in value.items())
    )


_OBSERVED: dict[str, Callable[[Any], bool]] = {
    "release": _is_digest,
    "running_release": _is_digest,
    "started_release": _is_digest,
    "generation": _is_name,
    "running_generation": _is_name,
    "running": _is_flag,
    "should_run": _is_flag,
    "pid": _is_count,
    "token": _is_token,
    "run": _is_text,
    "releases": _all(_is_digest),
    "generations": _all(_is_name),
    "snapshots": _all(_is_name),
    "replaced": _all(_is_name),
    "journal": _is_head,
    "ran": _is_ran,
}


# -- a session -----------------------------------------------------------------------------------------------------


class Conversation:
    """The lines of one session as they come: what is said is held against what was asked.

    ``end`` is the end once its line was read. A session that says it is well has done everything that was asked, in that
    order; one that is not says at what it failed. Anything else is a :class:`ProtocolError`.
    """

    def __init__(self, asked: Iterable[Mapping[str, Json]]) -> None:
        self._asked = [(str(op.get("key", "")), str(op.get("op", ""))) for op in asked]
        self._done: list[HostEvent] = []
        self.failed: HostEvent | None = None
        self.end: SessionEnd | None = None

    def read(self, raw: bytes) -> HostEvent | None:
        """Take one line; gives the event in it, None for the last line."""
        if self.end is not None:
            raise ProtocolError("a line after the last one")
        told = read(raw)
        if isinstance(told, SessionEnd):
            self.end = self._ended(told)
            return None
        self._fits(told)
        return told

    def broken(self) -> SessionEnd | None:
        """How it ended when its last line never came: as it failed, if it said so before."""
        if self.failed is None:
            return None
        return SessionEnd(ok=False, done=tuple(self._done), failed=self.failed)

    def _fits(self, told: HostEvent) -> None:
        if self.failed is not None:
            raise ProtocolError("a line about an operation after the one that failed")
        at = len(self._done)
        now = self._asked[at] if at < len(self._asked) else ("", "")
        if told.ev == "failed" and not told.key:
            self.failed = told
            return
        if told.key != now[0] or (told.op and told.op != now[1]):
            raise ProtocolError(
                f"{told.ev} of {visible(told.key, 200)!r}, which is not what is done now"
            )
        if told.ev == "done":
            self._done.append(told)
        elif told.ev == "failed":
            self.failed = told

    def _ended(self, told: SessionEnd) -> SessionEnd:
        if told.ok and (self.failed is not None or len(self._done) != len(self._asked)):
            raise ProtocolError("all is well, it says, but not everything was done")
        if not told.ok and self.failed is None:
            raise ProtocolError("it failed, it says, but not at what")
        return SessionEnd(
            ok=told.ok, done=tuple(self._done), failed=self.failed, observed=told.observed
        )
