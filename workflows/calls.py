"""How activities are called: time-outs, heartbeats, retries. One place, so that no call lacks one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import (
    RetryPolicy,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
)

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
SERIALS_A_WAVE = 4096
"""How many serials a wave may use: 32 legs, each scheduled at most 128 times."""


async def decide(
    method: Callable[..., Coroutine[Any, Any, T]], argument: Any, summary: str, seconds: float = 60
) -> T:
    """A short activity that decides, reads or records; retried until it answers."""
    return await workflow.execute_activity_method(
        method,
        argument,
        start_to_close_timeout=timedelta(seconds=seconds),
        retry_policy=INFRASTRUCTURE,
        summary=summary,
    )


async def survey(
    method: Callable[..., Coroutine[Any, Any, T]], argument: Any, summary: str, seconds: float
) -> T:
    """An activity that visits many nodes once, with heartbeats."""
    return await workflow.execute_activity_method(
        method,
        argument,
        start_to_close_timeout=timedelta(seconds=seconds),
        heartbeat_timeout=HEARTBEAT,
        retry_policy=INFRASTRUCTURE,
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        summary=summary,
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
