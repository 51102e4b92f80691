"""A home with its engine and its worker as real processes, all of them mortal, and the fleets that play in it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import pytest
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.service import RPCError, RPCStatusCode

from desk import codec
from kedge.drivers.registry import Drivers
from kedge.model.base import Json
from kedge.model.fleet import Fleet
from kedge.model.order import Envelope
from kedge.model.plan import Plan
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.run import RunEnd, Submitted
from kedge.model.status import FleetStatus, RunStatus
from tests.chaos import truth
from tests.daemons import AS_US
from tests.spine.scene import Scene, make_keys, make_policy, make_release, settle
from worker import engine_files, processes
from worker.background import WORKER_ARGV, BackgroundWorker
from worker.client import connect
from worker.engine import Engine
from worker.processes import ProcessIdentity
from worker.settings import Settings
from worker.wiring import drivers_of

Kind = Literal["host", "worker", "engine", "all", "frozen"]
"""Who dies at a point: the host program, the worker, the Temporal server, all three at once. ``frozen``: the worker
dies and the session it had stays where it is, locks and all, until the run is over."""

T = TypeVar("T")

GONE = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.INTERNAL,
    RPCStatusCode.ABORTED,
)
"""What a client hears while a server dies, is dead or comes back, or while no worker is there."""


async def persist(ask: Callable[[], Awaitable[T]], seconds: float = 120) -> T:
    """Ask until somebody answers. The engine waits longer from one lost workflow task of a run to the next."""
    ends = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await asyncio.wait_for(ask(), seconds)
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            if asyncio.get_running_loop().time() > ends:
                raise
        except RPCError as error:
            if error.status not in GONE or asyncio.get_running_loop().time() > ends:
                raise
        await asyncio.sleep(0.1)


class Points:
    """Where programs are stopped: files in a folder, as docs/host-protocol.md says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def arm(self, name: str, order: Literal["kill", "stop", "wait", "hold"]) -> None:
        """Whoever comes to this point next does as ordered; ``hold`` is for a worker, which then does nothing else."""
        draft = self.folder / f".{secrets.token_hex(4)}"
        draft.write_text(order)
        draft.rename(self.folder / name)

    def _mark(self, name: str) -> Path:
        return self.folder / f"{name}.reached"

    def is_reached(self, name: str) -> bool:
        """Whether somebody came there."""
        return self._mark(name).exists()

    async def reached(self, name: str, seconds: float = 90) -> None:
        """Wait until somebody came there."""
        ends = asyncio.get_running_loop().time() + seconds
        while not self.is_reached(name):
            assert asyncio.get_running_loop().time() < ends, f"nobody came to {name}"
            await asyncio.sleep(0.005)

    def release(self, name: str) -> None:
        """Whoever waits there goes on."""
        self._mark(name).unlink(missing_ok=True)

    async def nth(self, name: str, number: int, order: Literal["kill", "stop", "wait"]) -> None:
        """Let the first ones pass, then do as ordered with the ``number``-th to come; returns when that one is there.

        It is the one that ``name`` is armed for, or was reached by, once this has returned.
        """
        for come in range(1, number + 1):
            last = come == number
            self.arm(name, order if last else "wait")
            if come > 1:
                # Armed again before the one before is let go, so that nobody slips through.
                self.release(name)
            await self.reached(name)

    @asynccontextmanager
    async def barred(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Whoever comes there waits, however many come one after the other."""
        wanted = list(names)

        async def renew() -> None:
            while True:
                for name in wanted:
                    if not (self.folder / name).exists():
                        self.arm(name, "wait")
                await asyncio.sleep(0.02)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            self.clear()

    def clear(self) -> None:
        """Nobody is stopped any more, and who waits goes on."""
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable for the programs that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


@dataclass
class Theatre:
    """One home. Its engine and worker run when a test begins, and are started anew when they were killed.

    ``renews``: histories are renewed (continue-as-new) after so many events, 0 as the server does by itself.
    ``evidence_url``: the database that keeps the evidence; None for the file in the home.
    """

    home: Path
    renews: int = 0
    evidence_url: str | None = None
    settings: Settings = field(init=False)
    engine: Engine = field(init=False)
    worker: BackgroundWorker = field(init=False)
    points: Points = field(init=False)
    keys: dict[str, Path] = field(init=False)
    policy: Policy = field(init=False)
    releases: dict[str, Release] = field(init=False)
    bystanders: dict[Path, dict[str, str]] = field(default_factory=dict)
    """Nodes of another fleet, by root, as they were when they were brought up: nothing here is about them."""

    def __post_init__(self) -> None:
        self.settings = Settings.load(
            home=self.home / "kedge",
            graceful_shutdown_seconds=0,
            sticky_queue_seconds=1.0,
            evidence_url=self.evidence_url,
        )
        codec.ensure(self.settings)
        self.engine = Engine(self.settings)
        self.worker = BackgroundWorker(self.settings)
        self.points = Points(self.home / "points")
        self.keys = make_keys(self.home / "keys")
        self.policy = make_policy(self.keys)
        folder = self.home / "releases"
        self.releases = {
            version: make_release(
                folder, version, truth.release_files(version, healthy=version != BAD)
            )
            for version in (OLD, NEW, BAD)
        }

    def open(self) -> None:
        """Engine and worker run when this returns, whatever happened to them before."""
        with pytest.MonkeyPatch.context() as patch:
            if self.renews:
                wanted = "limit.historyCount.suggestContinueAsNew"
                patch.setitem(engine_files.DYNAMIC_CONFIG, wanted, self.renews)
            address = self.engine.start().address
        with environment("KEDGE_POINTS", str(self.points.folder)):
            self.worker.start(address)

    def close(self) -> None:
        """Nothing of it is left."""
        self.points.clear()
        self.worker.kill()
        self.engine.kill()
        for pid in self.hosts():
            truth.end(pid)
        for root in self.bystanders:
            truth.end_daemons(root.parent.parent / "truth")

    def archive(self, version: str) -> Path:
        """The archive of a release."""
        return self.home / "releases" / f"daemon-{version}.tar"

    def assert_bystanders(self) -> None:
        """Not a byte of other fleets' nodes has changed."""
        for root, before in self.bystanders.items():
            assert truth.fingerprint(root) == before

    # -- killing -------------------------------------------------------------------------------------------------

    def hosts(self) -> list[int]:
        """Every process of the host program: servers, sessions, runners, daemons that do not execute theirs yet."""
        program = str(self.settings.home / "host")
        return [
            pid
            for pid, argv in truth.everyone()
            if "serve" in argv and any(part.startswith(program) for part in argv)
        ]

    def kill(self, kind: Kind) -> None:
        """SIGKILL, at once; nothing is restarted."""
        if kind in ("worker", "frozen", "all"):
            assert self.worker.kill(), "no worker was there to be killed"
        if kind in ("host", "all"):
            victims = self.hosts()
            for pid in victims:
                truth.end(pid)
            truth.wait_gone(victims)
        if kind in ("engine", "all"):
            assert self.engine.kill(), "no engine was there to be killed"

    def worker_ended(self, seconds: float = 10) -> bool:
        """Whether the worker ends by itself within this time."""
        until = time.monotonic() + seconds
        while self.worker.state() is not None:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    async def restart(self) -> None:
        """What was killed runs again: same ports, same database."""
        await asyncio.to_thread(self.open)

    def freeze_worker(self) -> int:
        """SIGSTOP to the worker; gives its process id, for ``go_on``."""
        state = self.worker.state()
        assert state is not None
        pid = state.process.pid
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 10
        while not stopped(pid):
            assert time.monotonic() < until
            time.sleep(0.005)
        return pid

    @contextmanager
    def understudy(self) -> Iterator[ProcessIdentity]:
        """A second worker of this home. At the end both are gone."""
        ready = self.settings.run_dir / "worker-ready.json"
        log = self.settings.log_dir / "understudy.log"
        before = ready.read_bytes()
        told = {**self.settings.child_environment(), "KEDGE_POINTS": str(self.points.folder)}
        second = processes.start_detached(WORKER_ARGV, log=log, environment=told)
        try:
            until = time.monotonic() + 60
            while ready.read_bytes() == before:
                assert time.monotonic() < until, processes.tail(log)
                time.sleep(0.02)
            yield second
        finally:
            processes.send(second, signal.SIGKILL)
            processes.wait_gone(second, 10)
            self.worker.kill()
            for pid in self.hosts():
                truth.end(pid)

    async def strike(self, kind: Kind, at: str | None = None) -> None:
        """Kill somebody while a program waits at a point (or just now), let the program go on, restart."""
        if at is not None:
            await self.points.reached(at)
        await asyncio.to_thread(self.kill, kind)
        if at is not None and kind != "frozen":
            self.points.release(at)
        await self.restart()


OLD, NEW, BAD = "1.0.0", "1.1.0", "1.2.0"
"""The releases there are; nodes never get healthy on ``BAD``."""


class Troupe(Scene):
    """A fleet of counting daemons in a theatre. Its orders and questions get through whatever dies meanwhile."""

    theatre: Theatre
    renames: truth.Renames | None = None

    @property
    def folder(self) -> Path:
        """Where the daemons keep their log."""
        return self.home / "truth"

    def root(self, node: str) -> Path:
        """A node's root."""
        return self.home / "nodes" / node

    @property
    def names(self) -> list[str]:
        """The nodes."""
        return [node.name for node in self.document.nodes]

    async def submit(self, workflow: str, envelope: Envelope) -> Submitted:
        handle = self.client.get_workflow_handle(workflow)
        identity = secrets.token_hex(8)
        return await persist(
            lambda: handle.execute_update(
                "submit_order", envelope, id=identity, result_type=Submitted
            )
        )

    async def status(self, run: str) -> RunStatus:
        return await persist(lambda: super(Troupe, self).status(run))

    async def fleet_status(self) -> FleetStatus:
        return await persist(super().fleet_status)

    async def ended(self, run: str, seconds: float = 90) -> RunEnd:
        handle = self.client.get_workflow_handle(run, result_type=RunEnd)
        try:
            return await persist(handle.result, seconds)
        except TimeoutError:
            status = await self.status(run)
            raise AssertionError(f"{run} does not end: {status}") from None

    async def appear(self) -> None:
        """Bring the fleet up; from here on renames are counted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        await settle(self)
        await self.ensure()
        roots = {node: self.root(node) for node in self.names}
        for root in roots.values():
            (root / "snapshots").mkdir(exist_ok=True)
            (root / "more").mkdir()
            (root / "more" / "kept").write_text("kept")
        self.renames = truth.Renames(roots)
        await self.speak(dict.fromkeys(self.names, 1))

    async def speak(self, lives: Mapping[str, int], seconds: float = 20) -> None:
        """Wait until the daemons of so many lives of each node have said that they started, on a slow machine too."""
        ends = asyncio.get_running_loop().time() + seconds
        for node, number in lives.items():
            while asyncio.get_running_loop().time() < ends:
                starts = [what for what, _ in truth.told(self.folder, node) if what == "start"]
                if len(starts) >= number and len(self.ledger(node)) >= min(number, 2):
                    break
                await asyncio.sleep(0.02)

    def ledger(self, node: str) -> list[str]:
        """What daemons wrote into a node's own data: the release of each."""
        try:
            return (self.root(node) / "data" / "ledger").read_text().split()
        except FileNotFoundError:
            return []

    def stand_by(self) -> None:
        """From here on nothing may touch this fleet."""
        for node in self.names:
            root = self.root(node)
            self.theatre.bystanders[root] = truth.fingerprint(root)

    def leave(self) -> None:
        """Nothing of it is left running."""
        truth.end_daemons(self.folder)
        if self.renames is not None:
            self.renames.close()

    def plan_to(self, after: str, **given: Json) -> Plan:
        """The plan from the old release, with the runbook of these tests."""
        return self.plan(self.runbook(**{**self.steps(), **given}), after=after)

    def steps(self) -> dict[str, Json]:
        """A node's leg with one step of every kind; each leaves a trace that can be counted."""
        look: dict[str, Json] = {"command": {"argv": ["{node.current}/bin/healthy"]}}
        place = str(self.folder)
        ran = "^run {node.name} {release.version} "
        check: Json = {"command": {"argv": ["grep", "-q", ran, f"{place}/truth.log"]}}
        argv: Json = ["{node.current}/bin/tally", "{node.name}", place]
        node: Json = [
            "stage",
            {"probe": look},
            {"stop": {"signal": "TERM", "grace": "3s"}},
            {"snapshot": {"paths": ["data", "more"]}},
            "switch",
            "configure",
            {"run": {"argv": argv, "undo": "none", "check": check}},
            {"start": {"settle": "50ms"}},
            {"healthy": {**look, "for": "50ms", "within": "5s", "interval": "50ms"}},
        ]
        waves: Json = {
            "canary": {
                "nodes": 1,
                "bake": {"duration": "100ms", "interval": "100ms"},
                "gate": "ship",
            },
            "widen": ["100%"],
        }
        return {"node": node, "waves": waves, "retry": {"attempts": 2, "backoff": "50ms"}}


async def troupe_of(theatre: Theatre, *, nodes: int = 2, linger: float = 0.2) -> Troupe:
    """A fleet of its own in this theatre; its daemons need ``linger`` seconds to stop."""
    name = f"c-{secrets.token_hex(4)}"
    home = theatre.home / name
    folder = home / "truth"
    argv = ["{node.current}/daemon", "{node.name}", str(folder), "{node.root}", str(linger)]
    document = Fleet.model_validate(
        {
            "kind": "Fleet",
            "name": name,
            "environment": "test",
            "release": f"{OLD}.yaml",
            "transport": "local",
            "root": str(home / "nodes" / "{node.name}"),
            # Another environment for each release, so that there is something to configure.
            "run": {"argv": argv, "env": {"RELEASE": "{release.version}"}, **AS_US},
            "nodes": [{"name": f"{name}-{index}"} for index in range(nodes)],
        },
        strict=False,
    )
    client: Client = await connect(theatre.settings, patience=10)
    drivers: Drivers = drivers_of(theatre.settings)
    made = Troupe(
        client=client,
        settings=theatre.settings,
        home=home,
        drivers=drivers,
        name=name,
        policy=theatre.policy,
        document=document,
        releases=theatre.releases,
        keys=theatre.keys,
    )
    made.theatre = theatre
    return made


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def go_on(pid: int) -> None:
    """Let a stopped process continue."""
    os.kill(pid, signal.SIGCONT)
