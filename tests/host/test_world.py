"""The world fails: the disk is full, the clock jumps, a file system says no."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host import errors


@pytest.fixture
def small(host: Any) -> Iterator[Path]:
    """The node's root on a file system of its own that holds two megabytes."""
    if os.geteuid() != 0:
        pytest.skip("a small file system of its own can be mounted by root only")
    host.root.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(host.root)],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    yield host.root
    host.end_daemon()
    for _ in range(100):
        if not subprocess.run(
            ["umount", str(host.root)], check=False, capture_output=True
        ).returncode:
            return
        time.sleep(0.05)


def fill(root: Path, left: int) -> Path:
    """Leave so many bytes free."""
    found = os.statvfs(root)
    size = found.f_bavail * found.f_bsize - left
    path = root / "data/filling"
    path.write_bytes(b"x" * max(0, size))
    return path


def test_a_full_disk_has_a_name_and_leaves_nothing_half(host: Any, small: Path) -> None:
    import io
    import tarfile

    host.good(*host.leg(host.release("1"), "g1", "a/"))
    host.until_events(1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(4):
            info = tarfile.TarInfo(f"part-{number}")
            info.size = 300_000
            archive.addfile(info, io.BytesIO(os.urandom(info.size)))
    big = host.archive(out.getvalue())
    filling = fill(small, 700_000)
    said = host.call(host.stage(big, "b"))
    assert said.error["type"] == "NoSpace"
    assert said.error["retryable"] is True
    assert len(os.listdir(small / "releases")) == 1
    assert said.observed["running"] is True
    said = host.call({"key": "s", "op": "snapshot", "id": "a", "paths": ["data"]})
    assert said.error["type"] == "NoSpace"
    assert os.listdir(small / "snapshots") == []
    filling.unlink()
    host.good(host.stage(big, "b"))


def test_a_restore_without_room_changes_nothing(host: Any, small: Path) -> None:
    host.good()
    (small / "data/rows").write_bytes(b"a" * 400_000)
    host.good({"key": "s", "op": "snapshot", "id": "a", "paths": ["data/rows"]})
    (small / "data/rows").write_bytes(b"b" * 400_000)
    filling = fill(small, 100_000)
    said = host.call({"key": "r", "op": "restore", "id": "a"})
    assert said.error["type"] == "NoSpace"
    assert (small / "data/rows").read_bytes() == b"b" * 400_000
    assert not (small / ".kedge/restore.new").exists()
    filling.unlink()
    host.good({"key": "r", "op": "restore", "id": "a"})
    assert (small / "data/rows").read_bytes() == b"a" * 400_000


def test_each_step_on_a_disk_without_a_free_byte(host: Any, small: Path) -> None:
    """Whatever fails fails as NoSpace, and goes on from there once there is room."""
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"), host.stage(two, "b/stage"))
    host.until_events(1)
    leg = host.leg(two, "g2", "b/")
    filling = fill(small, 0)
    for _ in range(3):
        said = host.call(*leg)
        assert said.error["type"] == "NoSpace", said.lines
    filling.unlink()
    said = host.good(*leg)
    assert said.observed["running_release"] == two.digest
    assert host.until_events(3) == ["start 1", "term 1", "start 2"]


CLOCK = """
import json, sys, time
true = time.time
time.time = lambda: true() + float(sys.argv[1])
from kedge.host import session
sys.exit(session.converse(session.Wire(0, 1)))
"""


@pytest.mark.parametrize("jump", [-10 * 365 * 86400.0, 10 * 365 * 86400.0])
def test_a_clock_that_is_years_off_changes_no_duration(host: Any, jump: float) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    ops = [
        {
            "key": "h",
            "op": "healthy",
            "probe": {"service": {"running": True}},
            "for": 0.3,
            "within": 5,
        },
        {"key": "s", "op": "stop", "grace": 5},
        {"key": "b", "op": "start", "settle": 0.3},
    ]
    begun = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", CLOCK, str(jump)],
        input=host.asked(ops) + b"\n",
        stdout=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    assert ran.returncode == 0, ran.stdout
    assert 0.6 <= time.monotonic() - begun < 10
    host.good({"key": "h2", "op": "healthy", "probe": {"service": {"running": True}}, "within": 1})


def test_errors_of_the_system_keep_their_text() -> None:
    import errno

    full = errors.from_os(OSError(errno.ENOSPC, "No space left on device", "/x"))
    quota = errors.from_os(OSError(errno.EDQUOT, "Quota exceeded"))
    other = errors.from_os(OSError(errno.EACCES, "Permission denied", "/y"))
    assert [one.kind for one in (full, quota, other)] == ["NoSpace", "NoSpace", "HostError"]
    assert other.message == "Permission denied: /y"
    assert other.detail == {"errno": "EACCES"}
