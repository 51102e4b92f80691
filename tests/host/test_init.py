"""The first commands of a node without data: once, whatever is killed, never on data, and said how to go on after a failure."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host.init import NONE, Round, decide
from tests.host.conftest import AS_US, Host, Served, tar

NUMBERS = itertools.count()
POINTS = [
    "init.before", "init.begun", "init.acting", "run.intent", "run.forked", "run.before-spawn", "run.spawned",
    "run.outcome", "init.acted", "init.recorded", "init.told",
]  # fmt: skip


def steps(host: Any, *scripts: str, prefix: str = "", **more: Any) -> list[dict[str, Any]]:
    """The init steps of a node, each of which notes in the ledger, outside the root, that it was executed."""
    made = []
    for at, script in enumerate(scripts):
        text = f'echo "run $$ {at}" >> "$LEDGER"; {script}'
        env = {"LEDGER": str(host.ledger), "DATA": str(host.root / "data")}
        made.append({
            "key": f"{prefix}init-{at + 1}", "op": "init", "name": f"step-{at + 1}", "at": at, "of": len(scripts),
            "argv": ["/bin/sh", "-c", text], "env": env, **more,
        })  # fmt: skip
    return made


MAKE = 'echo one > "$DATA/one"'
MORE = 'echo two > "$DATA/two"'


@pytest.fixture(autouse=True)
def _as_us(host: Any) -> None:
    host.run_as_us()


def data(host: Any) -> list[str]:
    return sorted(os.listdir(host.root / "data"))


def test_steps_run_in_order_once_and_are_in_the_journal(host: Any) -> None:
    said = host.good(*steps(host, MAKE, MORE))
    assert said.result("init-1") == {
        "ran": True,
        "exit": 0,
        "output": "",
        "seconds": said.result("init-1")["seconds"],
    }
    assert data(host) == ["one", "two"]
    assert host.events() == ["run 0", "run 1"]
    assert [line["op"] for line in host.journal()] == ["init", "init"]
    assert host.good(*steps(host, MAKE, MORE)).done("init-2")["replayed"] is True
    # Another `kedge up` has keys of its own, and there are data now.
    again = host.good(*steps(host, MAKE, MORE, prefix="other/"))
    assert again.result("other/init-1") == again.result("other/init-2") == {"ran": False}
    assert host.events() == ["run 0", "run 1"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("killed", [0, 1])
def test_whatever_is_killed_no_step_is_done_twice(host: Any, point: str, killed: int) -> None:
    every = steps(host, f"sleep 0.1; {MAKE}", f"sleep 0.1; {MORE}")
    if killed:
        host.good(every[0])
    order = host.order(point)
    host.call(*every)
    assert order.exists(), "it was never there"
    # The runner itself was killed, around its command: nobody heard how that ended.
    lost = point in ("run.before-spawn", "run.spawned")
    said = host.call(*every, lock_wait=10)
    while not said.ok and said.error["type"] == "Busy":
        said = host.call(*every, lock_wait=10)
    if not lost:
        assert said.ok, said.lines
        assert host.events() == ["run 0", "run 1"]
        assert data(host) == ["one", "two"]
        return
    assert said.error["type"] in ("Unresolved", "CommandFailed")
    assert "nobody knows how it ended" in said.error["message"]
    executed = killed + (point == "run.spawned")
    assert host.events() == ["run 0", "run 1"][:executed]
    # A person looks: with the data gone, the next `kedge up` begins with the first step.
    advice = f"empty {host.root}/data" if data(host) else "data/ is empty"
    assert advice in said.error["message"]
    for name in data(host):
        (host.root / "data" / name).unlink()
    anew = steps(host, MAKE, MORE, prefix="b/")
    assert [host.good(*anew).result(op["key"])["ran"] for op in anew] == [True, True]
    assert data(host) == ["one", "two"]


def test_a_killed_runner_is_resolved_by_the_check_of_its_step(host: Any, soon: Any) -> None:
    check = {"command": {"argv": ["test", "-e", str(host.root / "data/one")]}}
    every = steps(host, f"sleep 0.2; {MAKE}", check=check)
    host.order("run.spawned")
    assert host.call(*every).error["type"] == "Busy"
    soon(lambda: data(host) == ["one"])
    said = host.call(*every)
    while not said.ok and said.error["type"] == "Busy":
        said = host.call(*every)
    assert said.result("init-1")["resolved"]
    assert host.events() == ["run 0"]


def test_nothing_is_done_on_a_node_that_has_data(host: Any) -> None:
    host.good({"key": "look", "op": "observe"})
    (host.root / "data/base").mkdir()
    said = host.good(*steps(host, MAKE, MORE))
    assert said.result("init-1") == said.result("init-2") == {"ran": False}
    assert data(host) == ["base"]
    assert host.events() == []


def test_a_disk_of_its_own_has_no_data_yet(host: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "lost+found").mkdir(parents=True)
    (host.root / "data").symlink_to(disk)
    assert host.good(*steps(host, MAKE)).result("init-1")["ran"] is True
    assert sorted(os.listdir(disk)) == ["lost+found", "one"]
    assert host.good(*steps(host, MAKE, prefix="b/")).result("b/init-1") == {"ran": False}


def test_nothing_is_done_while_the_daemon_runs(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1"))
    error = host.call(*steps(host, MAKE)).error
    assert error["type"] == "Conflict"
    assert "the node's daemon runs" in error["message"]


@pytest.mark.parametrize("failing", [0, 1])
def test_what_failed_half_way_stays_so_until_the_data_are_gone(host: Any, failing: int) -> None:
    bad = f"{MAKE}; echo no room; exit 3"
    scripts = [bad, MORE] if failing == 0 else [MAKE, bad]
    error = host.call(*steps(host, *scripts)).error
    assert error["type"] == "CommandFailed"
    assert error["detail"]["exit"] == 3
    wanted = (
        f"the init step step-{failing + 1} did not succeed: /bin/sh: exit 3: no room. It left data behind (one):"
        f" correct `init` in the Fleet, empty {host.root}/data, then `kedge up --fleet FILE` begins `init` again"
    )
    assert error["message"].startswith(wanted)
    assert "take `init` out of the Fleet" in error["message"]
    # Corrected, but the data of the failure are there still: nothing runs on them, and the reason is told again.
    ran = host.events()
    again = host.call(*steps(host, MAKE, MORE, prefix="b/")).error
    assert again["message"].startswith(wanted)
    assert host.events() == ran
    shutil.rmtree(host.root / "data")
    (host.root / "data").mkdir()
    assert host.good(*steps(host, MAKE, MORE, prefix="c/")).result("c/init-2")["ran"] is True
    assert host.events() == [*ran, "run 0", "run 1"]
    assert data(host) == ["one", "two"]


def test_data_that_go_away_in_the_middle_begin_nothing_behind_the_first_step(host: Any) -> None:
    first = steps(host, MAKE, "exit 1")
    assert host.call(*first).error["type"] == "CommandFailed"
    (host.root / "data/one").unlink()
    # The same `kedge up`, tried again: the first step is in its journal, so the second cannot begin a round.
    error = host.call(*first).error
    assert error["type"] == "CommandFailed"
    assert (
        "data/ is empty: correct `init` in the Fleet, then `kedge up --fleet FILE`"
        in error["message"]
    )
    assert host.good(*steps(host, MAKE, MORE, prefix="b/")).ok


def test_a_program_that_is_not_there_did_nothing_and_is_corrected_by_the_documents_alone(
    host: Any,
) -> None:
    good = steps(host, MAKE, MORE, prefix="b/")
    bad = [steps(host, MAKE, MORE)[0], {**steps(host, MAKE, MORE)[1], "argv": ["bin/none"]}]
    error = host.call(*bad).error
    assert "the init step step-2 did not succeed: bin/none: not executed" in error["message"]
    assert host.good(*good).result("b/init-2")["ran"] is True
    assert host.events() == ["run 0", "run 1"]


def test_an_older_attempt_does_nothing(host: Any) -> None:
    host.good({"key": "look", "op": "observe"}, token=[2, 0, 0])
    error = host.call(*steps(host, MAKE), token=[1, 9, 9]).error
    assert error["type"] == "Fenced"
    assert data(host) == []
    assert host.events() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_steps_run_as_the_daemons_user_who_owns_the_data(served: Served) -> None:
    top = Path(tempfile.mkdtemp(prefix="kedge-init-", dir="/tmp"))
    top.chmod(0o711)
    try:
        host, user = Host(served, top), pwd.getpwnam("nobody")
        release = host.archive(tar({"bin/first": (b'#!/bin/sh\nid -u > "$1/who"\n', 0o755)}))
        service = {"argv": ["bin/daemon"], "user": {"name": "nobody"}}
        host.good(
            host.stage(release),
            {"key": "switch", "op": "switch", "digest": release.digest},
            {"key": "configure", "op": "configure", "generation": "g1", "service": service},
            {"key": "i", "op": "init", "name": "first", "at": 0, "of": 1,
             "argv": [f"{host.root}/current/bin/first", f"{host.root}/data"]},
        )  # fmt: skip
        assert (host.root / "data/who").read_text().strip() == str(user.pw_uid)
        assert (host.root / "data").stat().st_uid == user.pw_uid
        assert (host.root / "data").stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(top)


def test_what_it_says_is_told_without_secrets(host: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("marked-secret-value")
    secret.chmod(0o600)
    service = {"argv": ["bin/daemon"], "env": {"PASSWORD": [{"secret": "p"}]}, **AS_US}
    host.good({
        "key": "c", "op": "configure", "generation": "g1", "service": service, "secrets": {"p": {"file": str(secret)}},
    })  # fmt: skip
    error = host.call(*steps(host, f'{MAKE}; cat "{secret}"; exit 1')).error
    assert error["type"] == "CommandFailed"
    assert "marked-secret-value" not in json.dumps(error)
    assert "marked-secret-value" not in (host.root / ".kedge/init.json").read_text()
    again = host.call(*steps(host, MAKE, prefix="b/")).error
    assert "marked-secret-value" not in json.dumps(again)


OPEN = Round(1, whole=False, failed="", keys=["k"])
WHOLE = OPEN._replace(whole=True)
FAILED = OPEN._replace(failed="why")


@pytest.mark.parametrize(
    ("at", "last", "more", "wanted"),
    [
        (0, NONE, {"empty"}, 1),
        (0, NONE, set(), None),
        (1, NONE, set(), None),
        (0, OPEN, {"empty", "mine"}, 1),
        (0, OPEN, {"empty"}, 1),
        (0, OPEN, set(), 1),
        (1, OPEN, set(), 1),
        (0, WHOLE, {"empty", "mine"}, 1),
        (0, WHOLE, {"empty"}, 2),
        (0, WHOLE, set(), None),
        (1, WHOLE, set(), None),
        (0, FAILED, {"empty"}, 2),
        (0, FAILED, {"empty", "mine"}, 1),
        (0, FAILED, set(), 1),
        (1, FAILED, {"empty"}, 1),
    ],
)
def test_in_which_round_a_step_is_done(
    at: int, last: Round, more: set[str], wanted: int | None
) -> None:
    assert decide(at, last, empty="empty" in more, mine="mine" in more) == wanted


@pytest.fixture
def host(served: Served, tmp_path: Path) -> Iterator[Host]:
    one = Host(served, tmp_path)
    yield one
    one.end_daemon()
