"""What the record of a fleet says of its runs: a fold over entries, used by workers before they act and by verification.

Only records that authorize count: leases, orders that were accepted, admissions, legs, looks, returns and ends. Their keys
and kinds are chosen by activities, never by a workflow; what a workflow says of its decisions stands under ``said/`` and
changes nothing here. The fold needs no plan: an admission says how many legs and attempts the plan gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kedge.model.base import Digest
from kedge.plan.tries import FINAL, LOST, RESTARTING
from kedge.trust.chain import EvidenceEntry, EvidenceHead, genesis
from kedge.trust.wholeness import acts_as

SAID = "said/"
"""What begins the key of everything that a workflow says."""
KEPT_RUNS = 8
"""Runs of one fleet whose nodes are remembered; of older ones nothing is asked any more."""
GAP_MS = 60_000
"""Milliseconds beyond three intervals that may lie between two looks of a bake: a worker that was lost is replaced."""

Believes: TypeAlias = Callable[[Mapping[str, Any]], bool]
"""Whether the record of an accepted order holds: its signature is verified again by whoever relies on it."""
HOLDING = frozenset({"pause", "abort", "reject"})
"""Orders that let nothing further begin. They do so also when their signature does not verify again, since a policy may
have changed; only a verified one is a reason to record that a person ended the run."""


@dataclass
class NodeHistory:
    """One node in one program: ``leg`` is the next one, ``round`` the one it is in, ``serial`` its last admission."""

    leg: int = 0
    of: int = 1
    attempts: int = 1
    round: int = 0
    tries: int = 0
    serial: int = 0
    token: tuple[int, ...] = ()
    reported: bool = False
    """The last failure was reported by the host, not made of silence."""
    failure: Mapping[str, Any] | None = None
    """The last failure as the record has it: ``key`` of the operation, ``type``, ``message``."""


@dataclass
class Track:
    """The nodes of one program. A node is in at most one of the sets; ``failed`` has the record that says so."""

    nodes: dict[str, NodeHistory] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def admitted(self, seq: int, record: Mapping[str, Any]) -> None:
        """Nodes begin a leg, or try it again."""
        leg, round_ = _number(record.get("leg")), _number(record.get("round"))
        for name in _names(record.get("nodes")):
            node = self.nodes.setdefault(name, NodeHistory())
            if name not in self.begun:
                node.tries = 0
            node.leg, node.round, node.serial = leg, round_, seq
            node.of, node.attempts = _number(record.get("of")), _number(record.get("attempts"))
            self.failed.pop(name, None)
            self.done.discard(name)
            self.begun.add(name)

    def ended(self, seq: int, name: str, record: Mapping[str, Any]) -> bool:
        """An attempt of a leg ended; whether the node is done by it."""
        node = self.nodes.get(name)
        token = _token(record.get("token"))
        if node is None or name not in self.begun or len(token) != 3 or token[1] != node.serial:
            return False
        if _number(record.get("leg")) != node.leg:
            return False
        node.token = max(node.token, token)
        failed = record.get("failed")
        if not isinstance(failed, dict):
            node.leg, node.tries = node.leg + 1, 0
            if node.leg >= node.of:
                self.begun.discard(name)
                self.done.add(name)
                return True
            return False
        kind = str(failed.get("type"))
        if kind in LOST:
            return False
        node.tries += 1
        node.reported = record.get("heard") is True and kind != "Fenced"
        node.failure = failed
        if kind in RESTARTING:
            node.round = seq
        if kind in FINAL or node.tries >= node.attempts:
            self.begun.discard(name)
            self.failed[name] = seq
        return False


@dataclass
class Bake:
    """The looks at one wave: ``since`` when all of them were good, until ``last`` (milliseconds since 1970)."""

    since: int
    last: int
    good: bool = False
    bad: tuple[str, ...] = ()
    at: int = 0
    """The record of the last bad look."""
    reported: bool = False
    skipped: frozenset[str] = frozenset()

    def seconds(self) -> float:
        """How long every look at the wave was good without a gap."""
        return (self.last - self.since) / 1000 if self.good else -1.0


@dataclass
class RunHistory:
    """One run under one epoch."""

    run: str
    epoch: int
    tracks: dict[str, Track] = field(default_factory=dict)
    bakes: dict[int, Bake] = field(default_factory=dict)
    sights: dict[str, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    """By node: the last look of this run, and the record that has it."""
    looked: set[str] = field(default_factory=set)
    there: set[str] = field(default_factory=set)
    bad: dict[str, int] = field(default_factory=dict)
    """Nodes whose last look was not good, and the record that says so."""
    absent: dict[str, int] = field(default_factory=dict)
    """Nodes that did not serve when they were last seen."""
    excused: dict[str, int] = field(default_factory=dict)
    """Nodes without which a person said to go on."""
    decided: dict[str, int] = field(default_factory=dict)
    """Parked items that were decided."""
    retried: int = 0
    """The record of the last decision to try again, and below how many there were."""
    retries: int = 0
    decision: int = 0
    chosen: set[Digest] = field(default_factory=set)
    """Decisions to roll back, by the order."""
    paused: bool = False
    aborted: bool = False
    ended_by_order: bool = False
    """A verified order ended the run; ``aborted`` only says that nothing further begins."""
    wave: int = -1
    """The last wave that was begun."""
    acted: bool = False
    returning: tuple[int, Mapping[str, Any]] | None = None
    """The last decision about the way back, and its record."""
    ended: Mapping[str, Any] | None = None

    def track(self, program: str) -> Track:
        """The nodes of a program; the two ways back are one."""
        name = "back" if program in ("back", "restore") else program
        return self.tracks.setdefault(name, Track())

    @property
    def forward(self) -> Track:
        """The nodes that go to the new release."""
        return self.track("forward")

    def out(self) -> set[str]:
        """Nodes that do not count as missing where a wave is complete: excused, or failed since the last decision."""
        failed = self.forward.failed
        return {*self.excused, *(name for name, seq in failed.items() if seq > self.retried)}

    def lost(self) -> int:
        """How many nodes failed since people last said to try again, and are excused by nobody."""
        failed = self.forward.failed.items()
        return sum(seq > self.retried and name not in self.excused for name, seq in failed)

    def complete(self, names: frozenset[str]) -> set[str]:
        """Those of some nodes that a wave still waits for."""
        left = set(names - self.forward.done - self.there)
        return left - self.out() if left else left

    # -- the records -------------------------------------------------------------------------------------------------

    def order(self, seq: int, record: Mapping[str, Any], *, verified: bool) -> None:
        """A person ordered something about this run."""
        verb, choice = record.get("verb"), record.get("choice")
        if verb == "pause":
            self.paused = True
        elif verb == "resume":
            self.paused = False
        if verb == "abort" or (verb == "decide" and choice == "abort"):
            self.aborted = True
            self.ended_by_order |= verified
        if verb != "decide" or str(record.get("subject")) in self.decided:
            return
        self.decided[str(record.get("subject"))] = self.decision = seq
        if choice == "retry":
            self.retried, self.retries = seq, self.retries + 1
        elif choice == "rollback":
            self.chosen.add(str(record.get("digest")))
        elif choice == "skip":
            self._excuse(seq)

    def _excuse(self, seq: int) -> None:
        """A person goes on without the nodes that the record has as failed."""
        for track in self.tracks.values():
            # A run that waits for a person has nothing in flight: of what was begun still, the end was lost.
            track.failed.update(dict.fromkeys(track.begun, seq))
            track.begun.clear()
        names = {
            *self.bad,
            *self.absent,
            *(name for track in self.tracks.values() for name in track.failed),
        }
        for bake in self.bakes.values():
            names.update(bake.bad)
        for name in names:
            self.excused.setdefault(name, seq)

    def admitted(self, seq: int, record: Mapping[str, Any]) -> None:
        """Nodes were let through."""
        self.acted = True
        for name in _names(record.get("nodes")):
            self.excused.pop(name, None)
            self.bad.pop(name, None)
        program = str(record.get("program"))
        self.track(program).admitted(seq, record)
        if program in ("back", "restore"):
            for name in _names(record.get("nodes")):
                # What was seen of a node is over when it is touched.
                self.sights.pop(name, None)
        if program == "forward":
            self.wave = max(self.wave, _number(record.get("wave")))

    def leg(self, seq: int, record: Mapping[str, Any]) -> None:
        """An attempt of a leg ended."""
        name, program = str(record.get("node")), str(record.get("program"))
        done = self.track(program).ended(seq, name, record)
        if done:
            self.sights.pop(name, None)
            self.absent.pop(name, None)
        if done and program == "forward":
            at = _number(record.get("ms"))
            self.bakes[_number(record.get("wave"))] = Bake(since=at, last=at)

    def look(self, seq: int, record: Mapping[str, Any]) -> None:
        """Nodes were looked at."""
        if record.get("why") == "bake":
            self._baked(seq, record)
            return
        if record.get("why") not in ("preflight", "fence"):
            self._served(seq, record)
            return
        failures = record.get("failures")
        bad = (
            {str(one).partition(": ")[0] for one in failures}
            if isinstance(failures, list)
            else set()
        )
        nodes = record.get("nodes")
        seen: Mapping[str, Any] = nodes if isinstance(nodes, dict) else {}
        there = set(_names(record.get("there")))
        for name in {*seen, *bad}:
            sight = seen.get(name)
            self.looked.add(name)
            if isinstance(sight, dict):
                self.sights[name] = (seq, sight)
            else:
                self.sights.pop(name, None)
            if name in bad:
                self.bad[name] = seq
            else:
                self.bad.pop(name, None)
            if name in there:
                self.there.add(name)
            else:
                self.there.discard(name)

    def _served(self, seq: int, record: Mapping[str, Any]) -> None:
        nodes = record.get("nodes")
        for name, sight in nodes.items() if isinstance(nodes, dict) else ():
            if isinstance(sight, dict) and sight.get("serving") is False:
                self.absent[name] = seq
            else:
                self.absent.pop(name, None)

    def _baked(self, seq: int, record: Mapping[str, Any]) -> None:
        wave, at = _number(record.get("wave")), _number(record.get("ms"))
        before = self.bakes.get(wave) or Bake(since=at, last=at)
        failures = record.get("failures")
        if failures:
            names = tuple(str(one).partition(": ")[0] for one in failures)
            reported = record.get("reported") is True
            self.bakes[wave] = Bake(at, at, bad=names, at=seq, reported=reported)
            return
        gap = 3 * _number(record.get("interval_ms")) + GAP_MS
        since = before.since if 0 <= at - before.last <= gap else at
        skipped = frozenset(_names(record.get("skipped")))
        self.bakes[wave] = Bake(since, max(at, before.last), good=True, skipped=skipped)


@dataclass
class FleetHistory:
    """The record of one fleet, folded up to ``head``."""

    fleet: str
    believes: Believes
    head: EvidenceHead = field(init=False)
    leases: dict[Digest, tuple[str, int]] = field(default_factory=dict)
    """By order: the run and the epoch it was spent in."""
    newest: tuple[int, str] = (0, "")
    """The highest lease: its epoch and run."""
    upgrades: list[int] = field(default_factory=list)
    """The epochs of upgrades: their snapshots are what a rollback restores."""
    accepted: set[Digest] = field(default_factory=set)
    begun: set[tuple[str, int, str]] = field(default_factory=set)
    """Plan and upgrade of which a program was begun that hosts do not show any more."""
    runs: dict[tuple[str, int], RunHistory] = field(default_factory=dict)
    """By name and epoch, in the order in which the record came to know them."""
    early: dict[str, list[tuple[int, Mapping[str, Any], bool]]] = field(default_factory=dict)
    """Orders about runs of which nothing else is known yet."""

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.head = EvidenceHead(0, genesis(self.fleet))

    def take(self, entries: Iterable[EvidenceEntry]) -> bool:
        """Fold what follows; entries that are known already are passed over. False: this is another chain."""
        for entry in entries:
            if entry.seq <= self.head.seq:
                if entry.seq == self.head.seq and entry.hash != self.head.hash:
                    return False
                continue
            if entry.seq != self.head.seq + 1 or entry.previous != self.head.hash:
                return False
            self.fold(entry)
        return True

    def cursor(self) -> int:
        """How many entries are folded."""
        return self.head.seq

    def run(self, run: str, epoch: int) -> RunHistory:
        """What is known of a run. Asking changes nothing: of one that the record does not know, nothing is known."""
        return self.runs.get((run, epoch)) or RunHistory(run, epoch)

    def _known(self, run: str, epoch: int) -> RunHistory:
        known = self.runs.get((run, epoch))
        if known is None:
            known = self.runs[run, epoch] = RunHistory(run, epoch)
            for seq, record, verified in self.early.pop(run, ()):
                known.order(seq, record, verified=verified)
            while len(self.runs) > KEPT_RUNS:
                del self.runs[next(iter(self.runs))]
        return known

    def last(self, run: str) -> RunHistory | None:
        """What is known of a run under the highest epoch that the record has for it."""
        epochs = [epoch for of, epoch in self.runs if of == run]
        return self.runs[run, max(epochs)] if epochs else None

    def parent(self, run: str, epoch: int) -> RunHistory | None:
        """The upgrade whose lease an automatic rollback acts under; None of every other run."""
        names = acts_as(run) - {run}
        return self.run(next(iter(names)), epoch) if names else None

    def leased(self, run: str, epoch: int) -> bool:
        """Whether an order was spent for this run in this epoch."""
        return (run, epoch) in self.leases.values()

    def snapshots(self, epoch: int) -> int:
        """The epoch of the upgrade whose snapshots a run restores."""
        return max((one for one in self.upgrades if one <= epoch), default=epoch)

    def fold(self, entry: EvidenceEntry) -> None:
        """Take up the next entry."""
        self.head = EvidenceHead(entry.seq, entry.hash)
        record = entry.record
        if not isinstance(record, dict) or entry.key.startswith(SAID):
            return
        what = record.get("what")
        if what == "lease":
            self._lease(record)
        elif what == "order":
            self._order(entry.seq, record)
        elif what in ("finalize-begun", "restore-begun"):
            upgrade = _number(record.get("upgrade"))
            self.begun.add((str(record.get("plan")), upgrade, str(what)))
        elif what in _OF_RUNS:
            self._of_run(str(what), entry.seq, record)

    def _lease(self, record: Mapping[str, Any]) -> None:
        order, run, epoch = record.get("order"), record.get("run"), record.get("epoch")
        if not isinstance(order, str) or not isinstance(run, str) or type(epoch) is not int:
            return
        if order in self.leases:
            return
        self.leases[order] = (run, epoch)
        self._known(run, epoch)
        self.newest = max(self.newest, (epoch, run))
        if run.startswith("upgrade/"):
            self.upgrades.append(epoch)

    def _order(self, seq: int, record: Mapping[str, Any]) -> None:
        if record.get("accepted") is not True:
            return
        self.accepted.add(str(record.get("digest")))
        target = str(record.get("target"))
        if target.startswith("fleet/"):
            return
        verified = self.believes(record)
        if not verified and record.get("verb") not in HOLDING:
            return
        run = self.last(target)
        if run is not None:
            run.order(seq, record, verified=verified)
        else:
            self.early.setdefault(target, []).append((seq, record, verified))

    def _of_run(self, what: str, seq: int, record: Mapping[str, Any]) -> None:
        token = _token(record.get("token"))
        epoch = token[0] if token else record.get("epoch")
        if type(epoch) is not int or not isinstance(record.get("run"), str):
            return
        run = self._known(str(record["run"]), epoch)
        if what == "admitted":
            run.admitted(seq, record)
        elif what == "leg":
            run.leg(seq, record)
        elif what == "looked":
            run.look(seq, record)
        elif what == "return":
            run.returning = (seq, record)
        elif what == "end":
            run.ended = record


_OF_RUNS = frozenset({"admitted", "leg", "looked", "return", "end"})


def _number(value: object) -> int:
    return value if type(value) is int else 0


def _names(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _token(value: object) -> tuple[int, ...]:
    return tuple(one for one in value if type(one) is int) if isinstance(value, list) else ()
