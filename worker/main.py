"""The worker's entry: connect, take work until a signal comes, let running activities come to their end."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys

from temporalio.client import Client

from kedge.drivers.checkpoints import ensure_key
from kedge.model.errors import CodecError, DriverError
from worker.background import announce_ready
from worker.client import EngineUnreachableError, connect, follow_certificate
from worker.logs import configure, get_logger
from worker.sandbox import keep_bytecode
from worker.settings import Settings, SettingsError
from worker.wiring import asking_client, drivers_of, ground_of, worker_of

ENGINE_PATIENCE = 3600.0
"""Seconds a worker waits for an engine that is not there at its start."""


async def serve(settings: Settings) -> None:
    """Take work until SIGTERM or SIGINT. Raises ``EngineUnreachableError`` when no engine came."""
    log = get_logger("worker")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    connecting = asyncio.create_task(connect(settings, patience=ENGINE_PATIENCE))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        connecting.cancel()
        return
    client = await connecting
    keep_bytecode(settings.home / "cache" / "bytecode")
    drivers = drivers_of(settings)
    ground = ground_of(drivers, client)
    worker = worker_of(settings, client, drivers, ground)

    def take_up(renewed: Client) -> None:
        worker.client = renewed
        ground.client = asking_client(renewed)

    following = asyncio.create_task(follow_certificate(settings, take_up))
    try:
        async with worker:
            _keep_out_of_collections()
            announce_ready(settings)
            log.info("takes work", task_queue=settings.task_queue, home=str(settings.home))
            await stop.wait()
            log.info("stops", grace=settings.graceful_shutdown_seconds)
    finally:
        following.cancel()
        stopping.cancel()
        await drivers.aclose()
    log.info("stopped")


def _keep_out_of_collections() -> None:
    """Make the garbage collector leave alone what the worker has loaded, and look less often at what came since.

    Loaded modules live as long as the worker. At the default thresholds a tenth of its processor time went into looking at
    them again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def main() -> int:
    """Run a worker; 0 after a signal, 2 for settings or a ring of keys that cannot be used, 5 when no engine answers."""
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure(settings.log_format, settings.log_level)
    try:
        # Without it nothing could be signed at the next gate: better said now.
        ensure_key(settings.checkpoint_key)
    except DriverError as error:
        sys.stderr.write(f"{error.message}\nnext: {error.next_step}\n")
        return 2
    try:
        asyncio.run(serve(settings))
    except CodecError as error:
        get_logger("worker").error("no codec", reason=error.message, next=error.next_step)
        return 2
    except DriverError as error:
        get_logger("worker").error(
            "the home cannot be used", reason=error.message, next=error.next_step
        )
        return 2
    except EngineUnreachableError as error:
        get_logger("worker").error("no engine", reason=str(error))
        return 5
    return 0
