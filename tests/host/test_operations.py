"""Each operation: what it does, what it says, and that a second time it does nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest


def test_a_whole_leg_and_then_the_next(host: Any) -> None:
    one, two = host.release("1"), host.release("2")
    said = host.good(*host.leg(one, "g1", "a/"))
    assert said.result("a/stage")["files"] == 2
    assert said.result("a/switch") == {"from": None, "to": one.digest}
    assert said.result("a/configure") == {"from": None, "to": "g1"}
    assert said.result("a/start") == {"pid": host.pid()}
    said = host.good(*host.leg(two, "g2", "b/"))
    assert said.result("b/switch") == {"from": one.digest, "to": two.digest}
    assert said.result("b/stop")["was_running"] is True
    assert said.result("b/stop")["waited"] < 5
    assert said.observed["running_release"] == two.digest
    assert said.observed["releases"] == sorted([one.digest, two.digest])
    assert host.until_events(3) == ["start 1", "term 1", "start 2"]
    assert os.readlink(host.root / "current") == f"releases/{two.digest}"
    assert (host.root / "config/current/app.conf").read_text() == "generation = g2\n"


def test_the_same_keys_again_are_answered_from_the_journal(host: Any) -> None:
    leg = host.leg(host.release("1"), "g1")
    first = host.good(*leg)
    again = host.good(*leg)
    for op in leg:
        assert first.done(op["key"])["replayed"] is False
        assert again.done(op["key"])["replayed"] is True
        assert again.result(op["key"]) == first.result(op["key"])
    assert host.until_events(1) == ["start 1"]


def test_other_keys_for_what_is_there_already_change_nothing(host: Any) -> None:
    release = host.release("1")
    host.good(*host.leg(release, "g1", "a/"))
    pid = host.pid()
    inode = (host.root / "current").lstat().st_ino
    rest = [op for op in host.leg(release, "g1", "b/") if op["op"] != "stop"]
    said = host.good(*rest)
    assert all(not said.done(op["key"])["replayed"] for op in rest)
    assert host.pid() == pid
    assert (host.root / "current").lstat().st_ino == inode
    assert host.until_events(1) == ["start 1"]


def test_a_key_used_for_another_operation_is_refused(host: Any) -> None:
    release = host.release("1")
    host.good(host.stage(release, "k"))
    said = host.call({"key": "k", "op": "verify", "digest": release.digest})
    assert said.error["type"] == "BadRequest"


def test_the_daemon_outlives_its_session_and_has_nothing_of_it(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    host.until_events(1)
    pid = host.pid()
    assert os.getsid(pid) == pid
    opened = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    log = str(host.root / "logs/service.log")
    assert {opened["0"], opened["1"], opened["2"]} == {"/dev/null", log}
    # The shell keeps its own script open (10 or so): nothing else.
    others = {path for fd, path in opened.items() if int(fd) > 2}
    assert all(path.endswith("/bin/daemon") for path in others)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"KEDGE_POINTS" not in environment
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Umask"] == "0022"
    assert int(status["SigBlk"], 16) == 0
    ignored = int(status["SigIgn"], 16)
    assert not ignored & (1 << 12), "SIGPIPE is as usual"


def test_stop_sends_one_signal_and_never_kills(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1", DEAF="1"))
    host.until_events(1)
    said = host.call({"key": "s", "op": "stop", "grace": 0.3})
    assert said.error["type"] == "StopTimeout"
    assert said.error["retryable"] is True
    said = host.call({"key": "s", "op": "stop", "grace": 0.3})
    assert said.error["type"] == "StopTimeout"
    # Another step, another run: this life of the daemon had its signal.
    said = host.call({"key": "t", "op": "stop", "grace": 0.2}, run="r/2")
    assert host.until_events(2) == ["start 1", "term 1"]
    said = host.call({"key": "u", "op": "stop", "grace": 0.2, "again": True})
    assert said.error["type"] == "StopTimeout"
    assert host.until_events(3) == ["start 1", "term 1", "term 1"]
    said = host.good({"key": "v", "op": "stop", "grace": 0.1, "kill": True})
    assert said.observed["running"] is False


def test_stop_of_what_does_not_run_is_done(host: Any) -> None:
    said = host.good({"key": "s", "op": "stop"})
    assert said.result("s") == {"waited": 0.0, "was_running": False}


def test_start_says_how_the_daemon_died(host: Any) -> None:
    ops = host.leg(host.release("1"), "g1", DIES="7")
    ops[4]["settle"] = 5
    said = host.call(*ops)
    assert said.error["type"] == "ServiceDied"
    assert said.error["detail"]["exit"] == 7
    assert "it cannot go on" in said.error["detail"]["log"]
    assert "it cannot go on" in said.error["message"]


def test_healthy_ends_at_once_when_the_daemon_dies(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    host.until_events(1)
    probe = {"tcp": {"host": "127.0.0.1", "port": 1}}
    call = host.begin({"key": "h", "op": "healthy", "probe": probe, "within": 20, "interval": 5})
    time.sleep(0.3)
    begun = time.monotonic()
    os.kill(host.pid(), 9)
    assert call.said().error["type"] == "ServiceDied"
    assert time.monotonic() - begun < 2


def test_healthy_holds_for_as_long_as_asked(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    probe = {"service": {"running": True}}
    said = host.good({"key": "h", "op": "healthy", "probe": probe, "for": 0.5, "within": 5})
    assert 0.5 <= said.result("h")["waited"] < 3
    said = host.call({"key": "i", "op": "healthy", "probe": {"not": probe}, "within": 0.3})
    assert said.error["type"] == "NotHealthy"
    assert said.error["detail"]["saw"]


def test_progress_is_said_while_an_operation_waits(host: Any) -> None:
    probe = {"service": {"running": True}}
    said = host.call({"key": "h", "op": "healthy", "probe": probe, "within": 2.5, "service": False})
    told = [line for line in said.lines if line["ev"] == "progress"]
    assert len(told) >= 2
    assert all(line["key"] == "h" and line["said"] for line in told)


def test_when_skips_and_a_skipped_step_stays_skipped(host: Any) -> None:
    probe = {"service": {"running": True}}
    op = {"key": "s", "op": "verify", "digest": "0" * 64, "when": probe}
    said = host.good(op)
    assert said.done("s")["skipped"] is True
    host.good(*host.leg(host.release("1"), "g1"))
    assert host.good(op).done("s")["replayed"] is True


def test_when_that_cannot_be_answered_skips_nothing(host: Any) -> None:
    probe = {"http": {"url": "http://127.0.0.1:1/"}}
    for when in (probe, {"not": probe}, {"any": [probe]}):
        said = host.call({"key": "s", "op": "stop", "when": when})
        assert said.error["type"] == "ProbeFailed"


def test_another_release_that_runs_is_not_started_over(host: Any) -> None:
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1"))
    said = host.call(
        host.stage(two, "s2"),
        {"key": "w2", "op": "switch", "digest": two.digest},
        {"key": "b2", "op": "start"},
    )
    assert said.error["type"] == "Conflict"
    assert host.until_events(1) == ["start 1"]


@pytest.mark.parametrize("what", ["content", "mode", "more", "missing", "link"])
def test_a_changed_release_is_neither_switched_to_nor_started(host: Any, what: str) -> None:
    release = host.release("1")
    host.good(host.stage(release), host.configure("g1"))
    tree = host.root / "releases" / release.digest
    victim = tree / "share/version"
    for path in (tree, tree / "share"):
        path.chmod(0o755)
    if what == "content":
        victim.chmod(0o644)
        victim.write_text("2")
        victim.chmod(0o444)
    elif what == "mode":
        victim.chmod(0o555)
    elif what == "more":
        (tree / "share/plugin.so").write_text("x")
    else:
        victim.unlink()
        if what == "link":
            victim.symlink_to("/etc/passwd")
    said = host.call({"key": "w", "op": "switch", "digest": release.digest})
    assert said.error["type"] == "DigestMismatch"
    assert "share/" in said.error["message"]
    assert not os.path.lexists(host.root / "current")
    (host.root / "current").symlink_to(f"releases/{release.digest}")
    said = host.call({"key": "b", "op": "start"})
    assert said.error["type"] == "DigestMismatch"
    assert host.events() == []
    # What the node does not stand on is made anew by staging it again.
    (host.root / "current").unlink()
    host.good(host.stage(release, "again"), {"key": "w2", "op": "switch", "digest": release.digest})


def test_stage_checks_length_and_digest_before_unpacking(host: Any) -> None:
    release = host.release("1")
    said = host.call(host.stage(release, length=release.length + 1))
    assert said.error["type"] == "DigestMismatch"
    content = bytearray(Path(release.source).read_bytes())
    content[-1] ^= 1
    Path(release.source).write_bytes(content)
    said = host.call(host.stage(release))
    assert said.error["type"] == "DigestMismatch"
    assert os.listdir(host.root / "releases") == []


def test_what_is_not_there_has_a_name(host: Any) -> None:
    nothing = "0" * 64
    told = {
        "verify": {"digest": nothing},
        "switch": {"digest": nothing},
        "start": {},
        "restore": {"id": "none"},
    }
    errors = [host.call({"key": op, "op": op, **more}).error["type"] for op, more in told.items()]
    assert errors == ["NoRelease", "NoRelease", "NoRelease", "NoSnapshot"]
    assert (
        host.call(host.stage(host.release("1"), source="/nonexistent")).error["type"] == "HostError"
    )


def test_a_generation_with_other_content_is_refused(host: Any) -> None:
    host.good(host.configure("g1", "a"))
    host.good(host.configure("g1", "b"))
    said = host.call(host.configure("g1", "c", EXTRA="1"))
    assert said.error["type"] == "DigestMismatch"
    assert "service.json" in said.error["message"]


def test_ensure_starts_what_should_run_and_only_that(host: Any) -> None:
    assert host.good({"key": "e", "op": "ensure"}).result("e")["started"] is False
    host.good(*host.leg(host.release("1"), "g1"))
    assert host.good({"key": "e", "op": "ensure"}).result("e")["started"] is False
    # As after a reboot: the boot is another one, whatever has the number now.
    host.kill_daemon()
    kept = host.root / ".kedge/service.json"
    told = json.loads(kept.read_text())
    kept.write_text(json.dumps({**told, "pid": os.getpid(), "boot": "another"}))
    assert host.good({"key": "e", "op": "ensure"}).result("e")["started"] is True
    assert host.until_events(2) == ["start 1", "start 1"]
    host.good({"key": "s2", "op": "stop"})
    assert host.good({"key": "e", "op": "ensure"}).result("e")["should_run"] is False


def test_prune_keeps_what_is_named_and_what_is_used(host: Any) -> None:
    releases = [host.release(str(number)) for number in range(4)]
    host.good(*[host.stage(one, f"s{number}") for number, one in enumerate(releases)])
    host.good(*host.leg(releases[0], "g1", "a/"))
    (host.root / "data/x").write_text("x")
    host.good(
        {"key": "sa", "op": "snapshot", "id": "a", "paths": ["data"]},
        {"key": "sb", "op": "snapshot", "id": "b", "paths": ["data"]},
    )
    said = host.good(
        {"key": "p", "op": "prune", "releases": [releases[1].digest], "snapshots": ["b"]}
    )
    gone = sorted([releases[2].digest, releases[3].digest])
    assert said.result("p")["removed"] == [*gone, "a"]
    assert said.observed["releases"] == sorted(one.digest for one in releases[:2])
    assert said.observed["snapshots"] == ["b"]


def test_logs_are_rotated_at_start_and_bounded(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    for number in range(8):
        host.good({"key": f"s{number}", "op": "stop"}, {"key": f"b{number}", "op": "start"})
    logs = sorted(os.listdir(host.root / "logs"))
    assert logs == ["service.log", *[f"service.log.{number}" for number in range(1, 6)]]
