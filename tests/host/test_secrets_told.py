"""What a host tells when daemons and commands say secrets in other words, cut off, or after they were changed."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.host import told
from tests.host.conftest import tar
from tests.host.test_secrets import MARK, configure, holding, kept, leg

QUOTED = 's3cret/<"of"> the \\crown\'s häuser/7261?&=+'


def said_by(host: Any, *argv: str, **more: Any) -> str:
    op = {"key": f"run-{time.monotonic_ns()}", "op": "run", "argv": list(argv), **more}
    said = host.call(op)
    return json.dumps(said.lines, ensure_ascii=False)


def as_go(value: str) -> str:
    """As ``encoding/json`` of Go writes a text, unless told otherwise: in UTF-8, with <, > and & escaped."""
    text = json.dumps({"password": value}, ensure_ascii=False)
    return re.sub("[<>&]", lambda one: f"\\u{ord(one.group()):04x}", text)


WORDS: dict[str, Callable[[str], str]] = {
    "as it is": lambda value: value,
    "as JSON": lambda value: json.dumps({"password": value}),
    "as JSON in UTF-8": lambda value: json.dumps([value], ensure_ascii=False),
    "as JSON of Go": as_go,
    "as JSON for pages, in capitals": lambda value: re.sub(r"[<>&='/]|[^ -~]", lambda one: f"\\u{ord(one.group()):04X}", json.dumps(value, ensure_ascii=False)).replace("\\u002F", "/"),
    "as JSON of PHP": lambda value: json.dumps([value]).replace("/", "\\/"),
    "quoted for a shell": lambda value: f"+ login {shlex.quote(value)}",
    "as a shell shows what it runs": lambda value: "+ login '" + value.replace("'", "'\\''") + "'",
    "as Python shows a text": lambda value: f"got {value!r} here",
    "in a URL": lambda value: f"postgres://app:{quote(value, safe='')}@db/app",
    "in a query": lambda value: f"?p={quote(value, safe='/')}",
    "in lower-case percents": lambda value: re.sub("%..", lambda one: one.group().lower(), quote(value, safe="")),
    "in base64": lambda value: base64.b64encode(value.encode()).decode(),
    "in base64 behind one letter": lambda value: base64.b64encode(f"a:{value}".encode()).decode(),
    "in base64 between others": lambda value: base64.b64encode(f"u:{value}:x".encode()).decode(),
    "in base64 for URLs": lambda value: base64.urlsafe_b64encode(f"bob{value}".encode()).decode(),
    "in hex": lambda value: value.encode().hex(),
    "in upper-case hex": lambda value: value.encode().hex().upper(),
    "in HTML": html.escape,
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_a_secret_in_other_words_is_not_told(host: Any, tmp_path: Path, name: str) -> None:
    host.good(configure(host, kept(tmp_path, QUOTED)))
    said = WORDS[name](QUOTED)
    (tmp_path / "words").write_text(f"before {said} after")
    told_ = json.dumps(
        host.call({"key": "run", "op": "run", "argv": ["cat", str(tmp_path / "words")]}).result("run")
    )  # fmt: skip
    assert "before" in told_
    assert "[secret db]" in told_
    core = said.strip('"[]{}')
    for at in range(0, max(1, len(core) - 16), 4):
        piece = core[at : at + 16]
        if piece not in "before  after got here postgres://app:@db/app password":
            assert piece not in json.loads(told_)["output"], piece


def test_a_secret_that_was_changed_is_not_told_while_the_daemon_still_has_it(
    host: Any, tmp_path: Path
) -> None:
    source = kept(tmp_path)
    made = leg(host, source)
    host.good(*made)
    (tmp_path / "password").write_text("another-s3cret-altogether")
    for shell in ("cat logs/service.log", "cat .kedge/secrets/g1/etc/app.conf"):
        said = said_by(host, "/bin/sh", "-c", shell)
        assert "[secret db]" in said
        assert MARK not in said
    # In the environment alone: no file of it anywhere.
    made = leg(host, source)
    made[2]["files"], made[2]["generation"] = {}, "g2"
    (tmp_path / "password").write_text(MARK)
    for op in made:
        op["key"] += "-2"
    host.good({"key": "stop", "op": "stop", "grace": 5}, *made)
    (tmp_path / "password").write_text("another-s3cret-altogether")
    said = said_by(host, "/bin/sh", "-c", "cat logs/service.log")
    assert "[secret db]" in said
    assert MARK not in said
    # Of a daemon that is dead and whose secret was only in its environment nobody knows what it was.
    host.kill_daemon()
    said = said_by(host, "/bin/sh", "-c", "cat logs/service.log")
    assert "[not told" in said
    assert MARK not in said
    # Once it is started with the new one, that is known, and the old log is not the current one.
    host.good({"key": "stop-3", "op": "stop", "grace": 5}, {"key": "start-3", "op": "start"})
    assert "I was given [secret db]" in said_by(host, "/bin/sh", "-c", "cat logs/service.log")


def test_a_command_that_changes_a_secret_and_says_the_new_one_is_told_without_it(
    host: Any, tmp_path: Path
) -> None:
    host.good(*leg(host, kept(tmp_path)))
    fresh = "fresh-s3cret-8812"
    shell = f"printf {fresh} >{tmp_path}/password; echo rotated to {fresh}"
    said = said_by(host, "/bin/sh", "-c", f"{shell}")
    output = said.partition('"output":')[2]
    assert "rotated to [secret db]" in output
    assert fresh not in output
    assert not {path for path in holding(host, fresh) if path.startswith(".kedge")} - {
        # The intent has the argv that the caller gave, as the caller's plan has.
        path
        for path in holding(host, fresh)
        if path.endswith(".intent")
    }


def probe_of(words: str, **more: Any) -> dict[str, Any]:
    show = {"argv": ["/bin/sh", "-c", f"printf %s '{words}'"], "parse": "json"}
    return {"key": "p", "op": "probe", "probe": {"command": show, **more}}


@pytest.mark.parametrize(
    ("name", "body", "expect"),
    [
        ("under a word of ours", {"verdict": MARK}, {"verdict": "fine"}),
        ("under a word of ours further in", {"a": {"verdict": MARK}}, {"a": "fine"}),
        ("as a name", {"a": {MARK: 1}}, {"a": "fine"}),
        ("in a list", {"a": [{"x": [MARK]}]}, {"a": "fine"}),
    ],
)
def test_a_daemon_that_says_a_secret_anywhere_in_its_json_is_quoted_without_it(
    host: Any, tmp_path: Path, name: str, body: Any, expect: Any
) -> None:
    host.good(*leg(host, kept(tmp_path)))
    op = probe_of(json.dumps(body).replace(MARK, "'\"$(cat config/current/etc/app.conf | sed -n \"s/password = //p\")\"'"), expect=expect)  # fmt: skip
    said = host.call(op)
    assert said.error["type"] == "ProbeFailed", name
    assert said.error["detail"]["verdict"] == "fail"
    assert "[secret db]" in json.dumps(said.error["detail"]["saw"])
    assert MARK not in json.dumps(said.lines)


def test_a_secret_of_digits_is_not_told_as_a_number(host: Any, tmp_path: Path) -> None:
    pin = "7261938455"
    host.good(*leg(host, kept(tmp_path, pin)))
    said = host.call(probe_of(f'{{"pin": {pin}, "more": [{pin}.5]}}', expect={"pin": 1, "more": 1}))
    assert said.error["type"] == "ProbeFailed"
    assert pin not in json.dumps(said.error)


def test_a_probe_that_captures_a_secret_does_not_pass_and_keeps_nothing(
    host: Any, tmp_path: Path
) -> None:
    host.good(*leg(host, kept(tmp_path)))
    show = {"argv": ["/bin/sh", "-c", "cat logs/service.log"], "parse": "text"}
    probe = {"command": show, "capture": {"it": "text"}}
    said = host.call({"key": "p", "op": "probe", "probe": probe})
    assert said.error["type"] == "ProbeFailed"
    assert "holds a secret" in said.error["message"]
    assert ".kedge/captured.json" not in holding(host)


def test_all_folders_with_secrets_are_their_owners_alone(host: Any, tmp_path: Path) -> None:
    host.good(*leg(host, kept(tmp_path)))
    for path in (".kedge", ".kedge/secrets", ".kedge/secrets/g1", ".kedge/secrets/g1/etc"):
        assert (host.root / path).stat().st_mode & 0o777 == 0o700, path


def test_no_copy_of_data_reaches_kedges_own_folder(host: Any, tmp_path: Path) -> None:
    host.good(*leg(host, kept(tmp_path)), {"key": "stop", "op": "stop", "grace": 5})
    for path in (".kedge", ".kedge/secrets", "data/../.kedge", "./.kedge/secrets/g1"):
        said = host.call({"key": path, "op": "snapshot", "id": "s1", "paths": [path]})
        assert said.error["type"] == "BadRequest", path


def _pipe(top: Path) -> dict[str, Any]:
    os.mkfifo(top / "pipe", 0o600)
    return {"file": str(top / "pipe")}


def _link(top: Path, mode: int) -> dict[str, Any]:
    (top / "target").write_text(MARK)
    (top / "target").chmod(mode)
    (top / "link").symlink_to(top / "target")
    return {"file": str(top / "link")}


ODD: dict[str, Callable[[Path], dict[str, Any]]] = {
    "a pipe with a name": _pipe,
    "a link to a file open to everybody": lambda top: _link(top, 0o644),
    "a file that everybody may write": lambda top: _link(top, 0o602),
    "a command that goes on in the background": lambda _: {
        "command": ["/bin/sh", "-c", "sleep 30 & exit 1"], "timeout": 1.0,
    },
    "a command that ignores the end": lambda _: {
        "command": ["/bin/sh", "-c", "trap '' TERM; sleep 30"], "timeout": 0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_source_that_is_none_is_refused_and_never_waited_for(
    host: Any, tmp_path: Path, name: str
) -> None:
    op = {"key": "look", "op": "secrets", "secrets": {"db": ODD[name](tmp_path)}}
    said = host.call(op)
    assert said.error["type"] == "NoSecret"
    assert MARK not in json.dumps(said.lines)


def test_two_names_of_one_value_and_values_in_each_other_are_all_taken_out(
    host: Any, tmp_path: Path
) -> None:
    made = configure(host, kept(tmp_path))
    (tmp_path / "long").write_text(f"{MARK}-and-more-of-it")
    (tmp_path / "long").chmod(0o600)
    made["secrets"] |= {"same": made["secrets"]["db"], "long": {"file": str(tmp_path / "long")}}
    made["files"]["all"] = [{"secret": "same"}, {"secret": "long"}, {"secret": "db"}]
    host.good(made)
    said = said_by(host, "cat", "config/current/all")
    assert MARK not in said
    assert "-and-more" not in said


def test_a_text_of_several_secrets_is_taken_apart_again() -> None:
    parts = ["u=", {"secret": "user"}, " p=", {"secret": "db"}, "\nk=", {"secret": "key"}, "\n"]
    text = "u=app p=one two\nk=-----BEGIN-----\nabcdef\n-----END-----\n"
    assert dict(told.taken_apart(parts, text)) == {
        "user": "app", "db": "one two", "key": "-----BEGIN-----\nabcdef\n-----END-----",
    }  # fmt: skip
    # Where that cannot be told for sure, everything between is held for secret.
    parts = [{"secret": "a"}, {"secret": "b"}, "!"]
    assert "".join(one for _, one in told.taken_apart(parts, "xy!")) == "xy"
    assert list(told.taken_apart(["other"], "text")) == []
    assert list(told.taken_apart(["other", {"secret": "a"}], "text")) == [("a", "text")]


VALUES = st.text(alphabet="abä1", min_size=12, max_size=60)


@given(VALUES, st.integers(1, 40))
def test_of_a_secret_that_is_cut_off_no_half_is_left(value: str, kept_: int) -> None:
    half = value[: max(kept_, len(value) // 2)]
    for text in (half, f"{half}…", f"it was: {half}…", f"x={half}"):
        left = told.without(text, value, "#")
        assert half not in left
    for text in (half, f"{half}, and so on"):
        assert half not in told.without(text, value, "#")
    # The middle alone, and a beginning in the middle of a letter of two bytes.
    middle = value[3 : 3 + max(6, kept_)]
    assert len(middle) < 6 or middle not in told.without(middle, value, "#")
    for cut in range(1, len(value.encode()) - 12):
        end = value.encode()[cut:].decode("utf-8", "replace")
        assert end.strip("\ufffd") not in told.without(end, value, "#")


def test_a_daemons_release_may_be_a_script_that_says_its_environment(host: Any, tmp_path: Path) -> None:  # fmt: skip
    release = host.archive(tar({"bin/daemon": (b"#!/bin/sh\nenv; cat /proc/$$/environ; exit 9\n", 0o755)}))  # fmt: skip
    said = host.call(
        host.stage(release),
        {"key": "switch", "op": "switch", "digest": release.digest},
        configure(host, kept(tmp_path)),
        {"key": "start", "op": "start", "settle": 1.0},
    )
    assert said.error["type"] == "ServiceDied"
    assert MARK not in json.dumps(said.lines)
