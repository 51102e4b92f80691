"""Sessions with many nodes in one activity: so many side by side, each talked to again where a connection broke off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from activities.errors import AWAY, unexpected
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest, Transport
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

AT_ONCE = 32
"""Sessions one activity has open at a time."""

PAUSES = (0.2, 1.0)
"""Seconds before a node is talked to again whose host program was killed or whose connection broke off."""

LOOKING = 400.0
"""Seconds a look at many nodes may take: whom it does not come to is said to be unseen. Less than what the workflow
gives the activity, which would otherwise be begun anew for ever."""

T = TypeVar("T")


async def talk(
    transport: Transport,
    node: PlannedNode,
    asked: SessionRequest,
) -> SessionEnd:
    """One session. Nothing follows from a connection that breaks off once: what it was about is looked at again,
    or found in the journal.
    """
    for pause in PAUSES:
        try:
            return await _once(transport, node, asked)
        except DriverError as error:
            if error.kind not in AWAY:
                raise
        await asyncio.sleep(pause)
    return await _once(transport, node, asked)


async def _once(transport: Transport, node: PlannedNode, asked: SessionRequest) -> SessionEnd:
    try:
        return await transport.session(node, asked, _unheard)
    except DriverError:
        raise
    except Exception as error:
        # One node's, and not of the look: the others are seen all the same.
        raise unexpected(error, node.name) from error


def _unheard(event: HostEvent) -> None:
    """Nobody listens to the single steps of a look."""


async def each(
    nodes: Iterable[int],
    visit: Callable[[int], Awaitable[T]],
    unseen: Callable[[int], T] | None = None,
) -> list[T]:
    """Visit nodes, at most ``AT_ONCE`` at a time; answers in the order of ``nodes``.

    With ``unseen`` no visit begins after ``LOOKING`` seconds: that is the answer for whom it would have been.
    """
    slots = asyncio.Semaphore(AT_ONCE)
    until = time.monotonic() + LOOKING

    async def one(node: int) -> T:
        async with slots:
            if unseen is not None and time.monotonic() > until:
                return unseen(node)
            return await visit(node)

    return list(await asyncio.gather(*(one(node) for node in nodes)))
