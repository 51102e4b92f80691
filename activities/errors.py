"""The one map from driver errors to Temporal errors."""

from __future__ import annotations

from temporalio.exceptions import ApplicationError

from kedge.model.errors import DriverError
from kedge.model.run import Failure

LOST = frozenset({"TransportLost"})
"""The connection broke while a session ran: the journal on the host knows what was done, so Temporal simply tries
again with a higher attempt in the fence token."""
AWAY = LOST | {"Unreachable"}
"""Nobody answered, or not to the end: nothing is known of the node by that."""


def sentence(error: DriverError, node: str) -> str:
    """What an error says, without the node and the operation: a failure names these by itself."""
    rest = error.message.removeprefix(f"{node}: ")
    operation, colon, said = rest.partition(": ")
    named = rest != error.message and colon and operation.isalpha()
    return (said if named else rest)[:2000]


def to_temporal(error: DriverError, failure: Failure) -> ApplicationError:
    """The Temporal error of a driver error: ``type`` is its kind, the one detail is ``failure``.

    Only a lost connection is retried by Temporal. Everything else is a fact about the node, on which the wave decides
    by the runbook.
    """
    return ApplicationError(
        failure.said,
        failure.model_dump(mode="json"),
        type=error.kind,
        non_retryable=error.kind not in LOST,
    )
