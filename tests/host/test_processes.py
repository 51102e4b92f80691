"""Who is alive, and who only seems to be gone."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kedge.host import processes

LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(60, 0)  # exit of this thread alone
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_a_daemon_lives_until_its_last_thread_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADERLESS]) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        until = time.monotonic() + 20
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < until
            time.sleep(0.01)
        one = processes.of_pid(child.pid)
        assert one is not None
        assert one.alive()
        assert processes.known(one.wire()) == one
        assert processes.send(one, signal.SIGKILL)
        while one.alive():
            assert time.monotonic() < until
            time.sleep(0.01)
    assert processes.known(one.wire()) is None
