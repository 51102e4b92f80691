"""A daemon runs as its own user: what it can read, write and take along, seen from inside the daemon itself.

The daemons of these tests really run as other users, so the tests want to be root; they say so where they are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host.bundle import bundle
from tests.host.conftest import Host, Served, tar

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can start a daemon as another user"
)
NOBODY = pwd.getpwnam("nobody")

# Looks at the files named in its environment and writes down what it sees, then waits.
LOOKER = """#!/bin/sh
umask 077
open=$(ls -l /proc/$$/fd | sed -n 's/.*-> //p' | tr '\\n' ' ')
{
  echo "ids $(id -u) $(id -g) $(id -G | tr ' ' ',')"
  grep -E '^(NoNewPrivs|CapEff|CapPrm|CapInh):' /proc/self/status | tr '\\t' ' '
  echo "open $open"
  for path in $LOOK; do
    if cat "$path" >/dev/null 2>&1; then echo "reads $path"; else echo "refused $path"; fi
  done
  for path in $LOOK; do
    if (: >>"$path") 2>/dev/null; then echo "writes $path"; fi
  done
  env | sed 's/=.*//' | sed 's/^/env /'
} > data/seen.new 2>/dev/null
mv data/seen.new data/seen
while :; do sleep 1; done
"""


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that other users can pass through; those of pytest are closed to them."""
    made = Path(tempfile.mkdtemp(prefix="kedge-users-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def host(served: Served, open_path: Path) -> Iterator[Host]:
    one = Host(served, open_path)
    yield one
    kill_all(one)


@pytest.fixture
def closed_host(served: Served, open_path: Path) -> Iterator[Host]:
    top = open_path / "closed"
    top.mkdir(mode=0o700)
    one = Host(served, top)
    one.name = "closed"
    yield one
    kill_all(one)


def kill_all(host: Host) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((host.root / ".kedge/service.json").read_text())
        os.killpg(told["pid"], signal.SIGKILL)


def leg(host: Host, look: list[Path], user: Any = None, prefix: str = "", **more: Any) -> list[Any]:
    made = host.archive(tar({"bin/daemon": (LOOKER.encode(), 0o755)}))
    ops = host.leg(made, f"g-{prefix or 'one'}".rstrip("/"), prefix)[:-1]
    service = {"argv": ["bin/daemon"], "env": {"LOOK": " ".join(map(str, look))}, "user": user}
    ops[3].update({"service": service, **more})
    return ops


def seen(host: Host, soon: Callable[..., None]) -> list[str]:
    path = host.root / "data/seen"
    soon(path.exists)
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def own_uid(host: Host) -> int:
    found: int = json.loads((host.root / ".kedge/user.json").read_text())["uid"]
    return found


@root_only
def test_a_daemon_of_root_gets_a_user_of_its_nodes_own_and_nothing_else(
    host: Host, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, []))
    told = seen(host, soon)
    uid = own_uid(host)
    assert f"ids {uid} {uid} {uid}" in told
    assert uid >= 61_184
    for line in ("NoNewPrivs: 1", "CapEff: 0000000000000000", "CapPrm: 0000000000000000"):
        assert line in told
    (open_ones,) = [line.split()[1:] for line in told if line.startswith("open ")]
    log, script = host.root / "logs/service.log", host.root.resolve() / "releases"
    left = [
        one for one in open_ones if one not in ("/dev/null", str(log)) and str(script) not in one
    ]
    assert len(left) <= 1, "the pipe by which the shell itself reads this list"
    assert all(one.startswith("pipe:") for one in left)
    names = {line.removeprefix("env ") for line in told if line.startswith("env ")}
    assert names <= {
        "PATH", "LANG", "PYTHONDONTWRITEBYTECODE", "LOOK", "KEDGE_DAEMON", "PWD", "OLDPWD", "SHLVL", "_",
    }, "nothing of the worker's environment, not even its HOME"  # fmt: skip


@root_only
def test_a_named_user_has_its_groups_and_its_home(host: Host, soon: Callable[..., None]) -> None:
    user = {"name": f"nobody:{NOBODY.pw_gid}", "groups": ["0", "7"]}
    host.good(*leg(host, [], user))
    told = seen(host, soon)
    (ids,) = [line.split() for line in told if line.startswith("ids ")]
    assert ids[1:3] == [str(NOBODY.pw_uid), str(NOBODY.pw_gid)]
    assert set(ids[3].split(",")) == {str(NOBODY.pw_gid), "0", "7"}
    assert "env HOME" in told


@root_only
def test_what_is_written_as_root_is_root(host: Host, soon: Callable[..., None]) -> None:
    host.good(*leg(host, [], {"name": "root"}))
    assert "ids 0 0 0" in seen(host, soon)


def secret_of(host: Host) -> Path:
    source = host.top / "password"
    source.write_text("s3cret-of-this-node\n")
    source.chmod(0o600)
    return source


def with_secret(host: Host, look: list[Path], prefix: str = "", user: Any = None) -> list[Any]:
    files = {"app.conf": "plain", "etc/db.conf": ["password=", {"secret": "db"}]}
    secrets = {"db": {"file": str(secret_of(host))}}
    return leg(host, look, user, prefix, files=files, secrets=secrets)


@root_only
@pytest.mark.parametrize("user", [None, {"name": "nobody"}], ids=["its own", "nobody"])
def test_a_daemon_reads_its_files_and_secrets_and_no_key_and_nothing_of_another_node(
    host: Host, served: Served, open_path: Path, soon: Callable[..., None], user: Any
) -> None:
    # What lies on a worker's machine: the home with its keys, a person's key, another node with its secret.
    home = open_path / "home/trust"
    home.mkdir(parents=True, mode=0o755)
    foreign = []
    for name in ("checkpoint_key", "codec.json", "id_ed25519"):
        (home / name).write_text("key")
        (home / name).chmod(0o600)
        foreign.append(home / name)
    other = Host(served, open_path / "other")
    other.top.mkdir(mode=0o711)
    other.name = "other"
    try:
        other.good(*with_secret(other, []))
        soon((other.root / "data/seen").exists)
        config = other.root / "config/g-one"
        foreign += [
            config / "app.conf", config / "etc/db.conf", other.root / ".kedge/secrets/g-one/etc/db.conf",
            config / "service.json", config / "secrets.json", other.root / "data/seen",
            other.root / "logs/service.log", other.root / ".kedge/journal", other.root / ".kedge/fence",
            other.top / "password", host.top / "password",
        ]  # fmt: skip
        own = host.root / "config/current"
        mine = [own / "app.conf", own / "etc/db.conf"]
        kedges = [
            host.root / ".kedge/journal",
            host.root / ".kedge/service.json",
            host.root / ".kedge/fence",
        ]
        environments = [
            Path(f"/proc/{pid}/environ") for pid in (os.getpid(), served.process.pid, other.pid())
        ]
        host.good(*with_secret(host, [*mine, *foreign, *kedges, *environments], user=user))
        told = seen(host, soon)
    finally:
        kill_all(other)
    assert [line for line in told if line.startswith("reads ")] == [
        f"reads {path}" for path in mine
    ]
    refused = {line.removeprefix("refused ") for line in told if line.startswith("refused ")}
    assert refused == {str(path) for path in [*foreign, *kedges, *environments]}
    assert not [
        line
        for line in told
        if line.startswith("writes ") and line.split()[1] not in map(str, mine)
    ]


@root_only
def test_files_secrets_and_data_are_the_users_and_nobody_elses(host: Host) -> None:
    (host.root / "data/db").mkdir(parents=True)
    (host.root / "data/db/rows").write_text("old")
    host.good(*with_secret(host, []))
    uid = own_uid(host)
    for name in ("config/g-one/app.conf", ".kedge/secrets/g-one/etc/db.conf"):
        status = (host.root / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (uid, 0o600), name
    for name in ("config/g-one", ".kedge/secrets/g-one/etc", ".kedge/secrets", ".kedge"):
        status = (host.root / name).stat()
        assert status.st_uid == 0, "what lies in a folder of root's is not exchanged"
        assert not stat.S_IMODE(status.st_mode) & 0o027, name
    data = (host.root / "data").stat()
    assert (data.st_uid, stat.S_IMODE(data.st_mode)) == (uid, 0o700)
    assert (host.root / "data/db/rows").stat().st_uid == uid


@root_only
def test_data_change_hands_with_the_user_and_back_again(
    host: Host, soon: Callable[..., None]
) -> None:
    host.good(*leg(host, [], prefix="a/"))
    seen(host, soon)
    first = own_uid(host)
    (host.root / "data/foreign").write_text("of another account")
    os.chown(host.root / "data/foreign", 12345, 12345)
    host.good(*leg(host, [], {"name": "nobody"}, "b/"))
    seen(host, soon)
    (host.root / "data/kept").touch()
    os.chown(host.root / "data/kept", NOBODY.pw_uid, NOBODY.pw_gid)
    host.good(*leg(host, [], prefix="c/"))
    seen(host, soon)
    assert (host.root / "data").stat().st_uid == first
    assert (host.root / "data/kept").stat().st_uid == first
    assert (host.root / "data/foreign").stat().st_uid == 12345


@root_only
def test_a_link_in_data_gives_nothing_outside_away(host: Host, open_path: Path) -> None:
    outside = open_path / "outside"
    outside.write_text("root's")
    (host.root / "data").mkdir(parents=True)
    (host.root / "data/link").symlink_to(outside)
    (host.root / "data/away").symlink_to(open_path)
    host.good(*leg(host, []))
    assert outside.stat().st_uid == 0
    assert open_path.stat().st_uid == 0


@root_only
def test_commands_and_probes_run_as_the_daemons_user(host: Host, soon: Callable[..., None]) -> None:
    host.good(*leg(host, []))
    seen(host, soon)
    uid = own_uid(host)
    said = host.good({"key": "r", "op": "run", "argv": ["/bin/sh", "-c", "id -u; id -g; id -G"]})
    assert said.result("r")["output"].split() == [str(uid)] * 3
    look = {"command": {"argv": ["id", "-u"], "parse": "text"}, "expect": {"text": str(uid)}}
    host.good({"key": "p", "op": "probe", "probe": look})


@root_only
def test_a_node_where_the_user_does_not_come_is_told_before_anything_is_stopped(
    closed_host: Host, soon: Callable[..., None]
) -> None:
    host = closed_host
    host.good(*leg(host, [], {"name": "root"}, "a/"))
    seen(host, soon)
    pid = host.pid()
    ops = leg(host, [], {"name": "nobody"}, "b/")
    ops[0]["daemon"] = {"user": {"name": "nobody"}}
    error = host.call(*ops).error
    assert error["type"] == "Conflict"
    assert f"{host.top} is closed to it" in error["message"]
    assert "user: root" in error["message"]
    assert host.pid() == pid
    os.kill(pid, 0)
    # Also a start that nobody looked ahead for says it.
    host.good({"key": "s", "op": "stop", "grace": 2, "kill": True})
    assert host.call(*leg(host, [], None, "c/")).error["type"] == "Conflict"


@root_only
def test_a_user_that_this_host_does_not_have_is_told_before_anything_is_stopped(
    host: Host,
) -> None:
    for user in ({"name": "no-such-user"}, {"name": "nobody", "groups": ["no-such-group"]}):
        op = leg(host, [])[0]
        op["daemon"] = {"user": user}
        assert "no-such-" in host.call(op).error["message"]


@root_only
def test_a_strict_umask_of_the_worker_closes_no_release_to_the_daemon(open_path: Path) -> None:
    program = open_path / "host.pyz"
    program.write_bytes(bundle())
    made = Host(None, open_path)  # type: ignore[arg-type]
    made.root = open_path / "not-there-yet/nodes/n1"
    inner = {
        "bin/daemon": (b"#!/bin/sh\nexec sh current/lib/inner/start\n", 0o755),
        "lib/inner/start": (LOOKER.encode(), 0o644),
    }
    ops = leg(made, [])
    archive = made.archive(tar(inner))
    ops[0] = made.stage(archive)
    ops[2]["digest"] = archive.digest
    read = {"key": "r", "op": "run", "argv": ["cat", "current/lib/inner/start"]}
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), "session"],
        input=made.asked([*ops, read]) + b"\n",
        capture_output=True,
        check=False,
        umask=0o077,
    )
    try:
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[-1]["ok"], lines
        (ran,) = [line for line in lines if line["ev"] == "done" and line["op"] == "run"]
        assert ran["result"]["output"] == LOOKER
    finally:
        kill_all(made)


@root_only
def test_two_nodes_have_two_users_and_a_copy_has_a_third(host: Host, open_path: Path) -> None:
    host.good(*leg(host, []))
    other = Host(host.served, open_path / "second")
    other.top.mkdir(mode=0o711)
    other.name = "second"
    other.good(*leg(other, []))
    try:
        assert own_uid(host) != own_uid(other)
        assert host.good({"key": "o", "op": "observe"}).ok
    finally:
        kill_all(other)


def test_who_is_not_root_starts_daemons_as_himself_and_as_nobody_else(open_path: Path) -> None:
    """The host program as a user without rights: in a process of its own when this test is root."""
    top = open_path / "mine"
    top.mkdir()
    program = open_path / "host.pyz"
    program.write_bytes(bundle())
    program.chmod(0o644)
    drop: dict[str, Any] = {}
    uid = os.geteuid()
    if uid == 0:
        uid = NOBODY.pw_uid
        os.chown(top, uid, NOBODY.pw_gid)
        drop = {"user": uid, "group": NOBODY.pw_gid, "extra_groups": []}
    made = tar({"bin/daemon": (LOOKER.encode(), 0o755)})
    (open_path / "archive").write_bytes(made)

    def call(user: Any, number: int) -> dict[str, Any]:
        host = Host(None, open_path)  # type: ignore[arg-type]
        host.root, host.token = top / "node", [1, number, 0]
        ops = leg(host, [], user, f"{number}/")
        done = subprocess.run(
            [_python(), "-I", "-S", str(program), "session"],
            input=host.asked(ops) + b"\n",
            capture_output=True,
            check=False,
            cwd="/",
            **drop,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        failed = [line["error"] for line in lines if line["ev"] == "failed"]
        return failed[0] if failed else {}

    other = "daemon" if uid == NOBODY.pw_uid else "nobody"
    error = call({"name": other}, 1)
    assert error["type"] == "Conflict"
    assert "run the worker of this host as root" in error["message"]
    assert call(None, 2) == {}
    told = json.loads((top / "node/.kedge/service.json").read_text())
    try:
        assert os.stat(f"/proc/{told['pid']}").st_uid == uid
        assert not (top / "node/.kedge/user.json").exists()
    finally:
        os.killpg(told["pid"], signal.SIGKILL)


def _python() -> str:
    """A Python that a user without rights can execute; the one of the tests may lie below /root."""
    return (
        "/usr/bin/python3"
        if os.geteuid() == 0 and Path("/usr/bin/python3").exists()
        else sys.executable
    )
