"""The local transport's own: its server comes and goes, and nothing is lost or left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kedge.drivers import local as local_module
from kedge.drivers.local import LocalTransport
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.host import bundle
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

OBSERVE: dict[str, Json] = {"key": "o", "op": "observe"}


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[LocalTransport]:
    made = LocalTransport(tmp_path / "home")
    yield made
    await made.aclose()


def node(tmp_path: Path, name: str = "n1") -> PlannedNode:
    return PlannedNode(
        name=name,
        address="127.0.0.1",
        platform="linux/amd64",
        root=str(tmp_path / name),
        transport="local",
        service="process",
    )


async def run(transport: LocalTransport, where: PlannedNode, *ops: dict[str, Json]) -> SessionEnd:
    request = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=ops)
    return await transport.session(where, request, lambda _event: None)


async def test_a_worker_that_is_on_no_machine_of_nodes_touches_none(tmp_path: Path) -> None:
    """In a container a daemon would be started that no other worker sees, and then by another one again."""
    nowhere = LocalTransport(tmp_path / "home", limit=0)
    with pytest.raises(DriverError, match="local_limit") as caught:
        await run(nowhere, node(tmp_path), OBSERVE)
    assert (caught.value.kind, caught.value.retryable) == ("Unreachable", True)
    assert not (tmp_path / "n1").exists()
    await nowhere.aclose()


def slept(seconds: float, key: str = "run") -> dict[str, Json]:
    return {"key": key, "op": "run", "argv": ["sleep", str(seconds)]}


def server_of(transport: LocalTransport) -> subprocess.Popen[bytes]:
    running = transport._server._running
    assert running is not None
    return running


async def test_the_program_is_named_by_its_digest_and_checked(
    transport: LocalTransport, tmp_path: Path
) -> None:
    assert (await run(transport, node(tmp_path), OBSERVE)).ok
    content = bundle.bundle()
    path = tmp_path / "home" / "host" / f"{hashlib.sha256(content).hexdigest()}.pyz"
    assert path.read_bytes() == content
    await transport.aclose()
    path.write_bytes(b"something else")
    assert (await run(transport, node(tmp_path), OBSERVE)).ok
    assert path.read_bytes() == content


async def test_a_server_that_died_is_started_again(
    transport: LocalTransport, tmp_path: Path
) -> None:
    await run(transport, node(tmp_path), OBSERVE)
    first = server_of(transport)
    first.kill()
    first.wait()
    assert (await run(transport, node(tmp_path), OBSERVE)).ok
    assert server_of(transport).pid != first.pid


async def test_one_server_serves_all_that_begin_at_once(
    transport: LocalTransport, tmp_path: Path
) -> None:
    nodes = [node(tmp_path, f"n{number}") for number in range(20)]
    ends = await asyncio.gather(*(run(transport, where, OBSERVE) for where in nodes))
    assert all(end.ok for end in ends)
    assert len(list((tmp_path / "home" / "host").glob("*.pyz"))) == 1


async def test_a_session_whose_program_is_killed_is_lost_and_retryable(
    transport: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "run.before@n1").write_text("kill")
    monkeypatch.setenv("KEDGE_POINTS", str(tmp_path / "points"))
    with pytest.raises(DriverError) as caught:
        await run(transport, node(tmp_path), slept(0))
    assert (caught.value.kind, caught.value.retryable) == ("TransportLost", True)
    assert (await run(transport, node(tmp_path), slept(0))).ok


async def test_closing_ends_the_server_and_leaves_nothing(
    transport: LocalTransport, tmp_path: Path
) -> None:
    await run(transport, node(tmp_path), OBSERVE)
    server, sockets = server_of(transport), transport._server._sockets
    assert sockets is not None
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert len(os.fsencode(sockets)) < 90
    await transport.aclose()
    assert server.poll() == 0
    assert not sockets.exists()
    await transport.aclose()


async def test_the_server_ends_with_a_worker_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, time\nfrom pathlib import Path\n"
        "from tests.drivers.test_local import LocalTransport, OBSERVE, node, run, server_of\n"
        "async def main():\n"
        "    transport = LocalTransport(Path(sys.argv[1]) / 'home')\n"
        "    await run(transport, node(Path(sys.argv[1])), OBSERVE)\n"
        "    print(server_of(transport).pid, flush=True)\n"
        "    time.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert worker.stdout is not None
    server = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()
    async with asyncio.timeout(5):
        while _alive(server):  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def _environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def _left(name: str, pid: int) -> Path:
    path = Path("/tmp", f"{local_module._SOCKET_PREFIX}{pid}-{name}")  # noqa: S108 - where they are
    path.mkdir(mode=0o700)
    os.utime(path, (0, 0))
    return path


async def test_what_killed_workers_left_is_swept(
    transport: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    dead, alive = _left(tmp_path.name, 2**22 + 1), _left(tmp_path.name, os.getpid())
    await run(transport, node(tmp_path), OBSERVE)
    assert not dead.exists()
    assert alive.exists()
    alive.rmdir()


async def test_a_limit_bounds_sessions_at_a_time(tmp_path: Path) -> None:
    transport = LocalTransport(tmp_path / "home", limit=2)
    running = most = 0

    def heard(event: HostEvent) -> None:
        nonlocal running, most
        running += {"begin": 1, "done": -1}.get(event.ev, 0)
        most = max(most, running)

    request = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=(slept(0.1),))
    await asyncio.gather(
        *(transport.session(node(tmp_path, f"n{number}"), request, heard) for number in range(6))
    )
    await transport.aclose()
    assert most == 2


async def test_keys_of_this_process_do_not_reach_the_host(
    transport: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_API_KEY", "secret")
    await run(transport, node(tmp_path), OBSERVE)
    environment = _environment(server_of(transport).pid)
    assert b"secret" not in environment
    assert b"PATH=" in environment


async def test_ctrl_c_at_a_terminal_is_not_the_server_s(
    transport: LocalTransport, tmp_path: Path
) -> None:
    await run(transport, node(tmp_path), OBSERVE)
    server = server_of(transport)
    assert os.getsid(server.pid) == server.pid
    os.kill(server.pid, signal.SIGINT)
    assert (await run(transport, node(tmp_path), OBSERVE)).ok
    assert server_of(transport) is server


async def test_a_python_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    transport = LocalTransport(tmp_path / "home", python=str(tmp_path / "no-python"))
    with pytest.raises(DriverError) as caught:
        await run(transport, node(tmp_path), OBSERVE)
    assert (caught.value.kind, caught.value.retryable) == ("Unreachable", True)


async def test_a_program_that_does_not_start_is_said_with_its_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    broken.chmod(0o755)
    transport = LocalTransport(tmp_path / "home", python=str(broken))
    with pytest.raises(DriverError) as caught:
        await run(transport, node(tmp_path), OBSERVE)
    assert caught.value.kind == "Unreachable"
    assert "no such luck" in caught.value.message
    assert caught.value.next_step


async def test_a_request_that_is_no_json_is_refused(
    transport: LocalTransport, tmp_path: Path
) -> None:
    with pytest.raises(DriverError) as caught:
        await run(transport, node(tmp_path), {"key": "k", "op": "stop", "grace": float("nan")})
    assert (caught.value.kind, caught.value.retryable) == ("BadRequest", False)
