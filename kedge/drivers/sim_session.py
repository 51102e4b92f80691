"""One session on one simulated host: the order of looking, acting and recording, and the faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Protocol

from kedge.drivers.ports import HostEvent, HostFault, SessionEnd, SessionRequest
from kedge.drivers.sim_faults import Fault, NodeOptions, Occasion
from kedge.drivers.sim_host import ACTS, Act, Record, Result, SimHost, died
from kedge.drivers.sim_probes import Look, capture, looks
from kedge.host import errors as host_errors
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

_SLICE = 0.2
"""Longest real seconds between two looks at the fence while an operation waits."""

_WAITING = frozenset({"probe", "healthy", "run"})
_NEVER_RECORDED = frozenset({"fence", "observe"})


class World(Protocol):
    """What a session needs of the simulator that it runs in (:class:`kedge.drivers.sim`)."""

    pace: float

    def turn(self) -> AbstractContextManager[None]:
        """One act, alone among all workers."""
        ...

    def found(self, node: PlannedNode) -> SimHost:
        """The host of a node."""
        ...

    def options(self, node: PlannedNode) -> NodeOptions:
        """The parsed options of a node."""
        ...

    def faults(self, options: NodeOptions) -> tuple[Fault, ...]:
        """The faults programmed now."""
        ...

    def facts(self, host: SimHost) -> tuple[Any, ...]:
        """What the host is, to compare with later."""
        ...

    def keep(self, host: SimHost, before: tuple[Any, ...], key: str = "") -> None:
        """Keeps what changed."""
        ...


class SimSession:
    """Runs the operations of one request in order. An object is used once."""

    __slots__ = ("_host", "_node", "_occasion", "_options", "_pace", "_request", "_say", "_world")

    def __init__(
        self,
        world: World,
        node: PlannedNode,
        request: SessionRequest,
        say: Callable[[HostEvent], None],
    ) -> None:
        self._world = world
        self._node = node
        self._request = request
        self._say = say
        self._host = world.found(node)
        self._options = world.options(node)
        self._pace = world.pace if self._options.pace is None else self._options.pace
        self._occasion: Occasion | None = None

    async def run(self) -> SessionEnd:
        """Runs the session. Raises ``DriverError`` where a fault makes the transport fail."""
        done: list[HostEvent] = []
        op: Mapping[str, Json] = {}
        try:
            opening = self._fault("session", "")
            if opening is not None:
                await self._happen(opening)
            with self._turn():
                self._host.token, self._host.run = self._request.token, self._request.run
            for op in self._request.ops:
                done.append(await self._one(op))
        except host_errors.Fault as refused:
            error = HostFault(refused.kind, refused.message, refused.retryable, refused.detail)
            failed = HostEvent("failed", str(op.get("key", "")), str(op.get("op", "")), error=error)
            self._say(failed)
            seen = self._host.observe(time.time())
            return SessionEnd(ok=False, done=tuple(done), failed=failed, observed=seen)
        return SessionEnd(ok=True, done=tuple(done), observed=self._host.observe(time.time()))

    @contextmanager
    def _turn(self, key: str = "") -> Iterator[None]:
        """Holds the host for one act under the fence; ``key``: the record that the act makes.

        Raises ``Fenced``, before the act, when a newer token has the node.
        """
        with self._world.turn():
            self._check_fence()
            before = self._world.facts(self._host)
            try:
                yield
            finally:
                self._world.keep(self._host, before, key if key in self._host.journal else "")

    def _check_fence(self) -> None:
        standing = self._host.token
        mine = self._request.token
        if standing is not None and standing > mine:
            raise host_errors.Fenced(
                f"token {mine} is older than {standing} of {self._host.run}",
                {"token": list(mine), "fence": list(standing), "run": self._host.run},
            )

    async def _one(self, op: Mapping[str, Json]) -> HostEvent:
        key, name = op.get("key"), op.get("op")
        if not isinstance(key, str) or not key or not isinstance(name, str):
            raise host_errors.BadRequest("an operation needs a key and an op")
        if name not in ACTS and name not in _WAITING:
            raise host_errors.BadRequest(f"there is no operation {name[:80]!r}")
        await self._alone()
        self._host.busy = True
        try:
            return await self._once(key, name, op)
        finally:
            self._host.busy = False

    async def _alone(self) -> None:
        """Waits until no other session of this worker is in an operation on the host."""
        until = time.monotonic() + self._request.lock_wait
        while self._host.busy:
            with self._turn():
                pass
            if time.monotonic() >= until:
                raise host_errors.Busy(
                    f"the node is held by another session ({self._request.lock_wait:g} s waited)"
                )
            await asyncio.sleep(0.01)

    async def _once(self, key: str, name: str, op: Mapping[str, Json]) -> HostEvent:
        with self._turn():
            record = self._host.journal.get(key)
        if record is not None:
            event = _told(key, record, replayed=True)
            self._say(event)
            return event
        self._say(HostEvent("begin", key, name))
        before = self._host.state
        when = op.get("when")
        fault = self._fault(name, key)
        if when is not None and not self._look(when).ok:
            skipped = Record(name, before=before, after=before, at=time.time(), skipped=True)
            return self._recorded(key, skipped)
        if fault is not None and fault.at == "before":
            await self._happen(fault)
        seconds = self._options.duration(name) * self._pace
        if seconds > 0:
            await self._rest(seconds, f"{name} takes its time")
        result = await self._act(key, name, op, fault)
        if fault is not None and fault.at == "acted":
            await self._happen(fault)
        record = Record(name, result=result, before=before, after=self._host.state, at=time.time())
        event = self._recorded(key, record)
        if fault is not None and fault.at == "recorded":
            await self._happen(fault)
        return event

    async def _act(
        self, key: str, name: str, op: Mapping[str, Json], fault: Fault | None
    ) -> Result:
        if name == "healthy":
            return await self._healthy(op)
        with self._turn():
            if name == "probe":
                look = self._look(op.get("probe"))
                if not look.ok:
                    raise host_errors.ProbeFailed(look.said, {"saw": look.saw})
                captured = capture(op.get("probe"), look, self._request.run, self._host)
                return {"saw": look.saw, "captured": captured}
            if name == "run":
                return self._command(key, op)
            now = time.time()
            result = ACTS[name](Act(self._host, op, now))
            if name in {"start", "ensure"}:
                if fault is not None and fault.do == "crash":
                    self._host.become(dies_at=now + (fault.seconds or 0.0))
                settled = now + _seconds(op, "settle", 0.0) * self._pace
                if self._host.state.pid is not None and not self._host.state.alive(settled):
                    raise died(self._host)
            return result

    def _command(self, key: str, op: Mapping[str, Json]) -> Result:
        """The intent of a command is kept before it runs; an intent without outcome is resolved."""
        argv, check, host = op.get("argv"), op.get("check"), self._host
        if not isinstance(argv, list) or not argv:
            raise host_errors.BadRequest("argv: a list of texts is needed")
        if key not in host.runs:
            host.runs = {**host.runs, key: None}
            host.count("runs")
        elif check is None or not self._look(check).ok:
            raise host_errors.Unresolved(
                "the command was begun and nobody knows how it ended", {"argv": argv}
            )
        return {"exit": 0, "output": ""}

    async def _healthy(self, op: Mapping[str, Json]) -> Result:
        wanted, within = _seconds(op, "for", 0.0), _seconds(op, "within", 60.0)
        interval = max(_seconds(op, "interval", 1.0), 0.05)
        waited = 0.0
        since: float | None = None
        while True:
            with self._turn():
                if op.get("service", True) and not self._host.state.alive(time.time()):
                    raise died(self._host)
                look = self._look(op.get("probe"))
            since = None if not look.ok else waited if since is None else since
            # Without a pace nothing changes by waiting: the first look decides.
            if since is not None and (waited - since >= wanted or self._pace <= 0):
                return {"waited": max(waited, wanted), "saw": look.saw}
            if waited >= within or self._pace <= 0:
                raise host_errors.NotHealthy(
                    f"not healthy within {within:g} s: {look.said}", {"saw": look.saw}
                )
            await self._rest(interval * self._pace, "waits to be healthy")
            waited += interval

    def _recorded(self, key: str, record: Record) -> HostEvent:
        """Journals an operation, and says so."""
        with self._turn(key):
            if record.op not in _NEVER_RECORDED:
                self._host.journal[key] = record
            if key in self._host.runs:
                self._host.runs = {**self._host.runs, key: 0}
        event = _told(key, record, replayed=False)
        self._say(event)
        return event

    def _look(self, probe: Any) -> Look:
        return looks(
            probe, self._host, self._request.run, self._options.answers, unhealthy=self._unhealthy()
        )

    def _unhealthy(self) -> bool:
        occasion = self._occasion
        if occasion is None:
            return False
        faults = self._world.faults(self._options)
        return any(fault.do == "unhealthy" and fault.matches(occasion) for fault in faults)

    def _fault(self, name: str, key: str) -> Fault | None:
        """The fault that happens around the operation about to begin, if one does."""
        faults = self._world.faults(self._options)
        if not faults and self._options.faults_file is None:
            return None
        with self._turn_without_fence():
            nth = self._host.occasion(self._request.run, name)
        self._occasion = Occasion(
            node=self._node.name,
            op=name,
            run=self._request.run,
            key=key,
            release=self._host.state.release or "",
            nth=nth,
        )
        for fault in faults:
            if fault.do != "unhealthy" and fault.matches(self._occasion):
                return fault
        return None

    @contextmanager
    def _turn_without_fence(self) -> Iterator[None]:
        with self._world.turn():
            before = self._world.facts(self._host)
            yield
            self._world.keep(self._host, before)

    async def _happen(self, fault: Fault) -> None:
        """What a fault does at its instant; returns only from a hang that ends."""
        if fault.do == "hang":
            said = "hangs, as it was told to"
            if fault.seconds is not None:
                await self._rest(fault.seconds, said)
            while fault.seconds is None:
                await self._rest(3600.0, said)
        elif fault.do == "unreachable":
            raise DriverError(
                "Unreachable",
                f"{self._node.name} does not answer ({fault.message})",
                retryable=True,
            )
        elif fault.do == "die":
            raise DriverError(
                "TransportLost",
                f"{self._node.name}: the host program died ({fault.message})",
                retryable=True,
            )
        elif fault.do == "fail":
            self._fail(fault)

    def _fail(self, fault: Fault) -> NoReturn:
        error = host_errors.Fault(fault.message, dict(fault.detail))
        error.kind, error.retryable = fault.type, fault.retryable
        raise error

    async def _rest(self, seconds: float, said: str) -> None:
        """Waits real seconds; looks at the fence all the time and says so once a second."""
        until = time.monotonic() + seconds
        told = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _SLICE))
            with self._turn():
                pass
            if time.monotonic() - told >= 1.0 and self._occasion is not None:
                told = time.monotonic()
                self._say(HostEvent("progress", self._occasion.key, self._occasion.op, said=said))


def _told(key: str, record: Record, *, replayed: bool) -> HostEvent:
    before = record.before.brief(record.at)
    after = before if record.after is record.before else record.after.brief(record.at)
    return HostEvent(
        "done",
        key,
        record.op,
        replayed=replayed,
        skipped=record.skipped,
        result=record.result,
        before=before,
        after=after,
    )


def _seconds(op: Mapping[str, Json], name: str, default: float) -> float:
    value = op.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise host_errors.BadRequest(f"{name}: a number of seconds is needed")
    return float(value)
