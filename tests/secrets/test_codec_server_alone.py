"""The codec server by itself, without an engine: names, rude connections, words that are none, policies that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from desk import codec as desk_codec
from desk import codec_serving as desk_codec_server
from desk.codec_serving import PinnedPolicies, Serving, _check, _rules
from kedge.model.errors import CodecError, DriverError
from worker.settings import Settings

KEDGE = Path(sys.executable).parent / "kedge"


@contextlib.contextmanager
def serving(home: Path, *words: str) -> Iterator[str]:
    """A server of an empty home with a ring; its address."""
    desk_codec.init(Settings.load(home=home))
    log = home / "codec-server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [KEDGE, "--home", str(home), "codec", "serve", *words], stdout=out, stderr=out
        )
    try:
        while "\n" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        said = log.read_text()
        assert "listens on" in said, said
        yield said.split("\n")[0].split()[-1]
    finally:
        process.terminate()
        process.wait(20)


def ask(
    address: tuple[str, int], method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def place_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("words", [b"", b"POST /login HTTP/1.1\r\nHost: 127"], ids=["nothing", "half a head"])  # fmt: skip
def test_connections_that_say_nothing_do_not_keep_others_out(tmp_path: Path, words: bytes) -> None:
    with serving(tmp_path) as url, contextlib.ExitStack() as rude:
        where = place_of(url)
        assert ask(where, "GET", "/")[0] == 200
        for _ in range(70):
            connection = rude.enter_context(socket.create_connection(where, timeout=20))
            connection.sendall(words)
        assert ask(where, "GET", "/")[0] == 503, "they do not take all the places there are"
        while ask(where, "GET", "/")[0] != 200:
            time.sleep(0.2)


def test_words_that_are_none_are_refused_and_never_an_error_of_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        where = place_of(url)
        for path, body in (
            ("/login", rb'{"nonce": "\ud800", "signature": "x"}'),
            ("/login", rb'{"nonce": "x", "signature": "\ud800"}'),
            ("/login", rb'{"nonce": "x", "signature": "\u0000"}'),
            ("/login", b'{"nonce": ' + b"9" * 5000 + b', "signature": "x"}'),
            ("/login", b"\xff\xfe"),
            ("/challenge", b"\xff\xfe"),
            ("/session", b"code=%ED%A0%80"),
            ("/session", b"code=\xff"),
            ("/session", b"&".join([b"code=x"] * 9)),
        ):
            status, said = ask(where, "POST", path, body)
            assert status in (400, 403), (path, body, said)
        challenge = json.loads(ask(where, "POST", "/challenge", b"")[1])
        told = {"nonce": challenge["nonce"], "signature": "\ud800"}
        assert ask(where, "POST", "/login", json.dumps(told).encode())[0] in (400, 403)
        for token in ("\xe9", "x" * 20_000):
            assert ask(where, "POST", "/decode", b"{}", Authorization=f"Bearer {token}")[0] == 401


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_it_may_be_called_as_it_calls_itself(tmp_path: Path, host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.bind((host, 0))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with serving(tmp_path, "--host", host) as url:
        where = place_of(url)
        assert ask(where, "GET", "/", Host=url.removeprefix("http://"))[0] == 200
        # The form on its own page comes from its own origin, by whichever of its names.
        for name in (url, f"http://localhost:{where[1]}"):
            named = {"Host": name.removeprefix("http://"), "Origin": name}
            status, said = ask(where, "POST", "/session", b"code=x", **named)
            assert (status, b"That code is none" in said) == (403, True), said
        named = {"Host": url.removeprefix("http://"), "Origin": f"http://localhost:{where[1] + 1}"}
        assert b"was not named" in ask(where, "POST", "/session", b"code=x", **named)[1]


def test_behind_a_proxy_with_a_certificate_it_is_called_by_the_proxys_address(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--name", "https://Codec.internal") as url:
        assert url == "https://codec.internal"
        state = json.loads((tmp_path / "run" / "codec-server.json").read_text())
        where = ("127.0.0.1", listening(state["process"]["pid"]))
        for host in ("codec.internal", "codec.internal:443"):
            named = {"Host": host, "Origin": "https://codec.internal"}
            said = ask(where, "POST", "/session", b"code=x", **named)[1]
            assert b"That code is none" in said
        assert ask(where, "GET", "/", Host="codec.internal:80")[0] == 421
        challenge = json.loads(ask(where, "POST", "/challenge", b"", Host="codec.internal")[1])
        assert challenge["server"] == url
    rules = _rules(Settings.load(home=tmp_path), Serving(names=("https://codec.internal",)), 8234)
    assert rules.secure, "so its cookie is for TLS only"


def listening(pid: int) -> int:
    """The port on which a process listens."""
    held = {path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in held:
            return int(words[1].partition(":")[2], 16)
    raise AssertionError("it does not listen")


@pytest.mark.parametrize(
    "name",
    ["http://codec.internal", "https://me@codec.internal", "https://codec.internal/x", "a b", "", "codec.internal:1", "https://codec.internal:x"],
)  # fmt: skip
def test_a_name_by_which_no_server_can_be_called_is_refused(name: str) -> None:
    with pytest.raises(CodecError, match="by which the server can be called"):
        _check(Serving(names=(name,)))


class Fleets:
    """One fleet whose record can be lost."""

    lost: Exception | None = None

    async def every(self) -> tuple[Any, ...]:
        if self.lost is not None:
            raise self.lost
        return (SimpleNamespace(fleet="etcd"),)


class Pins:
    """Its policy."""

    async def policy(self, fleet: str) -> Any:
        return f"the policy of {fleet}"


@pytest.mark.parametrize("lost", [DriverError("StoreError", "no", retryable=True), OSError("no")])
async def test_while_policies_cannot_be_read_nobody_may_read_and_looking_goes_on(
    monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    monkeypatch.setattr(desk_codec_server, "POLICIES_SECONDS", 0.01)
    fleets: Any = Fleets()
    pins: Any = Pins()
    policies = PinnedPolicies(fleets, pins)
    assert policies() == {}
    looking = asyncio.create_task(desk_codec_server._look_again(policies))

    async def come_to(wanted: dict[str, Any]) -> None:
        while policies() != wanted:
            assert not looking.done(), "nobody looks any more"
            await asyncio.sleep(0.01)

    try:
        await come_to({"etcd": "the policy of etcd"})
        fleets.lost = lost
        await come_to({})
        fleets.lost = None
        await come_to({"etcd": "the policy of etcd"})
    finally:
        looking.cancel()


async def test_policies_that_were_read_long_ago_let_nobody_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleets: Any = Fleets()
    pins: Any = Pins()
    policies = PinnedPolicies(fleets, pins)
    await policies.look()
    assert policies()
    now = time.monotonic()
    monkeypatch.setattr(desk_codec_server, "time", SimpleNamespace(monotonic=lambda: now + 60))
    assert policies() == {}
