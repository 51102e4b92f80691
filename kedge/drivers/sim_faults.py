"""Faults of simulated hosts: which occasion they wait for, and what happens then.

They come from a test (:meth:`SimTransport.program`), from a node's ``options`` in the Fleet
document (``faults``), or from a JSON file that the options name (``faults_file``, a list of faults)
and that may change while the simulator runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from kedge.model.base import Frozen, Json, Seconds
from kedge.model.errors import DriverError

Act = Literal["fail", "hang", "die", "unreachable", "unhealthy", "crash", "background"]

FINAL = frozenset(
    {"Fenced", "BadRequest", "Conflict", "DigestMismatch", "ArchiveRefused", "NoRelease"}
    | {"NoSnapshot", "Unresolved"}
)
"""Error types of the host program that trying again does not help."""

MAX_FAULTS_FILE = 1024 * 1024


class Fault(Frozen):
    """One rule: on the occasions it names, ``do`` happens instead of, or around, the operation.

    An occasion is named by globs over the node, the operation, the run and the key, and by the
    first digits of the digest that ``current`` is (``release``). ``nth`` counts how often the
    operation was begun on that node in that run, from 1; empty is every time.

    ============ ==========================================================================
    fail         the operation fails with ``type`` and ``message``
    hang         it waits ``seconds``, or for ever without, then goes on
    die          the host program dies: the session is lost
    unreachable  the session cannot be opened (with an ``op``: the node is gone there)
    unhealthy    every probe over the network or by command fails
    crash        the daemon started by this ``start`` dies ``seconds`` later
    background   the daemon started by this ``start`` goes into the background at once
    ============ ==========================================================================

    ``at`` is the instant of fail, hang and die: ``before`` anything is done, ``acted`` when it
    was done but not recorded, ``recorded`` when only the answer is missing (not for fail).
    """

    do: Act
    node: str = "*"
    op: str = "*"
    run: str = "*"
    key: str = "*"
    release: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    nth: tuple[Annotated[int, Field(ge=1)], ...] = ()
    at: Literal["before", "acted", "recorded"] = "before"
    type: str = "HostError"
    message: str = "the simulator was told to fail here"
    detail: dict[str, Json] = Field(default_factory=dict)
    seconds: Seconds | None = None

    @property
    def retryable(self) -> bool:
        """Whether the host program calls this type retryable."""
        return self.type not in FINAL

    def matches(self, occasion: Occasion) -> bool:
        """Whether this rule speaks of ``occasion``."""
        return (
            (not self.nth or occasion.nth in self.nth)
            and occasion.release.startswith(self.release)
            and self._speaks_of(occasion.op)
            and (self.node == "*" or fnmatchcase(occasion.node, self.node))
            and (self.run == "*" or fnmatchcase(occasion.run, self.run))
            and (self.key == "*" or fnmatchcase(occasion.key, self.key))
        )

    def _speaks_of(self, op: str) -> bool:
        if self.op == "*":
            # The opening of a session is no operation: only who is unreachable fails there.
            return (op == "session") == (self.do == "unreachable")
        return fnmatchcase(op, self.op)


class Occasion(NamedTuple):
    """One operation about to begin (``op`` is ``session`` for the opening of a session)."""

    node: str
    op: str
    run: str
    key: str
    release: str
    nth: int


class NodeOptions(Frozen):
    """What a Fleet document may say in the ``options`` of a simulated node.

    ``seconds`` is how long each operation takes (``*`` for all others), in simulated seconds, and
    ``pace`` the real seconds of a simulated one. ``answers`` maps the first digits of a release's
    digest (or ``*``) to the body that probes over the network and by command see.
    """

    faults: tuple[Fault, ...] = ()
    faults_file: str | None = None
    seconds: dict[str, Seconds] = Field(default_factory=dict)
    pace: Annotated[float, Field(ge=0, le=1000)] | None = None
    answers: dict[str, Json] = Field(default_factory=dict)

    def duration(self, op: str) -> float:
        """Simulated seconds that ``op`` takes."""
        return self.seconds.get(op, self.seconds.get("*", 0.0))


NO_OPTIONS = NodeOptions()
_OPTIONS = TypeAdapter(NodeOptions)
_FAULTS: TypeAdapter[tuple[Fault, ...]] = TypeAdapter(tuple[Fault, ...])


def parse_options(node: str, options: Mapping[str, Json]) -> NodeOptions:
    """The simulator's options of a node; keys that are not the simulator's are others' business.

    Raises ``DriverError`` kind ``BadRequest`` with the place of the first mistake.
    """
    ours = {key: value for key, value in options.items() if key in NodeOptions.model_fields}
    if not ours:
        return NO_OPTIONS
    try:
        return _OPTIONS.validate_json(json.dumps(ours))
    except ValidationError as error:
        raise _refusal(f"options of the simulated node {node}", error) from error


def _refusal(where: str, error: ValidationError) -> DriverError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return DriverError("BadRequest", f"{where}: {place}: {first['msg']}", retryable=False)


class FaultsFile:
    """Faults in a file that may change at any time; read again when it did, none when it is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._faults: tuple[Fault, ...] = ()

    def faults(self) -> tuple[Fault, ...]:
        """The faults as the file has them now. Raises ``DriverError`` kind ``BadRequest``."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - once per operation: Path.stat costs double
        except FileNotFoundError:
            self._seen, self._faults = None, ()
            return ()
        seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        if seen != self._seen:
            if found.st_size > MAX_FAULTS_FILE:
                raise DriverError("BadRequest", f"{self._path} is too large", retryable=False)
            try:
                self._faults = _FAULTS.validate_json(self._path.read_bytes())
            except ValidationError as error:
                raise _refusal(str(self._path), error) from error
            self._seen = seen
        return self._faults
