"""The compose file and the image, as far as they can be read without a container engine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.engine import SEARCH_ATTRIBUTES, Engine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_every_port_is_published_on_this_machine_only(compose: dict[str, Any]) -> None:
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_no_password_is_written_down(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|PWD", name):
                assert value.startswith(("${POSTGRES_PASSWORD:?", "${EVIDENCE_PASSWORD:?"))


def test_what_waits_for_health_waits_for_something_that_has_a_check(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    for service in services.values():
        for name, need in service.get("depends_on", {}).items():
            assert name in services
            if need["condition"] == "service_healthy":
                assert "healthcheck" in services[name]


def test_every_mounted_or_built_file_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).is_dir()


def test_a_cluster_gets_the_same_search_attributes_as_the_embedded_engine() -> None:
    script = (ROOT / "deploy" / "prepare-namespace").read_text()
    assert f"for name in {' '.join(SEARCH_ATTRIBUTES)}; do" in script


def test_what_the_image_copies_is_let_through() -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert source == "." or f"!{source}" in let_through


def test_the_image_runs_the_pins_that_the_tests_ran() -> None:
    def pins(path: str) -> set[str]:
        return set(re.findall(r"^[\w.-]+==\S+", (ROOT / path).read_text(), re.MULTILINE))

    assert pins("deploy/runtime.lock") <= pins("requirements.lock")


def test_no_lock_names_a_host() -> None:
    for path in ("requirements.lock", "deploy/runtime.lock", "tools/uv.lock"):
        assert "://" not in (ROOT / path).read_text()


def test_the_passwords_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    script = tmp_path / "deploy" / "make-env"
    script.parent.mkdir()
    script.write_bytes((ROOT / "deploy" / "make-env").read_bytes())
    # A file of an earlier version keeps its password, and gets what it lacks.
    (tmp_path / ".env").touch(mode=0o600)
    (tmp_path / ".env").write_text(f"POSTGRES_PASSWORD={'a' * 48}\n")
    written = set()
    for _ in range(2):
        subprocess.run(["bash", script], check=True, capture_output=True, timeout=30)
        written.add((tmp_path / ".env").read_text())
    (text,) = written
    assert re.fullmatch(r"POSTGRES_PASSWORD=a{48}\nEVIDENCE_PASSWORD=[0-9a-f]{48}\n", text)
    (tmp_path / ".env").unlink()
    subprocess.run(["bash", script], check=True, capture_output=True, timeout=30)
    text = (tmp_path / ".env").read_text()
    assert re.fullmatch(r"POSTGRES_PASSWORD=[0-9a-f]{48}\nEVIDENCE_PASSWORD=[0-9a-f]{48}\n", text)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


@pytest.mark.temporal
def test_preparing_a_namespace_makes_all_of_it_and_may_run_again(
    engine: Engine, tmp_path: Path
) -> None:
    state = engine.state()
    assert state is not None
    (tmp_path / "temporal").symlink_to(state.binary)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TEMPORAL_ADDRESS": state.address,
        "TEMPORAL_NAMESPACE": "elsewhere",
    }
    script = ["sh", str(ROOT / "deploy" / "prepare-namespace")]
    for _ in range(2):
        subprocess.run(script, env=environment, check=True, capture_output=True, timeout=60)
    shown = subprocess.run(
        ["temporal", "operator", "search-attribute", "list", "--namespace", "elsewhere"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert all(name in shown for name in SEARCH_ATTRIBUTES)
