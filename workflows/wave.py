"""``Wave``: the legs of a chunk of nodes, at most ``parallel`` at a time. It reports; it decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from typing import Any

from temporalio import exceptions, workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.legs import LegActivities
    from kedge.model.errors import FORGED
    from kedge.model.run import (
        THE_RUN,
        Failure,
        LegDone,
        LegFacts,
        LegRequest,
        TeamRequest,
        WaveRequest,
        WaveResult,
        beside,
        bounded,
    )
    from kedge.model.status import WaveProgress
    from kedge.plan.availability import UNAVAILABLE, of_refusal
    from kedge.plan.tries import FINAL, OVERTAKEN, OVERTAKEN_TRIES, RESTARTING

from workflows.calls import (
    HEARTBEAT,
    LOST_WORKERS,
    ROUNDS_A_TRY,
    SERIALS_A_LEG,
    UNFORGED,
    is_forged,
)

MOST_FORGED = SERIALS_A_LEG // 2
"""Forged answers to one leg that are asked again: a person has to hear of more."""

CHUNK = 250
"""Most nodes of one child: about 1,000 events when every leg is done at its first attempt. Few children: between two of
them places stand empty until the last node of the first is done."""
TEAM = 8
"""Most nodes that share an activity."""
TEAMS = 4
"""How many teams there are at least: a team's places are free again when the last of its nodes is done."""
QUICK = 1.0
"""Seconds below which a leg costs less than its activity: such nodes are begun in teams."""
ATTEMPTS_A_CHILD = 750
"""Attempts at legs one child may come to: each is up to a dozen events, and no history passes 10,000."""


def chunk_of(legs: tuple[LegFacts, ...]) -> int:
    """How many nodes one child takes, so that its history stays bounded when every leg needs its last attempt."""
    return max(1, min(CHUNK, ATTEMPTS_A_CHILD // sum(leg.attempts for leg in legs)))


@workflow.defn(name="Wave")
class Wave:
    """One chunk of a wave, of a way back, or the finalize steps of one node.

    Nodes wait in ``waiting``, are in flight in ``running``, and end in ``done`` or ``failed``. No further node is begun
    once it is held, stopped (by what lies with no node: a release that was revoked), fenced, or over its budget. A node
    that failed keeps its place among the unavailable: as many nodes fewer are in flight from then on. Whether a node may
    be stopped at all says its activity, which looks right before: one that may not waits until another landed, and when
    none is in flight any more, the wave stops and says which nodes do not serve.

    While legs are quick, nodes that are begun at the same moment share an activity. Which nodes are begun when is not
    changed by that, only how many activities they cost; and a place may wait for others of its team, a second at most.
    """

    @workflow.init
    def __init__(self, request: WaveRequest) -> None:
        self._request = request
        self._waiting: deque[int] = deque(request.nodes)
        self._running: list[int] = []
        self._again: list[tuple[int, Failure | None]] = []
        """Of a team, who has to be tried again by itself: with its failure, or without where nobody knows."""
        self._quick = request.quick
        self._done: list[int] = []
        self._failures: list[Failure] = []
        self._steps = 0
        self._replayed = 0
        self._held = False
        self._stopped = False
        self._crowded: Failure | None = None
        """Why no further node has a place now: a node that is in flight must land first."""
        self._fenced = False
        self._refused = False

    @workflow.run
    async def run(self, request: WaveRequest) -> WaveResult:  # noqa: ARG002 - read at init
        """Runs the legs of its nodes and reports."""
        flights: list[asyncio.Task[None]] = []
        try:
            while flights := [*flights, *map(asyncio.create_task, self._begin())]:
                # Between two awaits only one of all flights runs: they share the deque and the lists.
                landed, flights = await workflow.wait(flights, return_when=asyncio.FIRST_COMPLETED)
                for one in landed:
                    one.result()
        except asyncio.CancelledError:
            for one in flights:
                one.cancel()
            await asyncio.gather(*flights, return_exceptions=True)
            raise
        await workflow.wait_condition(workflow.all_handlers_finished)
        return WaveResult(
            done=len(self._done),
            steps=self._steps,
            replayed=self._replayed,
            failures=bounded(beside(tuple(self._failures))),
            remaining=tuple(self._waiting),
            fenced=self._fenced,
            held=self._held,
            refused=self._refused,
            quick=self._quick,
        )

    @workflow.signal(description="Begin no further node; those in flight come to their end.")
    def hold(self, *_: Any) -> None:
        """Begin no further node. Anybody can say so: it moves nothing, and who did not mean it goes on."""
        self._held = True

    @workflow.query(description="Node indexes by state.")
    def progress(self) -> WaveProgress:
        """Node indexes by state."""
        return WaveProgress(
            wave=self._request.wave,
            program=self._request.program,
            waiting=tuple(self._waiting),
            running=tuple(self._running),
            done=tuple(self._done),
            failed=tuple(failure.node for failure in self._failures),
        )

    def _open(self) -> bool:
        return bool(self._waiting) and not (
            self._held
            or self._stopped
            or (self._crowded is not None and bool(self._running))
            or self._fenced
            or len(self._failures) > self._request.budget
        )

    def _begin(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What can be begun now: nodes to be tried again, then as many that wait as there are places."""
        again, self._again = self._again, []
        for node, failure in again:
            yield self._alone(node, failure, spared=1 if failure is None else 0)
        while nodes := self._next():
            self._running += nodes
            yield self._together(nodes) if len(nodes) > 1 else self._alone(nodes[0])

    def _next(self) -> tuple[int, ...]:
        """The nodes that are begun together now; none while there is no place, or while a team's places fill up."""
        free = self._request.parallel - len(self._running) - len(self._failures)
        size = min(self._size(), len(self._waiting))
        if not self._open() or free < 1 or (free < size and self._running):
            return ()
        return tuple(self._waiting.popleft() for _ in range(min(free, size)))

    def _size(self) -> int:
        """How many nodes share an activity."""
        if not self._quick or len(self._request.legs) != 1:
            return 1
        return max(1, min(TEAM, self._request.parallel // TEAMS))

    async def _alone(self, node: int, known: Failure | None = None, spared: int = 0) -> None:
        """All legs of a node; or the rest of the tries of a team's only leg."""
        failure: Failure | None = None
        for index, leg in enumerate(self._request.legs):
            failure = await self._leg(node, index, leg, known, spared)
            if failure is not None:
                break
        self._over(node, failure)

    async def _together(self, nodes: tuple[int, ...]) -> None:
        """The first try of the only leg of each of these; who failed is tried again by itself."""
        request, leg = self._request, self._request.legs[0]
        try:
            ended = await workflow.execute_activity_method(
                LegActivities.run_legs,
                TeamRequest(
                    leg=self._asked(nodes[0], 0, request.round * ROUNDS_A_TRY, 0), nodes=nodes
                ),
                start_to_close_timeout=timedelta(seconds=leg.timeout),
                heartbeat_timeout=HEARTBEAT,
                retry_policy=LOST_WORKERS,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=f"{request.program} of nodes {', '.join(map(str, nodes))}",
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            # Of none of them is anything known: that was no try of any.
            self._quick = False
            self._again += [(node, None) for node in nodes]
            return
        self._pace([done.seconds for done in ended.done], failed=bool(ended.missed))
        for done in ended.done:
            self._count(done)
            self._over(done.node, None)
        # Those that found no place wait again, before all others and in their order.
        for missed in sorted(ended.missed, key=lambda one: -nodes.index(one.node)):
            if _ends(missed.failure, leg, 1):
                self._over(missed.node, missed.failure)
            else:
                self._again.append((missed.node, missed.failure))

    def _over(self, node: int, failure: Failure | None) -> None:
        self._running.remove(node)
        if failure is not None and failure.type == UNAVAILABLE:
            self._waiting.appendleft(node)
            if not self._redo_first(node, failure):
                self._crowded = failure
                if not self._running:
                    self._stop(failure)
            return
        self._crowded = None
        if failure is None:
            self._done.append(node)
        elif failure.type == "Fenced":
            self._fenced = True
        elif failure.type == "Held":
            # A person paused or ended the run: its word is on its way to here.
            self._waiting.append(node)
            self._held = self._refused = True
        elif failure.node == THE_RUN:
            # It lies with no node: this one waits with all that were not begun, until a person decided.
            self._waiting.append(node)
            self._stop(failure)
        else:
            self._failures.append(failure)

    def _redo_first(self, node: int, failure: Failure) -> bool:
        """Whether nodes that failed before, and so do not serve, go first now: working on them costs no place."""
        missing = {one.node for one in of_refusal(failure)}.intersection(self._request.redo)
        first = [waiting for waiting in self._waiting if waiting in missing]
        if not first or node in missing:
            return False
        others = [waiting for waiting in self._waiting if waiting not in missing]
        self._waiting = deque((*first, *others))
        return True

    def _stop(self, failure: Failure) -> None:
        self._stopped = True
        if all(one.node != THE_RUN for one in self._failures):
            self._failures.append(failure)

    def _count(self, done: LegDone) -> None:
        self._steps += done.done
        self._replayed += done.replayed

    def _pace(self, seconds: list[float], *, failed: bool) -> None:
        self._quick = not failed and max(seconds, default=QUICK) < QUICK

    async def _leg(
        self, node: int, index: int, leg: LegFacts, known: Failure | None, spared: int
    ) -> Failure | None:
        """Tries a leg as often as the runbook says, also when held; None when it was done.

        ``known`` is how the first try ended, where there was one. ``spared`` tries had no end that anybody knows: they
        do not count, but the fence is above them.
        """
        round_ = self._request.round * ROUNDS_A_TRY
        tried = overtaken = 0
        failure = known or await self._once(node, index, leg, round_, spared)
        while True:
            if failure is not None and failure.type == FORGED and spared < MOST_FORGED:
                # Somebody without the workers' keys answered: that was no try, and the fence has to be above it.
                spared += 1
                await workflow.sleep(UNFORGED, summary="before another try: a forged answer")
                failure = await self._once(node, index, leg, round_, tried + spared)
                continue
            if failure is not None and failure.type == OVERTAKEN and overtaken < OVERTAKEN_TRIES:
                overtaken += 1
                await workflow.sleep(timedelta(seconds=1), summary="another admission is at it")
                failure = await self._once(node, index, leg, round_, tried + spared)
                continue
            tried += 1
            if failure is None or _ends(failure, leg, tried):
                return failure
            if failure.type in RESTARTING:
                round_ += 1
            await workflow.sleep(
                timedelta(seconds=min(leg.backoff * 2 ** (tried - 1), 60)),
                summary=f"before another try: {failure.type}",
            )
            failure = await self._once(node, index, leg, round_, tried + spared)

    async def _once(
        self, node: int, index: int, leg: LegFacts, round_: int, attempt: int
    ) -> Failure | None:
        request = self._request
        try:
            done = await workflow.execute_activity_method(
                LegActivities.run_leg,
                self._asked(node, index, round_, attempt),
                start_to_close_timeout=timedelta(seconds=leg.timeout),
                heartbeat_timeout=HEARTBEAT,
                retry_policy=LOST_WORKERS,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=f"{request.program} leg {index} of node {node}",
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self._quick = False
            return _failure(error, request, node, index)
        self._pace([done.seconds], failed=False)
        self._count(done)
        return None

    def _asked(self, node: int, index: int, round_: int, attempt: int) -> LegRequest:
        request = self._request
        return LegRequest(
            run=request.run,
            node=node,
            program=request.program,
            leg=index,
            serial=request.serial + index * SERIALS_A_LEG + min(attempt, SERIALS_A_LEG - 1),
            round=round_,
            wave=request.wave,
            anew=request.anew,
            accepted=request.accepted,
        )


def _ends(failure: Failure, leg: LegFacts, tried: int) -> bool:
    """Whether a failure stays the end of a leg that was tried so often."""
    final = failure.type == "Fenced" or failure.type in FINAL or failure.node == THE_RUN
    return final or tried >= leg.attempts


def _failure(error: ActivityError, request: WaveRequest, node: int, leg: int) -> Failure:
    """The failure that ``run_leg`` put into its error, or one made of a time-out."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        return Failure.model_validate(cause.details[0])
    kind = "Timeout" if isinstance(cause, exceptions.TimeoutError) else "Unknown"
    if is_forged(error):
        kind = FORGED
    said = str(cause) if cause is not None else str(error)
    return Failure(
        node=node,
        name=f"node {node}",
        program=request.program,
        leg=leg,
        step="",
        type=kind,
        said=said or kind,
    )
