"""The worker as a detached process that outlives the command line.

``<home>/run/worker.json`` says which process it is; ``<home>/run/worker-ready.json`` is written by
the worker itself, once it takes work (``announce_ready``). ``python -m worker.background`` exits
with 0 while such a worker runs: a health check for containers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker import processes
from worker.processes import ProcessIdentity
from worker.settings import Settings

READY_SECONDS = 120.0
"""How long a worker that lives is waited for; one that ends is noticed at once. A busy machine takes its time to import."""
# -P: the current folder is the user's, and nothing there may shadow a module.
WORKER_ARGV = (sys.executable, "-P", "-m", "worker")


class WorkerError(Exception):
    """The worker could not be started; the message ends in what to do next."""


class WorkerState(BaseModel):
    """The background worker of a home, and whom it was started to work for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity
    engine_address: str | None
    """The embedded engine it was started for; None for a cluster elsewhere."""
    task_queue: str


class _Ready(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessIdentity


def announce_ready(settings: Settings) -> None:
    """Called by the worker's own process once it polls: whoever started it stops waiting."""
    identity = processes.identify(os.getpid())
    if identity is not None:
        processes.write_state(_ready_file(settings), _Ready(process=identity))


def _ready_file(settings: Settings) -> Path:
    return settings.run_dir / "worker-ready.json"


def has_announced(settings: Settings) -> bool:
    """Whether a worker of this home, started by anyone, runs and has said that it takes work."""
    ready = processes.read_state(_ready_file(settings), _Ready)
    return ready is not None and processes.is_alive(ready.process)


class BackgroundWorker:
    """The one background worker of a home. Any number of these may look at the same one."""

    def __init__(self, settings: Settings) -> None:
        """Looks at, and starts, the worker of ``settings.home``."""
        self._settings = settings
        self._state_file = settings.run_dir / "worker.json"
        self._log = settings.log_dir / "worker.log"

    def state(self) -> WorkerState | None:
        """The worker that runs now; None when none does (a stale state file counts as none)."""
        state = processes.read_state(self._state_file, WorkerState)
        return state if state is not None and processes.is_alive(state.process) else None

    def is_ready(self) -> bool:
        """Whether the running worker has said that it takes work."""
        state = self.state()
        ready = processes.read_state(_ready_file(self._settings), _Ready)
        return state is not None and ready is not None and ready.process == state.process

    def start(self, engine_address: str | None, *, wait: float = READY_SECONDS) -> WorkerState:
        """Starts the worker, or finds it running; returns once it takes work.

        A worker that was started for another address or task queue is stopped first. With
        ``wait=0`` it returns at once. Raises ``WorkerError`` when the worker ends at its start or
        does not take work within ``wait`` seconds (with the tail of its log).
        """
        lock = self._settings.run_dir / "worker.lock"
        try:
            with processes.exclusive(lock, seconds=READY_SECONDS + 30, what="starting the worker"):
                state = self.state()
                wanted = (engine_address, self._settings.task_queue)
                if state is not None and (state.engine_address, state.task_queue) != wanted:
                    self.stop()
                    state = None
                if state is None:
                    state = self._launch(engine_address)
                self._await(state, wait)
                return state
        except processes.ProcessError as error:
            raise WorkerError(f"{error}\nnext: `kedge doctor`") from error
        except OSError as error:
            raise WorkerError(
                f"{self._settings.home} cannot be used: {error}; next: make room or give the right "
                "to write there, or name another folder with KEDGE_HOME"
            ) from error

    def stop(self, *, grace: float | None = None) -> processes.Stopped:
        """Stops the worker: SIGTERM, its own graceful shutdown, then SIGKILL.

        What it did not finish is taken up by the next worker: nothing is kept in its memory.
        """
        state = self.state()
        if state is None:
            return "already gone"
        if grace is None:
            # The worker's own grace, and a little for closing connections.
            grace = self._settings.graceful_shutdown_seconds + 5
        return processes.stop(state.process, grace=grace, kill=True)

    def kill(self) -> bool:
        """SIGKILL at once, for drills; False when no worker runs."""
        state = self.state()
        if state is None or not processes.send(state.process, signal.SIGKILL):
            return False
        return processes.wait_gone(state.process, 10)

    def _launch(self, engine_address: str | None) -> WorkerState:
        processes.trim_log(self._log)
        identity = processes.start_detached(
            WORKER_ARGV, log=self._log, environment=self._settings.child_environment()
        )
        state = WorkerState(
            process=identity,
            engine_address=engine_address,
            task_queue=self._settings.task_queue,
        )
        processes.write_state(self._state_file, state)
        return state

    def _await(self, state: WorkerState, wait: float) -> None:
        deadline = time.monotonic() + wait
        while wait > 0 and not self.is_ready():
            if not processes.is_alive(state.process):
                raise WorkerError(
                    f"the worker ended at its start; the end of {self._log}:\n"
                    f"{processes.tail(self._log)}\n"
                    "next: mend what it says there, then `kedge up`"
                )
            if time.monotonic() >= deadline:
                raise WorkerError(
                    f"the worker (pid {state.process.pid}) took no work within {wait:.0f} s; the "
                    f"end of {self._log}:\n{processes.tail(self._log)}\nnext: `kedge doctor`"
                )
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(0 if has_announced(Settings.load()) else 1)
