"""What every test folder shares; fixtures of one folder live in that folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from temporalio.client import Client

from tests.daemons import end_below, passable
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings

pytest_plugins = ["tests.slices"]

Tell: TypeAlias = Callable[[str], None]
"""Says in a sentence what a test counted or measured."""


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """What is told stands at the end of the run's output, whichever process the test ran in."""
    return lambda sentence: record_property("told", sentence)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: whoever shares the work has none of them left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the tests told, below the names of their files."""
    told = [
        (report.nodeid.partition("::")[0], value)
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "told"
    ]
    if told:
        terminalreporter.section("counted and measured")
    for file, sentence in told:
        terminalreporter.line(f"{file}: {sentence}")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the developer's own Temporal and kedge variables out of every test."""
    for name in ("ADDRESS", "NAMESPACE", "PROFILE", "CONFIG_FILE", "API_KEY"):
        monkeypatch.delenv(f"TEMPORAL_{name}", raising=False)
    for name in ("KEYS", "CLIENT_KEYS"):
        monkeypatch.delenv(f"KEDGE_CODEC_{name}", raising=False)
    for name in Settings.model_fields:
        if name != "temporal_binary":
            monkeypatch.delenv(f"KEDGE_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def engine_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings whose engine the ``engine`` fixture runs: one per test process.

    Payloads are in the open there, so that tests forge what only the record stops. ``tests/secrets`` and the tests that run
    the commands seal.
    """
    home: Path = tmp_path_factory.mktemp("engine")
    return Settings.load(home=home, payloads="open")


@pytest.fixture(scope="session")
def engine(engine_settings: Settings) -> Iterator[Engine]:
    """A running Temporal server that the tests of this process share; mark them ``temporal``.

    Keep apart by task queue and workflow id. Who kills an engine starts one of their own.
    """
    engine = Engine(engine_settings)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
async def client(engine: Engine, engine_settings: Settings) -> Client:
    """A client of the shared engine, with kedge's data converter."""
    engine.start()
    return await connect(engine_settings, patience=10)


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    """A home of one's own; whatever still runs there at the end is ended."""
    with passable(tmp_path) as made:
        try:
            yield made
        finally:
            end_below(made)
