"""Temporal's workflow sandbox, asked less often and set up faster.

For every payload of a workflow task the SDK asks the workflow's instance, six times, for a serialization context;
with the sandboxed runner each question compiles and runs code inside the sandbox, which made a sixth of a worker's
processor time in a large wave. Without a payload codec kedge's data converter has no use for a context; with one it
wants to know the workflow a payload is for, which is the asking one but for what goes to and comes from other
workflows. So that question is answered outside. Workflow code runs in the sandbox as before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1.command_type_pb2 import CommandType
from temporalio.converter import (
    SerializationContext,
    StorageDriverStoreContext,
    WorkflowSerializationContext,
)
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import Info

from worker.sealed import SealedInstance, Seals

_OTHERS = frozenset(
    {
        CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION,
        CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION,
        CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION,
        CommandType.COMMAND_TYPE_SCHEDULE_NEXUS_OPERATION,
    }
)
"""Commands whose payloads are another workflow's."""
_NO_STORE = StorageDriverStoreContext(target=None)


def keep_bytecode(folder: Path) -> None:
    """Lets Python keep compiled modules in ``folder`` where it was told to keep none (PYTHONDONTWRITEBYTECODE).

    The sandbox imports the workflows' modules anew for each run of a workflow. Compiling them each time doubles what
    that costs, and images and test machines often set the variable.
    """
    if sys.dont_write_bytecode:
        sys.pycache_prefix = str(folder)
        sys.dont_write_bytecode = False


class ContextFreeRunner(SandboxedWorkflowRunner):
    """For data converters of which no part takes a serialization context, as pydantic's; not for others.

    Not for :class:`worker.codec.WorkerCodec`: see :class:`BoundRunner`.
    """

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """A sandboxed instance that is not asked for contexts."""
        return _ContextFree(super().create_instance(det))


class _ContextFree(WorkflowInstance):
    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: Any) -> Any:
        return self._sandboxed.activate(act)

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:  # noqa: ARG002 - the SDK's signature
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:  # noqa: ARG002 - as above
        return _NO_STORE

    def get_info(self) -> Info:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()


class BoundRunner(SandboxedWorkflowRunner):
    """For data converters that look at the workflow of a context and at nothing else in it; behind :mod:`worker.sealed`."""

    grace: Callable[[], bool] = staticmethod(lambda: False)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """A sandboxed instance that is asked for the contexts of other workflows only, and believes sealed words only."""
        return judged(super().create_instance(det), det.info, Seals(det.info, grace=self.grace))


def judged(instance: WorkflowInstance, info: Info, seals: Seals) -> WorkflowInstance:
    """An instance behind its judge, that is asked for the contexts of other workflows only."""
    own = WorkflowSerializationContext(info.namespace, info.workflow_id)
    return SealedInstance(_Bound(instance, own), seals)


class _Bound(_ContextFree):
    def __init__(self, sandboxed: WorkflowInstance, own: WorkflowSerializationContext) -> None:
        super().__init__(sandboxed)
        self._own = own

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        if command_info is None or command_info.command_type not in _OTHERS:
            return self._own
        return self._sandboxed.get_serialization_context(command_info)
