"""Somebody who reaches Temporal's frontend: answers for workers, without their keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.failure.v1 import Failure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedRequest,
    RespondWorkflowTaskCompletedRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError

Task = TypeVar("Task")
Answer = Callable[[PollActivityTaskQueueResponse], Payload | Failure]
Close = Callable[[PollWorkflowTaskQueueResponse], RespondWorkflowTaskCompletedRequest | None]


@dataclass
class Rogue:
    """A poller of a task queue. It answers the first ``most`` tasks that it gets, and keeps what it was asked."""

    client: Client
    queue: str
    most: int
    asked: list[PollActivityTaskQueueResponse] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)

    async def activities(self, answer: Answer, pollers: int = 4) -> None:
        """Answers activities until it has had its share."""
        await asyncio.gather(*(self._activities(answer) for _ in range(pollers)))

    async def _activities(self, answer: Answer) -> None:
        service = self.client.workflow_service
        queue = TaskQueue(name=self.queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
        asked = PollActivityTaskQueueRequest(namespace=self.client.namespace, task_queue=queue, identity="rogue")  # fmt: skip
        while len(self.asked) < self.most:
            task = await self._polled(service.poll_activity_task_queue(asked))
            if task is None or not task.task_token:
                continue
            self.asked.append(task)
            said = answer(task)
            try:
                if isinstance(said, Failure):
                    await service.respond_activity_task_failed(
                        RespondActivityTaskFailedRequest(
                            namespace=self.client.namespace, task_token=task.task_token, failure=said
                        )
                    )  # fmt: skip
                else:
                    await service.respond_activity_task_completed(
                        RespondActivityTaskCompletedRequest(
                            namespace=self.client.namespace, task_token=task.task_token, result=Payloads(payloads=[said]),
                        )
                    )  # fmt: skip
            except RPCError:
                continue
            self.answered.append(task.activity_type.name)

    async def workflows(self, close: Close, pollers: int = 4) -> None:
        """Answers workflow tasks until it has had its share."""
        await asyncio.gather(*(self._workflows(close) for _ in range(pollers)))

    async def _workflows(self, close: Close) -> None:
        service = self.client.workflow_service
        queue = TaskQueue(name=self.queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
        asked = PollWorkflowTaskQueueRequest(namespace=self.client.namespace, task_queue=queue, identity="rogue")  # fmt: skip
        while len(self.answered) < self.most:
            task = await self._polled(service.poll_workflow_task_queue(asked))
            if task is None or not task.task_token:
                continue
            said = close(task)
            if said is None:
                continue
            try:
                await service.respond_workflow_task_completed(said)
            except RPCError:
                continue
            self.answered.append(task.workflow_execution.workflow_id)

    async def _polled(self, polling: Awaitable[Task]) -> Task | None:
        try:
            return await asyncio.wait_for(polling, 5)
        except (TimeoutError, RPCError):
            return None
