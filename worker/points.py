"""Instants of an activity a test may stop the worker at (see "Points" in docs/host-protocol.md).

``activity.<name>.before``: asked for, nothing done. ``activity.<name>.after``: done or failed, not told yet.
Inert unless the environment names a directory in ``KEDGE_POINTS``.
"""

from __future__ import annotations

import os
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
        name = activity.info().activity_type
        points.reach(f"activity.{name}.before")
        try:
            return await self.next.execute_activity(input)
        finally:
            points.reach(f"activity.{name}.after")
