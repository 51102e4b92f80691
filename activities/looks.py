"""Which nodes serve: looked at now, or a moment ago by this worker; and whether another may be stopped.

A look never raises a fence: it is made under the token that stands on the host, so that a leg that is under way, or
waits to begin, is not fenced off by it. What was seen is a record of the kind ``looked``.
"""

from __future__ import annotations

import asyncio
import secrets as random
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from activities.errors import sentence, unexpected
from activities.records import serving_record
from activities.sessions import each, talk
from kedge.drivers.ports import SessionEnd, SessionRequest, Token
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import Plan
from kedge.model.run import Failure, Run
from kedge.plan import availability
from kedge.plan.render import Side, probes
from kedge.trust.admission import overtaken

if TYPE_CHECKING:
    from activities.ground import Ground

PATIENCE = 5.0
"""Seconds a node whose daemon runs may take to answer well: one answer that was lost takes no run down."""
STARTING = 15.0
"""The same for a daemon that was just started."""
MAX_RUNS = 8
"""Runs of which a worker remembers what it saw."""
MAX_OTHERS = 250
"""Nodes of other waves that are looked at again before one stop, the longest unseen first."""
MAX_NAMED = 100
"""Nodes that a refusal names."""
BACK = -1
"""In place of a wave: the way back."""
STANDING_TRIES = 3
"""How often a look follows a token that rises while it looks."""
FENCED = "a newer run has this host"


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a node. ``since`` is of this worker's monotonic clock."""

    since: float
    serving: bool
    message: str = ""
    changed: bool = False
    release: str | None = None
    running_release: str | None = None
    running: bool = False
    journal: Json = None


@dataclass(eq=False, slots=True)
class Stop:
    """Nodes that wait to be stopped, and the answer: which may be, or why not."""

    run: str
    wave: int
    batch: tuple[int, ...]
    accepted: Collection[int]
    limit: int
    decided: bool = False
    going: list[int] = field(default_factory=list)
    refusal: DriverError | None = None
    error: DriverError | None = None
    given_up: bool = False
    """Nobody waits for the answer any more."""


class RunLooks:
    """What this worker knows of the nodes of one run, and which of them it works on."""

    def __init__(self, nodes: int) -> None:
        self._sights: OrderedDict[int, Sight] = OrderedDict()
        """The node that was not seen for longest comes first."""
        self.down: set[int] = set()
        """The nodes that did not serve when they were last seen."""
        self.unseen = set(range(nodes))
        self.tokens: dict[int, Token] = {}
        self.flying: set[int] = set()
        self.moved: dict[int, set[int]] = {}
        """The nodes on which legs ended, by wave (``BACK`` of a rollback)."""
        self.turn = asyncio.Lock()
        """Two stops never both take the last place."""
        self.waiting: list[Stop] = []
        """Stops that the next look decides, all at once."""
        self.slow: dict[int, float] = {}
        """Seconds that the last look at a node took, where it was slow."""
        self.resting = 0.0
        """Until then, no nodes are looked at but those that are about to be stopped: the last look at the others was slow."""

    def put(self, node: int, sight: Sight) -> None:
        """A node was seen."""
        self._sights[node] = sight
        self._sights.move_to_end(node)
        self.unseen.discard(node)
        (self.down.discard if sight.serving else self.down.add)(node)

    def drop(self, node: int) -> None:
        """Nobody knows what a node is like now."""
        self._sights.pop(node, None)
        self.down.discard(node)
        self.unseen.add(node)

    def timed(self, node: int, seconds: float) -> None:
        """A look at a node took so long."""
        if seconds > availability.SLOW:
            self.slow[node] = seconds
        else:
            self.slow.pop(node, None)

    def rests(self, node: int) -> bool:
        """Whether a node was looked at so slowly, and so short a time ago, that it is not looked at again now."""
        sight, took = self._sights.get(node), self.slow.get(node, 0.0)
        return sight is not None and availability.rests(time.monotonic() - sight.since, took)

    def take(self, run: str) -> list[Stop]:
        """The stops of a run that wait for a decision."""
        taken = [stop for stop in self.waiting if stop.run == run and not stop.given_up]
        self.waiting = [stop for stop in self.waiting if stop.run != run]
        return taken

    def let_go(self, stop: Stop) -> None:
        """A stop is undecided again: of its nodes none is worked on."""
        self.flying.difference_update(stop.going)
        stop.going.clear()

    def place(self, stop: Stop) -> bool:
        """Marks the nodes of a stop that may be stopped now as worked on; whether these are all."""
        if stop.given_up:
            return True
        down = self.down - self.flying
        for node in stop.batch:
            if node not in stop.going and availability.may_stop(
                stop.limit,
                (node,),
                not_serving=down,
                accepted=stop.accepted,
                in_flight=self.flying,
            ):
                self.flying.add(node)
                stop.going.append(node)
        return len(stop.going) == len(stop.batch)

    def last(self, node: int) -> Sight | None:
        """What was last seen of a node."""
        return self._sights.get(node)

    def when(self, node: int) -> tuple[float, bool]:
        """When a node was last seen, and whether it served."""
        sight = self._sights.get(node)
        return (0.0, False) if sight is None else (sight.since, sight.serving)

    def seen(self) -> Iterable[int]:
        """The nodes of which something is known."""
        return self._sights.keys()

    def ages(self) -> Iterator[tuple[int, float]]:
        """Seconds since each node was seen, oldest first."""
        now = time.monotonic()
        return ((node, now - sight.since) for node, sight in self._sights.items())

    def not_serving(self, plan: Plan, nodes: Collection[int]) -> tuple[Failure, ...]:
        """Of these nodes, those that did not serve when they were last seen."""
        return tuple(
            availability.not_serving(
                node,
                plan.nodes[node].name,
                self._sights[node].message,
                changed=self._sights[node].changed,
            )
            for node in sorted(self.down.intersection(nodes))
        )


class Looks:
    """Looks of one worker at the nodes of its runs."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._runs: OrderedDict[tuple[str, int, str], RunLooks] = OrderedDict()

    def of(self, run: Run, plan: Plan) -> RunLooks:
        """What is known of the nodes of a run; under one lease, an upgrade and its own rollback share it."""
        key = (run.fleet, run.epoch, run.plan)
        known = self._runs.get(key)
        if known is None:
            known = self._runs[key] = RunLooks(len(plan.nodes))
        self._runs.move_to_end(key)
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return known

    async def look(
        self,
        run: Run,
        plan: Plan,
        nodes: Collection[int],
        *,
        key: str,
        why: str,
        ensure: bool = False,
    ) -> bool:
        """Look at these nodes now and write down what was seen. False: a newer run has the hosts."""
        if not nodes:
            return True
        known = self.of(run, plan)

        async def timed(node: int) -> Sight | None:
            begun = time.monotonic()
            sight = await self._look(run, plan, node, ensure=ensure)
            known.timed(node, time.monotonic() - begun)
            return sight

        seen = await each(nodes, timed)
        found = {
            node: sight
            for node, sight in zip(nodes, seen, strict=True)
            if sight is not None and node not in known.flying
        }
        fenced = any(sight.message == FENCED for sight in found.values())
        if fenced and await self._ground.recorded.ask(
            run.fleet, lambda history, _: (overtaken(history, run.epoch), ())
        ):
            # A host alone may claim any fence: the record says whether there is a newer lease.
            return False
        for node, sight in found.items():
            known.put(node, sight)
        await self._ground.note(run.fleet, key, serving_record(run, plan, found, why))
        return True

    async def before_stop(
        self, run: Run, plan: Plan, wave: int, batch: tuple[int, ...], accepted: Collection[int]
    ) -> tuple[tuple[int, ...], DriverError | None]:
        """Which nodes of ``batch`` may be stopped now, marked as worked on from here; and why the others may not.

        ``wave`` is ``BACK`` on the way back. Call :meth:`ended` for each of them. Raises ``DriverError`` (``Fenced``).
        """
        known = self.of(run, plan)
        limit = min(planned.max_unavailable for planned in plan.waves)
        if wave != BACK:
            limit = plan.waves[wave].max_unavailable
        stop = Stop(run.id, wave, batch, accepted, limit)
        known.waiting.append(stop)
        try:
            async with known.turn:
                if not stop.decided:
                    await self._decide(run, plan, known)
        except BaseException:
            stop.given_up = True
            known.let_go(stop)
            raise
        if stop.error is not None:
            raise stop.error
        return tuple(stop.going), stop.refusal

    async def _decide(self, run: Run, plan: Plan, known: RunLooks) -> None:
        """One look for all stops that wait: however many there are, and however long it takes, each waits for two at most."""
        stops = known.take(run.id)
        try:
            looked = await self._refresh(run, plan, stops)
            refused = [stop for stop in stops if not known.place(stop)]
            # Who does not serve is looked at again before anybody is refused because of it.
            others = known.down - known.flying - looked
            if refused and others:
                await self._look_stop(run, plan, sorted(others)[:MAX_OTHERS], refused[0].wave)
                refused = [stop for stop in refused if not known.place(stop)]
            for stop in refused:
                stop.refusal = _refusal(plan, known, stop)
        except DriverError as error:
            for stop in stops:
                known.let_go(stop)
                stop.error = error
        except BaseException:
            for stop in stops:
                known.let_go(stop)
            known.waiting = [*stops, *known.waiting]
            raise
        for stop in stops:
            stop.decided = True

    async def _refresh(self, run: Run, plan: Plan, stops: Collection[Stop]) -> set[int]:
        """Look at the nodes that are about to be stopped, and at the others where what is known of them is too old; who
        was looked at.
        """
        known, waves = self.of(run, plan), {stop.wave for stop in stops}
        batch = {node for stop in stops for node in stop.batch}
        resting = time.monotonic() < known.resting
        near = set(batch)
        for wave in waves if not resting else ():
            near |= known.moved.get(wave, set())
        sizes = [len(plan.nodes) if wave == BACK else len(plan.waves[wave].nodes) for wave in waves]
        age = availability.near_seconds(min(sizes))
        old = (
            node
            for node in availability.stale(known.ages(), near, age)
            if node in batch or not (resting or known.rests(node))
        )
        down = {node for node in known.down if node in batch or not known.rests(node)}
        wanted = {*known.unseen, *down, *islice(old, MAX_OTHERS)} - known.flying
        first = sorted(wanted, key=lambda node: node not in near)[: MAX_OTHERS + len(near)]
        begun = time.monotonic()
        await self._look_stop(run, plan, first, next(iter(waves)))
        # A host that does not answer makes the look at it slow, and not the look at the others.
        took = max((at for at, serves in map(known.when, first) if serves), default=begun) - begun
        if took > availability.SLOW and not resting:
            known.resting = time.monotonic() + took
        return set(first)

    async def _look_stop(self, run: Run, plan: Plan, nodes: Collection[int], wave: int) -> None:
        key = f"{run.id}@{run.epoch}/looked-stop-{wave}/{random.token_hex(8)}"
        if not await self.look(run, plan, nodes, key=key, why="stop"):
            raise DriverError("Fenced", FENCED, retryable=False)

    async def again(self, run: Run, plan: Plan, nodes: Collection[int]) -> None:
        """Look at these nodes again, but for those that this worker works on, or just looked at in vain for long."""
        known = self.of(run, plan)
        idle = {node for node in nodes if node not in known.flying and not known.rests(node)}
        key = f"{run.id}@{run.epoch}/looked-stop/{random.token_hex(8)}"
        await self.look(run, plan, sorted(idle), key=key, why="stop")

    def ended(self, run: Run, plan: Plan, wave: int, node: int, *, done: bool) -> None:
        """The work on a node is over: ``done`` well, or nobody knows what it is like now."""
        known = self.of(run, plan)
        known.flying.discard(node)
        known.tokens.pop(node, None)
        known.moved.setdefault(wave, set()).add(node)
        if done:
            known.put(node, Sight(time.monotonic(), serving=True, changed=wave != BACK))
        else:
            known.drop(node)

    # -- one node --------------------------------------------------------------------------------------------------

    async def _look(self, run: Run, plan: Plan, index: int, *, ensure: bool) -> Sight | None:
        """One node; None where it is worked on just now, so that nothing can be said of it."""
        last = self.of(run, plan).last(index)
        side: Side = "after" if last is not None and last.changed else "before"
        try:
            end = await self._asked(run, plan, index, side, ensure=False)
            actual = _side(plan, end)
            if end is not None and actual is not None and actual != side:
                side = actual
                if end.failed is not None or probes(plan, index, side):
                    end = await self._asked(run, plan, index, side, ensure=False)
            if ensure and end is not None and not _serves(end):
                end = await self._asked(run, plan, index, side, ensure=True)
        except DriverError as error:
            return Sight(
                time.monotonic(),
                serving=False,
                message=f"{error.kind}: {sentence(error, plan.nodes[index].name)}"[:500],
                changed=last is not None and last.changed,
            )
        except Exception as error:  # noqa: BLE001 - no look is left without an end, whatever a node says
            name = plan.nodes[index].name
            return Sight(
                time.monotonic(),
                serving=False,
                message=sentence(unexpected(error, name), name),
                changed=last is not None and last.changed,
            )
        return None if end is None else sight_of_node(plan, index, end)

    async def _asked(
        self, run: Run, plan: Plan, index: int, side: Side, *, ensure: bool
    ) -> SessionEnd | None:
        """A session under the token that stands on the host; None while somebody of this lease works there."""
        known, node = self.of(run, plan), plan.nodes[index]
        prefix = f"{run.id}@{run.epoch}/{node.name}/serving-{random.token_hex(8)}"
        asked = probes(plan, index, side, run_id=run.id, epoch=run.epoch)
        ops: list[dict[str, Json]] = []
        if ensure:
            ops.append({"key": f"{prefix}/ensure", "op": "ensure"})
        if asked:
            ops.append(
                {
                    "key": f"{prefix}/{side}",
                    "op": "healthy",
                    "probe": asked[0],
                    "for": 0,
                    "within": STARTING if ensure else PATIENCE,
                    "interval": 0.5,
                    "service": True,
                }
            )
        if not ops:
            ops.append({"key": f"{prefix}/observe", "op": "observe"})
        token = known.tokens.get(index, (run.epoch, 0, 0))
        for _ in range(STANDING_TRIES):
            request = SessionRequest(
                run=run.id, token=token, ops=tuple(ops), lock_wait=2.0, look=not ensure
            )
            end = await talk(self._ground.transport, node, request)
            error = end.failed.error if end.failed is not None else None
            if error is None or error.type not in ("Fenced", "Busy"):
                known.tokens[index] = token
                if ensure and any(event.result.get("started") for event in end.done):
                    what: dict[str, Json] = {"what": "started", "run": run.id, "node": node.name}
                    await self._ground.note(run.fleet, f"{prefix}/started", what)
                return end
            standing = _standing(end)
            if error.type == "Busy" or standing is None:
                return None
            if standing[0] > run.epoch:
                return end
            token = standing
        return None


def _refusal(plan: Plan, known: RunLooks, stop: Stop) -> DriverError:
    failures = known.not_serving(plan, known.down - known.flying - set(stop.batch))
    nodes: list[Json] = [failure.model_dump(mode="json") for failure in failures[:MAX_NAMED]]
    return DriverError(
        availability.UNAVAILABLE,
        availability.unavailable_message(failures, stop.limit),
        retryable=False,
        detail={"nodes": nodes},
    )


def _standing(end: SessionEnd) -> Token | None:
    error = end.failed.error if end.failed is not None else None
    match error.detail.get("fence") if error is not None else None:
        case [int(epoch), int(leg), int(attempt)]:
            return epoch, leg, attempt
    return None


def _serves(end: SessionEnd) -> bool:
    return end.failed is None and bool(end.observed.get("running"))


def _side(plan: Plan, end: SessionEnd | None) -> Side | None:
    """Which of the plan's releases a node runs, or stands on when nothing runs."""
    if end is None:
        return None
    digest = end.observed.get("running_release") or end.observed.get("release")
    for side, release in (("after", plan.after), ("before", plan.before)):
        if digest in {artifact.digest for artifact in release.artifacts}:
            return "after" if side == "after" else "before"
    return None


def sight_of_node(plan: Plan, index: int, end: SessionEnd) -> Sight:
    """What a session saw of a node."""
    name = plan.nodes[index].name
    error = end.failed.error if end.failed is not None else None
    if error is not None and error.type == "Fenced":
        return Sight(time.monotonic(), serving=False, message=FENCED)
    fault = end.fault(name)
    running = bool(end.observed.get("running"))
    message = ""
    if not running:
        message = "its daemon does not run"
    elif fault is not None:
        message = f"{fault.kind}: {sentence(fault, name)}"[:500]
    release, actual = end.observed.get("release"), end.observed.get("running_release")
    return Sight(
        time.monotonic(),
        serving=not message,
        message=message,
        changed=_side(plan, end) == "after",
        release=release if isinstance(release, str) else None,
        running_release=actual if isinstance(actual, str) else None,
        running=running,
        journal=end.observed.get("journal"),
    )
