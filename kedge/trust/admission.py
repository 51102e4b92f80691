"""Admission: whether nodes may begin a leg now, decided from the record and the plan alone.

A workflow names run, wave and nodes. Legs, rounds, parallelism, budget, bakes and the retries that are allowed come from
the plan and from :class:`kedge.trust.run_history.FleetHistory`. Workers decide with this inside the fleet's lock and append
what is admitted; verification decides again, record by record. Signatures are :mod:`kedge.trust.warrant`'s. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from kedge.model.base import Digest, Json
from kedge.model.plan import Plan, ProgramName
from kedge.trust.run_history import FleetHistory, NodeHistory, RunHistory, Track

Side = Literal["before", "after"]
Refusal = Literal["NotAdmitted", "Fenced", "Held", "Full"]
"""``Fenced``: a newer lease has the fleet. ``Held``: a person paused or ended the run. ``Full``: no place is free now.
``NotAdmitted``: the record does not allow it, and people decide.
"""


@dataclass(frozen=True)
class Ask:
    """What is asked for: the next leg of some nodes (by name) of a run that acts on ``order``.

    ``anew``: nothing is known of an attempt that may be open still; this one gets a higher place in the fence.
    """

    run: str
    epoch: int
    plan: Digest
    order: Digest
    automatic: bool
    """The order is the one that started the upgrade: the runbook, not a person, asks for the way back."""
    program: ProgramName
    wave: int | None
    leg: int
    nodes: tuple[str, ...]
    anew: bool = True


@dataclass(frozen=True)
class Admitted:
    """A node may begin: the round of its steps, and the record of its admission."""

    round: int
    serial: int
    retries: int
    snapshots: int = 0
    """The upgrade whose snapshots are meant."""


@dataclass(frozen=True)
class Refused:
    """A node may not begin, and why."""

    kind: Refusal
    said: str
    failed: NodeHistory | None = None
    """Of a node that failed and that nobody decided about since: how. Who asks again is told that once more."""


@dataclass
class Verdict:
    """By node: admitted, refused, or None where the record has the leg as done. ``records`` are to be appended."""

    nodes: dict[str, Admitted | Refused | None] = field(default_factory=dict)
    records: list[tuple[str, dict[str, Json]]] = field(default_factory=list)


class _RefusedError(Exception):
    def __init__(
        self, said: str, kind: Refusal = "NotAdmitted", failed: NodeHistory | None = None
    ) -> None:
        super().__init__(said)
        self.refused = Refused(kind, said, failed)


@dataclass(frozen=True)
class Places:
    """Where the nodes of a plan stand, by name."""

    waves: tuple[frozenset[str], ...]
    wave: dict[str, int]
    batch: dict[str, int]
    every: frozenset[str]


@lru_cache(maxsize=4)
def _places(plan: _ById) -> Places:
    names = [node.name for node in plan.plan.nodes]
    waves = plan.plan.waves
    numbered = [(wave.index, batch) for wave in waves for batch in wave.batches]
    return Places(
        waves=tuple(frozenset(names[node] for node in wave.nodes) for wave in waves),
        wave={names[node]: wave.index for wave in waves for node in wave.nodes},
        batch={names[node]: at for at, (_, batch) in enumerate(numbered) for node in batch},
        every=frozenset(names),
    )


class _ById:
    """A plan as a key: it is as large as its fleet, and never changes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __hash__(self) -> int:
        return id(self.plan)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.plan is self.plan


def places(plan: Plan) -> Places:
    """Where the nodes of a plan stand; worked out once for the plans in use."""
    return _places(_ById(plan))


def admit(fleet: FleetHistory, plan: Plan, ask: Ask, head: int, time: dict[str, Json]) -> Verdict:
    """The verdict about each node, and the records that say so; ``head`` is the end of the chain they will follow.

    ``time`` stands in each record as it is. Nodes are decided in the order in which they are named, each on what was
    decided of those before.
    """
    verdict = Verdict()
    try:
        trial = _trial(fleet, plan, ask)
    except _RefusedError as error:
        verdict.nodes = dict.fromkeys(ask.nodes, error.refused)
        return verdict
    groups: dict[int, list[str]] = {}
    for name in dict.fromkeys(ask.nodes):
        try:
            found = trial.node(name)
        except _RefusedError as error:
            verdict.nodes[name] = error.refused
            continue
        verdict.nodes[name] = found
        if found is not None and not found.serial:
            groups.setdefault(found.round, []).append(name)
    for number, (round_, names) in enumerate(groups.items(), 1):
        serial = head + number
        for name in names:
            verdict.nodes[name] = Admitted(round_, serial, trial.run.retries)
        verdict.records.append(
            (f"admitted/{ask.run}@{ask.epoch}/{serial}", trial.record(round_, names) | time)
        )
    snapshots = fleet.snapshots(ask.epoch)
    for name, one in verdict.nodes.items():
        if isinstance(one, Admitted):
            verdict.nodes[name] = replace(one, snapshots=snapshots)
    return verdict


def _trial(fleet: FleetHistory, plan: Plan, ask: Ask) -> _Forward | _Back:
    run = standing(fleet, ask.run, ask.epoch, ask.order)
    if ask.program in ("forward", "finalize"):
        return _Forward(plan, ask, run)
    return _Back(plan, ask, run, fleet.parent(ask.run, ask.epoch))


def standing(fleet: FleetHistory, run: str, epoch: int, order: Digest) -> RunHistory:
    """The run, when its order was spent for it, nobody has a newer lease, and it has not ended."""
    history, parent = fleet.run(run, epoch), fleet.parent(run, epoch)
    lease = fleet.leases.get(order)
    if parent is not None and fleet.leased(parent.run, epoch):
        own = lease in ((parent.run, epoch), (run, epoch)) or order in parent.chosen
    else:
        own = lease == (run, epoch)
    if not own:
        raise _RefusedError(f"the record has no lease of {run} in epoch {epoch} for its order")
    if fleet.newest[0] > epoch:
        raise _RefusedError(f"{fleet.newest[1]} has the lease of this fleet now", "Fenced")
    for one in (history, parent):
        if one is not None and one.ended is not None:
            raise _RefusedError(f"{one.run} has ended: {one.ended.get('outcome')}")
    return history


class _Deciding:
    """What forward and back share: the track of the program, and who of this request was let through before."""

    def __init__(self, plan: Plan, ask: Ask, run: RunHistory) -> None:
        self.plan, self.ask, self.run = plan, ask, run
        self.places = places(plan)
        self.track: Track = run.track(ask.program)
        self.begun = set(self.track.begun)
        programs = {program.name: program for program in plan.programs}
        if ask.program not in programs:
            raise _RefusedError(f"the plan has no program {ask.program}")
        self.legs = programs[ask.program].legs
        if not 0 <= ask.leg < len(self.legs):
            raise _RefusedError(f"the program {ask.program} has no leg {ask.leg}")

    def goes_on(self, node: NodeHistory) -> Admitted | None:
        """A node that was begun goes on with the leg it is at, also when the run is paused; None: that leg is done."""
        if self.ask.leg < node.leg:
            return None
        self.at(node.leg)
        return Admitted(node.round, 0 if self.ask.anew else node.serial, self.run.retries)

    def at(self, leg: int) -> None:
        """The leg that is asked for is the next one."""
        if self.ask.leg != leg:
            raise _RefusedError(f"leg {self.ask.leg} does not follow: leg {leg} comes next")

    def known_failure(self, name: str) -> NodeHistory | None:
        """A node whose failure of this very leg is in the record."""
        node = self.track.nodes.get(name)
        failed = name in self.track.failed and node is not None and node.failure is not None
        return node if failed and node is not None and node.leg == self.ask.leg else None

    def open(self) -> None:
        """Nobody ordered the run to begin nothing further."""
        if self.run.aborted or self.run.paused:
            said = "was ended" if self.run.aborted else "is paused"
            raise _RefusedError(f"{self.run.run} {said} by an order", "Held")

    def record(self, round_: int, names: list[str]) -> dict[str, Json]:
        """The record of an admission."""
        ask = self.ask
        return {
            "what": "admitted",
            "run": ask.run,
            "epoch": ask.epoch,
            "plan": ask.plan,
            "order": ask.order,
            "program": ask.program,
            "wave": ask.wave,
            "leg": ask.leg,
            "of": len(self.legs),
            "attempts": self.legs[ask.leg].attempts,
            "round": round_,
            "nodes": list[Json](names),
        }


class _Forward(_Deciding):
    """The nodes of an upgrade, and its finalize steps."""

    def __init__(self, plan: Plan, ask: Ask, run: RunHistory) -> None:
        super().__init__(plan, ask, run)
        # The record does not change while one request is decided: what holds before a wave is asked once, not by node.
        self._held: set[int] = set()

    def node(self, name: str) -> Admitted | None:
        """A verdict about one node."""
        if self.ask.program == "finalize":
            return self._finalize(name)
        own = self.places.wave.get(name)
        claimed = self.ask.wave
        if own is None or claimed is None or not own <= claimed < len(self.plan.waves):
            raise _RefusedError(f"{name} is not in wave {claimed} of the plan, nor in one before")
        if name in self.begun:
            return self.goes_on(self.track.nodes[name])
        if (name in self.track.done or name in self.run.there) and name not in self.run.excused:
            return None
        again = self._again(name)
        if not again and own != claimed:
            raise _RefusedError(f"{name} is of wave {own}, not of wave {claimed}")
        self.at(0)
        self.open()
        self._before(own)
        self._budget()
        self._place(name, min(self.plan.waves[at].max_unavailable for at in {own, claimed}))
        self.begun.add(name)
        return Admitted(self.run.retried if again else 0, 0, self.run.retries)

    def _again(self, name: str) -> bool:
        """Whether a person said to try this node again since it failed or was left out."""
        since = max(self.track.failed.get(name, 0), self.run.excused.get(name, 0))
        if since and since > self.run.retried:
            said = f"{name} failed and nobody decided to try it again"
            raise _RefusedError(said, failed=self.known_failure(name))
        return since > 0

    def _before(self, wave: int) -> None:
        """The fleet was looked at, and the waves before are complete and baked."""
        if wave in self._held:
            return
        run = self.run
        if not run.looked >= self.places.every:
            unseen = self.places.every - run.looked
            raise _RefusedError(
                f"{len(unseen)} node(s) were never looked at, such as {min(unseen)}"
            )
        ill = run.bad.keys() - run.excused.keys()
        if ill:
            raise _RefusedError(f"the look at {min(ill)} was not good, and nobody decided about it")
        self.waves_complete(wave)
        self._held.add(wave)

    def waves_complete(self, upto: int) -> None:
        """All waves before are through, and each was baked for its whole time."""
        for at, names in enumerate(self.places.waves[:upto]):
            left = self.run.complete(names)
            if left:
                said = f"wave {self.plan.waves[at].name} is not complete: {min(left)} is missing"
                raise _RefusedError(said)
            why = unbaked(self.run, self.plan, at)
            if why is not None:
                raise _RefusedError(why)

    def _budget(self) -> None:
        left = max(0, self.plan.failure_budget - len(self.run.excused))
        lost = self.run.lost()
        if lost > left:
            raise _RefusedError(f"{lost} node(s) failed, and {left} may without a decision")

    def _place(self, name: str, most: int) -> None:
        """A place among those that may be unavailable, in one failure domain at a time."""
        failed = set(self.track.failed) - {name}
        down = (failed | set(self.run.excused) | set(self.run.absent)) - self.begun - {name}
        free = most - len(down)
        if down <= set(self.run.excused):
            free = max(free, 1)
        if len(self.begun) >= free:
            said = f"{len(self.begun)} node(s) are in flight and {len(down)} out; {most} may be unavailable"
            raise _RefusedError(said, "Full")
        batch = self.places.batch
        other = next((one for one in self.begun if batch[one] != batch[name]), None)
        if other is not None:
            raise _RefusedError(f"{other} of another batch is in flight", "Full")

    def _finalize(self, name: str) -> Admitted | None:
        if name not in self.places.every:
            raise _RefusedError(f"{name} is not in the plan")
        if self.track.done:
            return None
        if name in self.begun:
            return self.goes_on(self.track.nodes[name])
        if self.begun:
            raise _RefusedError(f"the finalize steps run on {min(self.begun)}")
        failed = max(self.track.failed.values(), default=0)
        if failed > self.run.retried:
            said = "the finalize steps failed and nobody decided to try them again"
            raise _RefusedError(said, failed=self.known_failure(name))
        node = finalize_node(self.run, self.plan)
        if name != node and not failed:
            raise _RefusedError(f"the finalize steps run on {node}, not on {name}")
        self.at(0)
        self.open()
        self._before(len(self.plan.waves))
        self._budget()
        self.begun.add(name)
        return Admitted(self.run.retried if failed else 0, 0, self.run.retries)


def finalize_node(run: RunHistory, plan: Plan) -> str | None:
    """Where the finalize steps run: on the plan's node, or on the first that is not out."""
    if plan.finalize_node is None:
        return None
    out = run.out()
    names = [plan.nodes[plan.finalize_node].name, *(node.name for node in plan.nodes)]
    return next((name for name in names if name not in out), names[0])


class _Back(_Deciding):
    """The nodes of a way back, as the last decision about it has them."""

    def __init__(self, plan: Plan, ask: Ask, run: RunHistory, parent: RunHistory | None) -> None:
        super().__init__(plan, ask, run)
        why = no_cause(run, parent, plan, ask.order, automatic=ask.automatic)
        if why is not None:
            raise _RefusedError(why)
        if run.returning is None:
            raise _RefusedError(f"the record has no decision about the way back of {ask.run}")
        self.since, self.choice = run.returning
        if (
            self.choice.get("verdict") not in ("go", "ask")
            or self.choice.get("program") != ask.program
        ):
            raise _RefusedError(f"the way back was decided otherwise: {self.choice.get('said')}")
        waves, parallel = self.choice.get("waves"), self.choice.get("parallel")
        self.waves: list[list[str]] = waves if isinstance(waves, list) else []
        self.parallel: list[int] = parallel if isinstance(parallel, list) else []
        self.place = {name: at for at, names in enumerate(self.waves) for name in names}
        nodes = self.track.nodes
        self.going = {name for name in self.begun if nodes[name].serial > self.since}

    def node(self, name: str) -> Admitted | None:
        """A verdict about one node."""
        at = self.place.get(name)
        if at is None:
            raise _RefusedError(f"the way back that was decided does not touch {name}")
        node = self.track.nodes.get(name)
        if node is not None and node.serial > self.since:
            if name in self.begun:
                return self.goes_on(node)
            if name in self.track.done:
                return None
            said = f"{name} failed on the way back, and nobody decided about it"
            raise _RefusedError(said, failed=self.known_failure(name))
        if name in self.run.excused:
            raise _RefusedError(f"{name} was given up by a decision")
        self.at(0)
        self.open()
        for names in self.waves[:at]:
            left = [one for one in names if not self._through(one)]
            if left:
                raise _RefusedError(f"{left[0]} goes back before {name}", "Full")
        here = len(self.going)
        if here >= max(1, self.parallel[at] - len(self.run.excused)):
            raise _RefusedError(f"{here} node(s) go back now, and no more may", "Full")
        self._serving(name, self.parallel[at])
        self.going.add(name)
        return Admitted(self.since, 0, self.run.retries)

    def _serving(self, name: str, most: int) -> None:
        """A node that serves is not stopped while too many others do not. Working on one that does not costs nothing, and
        a fleet goes back without the nodes that did not answer.
        """
        run = self.run
        if name in run.absent:
            return
        down = set(run.absent) - run.excused.keys() - run.bad.keys() - self.going - {name}
        if down and len(self.going) + len(down) + len(run.excused) >= most:
            said = f"{min(down)} does not serve, and {most} may be unavailable"
            raise _RefusedError(said, "Full")

    def _through(self, name: str) -> bool:
        node = self.track.nodes.get(name)
        done = node is not None and node.serial > self.since and name in self.track.done
        return done or name in self.run.excused


def may_fence(
    fleet: FleetHistory, plan: Plan, of: tuple[str, int, Digest], *, automatic: bool
) -> Refused | None:
    """Why a rollback may not raise the fence to look at the fleet; None when it may."""
    run, epoch, order = of
    try:
        history = standing(fleet, run, epoch, order)
    except _RefusedError as error:
        return error.refused
    why = no_cause(history, fleet.parent(run, epoch), plan, order, automatic=automatic)
    return None if why is None else Refused("NotAdmitted", why)


def no_cause(
    run: RunHistory, parent: RunHistory | None, plan: Plan, order: Digest, *, automatic: bool
) -> str | None:
    """Why nothing makes a run go back; None when an order does, or a failure that a host reported.

    By itself a run goes back for a failure in its current wave, or in that wave's bake, after the plan's attempts, beyond
    the budget, with no decision since.
    """
    if parent is None:
        return None if not automatic else f"{run.run} goes back by an order, and has none"
    if order in parent.chosen:
        return None
    if not automatic:
        return f"nobody decided to roll {parent.run} back"
    if plan.on_failure != "rollback":
        return "the plan does not roll back automatically"
    if parent.wave < 0:
        return f"{parent.run} began no wave"
    here = places(plan).waves[parent.wave]
    track = parent.forward
    failed = [
        name
        for name, seq in track.failed.items()
        if seq > parent.decision and track.nodes[name].reported
    ]
    left = max(0, plan.failure_budget - len(parent.excused))
    if any(name in here for name in failed) and parent.lost() > left:
        return None
    bake = parent.bakes.get(parent.wave)
    if bake is not None and not bake.good and bake.at > parent.decision and bake.reported:
        return None
    return (
        f"no host reported a failure in the current wave of {parent.run} that nobody decided about"
    )


# -- bakes and ends --------------------------------------------------------------------------------------------------


def unbaked(run: RunHistory, plan: Plan, wave: int) -> str | None:
    """Why a wave's bake is not passed; None when the looks cover every node of it over its whole time."""
    wanted = plan.waves[wave].bake
    if wanted is None or wanted.duration <= 0:
        return None
    bake, name = run.bakes.get(wave), plan.waves[wave].name
    if bake is None or not bake.good:
        why = f": {bake.bad[0]} did not pass" if bake is not None and bake.bad else ""
        return f"the bake of wave {name} is not passed{why}"
    if bake.skipped - run.out():
        return f"the looks of the bake of wave {name} left out {min(bake.skipped - run.out())}"
    if bake.seconds() < wanted.duration:
        return f"wave {name} was baked for {bake.seconds():.1f} of {wanted.duration:g} seconds"
    return None


@dataclass(frozen=True)
class Looking:
    """A look of a bake that the record allows: at whom, and whether what is down is started first."""

    nodes: tuple[str, ...]
    skipped: tuple[str, ...]
    ensure: bool


def may_bake(
    fleet: FleetHistory, plan: Plan, wave: int, of: tuple[str, int, Digest]
) -> Looking | Refused:
    """Whether a wave may be looked at for its bake: it is the current one, and complete."""
    try:
        run = standing(fleet, *of)
    except _RefusedError as error:
        return error.refused
    if not 0 <= wave < len(plan.waves):
        return Refused("NotAdmitted", f"the plan has no wave {wave}")
    names = places(plan).waves[wave]
    left = run.complete(names) | (run.forward.begun & names)
    if left:
        said = f"wave {plan.waves[wave].name} is not complete: {min(left)} is missing"
        return Refused("NotAdmitted", said)
    if wave < run.wave:
        return Refused("NotAdmitted", f"wave {wave} was baked before: wave {run.wave} was begun")
    out = run.out() & names
    bake = run.bakes.get(wave)
    ordered = [plan.nodes[node].name for node in plan.waves[wave].nodes]
    return Looking(
        nodes=tuple(name for name in ordered if name not in out),
        skipped=tuple(sorted(out)),
        ensure=bool(run.retried)
        and (bake is None or bake.at < run.retried)
        and not (bake and bake.good),
    )


def back_of(run: str) -> str:
    """The rollback that an upgrade begins under its own lease."""
    return f"rollback/{run.removeprefix('upgrade/')}-auto"


def overtaken(fleet: FleetHistory, epoch: int) -> bool:
    """Whether a newer lease has the hosts; a fence above a run that has the newest is another admission of its own."""
    return fleet.newest[0] > epoch


def not_ended(fleet: FleetHistory, plan: Plan, run_id: str, epoch: int, outcome: str) -> str | None:
    """Why the record does not bear out how a run says that it ended; None when it does."""
    run = fleet.run(run_id, epoch)
    if outcome == "done":
        return _not_done(run, plan)
    if outcome == "rolled-back":
        if run_id.startswith("upgrade/"):
            ended = fleet.run(back_of(run_id), epoch).ended
            good = ended is not None and ended.get("outcome") == "rolled-back"
            return None if good else "the record has no end of its rollback"
        return _not_back(run, plan)
    ordered = run.ended_by_order or fleet.run(back_of(run_id), epoch).ended_by_order
    if outcome == "aborted" and not ordered:
        return "the record has no order that ended it"
    return None


def _not_done(run: RunHistory, plan: Plan) -> str | None:
    missing = places(plan).every - run.forward.done - run.there - set(run.excused)
    if missing:
        return f"{len(missing)} node(s) have no leg in the record, such as {min(missing)}"
    for wave in plan.waves:
        why = unbaked(run, plan, wave.index)
        if why is not None:
            return why
    if plan.finalize_node is not None and not run.track("finalize").done:
        return "the finalize steps have no leg in the record"
    return None


def _not_back(run: RunHistory, plan: Plan) -> str | None:
    before = {artifact.digest for artifact in plan.before.artifacts}
    for node in plan.nodes:
        if node.name in run.excused:
            continue
        _, sight = run.sights.get(node.name, (0, {}))
        release = sight.get("release")
        running = sight.get("running_release") or release
        if release not in before or running != release or not sight.get("running"):
            return f"{node.name} was not seen on its baseline since it was last touched"
    return None


def left_on(fleet: FleetHistory, plan: Plan, run_id: str, epoch: int, outcome: str) -> Side | None:
    """The release that every node was left on by a run that ended so; None when they are mixed."""
    run = fleet.run(run_id, epoch)
    if outcome == "done":
        return None if run.excused else "after"
    if outcome == "rolled-back":
        last = fleet.run(back_of(run_id), epoch) if run_id.startswith("upgrade/") else run
        return None if last.excused else "before"
    untouched = run_id.startswith("upgrade/") and not run.acted and not run.there and not run.bad
    whole = places(plan).every <= run.looked
    return "before" if untouched and whole and outcome in ("rejected", "aborted") else None


def missing_nodes(run: RunHistory, plan: Plan) -> Iterable[str]:
    """The nodes that a run which says that it is done has no leg of."""
    return sorted(places(plan).every - run.forward.done - run.there - set(run.excused))
