"""Probes: only a clear yes is a pass, also under `not`, `any` and `all`."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest


def http(body: Any, status: str = "200 OK", more: str = "") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{more}\r\n".encode() + text


def look(host: Any, probe: dict[str, Any], key: str = "p") -> Any:
    """The result of a probe that passes, or its error."""
    said = host.call({"key": f"{key}{host.token}", "op": "probe", "probe": probe})
    if said.ok:
        return next(line["result"] for line in said.lines if line["ev"] == "done")
    assert said.error["type"] == "ProbeFailed", said.error
    return said.error["detail"]["verdict"]


BODY = {
    "health": "true",
    "n": 5,
    "x": 1.5,
    "t": True,
    "none": None,
    "list": [{"ok": True, "lag": 0}, {"ok": False, "lag": 3}],
    "empty": [],
    "sync": {"height": "120", "hex": "0x10", "name": "v1.2.3"},
}

EXPECTATIONS: list[tuple[dict[str, Any], str]] = [
    ({"health": "true"}, "pass"),
    ({"health": True}, "fail"),
    ({"n": 5}, "pass"),
    ({"n": 5.0}, "pass"),
    ({"n": "5"}, "fail"),
    ({"t": True}, "pass"),
    ({"t": 1}, "fail"),
    ({"n": True}, "fail"),
    ({"none": None}, "pass"),
    ({"n": {"ge": 5, "lt": 6}}, "pass"),
    ({"n": {"ge": 5, "lt": 5}}, "fail"),
    ({"x": {"gt": 1}}, "pass"),
    ({"sync.height": {"ge": 99}}, "pass"),
    ({"sync.height": {"gt": "99"}}, "pass"),
    ({"sync.height": {"le": "99"}}, "fail"),
    ({"sync.hex": {"eq": "0x10", "ge": 16}}, "pass"),
    ({"sync.hex": {"lt": 16}}, "fail"),
    ({"sync.name": {"ge": 1}}, "unknown"),
    ({"t": {"ge": 0}}, "unknown"),
    ({"none": {"le": 0}}, "unknown"),
    ({"sync.name": {"matches": r"^v1\."}}, "pass"),
    ({"sync.name": {"matches": "^2"}}, "fail"),
    ({"n": {"matches": "5"}}, "unknown"),
    ({"sync.name": {"contains": "1.2"}}, "pass"),
    ({"sync.name": {"contains": "1.3"}}, "fail"),
    ({"sync.name": {"starts_with": "v1."}}, "pass"),
    ({"sync.name": {"starts_with": "1."}}, "fail"),
    ({"n": {"contains": "5"}}, "unknown"),
    ({"sync.name": {"contains": {"captured": "never"}}}, "unknown"),
    ({"n": {"in": [4, 5]}}, "pass"),
    ({"n": {"in": ["5"]}}, "fail"),
    ({"n": {"ne": 4}}, "pass"),
    ({"n": {"ne": 5}}, "fail"),
    ({"missing": 1}, "unknown"),
    ({"missing": {"ne": 1}}, "unknown"),
    ({"missing": {"exists": False}}, "pass"),
    ({"missing": {"exists": True}}, "unknown"),
    ({"n": {"exists": True}}, "pass"),
    ({"n": {"exists": False}}, "fail"),
    ({"n.deeper": 5}, "unknown"),
    ({"list.0.ok": True}, "pass"),
    ({"list.2.ok": True}, "unknown"),
    ({"list.-1.ok": False}, "unknown"),
    ({"list.*.ok": True}, "fail"),
    ({"list.*.lag": {"le": 3}}, "pass"),
    ({"list.*.none": 1}, "unknown"),
    ({"empty.*.ok": True}, "unknown"),
    ({"n": {"ge": {"captured": "never"}}}, "unknown"),
    ({"health": "true", "n": 6}, "fail"),
    ({"health": "true", "missing": 1}, "unknown"),
]


def test_expectations(host: Any, answering: Any) -> None:
    url = answering(http(BODY))
    for number, (expect, verdict) in enumerate(EXPECTATIONS):
        found = look(host, {"http": {"url": url}, "expect": expect}, str(number))
        assert (found if isinstance(found, str) else "pass") == verdict, expect
        if verdict == "unknown":
            inner = {"http": {"url": url}, "expect": expect}
            assert look(host, {"not": inner}, f"not{number}") == "unknown", expect


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n is 5, expected 0"),
    ({"n": {"ge": 7, "lt": 9}}, "n is 5, expected at least 7 and less than 9"),
    ({"n": {"in": [1, 2]}}, "n is 5, expected one of 1, 2"),
    ({"health": {"ne": "true"}}, "health is 'true', expected anything but 'true'"),
    ({"sync.name": {"starts_with": "2"}}, "sync.name is 'v1.2.3', expected a text that starts with '2'"),
    ({"missing": 1}, "missing is not in the answer, expected 1"),
    ({"n": {"ge": {"captured": "never"}}}, "n is 5, expected at least nothing captured"),
]  # fmt: skip


def test_a_condition_that_does_not_hold_says_what_was_expected(host: Any, answering: Any) -> None:
    url = answering(http(BODY))
    for number, (expect, sentence) in enumerate(SENTENCES):
        op = {
            "key": f"s{number}{host.token}", "op": "probe",
            "probe": {"http": {"url": url}, "expect": expect},
        }  # fmt: skip
        assert sentence in host.call(op).error["message"], expect


ANSWERS: list[tuple[str, bytes, str]] = [
    ("NaN", http(b'{"health": NaN}'), "unknown"),
    ("infinite", http(b'{"health": Infinity}'), "unknown"),
    ("no JSON", http(b"ok"), "unknown"),
    ("nothing", http(b""), "unknown"),
    ("not UTF-8", http(b'"\xff"'), "unknown"),
    ("nested without end", http(b"[" * 100_000), "unknown"),
    ("a list", http([1]), "unknown"),
    ("503", http({"health": "true"}, "503 Busy"), "fail"),
    ("404", http({"health": "true"}, "404 No"), "fail"),
    ("a redirect", http(b"", "302 Found", "Location: http://127.0.0.1:9/\r\n"), "fail"),
    ("no HTTP", b"SSH-2.0-x\r\n\r\n", "unknown"),
    ("closed at once", b"", "unknown"),
    ("cut in the body", http({"health": "true"})[:-3], "unknown"),
    ("a head without end", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "unknown"),
    ("a length that is none", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}", "unknown"),
    ("an oversize body", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "unknown"),
    ("an oversize body unsaid", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (3 << 20), "unknown"),
    ("a chunk that is none", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "unknown"),
    ("an oversize chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", "unknown"),
    ("chunks", b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"health"\r\n8;x=y\r\n: "true"\r\n1\r\n}\r\n0\r\n\r\n', "pass"),
    ("no length", b'HTTP/1.1 200 OK\r\n\r\n{"health": "true"}', "pass"),
    ("continue first", b"HTTP/1.1 100 Continue\r\n\r\n" + http({"health": "true"}), "pass"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "verdict"), ANSWERS, ids=[one[0] for one in ANSWERS])
def test_answers(host: Any, answering: Any, name: str, content: bytes, verdict: str) -> None:
    del name
    probe = {"http": {"url": answering(content), "timeout": 2}, "expect": {"health": "true"}}
    found = look(host, probe)
    assert (found if isinstance(found, str) else "pass") == verdict


def test_a_server_that_never_ends_its_answer_is_a_time_out(host: Any, answering: Any) -> None:
    url = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", hold=True)
    begun = time.monotonic()
    assert look(host, {"http": {"url": url, "timeout": 0.5}, "expect": {"a": 1}}) == "unknown"
    assert time.monotonic() - begun < 3


def test_drops_do_not_prolong_the_time(host: Any, answering: Any) -> None:
    url = answering(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (1 << 20), pause=0.2)
    begun = time.monotonic()
    assert look(host, {"http": {"url": url, "timeout": 0.7}, "expect": {"a": 1}}) == "unknown"
    assert time.monotonic() - begun < 3


def test_text_bodies_are_stripped(host: Any, answering: Any) -> None:
    url = answering(http(b"v1.2.3 \n"))
    probe = {"http": {"url": url, "text": True}, "expect": {"text": "v1.2.3"}}
    assert look(host, probe)["saw"] == {"text": "v1.2.3"}


def test_values_captured_before_are_compared_with_later(host: Any, answering: Any) -> None:
    before = answering(http({"sync": {"height": "120"}}))
    probe = {"http": {"url": before}, "capture": {"height": "sync.height"}}
    said = host.good({"key": "a", "op": "probe", "probe": probe})
    assert said.result("a")["captured"] == {"height": "120"}
    later = {"expect": {"sync.height": {"gt": {"captured": "height"}}}}
    assert look(host, {"http": {"url": before}, **later}) == "fail"
    after = answering(http({"sync": {"height": "121"}}))
    assert look(host, {"http": {"url": after}, **later})["saw"] == {"sync.height": "121"}
    # Another run captured nothing: no data is no pass.
    op = {"key": "b", "op": "probe", "probe": {"http": {"url": after}, **later}}
    assert host.call(op, run="r/2").error["detail"]["verdict"] == "unknown"
    missing = {"http": {"url": before}, "capture": {"height": "sync.none"}}
    assert look(host, missing) == "unknown"


COMMANDS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"argv": ["true"]}, {}, "pass"),
    ({"argv": ["false"]}, {}, "fail"),
    ({"argv": ["sh", "-c", "exit 3"], "exit": [0, 3]}, {}, "pass"),
    ({"argv": ["no-such-program"]}, {}, "unknown"),
    ({"argv": ["sleep", "5"], "timeout": 0.2}, {}, "unknown"),
    ({"argv": ["echo", '[{"health": true}]'], "parse": "json"}, {"0.health": True}, "pass"),
    ({"argv": ["echo", '[{"health": NaN}]'], "parse": "json"}, {"0.health": True}, "unknown"),
    ({"argv": ["echo", "hello "]}, {"text": "hello"}, "pass"),
    ({"argv": ["head", "-c", "2000000", "/dev/zero"], "parse": "text"}, {"text": "x"}, "unknown"),
    ({"argv": ["printenv", "A"], "env": {"A": "b c"}, "parse": "text"}, {"text": "b c"}, "pass"),
]


def test_commands(host: Any) -> None:
    for number, (spec, expect, verdict) in enumerate(COMMANDS):
        found = look(host, {"command": spec, **({"expect": expect} if expect else {})}, str(number))
        assert (found if isinstance(found, str) else "pass") == verdict, spec


def test_combinations_are_three_valued(host: Any, answering: Any) -> None:
    yes: dict[str, Any] = {"command": {"argv": ["true"]}}
    no: dict[str, Any] = {"command": {"argv": ["false"]}}
    what: dict[str, Any] = {"command": {"argv": ["no-such-program"]}}
    table: list[tuple[dict[str, Any], str]] = [
        ({"all": [yes, yes]}, "pass"),
        ({"all": [yes, what]}, "unknown"),
        ({"all": [no, what]}, "fail"),
        ({"any": [what, yes]}, "pass"),
        ({"any": [what, no]}, "unknown"),
        ({"any": [no, no]}, "fail"),
        ({"not": no}, "pass"),
        ({"not": yes}, "fail"),
        ({"not": what}, "unknown"),
        ({"not": {"not": what}}, "unknown"),
        ({"service": {"running": False}}, "pass"),
        ({"service": {"running": True}}, "fail"),
        ({"service": {}}, "unknown"),
    ]
    for number, (probe, verdict) in enumerate(table):
        found = look(host, probe, str(number))
        assert (found if isinstance(found, str) else "pass") == verdict, probe
    port = int(answering(b"").split(":")[2].split("/")[0])
    assert look(host, {"tcp": {"host": "127.0.0.1", "port": port}}, "tcp")["saw"] == {"open": True}
    assert look(host, {"tcp": {"host": "127.0.0.1", "port": 1}}, "tcp2") == "fail"


def test_an_instant_service_is_not_charged_an_interval(host: Any, answering: Any) -> None:
    probe = {"http": {"url": answering(http({"a": 1}))}, "expect": {"a": 1}}
    op = {"key": "h", "op": "healthy", "probe": probe, "interval": 5, "service": False}
    assert host.good(op).result("h")["waited"] < 1


@pytest.mark.parametrize(
    ("printed", "parse", "expect", "sentence"),
    [
        ('{"lag": 0}', None, {"lag": 0}, "printed JSON, read as text: add `parse: json`"),
        ("lag: 0", "json", {"lag": 0}, "printed no JSON"),
        ("lag: 0", None, {"lag": 0}, "lag is not in the answer, expected 0"),
    ],
)
def test_output_that_is_read_the_wrong_way_is_called_that(
    host: Any, printed: str, parse: str | None, expect: dict[str, Any], sentence: str
) -> None:
    probe = {"command": {"argv": ["echo", printed], "parse": parse}, "expect": expect}
    found = host.call({"key": f"c{host.token}", "op": "probe", "probe": probe})
    assert sentence in found.error["message"]
    assert ("add `parse" in found.error["message"]) == ("add `parse" in sentence)
    assert found.error["detail"]["verdict"] == "unknown"
