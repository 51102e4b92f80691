"""Puts on every line of an activity's log which workflow, activity and attempt it belongs to."""

from __future__ import annotations

from typing import Any

import structlog
from temporalio import activity
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

# Fields that kedge's activity arguments carry under these very names.
_KNOWN = ("run", "wave", "node", "step")


class LoggingInterceptor(Interceptor):
    """Give it to the worker. Workflows need none: their logger carries its own fields."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - the SDK's name
        """Wraps the way in of each activity."""
        return _BindActivity(next)


class _BindActivity(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - the SDK's name
        info = activity.info()
        fields: dict[str, str | int] = {"activity": info.activity_type, "attempt": info.attempt}
        if info.workflow_id is not None:
            fields["workflow"] = info.workflow_id
        for argument in input.args:
            for name in _KNOWN:
                value = getattr(argument, name, None)
                if isinstance(value, (str, int)):
                    fields[name] = value
        with structlog.contextvars.bound_contextvars(**fields):
            return await self.next.execute_activity(input)
