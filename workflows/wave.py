"""``Wave``: the legs of a chunk of nodes, at most ``parallel`` at a time. It reports; it decides nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import Any

from temporalio import exceptions, workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.legs import LegActivities
    from kedge.model.run import THE_RUN, Failure, LegFacts, LegRequest, WaveRequest, WaveResult
    from kedge.model.status import WaveProgress

from workflows.calls import HEARTBEAT, LOST_WORKERS, ROUNDS_A_TRY, SERIALS_A_LEG

RESTARTING = frozenset({"ServiceDied"})
"""Errors after which a leg is done again from its start: looking once more at a daemon that died helps nobody."""

FINAL = frozenset(
    {"NotAuthorised", "DigestMismatch", "ArchiveRefused", "BadRequest", "Unresolved", "NoRelease"}
)
"""Errors that no repetition mends."""


CHUNK = 250
"""Most nodes of one child: about 1,000 events when every leg is done at its first attempt. Few children: between two of
them places stand empty until the last node of the first is done."""
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
    that failed keeps its place among the unavailable: as many nodes fewer are in flight from then on.
    """

    @workflow.init
    def __init__(self, request: WaveRequest) -> None:
        self._request = request
        self._waiting: deque[int] = deque(request.nodes)
        self._running: list[int] = []
        self._done: list[int] = []
        self._failures: list[Failure] = []
        self._steps = 0
        self._replayed = 0
        self._held = False
        self._stopped = False
        self._fenced = False

    @workflow.run
    async def run(self, request: WaveRequest) -> WaveResult:
        """Runs the legs of its nodes and reports."""
        lanes = min(request.parallel, len(request.nodes))
        # Lanes share the deque and the lists; between two awaits only one of them runs.
        await asyncio.gather(*(self._lane() for _ in range(lanes)))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return WaveResult(
            done=len(self._done),
            steps=self._steps,
            replayed=self._replayed,
            failures=tuple(self._failures),
            remaining=tuple(self._waiting),
            fenced=self._fenced,
            held=self._held,
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
            or self._fenced
            or len(self._failures) > self._request.budget
        )

    async def _lane(self) -> None:
        while self._open():
            node = self._waiting.popleft()
            self._running.append(node)
            failure = await self._node(node)
            self._running.remove(node)
            if failure is None:
                self._done.append(node)
            elif failure.type == "Fenced":
                self._fenced = True
            elif failure.node == THE_RUN:
                # It lies with no node: this one waits with all that were not begun, until a person decided.
                self._waiting.append(node)
                self._stopped = True
                if all(one.node != THE_RUN for one in self._failures):
                    self._failures.append(failure)
                return
            else:
                self._failures.append(failure)
                return

    async def _node(self, node: int) -> Failure | None:
        for index, leg in enumerate(self._request.legs):
            failure = await self._leg(node, index, leg)
            if failure is not None:
                return failure
        return None

    async def _leg(self, node: int, index: int, leg: LegFacts) -> Failure | None:
        """Tries a leg as often as the runbook says, also when held; None when it was done."""
        round_ = self._request.round * ROUNDS_A_TRY
        attempt = 0
        while True:
            failure = await self._once(node, index, leg, round_, attempt)
            attempt += 1
            if (
                failure is None
                or failure.type == "Fenced"
                or failure.node == THE_RUN
                or failure.type in FINAL
                or attempt >= leg.attempts
            ):
                return failure
            if failure.type in RESTARTING:
                round_ += 1
            await workflow.sleep(
                timedelta(seconds=min(leg.backoff * 2 ** (attempt - 1), 60)),
                summary=f"before another try: {failure.type}",
            )

    async def _once(
        self, node: int, index: int, leg: LegFacts, round_: int, attempt: int
    ) -> Failure | None:
        request = self._request
        try:
            done = await workflow.execute_activity_method(
                LegActivities.run_leg,
                LegRequest(
                    run=request.run,
                    node=node,
                    program=request.program,
                    leg=index,
                    serial=request.serial + index * SERIALS_A_LEG + min(attempt, SERIALS_A_LEG - 1),
                    round=round_,
                    wave=request.wave,
                    anew=request.anew,
                ),
                start_to_close_timeout=timedelta(seconds=leg.timeout),
                heartbeat_timeout=HEARTBEAT,
                retry_policy=LOST_WORKERS,
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=f"{request.program} leg {index} of node {node}",
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return _failure(error, request, node, index)
        self._steps += done.done
        self._replayed += done.replayed
        return None


def _failure(error: ActivityError, request: WaveRequest, node: int, leg: int) -> Failure:
    """The failure that ``run_leg`` put into its error, or one made of a time-out."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        return Failure.model_validate(cause.details[0])
    kind = "Timeout" if isinstance(cause, exceptions.TimeoutError) else "Unknown"
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
