"""Ground truth from a node's own files and ``/proc``, on a node that the host program really runs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import hosts
from demo.cluster import Member
from demo.hosts import HostsError, done_in, look_at, steps_of, stop_all
from kedge.host.errors import HostError

AS_US: dict[str, object] = {"user": {"name": "root"}} if os.geteuid() == 0 else {}


def session(root: Path, run: str, token: list[int], ops: list[dict[str, object]]) -> None:
    asked = {"kedge": 1, "root": str(root), "node": root.name, "run": run, "token": token}
    said = subprocess.run(
        [sys.executable, "-P", "-m", "kedge.host", "session"],
        input=json.dumps({**asked, "lock_wait": 5, "ops": ops}) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert '"ok":true' in said.stdout.replace(" ", ""), said.stdout + said.stderr


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A node that runs ``sleep``, as the run ``upgrade/x/1`` left it."""
    archive = tmp_path / "a.tar"
    program = Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("sleep")
        member.size, member.mode = len(program), 0o755
        tar.addfile(member, io.BytesIO(program))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    node = tmp_path / "one"
    key = "upgrade/x/1@7/one/forward/"
    service = {"argv": ["./sleep", "1000"], "env": {}, "cwd": str(node), **AS_US}
    ops: list[dict[str, object]] = [
        {"op": "stage", "digest": digest, "length": archive.stat().st_size, "source": str(archive)},
        {"op": "switch", "digest": digest},
        {"op": "configure", "generation": "c" * 64, "files": {}, "service": service},
        {"op": "start", "settle": 0.1},
    ]
    session(node, "upgrade/x/1", [7, 1, 1], [{"key": key + str(op["op"]), **op} for op in ops])
    try:
        yield node
    finally:
        stop_all([node])


def test_a_node_is_seen_as_it_is(root: Path) -> None:
    host = look_at(root, "one")
    program = Path(shutil.which("sleep") or "/bin/sleep")
    assert host.program == hashlib.sha256(program.read_bytes()).hexdigest()
    assert host.release == (root / "current").readlink().name
    assert (host.starts, host.stops, host.steps, host.repeated) == (1, 0, 4, ())
    assert (host.epoch, host.holder) == (7, "upgrade/x/1")


def test_the_steps_of_a_run_are_those_of_its_direction(root: Path) -> None:
    steps = steps_of(root)
    assert done_in(steps, "upgrade/x/1", "forward") == {"stage", "switch", "configure", "start"}
    assert done_in(steps, "upgrade/x/1", "back") == set()
    assert done_in(steps, "upgrade/x/11", "forward") == set()


def test_stopping_takes_the_daemon_away_for_good(root: Path) -> None:
    pid = look_at(root, "one").pid
    assert stop_all([root]) == []
    assert not Path(f"/proc/{pid}/exe").exists()
    assert not (root / ".kedge" / "should-run").exists()
    with pytest.raises(HostsError, match="does not run"):
        look_at(root, "one")
    last = steps_of(root)[-1]
    assert (last.op, last.acted) == ("stop", True)


def test_stopping_again_does_nothing_and_is_no_problem(root: Path) -> None:
    assert stop_all([root, root.parent / "never-there"]) == []
    assert stop_all([root]) == []
    assert [step.acted for step in steps_of(root) if step.op == "stop"] == [True, False]


def test_a_node_whose_fence_cannot_be_read_is_named(root: Path) -> None:
    fence = root / ".kedge" / "fence"
    kept = fence.read_bytes()
    fence.write_bytes(b"{}")
    assert [said.partition(" ")[0] for said in stop_all([root])] == ["one"]
    fence.write_bytes(kept)


def test_a_process_that_was_not_started_last_is_no_ground_truth(root: Path) -> None:
    key = "upgrade/x/1@7/one/forward/"
    again: list[dict[str, object]] = [
        {"key": key + "stop", "op": "stop", "signal": "TERM", "grace": 5, "kill": False},
        {"key": key + "start#1", "op": "start", "settle": 0.1},
    ]
    session(root, "upgrade/x/1", [7, 1, 2], again)
    assert look_at(root, "one").starts == 2
    lines = (root / ".kedge" / "journal").read_bytes().splitlines(keepends=True)
    (root / ".kedge" / "journal").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(HostsError, match="not the one"):
        look_at(root, "one")


def test_a_journal_that_was_changed_is_noticed(root: Path) -> None:
    journal = root / ".kedge" / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1].replace(b"switch", b"swatch"), *lines[2:]]))
    with pytest.raises(HostError):
        steps_of(root)


def test_a_node_without_a_journal_has_done_nothing(tmp_path: Path) -> None:
    assert steps_of(tmp_path / "nowhere") == ()


def test_members_that_never_answer_are_named() -> None:
    members = [Member("etcd-9", 1, 2)]
    with pytest.raises(HostsError, match="etcd-9"):
        hosts.await_versions(members, "3.5.0", 0.2)
