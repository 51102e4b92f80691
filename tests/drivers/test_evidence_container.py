"""The evidence in a PostgreSQL that runs in a container, reached over the network with a password from a file."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage

from kedge.drivers.evidence_postgres import PostgresEvidence
from tests.drivers import databases
from tests.drivers.databases import Server
from tests.drivers.test_evidence import assert_sound

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The container, stopped at the end whatever happens: its reaper needs an image of a registry."""
    password = secrets.token_hex(16)
    passfile = tmp_path_factory.mktemp("container") / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:*:{password}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
        patch.setenv("PGPASSFILE", str(passfile))
        folder = Path(__file__).parent / "postgres-image"
        with DockerImage(path=folder, tag="kedge-test-postgres:local", clean_up=False) as image:
            container = DockerContainer(str(image)).with_env("PASSWORD", password)
            with container.with_exposed_ports(5432) as running:
                host = running.get_container_host_ip()
                port = int(running.get_exposed_port(5432))
                databases.wait_for(host, port, 60)
                yield Server(host, port, "kedge", passfile)


async def test_two_workers_write_one_chain_over_the_network(server: Server) -> None:
    address = server.fresh()
    workers = [PostgresEvidence(address) for _ in range(2)]
    await asyncio.gather(
        *(
            worker.append("etcd", f"k{number}", {"number": number})
            for number in range(500)
            for worker in workers
        )
    )
    assert len(await assert_sound(workers[0])) == 500
    for worker in workers:
        await worker.aclose()
