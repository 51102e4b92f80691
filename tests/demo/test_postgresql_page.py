"""``docs/postgresql.md`` is typed as it stands, while somebody writes to both servers all the time.

The truth is what PostgreSQL acknowledged: each commit of every writer is there after the upgrade and the rollback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest

from demo.documents import free_members
from tests.demo.test_walkthrough import CHECKOUT, _cache, typed
from tests.registries import unavailable

PAGE = CHECKOUT / "docs" / "postgresql.md"
PORTS = ("18091", "18092")


class Writer:
    """Commits one number after the other to a server, and keeps those that it acknowledged, by its version."""

    def __init__(self, port: str) -> None:
        self.address = f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=5"
        self.acknowledged: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._ended.is_set():
            try:
                with psycopg.connect(self.address, autocommit=True) as server:
                    server.execute("create table if not exists truth (number int primary key)")
                    while not self._ended.is_set():
                        # A number whose commit was not acknowledged may be there or not: it is not used again.
                        number += 1
                        server.execute("insert into truth values (%s)", (number,))
                        self.acknowledged[number] = server.info.server_version
                        time.sleep(0.02)
            except psycopg.Error:
                time.sleep(0.05)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()

    def lost(self) -> set[int]:
        """What was acknowledged and is not there."""
        with psycopg.connect(self.address) as server:
            there = {number for (number,) in server.execute("select number from truth").fetchall()}
        return set(self.acknowledged) - there


@pytest.mark.temporal
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_acknowledged_commit_is_lost_up_and_back_as_it_is_written(own_home: Path) -> None:
    for program in ("mvn", "psql"):
        if shutil.which(program) is None:
            pytest.skip(f"the page needs {program}, and there is none here")
    if (
        os.geteuid() == 0
        and subprocess.run(["id", "-u", "postgres"], capture_output=True, check=False).returncode
    ):
        pytest.skip("the page needs the account postgres, and there is none here")
    page = PAGE.read_text()
    ports = [str(member.client_port) for member in free_members(len(PORTS))]
    for written, port in zip(PORTS, ports, strict=True):
        page = page.replace(written, port)
    # What the page does with the checkout's environment; there is one here, whatever its name.
    page = page.replace('export PATH="$PWD/.venv/bin:$PATH"', "true")
    moved, down = page.split("## 8. Down")

    with contextlib.ExitStack() as stack:
        writers = [Writer(port) for port in ports]
        for writer in writers:
            stack.callback(writer.end)
        shown = typed_in(moved, CHECKOUT, own_home)
    rows = [line for line in shown.splitlines() if line.startswith("from ")]
    assert rows == ["from 17.2|17.2", "from 17.5|17.2"], shown
    for writer in writers:
        versions = list(dict.fromkeys(writer.acknowledged.values()))
        assert versions == [170002, 170005], "it wrote on the old release and on the new one"
        last = writer.acknowledged[max(writer.acknowledged)]
        assert last == 170002, "and on the old one again, after the rollback"
        assert writer.lost() == set()
    typed_in(down, own_home / "postgres", own_home)
    for port in ports:
        until_nobody_listens(int(port))


def until_nobody_listens(port: int) -> None:
    deadline = time.monotonic() + 30
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            assert time.monotonic() < deadline, f"a server is still there on port {port}"
            time.sleep(0.1)


def typed_in(page: str, where: Path, home: Path) -> str:
    """Types the blocks of a page in a shell; what they printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed(page)],
        cwd=where,
        env={**kept, "PATH": path, "HOME": str(home), "XDG_CACHE_HOME": _cache()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    whole = done.stdout + done.stderr
    if done.returncode and "dependency:copy" in whole:
        unavailable(f"mvn did not bring the archives: {whole[-800:]}")
    assert done.returncode == 0, whole
    return done.stdout
