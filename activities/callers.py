"""Who asks: the workflow that an activity runs for, as the server names it."""

from __future__ import annotations

from temporalio import activity
from temporalio.exceptions import ApplicationError


def own(workflow: str) -> None:
    """Raise unless it is the workflow of that id that asks.

    Whoever reaches the engine can begin a Fleet under another id, with the state he likes. Two workflows of one id
    never run at a time, so what asks under the right one is what everybody else sees too.
    """
    asks = activity.info().workflow_id
    if asks != workflow:
        said = f"{asks} asks about orders of {workflow}: only that one may"
        raise ApplicationError(said, type="NotAuthorised", non_retryable=True)
