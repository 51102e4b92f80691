"""The codec server with the stock command line on the other side, and everybody it must not listen to."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf.json_format import MessageToDict
from temporalio.converter import WorkflowSerializationContext

from desk.codec_serving import LATELY
from kedge.drivers.registry import DriverSettings, open_drivers
from kedge.drivers.signers import sign_with_key
from kedge.model.base import canonical
from kedge.model.policy import CodecRules, Policy
from kedge.trust.codec_access import LOGIN, Challenge
from tests.agents import ssh_agent
from tests.secrets.conftest import Place, Staged
from tests.spine.scene import Scene
from tests.stock import reaching, stock_temporal
from worker.codec import worker_converter
from worker.rings import rings_of

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(120)]

KEDGE = Path(sys.executable).parent / "kedge"
UI = "http://127.0.0.1:8233"


@dataclass
class Server:
    """A codec server in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def ask(
        self, path: str, body: Any = None, method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, content, named)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def document(self, path: str, body: Any = None, **headers: str) -> Any:
        status, _, content = self.ask(path, body, **headers)
        assert status == 200, content
        return json.loads(content)

    def answer(self, key: Path, *, code: bool = False, namespace: str = LOGIN, **changed: str) -> tuple[int, Any]:  # fmt: skip
        """Signs in; ``changed`` fields are what is signed instead of the server's own challenge."""
        challenge = self.document("/challenge", {})
        content = canonical(Challenge.model_validate({**challenge, **changed}))
        signature = sign_with_key(key, content, namespace=namespace)
        told = {"nonce": challenge["nonce"], "signature": signature, "code": code}
        status, _, said = self.ask("/login", told)
        return status, json.loads(said)

    def token(self, key: Path) -> str:
        status, said = self.answer(key)
        assert status == 200, said
        return str(said["token"])

    def decode(self, payloads: list[Any], **headers: str) -> list[Any]:
        found: list[Any] = self.document("/decode", {"payloads": payloads}, **headers)["payloads"]
        return found


def readable(policy: Policy) -> Policy:
    """The policy of a scene, under which people of sre may read."""
    return policy.model_copy(update={"codec": CodecRules(readers=("sre",))})


async def know(place: Place, scene: Scene, policy: Policy) -> None:
    """Makes a scene's fleet known in the home of the codec server."""
    drivers = open_drivers(DriverSettings(home=place.settings.home, policies=place.settings.policy_dir))  # fmt: skip
    await drivers.fleets.remember(scene.name, scene.document)
    await drivers.pins.pin(scene.name, policy)
    await drivers.aclose()
    # The server reads policies at a sign-in, unless it has just read them.
    await asyncio.sleep(1.5 * LATELY)


@pytest.fixture
async def scene(place: Place, staged: Staged) -> AsyncIterator[Scene]:
    made = await staged(await place.client(), nodes=3)
    await know(place, made, readable(made.policy))
    yield made
    drivers = open_drivers(DriverSettings(home=place.settings.home))
    await drivers.fleets.forget(made.name)
    await drivers.aclose()


@pytest.fixture(scope="module")
def server(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("served") / "codec-server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [KEDGE, "--home", str(place.settings.home), "codec", "serve", "--origin", UI],
            stdout=out, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "KEDGE_LOG_FORMAT": "json"},
        )  # fmt: skip
        assert process.stderr is not None
        said = process.stderr.readline()
        assert "listens on" in said, said + process.stderr.read()
        yield Server(said.split()[-1], process, log)
        process.terminate()
        said = process.stderr.read()
        assert process.wait(20) == 0, said
        log.write_text(log.read_text() + said)


async def sealed(place: Place, scene: Scene | str, value: Any = "crownword") -> dict[str, Any]:
    fleet = scene if isinstance(scene, str) else scene.name
    whom = WorkflowSerializationContext("default", f"upgrade/{fleet}/1")
    rings = rings_of(place.settings)
    assert rings is not None
    converter = worker_converter(rings).with_context(whom)
    made: dict[str, Any] = MessageToDict((await converter.encode([value]))[0])
    return made


def content(payload: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(payload["data"]))


async def test_who_may_read_reads_and_nobody_else(
    place: Place, scene: Scene, server: Server
) -> None:
    payload = await sealed(place, scene)
    token = server.token(scene.keys["ada"])
    [opened] = server.decode([payload], Authorization=f"Bearer {token}")
    assert content(opened) == "crownword"
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {token}"}, {"Cookie": "kedge_codec=x"}):  # fmt: skip
        status, _, said = server.ask("/decode", {"payloads": [payload]}, **headers)
        assert status == 401, headers
        assert b"crownword" not in said
    for who in ("olga", "bob", "eve"):
        status, refusal = server.answer(scene.keys[who])
        assert status == 403
        assert "may not read" in refusal["error"]


async def test_a_sign_in_is_by_this_challenge_for_this_server_in_this_namespace_once(
    scene: Scene, server: Server, tmp_path: Path
) -> None:
    from tests.spine.scene import make_keys

    ada = scene.keys["ada"]
    strangers = make_keys(tmp_path / "strangers")
    assert server.answer(ada)[0] == 200
    assert server.answer(strangers["ada"])[0] == 403
    assert server.answer(ada, namespace="kedge-order")[0] == 403
    assert server.answer(ada, server="http://127.0.0.1:1")[0] == 403
    assert server.answer(ada, nonce="0" * 32)[0] == 403
    challenge = server.document("/challenge", {})
    signature = sign_with_key(ada, canonical(Challenge.model_validate(challenge)), namespace=LOGIN)
    told = {"nonce": challenge["nonce"], "signature": signature}
    assert server.ask("/login", told)[0] == 200
    assert server.ask("/login", told)[0] == 403
    for rubbish in ({}, {"nonce": 7}, {"nonce": "x", "signature": "y" * 40_000}):
        assert server.ask("/login", rubbish)[0] in (400, 403)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a stock ssh-agent."""
    with ssh_agent(tmp_path / "agent") as environment:
        yield environment


async def test_stock_ssh_keygen_and_an_agent_sign_in_as_well(
    place: Place, scene: Scene, server: Server, agent: dict[str, str], tmp_path: Path
) -> None:
    key = str(scene.keys["ada"])
    challenge = tmp_path / "challenge"
    challenge.write_bytes(server.ask("/challenge", b"")[2])
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", "kedge-codec-login", "-f", key, str(challenge)]
    await asyncio.to_thread(subprocess.run, sign, check=True, capture_output=True, timeout=30)
    nonce = json.loads(challenge.read_text())["nonce"]
    told = {"nonce": nonce, "signature": challenge.with_name("challenge.sig").read_text()}
    status, _, said = server.ask("/login", told)
    assert status == 200, said

    await asyncio.to_thread(
        subprocess.run, ["ssh-add", "-q", key], env=agent, check=True, timeout=30
    )
    login = [str(KEDGE), "--home", str(place.settings.home), "codec", "login", "--json"]
    done = await asyncio.to_thread(
        subprocess.run, [*login, "--agent", f"{key}.pub"], env=agent, check=True,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    signed = json.loads(done.stdout)
    assert (signed["person"], signed["kind"]) == ("ada", "token")
    payload = await sealed(place, scene)
    assert server.decode([payload], Authorization=f"Bearer {signed['secret']}")


async def test_a_fleet_that_the_reader_has_nothing_to_do_with_stays_sealed(
    place: Place, scene: Scene, server: Server
) -> None:
    other = await sealed(place, "another-fleet")
    plain = {"metadata": {"encoding": base64.b64encode(b"json/plain").decode()}, "data": "NQ=="}
    token = server.token(scene.keys["ada"])
    found = server.decode([other, plain], Authorization=f"Bearer {token}")
    assert found == [other, plain]
    forged = {**await sealed(place, scene), "data": other["data"]}
    [note] = server.decode([forged], Authorization=f"Bearer {token}")
    assert set(content(note)) == {"kedge_refused"}


def without_readers(scene: Scene) -> Policy:
    return scene.policy


def without_the_person(scene: Scene) -> Policy:
    people = readable(scene.policy).model_dump(mode="json")
    return Policy.model_validate({**people, "revoked": {"people": ["ada"]}}, strict=False)


@pytest.mark.parametrize("changed", [without_readers, without_the_person])
async def test_a_policy_that_is_changed_ends_what_its_reader_could(
    place: Place, scene: Scene, server: Server, changed: Callable[[Scene], Policy]
) -> None:
    payload = await sealed(place, scene)
    token = server.token(scene.keys["ada"])
    assert server.decode([payload], Authorization=f"Bearer {token}")
    await know(place, scene, changed(scene))
    for _ in range(100):
        status, _, said = server.ask("/decode", {"payloads": [payload]}, Authorization=f"Bearer {token}")  # fmt: skip
        if status == 403:
            break
        await asyncio.sleep(0.1)
    assert status == 403
    assert b"crownword" not in said


async def test_a_browser_signs_in_with_a_code_that_is_good_once(
    place: Place, scene: Scene, server: Server
) -> None:
    assert b"One-time code" in server.ask("/", method="GET")[2]
    status, said = server.answer(scene.keys["ada"], code=True)
    assert status == 200
    assert "token" not in said
    form = f"code={said['code'].lower()}".encode()
    status, headers, _ = server.ask("/session", form, Origin=server.url)
    assert status == 303
    # With "no-referrer" a real browser would call this page's own origin null.
    assert headers["referrer-policy"] == "same-origin"
    cookie = headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=3600"):
        assert word in cookie
    assert server.ask("/session", form, Origin=server.url)[0] == 403
    mine = cookie.split(";")[0]
    assert b"Signed in as ada" in server.ask("/", method="GET", Cookie=mine)[2]
    payload = await sealed(place, scene)
    status, headers, body = server.ask("/decode", {"payloads": [payload]}, Cookie=mine, Origin=UI)
    assert status == 200
    assert content(json.loads(body)["payloads"][0]) == "crownword"
    assert headers["access-control-allow-origin"] == UI
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["cache-control"] == "no-store"
    assert server.ask("/session/end", b"", Cookie=mine, Origin=server.url)[0] == 303
    assert server.ask("/decode", {"payloads": []}, Cookie=mine, Origin=UI)[0] == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{UI}.evil.example", "http://127.0.0.1:1"])  # fmt: skip
async def test_a_page_of_another_origin_gets_nothing_with_its_readers_cookie(
    place: Place, scene: Scene, server: Server, origin: str
) -> None:
    token = server.token(scene.keys["ada"])
    asked = {"payloads": [await sealed(place, scene)]}
    status, headers, body = server.ask("/decode", asked, Cookie=f"kedge_codec={token}", Origin=origin)  # fmt: skip
    assert status == 403
    assert b"crownword" not in body
    assert "access-control-allow-origin" not in headers
    status, headers, _ = server.ask("/decode", method="OPTIONS", Origin=origin)
    assert status == 403
    assert "access-control-allow-origin" not in headers
    status, headers, _ = server.ask("/decode", method="OPTIONS", Origin=UI)
    assert status == 204
    assert "X-Namespace" in headers["access-control-allow-headers"]


async def test_a_name_that_was_pointed_here_gets_nothing(
    place: Place, scene: Scene, server: Server
) -> None:
    token = server.token(scene.keys["ada"])
    asked = {"payloads": [await sealed(place, scene)]}
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:1", ""):
        status, _, body = server.ask("/decode", asked, Authorization=f"Bearer {token}", Host=host)
        assert status in (400, 421), host
        assert b"crownword" not in body


async def test_what_is_no_request_is_refused_and_the_server_goes_on(
    scene: Scene, server: Server
) -> None:
    bearer = f"Bearer {server.token(scene.keys['ada'])}"
    deep = b"[" * 100_000
    nested = json.dumps({"payloads": [{"metadata": {"a": {"b": {}}}}]}).encode()
    for body, wanted in {
        b"{": 400, b"[]": 400, b'{"payloads": 7}': 400, deep: 400, nested: 400,
        b'{"payloads": [7]}': 400, b'{"payloads": [{"x": 1}]}': 400,
        b'{"payloads": [' + b",".join([b"{}"] * 10_001) + b"]}": 400,
        b" " * (17 * 1024 * 1024): 413,
    }.items():  # fmt: skip
        try:
            status, _, _ = server.ask("/decode", body, Authorization=bearer)
        except (BrokenPipeError, ConnectionResetError):
            status = 413  # it hung up before the body came to its end
        assert status == wanted, body[:40]
    assert server.ask("/nowhere", b"")[0] == 404
    assert server.ask("/decode", method="GET")[0] == 405
    assert server.decode([], Authorization=bearer) == []
    assert server.document("/encode", {}, Authorization=bearer) == {"payloads": []}
    assert server.process.poll() is None


async def test_the_stock_command_line_reads_and_writes_through_it(
    place: Place, scene: Scene, server: Server
) -> None:
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(gates={"ship": {"approvals": {"threshold": 1, "roles": ["sre"]}}})))  # fmt: skip
        status = await scene.waits_for(run, "ship")
        assert status.waiting is not None
        login = [str(KEDGE), "--home", str(place.settings.home), "codec", "login"]
        signed = await asyncio.to_thread(
            subprocess.run, [*login, "--key", str(scene.keys["ada"])],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        token = signed.stdout.splitlines()[-1]
        state = place.engine.state()
        assert state is not None
        binary = stock_temporal()

        async def temporal(*words: str, **env: str) -> str:
            done = await asyncio.to_thread(
                subprocess.run, [binary, *words], capture_output=True, text=True, timeout=60,
                env={**reaching(state), **env},
            )  # fmt: skip
            return done.stdout + done.stderr

        show = ("workflow", "show", "-w", run, "-o", "json")
        plan = status.plan
        assert plan not in await temporal(*show)
        flags = ("--codec-endpoint", server.url, "--codec-auth", f"Bearer {token}")
        shown = json.loads(await temporal(*show, *flags))
        words = [base64.b64decode(one).decode() for one in datas(shown)]
        assert any(plan in word for word in words)
        env = {"TEMPORAL_CODEC_ENDPOINT": server.url, "TEMPORAL_CODEC_AUTH": f"Bearer {token}"}
        answer = await temporal("workflow", "query", "-w", run, "--type", "status", **env)
        assert scene.document.nodes[0].name in answer or plan in answer
        # A signal that the stock command line seals by way of the server is an order like any other.
        envelope = scene.envelope(
            "approve", run, plan, "ada", subject="ship", shown=status.waiting.shown
        )
        order = (
            "workflow",
            "signal",
            "-w",
            run,
            "--name",
            "order",
            "--input",
            envelope.model_dump_json(),
        )
        await temporal(*order, *flags, "--codec-header", "X-Namespace=default")
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()
    log = server.log.read_text()
    assert token not in log
    assert plan not in log


def datas(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from datas(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == "data" and isinstance(one, str):
                yield one
            yield from datas(one)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--host", "0.0.0.0"), "can be reached from other machines"),  # noqa: S104 - to be refused
        (("--life", "30d"), "one minute to twelve hours"),
        (("--tls-cert", "x.pem"), "come together"),
    ],
)
def test_a_server_that_would_be_unsafe_is_not_started(
    place: Place, words: tuple[str, ...], says: str
) -> None:
    argv = [str(KEDGE), "--home", str(place.settings.home), "codec", "serve", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "next: " in done.stderr


def test_without_a_ring_there_is_nothing_to_serve(tmp_path: Path) -> None:
    argv = [str(KEDGE), "--home", str(tmp_path), "codec", "serve"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "kedge up" in done.stderr
