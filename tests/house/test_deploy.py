"""The compose file and the image, as far as they can be read without a container engine."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.stock import stock_temporal
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

    for path in ("deploy/runtime.lock", "deploy/build.lock"):
        assert pins(path) <= pins("requirements.lock")


def test_no_lock_names_a_host() -> None:
    for path in ("requirements.lock", "deploy/runtime.lock", "deploy/build.lock", "tools/uv.lock"):
        assert "://" not in (ROOT / path).read_text()


@pytest.mark.parametrize("path", ["deploy/Dockerfile", "tools/setup"])
def test_pip_takes_a_lock_as_it_is(path: str) -> None:
    """It looks for what a lock pins under another name (``pydantic[email]``), and then refuses the whole of it."""
    calls = re.findall(r"(?<!uv )pip install .*--require-hashes.*", (ROOT / path).read_text())
    assert len(calls) == 2
    assert all("--no-deps" in call for call in calls if "uv.lock" not in call)


@pytest.mark.parametrize("path", ["deploy/runtime.lock", "deploy/build.lock", "requirements.lock"])
def test_a_lock_has_everything_that_its_packages_need(path: str) -> None:
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / path).read_text(), re.MULTILINE))
    for name in locked:
        try:
            needs = [Requirement(one) for one in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue  # of another system or another Python
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in locked, f"{name} needs {need}"


def test_the_database_is_asked_where_its_clients_ask(compose: dict[str, Any]) -> None:
    """While the image makes a new database, a server answers on the socket that ends before the real one begins."""
    assert "--host" in compose["services"]["postgres"]["healthcheck"]["test"]


def test_workers_share_a_home_and_not_what_says_which_process_runs(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert any(one.endswith("/.kedge:/var/lib/kedge") for one in worker["volumes"])
    # It is root's unless said, and its mode is that of the folder below, whatever is said.
    (run,) = worker["tmpfs"]
    assert re.fullmatch(r"/var/lib/kedge/run:mode=0700,uid=\$\{KEDGE_UID:.*\}", run)
    # Nor would they see each other's daemons.
    assert worker["environment"]["KEDGE_LOCAL_LIMIT"] == "0"


def made_env(folder: Path, *words: str) -> str:
    """What ``deploy/make-env`` leaves in a checkout that has nothing else, called in ``folder``."""
    (folder / "deploy").mkdir(exist_ok=True)
    for name in ("make-env", "outside"):
        (folder / "deploy" / name).write_bytes((ROOT / "deploy" / name).read_bytes())
    script = ["bash", str(folder / "deploy" / "make-env"), *words]
    subprocess.run(script, cwd=folder, check=True, capture_output=True, timeout=30)
    return (folder / ".env").read_text()


def test_what_compose_is_told_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    text = made_env(tmp_path, "my fleets")
    assert re.fullmatch(
        r"POSTGRES_PASSWORD=[0-9a-f]{48}\nEVIDENCE_PASSWORD=[0-9a-f]{48}\nKEDGE_CODEC_KEYS=[A-Za-z0-9+/]{43}=\n"
        r"KEDGE_CODEC_CLIENT_KEYS=[A-Za-z0-9+/]{43}=\n"
        rf"KEDGE_FOLDER='{tmp_path}/my fleets'\nKEDGE_UID={os.geteuid()}\nKEDGE_GID={os.getegid()}\n",
        text,
    )
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert (tmp_path / "my fleets" / ".kedge" / "run").is_dir()
    assert (tmp_path / "my fleets" / "releases").is_dir()
    assert made_env(tmp_path) == text


def test_a_cluster_that_wrote_in_the_open_is_given_no_key(tmp_path: Path) -> None:
    """A file of an earlier version keeps what it has, and gets what it lacks but that: nothing would be read any more."""
    (tmp_path / ".env").touch(mode=0o600)
    (tmp_path / ".env").write_text(f"POSTGRES_PASSWORD={'a' * 48}\n")
    text = made_env(tmp_path)
    assert text.startswith(f"POSTGRES_PASSWORD={'a' * 48}\nEVIDENCE_PASSWORD=")
    assert "KEDGE_CODEC" not in text
    assert f"KEDGE_FOLDER='{tmp_path}'" in text


def test_outside_kedge_is_told_what_the_containers_are_told(
    tmp_path: Path, compose: dict[str, Any]
) -> None:
    told = dict(line.split("=", 1) for line in made_env(tmp_path, "my fleets").splitlines())
    with (tmp_path / ".env").open("a") as file:
        file.write("TEMPORAL_PORT=17233\n")
    script = f'eval "$(bash {tmp_path}/deploy/outside)" && env -0'
    shown = subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=30)
    got = dict(line.split("=", 1) for line in shown.stdout.decode().split("\0") if line)
    assert got["KEDGE_HOME"] == f"{tmp_path}/my fleets/.kedge"
    assert got["KEDGE_CODEC_CLIENT_KEYS"] == told["KEDGE_CODEC_CLIENT_KEYS"]
    # Who orders from outside needs no key that workers seal with.
    assert told["KEDGE_CODEC_KEYS"] not in shown.stdout.decode()
    assert got["PGPASSWORD"] == told["EVIDENCE_PASSWORD"]
    assert got["TEMPORAL_ADDRESS"] == "127.0.0.1:17233"
    (published,) = compose["services"]["postgres"]["ports"]
    (port,) = re.findall(r"\$\{POSTGRES_PORT:-(\d+)\}", published)
    assert got["KEDGE_EVIDENCE_URL"] == f"postgresql://kedge@127.0.0.1:{port}/kedge"
    # Of the superuser's password nobody outside has to know.
    assert told["POSTGRES_PASSWORD"] not in shown.stdout.decode()


PINNED = re.compile(r"[a-z0-9./-]+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}")


def test_every_image_is_pinned_by_its_digest(compose: dict[str, Any]) -> None:
    images = [one["image"] for one in compose["services"].values() if "image" in one]
    base = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)  # fmt: skip
    assert len(base) == 1
    assert set(re.findall(r"^FROM (\S+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)) == {"${PYTHON_IMAGE}"}  # fmt: skip
    # A variable gives another version; without one the pin holds.
    plain = [re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", image) for image in images] + base
    assert len(plain) > 5
    assert [image for image in plain if not PINNED.fullmatch(image)] == []
    digests: dict[str, set[str]] = {}
    for image in plain:
        digests.setdefault(image.partition("@")[0], set()).add(image)
    assert all(len(one) == 1 for one in digests.values()), "one tag has one digest"


def test_stand_ins_and_tests_build_from_a_base_that_no_registry_has_by_its_name() -> None:
    tool = (ROOT / "tools" / "containers").read_text()
    (base,) = re.findall(r"^BASE=(kedge-\S+)$", tool, re.MULTILINE)
    (pinned,) = re.findall(r"^PINNED=(\S+)$", tool, re.MULTILINE)
    assert PINNED.fullmatch(pinned)
    assert re.findall(r"docker pull .*?(\"\S+\")", tool) == ['"$PINNED"']
    files = [
        *(ROOT / "deploy" / "offline").glob("*Dockerfile"),
        *(ROOT / "tests").rglob("*Dockerfile"),
    ]
    froms = [re.findall(r"^FROM (\S+)", one.read_text(), re.MULTILINE) for one in files]
    assert froms == [[base]] * 4


def test_the_tool_that_renews_the_pins_finds_and_writes_each(tmp_path: Path) -> None:
    for name in ("docker-compose.yml", "deploy/Dockerfile", "tools/images", "tools/containers"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    # A stand-in for the registry: it is not reached here, and what is tested is which words are asked and written.
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho sha256:{"5" * 64}\n')
    docker.chmod(0o755)
    path = {"PATH": f"{docker.parent}:/usr/bin:/bin"}
    call = ["bash", str(tmp_path / "tools/images")]
    told = subprocess.run(call, env=path, capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 1, told.stderr
    assert len(told.stdout.splitlines()) == 6
    assert "temporalio/server:1.31.0" in (tmp_path / "asked").read_text()
    subprocess.run([*call, "--write"], env=path, capture_output=True, timeout=30, check=True)
    written = yaml.safe_load((tmp_path / "docker-compose.yml").read_text())
    images = [one["image"] for one in written["services"].values() if "image" in one]
    assert all("5" * 64 in image for image in images)
    for name in ("deploy/Dockerfile", "tools/containers"):
        assert f"@sha256:{'5' * 64}\n" in (tmp_path / name).read_text()
    assert (
        subprocess.run(call, env=path, capture_output=True, timeout=30, check=False).returncode == 0
    )


def test_without_a_registry_no_image_of_one_is_left(compose: dict[str, Any]) -> None:
    class Loader(yaml.SafeLoader):
        """Reads Compose's own tag for what is taken out."""

    Loader.add_constructor("!reset", lambda *_: None)
    offline = ROOT / "deploy" / "offline"
    instead = yaml.load((offline / "compose.yml").read_text(), Loader)["services"]  # noqa: S506 - a safe one
    images = set()
    for name, service in compose["services"].items():
        taken = instead[name]
        if taken is None:
            continue
        images.add(taken["image"] if "image" in service else taken["build"]["args"]["PYTHON_IMAGE"])
    assert images
    assert {f"kedge-offline/{one.stem}" for one in offline.glob("*.Dockerfile")} == images


@pytest.mark.temporal
def test_preparing_a_namespace_makes_all_of_it_and_may_run_again(
    engine: Engine, tmp_path: Path
) -> None:
    state = engine.state()
    assert state is not None
    (tmp_path / "temporal").symlink_to(stock_temporal())
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TEMPORAL_CONFIG_FILE": str(state.profile),
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
