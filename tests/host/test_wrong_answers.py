"""Wrong answers of health endpoints and wrong conditions in documents: what is said of each, to be read by a person.

Each sentence has its place (what was asked, or where the document says it), what was found, and what to do next where that
can be known. The snapshots beside this file are the table; `pytest --snapshot-update` writes it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from kedge.host import hpack
from kedge.model.errors import DocumentError
from kedge.model.runbook import Runbook
from kedge.plan.compile import ConflictsError
from tests.host.certificates import Authority
from tests.host.test_grpc import HEAD, SETTINGS, answer, frame, message, refused
from tests.host.test_probes import http
from tests.host.test_requests import secret, serving  # noqa: F401 - a fixture
from tests.plan.samples import plan, read
from tests.plan.test_facts import FACTS, _with
from tests.plan.test_requests import SECRETS, runbook

Rows = dict[str, str]
Look = Callable[[str, dict[str, Any]], None]


class Table:
    """What is said of each look, with the parts that change from run to run taken out."""

    def __init__(self, host: Any, top: Path) -> None:
        self.host = host
        self.top = top
        self.rows: Rows = {}

    def look(self, name: str, spec: dict[str, Any]) -> None:
        said = self.host.call({"key": f"{name}{self.host.token}", "op": "probe", "probe": spec})
        assert not said.ok, name
        assert said.error["type"] == "ProbeFailed", said.error
        assert name not in self.rows
        self.rows[name] = f"{said.error['detail']['verdict']}: {self._plain(said.error['message'])}"

    def _plain(self, text: str) -> str:
        text = text.replace(str(self.top), "/TOP")
        return re.sub(r"(127\.0\.0\.1|\[::1\]):\d+", r"\1:PORT", text)

    def shown(self) -> str:
        """The table as text, after what holds of every row of it."""
        for name, row in self.rows.items():
            verdict, _, said = row.partition(": ")
            assert verdict in ("fail", "unknown"), name
            assert re.match(r"(GET|HEAD|POST) https?://|grpcs?://|tcp |[a-z-]+[: ]", said), row
            assert not re.search(r"Errno|not permitted|Traceback|object at 0x|\bNone\b", said), row
            assert len(said) < 700, row
        assert len(set(self.rows.values())) == len(self.rows), "two rows say the same"
        return "\n".join(f"{name}\n    {row}" for name, row in self.rows.items())


@pytest.fixture
def table(host: Any, tmp_path: Path) -> Table:
    host.run_as_us()
    return Table(host, tmp_path)


@pytest.fixture
def closed() -> Iterator[str]:
    """A port at which nobody listens, though nobody else gets it either."""
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{one.getsockname()[1]}"


def test_answers_over_http(table: Table, answering: Any, closed: str, snapshot: SnapshotAssertion) -> None:  # fmt: skip
    def of(name: str, content: bytes, expect: Any = None, **more: Any) -> None:
        spec: dict[str, Any] = {"http": {"url": answering(content), **more}}
        if expect is not False:
            spec["expect"] = expect or {"status": "green"}
        table.look(name, spec)

    page = b"<html><body>502 Bad Gateway</body></html>"
    of("the daemon says that it is not well", http({"status": "red"}, "503 Service Unavailable"))
    of("a proxy answers for it", http(page, "502 Bad Gateway", "Content-Type: text/html\r\n"))
    of("a token is wanted", http({"error": "missing token"}, "401 Unauthorized"))
    of("the path is another", http(b"404 page not found\n", "404 Not Found"))
    of("it moved", http(b"", "301 Moved Permanently", "Location: https://db.internal/health\r\n"))
    of("it moved, nobody knows where", http(b"", "302 Found"))
    of("any of two statuses is wanted", http({}, "500 Oops"), status=[200, 204])
    of("a page in place of JSON", http(page, more="Content-Type: text/html; charset=utf-8\r\n"))
    of("a word in place of JSON", http(b"ok", more="Content-Type: text/plain\r\n"))
    of("a word of no type", http(b"ok"))
    of(
        "metrics in place of JSON",
        http(b"# HELP up x\nup 1\n", more="Content-Type: text/plain\r\n"),
    )
    of("nothing in place of JSON", http(b""))
    of("broken JSON", http(b'{"status": "gre', more="Content-Type: application/json\r\n"))
    of("a number that is none", http(b'{"status": NaN}', more="Content-Type: application/json\r\n"))
    of("a name that stands twice", http(b'{"status": 1, "status": 2}', more="Content-Type: application/json\r\n"))  # fmt: skip
    of("bytes that are no text", http(b'{"status": "\xff"}', more="Content-Type: application/json\r\n"))  # fmt: skip
    of("it is another server", b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n")
    of("it wants TLS", b"\x15\x03\x01\x00\x02\x02\x16")
    of("it closes at once", b"")
    of("it closes in the middle", http({"status": "green"})[:-4])
    of("the body is too large", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n")
    of("the body is packed in another way", http(b"x", more="Content-Encoding: zstd\r\n"))
    of("the packed body is cut off", http(gzip.compress(b"{}")[:-4], more="Content-Encoding: gzip\r\n"))  # fmt: skip
    of("the head is too large", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000)
    of("nobody listens", b"", url=f"http://{closed}/health")
    of("the name is unknown", b"", url="http://no-such-host.invalid/health")
    silent = answering(b"HTTP/1.1 200 OK\r\n", hold=True)
    of("it never answers", b"", url=silent, timeout=0.2)
    of("the socket is not there", b"", url="http://app/health", socket=f"{table.top}/app.sock")
    (table.top / "plain").touch()
    of("the socket is a file", b"", url="http://app/health", socket=f"{table.top}/plain")
    # The name server may be slow to say so: either is right, and the table has one of them.
    if "name server" in table.rows["the name is unknown"]:
        table.rows["the name is unknown"] = "unknown: GET http://no-such-host.invalid/health: the host name no-such-host.invalid is unknown here: check its spelling, DNS and /etc/hosts"  # fmt: skip
    assert table.shown() == snapshot


BODY = {
    "lag": 176, "state": "streaming", "version": "1.2.3", "a.b": {"c": 1}, "list": [{"ok": True}, {"ok": False}],
    "huge": "x" * 2000, "none": None,
}  # fmt: skip


def test_expectations(table: Table, answering: Any, snapshot: SnapshotAssertion) -> None:
    url = answering(http(BODY))
    rows: dict[str, dict[str, Any]] = {
        "a number is too large": {"lag": 0},
        "a number is beyond a bound": {"lag": {"le": 5}},
        "a number between two": {"lag": {"ge": 1, "lt": 100}},
        "a text in place of a number": {"state": {"ge": 1}},
        "a number in quotes": {"lag": "176"},
        "a text that does not begin so": {"version": {"starts_with": "2."}},
        "a text that does not match": {"version": {"matches": "^2[.]"}},
        "none of several": {"state": {"in": ["ready", "leader"]}},
        "what must not be": {"state": {"ne": "streaming"}},
        "what must not exist": {"lag": {"exists": False}},
        "a field that is not there": {"health": True},
        "a field further in that is not there": {"list.0.health": True},
        "a name with dots without quotes": {"a.b.c": 1},
        "an element that is not there": {"list.7.ok": True},
        "one of all elements": {"list.*.ok": True},
        "nothing was captured": {"lag": {"le": {"captured": "before"}}},
        "null": {"none": 1},
        "two at once": {"lag": 0, "state": "ready"},
    }
    for name, expect in rows.items():
        table.look(name, {"http": {"url": url}, "expect": expect})
    table.look("what is captured is not there", {"http": {"url": url}, "capture": {"x": "height"}})
    table.look("what is captured is no value", {"http": {"url": url}, "capture": {"x": "list"}})
    table.look("not", {"not": {"http": {"url": url}, "expect": {"lag": 176}}})
    assert table.shown() == snapshot


METRICS = b'# TYPE lag gauge\nlag{topic="orders",part="1"} 5\nlag{topic="orders",part="2"} 900\nlag{topic="bills"} NaN\nup 1\n'


def test_metrics(table: Table, answering: Any, snapshot: SnapshotAssertion) -> None:
    rows: dict[str, tuple[str, bytes]] = {
        "the number is too large": ('lag{part="2"}', METRICS),
        "there is no such metric": ("lags", METRICS),
        "there is no such label": ('lag{topic="users"}', METRICS),
        "two series match": ('lag{topic="orders"}', METRICS),
        "it is not a number": ('lag{topic="bills"}', METRICS),
        "it is infinite": ("x", b"x +Inf\n"),
        "a line is malformed": ('lag{part="2"}', METRICS + b"lag 5 is high\n"),
        "a label is malformed": ("up", b'up 1\nlag{topic="orders} 5\n'),
        "the last line is cut off": ('lag{part="2"}', METRICS[:-1]),
        "more comes after the end": ("up", b"up 1\n# EOF\nup 2\n"),
        "a series stands twice": ("up", b"up 1\nup 1\n"),
        "a line has no end": ("up", b"up 1\n" + b"x" * 70_000),
        "it is a page": ("up", b"<html>not here</html>\n"),
        "it is no text": ("up", b'up{a="\xff"} 1\n'),
        "it is empty": ("up", b""),
    }
    for name, (metric, page) in rows.items():
        spec = {"http": {"url": answering(http(page)), "metric": metric}, "expect": {"value": {"le": 0.5}}}  # fmt: skip
        table.look(name, spec)
    assert table.shown() == snapshot


def test_tls_and_tokens(table: Table, serving: Any, snapshot: SnapshotAssertion) -> None:  # noqa: F811
    top = table.top
    house, other = Authority(top, "house-ca"), Authority(top, "other-ca")
    ca = str(house.pair.certificate)
    stranger, client = other.signed("stranger", "stranger"), house.signed("client", "client")
    fine = serving(house.server(house.signed("fine", "127.0.0.1"))) + "/"
    late = serving(house.server(house.signed("late", "127.0.0.1", days=-1))) + "/"
    named = serving(house.server(house.signed("named", "db.internal"))) + "/"
    wanted = serving(house.server(house.signed("wanted", "127.0.0.1"), clients=True)) + "/"
    plain = serving()
    (top / "open").write_text("t0ken-of-all")
    (top / "open").chmod(0o644)
    rows: dict[str, dict[str, Any]] = {
        "the CA is unknown here": {"url": fine},
        "the CA is another": {"url": fine, "tls": {"ca": str(other.pair.certificate)}},
        "the certificate has expired": {"url": late, "tls": {"ca": ca}},
        "the certificate is for another name": {"url": named, "tls": {"ca": ca}},
        "a client certificate is wanted": {"url": wanted, "tls": {"ca": ca}},
        "the client certificate is of another CA": {"url": wanted, "tls": {"ca": ca, "certificate": str(stranger.certificate), "key": str(stranger.key)}},
        "the server speaks no TLS": {"url": plain.replace("http", "https") + "/", "tls": {"ca": ca}},
        "the CA is not there": {"url": fine, "tls": {"ca": f"{top}/none.pem"}},
        "the CA is a folder": {"url": fine, "tls": {"ca": str(top)}},
        "the CA is no certificate": {"url": fine, "tls": {"ca": str(client.key)}},
        "the key is of another certificate": {"url": wanted, "tls": {"ca": ca, "certificate": str(client.certificate), "key": str(stranger.key)}},
        "the token is not there": _token({"file": f"{top}/none"}, plain),
        "the token is open to all": _token({"file": f"{top}/open"}, plain),
        "the token is empty": _token(secret(top, "empty", ""), plain),
        "the token has two lines": _token(secret(top, "two", "a-b-c-d\ne-f-g-h"), plain),
        "the token's command fails": _token({"command": ["false"]}, plain),
        "the token is refused": _token(secret(top, "wrong", "not-the-token-1"), plain),
    }  # fmt: skip
    for name, request in rows.items():
        table.look(name, {"http": {"timeout": 5, **request}, "expect": {"ok": True}})
    assert "not-the-token-1" not in json.dumps(table.rows)
    assert table.shown() == snapshot


def _token(source: dict[str, Any], url: str) -> dict[str, Any]:
    shown = {"Authorization": ["Bearer ", {"secret": "token"}]}
    return {"url": f"{url}/guarded", "headers": shown, "secrets": {"token": source}}


def test_commands_ports_and_services(table: Table, closed: str, snapshot: SnapshotAssertion) -> None:  # fmt: skip
    table.look("a command fails", {"command": {"argv": ["false"]}})
    table.look("a command is not there", {"command": {"argv": ["no-such-program"]}})
    table.look("a command never ends", {"command": {"argv": ["sleep", "9"], "timeout": 0.1}})
    table.look("JSON is read as text", {"command": {"argv": ["echo", '{"lag": 0}']}, "expect": {"lag": 0}})  # fmt: skip
    table.look("a text is read as JSON", {"command": {"argv": ["echo", "lag: 0"], "parse": "json"}, "expect": {"lag": 0}})  # fmt: skip
    table.look("another text", {"command": {"argv": ["echo", "starting"]}, "expect": {"text": "ready"}})  # fmt: skip
    table.look("too much is printed", {"command": {"argv": ["head", "-c", "2000000", "/dev/zero"]}, "expect": {"text": "x"}})  # fmt: skip
    host, _, port = closed.partition(":")
    table.look("nobody listens", {"tcp": {"host": host, "port": int(port)}})
    assert table.shown() == snapshot


def test_health_of_grpc(table: Table, answering: Any, closed: str, snapshot: SnapshotAssertion) -> None:  # fmt: skip
    rows: dict[str, bytes] = {
        "it does not serve": answer(message(b"\x08\x02")),
        "it does not know": answer(message(b"\x08\x00")),
        "it has no health service": refused("12", "unknown service grpc.health.v1.Health"),
        "it does not know the service": refused("5"),
        "it wants to know who asks": refused("16", "missing%20token"),
        "it refuses who asks": refused("7"),
        "it is not available": refused("14", "shutting down"),
        "it speaks HTTP/1": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "it speaks TLS": b"\x15\x03\x01\x00\x02\x02\x16\0\0\0",
        "it answers with a page": answer(head=b"\x88" + hpack.header("content-type", "text/html")),
        "it ends the connection": SETTINGS + frame(7, 0, b"\0\0\0\0\0\0\0\x0btoo_many_pings", 0),
        "it resets the call": SETTINGS + frame(3, 0, b"\0\0\0\x07"),
        "it closes in the middle": SETTINGS + frame(1, 4, HEAD),
    }
    for name, content in rows.items():
        url = answering(content).replace("http", "grpc").removesuffix("/health")
        table.look(name, {"grpc": {"url": url, "service": "orders"}})
    table.look("nobody listens", {"grpc": {"url": f"grpc://{closed}"}})
    assert table.shown() == snapshot


DOCUMENTS = [
    "{http: 'ftp://a/health'}",
    "{http: 'http://user:secret@a/'}",
    "{http: 'http://::1:8080/health'}",
    "{http: {url: 'http://a/', header: {A: b}}}",
    "{http: {url: 'http://a/', headers: {'A B': c}}}",
    "{http: {url: 'http://a/', timeout: 5}}",
    "{http: {url: 'http://a/', timeout: 10m}}",
    "{http: {url: 'http://a/', method: DELETE}}",
    "{http: {url: 'http://a/', status: 2xx}}",
    "{http: {url: 'http://a/', body: a, json: {b: c}}}",
    "{http: {url: 'http://a/', ca: /ca.pem}}",
    "{http: {url: 'https://a/', ca: ca.pem}}",
    "{http: {url: 'https://a/', key: /a.key}}",
    "{http: {url: 'https://a/', certificate: /a.pem, key: '-----BEGIN PRIVATE KEY-----'}}",
    "{http: {url: 'https://a/', tls: {ca: /ca.pem}}}",
    "{http: {url: 'http://a/', socket: run/app.sock}}",
    "{http: {url: 'http://a/', basic_auth: {user: a}}}",
    "{http: {url: 'http://a/', headers: {Authorization: 'Bearer {secret.tokn}'}}}",
    "{http: 'http://a/?token={secret.token}'}",
    "{http: 'http://{node.adress}/'}",
    "{http: {url: 'http://a/', metric: 'lag{topic=orders}'}, expect: {value: 1}}",
    "{http: {url: 'http://a/', metric: lag}}",
    "{http: {url: 'http://a/', metric: lag}, expect: {lag: {le: 5}}}",
    "{http: {url: 'http://a/', metric: lag}, expect: {value: '5'}}",
    "{grpc: 'localhost:7233'}",
    "{grpc: 'grpc://a:1', expect: {status: SERVING}}",
    "{tcp: a}",
    "{tcp: '::1:8080'}",
    "{tcp: 'a:1', expect: {open: true}}",
    "{command: 'curl http://a/'}",
    "{command: {argv: [a]}, expect: {lag: 0}}",
    "{command: {argv: [a]}, expect: {text: 0}}",
    "{http: 'http://a/', expect: {lag: {ge: 5, lt: 5}}}",
    "{http: 'http://a/', expect: {lag: {gte: 5}}}",
    "{http: 'http://a/', expect: {lag: {ge: high}}}",
    "{http: 'http://a/', expect: {lag: []}}",
    "{http: 'http://a/', expect: {lag: {}}}",
    "{http: 'http://a/', expect: {'a..b': 1}}",
    "{http: 'http://a/', expect: {a: {matches: '['}}}",
    "{http: 'http://a/', expect: {a: {captured: height}}}",
    "{all: []}",
    "{http: 'http://a/', tcp: 'a:1'}",
    "healty",
    "{fact: caught_up, with: {stream: orders}}",
    "{fact: open, with: {prot: 1}}",
]


def test_documents(snapshot: SnapshotAssertion) -> None:
    rows: list[str] = []
    for condition in DOCUMENTS:
        text = _with(runbook(f"preflight: [{condition}]\n"), FACTS)
        try:
            read(text, Runbook)
            plan(fleet=SECRETS, runbook=text)
        except DocumentError as error:
            found = list(error.problems)
        except ConflictsError as error:
            found = [f"{document}: {'.'.join(map(str, path))}: {said}" for document, path, said in error.conflicts]  # fmt: skip
        else:
            raise AssertionError(condition)
        assert all("preflight.0" in one for one in found), found
        rows.append("\n".join([condition, *(f"    {one}" for one in found)]))
    assert "\n".join(rows) == snapshot
