"""The order in which the Temporal server is found, with tiny real programs on fake paths."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worker import provision
from worker.provision import ProvisionError, TemporalBinary, provide_temporal

GOOD = "temporal version 1.8.2 (Server 1.31.2, UI 2.50.1)"


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def says(path: Path, line: str = GOOD) -> Path:
    return program(path, f'echo "{line}"')


class World:
    """A PATH and a cache of their own, and everything that was said."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.cached = root / "cache" / "kedge" / "temporal" / "1.8.2" / "temporal"
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "XDG_CACHE_HOME": str(root / "cache"),
            "HOME": str(root),
        }
        self.said: list[str] = []

    def provide(self, configured: Path | None = None) -> TemporalBinary:
        return provide_temporal(configured, say=self.said.append, environment=self.environment)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # What the SDK's downloader would do, without a network: it refuses.
    monkeypatch.setattr(provision, "_DOWNLOADER", "import sys; sys.exit('no way out of here')")
    monkeypatch.setattr(provision, "_GO_PLACES", ())
    return World(tmp_path)


def test_a_setting_comes_before_path_and_path_before_the_cache(
    world: World, tmp_path: Path
) -> None:
    named = says(tmp_path / "named" / "any-name")
    on_path = says(world.bin / "temporal")
    says(world.cached)
    assert (world.provide(named).path, world.provide(named).source) == (named, "setting")
    assert (world.provide().path, world.provide().source) == (on_path, "PATH")
    on_path.unlink()
    assert (world.provide().path, world.provide().source) == (world.cached, "cache")
    assert world.said == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "does not say which Temporal server"),
        ('echo "temporal version 1.0 (Server 1.24.2, UI 2)"', "holds server 1.24, and kedge needs"),
        ("echo something else", "does not say which Temporal server"),
    ],
)
def test_one_that_does_not_fit_is_passed_over_with_a_sentence(
    script: str, reason: str, world: World
) -> None:
    program(world.bin / "temporal", script)
    says(world.cached)
    assert world.provide().source == "cache"
    assert len(world.said) == 1
    assert reason in world.said[0]


def test_a_setting_that_names_nothing_is_said_and_passed_over(world: World, tmp_path: Path) -> None:
    says(world.bin / "temporal")
    assert world.provide(tmp_path / "absent").source == "PATH"
    assert "KEDGE_TEMPORAL_BINARY" in world.said[0]
    assert "No such file" in world.said[0]


def test_one_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "EXAMINE_SECONDS", 0.2)
    program(world.bin / "temporal", "exec sleep 30")
    says(world.cached)
    started = time.monotonic()
    assert world.provide().source == "cache"
    assert time.monotonic() - started < 5
    assert "did not print its version" in world.said[0]


def test_the_download_is_kept_in_the_cache(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        provision,
        "_DOWNLOADER",
        "import os, pathlib, sys\n"
        "path = pathlib.Path(sys.argv[1]) / 'temporal-cli-x'\n"
        f"path.write_text('#!/bin/sh\\necho \"{GOOD}\"\\n')\n"
        "path.chmod(0o755)\n",
    )
    assert world.provide().source == "download"
    assert world.provide() == TemporalBinary(path=world.cached, version=GOOD, source="cache")
    leftovers = [entry.name for entry in world.cached.parent.iterdir()]
    assert sorted(leftovers) == [".lock", "temporal"]


FAKE_GO = f"""
if [ "$1" = env ]; then echo go1.26.8; echo local; exit 0; fi
echo "$@" >> "$HOME/go-calls"
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho "{GOOD}"\\n' > "$2"; chmod 755 "$2"
"""


def test_when_the_download_is_refused_it_is_built_and_each_step_down_is_said(
    world: World,
) -> None:
    program(world.bin / "go", FAKE_GO)
    assert world.provide().source == "build"
    calls = Path(world.environment["HOME"], "go-calls").read_text()
    assert "-mod=readonly -trimpath -ldflags=-s -w" in calls
    assert [sentence.split(":")[0].split(",")[0] for sentence in world.said] == [
        "no Temporal server here (KEDGE_TEMPORAL_BINARY",
        "the official download does not work here",
        "building it from its Go module instead",
    ]
    assert "no way out of here" in world.said[1]
    assert world.provide().source == "cache"


@pytest.mark.parametrize(
    ("go", "sentence"),
    [
        (None, "Go is not installed; install Go 1.26.4 or newer"),
        ("echo go1.19.8; echo auto", "go1.19.8; install Go 1.26.4 or newer"),
        ("echo go1.24.1; echo local", "go1.24.1; install Go 1.26.4 or newer"),
        (
            'if [ "$1" = env ]; then echo go1.24.1; echo auto; else echo boom; exit 1; fi',
            "could not be built either: boom",
        ),
    ],
)
def test_without_a_go_that_fits_the_end_is_a_sentence_that_says_what_to_install(
    go: str | None, sentence: str, world: World
) -> None:
    if go is not None:
        program(world.bin / "go", go)
    with pytest.raises(ProvisionError) as caught:
        world.provide()
    assert sentence in str(caught.value)
    assert "next: install the Temporal command line" in str(caught.value)
    assert not world.cached.exists()


def test_a_build_that_takes_too_long_is_ended_with_all_it_started(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "BUILD_SECONDS", 0.5)
    child = tmp_path / "child"
    program(
        world.bin / "go",
        f'if [ "$1" = env ]; then echo go1.26.8; exit 0; fi\nsleep 60 & echo $! > {child}; wait',
    )
    with pytest.raises(ProvisionError, match="it took longer than"):
        world.provide()
    stat = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_set_ups_at_once_fetch_once(world: World) -> None:
    program(world.bin / "go", "sleep 0.3\n" + FAKE_GO)
    found: list[TemporalBinary] = []
    threads = [threading.Thread(target=lambda: found.append(world.provide())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(binary.source for binary in found) == ["build", "cache"]


def test_a_relative_cache_folder_is_ignored_as_the_specification_says() -> None:
    assert provision.cache_dir({"XDG_CACHE_HOME": "here"}).is_relative_to(Path.home())


def test_from_the_makefile_it_says_nothing_when_all_is_there(tmp_path: Path) -> None:
    binary = says(tmp_path / "temporal")
    shown = subprocess.run(
        [sys.executable, "-m", "worker.provision"],
        env={**os.environ, "KEDGE_TEMPORAL_BINARY": str(binary)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (shown.stdout, shown.stderr) == ("", "")
