"""The protocol itself: input, journal, server, the program as one file."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kedge.host
from kedge.host import journal
from kedge.host.bundle import bundle, named
from kedge.host.errors import HostError

HERE = Path(kedge.host.__file__).parent


def ask(**more: Any) -> dict[str, Any]:
    return {
        "kedge": 1,
        "root": "/r",
        "node": "n",
        "run": "r",
        "token": [1, 1, 1],
        "ops": [],
        **more,
    }


def op(**more: Any) -> dict[str, Any]:
    return ask(ops=[{"key": "k", **more}])


def probe(value: Any) -> dict[str, Any]:
    return op(op="probe", probe=value)


DEEP: Any = "x"
for _ in range(40):
    DEEP = [DEEP]

BAD: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "NaN": b'{"kedge": NaN}',
    "a list": [],
    "nested deep": ask(ops=DEEP),
    "nested without end": b"[" * 200_000,
    "half a surrogate": b'{"kedge": "\\ud800"}',
    "another protocol": ask(kedge=2),
    "an unknown key": ask(more=1),
    "no root": {key: value for key, value in ask().items() if key != "root"},
    "a relative root": ask(root="r"),
    "the host's own root": ask(root="/"),
    "a root with dots": ask(root="/a/../b"),
    "a root with NUL": ask(root="/a\0b"),
    "a token of two": ask(token=[1, 2]),
    "a negative token": ask(token=[1, 2, -1]),
    "a token of truths": ask(token=[True, 1, 1]),
    "a broken token": ask(token=[1.5, 1, 1]),
    "a huge token": ask(token=[1 << 70, 1, 1]),
    "an endless wait": ask(lock_wait=1e12),
    "a negative wait": ask(lock_wait=-1),
    "no list": ask(ops={}),
    "too many operations": ask(ops=[{"key": str(number), "op": "fence"} for number in range(257)]),
    "an unknown operation": op(op="format"),
    "no operation": op(),
    "a key twice": ask(ops=[{"key": "k", "op": "fence"}, {"key": "k", "op": "observe"}]),
    "an empty key": ask(ops=[{"key": "", "op": "fence"}]),
    "a long key": ask(ops=[{"key": "k" * 513, "op": "fence"}]),
    "an unknown parameter": op(op="verify", digest="0" * 64, force=True),
    "a missing parameter": op(op="verify"),
    "a digest with dots": op(op="verify", digest="../" * 21 + "x"),
    "a short digest": op(op="verify", digest="abc"),
    "a generation with a slash": op(op="configure", generation="a/b", service={"argv": ["x"]}),
    "a generation named current": op(op="configure", generation="current", service={"argv": ["x"]}),
    "a file outside": op(op="configure", generation="g", files={"../x": ""}, service={"argv": ["x"]}),
    "a file twice": op(op="configure", generation="g", files={"a": "", "./a": ""}, service={"argv": ["x"]}),
    "a file below a file": op(op="configure", generation="g", files={"a": "", "a/b": ""}, service={"argv": ["x"]}),
    "kedge's own file": op(op="configure", generation="g", files={"service.json": ""}, service={"argv": ["x"]}),
    "no argv": op(op="configure", generation="g", service={"argv": []}),
    "an argv with NUL": op(op="configure", generation="g", service={"argv": ["a\0b"]}),
    "an argv as a text": op(op="configure", generation="g", service={"argv": "rm -rf /"}),
    "a variable with =": op(op="configure", generation="g", service={"argv": ["x"], "env": {"A=B": ""}}),
    "a number as a variable": op(op="configure", generation="g", service={"argv": ["x"], "env": {"A": 1}}),
    "a signal that is none": op(op="stop", signal="BOOM"),
    "a signal as a number": op(op="stop", signal=9),
    "a grace of text": op(op="stop", grace="60s"),
    "an infinite grace": b'{"kedge":1,"root":"/r","node":"n","run":"r","token":[1,1,1],"ops":[{"key":"k","op":"stop","grace":1e999}]}',
    "a snapshot named replaced": op(op="snapshot", id="replaced-1", paths=["data"]),
    "no paths": op(op="snapshot", id="a", paths=[]),
    "an output without end": op(op="run", argv=["x"], output_max=1 << 30),
    "no probe": probe({}),
    "two probes": probe({"tcp": {"host": "a", "port": 1}, "service": {}}),
    "an empty all": probe({"all": []}),
    "an empty any": probe({"any": []}),
    "an unknown probe": probe({"ping": {}}),
    "a file address": probe({"http": {"url": "file:///etc/passwd"}}),
    "an address with a password": probe({"http": {"url": "http://u:p@h/"}}),
    "an address with a line": probe({"http": {"url": "http://h/\r\nX: y"}}),
    "a header with a line": probe({"http": {"url": "http://h/", "headers": {"A": "b\r\nC: d"}}}),
    "an odd method": probe({"http": {"url": "http://h/", "method": "DELETE"}}),
    "an unknown matcher": probe({"http": {"url": "http://h/"}, "expect": {"a": {"near": 1}}}),
    "an empty matcher": probe({"http": {"url": "http://h/"}, "expect": {"a": {}}}),
    "a broken pattern": probe({"http": {"url": "http://h/"}, "expect": {"a": {"matches": "("}}}),
    "an expectation of a connection": probe({"tcp": {"host": "h", "port": 1}, "expect": {"a": 1}}),
    "a port beyond": probe({"tcp": {"host": "h", "port": 65536}}),
    "a condition that is none": op(op="fence", when={"all": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_sentence(host: Any, name: str) -> None:
    asked = BAD[name]
    said = host.raw(asked if isinstance(asked, bytes) else json.dumps(asked).encode())
    assert said.error["type"] == "BadRequest"
    assert said.error["retryable"] is False
    assert "Traceback" not in said.error["message"]
    assert len(said.error["message"]) < 500
    assert said.lines[-1] == {"ev": "end", "ok": False, "observed": {}}


def test_too_much_input_is_refused(host: Any) -> None:
    said = host.raw(b'{"kedge": "' + b"x" * (9 << 20))
    assert said.error["type"] == "BadRequest"


def test_the_order_of_lines_and_their_fields(host: Any) -> None:
    said = host.good(*host.leg(host.release("1"), "g1"))
    events = [(line["ev"], line.get("key")) for line in said.lines if line["ev"] != "progress"]
    keys = ["stage", "stop", "switch", "configure", "start", "healthy"]
    assert events == [*[(ev, key) for key in keys for ev in ("begin", "done")], ("end", None)]
    done = said.done("switch")
    assert set(done) == {"ev", "key", "op", "replayed", "skipped", "result", "before", "after"}
    assert done["before"]["release"] is None
    assert done["after"]["release"]


def test_a_failure_ends_the_session(host: Any) -> None:
    said = host.call(
        {"key": "v", "op": "verify", "digest": "0" * 64}, {"key": "o", "op": "observe"}
    )
    assert [line["ev"] for line in said.lines] == ["begin", "failed", "end"]
    assert set(said.error) == {"type", "message", "retryable", "detail"}


def test_the_journal_is_a_chain(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    text = (host.root / ".kedge/journal").read_bytes()
    count, head = journal.check_chain(text)
    assert count == 6
    said = host.good({"key": "o", "op": "observe"})
    assert said.result("o")["journal"] == [count, head]
    lines = text.splitlines()
    assert json.loads(lines[0])["prev"] == "0" * 64
    assert json.loads(lines[1])["prev"] == hashlib.sha256(lines[0]).hexdigest()
    for number in range(len(lines)):
        changed = [
            line.replace(b"r/1", b"r/2") if at == number else line for at, line in enumerate(lines)
        ]
        if number == len(lines) - 1:
            # Nothing follows the last line: its hash is what whoever keeps the head compares.
            assert journal.check_chain(b"\n".join(changed) + b"\n")[1] != head
        else:
            with pytest.raises(HostError):
                journal.check_chain(b"\n".join(changed) + b"\n")
    with pytest.raises(HostError):
        journal.check_chain(b"\n".join([*lines[:2], *lines[3:]]) + b"\n")


@pytest.mark.parametrize(
    "torn", [b'{"key":"x","prev":"', b"\0" * 100, b'{"key":"x"\n', b"\n", b"\xff\xff\n"]
)
def test_a_torn_last_line_is_no_line(host: Any, torn: bytes) -> None:
    leg = host.leg(host.release("1"), "g1")
    host.good(*leg)
    path = host.root / ".kedge/journal"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    said = host.good(*leg, {"key": "s2", "op": "stop"})
    assert said.done("healthy")["replayed"] is True
    assert journal.check_chain(path.read_bytes())[0] == 7
    assert path.read_bytes().startswith(whole)


def test_a_record_torn_in_the_middle_is_done_again_without_harm(host: Any) -> None:
    leg = host.leg(host.release("1"), "g1")
    host.good(*leg)
    path = host.root / ".kedge/journal"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    said = host.good(*leg)
    assert said.done("start")["replayed"] is True
    assert said.done("healthy")["replayed"] is False
    assert host.until_events(1) == ["start 1"]


def test_a_changed_end_of_the_journal_is_noticed_before_it_is_extended(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    path = host.root / ".kedge/journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], lines[-1]]))
    assert host.call({"key": "x", "op": "stop"}).error["type"] == "HostError"


def test_the_server_has_a_socket_of_its_own_and_ends_with_its_input(
    host: Any, tmp_path: Path
) -> None:
    assert stat.S_IMODE(os.stat(host.served.socket).st_mode) == 0o600
    one = type(host.served)(tmp_path, sys.executable)
    assert one.close() == 0
    assert not os.path.lexists(one.socket)


def test_a_socket_may_have_a_long_path(host: Any, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    one = type(host.served)(deep, sys.executable)
    assert stat.S_ISSOCK(os.stat(one.socket).st_mode)
    assert one.close() == 0


def test_sessions_at_once_and_one_that_is_killed(host: Any) -> None:
    wait = {
        "op": "healthy",
        "probe": {"service": {"running": True}},
        "within": 0.5,
        "service": False,
    }
    roots = [str(host.top / f"node-{number}") for number in range(12)]
    begun = time.monotonic()
    calls = [host.begin({"key": "h", **wait}, root=root, token=[1, 1, 1]) for root in roots]
    assert all(call.said().error["type"] == "NotHealthy" for call in calls)
    assert time.monotonic() - begun < 5
    host.order("healthy.before")
    assert not host.call({"key": "h", **wait}).whole
    host.good({"key": "o", "op": "observe"})


def test_a_session_on_standard_input(host: Any) -> None:
    for python in (
        [sys.executable, "-I", "-S", str(host.served.program)],
        [sys.executable, "-m", "kedge.host"],
    ):
        ran = subprocess.run(
            [*python, "session"],
            input=host.asked([{"key": "o", "op": "observe"}]) + b"\n",
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
            cwd=HERE.parent.parent,
        )
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [line["ev"] for line in lines] == ["begin", "done", "end"]
    ran = subprocess.run(
        [*python, "session"], input=b"{", stdout=subprocess.PIPE, check=False, timeout=30
    )
    assert ran.returncode == 2
    ran = subprocess.run(
        [*python, "journal", str(host.root)], stdout=subprocess.PIPE, check=True, timeout=30
    )
    assert ran.stdout.decode().split() == ["0", "0" * 64]


def test_the_bundle_is_the_same_bytes_each_time() -> None:
    digest, content = named()
    assert content == bundle()
    assert digest == hashlib.sha256(content).hexdigest()
    assert b"/work" not in content


SOURCES = sorted(HERE.glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=[one.name for one in SOURCES])
def test_the_sources_are_python_3_9_of_the_standard_library(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 9))
    standard = sys.stdlib_module_names | {"kedge"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(one.name.split(".")[0] in standard for one in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] in standard
            if (node.module or "").startswith("kedge"):
                assert node.module == "kedge" or (node.module or "").startswith("kedge.host")
    assert len(source.read_text().splitlines()) <= 500


def test_a_session_that_looks_writes_nothing_down_and_does_nothing_else(host: Any) -> None:
    look = {"key": "l", "op": "healthy", "probe": {"command": {"argv": ["true"]}}, "within": 1.0}
    look |= {"for": 0, "interval": 0.1, "service": False}
    host.good({"key": "o", "op": "observe"})
    journal = host.root / ".kedge" / "journal"
    before = journal.read_bytes() if journal.exists() else b""
    for _ in range(2):
        (event,) = [one for one in host.call(look, look=True).lines if one["ev"] == "done"]
        assert event["replayed"] is False
    assert (journal.read_bytes() if journal.exists() else b"") == before
    refused = host.call({"key": "s", "op": "stop", "signal": "TERM", "grace": 1.0}, look=True)
    assert refused.error["type"] == "BadRequest"
    assert "a session that looks does not stop" in refused.error["message"]
