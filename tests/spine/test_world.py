"""The world fails under real daemons on this machine: the run says so, offers choices, and each of them works."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from temporalio.client import Client

from kedge.drivers.local import LocalTransport
from kedge.model.base import Json, canonical
from kedge.model.plan import Choice
from kedge.model.release import Release
from kedge.model.run import Run, UpgradeRequest
from kedge.model.status import RunStatus
from kedge.plan.digest import plan_digest
from tests.daemons import AS_US
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, archive, eventually, settle
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

DAEMON = """#!PYTHON -IS
# A daemon that listens: on the first port as 1.0.0, on the second as any other. 1.2.0 runs and does not listen.
import os, signal, socket, sys, time
name, log, *ports = sys.argv[1:]
def tell(what):
    with open(log, "a") as truth:
        truth.write(f"{what} {name} {version} {os.getpid()}\\n")
def stop(*_):
    tell("stop")
    os._exit(0)
version = "{version}"
signal.signal(signal.SIGTERM, stop)
tell("start")
if version != "1.2.0":
    server = socket.create_server(("127.0.0.1", int(ports[version != "1.0.0"])))
while True:
    time.sleep(60)
""".replace("PYTHON", sys.executable)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


def listening(nodes: int, home: str) -> dict[str, Json]:
    """A fleet of daemons that listen."""
    ports = [str(port) for port in free_ports(2 * nodes)]
    argv: Json = [
        "{node.current}/daemon", "{node.name}", f"{home}/truth.log",
        "{node.labels.old}", "{node.labels.new}",
    ]  # fmt: skip
    members: Json = [
        {"name": f"n{at}", "labels": {"old": ports[2 * at], "new": ports[2 * at + 1]}}
        for at in range(nodes)
    ]
    return {"run": {"argv": argv, **AS_US}, "nodes": members}


REACHED: Json = {
    "any": [{"tcp": "127.0.0.1:{node.labels.old}"}, {"tcp": "127.0.0.1:{node.labels.new}"}]
}
BOOK: dict[str, Json] = {
    "node": [
        "stage",
        {"stop": {"signal": "TERM", "grace": "5s"}},
        "switch",
        "configure",
        {"start": {"settle": "400ms"}},
        {"healthy": {**REACHED, "for": "0s", "within": "2s", "interval": "100ms"}},  # type: ignore[dict-item]
    ],
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "retry": {"attempts": 2, "backoff": "100ms"},
}


def truth(scene: Scene, node: str) -> list[str]:
    """What really happened to a node, by its daemons' own word: ``start 1.0.0``, ``stop 1.0.0`` ..."""
    lines = [line.split() for line in (scene.home / "truth.log").read_text().splitlines()]
    return [f"{what} {version}" for what, name, version, _ in lines if name == node]


def alive(scene: Scene, node: str) -> int:
    """The process that runs on a node; fails when there is none, or more than one."""
    lines = [line.split() for line in (scene.home / "truth.log").read_text().splitlines()]
    pids = [int(pid) for what, name, _, pid in lines if name == node and what == "start"]
    living = [pid for pid in pids if Path(f"/proc/{pid}/status").exists() and not zombie(pid)]
    assert len(living) == 1, f"{node}: {living}"
    return living[0]


def zombie(pid: int) -> bool:
    return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


async def local(stage: Stage, tmp_path: Path, **given: Json) -> Scene:
    fleet = {**listening(3, str(tmp_path / "scene-0")), **given}
    return await stage(transport="local", daemon=DAEMON, fleet=fleet)


def open_choices(status: RunStatus) -> tuple[Choice, ...]:
    assert status.waiting is not None
    return status.waiting.showing.choices


@contextmanager
def squatting(port: str) -> Iterator[None]:
    """Somebody else has the port."""
    with socket.create_server(("127.0.0.1", int(port))):
        yield


async def test_a_port_that_is_taken_parks_with_the_daemons_own_words(
    stage: Stage, tmp_path: Path
) -> None:
    scene = await local(stage, tmp_path)
    port = scene.node("n1").labels["new"]
    async with scene.playing():
        with squatting(port):
            run = await scene.start(scene.plan(scene.runbook(**BOOK)))
            status = await scene.waits_for(run, "wave-1")
            assert status.said.startswith("wave: n1 at start: ServiceDied")
            assert "Address already in use" in str(status.failures[0].saw)
            assert open_choices(status) == ("retry", "skip", "rollback", "abort")
            # The old daemon of the next node is untouched, and the first one is through.
            assert truth(scene, "n0")[-1] == "start 1.1.0"
            assert truth(scene, "n2") == ["start 1.0.0"]
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
        for node in ("n0", "n1", "n2"):
            alive(scene, node)
            assert truth(scene, node).count("stop 1.0.0") == 1
            assert truth(scene, node)[-1] == "start 1.1.0"


async def test_a_port_that_is_taken_goes_back_by_itself_where_the_runbook_says_so(
    stage: Stage, tmp_path: Path
) -> None:
    scene = await local(stage, tmp_path)
    async with scene.playing():
        with squatting(scene.node("n1").labels["new"]):
            book = scene.runbook(**{**BOOK, "on_failure": "rollback"})
            run = await scene.start(scene.plan(book))
            end = await scene.end_of(run)
        assert end.phase == "rolled-back"
        for node in ("n0", "n1", "n2"):
            alive(scene, node)
            assert truth(scene, node)[-1] == "start 1.0.0"
        assert truth(scene, "n2") == ["start 1.0.0"]


async def test_a_node_that_never_gets_healthy_parks_and_goes_back_when_it_is_decided(
    stage: Stage, tmp_path: Path
) -> None:
    scene = await local(stage, tmp_path)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK), after="1.2.0"))
        status = await scene.waits_for(run, "wave-1")
        assert status.said.startswith("wave: n0 at healthy: NotHealthy: “not healthy within 2 s")
        await scene.decide(run, "rollback")
        end = await scene.end_of(run)
        assert end.phase == "rolled-back"
        assert truth(scene, "n0") == [
            "start 1.0.0",
            "stop 1.0.0",
            "start 1.2.0",
            "stop 1.2.0",
            "start 1.0.0",
        ]
        assert truth(scene, "n1") == truth(scene, "n2") == ["start 1.0.0"]
        alive(scene, "n0")


async def test_a_daemon_that_dies_in_the_bake_parks_and_a_retry_brings_it_up(
    stage: Stage, tmp_path: Path
) -> None:
    scene = await local(stage, tmp_path)
    waves: Json = {
        "canary": {"nodes": 1, "bake": {"duration": "4s", "interval": "300ms"}},
        "widen": ["100%"],
    }
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**{**BOOK, "waves": waves})))
        await eventually(lambda: "start 1.1.0" in truth(scene, "n0"))
        await scene.until(run, lambda s: s.child is not None)
        await asyncio.sleep(1)
        os.kill(alive(scene, "n0"), signal.SIGKILL)
        status = await scene.waits_for(run, "bake-1")
        assert "n0" in status.said
        assert open_choices(status) == ("retry", "skip", "rollback", "abort")
        assert truth(scene, "n1") == ["start 1.0.0"]
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
        assert truth(scene, "n0") == ["start 1.0.0", "stop 1.0.0", "start 1.1.0", "start 1.1.0"]
        alive(scene, "n0")


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A disk of that size in a place of its own; skips where this user may not mount one."""
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)


def heavy(scene: Scene, version: str, size: int) -> Release:
    """A release with something large in it."""
    daemon = DAEMON.replace("{version}", version).encode()
    content = archive({"daemon": daemon, "ballast": os.urandom(size)})
    path = scene.home / "releases" / f"heavy-{version}.tar"
    path.write_bytes(content)
    said = scene.releases[version].model_dump()
    said["artifacts"] = {
        "linux/amd64": {
            "digest": hashlib.sha256(content).hexdigest(),
            "length": len(content),
            "source": str(path),
        }
    }
    return Release.model_validate(said)


async def test_a_full_disk_parks_and_a_retry_goes_on_when_there_is_room(
    stage: Stage, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        fleet = listening(3, str(tmp_path / "scene-0"))
        members = fleet["nodes"]
        assert isinstance(members, list)
        assert isinstance(members[1], dict)
        members[1]["root"] = str(disk / "n1")
        scene = await local(stage, tmp_path, **fleet)
        scene.releases["1.1.0"] = heavy(scene, "1.1.0", 2_000_000)
        await settle(scene)
        async with scene.playing():
            run = await scene.start(scene.plan(scene.runbook(**BOOK)))
            status = await scene.waits_for(run, "wave-1")
            assert status.said.startswith("wave: n1 at stage: NoSpace")
            assert truth(scene, "n1") == ["start 1.0.0"], "nothing was stopped for it"
            alive(scene, "n1")
            make_room(disk)
            await scene.decide(run, "retry")
            assert (await scene.end_of(run)).phase == "done"
            assert truth(scene, "n1") == ["start 1.0.0", "stop 1.0.0", "start 1.1.0"]
            os.kill(alive(scene, "n1"), signal.SIGKILL)
            shutil.rmtree(disk / "n1", ignore_errors=True)


async def test_a_host_program_that_is_killed_is_started_again_and_does_nothing_twice(
    stage: Stage, tmp_path: Path
) -> None:
    scene = await local(stage, tmp_path)
    transport = scene.drivers.transport.named("local")
    assert isinstance(transport, LocalTransport)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        for node in ("n0", "n1"):
            await eventually(lambda node=node: "stop 1.0.0" in truth(scene, node))
            server = transport._server._running
            assert server is not None
            os.kill(server.pid, signal.SIGKILL)
        assert (await scene.end_of(run)).phase == "done"
        for node in ("n0", "n1", "n2"):
            assert truth(scene, node) == ["start 1.0.0", "stop 1.0.0", "start 1.1.0"]
            alive(scene, node)


# -- what kedge itself stands on -----------------------------------------------------------------------------------


async def test_an_archive_that_was_damaged_after_the_start_is_not_unpacked_anywhere(
    stage: Stage,
) -> None:
    scene = await stage()
    path = scene.home / "releases" / "daemon-1.1.0.tar"
    good = path.read_bytes()
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        path.write_bytes(good[:-1] + b"x")
        await scene.approve(run)
        status = await scene.waits_for(run, "wave-1")
        assert "DigestMismatch" in status.said
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0"}
        path.write_bytes(good)
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
    assert all(scene.host(name).counts[:3] == (2, 1, 2) for name in ("n0", "n1", "n2"))


async def test_without_the_warrant_that_the_store_lost_no_order_is_judged_until_it_is_back(
    stage: Stage,
) -> None:
    scene = await stage()
    store = scene.settings.home / "store"
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        assert (await scene.order("pause", run, "olga")).accepted
        before = {path: path.read_bytes() for path in store.glob("*/*")}
        await scene.approve(run)
        await scene.until(run, "paused")
        after = {path: path.read_bytes() for path in store.glob("*/*")}
        (lost,) = [path for path in after if path not in before]
        lost.unlink()
        refused = await scene.order("resume", run, "olga")
        assert not refused.accepted
        assert "the store has nothing under" in refused.said
        assert (await scene.status(run)).phase == "paused"
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0"}
        lost.write_bytes(after[lost])
        assert (await scene.order("resume", run, "olga")).accepted
        assert (await scene.end_of(run)).phase == "done"


async def test_a_run_that_cannot_read_its_plan_says_so_and_goes_on_when_it_can(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan()
    run = Run(
        id=f"upgrade/{scene.name}/1",
        fleet=scene.name,
        plan=plan_digest(plan),
        epoch=1,
        warrant="0" * 64,
    )
    async with scene.playing():
        await scene.client.start_workflow(
            "Upgrade",
            UpgradeRequest(run=run, requester="olga"),
            id=run.id,
            task_queue=scene.settings.task_queue,
        )
        status = await scene.until(run.id, lambda s: "cannot be read" in s.said)
        assert status.said.startswith("the plan cannot be read: the store has nothing under")
        await scene.drivers.blobs.put(canonical(plan))
        # Nobody ordered it, so that is as far as it comes.
        status = await scene.until(run.id, "parked")
        assert "NotFound" in status.said


async def test_a_fleet_that_forgot_its_epoch_is_fenced_off_and_says_so(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        for name in ("n0", "n1", "n2"):
            scene.host(name).token = (9_000_000_000, 1, 1)
        run = await scene.start(scene.plan())
        end = await scene.end_of(run)
    assert end.phase == "preempted"
    assert "a newer run has the hosts" in end.said
    assert set(scene.running().values()) == {"1.0.0"}


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[tuple[Engine, Settings]]:
    """An engine that nobody else needs."""
    settings = Settings.load(home=tmp_path / "engine", payloads="open")
    engine = Engine(settings)
    engine.start()
    yield engine, settings
    state = engine.state()
    if state is not None:
        os.kill(state.process.pid, signal.SIGCONT)
    engine.stop()


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_an_engine_that_is_away_for_a_minute_is_waited_for(
    staged: Stage, own_engine: tuple[Engine, Settings], tmp_path: Path, how: str
) -> None:
    engine, settings = own_engine
    client: Client = await connect(settings, patience=10)
    fleet = listening(3, str(tmp_path / "scene-0"))
    scene = await staged(client, transport="local", daemon=DAEMON, fleet=fleet)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        await eventually(lambda: "stop 1.0.0" in truth(scene, "n0"))
        state = engine.state()
        assert state is not None
        if how == "frozen":
            os.kill(state.process.pid, signal.SIGSTOP)
        else:
            engine.kill()
        await asyncio.sleep(65)
        # The node in flight came to its end without the engine, and no other was begun.
        assert truth(scene, "n0") == ["start 1.0.0", "stop 1.0.0", "start 1.1.0"]
        assert truth(scene, "n2") == ["start 1.0.0"]
        if how == "frozen":
            os.kill(state.process.pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(engine.start)
        assert (await scene.end_of(run, 180)).phase == "done"
        for node in ("n0", "n1", "n2"):
            assert truth(scene, node) == ["start 1.0.0", "stop 1.0.0", "start 1.1.0"]
            alive(scene, node)
