"""A host program served as in production, nodes with a daemon that keeps its own ledger, and points.

The ledger lies outside the node's root and is written by the daemon itself: what was really started and stopped,
whatever kedge says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host.bundle import bundle

DAEMON = """#!/bin/sh
# release {version}
echo "start $$ {version}" >> "$LEDGER"
if [ -n "$DIES" ]; then echo "it cannot go on"; exit "$DIES"; fi
trap 'echo "term $$ {version}" >> "$LEDGER"; [ -z "$DEAF" ] && kill $! && exit 0' TERM
trap 'kill $!; exit 0' INT
while :; do sleep 60 & wait $!; kill $! 2>/dev/null; done
"""


# The ledger lies where a user of the node's own does not come.
AS_US: dict[str, Any] = {"user": {"name": "root"}} if os.geteuid() == 0 else {}


def tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A gzip'd tar of regular files with modes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


class Said:
    """What a session said, line by line."""

    def __init__(self, raw: bytes) -> None:
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in raw.splitlines()]

    @property
    def whole(self) -> bool:
        return bool(self.lines) and self.lines[-1]["ev"] == "end"

    @property
    def ok(self) -> bool:
        return self.whole and bool(self.lines[-1]["ok"])

    @property
    def error(self) -> dict[str, Any]:
        found = [line["error"] for line in self.lines if line["ev"] == "failed"]
        assert found, self.lines
        error: dict[str, Any] = found[0]
        return error

    @property
    def observed(self) -> dict[str, Any]:
        observed: dict[str, Any] = self.lines[-1]["observed"]
        return observed

    def done(self, key: str) -> dict[str, Any]:
        found = [line for line in self.lines if line["ev"] == "done" and line["key"] == key]
        assert found, self.lines
        return found[0]

    def result(self, key: str) -> Any:
        return self.done(key)["result"]


class Call:
    """A session that is going on."""

    def __init__(self, path: str, asked: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        # A session that refuses its input does not read it to its end.
        with contextlib.suppress(BrokenPipeError):
            self.socket.sendall(asked + b"\n")

    def said(self, timeout: float = 30.0) -> Said:
        self.socket.settimeout(timeout)
        out = b""
        try:
            while part := self.socket.recv(1 << 16):
                out += part
        except ConnectionResetError:
            pass
        finally:
            self.socket.close()
        return Said(out)


class Served:
    """The running server of this test run."""

    def __init__(self, top: Path, python: str) -> None:
        self.top = top
        self.program = top / "host.pyz"
        self.program.write_bytes(bundle())
        self.points = top / "points"
        self.points.mkdir()
        self.socket = str(top / "s")
        self.process = subprocess.Popen(
            [python, "-I", "-S", "-X", "utf8", str(self.program), "serve", self.socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "KEDGE_POINTS": str(self.points)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Release:
    """An archive on the host."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.source = str(path)
        self.digest = hashlib.sha256(content).hexdigest()
        self.length = len(content)


class Host:
    """One node of this test."""

    def __init__(self, served: Served, top: Path) -> None:
        self.served = served
        self.top = top
        self.root = top / "node"
        self.name = f"n-{top.name}"
        self.ledger = top / "ledger"
        self.token = [1, 0, 0]
        self._archives = 0

    def archive(self, content: bytes) -> Release:
        self._archives += 1
        return Release(self.top / f"archive-{self._archives}", content)

    def release(self, version: str) -> Release:
        text = DAEMON.format(version=version).encode()
        return self.archive(
            tar({"bin/daemon": (text, 0o755), "share/version": (version.encode(), 0o644)})
        )

    def asked(self, ops: list[dict[str, Any]], **more: Any) -> bytes:
        if "token" not in more:
            self.token = [self.token[0], self.token[1], self.token[2] + 1]
        head = {"kedge": 1, "root": str(self.root), "node": self.name, "run": "r/1"}
        return json.dumps(
            {**head, "token": self.token, "lock_wait": 10, "ops": ops, **more}
        ).encode()

    def begin(self, *ops: dict[str, Any], **more: Any) -> Call:
        return Call(self.served.socket, self.asked(list(ops), **more))

    def call(self, *ops: dict[str, Any], timeout: float = 30.0, **more: Any) -> Said:
        return self.begin(*ops, **more).said(timeout)

    def good(self, *ops: dict[str, Any], **more: Any) -> Said:
        said = self.call(*ops, **more)
        assert said.ok, said.lines
        return said

    def raw(self, line: bytes) -> Said:
        return Call(self.served.socket, line).said()

    def stage(self, release: Release, key: str = "stage", **more: Any) -> dict[str, Any]:
        asked = {"digest": release.digest, "length": release.length, "source": release.source}
        return {"key": key, "op": "stage", **asked, **more}

    def configure(self, generation: str, key: str = "configure", **env: str) -> dict[str, Any]:
        service = {
            "argv": ["bin/daemon"],
            "env": {"LEDGER": str(self.ledger), **env},
            **AS_US,
        }
        files = {"app.conf": f"generation = {generation}\n"}
        asked = {"generation": generation, "files": files, "service": service}
        return {"key": key, "op": "configure", **asked}

    def run_as_us(self) -> None:
        """Give the node a configuration before anything is done: commands run as its daemon's user."""
        config = self.root / "config"
        if (config / "g0").exists():
            return
        (config / "g0").mkdir(parents=True)
        (config / "g0/service.json").write_text(json.dumps({"argv": ["bin/daemon"], **AS_US}))
        (config / "current").symlink_to("g0")

    def leg(
        self, release: Release, generation: str, prefix: str = "", **env: str
    ) -> list[dict[str, Any]]:
        """What an upgrade does to a node."""
        return [
            self.stage(release, f"{prefix}stage"),
            {"key": f"{prefix}stop", "op": "stop", "grace": 5},
            {"key": f"{prefix}switch", "op": "switch", "digest": release.digest},
            self.configure(generation, f"{prefix}configure", **env),
            {"key": f"{prefix}start", "op": "start"},
            {
                "key": f"{prefix}healthy",
                "op": "healthy",
                "probe": {"service": {"running": True, "release": release.digest}},
                "within": 5,
            },
        ]

    def events(self) -> list[str]:
        """What the daemon itself wrote: `start 1`, `term 1` (the word and the version)."""
        if not self.ledger.exists():
            return []
        words = [line.split() for line in self.ledger.read_text().splitlines()]
        return [f"{one[0]} {one[2]}" for one in words]

    def until_events(self, count: int) -> list[str]:
        eventually(lambda: len(self.events()) >= count)
        return self.events()

    def order(self, point: str, what: str = "kill") -> Path:
        """Have the next process of this node that gets to a point obey; gives the file that says it did."""
        path = self.served.points / f"{point}@{self.name}"
        path.with_name(path.name + ".new").write_text(what)
        path.with_name(path.name + ".new").rename(path)
        return self.served.points / f"{path.name}.reached"

    def pid(self) -> int:
        found: int = json.loads((self.root / ".kedge/service.json").read_text())["pid"]
        return found

    def kill_daemon(self) -> None:
        """SIGKILL, and wait until it is dead: on a busy machine a signal takes its time."""
        told = os.pidfd_open(self.pid())
        try:
            os.kill(self.pid(), signal.SIGKILL)
            ready, _, _ = select.select([told], [], [], 10)
            assert ready, "it does not die"
        finally:
            os.close(told)

    def journal(self) -> list[dict[str, Any]]:
        text = (self.root / ".kedge/journal").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def end_daemon(self) -> None:
        """End what this test started, by its own number."""
        if not self.ledger.exists():
            return
        for line in self.ledger.read_text().splitlines():
            pid = int(line.split()[1])
            if line.startswith("start") and f"LEDGER={self.ledger}" in _environment(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGINT)


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode().replace("\0", "\n")
    except OSError:
        return ""


def eventually(condition: Callable[[], Any], within: float = 10.0) -> None:
    """Wait for something that happens by itself."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    python = os.environ.get("KEDGE_HOST_PYTHON", sys.executable)
    one = Served(tmp_path_factory.mktemp("served"), python)
    yield one
    assert one.close() == 0


@pytest.fixture
def host(served: Served, tmp_path: Path) -> Iterator[Host]:
    one = Host(served, tmp_path)
    yield one
    one.end_daemon()


@pytest.fixture
def soon() -> Callable[[Callable[[], Any]], None]:
    return eventually


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """A server on a free port that gives fixed bytes to whoever asks; gives its address."""
    opened: list[socket.socket] = []

    def serve(
        content: bytes,
        pause: float = 0.0,
        *,
        hold: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def answer() -> None:
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:
                    return
                opened.append(one)
                try:
                    if context is not None:
                        one = context.wrap_socket(one, server_side=True)
                        opened.append(one)
                    one.recv(65536)
                    for at in range(0, len(content), 65536):
                        time.sleep(pause)
                        one.sendall(content[at : at + 65536])
                except OSError:
                    continue
                if not hold:
                    one.close()

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/health"

    yield serve
    for one in opened:
        one.close()
