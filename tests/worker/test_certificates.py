"""The certificates of a home: private, whole after every kill, renewed in a home that runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

from kedge.drivers import files
from worker import certificates, client, engine_files
from worker.certificates import LIFE, RENEW_BEFORE, CertificateError, Certificates, ensure
from worker.client import connect, follow_certificate
from worker.engine import Engine, EngineState
from worker.engine_files import HOST, EngineFiles
from worker.settings import Settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(held: Certificates) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in held.folder.glob("*.pem")}


def test_they_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        held = ensure(tmp_path / "tls")
    finally:
        os.umask(before)
    assert stat.S_IMODE(held.folder.stat().st_mode) == 0o700
    for path in (held.issuer, held.authority, held.server, held.client):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_engines_is_for_its_name_and_the_clients_serves_nothing(tmp_path: Path) -> None:
    held = ensure(tmp_path / "tls", NOW)
    server, mine = certificate(held.server), certificate(held.client)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kedge-engine"]
    purposes = [
        set(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        for one in (server, mine)
    ]
    client_auth, server_auth = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    assert purposes == [{client_auth, server_auth}, {client_auth}]
    assert b"PRIVATE KEY" not in held.authority.read_bytes()


def test_each_home_has_an_authority_of_its_own(tmp_path: Path) -> None:
    one, two = ensure(tmp_path / "one"), ensure(tmp_path / "two")
    with pytest.raises(Exception):  # noqa: B017, PT011 - the library names several
        certificate(one.client).verify_directly_issued_by(certificate(two.authority))


def test_they_are_renewed_before_they_end_and_left_alone_before_that(tmp_path: Path) -> None:
    held = ensure(tmp_path / "tls", NOW)
    first = contents(held)
    ensure(tmp_path / "tls", NOW + LIFE - RENEW_BEFORE - timedelta(days=1))
    assert contents(held) == first
    later = NOW + LIFE - RENEW_BEFORE + timedelta(days=1)
    ensure(tmp_path / "tls", later)
    second = contents(held)
    changed = {name for name in first if first[name] != second[name]}
    # The authority stays, so whoever still has the certificate of before is served until that ends.
    assert changed == {"server.pem", "client.pem"}
    assert certificate(held.client).not_valid_after_utc == later + LIFE
    end = NOW + certificates.AUTHORITY_LIFE - timedelta(days=1)
    ensure(tmp_path / "tls", end)
    assert {name for name in first if second[name] != contents(held)[name]} == set(first)


@pytest.mark.parametrize("after", range(5))
def test_killed_between_any_two_files_the_next_one_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    held = ensure(tmp_path / "tls", NOW)
    at = NOW + certificates.AUTHORITY_LIFE - timedelta(days=1)
    left = [after]

    def write(path: Path, content: bytes, mode: int = 0o600) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        files.write_atomic(path, content, mode)

    with monkeypatch.context() as patch:
        patch.setattr(certificates, "write_atomic", write)
        try:
            ensure(tmp_path / "tls", at)
        except KeyboardInterrupt:
            assert after < 4
    ensure(tmp_path / "tls", at)
    authority = certificate(held.authority)
    for path in (held.server, held.client):
        certificate(path).verify_directly_issued_by(authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(path)  # the key is the certificate's


def test_two_at_once_issue_once(tmp_path: Path) -> None:
    found: list[dict[str, bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append(contents(ensure(tmp_path / "tls", NOW))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(one == found[0] for one in found)


def _open_folder(held: Certificates) -> None:
    held.folder.chmod(0o750)


def _open_key(held: Certificates) -> None:
    held.client.chmod(0o640)


def _link(held: Certificates) -> None:
    moved = held.folder.parent / "elsewhere.pem"
    held.client.rename(moved)
    held.client.symlink_to(moved)


def _junk(held: Certificates) -> None:
    held.server.write_bytes(b"no certificate")


def _foreign(held: Certificates) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file of another user takes root to make")
    os.chown(held.client, 65534, -1)


@pytest.mark.parametrize("spoil", [_open_folder, _open_key, _link, _junk, _foreign])
def test_keys_that_others_may_know_are_not_used(tmp_path: Path, spoil: object) -> None:
    held = ensure(tmp_path / "tls", NOW)
    assert callable(spoil)
    spoil(held)
    with pytest.raises(
        CertificateError, match=r"next: `kedge down`, remove .*tls, then `kedge up`"
    ):
        ensure(tmp_path / "tls", NOW)


# -- in a home that runs ----------------------------------------------------------------------------------------------


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


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path / "home", sticky_queue_seconds=1, payloads="open")


@pytest.fixture
def own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engine_files, "REFRESH", "1s")
    engine = Engine(settings)
    yield engine
    engine.stop(grace=5)


def presented(state: EngineState) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((HOST, state.port)).encode())


@pytest.mark.temporal
async def test_a_running_engine_takes_up_a_renewed_certificate_and_serves_the_old_client(
    own: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = own.start()
    old = await connect(settings)
    folder = EngineFiles(settings.engine_dir).certificates
    before = presented(state)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "RENEW_BEFORE", LIFE)
        held = ensure(folder)
    deadline = time.monotonic() + 20
    while (shown := presented(state)) == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert shown == certificate(held.server)
    for one in (old, await connect(settings)):
        assert await one.count_workflows() is not None
    assert own.state() == state


@pytest.mark.temporal
async def test_a_worker_outlives_even_another_authority(
    own: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CERTIFICATE_SECONDS", 0.2)
    own.start()
    first = await connect(settings)
    worker = Worker(first, task_queue="q", workflows=[Waits])
    taken: list[Client] = []

    def take_up(renewed: Client) -> None:
        worker.client = renewed
        taken.append(renewed)

    async with worker:
        await first.start_workflow(Waits.run, id="w", task_queue="q")
        following = asyncio.create_task(follow_certificate(settings, take_up))
        await asyncio.sleep(0.1)
        assert own.kill()
        shutil.rmtree(EngineFiles(settings.engine_dir).certificates)
        await asyncio.to_thread(own.start)
        handle = (await connect(settings)).get_workflow_handle("w", result_type=str)
        await handle.signal(Waits.release)
        assert await asyncio.wait_for(handle.result(), 60) == "went on"
        following.cancel()
    assert len(taken) == 1
