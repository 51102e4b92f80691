"""Secrets on a host: read there, in the daemon's files and environment, and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.host import told as host_told

MARK = "s3cret-of-the-crown-7261"
TALKER = """#!/bin/sh
echo "start $$ {version}" >> "$LEDGER"
echo "I was given $PASSWORD and {{nothing}} else"
[ -n "$DIES" ] && exit 3
trap 'echo "term $$ {version}" >> "$LEDGER"; kill $!; exit 0' TERM INT
while :; do sleep 60 & wait $!; done
"""


def kept(tmp_path: Path, value: str = MARK, mode: int = 0o600) -> dict[str, Any]:
    path = tmp_path / "password"
    path.write_text(value)
    path.chmod(mode)
    return {"file": str(path)}


def configure(host: Any, source: dict[str, Any], generation: str = "g1", **env: Any) -> dict[str, Any]:  # fmt: skip
    made: dict[str, Any] = host.configure(generation)
    made["files"]["etc/app.conf"] = ["user = app\npassword = ", {"secret": "db"}, "\n"]
    made["service"]["env"] |= {"PASSWORD": [{"secret": "db"}], **env}
    made["secrets"] = {"db": source}
    return made


def leg(host: Any, source: dict[str, Any], **env: Any) -> list[dict[str, Any]]:
    from tests.host.conftest import tar

    text = TALKER.format(version="1").encode()
    release = host.archive(tar({"bin/daemon": (text, 0o755)}))
    return [
        host.stage(release),
        {"key": "switch", "op": "switch", "digest": release.digest},
        configure(host, source, **env),
        {"key": "start", "op": "start", "settle": 0.3},
    ]


def everything(host: Any) -> dict[str, bytes]:
    """Every file of a node's root by its path in it, links left out."""
    found = {}
    for top, _, names in os.walk(host.root):
        for name in names:
            path = Path(top) / name
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(host.root))] = path.read_bytes()
    return found


def holding(host: Any, mark: str = MARK) -> set[str]:
    return {path for path, content in everything(host).items() if mark.encode() in content}


def test_a_secret_is_in_its_file_and_in_the_daemons_environment_and_nowhere_else(
    host: Any, tmp_path: Path
) -> None:
    said = host.good(*leg(host, kept(tmp_path, MARK + "\n")))
    file = host.root / "config/current/etc/app.conf"
    assert file.read_text() == f"user = app\npassword = {MARK}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"PASSWORD={MARK}".encode() in Path(f"/proc/{host.pid()}/environ").read_bytes()
    assert MARK.encode() not in Path(f"/proc/{host.pid()}/cmdline").read_bytes()
    assert holding(host) == {".kedge/secrets/g1/etc/app.conf", "logs/service.log"}, (
        "the daemon of this test writes it into its own log; nobody else does"
    )
    assert MARK not in json.dumps(said.lines)


def test_the_search_of_these_tests_finds_what_is_in_the_open(host: Any, tmp_path: Path) -> None:
    made = leg(host, kept(tmp_path))
    made[2]["service"]["env"]["OPEN"] = MARK
    host.good(*made)
    assert "config/g1/service.json" in holding(host)


def test_a_daemon_that_dies_with_a_secret_on_its_lips_is_quoted_without_it(
    host: Any, tmp_path: Path
) -> None:
    said = host.call(*leg(host, kept(tmp_path), DIES="1"))
    assert said.error["type"] == "ServiceDied"
    assert "I was given [secret db]" in said.error["detail"]["log"]
    assert MARK not in json.dumps(said.lines)


def test_where_the_secret_cannot_be_read_any_more_nothing_the_daemon_said_is_told(
    host: Any, tmp_path: Path
) -> None:
    source = kept(tmp_path)
    host.good(*leg(host, source))
    (tmp_path / "password").unlink()
    say = {"argv": ["/bin/sh", "-c", "cat logs/service.log"], "cwd": "."}
    said = host.good({"key": "run", "op": "run", **say})
    assert said.result("run")["output"].startswith("[not told")
    assert holding(host) == {".kedge/secrets/g1/etc/app.conf", "logs/service.log"}


@pytest.mark.parametrize(
    ("name", "shell"),
    [
        ("whole", "cat logs/service.log"),
        (
            "cut off at its end",
            "head -c 20 .kedge/secrets/g1/etc/app.conf; cut -c-29 logs/service.log",
        ),
        ("of which the beginning is gone", "tail -c 11 .kedge/secrets/g1/etc/app.conf"),
    ],
)
def test_what_a_command_prints_is_looked_through(
    host: Any, tmp_path: Path, name: str, shell: str
) -> None:
    host.good(*leg(host, kept(tmp_path)))
    op = {"key": name, "op": "run", "argv": ["/bin/sh", "-c", shell]}
    said = host.good(op)
    assert "[secret db]" in said.result(name)["output"]
    for part in (MARK, MARK[:12], MARK[-9:]):
        assert part not in json.dumps(said.lines)
        assert not {path for path in holding(host, part) if path.startswith(".kedge/runs")}
        assert ".kedge/journal" not in holding(host, part)


def test_what_a_probe_sees_is_looked_through(host: Any, tmp_path: Path) -> None:
    host.good(*leg(host, kept(tmp_path)))
    show = {"argv": ["/bin/sh", "-c", "cat logs/service.log"], "parse": "text"}
    probe = {"command": show, "expect": {"text": "otherwise"}}
    said = host.call({"key": "p", "op": "probe", "probe": probe})
    assert said.error["type"] == "ProbeFailed"
    assert said.error["detail"]["verdict"] == "fail"
    assert MARK not in json.dumps(said.lines)
    said = host.call({"key": "h", "op": "healthy", "probe": probe, "within": 1.5, "service": False})
    assert said.error["type"] == "NotHealthy"
    assert any(line["ev"] == "progress" for line in said.lines)
    assert MARK not in json.dumps(said.lines)


def test_a_changed_secret_is_taken_up_at_the_next_configure_and_the_next_start(
    host: Any, tmp_path: Path
) -> None:
    source = kept(tmp_path)
    made = leg(host, source)
    host.good(*made)
    file = host.root / "config/current/etc/app.conf"
    (tmp_path / "password").write_text("another-s3cret")
    assert MARK in file.read_text()
    said = host.good({**made[2], "key": "again"})
    assert said.result("again") == {"from": "g1", "to": "g1"}
    assert "another-s3cret" in file.read_text()
    (tmp_path / "password").write_text("a-third-s3cret")
    host.good({"key": "stop", "op": "stop", "grace": 5}, {"key": "start-2", "op": "start"})
    assert "a-third-s3cret" in file.read_text()
    assert b"PASSWORD=a-third-s3cret" in Path(f"/proc/{host.pid()}/environ").read_bytes()


def test_a_start_after_a_reboot_reads_the_secret_anew(host: Any, tmp_path: Path) -> None:
    host.good(*leg(host, kept(tmp_path)))
    host.kill_daemon()
    (tmp_path / "password").unlink()
    said = host.call({"key": "ensure", "op": "ensure"})
    assert said.error["type"] == "NoSecret"
    assert said.error["retryable"] is True
    kept(tmp_path, "after-the-reboot")
    assert host.good({"key": "ensure", "op": "ensure"}).result("ensure")["started"] is True
    assert b"PASSWORD=after-the-reboot" in Path(f"/proc/{host.pid()}/environ").read_bytes()


def test_a_missing_secret_stops_a_leg_before_the_daemon_is_stopped(
    host: Any, tmp_path: Path
) -> None:
    host.good(*host.leg(host.release("0"), "g0", "a/"))
    missing = {"file": str(tmp_path / "nowhere")}
    new = host.release("2")
    said = host.call(
        host.stage(new, "b/stage", secrets={"db": missing}),
        {"key": "b/stop", "op": "stop", "grace": 5},
    )
    assert said.error["type"] == "NoSecret"
    assert "the secret db cannot be had" in said.error["message"]
    assert said.observed["running"] is True
    assert new.digest not in said.observed["releases"]
    said = host.call({"key": "look", "op": "secrets", "secrets": {"db": missing}})
    assert said.error["type"] == "NoSecret"
    kept(tmp_path)
    (tmp_path / "password").rename(tmp_path / "nowhere")
    assert host.good({"key": "look", "op": "secrets", "secrets": {"db": missing}}).ok


def test_files_with_secrets_of_other_generations_are_forgotten_at_a_start(
    host: Any, tmp_path: Path
) -> None:
    source = kept(tmp_path)
    host.good(*leg(host, source))
    host.good(
        configure(host, source, "g2") | {"key": "c2"},
        {"key": "stop", "op": "stop", "grace": 5},
        {"key": "start-2", "op": "start"},
    )
    assert {path for path in holding(host) if path.startswith(".kedge")} == {
        ".kedge/secrets/g2/etc/app.conf"
    }


def test_a_copy_of_the_configuration_has_no_secret(host: Any, tmp_path: Path) -> None:
    source = kept(tmp_path)
    host.good(*leg(host, source), {"key": "stop", "op": "stop", "grace": 5})
    host.good({"key": "snap", "op": "snapshot", "id": "s1", "paths": ["config"]})
    assert not {path for path in holding(host) if path.startswith("snapshots")}
    assert (host.root / "snapshots/s1/files/config/g1/etc/app.conf").is_symlink()


SOURCES = {
    "a file that is not there": ({"file": "TOP/nowhere"}, "No such file"),
    "a folder": ({"file": "TOP"}, "is not a file"),
    "a device": ({"file": "/dev/zero"}, "is not a file"),
    "a file open to everybody": ({"file": "TOP/open"}, "chmod o-rwx"),
    "an empty file": ({"file": "TOP/empty"}, "is empty"),
    "a file with nothing but a newline": ({"file": "TOP/newline"}, "is empty"),
    "a file that is no text": ({"file": "TOP/binary"}, "not UTF-8"),
    "a file with a NUL": ({"file": "TOP/nul"}, "NUL"),
    "a file that is too large": ({"file": "TOP/large"}, "more than"),
    "a variable that is not there": ({"env": "NO_SUCH_VARIABLE"}, "no variable"),
    "a command that is not there": ({"command": ["/nowhere/vault"]}, "No such file"),
    "a command that fails": ({"command": ["/bin/sh", "-c", f"echo {MARK}; exit 3"]}, "ended with 3"),
    "a command that hangs": ({"command": ["sleep", "60"], "timeout": 0.3}, "still ran after 0.3 s"),
    "a command that says nothing": ({"command": ["true"]}, "is empty"),
    "a command that talks for ever": ({"command": ["yes", MARK], "timeout": 0.3}, ""),
    "a command that says it on its error stream": (
        {"command": ["/bin/sh", "-c", f"echo {MARK} >&2; exit 1"]}, "ended with 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
def test_a_secret_that_cannot_be_had_is_said_with_its_place_and_never_its_value(
    host: Any, tmp_path: Path, name: str
) -> None:
    for file, content in {
        "open": MARK.encode(), "empty": b"", "newline": b"\n", "binary": MARK.encode() + b"\xff",
        "nul": MARK.encode() + b"\0x", "large": MARK.encode() * 4000,
    }.items():  # fmt: skip
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o644 if file == "open" else 0o600)
    source, why = SOURCES[name]
    source = json.loads(json.dumps(source).replace("TOP", str(tmp_path)))
    said = host.call({"key": "look", "op": "secrets", "secrets": {"db": source}})
    assert said.error["type"] == "NoSecret"
    assert "the secret db cannot be had" in said.error["message"]
    assert why in said.error["message"]
    rest = [*said.lines[:-2], said.error["detail"]]
    assert MARK not in json.dumps(rest)
    assert MARK not in said.error["message"]


def test_a_command_and_a_variable_give_secrets_too(host: Any) -> None:
    op = configure(host, {"command": ["/bin/echo", MARK]})
    op["secrets"]["home"] = {"env": "HOME"}
    op["files"]["home"] = [{"secret": "home"}]
    host.good(op)
    assert (host.root / "config/current/etc/app.conf").read_text().endswith(f"= {MARK}\n")
    assert (host.root / "config/current/home").read_text() == os.environ["HOME"]


REQUESTS: dict[str, dict[str, Any]] = {
    "a secret that nobody says where to find": {"secrets": {}},
    "a secret of no kind": {"secrets": {"db": {}}},
    "a secret of two kinds": {"secrets": {"db": {"file": "/x", "env": "X"}}},
    "a relative file": {"secrets": {"db": {"file": "x"}}},
    "a name that leads elsewhere": {"secrets": {"../db": {"file": "/x"}}},
    "a variable of kedge's": {"secrets": {"db": {"env": "KEDGE_CODEC_KEYS"}}},
    "a variable of Temporal's": {"secrets": {"db": {"env": "TEMPORAL_API_KEY"}}},
    "the agent's socket": {"secrets": {"db": {"env": "SSH_AUTH_SOCK"}}},
    "no command": {"secrets": {"db": {"command": []}}},
    "a command as shell text": {"secrets": {"db": {"command": "cat /x"}}},
    "a command that may take for ever": {"secrets": {"db": {"command": ["x"], "timeout": 60}}},
    "a secret on the command line": {"service": {"argv": ["x", [{"secret": "db"}]]}},
    "a secret in the folder's name": {"service": {"argv": ["x"], "cwd": [{"secret": "db"}]}},
    "parts of another kind": {"files": {"x": [{"file": "/etc/shadow"}]}},
    "kedge's own file": {"files": {"secrets.json": "x"}},
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_what_is_not_of_the_protocol_is_refused_before_anything_is_done(
    host: Any, tmp_path: Path, name: str
) -> None:
    op = {**configure(host, kept(tmp_path)), **REQUESTS[name]}
    said = host.call(op)
    assert said.error["type"] == "BadRequest"
    assert not (host.root / "config").exists()


@pytest.mark.parametrize("point", ["configure.before-rename", "configure.between-renames", "configure.after-rename", "start.before-record"])  # fmt: skip
def test_killed_at_any_instant_a_leg_goes_on_and_leaves_the_secret_in_one_place(
    host: Any, tmp_path: Path, point: str
) -> None:
    made = leg(host, kept(tmp_path))
    host.order(point)
    assert not host.call(*made).ok
    host.good(*made)
    assert holding(host) == {".kedge/secrets/g1/etc/app.conf", "logs/service.log"}
    assert (host.root / "config/current/etc/app.conf").read_text().endswith(f"= {MARK}\n")


LETTERS = st.text(alphabet="ab1 ", max_size=20)
VALUES = st.text(alphabet="ab1", min_size=host_told.SHORTEST, max_size=40)


@given(LETTERS, VALUES, LETTERS, st.integers(0, 40), st.integers(0, 40))
def test_no_part_that_could_be_used_is_left_of_a_secret(
    before: str, value: str, after: str, begin: int, end: int
) -> None:
    whole = host_told.without(before + value + after, value, "#")
    assert value not in whole
    known = value[: host_told.BEGINNING]
    assert known not in whole
    cut = host_told.without(before + value[: max(end, host_told.BEGINNING)], value, "#")
    assert known not in cut
    rest = value[min(begin, len(value) - host_told.SHORTEST) :]
    assert rest not in host_told.without(rest, value, "#")


@given(st.text(alphabet="xyz \n", max_size=60), VALUES)
def test_a_text_without_the_secret_stays_as_it_is(text: str, value: str) -> None:
    assert host_told.without(text, value, "#") == text


def test_a_megabyte_of_secrets_is_looked_through_at_once() -> None:
    # A quadratic way would take hours, and run into the test's time-out.
    for value, text in (
        ("0123456789abcdef", "0123456789abcdef" * 65_536),
        ("a" * 65_536, "a" * (1 << 20)),
        ("0123456789ab" + "x" * 60_000, "0123456789ab" * 87_000),
    ):
        assert value[:12] not in host_told.without(text, value, "#")
