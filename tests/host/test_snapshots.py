"""Snapshots are complete or absent; a restore puts back what was there and keeps what must stay newest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def data(host: Any) -> Path:
    host.good()
    top: Path = host.root / "data"
    (top / "wal").mkdir()
    (top / "wal/0001").write_bytes(os.urandom(3 << 20))
    (top / "priv_validator_state.json").write_text('{"height": "5"}')
    (top / "LOCK").write_text("")
    (top / "latest").symlink_to("wal/0001")
    (top / "wal/0001").chmod(0o640)
    return top


def take(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"key": f"take-{name}", "op": "snapshot", "id": name, "paths": ["data"], **more}


def test_a_snapshot_has_everything_but_what_is_kept_out(host: Any, data: Path) -> None:
    said = host.good(take(keep_out=["LOCK"]))
    assert said.result("take-a")["files"] == 2
    copy = host.root / "snapshots/a/files/data"
    assert (copy / "wal/0001").read_bytes() == (data / "wal/0001").read_bytes()
    assert (copy / "wal/0001").stat().st_ino != (data / "wal/0001").stat().st_ino
    assert os.readlink(copy / "latest") == "wal/0001"
    assert not (copy / "LOCK").exists()
    again = host.good({**take(keep_out=["LOCK"]), "key": "other"})
    assert again.result("other") == said.result("take-a")
    assert host.call({**take(), "key": "third"}).error["type"] == "Conflict"


def test_restore_brings_back_content_modes_and_times(host: Any, data: Path) -> None:
    before = (data / "wal/0001").stat()
    content = (data / "wal/0001").read_bytes()
    host.good(take())
    (data / "wal/0001").write_bytes(b"new")
    (data / "wal/0002").write_bytes(b"new")
    host.good({"key": "r", "op": "restore", "id": "a"})
    after = (data / "wal/0001").stat()
    assert (data / "wal/0001").read_bytes() == content
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not (data / "wal/0002").exists()
    assert os.readlink(data / "latest") == "wal/0001"
    assert (host.root / "snapshots/replaced-1/data/wal/0002").exists()


def test_the_newest_of_what_is_kept_stays(host: Any, data: Path) -> None:
    host.good(take())
    (data / "priv_validator_state.json").write_text('{"height": "9"}')
    (data / "wal/keep.me").write_text("made later")
    keep = ["priv_validator_state.json", "*.me"]
    said = host.good({"key": "r", "op": "restore", "id": "a", "keep": keep})
    assert (data / "priv_validator_state.json").read_text() == '{"height": "9"}'
    assert (data / "wal/keep.me").read_text() == "made later"
    assert said.result("r")["files"] == 4


def test_an_older_one_is_not_put_in_the_place_of_what_must_be_newest(host: Any, data: Path) -> None:
    host.good(take())
    (data / "priv_validator_state.json").unlink()
    op = {"key": "r", "op": "restore", "id": "a", "keep": ["priv_validator_state.json"]}
    said = host.call(op)
    assert said.error["type"] == "Conflict"
    assert "priv_validator_state.json" in said.error["message"]
    assert not (host.root / ".kedge/restore.new").exists()
    assert (data / "wal/0001").exists()


def test_what_was_replaced_may_be_dropped(host: Any, data: Path) -> None:
    host.good(take())
    (data / "wal/0002").write_text("x")
    said = host.good({"key": "r", "op": "restore", "id": "a", "drop_replaced": True})
    assert said.result("r")["replaced"] is None
    assert os.listdir(host.root / "snapshots") == ["a"]


def test_a_damaged_snapshot_is_not_restored(host: Any, data: Path) -> None:
    host.good(take())
    (host.root / "snapshots/a/files/data/wal/0001").write_bytes(b"rot")
    live = (data / "wal/0001").read_bytes()
    assert host.call({"key": "r", "op": "restore", "id": "a"}).error["type"] == "DigestMismatch"
    assert (data / "wal/0001").read_bytes() == live


def test_an_incomplete_snapshot_is_none(host: Any, data: Path) -> None:
    host.good(take())
    (host.root / "snapshots/a/manifest.json").unlink()
    assert host.call({"key": "r", "op": "restore", "id": "a"}).error["type"] == "NoSnapshot"
    assert (data / "wal/0001").exists()


def test_nothing_is_restored_under_a_running_daemon(host: Any, data: Path) -> None:
    host.good(*host.leg(host.release("1"), "g1"), take())
    assert host.call({"key": "r", "op": "restore", "id": "a"}).error["type"] == "Conflict"
    assert data.exists()


def test_paths_stay_in_the_root(host: Any, data: Path) -> None:
    (host.root / "out").symlink_to(host.top)
    host.ledger.write_text("")
    for path in ("/etc", "../x", ".kedge", "snapshots/a", "releases", ""):
        said = host.call({"key": f"k{path}", "op": "snapshot", "id": "b", "paths": [path]})
        assert said.error["type"] == "BadRequest"
    said = host.call({"key": "k", "op": "snapshot", "id": "b", "paths": ["out/ledger"]})
    assert said.error["type"] == "Conflict"
    said = host.call({"key": "m", "op": "snapshot", "id": "b", "paths": ["missing"]})
    assert said.error["type"] == "HostError"
    assert os.listdir(host.root / "snapshots") == []
    assert data.exists()


def test_sockets_and_fifos_are_left_out_and_do_not_hang(host: Any, data: Path) -> None:
    os.mkfifo(data / "pipe")
    assert host.good(take()).result("take-a")["files"] == 3
    listed = json.loads((host.root / "snapshots/a/manifest.json").read_text())
    assert "data/pipe" not in [one["path"] for one in listed["entries"]]
