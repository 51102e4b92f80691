"""A simulated host: the state of one node and what each operation of the host program does to it.

The rules are those of docs/host-protocol.md, without disk and processes: observe, act, observe;
errors have the host program's own types. Nothing here waits or knows of sessions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from kedge.drivers.ports import Token
from kedge.host.errors import Conflict, NoRelease, NoSnapshot, ServiceDied
from kedge.model.base import Json

Params: TypeAlias = Mapping[str, Any]
Result: TypeAlias = dict[str, Json]

NOTHING: Result = {}
"""Shared by all records that say nothing: ten thousand nodes keep tens of thousands of records."""


class State(NamedTuple):
    """What an observation sees.

    ``data`` names the releases that wrote to the node's data, in order; ``dies_at`` is the
    wall-clock second at which a crashing daemon is gone.
    """

    release: str | None = None
    generation: str | None = None
    pid: int | None = None
    running_release: str | None = None
    running_generation: str | None = None
    should_run: bool = False
    data: tuple[str, ...] = ()
    dies_at: float | None = None

    def alive(self, now: float) -> bool:
        """Whether the daemon runs at ``now``."""
        return self.pid is not None and (self.dies_at is None or now < self.dies_at)

    def brief(self, now: float) -> Result:
        """What operations are recorded with: the keys of the host program's observation."""
        alive = self.alive(now)
        return {
            "release": self.release,
            "generation": self.generation,
            "running": alive,
            "pid": self.pid if alive else None,
            "running_release": self.running_release if alive else None,
            "running_generation": self.running_generation if alive else None,
            "should_run": self.should_run,
        }


EMPTY = State()


class Record(NamedTuple):
    """One line of the journal: states are kept instead of observations, they are shared."""

    op: str
    before: State
    after: State
    at: float
    result: Result = NOTHING
    skipped: bool = False


class Counts(NamedTuple):
    """What really happened, as a counting service would have it: no replays, no no-ops."""

    starts: int = 0
    stops: int = 0
    switches: int = 0
    runs: int = 0


class SimHost:
    """One simulated host. Slots and shared tuples keep it near a kilobyte plus its journal.

    Every field but ``journal`` is replaced, never changed in place: so what changed is cheap to see.
    """

    __slots__ = (
        "begun",
        "begun_run",
        "busy",
        "captured",
        "counts",
        "first",
        "generations",
        "journal",
        "key",
        "pids",
        "releases",
        "run",
        "runs",
        "snapshots",
        "state",
        "token",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.token: Token | None = None
        self.run = ""
        self.state = EMPTY
        self.counts = Counts()
        self.releases: tuple[str, ...] = ()
        self.generations: tuple[str, ...] = ()
        self.snapshots: dict[str, tuple[str, ...]] = {}
        self.journal: dict[str, Record] = {}
        self.runs: dict[str, int | None] = {}
        """Commands begun, by key: the exit code, or None while nobody knows how they ended."""
        self.captured: dict[str, dict[str, Json]] = {}
        self.first: tuple[str, State] = ("", EMPTY)
        """The key begun last, and the state before it was first begun."""
        self.pids = 0
        self.begun: dict[str, int] = {}
        self.begun_run = ""
        self.busy = False

    def observe(self, now: float) -> Result:
        """The observation a session ends with."""
        return {
            **self.state.brief(now),
            "token": list(self.token) if self.token else None,
            "run": self.run or None,
            "releases": list(self.releases),
            "generations": list(self.generations),
            "snapshots": [*sorted(self.snapshots)],
            "replaced": [],
        }

    def become(self, **changes: Any) -> None:
        """Moves to a new state."""
        self.state = self.state._replace(**changes)

    def count(self, what: str) -> None:
        """One more real ``starts``, ``stops``, ``switches`` or ``runs``."""
        self.counts = self.counts._replace(**{what: getattr(self.counts, what) + 1})

    def occasion(self, run: str, op: str) -> int:
        """Counts that ``op`` begins in ``run``; the how manieth time it is, from 1."""
        if run != self.begun_run:
            self.begun_run, self.begun = run, {}
        nth = self.begun.get(op, 0) + 1
        self.begun = {**self.begun, op: nth}
        return nth


def _staged(host: SimHost, digest: str) -> str:
    if digest not in host.releases:
        raise NoRelease(f"release {digest[:12]} is not on this host", {"digest": digest})
    return digest


class Act(NamedTuple):
    """One operation to do: on which host, with which checked parameters, at which second."""

    host: SimHost
    params: Params
    now: float


def _not_running(act: Act, why: str) -> None:
    state = act.host.state
    if state.alive(act.now):
        raise Conflict(f"the daemon runs: {why}", {"pid": state.pid})


def _observe(act: Act) -> Result:
    return act.host.observe(act.now)


def _stage(act: Act) -> Result:
    host = act.host
    digest = act.params["digest"]
    if digest not in host.releases:
        host.releases = (*host.releases, digest)
    return {"files": 1, "bytes": act.params["length"]}


def _verify(act: Act) -> Result:
    _staged(act.host, act.params["digest"])
    return {"files": 1}


def _stop(act: Act) -> Result:
    host = act.host
    was_running = host.state.alive(act.now)
    host.become(
        pid=None, running_release=None, running_generation=None, should_run=False, dies_at=None
    )
    if was_running:
        host.count("stops")
    return {"waited": 0.0, "was_running": was_running}


def _start(act: Act) -> Result:
    host = act.host
    state = host.state
    if state.release is None or state.release not in host.releases:
        raise NoRelease("no release is current on this node")
    if state.alive(act.now):
        if (state.running_release, state.running_generation) == (state.release, state.generation):
            host.become(should_run=True)
            return {"pid": state.pid}
        raise Conflict("the daemon runs with another release or configuration: stop it first")
    if state.generation is None:
        raise Conflict("no configuration is current on this node")
    host.pids += 1
    host.become(
        pid=1000 + host.pids,
        running_release=state.release,
        running_generation=state.generation,
        should_run=True,
        data=state.data if state.data[-1:] == (state.release,) else (*state.data, state.release),
        dies_at=None,
    )
    host.count("starts")
    return {"pid": 1000 + host.pids}


def _ensure(act: Act) -> Result:
    host = act.host
    if host.state.should_run and not host.state.alive(act.now):
        return _start(act)
    return {"pid": host.state.pid if host.state.alive(act.now) else None}


def _switch(act: Act) -> Result:
    host = act.host
    digest = _staged(host, act.params["digest"])
    before = host.state.release
    if before != digest:
        _not_running(act, "stop it before its release is switched")
        host.become(release=digest)
        host.count("switches")
    return {"from": before, "to": digest}


def _configure(act: Act) -> Result:
    host = act.host
    generation = act.params["generation"]
    before = host.state.generation
    if generation not in host.generations:
        host.generations = (*host.generations, generation)
    if before != generation:
        host.become(generation=generation)
    return {"from": before, "to": generation}


def _snapshot(act: Act) -> Result:
    host = act.host
    name = act.params["id"]
    if name not in host.snapshots:
        _not_running(act, "a copy of data in use is no snapshot")
        host.snapshots = {**host.snapshots, name: host.state.data}
    data = json.dumps(host.snapshots[name]).encode()
    return {
        "files": len(host.snapshots[name]),
        "bytes": len(data),
        "digest": hashlib.sha256(data).hexdigest(),
    }


def _restore(act: Act) -> Result:
    host = act.host
    name = act.params["id"]
    if name not in host.snapshots:
        raise NoSnapshot(f"there is no complete snapshot {name!r}")
    _not_running(act, "stop it before its data is replaced")
    replaced = host.state.data != host.snapshots[name]
    if replaced:
        host.become(data=host.snapshots[name])
    return {"files": len(host.snapshots[name]), "replaced": None}


def _prune(act: Act) -> Result:
    host = act.host
    keep = {*act.params["releases"], host.state.release, host.state.running_release}
    snapshots = set(act.params["snapshots"])
    removed: list[Json] = [name for name in host.releases if name not in keep]
    removed += [name for name in sorted(host.snapshots) if name not in snapshots]
    host.releases = tuple(name for name in host.releases if name in keep)
    host.snapshots = {name: host.snapshots[name] for name in host.snapshots if name in snapshots}
    return {"removed": removed}


def _fence(act: Act) -> Result:
    return {"token": list(act.host.token or ())}


ACTS: dict[str, Callable[[Act], Result]] = {
    "fence": _fence,
    "observe": _observe,
    "stage": _stage,
    "verify": _verify,
    "stop": _stop,
    "start": _start,
    "switch": _switch,
    "configure": _configure,
    "snapshot": _snapshot,
    "restore": _restore,
    "ensure": _ensure,
    "prune": _prune,
}
"""Operations that are one act. ``probe``, ``healthy`` and ``run`` wait, and are the session's."""


def died(host: SimHost) -> ServiceDied:
    """The error of a daemon that did not stay alive."""
    return ServiceDied("the daemon ended", {"release": host.state.release, "log": []})
