"""Commands: once, their outcome kept by their own runner, and never guessed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _as_us(host: Any) -> None:
    host.run_as_us()


def command(host: Any, script: str, key: str = "c", **more: Any) -> dict[str, Any]:
    """A command that notes in the ledger, outside the root, that it was executed."""
    text = f'echo "run $$ c" >> "$LEDGER"; {script}'
    env = {"LEDGER": str(host.ledger)}
    return {"key": key, "op": "run", "argv": ["/bin/sh", "-c", text], "env": env, **more}


def count(host: Any) -> int:
    found: int = host.events().count("run c")
    return found


def test_a_command_once_and_its_tail(host: Any) -> None:
    op = command(host, "seq 1 2000; echo end >&2", output_max=40)
    said = host.good(op)
    result = said.result("c")
    assert result["exit"] == 0
    assert result["output"].endswith("1999\n2000\nend\n")
    assert len(result["output"]) == 40
    assert host.good(op).done("c")["replayed"] is True
    assert count(host) == 1


def test_a_bad_exit_fails_and_the_next_attempt_executes_again(host: Any) -> None:
    op = command(host, "echo why; exit 31", exit=[0, 1])
    for number in (1, 2):
        error = host.call(op).error
        assert error["type"] == "CommandFailed"
        assert error["retryable"] is True
        assert error["detail"] == {"exit": 31, "output": "why\n"}
        assert count(host) == number
    assert host.good(command(host, "exit 1", "d", exit=[0, 1])).result("d")["exit"] == 1


def test_a_command_that_takes_too_long_is_ended_with_all_it_started(host: Any) -> None:
    op = command(host, 'sleep 50 & echo "child $! c" >> "$LEDGER"; wait', timeout=0.3)
    begun = time.monotonic()
    error = host.call(op).error
    assert error["type"] == "CommandFailed"
    assert "still ran after 0.3 s" in error["message"]
    assert time.monotonic() - begun < 5
    pid = int(host.ledger.read_text().splitlines()[1].split()[1])
    assert not Path(f"/proc/{pid}/exe").exists() or gone(pid)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_what_cannot_be_executed_says_so(host: Any) -> None:
    op = {"key": "c", "op": "run", "argv": ["bin/none"]}
    error = host.call(op).error
    assert error["type"] == "CommandFailed"
    assert "not executed" in error["message"]


def test_what_a_command_leaves_running_does_not_hold_it_up(host: Any) -> None:
    said = host.good(command(host, 'sleep 3 & echo "left $! c" >> "$LEDGER"'))
    assert said.result("c")["seconds"] < 2


def test_nothing_of_the_command_becomes_shell_text(host: Any) -> None:
    argv = ["printf", "%s|", "$(touch evil)", "; touch evil", "`touch evil`", "a b", ""]
    said = host.good({"key": "c", "op": "run", "argv": argv})
    assert said.result("c")["output"] == "$(touch evil)|; touch evil|`touch evil`|a b||"
    assert not list(host.root.rglob("evil"))


@pytest.mark.parametrize("point", ["run.before", "run.acting", "run.intent", "run.forked", "run.outcome",
                                   "run.acted", "run.recorded", "run.told"])  # fmt: skip
def test_a_killed_session_takes_nothing_with_it(host: Any, point: str) -> None:
    host.order(point)
    op = command(host, "sleep 0.2; echo done")
    first = host.call(op)
    # The runner's own death after its outcome is nothing the session notices.
    assert first.ok == (point == "run.outcome")
    said = host.good(op)
    assert said.result("c")["output"] == "done\n"
    assert said.result("c")["exit"] == 0
    assert count(host) == 1


def kill_runner(host: Any) -> None:
    """Find the runner by what it wrote into the lock, and end it."""
    said = json.loads((host.root / ".kedge/op.lock").read_text())
    os.kill(said["runner"], signal.SIGKILL)


@pytest.mark.parametrize("point", ["run.before-spawn", "run.spawned"])
def test_a_killed_runner_leaves_a_question_not_an_answer(host: Any, point: str, soon: Any) -> None:
    host.order(point)
    op = command(host, "sleep 0.6")
    if point == "run.spawned":
        # It is seen to run on: its end is waited for before anything is said.
        for _ in range(2):
            error = host.call(op).error
            assert error["type"] == "Busy"
            assert error["retryable"] is True
        pid = int(host.ledger.read_text().split()[1])
        soon(lambda: gone(pid))
    for _ in range(2):
        error = host.call(op).error
        assert error["type"] == "Unresolved"
        assert error["retryable"] is False
    assert count(host) == (1 if point == "run.spawned" else 0)


@pytest.mark.parametrize(("check", "runs"), [("true", 1), ("false", 2)])
def test_a_check_resolves_it(host: Any, check: str, runs: int, soon: Any) -> None:
    op = command(host, "sleep 0.3", check={"command": {"argv": [check]}})
    host.order("run.spawned")
    assert host.call(op).error["type"] == "Busy"
    pid = int(host.ledger.read_text().split()[1])
    soon(lambda: gone(pid))
    said = host.good(op)
    assert ("resolved" in said.result("c")) == (check == "true")
    assert count(host) == runs


def test_a_check_is_asked_in_the_session_whose_runner_was_killed(host: Any) -> None:
    op = command(host, "true", check={"command": {"argv": ["grep", "-q", "", str(host.ledger)]}})
    host.order("run.before-spawn")
    error = host.call(op).error
    assert error["type"] == "CommandFailed"
    assert error["retryable"] is True
    assert count(host) == 0
    assert host.good(op).result("c")["exit"] == 0
    assert count(host) == 1


def test_a_check_that_cannot_say_resolves_nothing(host: Any) -> None:
    op = command(host, "true", check={"http": {"url": "http://127.0.0.1:1/"}})
    host.order("run.before-spawn")
    assert host.call(op).error["type"] == "Unresolved"
    assert host.call(op).error["type"] == "Unresolved"
    assert count(host) == 0


def test_after_a_reboot_an_intent_alone_is_not_taken_for_nothing(host: Any) -> None:
    op = command(host, "true")
    host.order("run.intent")
    assert not host.call(op).whole
    intent = next((host.root / ".kedge/runs").glob("*.intent"))
    intent.write_text(json.dumps({**json.loads(intent.read_text()), "boot": "another"}))
    assert host.call(op).error["type"] == "Unresolved"


def test_a_newer_token_waits_for_a_command_and_never_kills_it(host: Any, soon: Any) -> None:
    old = host.begin(command(host, "sleep 4; echo end"), token=[1, 1, 1])
    soon(lambda: count(host) == 1)
    said = host.call(
        {"key": "o", "op": "observe"}, token=[2, 1, 1], run="rollback/1", lock_wait=2.7
    )
    assert said.error["type"] == "Busy"
    assert said.error["detail"]["runner"]
    assert old.said().error["type"] == "Fenced"
    host.good({"key": "o", "op": "observe"}, token=[2, 1, 2], run="rollback/1", lock_wait=10)
    assert any((host.root / ".kedge/runs").glob("*.outcome"))


def test_the_outcome_of_a_command_whose_session_died_is_waited_for(host: Any) -> None:
    op = command(host, "sleep 1; echo end")
    host.order("run.forked")
    assert not host.call(op).whole
    said = host.good(op, lock_wait=0)
    assert said.result("c")["output"] == "end\n"
    assert count(host) == 1
