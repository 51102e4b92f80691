"""Whatever a daemon, a command or the name of a file says: a session ends with its last line, and a failure is one."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kedge.host import outside, processes
from kedge.model.base import canonical

FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ANY_TEXT = st.text(st.characters(categories=None), max_size=200)
NUMBERS = st.integers(-(10**400), 10**400) | st.floats() | st.integers()
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | ANY_TEXT,
    lambda deeper: st.lists(deeper, max_size=5) | st.dictionaries(ANY_TEXT, deeper, max_size=5),
    max_leaves=40,
)
TROUBLE = [
    rb'{"ok": "\ud800"}',
    rb'{"ok": true, "peer": "\ud800"}',
    b'{"ok": 1e999}',
    b'{"ok": true, "height": 1e999}',
    b'{"ok": true, "height": -1e999}',
    b'{"ok": NaN}',
    b'{"ok": true, "height": Infinity}',
    b'{"ok": true, "height": ' + b"9" * 5000 + b"}",
    b'{"ok": true, "height": ' + b"9" * 90 + b"}",
    b'{"ok": true, "height": 9007199254740993}',
    b'{"ok": false, "ok": true}',
    b'{"ok": true, "deep": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"ok": true, "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[" * 200_000,
    b'{"a":' * 3000,
    b'{"ok": true}\xff',
    b'\xef\xbb\xbf{"ok": true}',
    b'{"ok": true, "name": "\\u0000\\u001b[2J\\u202e\\u200b"}',
    b'{"ok": "' + b"x" * 900_000 + b'"}',
    b"",
    b"\0",
    b'{"ok": tru',
]


# -- by itself -----------------------------------------------------------------------------------------------------


@given(VALUES)
@example("\ud800")
@example(float("nan"))
@example(10**5000)
@example(6.057139502308567e16)
def test_every_value_becomes_one_that_a_record_can_hold(value: Any) -> None:
    found = outside.value(value)
    assert canonical(json.loads(canonical(found))) == canonical(found)
    assert outside.value(found) == found


@given(VALUES)
@example({"a": [{"b": [1]}]})
@example({"a" * 200: 1})
@example([float("inf")])
@example([True, 2**53])
def test_a_value_that_is_found_small_and_clean_is_one_that_cleaning_leaves_alone(
    value: Any,
) -> None:
    if outside.is_small_and_clean(value):
        left = [outside.ITEMS_MAX, outside.TEXTS_MAX]
        assert canonical(outside._value(value, outside.DEPTH_MAX, left)) == canonical(value)


def test_a_value_is_bounded_in_depth_in_number_and_in_length() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert str(outside.value(deep)).count("[") <= outside.DEPTH_MAX + 1
    assert len(outside.value(list(range(10**6)))) == outside.ITEMS_MAX
    long = outside.value(["x" * 10**6] * 50)
    assert sum(map(len, long)) < 2 * outside.TEXTS_MAX
    assert len(outside.text("x" * 10**7)) <= outside.TEXT_MAX + 1


@given(st.binary(max_size=255).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
@example(b"\xff\\xff\\\\")
@example(b"\xed\xa0\x80")
def test_a_name_comes_back_byte_for_byte(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    written = outside.name(name)
    written.encode("utf-8")
    assert outside.path_of(json.loads(canonical(written))) == name


@given(VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=300))
@settings(max_examples=200)
def test_an_answer_is_data_that_can_be_compared_or_it_is_none(raw: bytes) -> None:
    try:
        found = outside.parsed(raw)
    except ValueError:
        return
    assert outside.value(json.loads(json.dumps(found))) is not None or found is None
    for one in leaves(found):
        assert not isinstance(one, float) or math.isfinite(one)
        assert not isinstance(one, str) or one.encode("utf-8") is not None


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    for one in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    ):
        yield from leaves(one)
    if not isinstance(value, list | dict):
        yield value


@pytest.mark.parametrize("raw", TROUBLE, ids=lambda raw: repr(raw[:30]))
def test_of_what_is_no_clear_answer_nothing_passes(raw: bytes) -> None:
    try:
        found = outside.parsed(raw)
    except ValueError:
        return
    fine = (b"peer", b"9" * 90, b"9007199254740993", b"u202e")
    assert found.get("ok") is not True or any(part in raw for part in fine)


# -- what a daemon answers ---------------------------------------------------------------------------------------


class Answering:
    """A daemon's health page: what it says is what the test wants it to say."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.say: Callable[[socket.socket], None] = lambda _: None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def body(self, raw: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        self.say = lambda one: one.sendall(head + raw)

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            with one:
                one.recv(4096)
                try:
                    self.say(one)
                except OSError:
                    continue

    def probe(self, **more: Any) -> dict[str, Any]:
        asked = {"url": f"http://127.0.0.1:{self.port}/health", "timeout": 0.5}
        return {"http": asked, "expect": {"ok": True}, **more}


@pytest.fixture
def answering() -> Iterator[Answering]:
    one = Answering()
    yield one
    one.listener.close()


def healthy(probe: dict[str, Any], number: int = 0, within: float = 0) -> dict[str, Any]:
    op = {"key": f"h{number}", "op": "healthy", "probe": probe, "service": False}
    return {**op, "within": within, "interval": 0.05}


def ended(host: Any, op: dict[str, Any], most: float = 5.0) -> Any:
    """A session that ends with its last line in time, of which everything can be written down."""
    begun = time.monotonic()
    said = host.call(op)
    assert time.monotonic() - begun < most
    assert said.whole, said.lines
    for line in said.lines:
        canonical(line)
    return said


def readable(value: Any) -> bool:
    """Whether an answer is clearly good, by a reading of our own."""

    def refuse(what: str) -> Any:
        raise ValueError(what)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        found = json.loads(value.decode(), parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("ok") is True


@pytest.mark.parametrize("raw", TROUBLE, ids=lambda raw: repr(raw[:30]))
def test_an_answer_never_ends_a_session_without_its_last_line(
    host: Any, answering: Answering, raw: bytes
) -> None:
    answering.body(raw)
    host.good()
    said = ended(
        host,
        healthy(
            answering.probe(capture={"height": "height"}) if b"height" in raw else answering.probe()
        ),
    )
    if not said.ok:
        assert said.error["type"] == "NotHealthy"
    assert not said.ok or readable(raw)
    # The record of it can be read again, and the node goes on.
    assert host.good({"key": "after", "op": "observe"}).result("after")["journal"]


@FEW
@given(
    st.lists(
        VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["inside", "whole"]),
)
def test_whatever_is_answered_a_verdict_comes(
    host: Any, answering: Answering, answers: list[bytes], where: str
) -> None:
    for raw in answers:
        answering.body(b'{"ok": ' + raw + b"}" if where == "inside" else raw)
        said = ended(host, {**healthy(answering.probe()), "key": f"k{time.monotonic_ns()}"})
        assert said.ok == readable(b'{"ok": ' + raw + b"}" if where == "inside" else raw)
        assert said.ok or said.error["type"] == "NotHealthy"


def dripped(one: socket.socket) -> None:
    """A body of which there is always a little more, for longer than anybody waits."""
    one.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        one.sendall(b" ")
        time.sleep(0.0005)


def announced(one: socket.socket) -> None:
    while True:
        one.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def a_little(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        one.sendall(b"1\r\n \r\n" * 1000)


def headed(one: socket.socket) -> None:
    one.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        one.sendall(b"X: y\r\n" * 100)
        time.sleep(0.001)


def numbered(one: socket.socket) -> None:
    one.sendall("HTTP/1.1 2²² OK\r\nContent-Length: ²\r\n\r\n{}".encode("latin-1"))


@pytest.mark.parametrize(
    "how", [dripped, announced, a_little, headed, numbered], ids=lambda how: how.__name__
)
def test_an_answer_that_never_ends_takes_no_longer_than_its_time_out(
    host: Any, answering: Answering, how: Callable[[socket.socket], None]
) -> None:
    answering.say = how
    host.good()
    assert ended(host, healthy(answering.probe()), most=4.0).error["type"] == "NotHealthy"


def test_a_pattern_that_a_text_can_keep_busy_for_ever_is_given_up(
    host: Any, answering: Answering
) -> None:
    answering.body(json.dumps({"ok": "a" * 40 + "!"}).encode())
    host.good()
    probe = answering.probe(expect={"ok": {"matches": "^(a+)+$"}})
    said = ended(host, healthy(probe), most=6.0)
    assert "too long" in said.error["message"]


# -- what a command prints ----------------------------------------------------------------------------------------


@FEW
@given(st.binary(max_size=500))
@example(b"\xff\xfe\x00\x1b[2J" * 100)
@example("\u202e\u200b\U000e0041 \u2028".encode())
def test_whatever_a_command_prints_is_told_and_recorded(
    host: Any, tmp_path: Path, raw: bytes
) -> None:
    host.run_as_us()
    (tmp_path / "out").write_bytes(raw)
    key = f"k{time.monotonic_ns()}"
    said = ended(host, {"key": key, "op": "run", "argv": ["cat", str(tmp_path / "out")]})
    assert said.ok
    failing = ["sh", "-c", f"cat {tmp_path}/out >&2; exit 3"]
    said = ended(host, {"key": f"{key}-f", "op": "run", "argv": failing})
    assert said.error["type"] == "CommandFailed"
    probe = {
        "command": {"argv": ["cat", str(tmp_path / "out")], "parse": "json"},
        "expect": {"ok": True},
    }
    said = ended(host, {"key": f"{key}-p", "op": "probe", "probe": probe})
    assert said.error["type"] == "ProbeFailed"


def test_what_a_command_left_running_does_not_keep_it_going(host: Any) -> None:
    op = {"key": "c", "op": "run", "argv": ["sh", "-c", "yes & echo $!"], "output_max": 1 << 20}
    said = ended(host, {**op, "timeout": 30})
    subprocess.run(["kill", said.result("c")["output"].split()[0]], check=False)
    assert said.ok


# -- names of files --------------------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=60).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b"..")
)


def tree(top: Path) -> dict[bytes, tuple[int, bytes]]:
    """Every name below a folder, as bytes, with its mode and its content or where it leads."""
    found = {}
    for folder, folders, names in os.walk(bytes(top)):
        for name in folders + names:
            path = os.path.join(folder, name)
            told = os.lstat(path)
            content = b""
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                content = Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, bytes(top))] = (told.st_mode, content)
    return found


@FEW
@given(st.sets(NAMES, min_size=1, max_size=6), NAMES)
@example({b"\xff", b"\\xff", b"a\nb", b"\xed\xa0\x80", b"\\"}, b"\xfe")
def test_names_survive_a_snapshot_and_a_restore_byte_for_byte(
    host: Any, names: set[bytes], target: bytes
) -> None:
    key = f"k{time.monotonic_ns()}"
    host.good()
    data = bytes(host.root / "data")
    subprocess.run(["rm", "-rf", data], check=True)
    os.mkdir(data)
    for number, name in enumerate(sorted(names)):
        path = os.path.join(data, name)
        if number % 3 == 0:
            os.mkdir(path)
            Path(os.fsdecode(os.path.join(path, name))).write_bytes(name)
        elif number % 3 == 1:
            Path(os.fsdecode(path)).write_bytes(name)
        else:
            os.symlink(target, path)
    before = tree(host.root / "data")
    said = ended(host, {"key": key, "op": "snapshot", "id": key, "paths": ["data"]})
    assert said.ok, said.lines
    for name in names:
        os.rename(os.path.join(data, name), os.path.join(data, name + b"-"))
    said = ended(host, {"key": f"{key}-r", "op": "restore", "id": key})
    assert said.ok, said.lines
    assert tree(host.root / "data") == before


def test_the_newest_of_a_name_that_is_not_utf8_stays(host: Any) -> None:
    host.good()
    path = host.root / "data" / os.fsdecode(b"state-\xff")
    path.write_text("older")
    host.good({"key": "s", "op": "snapshot", "id": "a", "paths": ["data"]})
    path.write_text("newest")
    host.good({"key": "r", "op": "restore", "id": "a", "keep": ["state-*"]})
    assert path.read_text() == "newest"


def test_a_name_that_is_not_utf8_is_said_where_it_is_in_the_way(host: Any) -> None:
    release = host.release("1")
    host.good(host.stage(release))
    folder = host.root / "releases" / release.digest
    folder.chmod(0o755)
    (folder / os.fsdecode(b"\xff\n- run this")).write_text("planted")
    said = ended(host, {"key": "v", "op": "verify", "digest": release.digest})
    assert said.error["type"] == "DigestMismatch"
    assert said.error["detail"]["path"] == "\\xff\n- run this"


def test_what_somebody_put_among_kedges_own_is_not_told_as_kedges(host: Any) -> None:
    host.good()
    for folder in ("releases", "config", "snapshots"):
        for name in (b"\xff", b"a\nb", b"x" * 200, "\u202e".encode()):
            os.mkdir(os.path.join(bytes(host.root / folder), name))
    (host.root / "config/current").symlink_to(os.fsdecode(b"\xff"))
    observed = ended(host, {"key": "o", "op": "observe"}).observed
    assert (observed["releases"], observed["generations"], observed["snapshots"]) == ([], [], [])
    assert observed["generation"] is None


# -- files of kedge that somebody changed, and the system's own -------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"\xff", b"{", b'{"token": "x"}', b"1e999", b"[]", b'{"starts": "x"}'],
)
@pytest.mark.parametrize(
    "name",
    ["service.json", "begun.json", "stopping.json", "captured.json", "restoring.json", "op.lock"],
)
def test_a_file_of_kedges_that_somebody_changed_ends_in_a_sentence_at_worst(
    host: Any, name: str, content: bytes
) -> None:
    release = host.release("1")
    host.good(host.stage(release))
    (host.root / ".kedge" / name).write_bytes(content)
    for op in (
        {"key": "o", "op": "observe"},
        {"key": "x", "op": "stop"},
        {"key": "p", "op": "prune", "releases": [], "snapshots": []},
    ):
        ended(host, op)


@pytest.mark.parametrize("name", [b") Z 1 1 1", b"(((", b"a b) R", b"\xff\n) X", b")"])
def test_a_process_is_known_whatever_it_calls_itself(name: bytes) -> None:
    code = "import sys,time;open('/proc/self/comm','wb').write(bytes.fromhex(sys.argv[1]));print(flush=True);time.sleep(60)"
    one = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, name.hex()], stdout=subprocess.PIPE
    )
    try:
        assert one.stdout is not None
        one.stdout.readline()
        found = processes.of_pid(one.pid)
        assert found is not None
        assert found.alive()
        assert 0 <= found.age() < 60
    finally:
        one.kill()
        one.communicate()


def test_where_names_would_not_be_utf8_the_program_says_so(host: Any) -> None:
    call = [sys.executable, "-I", "-S", "-X", "utf8=0", str(host.served.program), "session"]
    done = subprocess.run(
        call, env={"LC_ALL": "POSIX"}, input=b"", capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"-X utf8" in done.stderr


def test_a_mistake_of_the_program_itself_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedge.host import request, session

    def broken(_raw: bytes) -> Any:
        raise KeyError("\ud800")

    monkeypatch.setattr(request, "parse", broken)
    reading, theirs = os.pipe()
    ours, writing = os.pipe()
    os.write(theirs, b"{}\n")
    assert session.converse(session.Wire(reading, writing)) == 1
    lines = [json.loads(line) for line in os.read(ours, 1 << 16).splitlines()]
    assert [line["ev"] for line in lines] == ["failed", "end"]
    assert lines[0]["error"]["type"] == "HostError"
    assert "KeyError" in lines[0]["error"]["message"]
    for fd in (reading, theirs, ours, writing):
        os.close(fd)
