from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker import processes
from worker.processes import ProcessError, ProcessIdentity


def sleeper(tmp_path: Path, code: str = "") -> ProcessIdentity:
    ready = tmp_path / f"ready-{time.monotonic_ns()}"
    identity = processes.start_detached(
        [
            sys.executable,
            "-c",
            f"{code}\nimport pathlib, time\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)",
        ],
        log=tmp_path / "log",
    )
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return identity


def test_a_process_is_known_by_more_than_its_number(tmp_path: Path) -> None:
    identity = sleeper(tmp_path)
    try:
        assert processes.identify(identity.pid) == identity
        assert processes.is_alive(identity)
        for stranger in (
            identity.model_copy(update={"started": "1"}),
            identity.model_copy(update={"boot": "an earlier one"}),
        ):
            assert not processes.is_alive(stranger)
            assert not processes.send(stranger, signal.SIGKILL)
            assert processes.stop(stranger, grace=1, kill=True) == "already gone"
        assert processes.is_alive(identity)
    finally:
        assert processes.stop(identity, grace=10, kill=True) == "terminated"
    assert not processes.is_alive(identity)
    assert processes.stop(identity, grace=1, kill=True) == "already gone"


def test_it_has_a_session_of_its_own_and_no_input(tmp_path: Path) -> None:
    identity = sleeper(tmp_path, "import sys; assert sys.stdin.read() == ''")
    try:
        assert os.getsid(identity.pid) == identity.pid
    finally:
        processes.stop(identity, grace=10, kill=True)


def test_it_outlives_its_starter(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from worker import processes\n"
        "print(processes.start_detached(['sleep', '60'], log=Path(sys.argv[1])).model_dump_json())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    identity = ProcessIdentity.model_validate_json(shown)
    assert processes.is_alive(identity)
    assert processes.stop(identity, grace=10, kill=False) == "terminated"


def test_one_that_ignores_sigterm_is_killed_only_where_that_is_allowed(tmp_path: Path) -> None:
    identity = sleeper(tmp_path, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert processes.stop(identity, grace=0.2, kill=False) == "still running"
    assert processes.is_alive(identity)
    assert processes.stop(identity, grace=0.2, kill=True) == "killed"


def test_a_killed_child_that_nobody_reaped_yet_counts_as_gone() -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = processes.identify(child.pid)
    assert identity is not None
    child.kill()
    assert processes.wait_gone(identity, 10)
    assert child.wait(timeout=10) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"cannot start /no/such/program: No such file"):
        processes.start_detached(["/no/such/program"], log=tmp_path / "log")


def test_a_state_file_that_cannot_be_understood_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "run" / "x.json"
    assert processes.read_state(path, ProcessIdentity) is None
    ours = processes.identify(os.getpid())
    assert ours is not None
    processes.write_state(path, ours)
    assert processes.read_state(path, ProcessIdentity) == ours
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
    path.write_text('{"pid": ')
    assert processes.read_state(path, ProcessIdentity) is None


def test_a_lock_is_waited_for_and_given_up_with_a_sentence(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        processes.exclusive(lock, seconds=1, what="testing"),
        pytest.raises(ProcessError, match="another process has been testing"),
        processes.exclusive(lock, seconds=0.1, what="testing"),
    ):
        pass
    with processes.exclusive(lock, seconds=0.1, what="testing"):
        pass


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.tail(log) == "(no log)"
    log.write_text("\n".join(f"line {n}" for n in range(10_000)))
    assert processes.tail(log, 2) == "line 9998\nline 9999"


LEADERLESS = """
import ctypes, sys, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
sys.stdout.write("ready\\n")
sys.stdout.flush()
ctypes.CDLL(None).syscall(60, 0)  # exit of this thread alone
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_a_program_whose_first_thread_is_gone_still_lives(tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = processes.start_detached([sys.executable, "-c", LEADERLESS], log=log)
    stat = Path(f"/proc/{one.pid}/stat")
    until = time.monotonic() + 20
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert processes.is_alive(one)
    assert not processes.wait_gone(one, 0.2)
    assert processes.send(one, signal.SIGKILL)
    assert processes.wait_gone(one, 10)
