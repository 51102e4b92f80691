"""A step's `timeout` bounds the step, whatever its kind; what it had started is ended, and another try finds a sound node."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _as_us(host: Any) -> None:
    host.run_as_us()


def late(host: Any, *ops: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The error of a session that ran out of its limit, and in time."""
    begun = time.monotonic()
    error: dict[str, Any] = host.call(*ops, **more).error
    assert error["type"] == "StepTimeout", error
    assert error["retryable"] is False
    assert time.monotonic() - begun < 8
    assert "its `timeout`" in error["message"]
    assert "abort and give the step a longer `timeout` in the runbook" in error["message"]
    return error


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def hanging(host: Any) -> dict[str, Any]:
    """A command that hangs, with a child in a session of its own."""
    text = 'setsid sleep 60 & echo "child $! c" >> "$LEDGER"; echo "self $$ c" >> "$LEDGER"; wait; sleep 60'
    return {"argv": ["sh", "-c", text], "env": {"LEDGER": str(host.ledger)}, "timeout": 50}


def started(host: Any) -> list[int]:
    return [int(line.split()[1]) for line in host.ledger.read_text().splitlines()]


@pytest.mark.parametrize("op", ["probe", "healthy", "when"])
def test_a_command_that_a_look_started_is_ended_with_all_its_own(
    host: Any, op: str, soon: Any
) -> None:
    probe = {"command": hanging(host)}
    asked: dict[str, dict[str, Any]] = {
        "probe": {"op": "probe", "probe": probe},
        "healthy": {"op": "healthy", "probe": probe, "within": 40, "service": False},
        "when": {"op": "observe", "when": probe},
    }
    late(host, {"key": "p", "limit": 0.5, **asked[op]})
    assert len(started(host)) == 2
    soon(lambda: all(gone(pid) for pid in started(host)))
    host.good({"key": "p", "op": "probe", "probe": {"service": {"running": False}}})


def test_a_wait_says_what_it_waited_for(host: Any) -> None:
    probe = {"command": {"argv": ["false"]}}
    error = late(host, {"key": "h", "op": "healthy", "probe": probe, "within": 40, "service": False, "limit": 0.4})  # fmt: skip
    assert "false: exit 1" in error["message"]


def test_a_command_has_a_time_out_of_its_own_and_its_end_is_waited_for(
    host: Any, soon: Any
) -> None:
    error = host.call(
        {"key": "c", "op": "run", **hanging(host), "timeout": 0.5, "limit": 10.5}
    ).error
    assert error["type"] == "CommandFailed"
    assert "still ran after 0.5 s and was ended" in error["message"]
    soon(lambda: all(gone(pid) for pid in started(host)))


def test_a_stop_is_given_up_and_nothing_is_killed(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1", DEAF="1"))
    pid = host.pid()
    error = late(host, {"key": "halt", "op": "stop", "grace": 30, "limit": 0.5})
    assert "waits for the daemon to stop" in error["message"]
    assert not gone(pid)
    # The same stop again: it is not signalled twice.
    late(host, {"key": "halt", "op": "stop", "grace": 30, "limit": 0.5})
    assert host.until_events(2) == ["start 1", "term 1"]


def test_a_start_is_given_up_and_its_daemon_is_found_by_the_next(host: Any) -> None:
    *before, start, _healthy = host.leg(host.release("1"), "g1")
    host.good(*before)
    late(host, {**start, "settle": 30, "limit": 0.5})
    pid = host.pid()
    assert not gone(pid)
    assert host.good({**start, "settle": 0.1, "limit": 30}).result("start") == {"pid": pid}
    assert host.until_events(1) == ["start 1"]


@pytest.mark.parametrize("op", ["stage", "snapshot", "restore"])
def test_what_was_half_written_is_taken_away(host: Any, op: str) -> None:
    release = host.release("1")
    every: dict[str, dict[str, Any]] = {
        "stage": host.stage(release, "x"),
        "snapshot": {"key": "x", "op": "snapshot", "id": "s2", "paths": ["data"]},
        "restore": {"key": "x", "op": "restore", "id": "s1"},
    }
    host.good({"key": "look", "op": "observe"})
    (host.root / "data/one").write_text("one")
    host.good({"key": "first", "op": "snapshot", "id": "s1", "paths": ["data"]})
    point = {
        "stage": "stage.unpacking",
        "snapshot": "snapshot.copying",
        "restore": "restore.copying",
    }
    reached = host.order(point[op], "wait")
    call = host.begin({**every[op], "limit": 0.4})
    until = time.monotonic() + 10
    while not reached.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.5)
    reached.unlink()
    error = call.said().error
    assert error["type"] == "StepTimeout"
    assert os.listdir(host.root / "releases") == []
    assert os.listdir(host.root / "snapshots") == ["s1"]
    assert not (host.root / ".kedge/restore.new").exists()
    assert (host.root / "data/one").read_text() == "one"
    host.good({**every[op], "limit": 60})
    assert [line["op"] for line in host.journal()].count(op) == (2 if op == "snapshot" else 1)


def test_a_configuration_whose_secret_does_not_come(host: Any, soon: Any) -> None:
    command = hanging(host)
    script = host.top / "print-secret"
    script.write_text(f"#!/bin/sh\nLEDGER={host.ledger}\n{command['argv'][2]}\n")
    script.chmod(0o755)
    service = {"argv": ["bin/daemon"], "env": {"P": [{"secret": "p"}]}}
    op = {"key": "c", "op": "configure", "generation": "g1", "service": service}
    late(host, {**op, "secrets": {"p": {"command": [str(script)], "timeout": 10}}, "limit": 0.5})
    soon(lambda: all(gone(pid) for pid in started(host)))
    assert not (host.root / "config/g1").exists()


@pytest.mark.parametrize("op", ["stage", "switch", "verify", "check"])
def test_looking_at_every_file_takes_its_time_too(host: Any, op: str) -> None:
    release, other = host.release("1"), host.release("2")
    host.good(*host.leg(release, "g1"), host.stage(other, "other"))
    service = {"argv": ["bin/daemon"]}
    every: dict[str, dict[str, Any]] = {
        "stage": host.stage(other, "x"),
        "switch": {"key": "x", "op": "switch", "digest": other.digest},
        "verify": {"key": "x", "op": "verify", "digest": other.digest},
        "check": {"key": "x", "op": "check", "release": other.digest, "generation": "g1", "service": service},
    }  # fmt: skip
    late(host, {**every[op], "limit": 0})
    assert host.good({"key": "o", "op": "observe"}).observed["release"] == release.digest


def test_the_wait_for_the_nodes_lock_is_not_the_steps(host: Any, soon: Any) -> None:
    first = host.begin({"key": "c", "op": "run", "argv": ["sh", "-c", 'sleep 1; echo "done 1 c" >> "$LEDGER"'],
                        "env": {"LEDGER": str(host.ledger)}}, token=[1, 0, 9])  # fmt: skip
    soon(
        lambda: (host.root / ".kedge/runs").exists() and list((host.root / ".kedge/runs").iterdir())
    )
    host.good({"key": "p", "op": "probe", "probe": {"service": {"running": False}}, "limit": 0.5}, token=[1, 0, 9])  # fmt: skip
    assert first.said().ok
