"""The commands as a person or a script calls them, against a real engine and a real worker."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli.exits import Exit
from tests.agents import ssh_agent
from tests.cli import scene as scenes
from tests.stock import reaching, stock_temporal
from worker import processes
from worker.engine import Engine
from worker.settings import Settings

pytestmark = [pytest.mark.temporal, pytest.mark.slow, pytest.mark.timeout(300)]

KEDGE = str(Path(sys.executable).parent / "kedge")


@dataclass
class Home:
    """A home that is up, and its command line."""

    path: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Calls kedge; with ``code`` None any exit code will do."""
        done = subprocess.run(
            [KEDGE, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert code is None or done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def json(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        """The one JSON document of a call."""
        parsed: dict[str, Any] = json.loads(self.run(*words, "--json", code=code).stdout)
        return parsed

    @property
    def settings(self) -> Settings:
        return Settings.load(home=self.path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    path = tmp_path_factory.mktemp("home")
    home = Home(path, {**os.environ, "KEDGE_HOME": str(path), "COLUMNS": "120"})
    home.run("up")
    yield home
    home.run("down")


def made(home: Home, folder: Path, **given: Any) -> scenes.Scene:
    """A fleet of its own, known and running."""
    scene = scenes.build(folder, **given)
    up = home.json("up", "--fleet", str(scene.fleet), "--policy", str(scene.policy))
    mine = next(one for one in up["fleets"] if one["fleet"] == scene.name)
    assert mine["running"] == mine["nodes"]
    return scene


def start(home: Home, scene: scenes.Scene) -> str:
    run: str = home.json("start", *scene.documents, "--key", str(scene.key("olga")))["run"]
    return run


def approve(home: Home, scene: scenes.Scene, run: str, *people: str) -> dict[str, Any]:
    answers = [
        home.json("approve", run, "--gate", "ship-it", "--key", str(scene.key(person)))
        for person in people
    ]
    return answers[-1]


def sign(scene: scenes.Scene, person: str, order: Path) -> Path:
    """Signs with the stock ssh-keygen alone."""
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "kedge-order", "-f", scene.key(person), order],
        check=True,
        capture_output=True,
    )
    return order.with_name(order.name + ".sig")


def until(file: Path, text: str, seconds: float = 60) -> None:
    """Waits until a file holds a text."""
    deadline = time.monotonic() + seconds
    while text not in file.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, f"{text!r} did not come:\n{file.read_text()}"
        time.sleep(0.1)


def eventually(look: Callable[[], list[Any]], seconds: float = 60) -> list[Any]:
    """What is found once anything is."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.2)
    return found


def test_from_start_to_done(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="whole")
    started = home.run("start", *scene.documents, "--key", str(scene.key("olga")))
    assert started.stdout == "upgrade/whole/1\n", "a script takes the id from standard output"
    assert "1.0.0 → 1.0.1" in started.stderr
    run = "upgrade/whole/1"

    watched = home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    assert f"kedge approve {run} --gate ship-it --key <your key>" in watched.stdout
    assert "wave canary" in watched.stdout

    status = home.json("status", run)
    assert status["phase"] == "gate"
    assert status["waiting"]["subject"] == "ship-it"
    assert status["answers"][0].startswith(f"kedge approve {run}")
    home.run("status", run, "--result", code=Exit.WAITING)
    listed = {one["run"]: one for one in home.json("list", "--fleet", "whole")["runs"]}
    assert listed[run]["waiting_for"] == "gate ship-it"

    first = approve(home, scene, run, "alice")
    assert first["verdict"]["person"] == "alice"
    assert (first["open"], first["tally"]["missing"]) == (True, 1)
    # Nobody said who signs: the key does, also for an order that was carried to its signer.
    order = tmp_path / "order.json"
    home.run("order", "request", "approve", run, "--gate", "ship-it", "-o", str(order))
    second = home.json("order", "send", str(order), str(sign(scene, "bob", order)))
    assert second["verdict"]["person"] == "bob"
    assert second["open"] is False

    done = home.json("watch", run)
    assert done["phase"] == "done"
    assert done["nodes_done"] == done["nodes"] == 5
    home.run("status", run, "--result")
    assert home.json("status", "whole")["release"] == "1.0.1"

    again = home.json(
        "start", *scene.documents, "--key", str(scene.key("olga")), code=Exit.BAD_INPUT
    )
    assert "--from" in again["error"]["next"]


def test_an_order_that_the_stock_command_line_sends_in_the_open_is_refused_until_it_is_sealed(
    home: Home, tmp_path: Path
) -> None:
    """Every home seals. Sealed by way of the codec server it is an order: ``tests/secrets/test_codec_server.py``."""
    scene = made(home, tmp_path, name="stock")
    run = start(home, scene)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    engine = Engine(home.settings).state()
    assert engine is not None
    for person in ("alice", "bob"):
        order = tmp_path / f"{person}.json"
        home.run("order", "request", "approve", run, "--gate", "ship-it", "-o", str(order))
        signature = sign(scene, person, order)
        envelope = {
            "order": order.read_text(encoding="utf-8"),
            "signature": signature.read_text(encoding="utf-8"),
        }
        if person == "alice":
            told = home.json("order", "send", str(order), str(signature), "--signal")
            assert told == {"target": run, "sent": "signal"}
            continue
        words = ["workflow", "signal", "--workflow-id", run]
        words += ["--name", "order", "--input", json.dumps(envelope)]
        subprocess.run(
            [stock_temporal(), *words],
            env=reaching(engine),
            check=True,
            capture_output=True,
            timeout=60,
        )
        refused = eventually(lambda: [one for one in home.json("status", run)["orders"] if not one["accepted"]])  # fmt: skip
        assert refused[0]["rule"] == "unreadable"
        home.json("order", "send", str(order), str(signature))
    done = home.json("watch", run)
    assert done["phase"] == "done"
    people = [order["person"] for order in done["orders"] if order["accepted"]]
    assert sorted(people) == ["alice", "bob"]


def test_a_refusal_names_the_rule_and_leaves_the_run_as_it_was(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="refused")
    nobody = home.json("start", *scene.documents, "--key", str(scene.key("bob")), code=Exit.REFUSED)
    assert nobody["error"]["rule"] == "role"
    run = start(home, scene)
    lease = home.json("start", *scene.documents, "--key", str(scene.key("olga")), code=Exit.REFUSED)
    assert lease["error"]["rule"] == "lease"
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)

    order = tmp_path / "order.json"
    home.run("order", "request", "approve", run, "-o", str(order))
    signature = sign(scene, "alice", order)
    home.run("order", "send", str(order), str(signature))
    twice = home.json("order", "send", str(order), str(signature), code=Exit.REFUSED)
    assert twice["error"]["rule"] == "nonce-spent"
    duplicate = home.json("approve", run, "--key", str(scene.key("alice")), code=Exit.REFUSED)
    assert duplicate["error"]["rule"] == "duplicate-person"
    changed = tmp_path / "changed.json"
    changed.write_text(
        order.read_text(encoding="utf-8").replace('"approve"', '"reject"'), encoding="utf-8"
    )
    forged = home.json("order", "send", str(changed), str(signature), code=Exit.REFUSED)
    assert forged["error"]["rule"] == "signature"
    role = home.run("reject", run, "--key", str(scene.key("dave")), code=Exit.REFUSED)
    assert "refused, rule role: " in role.stderr
    assert "next: " in role.stderr

    assert home.json(
        "approve", run, "--gate", "other", "--key", str(scene.key("bob")), code=Exit.NOT_FOUND
    )
    missing = home.json(
        "approve", "upgrade/refused/99", "--key", str(scene.key("bob")), code=Exit.NOT_FOUND
    )
    assert missing["error"]["next"] == "`kedge list` shows the runs there are"
    status = home.json("status", run)
    assert status["phase"] == "gate"
    assert status["waiting"]["tally"]["missing"] == 1

    home.run("abort", run, "--key", str(scene.key("olga")))
    home.run("watch", run, code=Exit.ENDED_BADLY)
    late = home.json("approve", run, "--key", str(scene.key("bob")), code=Exit.NOT_FOUND)
    assert "aborted" in late["error"]["message"]
    over = home.json("pause", run, "--key", str(scene.key("olga")), code=Exit.REFUSED)
    assert over["error"]["rule"] == "not-open"


def test_a_parked_run_says_its_choices_and_goes_on_from_there(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="parked")
    scene.fault(do="unhealthy", node="sim-1", op="healthy")
    run = start(home, scene)
    watched = home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    assert f"kedge decide {run} --item wave-1 --choice retry --key <your key>" in watched.stdout
    assert "sim-1" in watched.stdout
    shown = home.run("status", run)
    assert "NotHealthy" in shown.stdout
    key = str(scene.key("dave"))
    unsaid = home.json("decide", run, "--key", key, code=Exit.BAD_INPUT)
    assert "retry" in unsaid["error"]["next"]
    scene.fault()
    home.run("decide", run, "--choice", "retry", "--key", key)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    assert home.json("status", run)["phase"] == "gate"


def test_a_rollback_takes_the_fleet_from_the_run_that_has_it(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="back")
    run = start(home, scene)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    ordered = home.run("rollback", "back", "--key", str(scene.key("dave")))
    assert ordered.stdout == "rollback/back/2\n"
    taken = home.json("watch", "rollback/back/2")
    assert taken["phase"] == "rolled-back"
    lost = home.json("watch", run, code=Exit.ENDED_BADLY)
    assert lost["phase"] == "preempted"
    assert lost["successor"] == "rollback/back/2"
    assert home.json("status", "back")["release"] == "1.0.0"


def test_pause_and_resume(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="pause", bake="10m")
    run = start(home, scene)
    key = str(scene.key("olga"))
    home.run("pause", run, "--key", key)
    watched = home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    assert f"kedge resume {run} --key <your key>" in watched.stdout
    home.run("resume", run, "--key", key)
    assert home.json("status", run)["phase"] == "widening"
    home.run("abort", run, "--key", key)
    assert home.json("watch", run, code=Exit.ENDED_BADLY)["phase"] == "aborted"


def test_a_watch_goes_on_through_the_death_of_the_engine(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="through")
    run = start(home, scene)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    printed = tmp_path / "watch.log"
    with printed.open("wb") as output:
        watch = subprocess.Popen(
            [KEDGE, "watch", run], env=home.environment, stdout=output, stderr=output
        )
    try:
        until(printed, "upgrade/through/1")
        assert Engine(home.settings).kill()
        until(printed, "engine unreachable")
        home.run("up")
        approve(home, scene, run, "alice", "bob")
        ended = watch.wait(timeout=120)
    finally:
        watch.kill()
    said = printed.read_text(encoding="utf-8")
    assert ended == Exit.DONE, said
    assert "answers again, after " in said
    assert "done: every node is on the new release" in said


def test_up_and_doctor_name_what_is_down_with_its_last_words_and_fail(
    home: Home, tmp_path: Path
) -> None:
    scene = scenes.build(tmp_path, name="falling")
    scene.fault(do="crash", op="start", node="sim-2", seconds=0.4)
    up = home.run("up", "--fleet", str(scene.fleet), "--policy", str(scene.policy), code=Exit.ENDED_BADLY)  # fmt: skip
    assert "fleet    falling: 4 of 5 nodes running" in up.stdout
    assert "sim-2: its daemon does not run; its last words: " in up.stdout
    assert "`kedge up --fleet FILE`" in up.stderr
    seen = home.run("doctor", code=Exit.BAD_INPUT)
    assert "4 of 5 running; sim-2: its daemon does not run; its last words: " in seen.stdout
    scene.fault()
    again = next(one for one in home.json("up")["fleets"] if one["fleet"] == scene.name)
    assert (again["running"], again["problems"], again["stopped"]) == (5, [], [])
    doctor = {one["name"]: one for one in home.json("doctor")["checks"]}
    assert doctor["nodes of falling"]["said"] == "5 of 5 running"


def test_up_again_does_nothing_and_down_leaves_runs_to_the_next_up(
    home: Home, tmp_path: Path
) -> None:
    scene = made(home, tmp_path, name="again")
    run = start(home, scene)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    assert home.json("up")["place"]["started"] == []
    home.run("down")
    assert home.json("list", code=Exit.UNREACHABLE)["error"]["type"] == "EngineError"
    assert home.json("up")["place"]["started"] == ["engine", "worker"]
    assert home.json("status", run)["phase"] == "gate"
    checks = {check["name"]: check for check in home.json("doctor")["checks"]}
    assert {check["verdict"] for check in checks.values()} == {"ok"}, checks
    assert "5 of 5 running" in checks["nodes of again"]["said"]


def test_up_without_a_worker_leaves_the_work_to_those_of_the_cluster(
    home: Home, tmp_path: Path
) -> None:
    scene = scenes.build(tmp_path / "elsewhere", name="elsewhere")
    engine = Engine(home.settings).state()
    assert engine is not None
    # The same home as its worker has, called as one calls a cluster's.
    profile = {"TEMPORAL_CONFIG_FILE": str(engine.profile)}
    caller = replace(home, environment={**home.environment, **profile})
    state = (home.path / "run" / "worker.json").read_bytes()
    words = ["--fleet", str(scene.fleet), "--policy", str(scene.policy)]
    up = caller.json("up", "--no-worker", *words)
    assert up["place"]["worker_pid"] is None
    assert up["place"]["started"] == []
    (fleet,) = [one for one in up["fleets"] if one["fleet"] == "elsewhere"]
    assert fleet["running"] == 5
    assert (home.path / "run" / "worker.json").read_bytes() == state
    assert "none here" in caller.run("up", "--no-worker").stdout


def test_without_a_worker_the_engine_is_not_blamed(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="alone")
    run = start(home, scene)
    home.run("watch", run, "--until-waiting", code=Exit.WAITING)
    state = json.loads((home.path / "run" / "worker.json").read_text(encoding="utf-8"))
    identity = processes.ProcessIdentity.model_validate(state["process"])
    assert processes.send(identity, signal.SIGKILL)
    try:
        silent = home.json("status", run, code=Exit.UNREACHABLE)
        assert "no worker" in silent["error"]["message"]
        assert "kedge up" in silent["error"]["next"]
    finally:
        home.run("up")
    assert home.json("status", run)["phase"] == "gate"


class Terminal:
    """A command in a terminal of its own, as a person has it."""

    def __init__(self, home: Home, *words: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [KEDGE, *words],
            env={**home.environment, "TERM": "xterm-256color", "LINES": "40"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            close_fds=True,
            # Who runs tests in the background of a shell has this signal ignored; a person at a terminal has not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads matter here
        )
        os.close(slave)
        self.seen = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """Reads until ``text`` was shown."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} was not shown:\n{self.seen}"
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self._master, 65_536).decode("utf-8", "replace")
                except OSError:
                    break
        return self.seen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        try:
            return self._process.wait(timeout=60)
        finally:
            self._process.kill()
            os.close(self._master)


def test_on_a_terminal_one_sees_before_one_signs_and_may_say_no(home: Home, tmp_path: Path) -> None:
    scene = made(home, tmp_path, name="asked")
    run = start(home, scene)
    watch = Terminal(home, "watch", run)
    watch.until("ship-it waits")
    no = Terminal(home, "approve", run, "--key", str(scene.key("alice")))
    before = no.until("sign for this?")
    assert "every node can be switched back" in before
    no.type("n\n")
    no.until("nothing was signed")
    assert no.end() == Exit.INTERRUPTED
    yes = Terminal(home, "approve", run, "--key", str(scene.key("alice")))
    yes.until("sign for this?")
    yes.type("y\n")
    yes.until("1 of 2 signatures (alice)")
    assert yes.end() == Exit.DONE
    watch.until("1 of 2 signatures (alice)")
    watch.interrupt()
    watch.until("goes on")
    assert watch.end() == Exit.INTERRUPTED
    approve(home, scene, run, "bob")
    home.run("watch", run)


def test_an_agent_signs_with_a_key_it_holds(home: Home, tmp_path: Path) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("there is no ssh-agent here")
    scene = made(home, tmp_path, name="agent")
    with ssh_agent(tmp_path / "agent.sock", home.environment) as environment:
        subprocess.run(["ssh-add", "-q", scene.key("olga")], env=environment, check=True)
        with_agent = Home(home.path, environment)
        words = ["start", *scene.documents, "--agent", f"{scene.key('olga')}.pub", "--json"]
        assert json.loads(with_agent.run(*words).stdout) == {"run": "upgrade/agent/1"}
    home.run("abort", "upgrade/agent/1", "--key", str(scene.key("olga")))
