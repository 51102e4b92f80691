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
from kedge.host.baseline import MAX_RELEASES
from kedge.host.errors import Conflict, DigestMismatch, NoRelease, NoSnapshot, ServiceDied
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
    started: str | None = None
    starts: int = 0
    first: int = 0
    """What was started last, how many starts there were, and the one at which that release was first started."""
    started_generation: str | None = None

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
        "anew",
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
        "ran",
        "releases",
        "replaced",
        "restored",
        "run",
        "runs",
        "snapshots",
        "state",
        "taken",
        "token",
    )

    def __init__(self, key: str) -> None:
        self.key = key
        self.token: Token | None = None
        self.run = ""
        self.state = EMPTY
        self.counts = Counts()
        self.releases: tuple[str, ...] = ()
        self.generations: dict[str, str] = {}
        """By generation a short hash of what it says: its name stands for one content."""
        self.snapshots: dict[str, tuple[str, ...]] = {}
        self.taken: dict[str, tuple[str, str | None, int]] = {}
        """Of each snapshot, in the order they were taken: its step, the release it is from before, starts until then."""
        self.ran: tuple[tuple[str, str | None], ...] = ()
        """The generation that ran with each release before the node was moved away from it, oldest first."""
        self.replaced: tuple[str, ...] = ()
        self.restored = ""
        """The key of the restore that was done last."""
        self.journal: dict[str, Record] = {}
        self.runs: dict[str, int | None] = {}
        """Commands begun, by key: the exit code, or None while nobody knows how they ended."""
        self.anew: dict[str, int] = {}
        """How often a person had said to execute a command again when it was begun last, by key; none is 0."""
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
            "started_release": self.state.started,
            "ran": dict[str, Json](self.ran),
            "token": list(self.token) if self.token else None,
            "run": self.run or None,
            "releases": [*sorted(self.releases)],
            "generations": [*sorted(self.generations)],
            "snapshots": [*sorted(self.snapshots)],
            "replaced": list(self.replaced),
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
    """One operation to do, with checked parameters, at the second ``now``.

    ``before`` is the state when its key was first begun: results tell what changed since then,
    also when an attempt that died in the middle had changed it already.
    """

    host: SimHost
    key: str
    params: Params
    before: State
    now: float


def _observe(act: Act) -> Result:
    return act.host.observe(act.now)


def _stage(act: Act) -> Result:
    host = act.host
    digest = act.params["digest"]
    if digest not in host.releases:
        if act.params["source"] is None:
            _staged(host, digest)
        host.releases = (*host.releases, digest)
    return {"files": 1, "bytes": act.params["length"]}


def _verify(act: Act) -> Result:
    _staged(act.host, act.params["digest"])
    return {"files": 1}


def _stop(act: Act) -> Result:
    host = act.host
    if host.state.alive(act.now):
        host.count("stops")
    host.become(
        pid=None, running_release=None, running_generation=None, should_run=False, dies_at=None
    )
    return {"waited": 0.0, "was_running": act.before.alive(act.now)}


def _start(act: Act) -> Result:
    host = act.host
    state = host.state
    if state.release is None:
        raise NoRelease("`current` points to no release: switch first")
    if state.generation is None:
        raise Conflict("the node has no configuration that says what to run: configure it first")
    if state.alive(act.now):
        for what in ("release", "generation"):
            wanted, found = getattr(state, what), getattr(state, f"running_{what}")
            if wanted != found:
                raise Conflict(
                    f"another {what} runs ({str(found)[:12]}, not {wanted[:12]}): stop it first",
                    {"running": found, "wanted": wanted},
                )
        host.become(should_run=True)
        return {"pid": state.pid}
    _staged(host, state.release)
    host.pids += 1
    host.become(
        pid=1000 + host.pids,
        running_release=state.release,
        running_generation=state.generation,
        should_run=True,
        data=state.data if state.data[-1:] == (state.release,) else (*state.data, state.release),
        dies_at=None,
        started=state.release,
        started_generation=state.generation,
        starts=state.starts + 1,
        first=state.first if state.started == state.release else state.starts + 1,
    )
    host.count("starts")
    return {"pid": 1000 + host.pids}


def _ensure(act: Act) -> Result:
    state = act.host.state
    if not state.should_run:
        return {"should_run": False, "started": False, "pid": None}
    if state.alive(act.now):
        return {"should_run": True, "started": False, "pid": state.pid}
    return {"should_run": True, "started": True, **_start(act)}


def _switch(act: Act) -> Result:
    host = act.host
    digest = _staged(host, act.params["digest"])
    if host.state.release != digest:
        host.become(release=digest)
        host.count("switches")
    return {"from": act.before.release, "to": digest}


def _note_ran(host: SimHost, release: str, generation: str | None) -> None:
    if (release, generation) not in host.ran:
        rest = tuple(one for one in host.ran if one[0] != release)
        host.ran = (*rest, (release, generation))[-MAX_RELEASES:]


def _chosen(act: Act) -> tuple[str, bool]:
    """The generation that is meant, and whether the host knew it by itself: ``kedge.host.configs.chosen``."""
    host, earlier = act.host, act.params["earlier"]
    given: str = act.params["generation"]
    if earlier is None:
        return given, True
    started = host.state.started_generation if host.state.started == earlier else None
    generation = dict(host.ran).get(earlier, started)
    if generation is None or generation not in host.generations:
        return given, False
    return generation, True


def _configure(act: Act) -> Result:
    host = act.host
    generation, known = _chosen(act)
    if generation == act.params["generation"]:
        text = json.dumps([act.params["files"], act.params["service"]], sort_keys=True)
        content = hashlib.sha256(text.encode()).hexdigest()[:16]
        there = host.generations.get(generation)
        if there is None:
            host.generations = {**host.generations, generation: content}
        elif there != content:
            raise DigestMismatch(
                f"generation {generation} on this host has other content",
                {"generation": generation},
            )
    if host.state.generation != generation:
        host.become(generation=generation)
    told: Result = {"from": act.before.generation, "to": generation}
    if act.params["earlier"] is None:
        return told
    if not known:
        _note_ran(host, act.params["earlier"], None)
    return {**told, "known": known}


def _check(act: Act) -> Result:
    """What can be known before the stop: ``kedge.host.preflight.check``, without a disk."""
    host, params, state = act.host, act.params, act.host.state
    _staged(host, params["release"])
    if params["back"] is not None:
        _staged(host, params["back"])
    restore = params["restore"]
    if restore is not None and _standing(act._replace(params=restore)) is None:
        raise NoSnapshot(f"there is no complete snapshot {restore['id']!r} on this host")
    moves = restore is not None or params["snapshot"] is not None
    told: Result = {"bytes": 0 if moves else None, "kept": None}
    if params["earlier"] is not None:
        return {**told, "known": _chosen(act)[1]}
    if state.started is not None and state.started != params["release"]:
        _note_ran(host, state.started, state.started_generation)
    return told


def _standing(act: Act) -> str | None:
    """The snapshot that an operation means: ``kedge.host.snapshots.standing``."""
    host, state, before = act.host, act.host.state, act.params["before"]
    name: str = act.params["id"]
    if name in host.snapshots:
        return name
    if before is None or state.started != before:
        return None
    wanted = (act.params["step"], before, state.first - 1)
    return next((one for one, told in reversed(host.taken.items()) if told == wanted), None)


def _snapshot(act: Act) -> Result:
    host = act.host
    name = _standing(act)
    if name is None:
        name = act.params["id"]
        told = (act.params["step"], act.params["before"], host.state.starts)
        host.snapshots = {**host.snapshots, name: host.state.data}
        host.taken = {**host.taken, name: told}
    data = json.dumps(host.snapshots[name]).encode()
    return {
        "id": name,
        "files": len(host.snapshots[name]),
        "bytes": len(data),
        "digest": hashlib.sha256(data).hexdigest(),
    }


def _restore(act: Act) -> Result:
    host = act.host
    name = _standing(act)
    if name is None:
        raise NoSnapshot(f"there is no complete snapshot {act.params['id']!r} on this host")
    if host.restored != act.key:
        if host.state.alive(act.now):
            raise Conflict("the daemon runs: stop it before its files are replaced")
        host.become(data=host.snapshots[name])
        host.replaced = (*host.replaced, f"replaced-{len(host.replaced) + 1}")
        host.restored = act.key
    replaced = host.replaced[-1:]
    if act.params["drop_replaced"] and replaced:
        host.replaced = host.replaced[:-1]
        replaced = ()
    return {
        "id": name,
        "files": len(host.snapshots[name]),
        "replaced": replaced[0] if replaced else None,
    }


def _prune(act: Act) -> Result:
    host = act.host
    keep = {*act.params["releases"], host.state.release, host.state.running_release}
    snapshots = set(act.params["snapshots"])
    removed: list[Json] = [name for name in host.releases if name not in keep]
    removed += [name for name in sorted(host.snapshots) if name not in snapshots]
    host.releases = tuple(name for name in host.releases if name in keep)
    host.snapshots = {name: host.snapshots[name] for name in host.snapshots if name in snapshots}
    host.taken = {name: told for name, told in host.taken.items() if name in snapshots}
    return {"removed": removed}


def _fence(act: Act) -> Result:
    return {"token": list(act.host.token or ())}


ACTS: dict[str, Callable[[Act], Result]] = {
    "fence": _fence,
    "observe": _observe,
    "stage": _stage,
    "verify": _verify,
    "check": _check,
    "stop": _stop,
    "start": _start,
    "switch": _switch,
    "configure": _configure,
    "secrets": lambda act: {"secrets": sorted(act.params["secrets"])},
    "snapshot": _snapshot,
    "restore": _restore,
    "ensure": _ensure,
    "prune": _prune,
}
"""Operations that are one act. ``probe``, ``healthy`` and ``run`` wait, and are the session's."""


def died(host: SimHost, *, background: bool = False) -> ServiceDied:
    """The error of a daemon that does not live, with the host program's detail."""
    said = f"the daemon ended: release {(host.state.running_release or 'none')[:12]}"
    if background:
        said = (
            "the daemon went into the background: its first process ended. What ran on was stopped"
        )
    return ServiceDied(said, {"exit": None, "log": ""})
