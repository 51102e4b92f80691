"""Bringing a home up and down: engine, worker, policies, fleets, nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from desk import codec as desk_codec
from desk import ui_state
from kedge.drivers.checkpoints import COMMENT, ensure_key
from kedge.model.base import Frozen
from kedge.model.errors import EngineError, SettingsError
from worker.background import BackgroundWorker, WorkerError
from worker.client import EngineUnreachableError, connect_config
from worker.engine import Engine
from worker.engine import EngineError as EngineFault
from worker.processes import ProcessError
from worker.provision import ProvisionError
from worker.settings import Settings

Say = Callable[[str], None]


class Place(Frozen):
    """Where everything is, once it is up. ``started`` names what this call had to start."""

    home: Path
    address: str
    ui: str | None
    engine_pid: int | None
    worker_pid: int | None
    """None: none was asked for here; those of the cluster take the work."""
    logs: Path
    checkpoint_key: str
    """The public key line with which this home's worker signs the evidence; policies name it."""
    started: tuple[str, ...] = ()


class Stopped(Frozen):
    """How the two processes ended, in a word or two each."""

    worker: str
    engine: str


def engine_error(error: Exception) -> EngineError:
    """The error of our tree for one whose sentence ends in ``next: …``."""
    message = str(error)
    for mark in ("\nnext: ", "; next: "):
        said, found, step = message.rpartition(mark)
        if found:
            return EngineError(said, next_step=step)
    return EngineError(message)


@contextmanager
def faults() -> Iterator[None]:
    """Turns what the engine's and the worker's code raises into ``EngineError``."""
    try:
        yield
    except (
        EngineFault,
        WorkerError,
        ProcessError,
        ProvisionError,
        EngineUnreachableError,
    ) as error:
        raise engine_error(error) from error


async def start(settings: Settings, say: Say, *, worker: bool = True) -> Place:
    """Starts the engine and the worker where they do not run, and waits until both answer.

    They are detached: they outlive this process. Without ``worker`` no worker is started, for a cluster has its own.
    Raises ``EngineError``, and ``CodecError`` or ``SettingsError`` before anything is started.
    """
    if settings.embedded and not worker:
        raise SettingsError(
            "the embedded engine has no other worker than this home's",
            next_step="leave out --no-worker, or name a cluster with TEMPORAL_ADDRESS",
        )
    with faults():
        return await asyncio.to_thread(_start, settings, say, worker=worker)


def _start(settings: Settings, say: Say, *, worker: bool) -> Place:
    # Before the worker needs them: a key or a ring that cannot be used is told to who can mend it.
    key = ensure_key(settings.checkpoint_key)
    desk_codec.ensure(settings)
    started: list[str] = []
    engine = None
    if settings.embedded:
        watcher = Engine(settings, say)
        if watcher.dev_server() is not None:
            # It speaks without a certificate, and would look for its engine for ever.
            BackgroundWorker(settings).stop()
        if watcher.state() is None:
            say("starts the Temporal server")
            started.append("engine")
        engine = watcher.start()
        address = engine.address
    else:
        address = connect_config(settings).get("target_host", "")
    background = BackgroundWorker(settings)
    own = None
    if worker:
        if background.state() is None:
            say("starts the worker")
            started.append("worker")
        own = background.start(engine.address if engine is not None else None)
    ui = ui_state.running(settings) if settings.embedded else None
    return Place(
        home=settings.home,
        address=address,
        ui=ui.url if ui is not None else None,
        engine_pid=engine.process.pid if engine is not None else None,
        worker_pid=own.process.pid if own is not None else None,
        logs=settings.log_dir,
        checkpoint_key=f"{key.public.line} {COMMENT}",
        started=tuple(started),
    )


async def stop(settings: Settings) -> Stopped:
    """Stops the worker, then the engine; nodes go on. Raises ``EngineError``."""
    with faults():
        return await asyncio.to_thread(_stop, settings)


def _stop(settings: Settings) -> Stopped:
    worker = BackgroundWorker(settings).stop()
    engine = Engine(settings).stop() if settings.embedded else "not kedge's own"
    return Stopped(worker=worker, engine=engine)
