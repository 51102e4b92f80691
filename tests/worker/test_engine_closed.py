"""Only holders of the home's certificate reach the engine: not another user, not a web page, not a poller without it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.service import TLSConfig

from kedge.model.base import Frozen
from tests.stock import stock_temporal
from worker import certificates
from worker.client import connect
from worker.engine import Engine, EngineState
from worker.engine_files import HOST, PORTS, EngineFiles
from worker.settings import Settings

pytestmark = pytest.mark.temporal

STRANGER = 65534
"""Nobody, the second user of the machine."""
START = json.dumps({"workflowType": {"name": "Planted"}, "taskQueue": {"name": "q"}}).encode()


class Closed(Frozen):
    """A home that everybody may enter but for what it keeps to itself, and its engine."""

    settings: Settings
    state: EngineState


@pytest.fixture(scope="module")
def closed() -> Iterator[Closed]:
    # Not below pytest's folder: that one lets nobody in, and the home's own walls are what is looked at.
    root = Path(tempfile.mkdtemp(prefix="kedge-closed-"))
    root.chmod(0o755)
    settings = Settings.load(root / "home", payloads="open")
    settings.home.mkdir(mode=0o755)
    engine = Engine(settings)
    yield Closed(settings=settings, state=engine.start())
    engine.stop()
    shutil.rmtree(root)


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses on which a process listens, by the kernel's own tables."""
    own = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def test_it_listens_on_loopback_alone_and_on_no_port_that_is_not_known(closed: Closed) -> None:
    assert set(closed.state.ports) == set(PORTS)
    # 127.0.0.1, as the kernel writes it.
    wanted = {("0100007F", port) for port in closed.state.ports.values()}
    assert listening(closed.state.process.pid) == wanted


@pytest.mark.parametrize("port", PORTS)
def test_no_port_speaks_http(closed: Closed, port: str) -> None:
    """A web page can send HTTP and nothing else: neither in the open nor by TLS is there anybody who understands it."""
    where = f"{HOST}:{closed.state.ports[port]}/api/v1/namespaces/default/workflows/planted"
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    for scheme, context in (("http", None), ("https", unverified)):
        request = urllib.request.Request(
            f"{scheme}://{where}", START, {"Content-Type": "text/plain"}, method="POST"
        )
        with pytest.raises((OSError, ValueError)) as caught:
            urllib.request.urlopen(request, timeout=5, context=context)
        # Go's TLS says in HTTP that this is no HTTP; that is no answer of the engine's.
        if isinstance(caught.value, urllib.error.HTTPError):
            assert caught.value.code == 400
            assert b"HTTPS server" in caught.value.read()


@pytest.mark.parametrize("name", ["none", "no certificate", "another home's", "self-signed"])
async def test_no_client_without_the_certificate_is_served(
    closed: Closed, tmp_path: Path, name: str
) -> None:
    """A poller is a client like any other: it gets neither a task nor an answer through."""
    mine = certificates.Certificates(EngineFiles(closed.settings.engine_dir).certificates)
    root = mine.authority.read_bytes()
    tls: Any = False
    if name != "none":
        tls = TLSConfig(server_root_ca_cert=root, domain="kedge-engine")
    if name in ("another home's", "self-signed"):
        other = certificates.ensure(tmp_path / "other")
        held = (other.client if name == "another home's" else other.issuer).read_bytes()
        tls = TLSConfig(
            server_root_ca_cert=root, domain="kedge-engine", client_cert=held, client_private_key=held
        )  # fmt: skip
    for port in ("frontend", "history", "matching", "worker"):
        with pytest.raises(RuntimeError):
            await Client.connect(f"{HOST}:{closed.state.ports[port]}", tls=tls)


async def test_with_it_one_is_served(closed: Closed) -> None:
    """The control of the test above."""
    client = await connect(closed.settings)
    assert (await client.count_workflows()).count == 0


def test_the_stock_command_line_reaches_it_by_profile_and_by_flags(closed: Closed) -> None:
    """As docs/engine.md says."""
    held = EngineFiles(closed.settings.engine_dir).certificates
    flags = [
        *("--address", closed.state.address, "--tls-server-name", "kedge-engine"),
        *("--tls-cert-path", str(held / "client.pem"), "--tls-key-path", str(held / "client.pem")),
        *("--tls-ca-path", str(held / "ca.pem")),
    ]
    plain = {"PATH": os.environ["PATH"], "HOME": str(closed.settings.home)}
    argv = [stock_temporal(), "operator", "namespace", "describe", "-n", "default", "-o", "json"]
    for words, environment, code in (
        ([], {**plain, "TEMPORAL_CONFIG_FILE": str(closed.state.profile)}, 0),
        (flags, plain, 0),
        (flags[:2], plain, 1),
    ):
        done = subprocess.run(
            [*argv, *words], env=environment, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr


def test_another_program_in_the_engines_place_is_not_talked_to(closed: Closed) -> None:
    """While the engine is down somebody else may take its port: clients compare its certificate."""
    imposter = Settings.load(closed.settings.home.parent / "imposter", payloads="open")
    engine = Engine(imposter)
    try:
        other = engine.start()
        profile = closed.settings.home.parent / "wrong.toml"
        text = closed.state.profile.read_text()
        profile.write_text(text.replace(closed.state.address, other.address))
        wrong = closed.state.model_copy(update={"profile": profile})
        code = (
            "import sys; from pathlib import Path; from worker.engine_api import answers\n"
            "sys.exit(0 if answers(Path(sys.argv[1]), ()) else 7)"
        )
        for state, wanted in ((closed.state, 0), (wrong, 7)):
            argv = [sys.executable, "-c", code, str(state.profile)]
            assert subprocess.run(argv, check=False, timeout=60).returncode == wanted
    finally:
        engine.stop()


ATTACK = """
import asyncio, json, os, socket, sys
from pathlib import Path
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import TLSConfig

told = json.loads(sys.argv[1])

# Whatever is loaded late is loaded now: afterwards this program may not read its own libraries.
import encodings.idna
try:
    asyncio.run(Client.connect("127.0.0.1:1", tls=TLSConfig(domain="x")))
except RuntimeError:
    pass
os.setgroups([])
os.setgid(told["user"])
os.setuid(told["user"])
got = []

def look(what, act):
    try:
        shown = act()
    except (OSError, RuntimeError, ValueError):
        return
    if shown:
        got.append(f"{what}: {shown!r:.100}")

for path in told["private"]:
    look(f"reads {path}", lambda: Path(path).read_bytes())
    look(f"lists {path}", lambda: os.listdir(path))
    look(f"writes {path}", lambda: Path(path).joinpath("planted").write_text("x"))

async def served(port, tls):
    client = await Client.connect(f"127.0.0.1:{port}", tls=tls)
    return [one.id async for one in client.list_workflows()] or "served"

def spoken(port, request):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as there:
        there.sendall(request)
        return there.recv(4096)

for name, port in told["ports"].items():
    if "membership" not in name:
        look(f"calls {name} in the open", lambda: asyncio.run(served(port, False)))
        look(f"calls {name} by TLS", lambda: asyncio.run(served(port, TLSConfig(domain="kedge-engine"))))
    post = b"POST /api/v1/namespaces/default/workflows/planted HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Type: text/plain\\r\\n"
    answer = b""
    try:
        answer = spoken(port, post + b"Content-Length: 2\\r\\n\\r\\n{}")
    except OSError:
        pass
    if answer.startswith(b"HTTP/") and b" 400 " not in answer[:20]:
        got.append(f"HTTP on {name}: {answer[:60]!r}")
look("connects with the profile", lambda: ClientConfig.load_client_connect_config(config_file=told["profile"]))
print(json.dumps({"uid": os.getuid(), "got": got}), flush=True)
# Not by the interpreter's end: the SDK's attempts that go on would abort it.
os._exit(0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_another_user_of_the_machine_gets_nothing(closed: Closed) -> None:
    held = certificates.Certificates(EngineFiles(closed.settings.engine_dir).certificates)
    private = [held.client, held.server, held.issuer, held.authority, held.folder]
    private += [closed.state.database, closed.state.profile, closed.settings.engine_dir]
    private += [Path(f"/proc/{closed.state.process.pid}/environ")]
    assert all(path.exists() for path in private)
    told = {
        "user": STRANGER,
        "private": [str(path) for path in private],
        "ports": closed.state.ports,
        "profile": str(closed.state.profile),
    }
    # From a folder that he may be in: this checkout may be in a place that he may not enter.
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, json.dumps(told)],
        capture_output=True, text=True, timeout=120, check=False, cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"uid": STRANGER, "got": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_the_same_attack_by_the_owner_gets_what_it_looks_for(closed: Closed) -> None:
    """The control of the test above: the attacker's program finds files and services where it may."""
    held = certificates.Certificates(EngineFiles(closed.settings.engine_dir).certificates)
    told = {
        "user": 0,
        "private": [str(held.client)],
        "ports": {},
        "profile": str(closed.state.profile),
    }
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, json.dumps(told)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    got = json.loads(done.stdout)["got"]
    assert [one.split(":")[0] for one in got] == [
        f"reads {held.client}",
        "connects with the profile",
    ]


def test_junk_on_the_membership_ports_stops_nothing(closed: Closed) -> None:
    """They have no TLS: whoever is on this machine can talk there. The engine lives on, and serves."""
    for name in (one for one in PORTS if "membership" in one):
        for junk in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\0" * 65_536):
            with socket.create_connection((HOST, closed.state.ports[name]), timeout=5) as there:
                there.sendall(junk)
    engine = Engine(closed.settings)
    assert engine.state() == closed.state
    assert engine.answers()
