"""The one map from driver errors to Temporal errors."""

from __future__ import annotations

from temporalio.exceptions import ApplicationError

from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.model.outside import line
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
    return line(said if named else rest)


MAX_SAW = 4000
"""Bytes of what was seen that go with one failure: hundreds of them share a message, which has an end."""


def saw_of(error: DriverError) -> dict[str, Json]:
    """What was seen, as far as it can be written down and there is room: the smaller parts first."""
    sizes: dict[str, int] = {}
    for key, value in error.detail.items():
        try:
            sizes[key] = len(canonical({key: value}))
        except ValueError:
            sizes[key] = MAX_SAW + 1
    room, kept = MAX_SAW, set[str]()
    for key in sorted(sizes, key=lambda key: sizes[key]):
        room -= sizes[key]
        if room < 0:
            break
        kept.add(key)
    return {key: value for key, value in error.detail.items() if key in kept}


def unexpected(error: Exception, node: str) -> DriverError:
    """The error for what nobody thought of: a fact about that node's leg or look, which is noticed like any other.

    Left to itself it would be the engine's to try again, without a word, for as long as it lets it.
    """
    said = f"{node}: kedge met something it was not made for: {type(error).__name__}: {error}"
    return DriverError("Unexpected", line(said), retryable=False)


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
