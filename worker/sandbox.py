"""Temporal's workflow sandbox, asked less often and set up faster.

For every payload of a workflow task the SDK asks the workflow's instance, six times, for a serialization context;
with the sandboxed runner each question compiles and runs code inside the sandbox, which made a sixth of a worker's
processor time in a large wave. kedge's data converter has no use for a context, so that question is answered outside.
Workflow code runs in the sandbox as before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from temporalio.converter import StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import Info

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
    """For data converters of which no part takes a serialization context, as pydantic's; not for others."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """A sandboxed instance that is not asked for contexts."""
        return _ContextFree(super().create_instance(det))


class _ContextFree(WorkflowInstance):
    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: Any) -> Any:
        return self._sandboxed.activate(act)

    def get_serialization_context(self, command_info: Any) -> None:  # noqa: ARG002 - the SDK's signature
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:  # noqa: ARG002 - as above
        return _NO_STORE

    def get_info(self) -> Info:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()
