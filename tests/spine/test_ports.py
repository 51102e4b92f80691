"""A port that is taken for a while: the leg is tried again until it is free, forward and on the way back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kedge.model.base import Json
from kedge.model.runbook import Retry
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually

pytestmark = [pytest.mark.temporal, pytest.mark.slow, pytest.mark.timeout(400)]

# Binds its port as most daemons without SO_REUSEADDR do, and ends when that fails. Answers with its version.
DAEMON = f"""#!{sys.executable}
import socket, sys
listening = socket.socket()
listening.bind(("127.0.0.1", int(sys.argv[3])))
listening.listen()
print("{{version}} listens", flush=True)
kept = []
while True:
    one, _ = listening.accept()
    one.sendall(b"{{version}}")
    kept.append(one)
"""


def one_wave(port: int) -> dict[str, Json]:
    """A runbook in which a daemon that cannot have its port fails."""
    healthy: Json = {"tcp": f"127.0.0.1:{port}", "for": "200ms", "within": "5s", "interval": "50ms"}
    return {
        "node": ["stage", {"stop": {"grace": "5s"}}, "switch", "configure", "start", {"healthy": healthy}],
        "waves": {"widen": ["100%"], "max_unavailable": 1},
        "gates": {},
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def fleet(home: Path, port: int) -> dict[str, Json]:
    user: dict[str, Json] = {"user": "root"} if os.geteuid() == 0 else {}
    argv: list[Json] = ["{node.current}/daemon", "{node.name}", str(home / "truth.log"), str(port)]
    return {"run": {"argv": argv, **user}}


def pid(scene: Scene) -> int | None:
    """The daemon's number, while it lives."""
    kept = json.loads((scene.home / "nodes/n0/.kedge/service.json").read_text())
    return int(kept["pid"]) if Path(f"/proc/{kept['pid']}/exe").exists() else None


def asked(port: int) -> socket.socket:
    """An open connection to the daemon; as long as it is open when the daemon ends, the port is in TIME_WAIT after."""
    until = time.monotonic() + 20
    while True:
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)
            continue
        assert one.recv(16)
        return one


def running(scene: Scene) -> str:
    """The last version that said it listens."""
    return (scene.home / "nodes/n0/logs/service.log").read_text().split()[0]


@contextlib.asynccontextmanager
async def blocked(port: int, seconds: float) -> AsyncIterator[None]:
    """Somebody takes the port as soon as the daemon lets it go, and keeps it for so long."""

    async def block() -> None:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            while True:
                try:
                    one.bind(("127.0.0.1", port))
                    break
                except OSError:
                    await asyncio.sleep(0.001)
            await asyncio.sleep(seconds)

    going = asyncio.create_task(block())
    yield
    await going


async def test_a_port_that_somebody_has_for_a_moment_stops_nobody(
    stage: Stage, tmp_path: Path
) -> None:
    port = free_port()
    scene = await stage(nodes=1, transport="local", daemon=DAEMON, fleet=fleet(tmp_path, port))
    retry: Json = {"attempts": 6, "backoff": "200ms"}
    book = scene.runbook(**{**one_wave(port), "retry": retry})
    async with scene.playing():
        async with blocked(port, 1.5):
            run = await scene.start(scene.plan(book))
            assert (await scene.end_of(run)).phase == "done"
        assert running(scene) == "1.1.0"
        await scene.freed()
        async with blocked(port, 1.5):
            back = await scene.rollback()
            assert (await scene.end_of(back)).phase == "rolled-back"
        assert running(scene) == "1.0.0"


def test_by_default_a_minute_lies_between_the_first_try_and_the_last() -> None:
    retry = Retry()
    pauses = [min(retry.backoff * 2**tried, 60) for tried in range(retry.attempts - 1)]
    assert sum(pauses) >= 65, "TIME_WAIT is 60 s, and the daemon ends a moment before the first try"


@pytest.mark.chaos
async def test_a_port_in_time_wait_is_outlived_by_default_forward_and_back(
    stage: Stage, tmp_path: Path
) -> None:
    port = free_port()
    scene = await stage(nodes=1, transport="local", daemon=DAEMON, fleet=fleet(tmp_path, port))
    book = scene.runbook(**one_wave(port)).model_copy(update={"retry": Retry()})
    async with scene.playing():
        for begin, version in ((scene.start, "1.1.0"), (None, "1.0.0")):
            connection = asked(port)
            begun = time.monotonic()
            run = await begin(scene.plan(book)) if begin is not None else await scene.rollback()
            await eventually(lambda: pid(scene) is None)
            connection.close()
            end = await scene.end_of(run, 180)
            assert end.phase in ("done", "rolled-back"), end
            assert running(scene) == version
            assert time.monotonic() - begun > 55, "the port was never in TIME_WAIT"
            await scene.freed()
