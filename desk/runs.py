"""Questions to workflows and orders for them: the only place where faces meet Temporal's client.

Every error that leaves here is a ``KedgeError``: ``DriverError`` kind ``NotFound`` for what does not
exist, ``EngineError`` for an engine or a worker that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pydantic import BaseModel
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCError, RPCStatusCode

from desk.views import ENDED, Pieces, StepNow
from kedge.model.base import Frozen
from kedge.model.errors import DriverError, EngineError, KedgeError
from kedge.model.order import Envelope
from kedge.model.run import EnsureResult, Submitted
from kedge.model.status import FleetStatus, RunStatus, WaveProgress, WideningProgress
from kedge.trust import orders
from kedge.trust.envelope import order_digest
from kedge.trust.payload_kinds import question, question_name
from worker.codec import ClientCodec, answering

ANSWER_SECONDS = 15.0
"""How long one answer of a workflow may take before it counts as not answering."""
POLLERS_SECONDS = 3.0
"""How long the server itself may take to say who works."""
NO_WORKER_SECONDS = 4.0
"""The same while this home's worker does not run: somebody else's may still answer."""
ORDER_SECONDS = 60.0
"""How long a verdict may take. An update is found again by its id, so an engine that restarts meanwhile
costs nothing but time."""

_Answer = TypeVar("_Answer", bound=BaseModel)
# How a question ends that the server took and no worker answered; without any poller it is refused.
_UNANSWERED = {
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.FAILED_PRECONDITION,
}
_PASSING = _UNANSWERED | {
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.ABORTED,
}


class PassingError(EngineError):
    """The engine does not answer now; it may in a moment."""


class NoWorkerError(EngineError):
    """The engine answers, but no worker takes work from the task queue."""


@functools.cache
def quiet_runtime() -> Runtime:
    """The SDK's runtime of a face: it writes no log of its own into what a person looks at."""
    return Runtime(telemetry=TelemetryConfig(logging=None))


class RunSummary(Frozen):
    """A run as a list shows it, from Temporal's visibility store (which may be a second behind)."""

    run: str
    kind: str
    fleet: str
    phase: str
    release: str
    waiting_for: str
    started: str
    ended: str | None = None


class Runs:
    """Asks and orders through one client."""

    def __init__(
        self, client: Client, task_queue: str, worker_runs: Callable[[], bool] = lambda: True
    ) -> None:
        """``task_queue`` is where workflows that are started here get their work done.

        ``worker_runs`` says whether this home's own worker runs; others may work for the same queue.
        """
        self._client = client
        self._task_queue = task_queue
        self._worker_runs = worker_runs

    async def status(self, run: str, *, seconds: float = ANSWER_SECONDS) -> RunStatus:
        """What a run says of itself, and whether its workflow is there to do it.

        Raises ``NotFound``, or ``EngineError`` when nobody answers.
        """
        status = await self._ask(run, "status", RunStatus, seconds)
        if status.phase in ENDED:
            return status
        with self._faults(run):
            described = await self._client.get_workflow_handle(run).describe(
                rpc_timeout=timedelta(seconds=seconds)
            )
        return _as_ended(status, described)

    async def fleet(self, fleet: str, *, seconds: float = ANSWER_SECONDS) -> FleetStatus:
        """What a fleet's workflow says. Raises as :meth:`status`.

        A fleet that nobody ordered anything for yet is ``NotFound``; so is one whose workflow was ended (:meth:`begin`).
        """
        deadline = asyncio.get_running_loop().time() + seconds
        workflow = f"fleet/{fleet}"
        status = await self._ask(workflow, "status", FleetStatus, seconds)
        with self._faults(workflow):
            if await self._is_closed(workflow):
                said = f"the workflow of {fleet} was ended in Temporal"
                raise DriverError("NotFound", said, retryable=False)
        while not status.known and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.1)
            status = await self._ask(workflow, "status", FleetStatus, seconds)
        return status

    async def begin(self, fleet: str) -> None:
        """Starts a fleet's workflow where it is not there; it rebuilds itself from the fleet's record."""
        with self._faults(f"fleet/{fleet}"):
            await self._workflow(f"fleet/{fleet}")

    async def every(self, fleet: str | None = None) -> tuple[RunSummary, ...]:
        """All runs, newest first; each once, however often its workflow continued as new."""
        query = "WorkflowType IN ('Upgrade', 'Rollback')"
        if fleet is not None:
            query += f" AND KedgeFleet = '{fleet}'"
        found: dict[str, RunSummary] = {}
        with self._faults("the list of runs"):
            async for execution in self._client.list_workflows(query):
                if execution.status != WorkflowExecutionStatus.CONTINUED_AS_NEW:
                    found.setdefault(execution.id, _summary(execution))
        runs = (_asking_for(one, found) for one in found.values())
        return tuple(sorted(runs, key=lambda one: one.started, reverse=True))

    async def submit(self, target: str, envelope: Envelope) -> Submitted:
        """Sends an order and waits for the verdict.

        Each call is an update of its own, found again by its id when the engine goes away in between; an order
        that is sent by a second call is judged again, and refused as spent.
        A fleet's workflow is started when it is not there yet. A run that is over answers with a
        refusal of rule ``not-open``. Raises ``NotFound``, or ``EngineError`` when no verdict came.
        """
        deadline = asyncio.get_running_loop().time() + ORDER_SECONDS
        update = secrets.token_hex(16)
        while True:
            try:
                return await self._submit_once(target, envelope, update, deadline)
            except PassingError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(0.5)

    async def _submit_once(
        self, target: str, envelope: Envelope, update: str, deadline: float
    ) -> Submitted:
        left = max(1.0, deadline - asyncio.get_running_loop().time())
        with self._faults(target):
            if await self._is_over(target):
                said = f"{target} is over: no order can change it any more"
                return Submitted(verdict=orders.refused(envelope, "not-open", said))
            handle = await self._workflow(target)
            try:
                async with asyncio.timeout(left):
                    answer: Submitted = await handle.execute_update(
                        "submit_order", envelope, id=update, result_type=Submitted
                    )
            except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
                raise await self._silence(target) from error
        if answer.verdict.digest != order_digest(envelope):
            raise EngineError(
                f"the verdict that came from {target} is about another order than the one that was sent",
                next_step="look at the run with `kedge status`; if it stays, find out who else polls the task queue",
            )
        return answer

    async def signal(self, target: str, envelope: Envelope) -> None:
        """Sends an order as a plain signal: it is judged all the same, but nobody waits for the verdict."""
        with self._faults(target):
            handle = await self._workflow(target)
            await handle.signal("order", envelope, rpc_timeout=timedelta(seconds=ANSWER_SECONDS))

    async def ensure(self, fleet: str, *, seconds: float = 600.0) -> EnsureResult:
        """Brings up what should run on a fleet's nodes. Raises ``EngineError`` when it does not come to an end."""
        return await self._visit("Ensure", f"ensure/{fleet}", fleet, seconds)

    async def look(self, fleet: str, *, seconds: float = 600.0) -> EnsureResult:
        """How a fleet's nodes are now; nothing is done to them. Raises as :meth:`ensure`."""
        return await self._visit("Look", f"look/{fleet}", fleet, seconds)

    async def _visit(self, kind: str, identity: str, fleet: str, seconds: float) -> EnsureResult:
        with self._faults(identity):
            handle = await self._client.start_workflow(
                kind,
                fleet,
                id=identity,
                task_queue=self._task_queue,
                result_type=EnsureResult,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            )
            try:
                async with asyncio.timeout(seconds):
                    result: EnsureResult = await handle.result()
                    return result
            except TimeoutError as error:
                raise await self._silence(identity) from error

    async def pieces(self, run: str, *, seconds: float) -> Pieces:
        """One round of questions about a run: itself, its widening, its wave, the steps its legs are at.

        A child that ends between two questions is left out; the next round sees what came of it.
        """
        status = await self.status(run, seconds=seconds)
        child = status.child
        back = status.successor if child in {None, status.successor} else None
        with contextlib.suppress(DriverError):
            if status.kind == "upgrade" and back is not None:
                return Pieces(status=status, back=await self._way_back(back, seconds))
            if child is None:
                return Pieces(status=status)
            if "/widening/" in child:
                widening = await self._ask(child, "progress", WideningProgress, seconds)
                if widening.child is None:
                    return Pieces(status=status, widening=widening)
                wave, steps = await self._legs(widening.child, seconds)
                return Pieces(status=status, widening=widening, wave=wave, steps=steps)
            wave, steps = await self._legs(child, seconds)
            return Pieces(status=status, wave=wave, steps=steps)
        return Pieces(status=status)

    async def _way_back(self, run: str, seconds: float) -> Pieces:
        """The pieces of the rollback that goes on in a run's place."""
        status = await self.status(run, seconds=seconds)
        if status.child is None:
            return Pieces(status=status)
        wave, steps = await self._legs(status.child, seconds)
        return Pieces(status=status, wave=wave, steps=steps)

    async def _legs(self, wave: str, seconds: float) -> tuple[WaveProgress, dict[int, StepNow]]:
        progress = await self._ask(wave, "progress", WaveProgress, seconds)
        return progress, await self._steps(wave, seconds)

    async def pollers(self) -> tuple[str, ...]:
        """Identities of the workers that take work from the task queue now."""
        with self._faults(f"the task queue {self._task_queue}"):
            asked = DescribeTaskQueueRequest(
                namespace=self._client.namespace,
                task_queue=TaskQueue(name=self._task_queue),
                task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
            )
            async with asyncio.timeout(POLLERS_SECONDS):
                answer = await self._client.workflow_service.describe_task_queue(asked)
        recent = datetime.now(UTC) - timedelta(seconds=90)
        return tuple(
            poller.identity
            for poller in answer.pollers
            if poller.last_access_time.ToDatetime(tzinfo=UTC) > recent
        )

    async def _ask(self, workflow: str, query: str, kind: type[_Answer], seconds: float) -> _Answer:
        if not self._worker_runs():
            seconds = min(seconds, NO_WORKER_SECONDS)
        with self._faults(workflow):
            handle = self._client.get_workflow_handle(workflow)
            try:
                # The SDK's own limit is for one try, and it tries again for ten seconds.
                async with asyncio.timeout(seconds + 1):
                    with self._named() as sent:
                        answer: _Answer = await handle.query(
                            query, args=sent, result_type=kind, rpc_timeout=timedelta(seconds=seconds)
                        )  # fmt: skip
            except RPCError as error:
                if error.status in _UNANSWERED:
                    raise await self._silence(workflow) from error
                raise
            return answer

    @contextlib.contextmanager
    def _named(self) -> Iterator[list[str]]:
        """The nonce that goes with a question, where payloads are sealed: only an answer to it is taken then."""
        if not isinstance(self._client.data_converter.payload_codec, ClientCodec):
            yield []
            return
        asked = question(secrets.token_hex(16))
        token = answering.set(question_name(json.dumps(asked).encode()))
        try:
            yield [asked]
        finally:
            answering.reset(token)

    async def _workflow(self, target: str) -> WorkflowHandle[object, object]:
        """A handle to an order's target; a fleet's workflow is started when it is not there."""
        if not target.startswith("fleet/"):
            return self._client.get_workflow_handle(target)
        return await self._client.start_workflow(
            "Fleet",
            target.removeprefix("fleet/"),
            id=target,
            task_queue=self._task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            rpc_timeout=timedelta(seconds=ANSWER_SECONDS),
        )

    async def _is_over(self, target: str) -> bool:
        return not target.startswith("fleet/") and await self._is_closed(target)

    async def _is_closed(self, target: str) -> bool:
        description = await self._client.get_workflow_handle(target).describe(
            rpc_timeout=timedelta(seconds=ANSWER_SECONDS)
        )
        return description.status != WorkflowExecutionStatus.RUNNING

    async def _steps(self, wave: str, seconds: float) -> dict[int, StepNow]:
        """The step each pending leg said last: a heartbeat detail ``[node index, step, words]`` for each node."""
        with self._faults(wave):
            async with asyncio.timeout(seconds):
                described = await self._client.get_workflow_handle(wave).describe()
        steps: dict[int, StepNow] = {}
        for pending in described.raw_description.pending_activities:
            payloads = pending.heartbeat_details.payloads
            if not payloads:
                continue
            details = await self._client.data_converter.decode(list(payloads))
            for node, step, said in _told(details):
                steps[node] = StepNow(step=step, said=said, attempt=max(1, pending.attempt))
        return steps

    async def _silence(self, what: str) -> EngineError:
        """Why nobody answered: no worker, or one that is too slow."""
        try:
            pollers = await self.pollers()
        except PassingError as error:
            return error
        # The server remembers a worker that was killed for minutes.
        if not pollers or not self._worker_runs():
            return NoWorkerError(
                f"the engine answers, but no worker takes work from {self._task_queue!r}",
                next_step="`kedge up` starts one; `kedge doctor` shows whether it runs",
            )
        return EngineError(
            f"{what} did not answer in time",
            next_step="try again; `kedge doctor` looks closer, and the worker's log says what it does",
        )

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        """Turns what Temporal's client raises into errors of ours; ``what`` names what was asked for."""
        try:
            yield
        except TimeoutError as error:
            raise PassingError(
                "the engine does not answer",
                next_step="`kedge up` starts the engine and a worker, `kedge doctor` looks closer",
            ) from error
        except RPCError as error:
            raise _of_rpc(error, what) from error
        except WorkflowQueryFailedError as error:
            raise EngineError(f"{what} could not answer: {error}") from error
        except WorkflowUpdateFailedError as error:
            cause = error.cause
            said = cause.message if isinstance(cause, ApplicationError) else str(cause)
            raise EngineError(
                f"{what} could not judge the order: {said}",
                next_step="the worker's log has the details; the order was not spent, send it again",
            ) from error
        except WorkflowFailureError as error:
            raise EngineError(f"{what} failed: {error.cause}") from error


def _of_rpc(error: RPCError, what: str) -> KedgeError:
    if error.status == RPCStatusCode.NOT_FOUND:
        return DriverError(
            "NotFound",
            f"there is no {what}",
            retryable=False,
            next_step="`kedge list` shows the runs there are",
        )
    if error.status in _PASSING:
        return PassingError(
            f"the engine does not answer ({error.status.name.lower().replace('_', ' ')})",
            next_step="`kedge up` starts the engine and a worker, `kedge doctor` looks closer",
        )
    return EngineError(f"the engine refused a question about {what}: {error.message}")


def _told(details: list[object]) -> Iterator[tuple[int, str, str]]:
    """Heartbeats ``[node index, step, words]``: one list for each node of an activity, or three details for its one."""
    for parts in details if all(isinstance(one, list) for one in details) else [details]:
        if not isinstance(parts, list) or len(parts) < 2:
            continue
        node, step = parts[0], parts[1]
        if isinstance(node, int) and isinstance(step, str):
            # A step that is done again on purpose has its round behind a '#'.
            step = step.partition("#")[0]
            said = parts[2] if len(parts) > 2 and isinstance(parts[2], str) else ""
            yield node, step, "" if said == step else said


_BROKEN_OFF = {
    WorkflowExecutionStatus.TERMINATED: "was terminated",
    WorkflowExecutionStatus.CANCELED: "was cancelled",
    WorkflowExecutionStatus.TIMED_OUT: "timed out",
    WorkflowExecutionStatus.FAILED: "failed",
}
"""How a workflow is closed that did not come to its own end."""


def _as_ended(status: RunStatus, described: WorkflowExecution) -> RunStatus:
    """What a run says of itself, corrected where its workflow was ended: it waits for nobody then, and does nothing."""
    how = _BROKEN_OFF.get(described.status) if described.status is not None else None
    if how is None:
        return status
    said = (
        f"its workflow {how} in Temporal, so nothing goes on here; it was at {status.phase}: {status.said}; "
        f"`kedge rollback {status.fleet}` takes the fleet back, by the record"
    )
    update: dict[str, object] = {
        "phase": "terminated",
        "outcome": "terminated",
        "said": said,
        "waiting": None,
        "child": None,
        "held": False,
        "ended": None if described.close_time is None else _stamp(described.close_time),
    }
    return status.model_copy(update=update)


def _asking_for(one: RunSummary, found: Mapping[str, RunSummary]) -> RunSummary:
    """A run as the list shows it: an upgrade that is taken back waits for what that rollback waits for."""
    back = found.get(f"rollback/{one.fleet}/{one.run.rpartition('/')[2]}-auto")
    if one.kind != "upgrade" or one.ended or one.waiting_for or back is None or back.ended:
        return one
    waiting = f"{back.waiting_for} of {back.run}" if back.waiting_for else ""
    return one.model_copy(update={"waiting_for": waiting})


def _summary(execution: WorkflowExecution) -> RunSummary:
    attributes: Mapping[str, object] = {
        pair.key.name: pair.value for pair in execution.typed_search_attributes
    }

    def said(name: str) -> str:
        value = attributes.get(name)
        return value if isinstance(value, str) else ""

    kind, _, rest = execution.id.partition("/")
    gone = execution.status in _BROKEN_OFF and said("KedgePhase") not in ENDED
    return RunSummary(
        run=execution.id,
        kind=kind,
        fleet=said("KedgeFleet") or rest.rpartition("/")[0],
        phase="terminated" if gone else said("KedgePhase"),
        release=said("KedgeRelease"),
        # What a workflow waited for that is not there any more can be answered by nobody.
        waiting_for="" if execution.status in _BROKEN_OFF else said("KedgeWaitingFor"),
        started=_stamp(execution.start_time),
        ended=None if execution.close_time is None else _stamp(execution.close_time),
    )


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
