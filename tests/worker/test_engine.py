"""The embedded engine for real: started, killed, found again, moved, stopped."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.worker import Worker

from worker import processes
from worker.client import EngineUnreachableError, connect
from worker.engine import Engine, EngineError, EngineState
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


def test_it_starts_once_and_is_found_by_anyone(own: Engine, settings: Settings) -> None:
    assert own.state() is None
    assert not own.answers()
    first = own.start()
    assert own.start() == first
    assert Engine(settings).state() == first
    assert own.answers()
    code = (
        "from worker.engine import Engine; from worker.settings import Settings\n"
        "print(Engine(Settings.load()).state().model_dump_json())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(settings.child_environment()),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert EngineState.model_validate_json(shown) == first


def test_the_server_gets_nothing_of_the_environment_that_could_be_a_secret(
    own: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        *("KEDGE_CODEC_KEYS", "KEDGE_SECRET_TOKEN", "TEMPORAL_API_KEY", "TEMPORAL_TLS_CLIENT_KEY_DATA"),
        *("PGPASSWORD", "VAULT_TOKEN", "SSH_AUTH_SOCK"),
    )  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "crownvalue-7123")
    monkeypatch.setenv("LC_TIME", "C")
    state = own.start()
    has = Path(f"/proc/{state.process.pid}/environ").read_bytes()
    assert b"crownvalue-7123" not in has
    # The control: what it is to have is found by that look.
    assert b"PATH=" in has
    assert b"LC_TIME=C" in has


async def test_killed_it_comes_back_on_the_same_ports_and_a_run_goes_on(
    own: Engine, settings: Settings
) -> None:
    before = own.start()
    client = await connect(settings)
    # One worker for the whole time: it must find the engine again by itself.
    async with Worker(
        client,
        task_queue="q",
        workflows=[Waits],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
    ):
        handle = await client.start_workflow(Waits.run, id="w", task_queue="q")
        assert own.kill()
        assert own.state() is None
        after = own.start()
        assert (after.ports, after.database) == (before.ports, before.database)
        assert after.process != before.process
        await handle.signal(Waits.release)
        assert await handle.result() == "went on"


def test_stopping_keeps_the_ports_and_a_second_stop_finds_nothing(own: Engine) -> None:
    before = own.start()
    assert own.stop() == "terminated"
    assert own.stop() == "already gone"
    assert own.last_state() == before


def test_a_port_that_was_taken_meanwhile_moves_and_a_configured_one_is_refused(
    own: Engine, settings: Settings
) -> None:
    before = own.start()
    own.stop()
    with socket.create_server(("127.0.0.1", before.port)):
        said: list[str] = []
        assert Engine(settings, said.append).start().port != before.port
        assert said == [f"port {before.port}, which the engine had before, is taken; moving"]
        own.stop()
        fixed = settings.model_copy(update={"engine_port": before.port})
        with pytest.raises(EngineError, match=f"port {before.port}, which setting engine_port"):
            Engine(fixed).start()


def test_one_that_ends_at_its_start_shows_the_end_of_its_log(
    tmp_path: Path, settings: Settings
) -> None:
    fake = tmp_path / "temporal-server"
    fake.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "temporal version 1.31.3"; exit; fi\n'
        "sleep 0.3; echo the disk is full; exit 1\n"
    )
    fake.chmod(0o755)
    engine = Engine(settings.model_copy(update={"temporal_binary": fake}))
    with pytest.raises(EngineError, match=r"(?s)the disk is full.*next: mend what it says"):
        engine.start()
    assert engine.state() is None


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"cannot be used: .*; next: .* KEDGE_HOME"):
        Engine(Settings.load(tmp_path / "file" / "home")).start()


def test_a_state_file_of_an_earlier_boot_is_recognised(own: Engine, settings: Settings) -> None:
    state = own.start()
    old = state.process.model_copy(update={"boot": "an earlier one"})
    processes.write_state(
        settings.run_dir / "engine.json", state.model_copy(update={"process": old})
    )
    assert own.state() is None
    processes.write_state(settings.run_dir / "engine.json", state)
    assert own.state() == state


async def test_without_an_engine_a_client_is_told_what_to_do(settings: Settings) -> None:
    with pytest.raises(EngineUnreachableError, match="is not running; next: `kedge up`"):
        await connect(settings)
    elsewhere = settings.model_copy(update={"temporal_address": "127.0.0.1:1"})
    with pytest.raises(
        EngineUnreachableError, match=r"no Temporal server answers on 127\.0\.0\.1:1"
    ):
        await connect(elsewhere)


async def test_a_profile_of_temporals_own_file_is_used(own: Engine, tmp_path: Path) -> None:
    state = own.start()
    file = tmp_path / "temporal.toml"
    file.write_text(state.profile.read_text().replace("profile.default", "profile.there"))
    settings = Settings.load(
        tmp_path / "other", temporal_profile="there", temporal_config_file=file, payloads="open"
    )
    assert not settings.embedded
    client = await connect(settings)
    assert client.service_client.config.target_host == state.address
    absent = settings.model_copy(update={"temporal_profile": "nobody"})
    with pytest.raises(EngineUnreachableError, match="next: mend the profile"):
        await connect(absent)
