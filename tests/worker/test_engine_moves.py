"""Homes whose engine was a dev server, or was killed while it was made, and what becomes of their runs."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

from desk import up
from tests.stock import stock_temporal
from worker import processes
from worker.background import BackgroundWorker, WorkerState
from worker.client import connect
from worker.engine import SEARCH_ATTRIBUTES, Engine
from worker.engine_files import HOST
from worker.settings import Settings

pytestmark = pytest.mark.temporal


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path / "home", sticky_queue_seconds=1, payloads="open")


@pytest.fixture
def own(settings: Settings) -> Iterator[Engine]:
    engine = Engine(settings)
    yield engine
    engine.stop(grace=5)


@workflow.defn(sandboxed=False)
class Waits:
    def __init__(self) -> None:
        self.free = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.free)
        return "went on"

    @workflow.signal
    def release(self) -> None:
        self.free = True


def old_engine(settings: Settings) -> tuple[processes.ProcessIdentity, str]:
    """The engine of an earlier kedge: what it ran, and what it wrote down."""
    port, http_port = 20_000 + os.getpid() % 5000, 25_000 + os.getpid() % 5000
    settings.engine_dir.mkdir(parents=True)
    database = settings.engine_dir / "temporal.db"
    argv = [stock_temporal(), "server", "start-dev", "--ip", HOST, "--port", str(port)]
    argv += ["--http-port", str(http_port), "--db-filename", str(database), "--headless"]
    argv += ["--log-format", "json", "--log-level", "warn", "--namespace", "default"]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        argv += ["--sqlite-pragma", pragma]
    for name in SEARCH_ATTRIBUTES:
        argv += ["--search-attribute", f"{name}=Keyword"]
    log = settings.log_dir / "engine.log"
    process = processes.start_detached(argv, log=log)
    state = {
        "process": process.model_dump(),
        "port": port,
        "http_port": http_port,
        "ui_port": None,
        "binary": argv[0],
        "version": "temporal version 1.8.2",
        "database": str(database),
        "log": str(log),
    }
    settings.run_dir.mkdir(parents=True)
    processes.write_state(settings.run_dir / "engine.json", _Written.model_validate(state))
    return process, f"{HOST}:{port}"


class _Written(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize("runs", [True, False])
async def test_a_home_of_the_dev_server_moves_over_with_its_runs(
    own: Engine, settings: Settings, *, runs: bool
) -> None:
    process, address = old_engine(settings)
    deadline = time.monotonic() + 30
    while True:
        try:
            before = await Client.connect(address)
            handle = await before.start_workflow(Waits.run, id="w", task_queue="q")
            break
        except RuntimeError:
            assert time.monotonic() < deadline, processes.tail(settings.log_dir / "engine.log")
    run = (await handle.describe()).run_id
    if not runs:
        assert own.stop() == "terminated"
    assert own.state() is None
    said: list[str] = []
    after = Engine(settings, said.append).start()
    assert after.address == address
    assert not processes.is_alive(process)
    assert ["stops the dev server" in sentence for sentence in said] == [True] * runs
    client = await connect(settings)
    async with Worker(client, task_queue="q", workflows=[Waits]):
        handle = client.get_workflow_handle("w", result_type=str)
        assert (await handle.describe()).run_id == run
        await handle.signal(Waits.release)
        assert await handle.result() == "went on"


@pytest.mark.usefixtures("own")
async def test_the_worker_of_the_dev_server_is_started_anew(settings: Settings) -> None:
    old_engine(settings)
    sleeps = processes.start_detached(["sleep", "60"], log=settings.log_dir / "worker.log")
    own_address = f"{HOST}:1"
    state = WorkerState(process=sleeps, engine_address=own_address, task_queue="kedge")
    processes.write_state(settings.run_dir / "worker.json", state)
    try:
        place = await up.start(settings, lambda _: None)
        assert not processes.is_alive(sleeps)
        assert place.started == ("engine", "worker")
    finally:
        BackgroundWorker(settings).stop(grace=5)
        processes.stop(sleeps, grace=1, kill=True)


def test_a_database_that_was_half_made_is_made_again(own: Engine) -> None:
    """What a kill during the first start leaves: some of the tables."""
    whole = own.start().database
    own.stop()
    with sqlite3.connect(whole) as made:
        tables = made.execute(
            "SELECT sql FROM sqlite_master WHERE sql LIKE 'CREATE TABLE%'"
        ).fetchall()
    for name in whole.parent.glob("temporal.db*"):
        name.unlink()
    with sqlite3.connect(whole) as half:
        for (statement,) in tables[: len(tables) // 2]:
            half.execute(statement)
    own.start()
    assert own.answers()


def test_a_database_with_runs_is_never_taken_for_half_made(own: Engine) -> None:
    database = own.start().database
    own.kill()
    identity = database.stat().st_ino
    own.start()
    assert database.stat().st_ino == identity
    own.kill()
    database.write_bytes(b"no database at all, but somebody may mend it")
    for name in ("temporal.db-wal", "temporal.db-shm"):
        database.with_name(name).unlink(missing_ok=True)
    with pytest.raises(Exception, match="the Temporal server ended at its start"):
        own.start()
    assert database.read_bytes().startswith(b"no database")
