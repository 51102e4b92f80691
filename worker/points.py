"""Instants of an activity a test may stop the worker at (see "Points" in docs/host-protocol.md).

``activity.<name>.before``: asked for, nothing done. ``activity.<name>.after``: done or failed, not told yet.
``<point>@<fleet>`` means the activities of one fleet's workflows. A worker that waits at a point (``wait``) goes on
with everything else; one that is held there (``hold``) does nothing at all meanwhile. Inert unless the environment names a directory in ``KEDGE_POINTS``.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from kedge.host import points


class PointsInterceptor(Interceptor):
    """Give it to the worker."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """Wraps the way in of each activity, when there are points at all."""
        return _Points(next) if os.environ.get("KEDGE_POINTS") else next


class _Points(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        info = activity.info()
        # Every workflow has its fleet's name second in its id.
        fleet = (info.workflow_id or "").split("/")[1:2]
        whose = fleet[0] if fleet else ""
        await _reach(f"activity.{info.activity_type}.before", whose)
        try:
            return await self.next.execute_activity(input)
        finally:
            await _reach(f"activity.{info.activity_type}.after", whose)


async def _reach(point: str, whose: str) -> None:
    order, reached = points.taken(point, whose)
    while order == "wait" and Path(reached).exists():  # noqa: ASYNC110, ASYNC240 - a file is all that a test has
        await asyncio.sleep(0.005)
    while order == "hold" and Path(reached).exists():  # noqa: ASYNC240 - nothing else must run meanwhile
        time.sleep(0.005)  # noqa: ASYNC251 - as above
    points.obey(order)
