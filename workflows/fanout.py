"""Many nodes in few activities: chunks side by side, results put together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from kedge.model.run import Looked, Observed, bounded

CHUNK = 250
"""Nodes one observing activity visits."""
AT_ONCE = 4


def together(parts: list[Observed]) -> Observed:
    """One observation of all nodes out of those of chunks."""
    return Observed(
        before=tuple(n for part in parts for n in part.before),
        after=tuple(n for part in parts for n in part.after),
        other=tuple(n for part in parts for n in part.other),
        empty=tuple(n for part in parts for n in part.empty),
        unreachable=tuple(n for part in parts for n in part.unreachable),
        stopped=tuple(n for part in parts for n in part.stopped),
        started_after=tuple(n for part in parts for n in part.started_after),
        mixed=tuple(n for part in parts for n in part.mixed),
        reconfigured=tuple(n for part in parts for n in part.reconfigured),
        unsure=tuple(n for part in parts for n in part.unsure),
        edited=tuple(n for part in parts for n in part.edited),
        problems=bounded(tuple(problem for part in parts for problem in part.problems)),
        finalized=any(part.finalized for part in parts),
        restored=any(part.restored for part in parts),
        fenced=any(part.fenced for part in parts),
        unknown_fence=max((part.unknown_fence for part in parts), default=0),
    )


async def look_all(nodes: int, look: Callable[[tuple[int, ...]], Awaitable[Looked]]) -> Looked:
    """Looks at nodes 0 to ``nodes - 1``, at most ``AT_ONCE`` chunks at a time."""
    chunks = [tuple(range(start, min(start + CHUNK, nodes))) for start in range(0, nodes, CHUNK)]
    parts: list[Looked] = []
    for start in range(0, len(chunks), AT_ONCE):
        parts += await asyncio.gather(*(look(chunk) for chunk in chunks[start : start + AT_ONCE]))
    return Looked(
        nodes=sum(part.nodes for part in parts),
        failures=bounded(tuple(failure for part in parts for failure in part.failures)),
        fenced=any(part.fenced for part in parts),
        problem=next((part.problem for part in parts if part.problem is not None), None),
    )


async def observe_all(
    nodes: int, observe: Callable[[tuple[int, ...]], Awaitable[Observed]]
) -> Observed:
    """Observes nodes 0 to ``nodes - 1``, at most ``AT_ONCE`` chunks at a time."""
    chunks = [tuple(range(start, min(start + CHUNK, nodes))) for start in range(0, nodes, CHUNK)]
    parts: list[Observed] = []
    for start in range(0, len(chunks), AT_ONCE):
        parts += await asyncio.gather(
            *(observe(chunk) for chunk in chunks[start : start + AT_ONCE])
        )
    return together(parts)
