"""Two ways to have hosts, with the same levers: what a conformance test may do to any of them."""

from __future__ import annotations

import abc
import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from kedge.drivers.local import LocalTransport
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest, Token, Transport
from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

Op = dict[str, Json]
Version = Literal["one", "two", "sick", "dead", "wrapped", "forks"]
Instant = Literal["before", "acted", "recorded"]

DAEMON = """#!/bin/sh
# A daemon that says in data/truth what really happens to it.
trap 'echo "stop {version}" >> data/truth; rm -f data/healthy; kill $child; exit 0' TERM
echo "start {version}" >> data/truth
[ {version} = dead ] && exit 3
sleep 300 & child=$!
[ {version} = sick ] || touch data/healthy
wait $child
"""
AS_US: dict[str, Json] = {"user": {"name": "root"}} if os.geteuid() == 0 else {}
"""Folders of tests are closed to a user of the node's own."""
SCRIPTS = {
    # What stands before the daemon where it is not executed itself: without exec, and in the background.
    "wrapped": '#!/bin/sh\nulimit -n 512\n"$(dirname "$0")/server"\n',
    "forks": '#!/bin/sh\n"$(dirname "$0")/server" & exit 0\n',
}
WELL: dict[str, Json] = {"command": {"argv": ["test", "-e", "data/healthy"]}}


class Release(NamedTuple):
    path: Path
    digest: str
    length: int


class Truth(NamedTuple):
    """What really happened on a node, from a witness that is not kedge."""

    starts: int
    stops: int


def archive(folder: Path, version: str) -> Release:
    """A release whose daemon keeps a record of its own starts and stops."""
    content = DAEMON.format(version=version).encode()
    members = {"bin/daemon": content}
    if version in SCRIPTS:
        members = {"bin/daemon": SCRIPTS[version].encode(), "bin/server": content}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, program in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(program), 0o755
            tar.addfile(member, io.BytesIO(program))
    path = folder / f"{version}.tar"
    path.write_bytes(packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    return Release(path, digest, len(packed.getvalue()))


class Rig(abc.ABC):
    """Hosts of one kind and their levers."""

    transport: Transport

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.releases: dict[Version, Release] = {
            version: archive(folder, version) for version in get_args(Version)
        }
        self.heard: list[HostEvent] = []

    def node(self, name: str = "n1") -> PlannedNode:
        return PlannedNode(
            name=name,
            address="127.0.0.1",
            platform="linux/amd64",
            root=str(self.folder / "nodes" / name),
            transport=self.kind,
            service="process",
        )

    @property
    @abc.abstractmethod
    def kind(self) -> str: ...

    @abc.abstractmethod
    def die(self, node: PlannedNode, op: str, at: Instant) -> None:
        """The host program dies at that instant of the next such operation, once."""

    @abc.abstractmethod
    def lose_command(self, node: PlannedNode) -> None:
        """What watches the next command dies, so that nobody knows how the command ended."""

    @abc.abstractmethod
    def truth(self, node: PlannedNode) -> Truth: ...

    @abc.abstractmethod
    def commands(self, node: PlannedNode) -> int:
        """How many commands (``commanded``) really ran."""

    @abc.abstractmethod
    def switch_mark(self, node: PlannedNode) -> Any:
        """Something that differs after each real switch, and only then."""

    @abc.abstractmethod
    def kill_daemon(self, node: PlannedNode, pid: int) -> None: ...

    @abc.abstractmethod
    def write(self, node: PlannedNode, text: str) -> None:
        """The daemon's data now says ``text``."""

    @abc.abstractmethod
    def read(self, node: PlannedNode) -> str: ...

    async def run(
        self,
        node: PlannedNode,
        *ops: Op,
        run: str = "upgrade/f/1",
        token: Token = (1, 1, 1),
        lock_wait: float = 10.0,
        on_event: Callable[[HostEvent], None] | None = None,
    ) -> SessionEnd:
        self.heard = []
        request = SessionRequest(run=run, token=token, ops=ops, lock_wait=lock_wait)
        return await self.transport.session(node, request, on_event or self.heard.append)

    async def installed(self, node: PlannedNode, version: Version = "one") -> SessionEnd:
        """Installs a version and waits until its daemon is there to say what happens to it."""
        return await self.good(node, *self.install(version), healthy(f"healthy-{version}"))

    async def saw(self, node: PlannedNode, starts: int, stops: int) -> None:
        """The witness saw just this; it may take a moment to write it down."""
        async with asyncio.timeout(5):
            while self.truth(node) != (starts, stops):
                assert self.truth(node).starts <= starts
                assert self.truth(node).stops <= stops
                await asyncio.sleep(0.01)

    async def good(self, node: PlannedNode, *ops: Op, **how: Any) -> SessionEnd:
        end = await self.run(node, *ops, **how)
        assert end.ok, end.failed
        return end

    async def bad(self, node: PlannedNode, *ops: Op, **how: Any) -> str:
        """The type of the error that the session fails with."""
        end = await self.run(node, *ops, **how)
        assert not end.ok
        assert end.failed is not None
        assert end.failed.error is not None
        return end.failed.error.type

    async def survive(self, node: PlannedNode, *ops: Op, **how: Any) -> SessionEnd:
        """Runs until the transport holds, as the retries of an activity do."""
        for attempt in range(1, 5):
            try:
                return await self.run(node, *ops, token=(1, 1, attempt), **how)
            except DriverError as error:
                if error.kind != "TransportLost" or not error.retryable:
                    raise
        raise AssertionError("the transport was lost again and again")

    def stage(self, version: Version, key: str = "stage") -> Op:
        one = self.releases[version]
        return {
            "key": f"{key}-{version}", "op": "stage", "digest": one.digest, "length": one.length,
            "source": str(one.path),
        }  # fmt: skip

    def switch(self, version: Version, key: str = "switch") -> Op:
        return {"key": f"{key}-{version}", "op": "switch", "digest": self.releases[version].digest}

    def install(self, version: Version) -> tuple[Op, ...]:
        """All that brings a node from whatever it is to ``version``, running."""
        return (
            self.stage(version),
            stop(f"stop-{version}"),
            self.switch(version),
            configure(f"configure-{version}"),
            start(f"start-{version}"),
        )


def stop(key: str = "stop", **more: Json) -> Op:
    return {"key": key, "op": "stop", "grace": 10, **more}


def configure(key: str = "configure", generation: str = "g1", **files: Json) -> Op:
    service: dict[str, Json] = {"argv": ["bin/daemon"], **AS_US}
    return {
        "key": key, "op": "configure", "generation": generation, "files": {**files},
        "service": service,
    }  # fmt: skip


def start(key: str = "start", settle: float = 0.0) -> Op:
    return {"key": key, "op": "start", "settle": settle}


def healthy(key: str = "healthy", within: float = 10.0, **more: Json) -> Op:
    return {"key": key, "op": "healthy", "probe": WELL, "within": within, "interval": 0.05, **more}


def commanded(key: str = "run", **more: Json) -> Op:
    """A command that leaves a mark each time it runs."""
    return {"key": key, "op": "run", "argv": ["sh", "-c", "echo ran >> data/ran"], **more}


class LocalRig(Rig):
    kind = "local"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.points = folder / "points"
        self.points.mkdir()
        self.transport = LocalTransport(folder / "home")

    def die(self, node: PlannedNode, op: str, at: Instant) -> None:
        (self.points / f"{op}.{at}@{node.name}").write_text("kill")

    def lose_command(self, node: PlannedNode) -> None:
        (self.points / f"run.before-spawn@{node.name}").write_text("kill")

    def truth(self, node: PlannedNode) -> Truth:
        path = Path(node.root, "data", "truth")
        lines = path.read_text().splitlines() if path.exists() else []
        kinds = [line.split()[0] for line in lines]
        return Truth(kinds.count("start"), kinds.count("stop"))

    def commands(self, node: PlannedNode) -> int:
        path = Path(node.root, "data", "ran")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def switch_mark(self, node: PlannedNode) -> Any:
        found = Path(node.root, "current").lstat()
        return found.st_ino, found.st_ctime_ns

    def kill_daemon(self, node: PlannedNode, pid: int) -> None:
        assert Path(node.root, ".kedge", "service.json").exists()
        os.kill(pid, 9)

    def write(self, node: PlannedNode, text: str) -> None:
        Path(node.root, "data", "state").write_text(text)

    def read(self, node: PlannedNode) -> str:
        return Path(node.root, "data", "state").read_text()


class SimRig(Rig):
    kind = "sim"

    def __init__(self, folder: Path, state: Path | None = None) -> None:
        super().__init__(folder)
        self.transport = self.sim = SimTransport(pace=1.0, state=state)
        self.sim.program(
            Fault(do="unhealthy", release=self.releases["sick"].digest),
            Fault(do="crash", op="start", release=self.releases["dead"].digest, seconds=0.0),
            Fault(do="background", op="start", release=self.releases["forks"].digest),
        )

    def die(self, node: PlannedNode, op: str, at: Instant) -> None:
        nth = self.sim.host(node).begun.get(op, 0) + 1
        self.sim.program(Fault(do="die", node=node.name, op=op, at=at, nth=(nth,)))

    def lose_command(self, node: PlannedNode) -> None:
        self.die(node, "run", "acted")

    def truth(self, node: PlannedNode) -> Truth:
        counts = self.sim.host(node).counts
        return Truth(counts.starts, counts.stops)

    def commands(self, node: PlannedNode) -> int:
        return self.sim.host(node).counts.runs

    def switch_mark(self, node: PlannedNode) -> Any:
        return self.sim.host(node).counts.switches

    def kill_daemon(self, node: PlannedNode, pid: int) -> None:
        host = self.sim.host(node)
        assert host.state.pid == pid
        host.become(dies_at=0.0)

    def write(self, node: PlannedNode, text: str) -> None:
        self.sim.host(node).become(data=(text,))

    def read(self, node: PlannedNode) -> str:
        return self.sim.host(node).state.data[0]


def checked(rig: Rig, version: Version, key: str = "check", **more: Json) -> Op:
    """The look right before the stop, on the way to a release."""
    return {
        "key": key, "op": "check", "release": rig.releases[version].digest, "generation": "g1",
        "service": {"argv": ["bin/daemon"], **AS_US}, **more,
    }  # fmt: skip
