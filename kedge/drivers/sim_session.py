"""One session on one simulated host: the order of looking, acting and recording, and the faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn, Protocol

from kedge.drivers import protocol
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.drivers.sim_faults import Fault, NodeOptions, Occasion
from kedge.drivers.sim_host import ACTS, Act, Record, Result, SimHost, State, died
from kedge.drivers.sim_probes import View, holds, keep_captured, look
from kedge.host import errors as host_errors
from kedge.host import request as host_request
from kedge.host.request import Operation
from kedge.host.verdicts import PASS, UNKNOWN
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

_SLICE = 0.2
"""Longest real seconds between two looks at the fence while an operation waits."""

FRESH = frozenset({"fence", "observe", "ensure", "secrets"})
"""These look anew each time: a record of them must never stand for a look."""


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
        op: Operation | None = None
        try:
            opening = self._fault("session", "")
            if opening is not None:
                await self._happen(opening)
            ops = self._parsed()
            with self._turn():
                self._host.token, self._host.run = self._request.token, self._request.run
            for op in ops:
                done.append(await self._one(op))
        except host_errors.Fault as refused:
            error = protocol.fault(
                refused.kind, refused.message, refused.detail, retryable=refused.retryable
            )
            failed = HostEvent("failed", op.key if op else "", op.name if op else "", error=error)
            self._say(failed)
            seen = self._host.observe(time.time())
            return SessionEnd(ok=False, done=tuple(done), failed=failed, observed=seen)
        return SessionEnd(ok=True, done=tuple(done), observed=self._host.observe(time.time()))

    def _parsed(self) -> list[Operation]:
        """The operations, checked by the host program's own table."""
        asked = self._request.ops
        ops = [host_request.operation(op, f"input.ops[{at}]") for at, op in enumerate(asked)]
        if len({op.key for op in ops}) != len(ops):
            raise host_errors.BadRequest("input.ops: two operations have one key")
        if self._request.look:
            host_request.looking(ops)
        if len(ops) > host_request.MAX_OPS:
            raise host_errors.BadRequest(f"input.ops: at most {host_request.MAX_OPS} are taken")
        return ops

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

    async def _one(self, op: Operation) -> HostEvent:
        self._say(HostEvent("begin", op.key, op.name))
        await self._alone()
        self._host.busy = True
        try:
            return await self._once(op)
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

    async def _once(self, op: Operation) -> HostEvent:
        """One operation: from the journal, skipped, or done and recorded."""
        key, name = op.key, op.name
        fresh = self._request.look or name in FRESH
        with self._turn():
            record = None if fresh else self._host.journal.get(key)
            if record is None and not fresh:
                self._begin(key)
        if record is not None:
            if name == "check" and self._is_to_come(record):
                # Recorded, and the stop is still to come: looked at again, told as it was recorded.
                with self._turn():
                    ACTS[name](Act(self._host, key, op.params, record.before, time.time()))
            return self._replayed(op, record)
        before = self._host.state if fresh else self._host.first[1]
        fault = self._fault(name, key)
        if op.when is not None and not holds(self._view(), op.when):
            after = self._host.state
            skipped = Record(name, before=before, after=after, at=time.time(), skipped=True)
            return self._recorded(key, skipped)
        if fault is not None and fault.at == "before":
            await self._happen(fault)
        await self._take(op, self._options.duration(name))
        result = await self._act(op, before, fault)
        if fault is not None and fault.at == "acted":
            await self._happen(fault)
        record = Record(name, result=result, before=before, after=self._host.state, at=time.time())
        event = self._recorded(key, record)
        if fault is not None and fault.at == "recorded":
            await self._happen(fault)
        return event

    async def _take(self, op: Operation, seconds: float) -> None:
        """Let an operation take so many simulated seconds, or as many as it may."""
        limit = float("inf") if op.limit is None else op.limit
        if seconds > 0 and self._pace > 0:
            await self._rest(min(seconds, limit) * self._pace, f"{op.name} takes its time")
        if seconds > limit:
            raise host_errors.StepTimeout(
                f"did not end within {limit:g} s, its `timeout`", {"timeout": limit}
            )

    def _is_to_come(self, check: Record) -> bool:
        """Whether the daemon that a check looked at still runs: the stop after it was not done yet."""
        state = self._host.state
        return state.alive(time.time()) and state.pid == check.before.pid

    def _begin(self, key: str) -> None:
        """Keeps the first observation for a key: also of an attempt that died in the middle."""
        if self._host.first[0] != key:
            self._host.first = (key, self._host.state)

    def _replayed(self, op: Operation, record: Record) -> HostEvent:
        if record.op != op.name:
            raise host_errors.BadRequest(
                f"the key {op.key!r} was used for {record.op!r}, not {op.name!r}"
            )
        event = _told(op.key, record, replayed=True)
        self._say(event)
        return event

    async def _act(self, op: Operation, before: State, fault: Fault | None) -> Result:
        if op.name == "healthy":
            return await self._healthy(op.params)
        with self._turn():
            if op.name == "probe":
                view = self._view()
                found = look(view, op.params["probe"])
                if found.verdict != PASS:
                    raise host_errors.ProbeFailed(
                        found.why, {"saw": found.saw, "verdict": found.verdict}
                    )
                keep_captured(view, found.captured)
                return {"saw": found.saw, "captured": found.captured}
            if op.name == "init":
                return self._first_command(op)
            if op.name == "run":
                return self._command(op)
            return self._at_once(op, before, fault)

    def _at_once(self, op: Operation, before: State, fault: Fault | None) -> Result:
        host, now = self._host, time.time()
        result = ACTS[op.name](Act(host, op.key, op.params, before, now))
        if (op.name == "start" or result.get("started")) and host.state.pid is not None:
            background = fault is not None and fault.do == "background"
            if fault is not None and (background or fault.do == "crash"):
                host.become(dies_at=now + (fault.seconds or 0.0))
            if not host.state.alive(now + op.params["settle"] * self._pace):
                raise died(host, background=background)
        return result

    def _command(self, op: Operation) -> Result:
        """The intent of a command is kept before it runs; an intent without outcome is resolved."""
        host, check = self._host, op.params["check"]
        if op.key in host.runs:
            found = UNKNOWN if check is None else look(self._view(), check).verdict
            if found == PASS:
                return {"exit": None, "output": "", "resolved": "by its check: the effect is there"}
            if found == UNKNOWN and op.params["anew"] <= host.anew.get(op.key, 0):
                raise host_errors.Unresolved(
                    f"{op.params['argv'][0]} was begun and nobody knows how it ended",
                    {"argv": op.params["argv"][:16]},
                )
        host.runs = {**host.runs, op.key: None}
        if op.params["anew"]:
            host.anew = {**host.anew, op.key: op.params["anew"]}
        host.count("runs")
        return {"exit": 0, "output": "", "seconds": 0.0}

    def _first_command(self, op: Operation) -> Result:
        """A command of a node without data; its outcome is kept, so that it is done once."""
        host, key = self._host, f"init/{op.params['at']}"
        if host.state.data:
            return {"ran": False}
        if host.runs.get(key) != 0:
            self._command(op._replace(key=key, params={**op.params, "anew": 0}))
            host.runs = {**host.runs, key: 0}
        return {"ran": True, "exit": 0, "output": "", "seconds": 0.0}

    async def _healthy(self, params: Mapping[str, Any]) -> Result:
        """Looks until it held for ``for`` seconds; without a pace the first look decides."""
        wanted, within = params["for"], params["within"]
        interval = max(params["interval"], 0.05)
        waited, since = 0.0, -1.0
        while True:
            with self._turn():
                view = self._view()
                if params["service"] and not self._host.state.alive(view.now):
                    raise died(self._host)
                found = look(view, params["probe"])
                good = found.verdict == PASS
                since = -1.0 if not good else waited if since < 0 else since
                if good and (waited - since >= wanted or self._pace <= 0):
                    keep_captured(view, found.captured)
                    return {"waited": max(waited, wanted), "saw": found.saw}
            if waited >= within or self._pace <= 0:
                raise host_errors.NotHealthy(
                    f"not healthy within {within:g} s: {found.why}",
                    {"saw": found.saw, "verdict": found.verdict},
                )
            await self._rest(interval * self._pace, found.why or "healthy, it is watched")
            waited += interval

    def _recorded(self, key: str, record: Record) -> HostEvent:
        """Journals an operation, and says so."""
        with self._turn(key):
            fresh = self._request.look or record.op in FRESH
            if not fresh or record.result.get("started"):
                self._host.journal[key] = record
            if key in self._host.runs:
                self._host.runs = {**self._host.runs, key: 0}
        event = _told(key, record, replayed=False)
        self._say(event)
        return event

    def _view(self) -> View:
        return View(
            self._host,
            self._request.run,
            time.time(),
            self._options.answers,
            unhealthy=self._unhealthy(),
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
                waits = HostEvent("progress", self._occasion.key, self._occasion.op, said=said)
                self._say(protocol.said(waits))


def _told(key: str, record: Record, *, replayed: bool) -> HostEvent:
    before = record.before.brief(record.at)
    after = before if record.after is record.before else record.after.brief(record.at)
    event = HostEvent(
        "done",
        key,
        record.op,
        replayed=replayed,
        skipped=record.skipped,
        result=record.result,
        before=before,
        after=after,
    )
    return protocol.said(event)
