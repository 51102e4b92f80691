"""Stopped means gone: all that came of a daemon has ended before a stop is recorded, and nothing else is touched.

Ground truth is the system's own table of processes, and what the servers themselves write down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host import processes
from tests.host.conftest import AS_US, Host, Release, Served, tar

SERVER = """#!/usr/bin/env python3
import os, signal, sys, time
how = sys.argv[1]
log = os.environ.get("LEDGER") or sys.argv[2]
def say(word):
    with open(log, "a") as out:
        out.write(f"{word} {os.getpid()} VERSION\\n")
def end(*_):
    say("term")
    if "deaf" not in how:
        os._exit(0)
if "session" in how:
    os.setsid()
if "naked" in how and len(sys.argv) < 4:
    os.execve(sys.executable, [sys.executable, __file__, how, log, "again"], {})
signal.signal(signal.SIGTERM, end)
say("serve")
while True:
    time.sleep(0.05)
"""

# How a server comes to run behind the first process: what the script does, and how the server behaves.
WAYS = {
    "a script without exec": ('"$here/server" plain', "0"),
    "in the background of a script that waits": ('"$here/server" plain & wait', "0"),
    "in a session of its own": ('"$here/server" session & wait', "0"),
    "without its environment": ('"$here/server" naked "$LEDGER" & wait', "0"),
    "a child of a child": ('sh -c "$here/server plain & wait" & wait', "0"),
}


def release(host: Host, script: str, version: str = "1") -> Release:
    start = f'#!/bin/sh\nhere=$(dirname "$0")\n{script}\n'
    server = SERVER.replace("VERSION", version)
    files = {
        "bin/daemon": (start.encode(), 0o755),
        "bin/server": (server.replace("/usr/bin/env python3", sys.executable).encode(), 0o755),
    }
    return host.archive(tar(files))


def leg(host: Host, made: Release, generation: str, prefix: str, **more: Any) -> list[Any]:
    ops: list[Any] = host.leg(made, generation, prefix)[:-1]
    ops[1].update(more)
    return ops


def servers(host: Host) -> list[int]:
    """The servers of this test that live, by what they wrote."""
    if not host.ledger.exists():
        return []
    lines = [line.split() for line in host.ledger.read_text().splitlines()]
    return [int(one[1]) for one in lines if one[0] == "serve" and lives(int(one[1]))]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module", params=["with cgroups", "without cgroups"])
def one_served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "without cgroups":
            patch.setenv("KEDGE_CGROUPS", "off")
        one = Served(tmp_path_factory.mktemp("gone"), sys.executable)
    yield one
    assert one.close() == 0


@pytest.fixture
def host(one_served: Served, tmp_path: Path) -> Iterator[Host]:
    one = Host(one_served, tmp_path)
    yield one
    # Also a server that has not come to writing itself down yet.
    one.call({"key": "teardown", "op": "stop", "grace": 0, "kill": True}, token=[99, 1, 1])
    for pid in servers(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    one.end_daemon()


@pytest.mark.parametrize("way", WAYS)
def test_a_server_behind_its_start_script_is_gone_before_the_next_one_starts(
    host: Host, way: str, soon: Callable[..., None]
) -> None:
    script, _ = WAYS[way]
    host.good(*leg(host, release(host, script), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    said = host.good(*leg(host, release(host, script, "2"), "g2", "b/"))
    assert said.result("b/stop")["was_running"] is True
    soon(lambda: len(servers(host)) == 1)
    events = host.events()
    assert events == ["serve 1", "term 1", "serve 2"], "one signal, and never two at once"
    host.good({"key": "end", "op": "stop", "grace": 5})
    assert servers(host) == []


def test_a_server_that_does_not_hear_keeps_its_stop_from_being_recorded(
    host: Host, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, release(host, '"$here/server" deaf'), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    (pid,) = servers(host)
    stop = {"key": "stop", "op": "stop", "grace": 0.3}
    error = host.call(stop).error
    assert error["type"] == "StopTimeout"
    assert f"pid {pid}" in error["message"]
    assert host.call({"key": "again", "op": "start"}).error["type"] == "Conflict"
    assert servers(host) == [pid]
    host.good({"key": "kill", "op": "stop", "grace": 0, "kill": True})
    assert servers(host) == []
    assert "stop" not in [record["key"] for record in host.journal()]
    assert host.events().count("term 1") == 1, "one signal, whoever asks again"


def test_a_start_is_refused_while_anything_of_the_node_lives(
    host: Host, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, release(host, '"$here/server" plain'), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    host.kill_daemon()
    (pid,) = servers(host)
    error = host.call({"key": "again", "op": "start"}).error
    assert error["type"] == "Conflict"
    assert f"pid {pid}" in error["message"]
    assert error["detail"]["alive"] == [{"pid": pid, "program": "server"}]
    # Data are not exchanged under it either.
    (host.root / "data/rows").write_text("old")
    took = host.call({"key": "s", "op": "snapshot", "id": "a", "paths": ["data"]})
    assert took.ok, took.lines
    assert host.call({"key": "r", "op": "restore", "id": "a"}).error["type"] == "Conflict"
    # What should run and lost its first process is ended and started as a whole.
    host.good({"key": "e", "op": "ensure"})
    soon(lambda: len(servers(host)) == 1)
    assert host.events() == ["serve 1", "term 1", "serve 1"]


FORKS = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(HERE + "/server", [HERE + "/server", HOW, LEDGER])
    os._exit(0)
os._exit(0)
"""


def forking(host: Host, how: str) -> Release:
    head = f"#!{sys.executable}\nimport os\nHERE = os.path.dirname(os.path.abspath(__file__))\n"
    text = f"{head}HOW, LEDGER = {how!r}, {str(host.ledger)!r}\n{FORKS}"
    server = SERVER.replace("VERSION", "1").replace("/usr/bin/env python3", sys.executable)
    files = {"bin/daemon": (text.encode(), 0o755), "bin/server": (server.encode(), 0o755)}
    return host.archive(tar(files))


def test_a_daemon_that_goes_into_the_background_is_told_as_that_and_ended(host: Host) -> None:
    ops = leg(host, forking(host, "plain"), "g1", "a/")
    ops[-1]["settle"] = 1.0
    error = host.call(*ops).error
    assert error["type"] == "ServiceDied"
    assert "went into the background" in error["message"]
    assert "foreground" in error["message"]
    assert error["detail"]["left"] == []
    (gone,) = error["detail"]["alive"]
    assert f"pid {gone['pid']}" in error["message"]
    assert not lives(gone["pid"])
    host.good({"key": "stop", "op": "stop", "grace": 1}, {"key": "o", "op": "observe"})


def test_a_health_check_ends_a_daemon_that_went_into_the_background_later(
    host: Host, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, forking(host, "plain"), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    probe = {"command": {"argv": ["true"]}}
    error = host.call({"key": "h", "op": "healthy", "probe": probe, "within": 5}).error
    assert error["type"] == "ServiceDied"
    assert "went into the background" in error["message"]
    assert servers(host) == []


def test_a_start_tried_again_ends_first_what_its_killed_attempt_left(
    host: Host, soon: Callable[..., None]
) -> None:
    ops = leg(host, forking(host, "plain"), "g1", "a/")
    ops[-1]["settle"] = 1.0
    host.order("start.before-clearing")
    assert not host.call(*ops).whole
    soon(lambda: len(servers(host)) == 1)
    (pid,) = servers(host)
    assert host.call(*ops).error["type"] == "ServiceDied"
    assert not lives(pid)
    assert servers(host) == []


REST = [
    "stop.before-signal",
    "stop.between-signal-and-note",
    "stop.after-signal",
    "stop.before-rest",
    "stop.before-signalling-rest",
    "stop.between-signalling-and-noting-rest",
    "stop.after-rest",
    "stop.acted",
    "stop.recorded",
]


@pytest.mark.parametrize("point", REST)
def test_a_stop_that_is_killed_loses_track_of_nothing(
    host: Host, point: str, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, release(host, '"$here/server" session & wait'), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    host.order(point)
    stop = {"key": "s", "op": "stop", "grace": 0.5}
    assert not host.call(stop).whole
    host.good(stop)
    assert servers(host) == []
    assert host.events() == ["serve 1", "term 1"]


STARTING = [
    "start.before-record",
    "start.between-fork-and-exec",
    "start.forked",
    "start.after-exec",
]


@pytest.mark.parametrize("point", STARTING)
def test_a_start_that_is_killed_loses_no_server(
    host: Host, point: str, soon: Callable[..., None]
) -> None:
    ops = leg(host, release(host, '"$here/server" session & wait'), "g1", "a/")
    host.order(point)
    assert not host.call(*ops).ok
    host.good(*ops)
    soon(lambda: len(servers(host)) == 1)
    assert host.events() == ["serve 1"]
    host.good({"key": "s", "op": "stop", "grace": 2})
    assert servers(host) == []


# -- what is not the daemon's -------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's daemon, in a session of its own with a child."""
    one = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    yield one
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.pid, signal.SIGKILL)
    one.wait()


def test_a_number_used_again_by_another_process_is_not_the_daemon(
    host: Host, stranger: subprocess.Popen[bytes]
) -> None:
    host.good(*leg(host, release(host, '"$here/server" plain'), "g1", "a/"))
    host.good({"key": "s", "op": "stop", "grace": 5})
    kept = host.root / ".kedge/service.json"
    told = json.loads(kept.read_text())
    kept.write_text(json.dumps({**told, "pid": stranger.pid}))
    said = host.good({"key": "s2", "op": "stop", "kill": True, "grace": 0})
    assert said.result("s2")["was_running"] is False
    assert stranger.poll() is None


def test_a_session_whose_first_process_is_gone_is_named_and_not_killed(
    host: Host, stranger: subprocess.Popen[bytes]
) -> None:
    host.good(*leg(host, release(host, '"$here/server" plain'), "g1", "a/"))
    host.good({"key": "s", "op": "stop", "grace": 5})
    (child,) = Path(f"/proc/{stranger.pid}/task/{stranger.pid}/children").read_text().split()
    kept = host.root / ".kedge/service.json"
    first = processes.of_pid(stranger.pid)
    assert first is not None
    told = {**json.loads(kept.read_text()), **first.wire()}
    stranger.kill()
    stranger.wait()
    kept.write_text(json.dumps(told))
    error = host.call({"key": "s2", "op": "stop", "kill": True, "grace": 0}).error
    assert f"pid {child}" in error["message"]
    assert lives(int(child))
    assert host.call({"key": "b", "op": "start"}).error["type"] == "Conflict"
    os.kill(int(child), signal.SIGKILL)
    host.good({"key": "s3", "op": "stop", "grace": 0}, {"key": "b", "op": "start"})


def test_a_copy_of_a_node_does_not_stop_the_daemon_of_the_first(
    host: Host, soon: Callable[..., None], tmp_path: Path
) -> None:
    host.good(*leg(host, release(host, '"$here/server" plain'), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    (pid,) = servers(host)
    other = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(host.root), str(other)], check=True)
    (other / ".kedge/service.json").unlink()
    said = host.good({"key": "c", "op": "stop", "grace": 1, "kill": True}, root=str(other))
    assert said.result("c")["was_running"] is False
    assert servers(host) == [pid]


# -- ports --------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield one


def test_a_start_is_refused_while_somebody_else_has_its_port(
    host: Host, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    ops = leg(host, release(host, '"$here/server" plain'), "g1", "a/")
    ops[3]["service"]["ports"] = [str(port)]
    error = host.call(*ops).error
    assert error["type"] == "Conflict"
    assert f"pid {os.getpid()} (" in error["message"]
    assert f"port {port}" in error["message"]
    # Another address of the same port is another port.
    ops[3].update(generation="g2", key="other")
    ops[3]["service"]["ports"] = [f"127.0.0.2:{port}"]
    host.good(*ops)


def test_a_port_that_somebody_else_has_is_found_before_the_stop(
    host: Host, listener: socket.socket, soon: Callable[..., None]
) -> None:
    port = listener.getsockname()[1]
    host.good(*leg(host, release(host, '"$here/server" plain'), "g1", "a/"))
    soon(lambda: len(servers(host)) == 1)
    ops = leg(host, release(host, '"$here/server" plain', "2"), "g2", "b/")
    ops[0]["daemon"] = {**AS_US, "ports": [f"127.0.0.1:{port}"]}
    assert host.call(*ops).error["type"] == "Conflict"
    assert len(servers(host)) == 1


def test_a_stop_sees_that_the_port_is_let_go(host: Host, soon: Callable[..., None]) -> None:
    ops = leg(host, release(host, '"$here/server" plain'), "g1", "a/")
    spare = socket.create_server(("127.0.0.1", 0))
    port = spare.getsockname()[1]
    spare.close()
    ops[3]["service"]["ports"] = [str(port)]
    host.good(*ops)
    soon(lambda: len(servers(host)) == 1)
    with socket.create_server(("127.0.0.1", port)):
        error = host.call({"key": "s", "op": "stop", "grace": 5}).error
    assert error["type"] == "Conflict"
    assert f"pid {os.getpid()} (" in error["message"]
    host.good({"key": "s", "op": "stop", "grace": 5})


# -- commands -----------------------------------------------------------------------------------------------


def test_a_command_that_takes_too_long_is_ended_in_whatever_session_it_is(host: Host) -> None:
    host.run_as_us()
    script = f"setsid sh -c 'echo \"serve $$ c\" >> {host.ledger}; exec sleep 60' & wait"
    op = {"key": "c", "op": "run", "argv": ["sh", "-c", script], "timeout": 0.5}
    assert host.call(op).error["type"] == "CommandFailed"
    until = time.monotonic() + 5
    while servers(host) and time.monotonic() < until:
        time.sleep(0.02)
    assert host.events() == ["serve c"]
    assert servers(host) == []


def test_a_command_whose_runner_died_before_it_wrote_down_the_command_is_not_executed_twice(
    host: Host, soon: Callable[..., None]
) -> None:
    host.run_as_us()
    script = f'echo "serve $$ c" >> {host.ledger}; exec sleep 60'
    op = {"key": "c", "op": "run", "argv": ["sh", "-c", script], "timeout": 90, "check": None}
    host.order("run.before-command-record")
    first = host.begin(op)
    soon(lambda: len(servers(host)) == 1)
    error = first.said().error
    assert error["type"] == "Busy"
    assert host.call(op).error["type"] == "Busy"
    (pid,) = servers(host)
    assert f"pid {pid}" in error["message"]
    os.kill(pid, signal.SIGKILL)
    soon(lambda: not lives(pid))
    assert host.call(op).error["type"] == "Unresolved"
