"""How activities are called: time-outs, heartbeats, retries. One place, so that no call lacks one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import (
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.plans import PlanActivities
    from activities.runs import RunActivities
    from kedge.model.base import Digest
    from kedge.model.errors import FORGED
    from kedge.model.run import EndRequest, EndVerdict, Phase, PlanFacts, Run

T = TypeVar("T")

HEARTBEAT = timedelta(seconds=5)
"""A worker that was killed is noticed after this long."""

INFRASTRUCTURE = RetryPolicy(
    initial_interval=timedelta(seconds=0.2),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=10),
)
"""For activities that decide or record: they are retried until they answer. What is wrong with the *world* comes back
as a value; only a lost worker, a lost store or an unreachable server is retried here."""

A_FEW_TIMES = RetryPolicy(
    initial_interval=timedelta(seconds=0.2),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=2),
    maximum_attempts=5,
)
"""For what a person should hear about soon when it does not work."""

LOST_WORKERS = RetryPolicy(
    initial_interval=timedelta(seconds=0.1),
    backoff_coefficient=1.5,
    maximum_interval=timedelta(seconds=5),
    maximum_attempts=50,
)
"""For legs: Temporal's retries are for lost workers and time-outs only. A step that fails is reported as not retryable
and tried again by the wave as the runbook says, with a higher fence token."""

FLEET = SearchAttributeKey.for_keyword("KedgeFleet")
PHASE = SearchAttributeKey.for_keyword("KedgePhase")
RELEASE = SearchAttributeKey.for_keyword("KedgeRelease")
WAITING = SearchAttributeKey.for_keyword("KedgeWaitingFor")

SERIALS_A_LEG = 128
SERIALS_A_WAVE = 64 * SERIALS_A_LEG
"""How many serials a wave may use: 64 legs, each scheduled at most 128 times."""
SERIALS_OF_A_LOST_CHILD = 1_000_000 * SERIALS_A_WAVE
"""More than a child can have used of which nothing is known any more."""
ROUNDS_A_TRY = 128
"""A leg begins a new round for each attempt at most, so a person's retry begins this many rounds later."""


UNFORGED = timedelta(seconds=1)
"""So long a workflow waits before it asks again for what was answered without the workers' keys, the first time."""
LONGEST_UNFORGED = timedelta(seconds=60)


def is_forged(error: BaseException) -> bool:
    """Whether an activity was answered by somebody who has not the workers' keys: nothing is known of it."""
    cause = error.__cause__
    return isinstance(cause, ApplicationError) and cause.type == FORGED


async def answered(ask: Callable[[], Awaitable[T]], what: str) -> T:
    """The answer of an activity, asked for again while somebody without the workers' keys answers in their place."""
    wait = UNFORGED
    while True:
        try:
            return await ask()
        except ActivityError as error:
            if not is_forged(error):
                raise
        await workflow.sleep(wait, summary=f"a forged answer, asked again: {what}")
        wait = min(wait * 2, LONGEST_UNFORGED)


async def decide(
    method: Callable[..., Coroutine[Any, Any, T]], argument: Any, summary: str, seconds: float = 60
) -> T:
    """A short activity that decides, reads or records; retried until it answers."""
    return await answered(
        lambda: workflow.execute_activity_method(
            method,
            argument,
            start_to_close_timeout=timedelta(seconds=seconds),
            # Short as it is: without one, a worker that is killed in the middle is noticed after a minute.
            heartbeat_timeout=HEARTBEAT,
            retry_policy=INFRASTRUCTURE,
            summary=summary,
        ),
        summary,
    )


async def end_run(run: Run, outcome: Phase, said: str) -> EndVerdict:
    """Write down how a run ended; not ok where the record does not bear it out."""
    request = EndRequest(run=run, outcome=outcome, said=said)
    return await decide(RunActivities.end_run, request, f"ended: {outcome}")


async def plan_facts(plan: Digest) -> PlanFacts:
    """The facts of a plan. Raises ``ActivityError`` when it cannot be read, after a few tries."""
    return await answered(
        lambda: workflow.execute_activity_method(
            PlanActivities.plan_facts,
            plan,
            start_to_close_timeout=timedelta(seconds=60),
            heartbeat_timeout=HEARTBEAT,
            retry_policy=A_FEW_TIMES,
            summary="read the plan",
        ),
        "read the plan",
    )


def why(error: BaseException) -> str:
    """What lies at the bottom of an activity's or child's failure, in its own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = error.message if isinstance(error, FailureError) else str(error)
    return said or type(error).__name__


async def tell(
    child: workflow.ChildWorkflowHandle[Any, Any],
    signal: Callable[..., Awaitable[None] | None],
    *sent: Any,
) -> None:
    """Signal a child. That it has ended meanwhile is no failure: its result is on its way."""
    try:
        await child.signal(signal, args=list(sent))
    except FailureError as error:
        if is_cancelled_exception(error):
            raise
        workflow.logger.info("%s could not be told: %s", child.id, error)


async def survey(
    method: Callable[..., Coroutine[Any, Any, T]], argument: Any, summary: str, seconds: float
) -> T:
    """An activity that visits many nodes once, with heartbeats."""
    return await answered(
        lambda: workflow.execute_activity_method(
            method,
            argument,
            start_to_close_timeout=timedelta(seconds=seconds),
            heartbeat_timeout=HEARTBEAT,
            retry_policy=INFRASTRUCTURE,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=summary,
        ),
        summary,
    )


def attributes(fleet: str, phase: str, release: str) -> TypedSearchAttributes:
    """What a workflow can be found by in the Temporal UI."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(FLEET, fleet),
            SearchAttributePair(PHASE, phase),
            SearchAttributePair(RELEASE, release),
        ]
    )
