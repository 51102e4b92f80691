"""What requests of probes trust and show: private CAs, client certificates, tokens, sockets; and secrets that stay secret."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.host.certificates import Authority, Pair

TOKEN = "t0ken-value-4477-aa"
PASSWORD = "pa55word-8912"
Serve = Callable[..., str]


class Handler(BaseHTTPRequestHandler):
    """Answers by the path; every answer repeats what the request showed."""

    def do_GET(self) -> None:
        shown = self.headers.get("Authorization", "")
        good = shown in (f"Bearer {TOKEN}", "Basic ZWxhc3RpYzpwYTU1d29yZC04OTEy")
        status = 200 if self.path != "/guarded" or good else 401
        body = json.dumps({"ok": True, "shown": shown, "who": self.headers.get("Host")}).encode()
        if self.path == "/echo":
            status, body = 500, f"not with {shown}".encode()
        self.send_response(status)
        if self.path == "/moved":
            self.send_header("Location", "https://elsewhere.example/health")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any, **_more: Any) -> None:
        """Say nothing."""


class Unix(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0


class Quiet(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Handshakes fail here on purpose."""


@pytest.fixture
def serving() -> Iterator[Serve]:
    """A server on a free port, by TLS where a context is given; gives its address without a path."""
    servers: list[HTTPServer] = []

    def serve(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> str:
        class Six(Quiet):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        server = Six((host, 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if context else 'http'}://{shown}:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "house-ca")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.signed("client", "client")


def probe(host: Any, http: dict[str, Any], expect: Any = None, key: str = "") -> dict[str, Any]:
    """The outcome of a look: its verdict, and its sentence or what was seen."""
    spec: dict[str, Any] = {"http": {"timeout": 5, **http}}
    if expect is not None:
        spec["expect"] = expect
    said = host.call({"key": f"p{key}{host.token}", "op": "probe", "probe": spec})
    raw = json.dumps(said.lines)
    if said.ok:
        return {"verdict": "pass", "raw": raw}
    assert said.error["type"] == "ProbeFailed", said.error
    return {"verdict": said.error["detail"]["verdict"], "said": said.error["message"], "raw": raw}


def secret(top: Path, name: str, value: str) -> dict[str, Any]:
    path = top / name
    path.write_text(f"{value}\n")
    path.chmod(0o600)
    return {"file": str(path)}


# -- TLS ---------------------------------------------------------------------------------------------------------


def test_a_server_behind_a_private_ca_and_client_certificates(
    host: Any, serving: Serve, authority: Authority, client: Pair, tmp_path: Path
) -> None:
    pair = authority.signed("server", "127.0.0.1")
    url = serving(authority.server(pair, clients=True)) + "/health"
    ca = str(authority.pair.certificate)
    by_path = {"ca": ca, "certificate": str(client.certificate), "key": str(client.key)}
    assert probe(host, {"url": url, "tls": by_path}, {"ok": True})["verdict"] == "pass"
    inline = {"ca": authority.pair.pem, "certificate": client.pem + client.key_pem}
    assert probe(host, {"url": url, "tls": inline}, {"ok": True})["verdict"] == "pass"
    told = {
        "ca": secret(tmp_path, "ca", authority.pair.pem),
        "pem": secret(tmp_path, "pem", client.pem),
        "key": secret(tmp_path, "key", client.key_pem),
    }
    named = {
        "ca": [{"secret": "ca"}],
        "certificate": [{"secret": "pem"}],
        "key": [{"secret": "key"}],
    }
    found = probe(host, {"url": url, "tls": named, "secrets": told}, {"ok": True})
    assert found["verdict"] == "pass"
    without = probe(host, {"url": url, "tls": {"ca": ca}}, {"ok": True})
    assert without["verdict"] == "unknown"
    assert "wants a client certificate: write `certificate` and `key`" in without["said"]


def test_refused_certificates_are_called_what_they_are(
    host: Any, serving: Serve, authority: Authority, client: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other-ca")
    ca = str(authority.pair.certificate)
    fine = serving(authority.server(authority.signed("fine", "127.0.0.1"))) + "/"
    late = serving(authority.server(authority.signed("late", "127.0.0.1", days=-1))) + "/"
    named = serving(authority.server(authority.signed("named", "db.internal"))) + "/"
    clients = serving(authority.server(authority.signed("c", "127.0.0.1"), clients=True)) + "/"
    stranger = other.signed("stranger", "stranger")
    plain = serving().replace("http:", "https:") + "/"
    locked = tmp_path / "locked.key"
    locked.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    show = {"certificate": str(stranger.certificate), "key": str(stranger.key)}
    table: list[tuple[str, dict[str, Any], str]] = [
        (fine, {}, "is refused: this host does not trust its CA ("),
        (fine, {"ca": str(other.pair.certificate)}, "no CA that `ca` names has signed it"),
        (late, {"ca": ca}, "it has expired: renew it"),
        (named, {"ca": ca}, "it is not for 127.0.0.1: write the name that it is for as `server_name`"),
        (clients, {"ca": ca, **show}, "does not trust the CA of our client certificate"),
        (plain, {"ca": ca}, "does not speak TLS: use a plain address"),
        (fine, {"ca": f"{tmp_path}/none.pem"}, f"`ca` cannot be read: {tmp_path}/none.pem: No such file"),
        (fine, {"ca": str(tmp_path)}, f"{tmp_path} is not a file"),
        (fine, {"ca": str(client.key)}, "`ca` has no certificate in PEM"),
        (fine, {"ca": "relative.pem"}, "`ca` is neither PEM nor the absolute path of a file"),
        (fine, {"ca": ca, "certificate": str(client.certificate), "key": str(stranger.key)}, "they do not belong together"),
        (fine, {"ca": ca, "certificate": str(client.certificate), "key": str(locked)}, "is encrypted: kedge uses keys without a passphrase"),
    ]  # fmt: skip
    for number, (url, tls, sentence) in enumerate(table):
        found = probe(host, {"url": url, "tls": tls}, {"ok": True}, str(number))
        assert found["verdict"] == "unknown", tls
        assert sentence in found["said"], (found["said"], sentence)
        assert "not permitted" not in found["said"]
    held = probe(
        host, {"url": named, "tls": {"ca": ca, "server_name": "db.internal"}}, {"ok": True}
    )
    assert held["verdict"] == "pass"
    reset = probe(host, {"url": fine.replace("https", "http")}, {"ok": True})
    assert "reset the connection: it may want TLS" in reset["said"]


def test_a_server_that_answers_by_a_tls_alert_wants_https(host: Any, answering: Any) -> None:
    found = probe(host, {"url": answering(b"\x15\x03\x01\x00\x02\x02\x16")}, {"ok": True})
    assert "speaks TLS: write https" in found["said"]


# -- tokens and passwords ------------------------------------------------------------------------------------------


def shows(token: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"headers": {"Authorization": ["Bearer ", {"secret": "token"}]}, "secrets": {"token": token}, **more}  # fmt: skip


def test_a_token_of_the_host_is_shown_and_told_nowhere(
    host: Any, serving: Serve, tmp_path: Path
) -> None:
    top, token = serving(), secret(tmp_path, "token", TOKEN)
    assert probe(host, {"url": f"{top}/guarded"})["verdict"] == "fail"
    assert probe(host, shows(token, url=f"{top}/guarded"))["verdict"] == "pass"
    # Each of these answers repeats the token.
    seen = probe(host, shows(token, url=f"{top}/guarded"), {"shown": f"Bearer {TOKEN[:6]}"})
    echo = probe(host, shows(token, url=f"{top}/echo"))
    assert seen["verdict"] == echo["verdict"] == "fail"
    assert "Bearer [secret token]" in seen["said"]
    assert "status 500, expected 200: 'not with Bearer [secret token]'" in echo["said"]
    said = host.call({
        "key": f"w{host.token}", "op": "healthy", "service": False, "within": 1.2, "interval": 0.1,
        "probe": {"http": shows(token, url=f"{top}/echo")},
    })  # fmt: skip
    assert said.error["type"] == "NotHealthy"
    captured = {"http": shows(token, url=f"{top}/guarded"), "capture": {"it": "shown"}}
    stolen = host.call({"key": f"c{host.token}", "op": "probe", "probe": captured})
    assert "holds a secret and is not captured" in stolen.error["message"]
    for raw in (seen["raw"], echo["raw"], json.dumps(said.lines), json.dumps(stolen.lines)):
        assert TOKEN not in raw
    kept = b"".join(
        path.read_bytes()
        for path in host.root.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    assert TOKEN.encode() not in kept
    assert str(tmp_path).encode() in kept


def test_a_password_is_shown_by_basic_authentication(
    host: Any, serving: Serve, tmp_path: Path
) -> None:
    url = f"{serving()}/guarded"
    login = {"user": "elastic", "password": [{"secret": "pass"}]}
    told = {"pass": secret(tmp_path, "pass", PASSWORD)}
    request = {"url": url, "basic_auth": login, "secrets": told}
    assert probe(host, request, {"ok": True})["verdict"] == "pass"
    found = probe(host, request, {"shown": "nothing"})
    assert "Basic [secret pass]" in found["said"]
    assert "ZWxhc3RpYzpwYTU1" not in found["raw"]


def test_a_secret_that_cannot_be_used_is_no_pass(host: Any, serving: Serve, tmp_path: Path) -> None:
    url = f"{serving()}/"
    table: list[tuple[dict[str, Any], str]] = [
        ({"file": f"{tmp_path}/none"}, f"the secret token cannot be had: {tmp_path}/none: No such file"),
        (secret(tmp_path, "split", f"{TOKEN}\nX-Evil: 1"), "the header Authorization would have a line break"),
        ({"command": ["false"]}, "the secret token cannot be had: false ended with 1"),
    ]  # fmt: skip
    for number, (source, sentence) in enumerate(table):
        found = probe(host, shows(source, url=url), {"ok": True}, str(number))
        assert found["verdict"] == "unknown"
        assert sentence in found["said"], found["said"]
        assert TOKEN not in found["raw"]
        inverted = {"not": {"http": shows(source, url=url), "expect": {"ok": True}}}
        said = host.call({"key": f"n{number}{host.token}", "op": "probe", "probe": inverted})
        assert said.error["detail"]["verdict"] == "unknown"
    bad = {"http": {"url": url, "headers": {"A": [{"secret": "x"}]}}}
    said = host.call({"key": "b", "op": "probe", "probe": bad})
    assert said.error["type"] == "BadRequest"
    assert "http.secrets: x is missing" in said.error["message"]


def test_what_a_daemon_logs_of_a_token_is_not_told_by_a_later_session(
    host: Any, serving: Serve, tmp_path: Path
) -> None:
    """The daemon writes the token into its log and dies; the session that tells it has no probe at all."""
    release = host.release("1")
    host.good(*host.leg(release, "g1"))
    token = secret(tmp_path, "token", TOKEN)
    assert probe(host, shows(token, url=f"{serving()}/guarded"))["verdict"] == "pass"
    log = host.root / "logs/service.log"
    with log.open("a") as file:
        file.write(f"GET /guarded with Bearer {TOKEN}\n")
    host.kill_daemon()
    died = {"key": "d", "op": "healthy", "probe": {"service": {"running": True}}, "within": 2}
    said = host.call(died)
    assert said.error["type"] == "ServiceDied"
    assert "with Bearer [secret token]" in json.dumps(said.lines)
    assert TOKEN not in json.dumps(said.lines)
    # A start in another run begins a new log: what was shown before is forgotten.
    assert (host.root / ".kedge/shown-secrets.json").exists()
    host.good({"key": "again", "op": "start"}, run="r/2")
    assert not (host.root / ".kedge/shown-secrets.json").exists()


def test_a_token_that_was_changed_since_it_was_shown_hides_the_words_that_may_have_it(
    host: Any, serving: Serve, tmp_path: Path
) -> None:
    """Nobody knows the one before any more, and the daemon's log may have it."""
    host.good(*host.leg(host.release("1"), "g1"))
    token = secret(tmp_path, "token", TOKEN)
    assert probe(host, shows(token, url=f"{serving()}/guarded"))["verdict"] == "pass"
    with (host.root / "logs/service.log").open("a") as file:
        file.write(f"GET /guarded with Bearer {TOKEN}\n")
    secret(tmp_path, "token", "another-token-3312")
    host.kill_daemon()
    died = {"key": "d", "op": "healthy", "probe": {"service": {"running": True}}, "within": 2}
    said = host.call(died)
    assert said.error["type"] == "ServiceDied"
    assert TOKEN not in json.dumps(said.lines)
    assert "the secret token was changed since a probe showed it" in json.dumps(said.lines)
    # A start begins a new log: from then on its words are told again, in the same run too.
    host.good({"key": "again", "op": "start"})
    found = probe(host, shows(token, url=f"{serving()}/echo"))
    assert "'not with Bearer [secret token]'" in found["said"]
    kept = (host.root / ".kedge/shown-secrets.json").read_text()
    assert TOKEN not in kept
    assert "another-token" not in kept


def test_a_source_is_read_once_in_a_while_and_not_at_every_look(
    host: Any, serving: Serve, tmp_path: Path
) -> None:
    counted = tmp_path / "counted"
    command = {"command": ["sh", "-c", f"echo x >> {counted}; echo {TOKEN}"]}
    said = host.call({
        "key": "w", "op": "healthy", "service": False, "within": 1, "interval": 0.02,
        "probe": {"http": shows(command, url=f"{serving()}/echo")},
    })  # fmt: skip
    assert said.error["type"] == "NotHealthy"
    assert counted.read_text().count("x") <= 3


# -- ways to a server --------------------------------------------------------------------------------------------


def test_a_unix_socket(host: Any, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    path = deep / "api.sock"
    here = Path.cwd()
    os.chdir(deep)
    try:
        server = Unix("api.sock", Handler)  # type: ignore[arg-type]
    finally:
        os.chdir(here)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    try:
        found = probe(host, {"url": "http://app/health", "socket": str(path)}, {"who": "app"})
        assert found["verdict"] == "pass"
    finally:
        server.shutdown()
        server.server_close()
    gone = probe(host, {"url": "http://app/", "socket": str(path)}, {"ok": True}, "2")
    assert f"connection refused: nothing listens at {path}" in gone["said"]
    none = probe(host, {"url": "http://app/", "socket": f"{tmp_path}/no.sock"}, {"ok": True}, "3")
    assert f"there is no socket {tmp_path}/no.sock" in none["said"]
    (tmp_path / "file").touch()
    file = probe(host, {"url": "http://app/", "socket": f"{tmp_path}/file"}, {"ok": True}, "4")
    assert "is not a socket" in file["said"]


def test_an_ipv6_address_in_brackets(host: Any, serving: Serve) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as one:
        try:
            one.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no ::1")
    url = serving(host="::1")
    assert url.startswith("http://[::1]:")
    assert probe(host, {"url": f"{url}/health"}, {"ok": True})["verdict"] == "pass"
    said = host.call({"key": "b", "op": "probe", "probe": {"http": {"url": "http://::1:80/"}}})
    assert "an IPv6 address stands in brackets: [::1]" in said.error["message"]


def test_failures_to_connect_are_called_what_they_are(host: Any, serving: Serve) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        late = probe(host, {"url": f"http://127.0.0.1:{port}/", "timeout": 0.2})
    assert "timed out after 0.2 s while waiting for the answer" in late["said"]
    refused = probe(host, {"url": f"http://127.0.0.1:{port}/"}, key="2")
    assert f"connection refused: nothing listens at 127.0.0.1:{port}" in refused["said"]
    unknown = probe(host, {"url": "http://no-such-host.invalid/"}, key="3")
    assert "no-such-host.invalid" in unknown["said"]
    assert "is unknown here" in unknown["said"] or "name server" in unknown["said"]
    moved = probe(host, {"url": f"{serving()}/moved", "status": [204]}, key="4")
    assert "status 200, expected 204" in moved["said"]


# -- gzip ----------------------------------------------------------------------------------------------------------


def packed(body: bytes, encoding: str = "gzip") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


WHOLE = gzip.compress(b'{"ok": true}')
PACKED: list[tuple[str, bytes, str, str]] = [
    ("plain gzip", packed(WHOLE), "pass", ""),
    ("x-gzip", packed(WHOLE, "x-gzip"), "pass", ""),
    ("cut off", packed(WHOLE[:-9]), "unknown", "the gzip body is cut off"),
    ("no gzip", packed(b'{"ok": true}'), "unknown", "the body is called gzip and is not"),
    ("something after it", packed(WHOLE + b"{}"), "unknown", "there is more after the end of the gzip body"),
    ("a wrong checksum", packed(WHOLE[:-8] + b"\0" * 8), "unknown", "the body is called gzip and is not"),
    ("a bomb", packed(gzip.compress(b" " * (400 << 20))), "unknown", "the body is larger than 1048576 bytes"),
    ("another encoding", packed(WHOLE, "br"), "unknown", "encoded with 'br': kedge reads plain and gzip bodies"),
    ("two encodings", packed(WHOLE, "gzip, gzip"), "unknown", "encoded with 'gzip, gzip'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "verdict", "sentence"), PACKED, ids=[one[0] for one in PACKED]
)
def test_gzip_bodies(
    host: Any, answering: Any, name: str, content: bytes, verdict: str, sentence: str
) -> None:
    del name
    found = probe(host, {"url": answering(content)}, {"ok": True})
    assert found["verdict"] == verdict
    assert sentence in found.get("said", "")


# -- pages of metrics ----------------------------------------------------------------------------------------------


def page(size: int) -> bytes:
    """A page of metrics of at least this size; what is looked for stands at its end."""
    line = b'http_requests_total{code="200",path="/a/long/way/to/nowhere"} 1027 1395066363000\n'
    return b"# TYPE lag gauge\n" + line * (size // len(line) + 1) + b'lag{topic="orders"} 5\n'


def test_a_page_of_megabytes_is_read_line_by_line(host: Any, answering: Callable[..., str]) -> None:
    asked = {"metric": 'lag{topic="orders"}', "timeout": 10}
    for number, size in enumerate((70 << 10, 3 << 20)):
        content = page(size)
        plain = b"HTTP/1.1 200 OK\r\n\r\n" + content
        for name, raw in (("plain", plain), ("packed", packed(gzip.compress(content, 1)))):
            found = probe(
                host, {"url": answering(raw), **asked}, {"value": {"le": 5}}, f"{name}{number}"
            )
            assert found["verdict"] == "pass", found
            found = probe(
                host, {"url": answering(raw), **asked}, {"value": {"lt": 5}}, f"n{name}{number}"
            )
            assert 'lag{topic="orders"} is 5, expected less than 5' in found["said"]
    bomb = packed(gzip.compress(page(20 << 20), 1))
    found = probe(host, {"url": answering(bomb), **asked}, {"value": {"le": 5}}, "bomb")
    assert "the body is larger than 16777216 bytes" in found["said"]


def test_a_metric_is_captured_and_compared_with(host: Any, answering: Callable[..., str]) -> None:
    """Numbers come as they are written: whole ones exactly, and exponents."""
    url = answering(b"HTTP/1.1 200 OK\r\n\r\nheight 9007199254740993\nrate 1.5e+06\n")
    kept = {"http": {"url": url, "metric": "height"}, "capture": {"height": "value"}}
    said = host.good({"key": "k", "op": "probe", "probe": kept})
    assert said.result("k")["captured"] == {"height": "9007199254740993"}
    same = {
        "http": {"url": url, "metric": "height"},
        "expect": {"value": {"ge": {"captured": "height"}}},
    }
    host.good({"key": "s", "op": "probe", "probe": same})
    rate = {"http": {"url": url, "metric": "rate"}, "expect": {"value": 1500000}}
    host.good({"key": "r", "op": "probe", "probe": rate})
