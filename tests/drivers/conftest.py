"""Stores of evidence: a file, and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kedge.drivers.evidence import SqliteEvidence
from kedge.drivers.evidence_postgres import PostgresEvidence
from kedge.drivers.evidence_writer import WrittenEvidence
from tests.drivers import databases
from tests.drivers.databases import Server

Place = Callable[[], WrittenEvidence]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of the system's packages, for all tests of this process."""
    if databases.program("postgres") is None:
        pytest.skip("PostgreSQL is not installed: tools/packages installs it")
    with pytest.MonkeyPatch.context() as patch, databases.from_packages() as server:
        patch.setenv("PGPASSFILE", str(server.passfile))
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is: a file's path, or the address of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "evidence.db")
    server: Server = request.getfixturevalue("postgres")
    return server.fresh()


@pytest.fixture
def place(address: str) -> Place:
    """Opens the store; each call is another worker's."""
    return lambda: opened(address)


def opened(address: str) -> WrittenEvidence:
    """The store at an address."""
    if address.startswith("postgresql:"):
        return PostgresEvidence(address)
    return SqliteEvidence(Path(address))
