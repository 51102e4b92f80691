"""Errors end in what to do next, in the right exit code, and never in a stack."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import failures
from cli.exits import MEANINGS, Exit
from cli.main import app
from desk import evidence as desk_evidence
from kedge.model.errors import (
    DocumentError,
    DriverError,
    EngineError,
    KedgeError,
    OrderError,
    PlanError,
    SettingsError,
)
from kedge.trust.policies import policy_text
from tests.cli import scene as scenes
from tests.trust import world


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> scenes.Scene:
    return scenes.build(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(home: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["--home", str(home), *words])


def document(result: Result) -> dict[str, Any]:
    """Standard output is one JSON document and nothing else."""
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


RUN_COMMANDS = [
    ["status", "upgrade/sim/1"],
    ["status", "sim"],
    ["list"],
    ["watch", "upgrade/sim/1"],
    ["approve", "upgrade/sim/1", "--gate", "g", "--key", "KEY"],
    ["reject", "upgrade/sim/1", "--gate", "g", "--key", "KEY"],
    ["pause", "upgrade/sim/1", "--key", "KEY"],
    ["resume", "upgrade/sim/1", "--key", "KEY"],
    ["abort", "upgrade/sim/1", "--key", "KEY"],
    ["decide", "upgrade/sim/1", "--choice", "retry", "--key", "KEY"],
    ["rollback", "sim", "--key", "KEY"],
    ["order", "request", "approve", "upgrade/sim/1", "-o", "OUT"],
]


@pytest.mark.parametrize("command", RUN_COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_without_an_engine_every_command_says_so_with_code_5(
    command: list[str], scene: scenes.Scene, home: Path, tmp_path: Path
) -> None:
    places = {"KEY": str(scene.key("olga")), "OUT": str(tmp_path / "order.json")}
    words = [places.get(word, word) for word in command]
    plain = run(home, *words)
    assert plain.exit_code == Exit.UNREACHABLE
    assert "kedge up" in plain.stderr
    assert "Traceback" not in plain.output
    as_json = run(home, *words, "--json")
    assert as_json.exit_code == Exit.UNREACHABLE
    error = document(as_json)["error"]
    assert error["type"] == "EngineError"
    assert error["exit"] == Exit.UNREACHABLE
    assert "kedge up" in error["next"]


def test_an_order_is_signed_with_exactly_one_key(scene: scenes.Scene, home: Path) -> None:
    none = run(home, "approve", "upgrade/sim/1", "--json")
    both = run(
        home,
        "approve",
        "upgrade/sim/1",
        "--key",
        str(scene.key("bob")),
        "--agent",
        "SHA256:x",
        "--json",
    )
    for result in (none, both):
        assert result.exit_code == Exit.BAD_INPUT
        assert "exactly one key" in document(result)["error"]["message"]


@pytest.mark.parametrize(
    ("name", "code"), [("bob.pub", Exit.BAD_INPUT), ("nobody", Exit.NOT_FOUND)]
)
def test_a_key_is_looked_at_before_anything_is_asked_or_shown(
    scene: scenes.Scene, home: Path, name: str, code: Exit
) -> None:
    # There is no engine here: a key that cannot sign is told before one would be missed.
    key = scene.key("bob").with_name(name)
    result = run(home, "approve", "upgrade/sim/1", "--key", str(key), "--json")
    assert result.exit_code == code
    assert name in document(result)["error"]["message"]


def test_a_document_that_is_not_there_is_a_problem_with_a_place(
    scene: scenes.Scene, home: Path
) -> None:
    words = ["plan", *scene.documents, "--json"]
    words[words.index(str(scene.new))] = "nowhere.yaml"
    result = run(home, *words)
    assert result.exit_code == Exit.BAD_INPUT
    assert document(result)["error"]["problems"][0].startswith("nowhere.yaml:1:1: ")


def test_every_problem_of_every_document_is_told_at_once(
    scene: scenes.Scene, home: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("kind: Release\nversion: 1.10\nversion: 2\nspeed: high\n", encoding="utf-8")
    worse = tmp_path / "worse.yaml"
    worse.write_text("kind: Policy\nname: [1]\n", encoding="utf-8")
    result = run(home, "runbook", "lint", str(bad), str(worse), "--json")
    assert result.exit_code == Exit.BAD_INPUT
    problems = document(result)["problems"]
    assert any(problem.startswith(f"{bad}:") for problem in problems)
    assert any(problem.startswith(f"{worse}:") for problem in problems)
    assert len(problems) >= 4
    good = run(home, "runbook", "lint", str(scene.fleet), str(scene.policy))
    assert good.exit_code == Exit.DONE
    assert "2 documents, no problem found" in good.stdout


def test_a_plan_needs_no_engine_and_shows_its_digest(scene: scenes.Scene, home: Path) -> None:
    words = run(home, "plan", *scene.documents)
    assert words.exit_code == Exit.DONE, words.output
    printed = run(home, "plan", *scene.documents, "--json")
    whole = document(printed)
    assert whole["digest"] in words.stdout
    assert len(whole["plan"]["nodes"]) == 5
    assert whole["explanation"]["gates"][0]["name"] == "ship-it"
    assert not home.exists(), "planning keeps nothing"


def test_an_option_that_is_missing_is_bad_input(home: Path) -> None:
    result = run(home, "plan")
    assert result.exit_code == Exit.BAD_INPUT
    assert "--fleet" in result.stderr
    as_json = run(home, "plan", "--json")
    assert as_json.exit_code == Exit.BAD_INPUT
    assert "--fleet" in document(as_json)["error"]["message"]
    unknown = run(home, "burn", "--json")
    assert document(unknown)["error"]["type"] == "Usage"


def test_an_order_for_a_start_needs_a_plan(home: Path, tmp_path: Path) -> None:
    result = run(home, "order", "request", "start", "sim", "-o", str(tmp_path / "o"), "--json")
    assert result.exit_code == Exit.BAD_INPUT
    assert "--fleet" in document(result)["error"]["message"]


def test_an_order_for_a_plan_nobody_stored_is_not_found(home: Path, tmp_path: Path) -> None:
    words = ["order", "request", "start", "sim", "--plan", "a" * 64, "-o", str(tmp_path / "o")]
    result = run(home, *words, "--json")
    assert result.exit_code == Exit.NOT_FOUND
    assert not (tmp_path / "o").exists()


def test_an_order_to_start_is_made_without_an_engine_and_can_be_shown(
    scene: scenes.Scene, home: Path, tmp_path: Path
) -> None:
    order = tmp_path / "order.json"
    words = ["order", "request", "start", "sim", *scene.documents, "--person", "olga"]
    made = run(home, *words, "-o", str(order), "--json")
    assert made.exit_code == Exit.DONE, made.output
    whole = document(made)
    assert whole["sign"].startswith("ssh-keygen -Y sign -n kedge-order -f ")
    written = json.loads(order.read_bytes())
    assert written == whole["order"]
    assert (
        order.read_bytes()
        == json.dumps(written, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    shown = run(home, "order", "show", str(order))
    assert shown.exit_code == Exit.DONE
    assert "olga" in shown.stdout
    wrong = run(home, *[word.replace("sim", "other", 1) if word == "sim" else word for word in words],
                "-o", str(order), "--json")  # fmt: skip
    assert wrong.exit_code == Exit.BAD_INPUT
    assert "for fleet sim" in document(wrong)["error"]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["order", "request", "burn", "upgrade/sim/1"], "is no verb"),
        (["order", "request", "decide", "upgrade/sim/1", "--choice", "later"], "is no choice"),
        (["order", "request", "pause", "upgrade/sim/1", "--valid", "soon"], "length of time"),
        (["order", "request", "pause", "upgrade/sim/1", "--valid", "0m"], "length of time"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_those_that_do(
    words: list[str], said: str, home: Path, tmp_path: Path
) -> None:
    result = run(home, *words, "-o", str(tmp_path / "o"), "--json")
    assert result.exit_code == Exit.BAD_INPUT
    error = document(result)["error"]
    assert said in error["message"]
    assert error["next"]


def test_a_file_that_is_no_order_is_bad_input(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text("{}", encoding="utf-8")
    shown = run(home, "order", "show", str(file), "--json")
    assert shown.exit_code == Exit.BAD_INPUT
    big = tmp_path / "big.json"
    big.write_bytes(b" " * 100_000)
    sent = run(home, "order", "send", str(big), str(file), "--json")
    assert sent.exit_code == Exit.BAD_INPUT
    assert "larger than any order" in document(sent)["error"]["message"]
    gone = run(home, "order", "show", str(tmp_path / "nowhere"), "--json")
    assert gone.exit_code == Exit.NOT_FOUND


def test_settings_that_cannot_be_used_are_bad_input(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDGE_ENGINE_PORT", "many")
    result = run(home, "list", "--json")
    assert result.exit_code == Exit.BAD_INPUT
    assert "KEDGE_ENGINE_PORT" in document(result)["error"]["message"]


def test_the_doctor_says_what_to_do_about_each_thing(home: Path) -> None:
    result = run(home, "doctor", "--json")
    assert result.exit_code == Exit.UNREACHABLE
    checks = {check["name"]: check for check in document(result)["checks"]}
    assert checks["python"]["verdict"] == "ok"
    assert checks["home"]["verdict"] == "ok"
    assert checks["engine"]["verdict"] == "wrong"
    assert checks["engine"]["next_step"] == "`kedge up`"
    assert all(check["next_step"] for check in checks.values() if check["verdict"] != "ok")


def test_the_doctor_misses_no_worker_of_this_home_where_a_cluster_has_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    checks = {one["name"]: one for one in document(run(home, "doctor", "--json"))["checks"]}
    assert checks["background"]["verdict"] == "ok", checks["background"]
    # Whether anybody takes work is asked of the cluster, which is not there.
    assert checks["worker"]["verdict"] == "unknown"


def test_the_embedded_engine_goes_with_a_worker_of_this_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEMPORAL_ADDRESS", raising=False)
    result = run(home, "up", "--no-worker", "--json")
    assert result.exit_code == Exit.BAD_INPUT
    assert "TEMPORAL_ADDRESS" in document(result)["error"]["next"]
    assert not (home / "run" / "engine.json").exists()


def test_up_reads_its_documents_before_it_starts_anything(
    scene: scenes.Scene, home: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "fleet.yaml"
    broken.write_text("kind: Fleet\nname: sim\n", encoding="utf-8")
    words = ["up", "--fleet", str(broken), "--policy", str(scene.policy), "--json"]
    result = run(home, *words)
    assert result.exit_code == Exit.BAD_INPUT
    assert document(result)["error"]["problems"]
    without = run(home, "up", "--fleet", str(scene.fleet), "--json")
    assert without.exit_code == Exit.BAD_INPUT
    assert "--policy" in document(without)["error"]["next"]
    assert not (home / "run" / "engine.json").exists()


def test_something_unexpected_is_one_sentence_and_a_log(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object) -> None:
        raise RuntimeError("a wheel came off")

    monkeypatch.setattr("desk.desk.Desk.open", burst)
    home.mkdir()
    result = run(home, "list", "--json")
    assert result.exit_code == Exit.UNEXPECTED
    error = document(result)["error"]
    assert "a wheel came off" in error["message"]
    assert "Traceback" not in result.output
    log = home / "logs" / "kedge-cli.log"
    assert str(log) in error["next"]
    assert "Traceback" in log.read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["--home", str(home), "--debug", "list"])
    assert "RuntimeError: a wheel came off" in shown.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DocumentError(("a.yaml:1:1: x",)), Exit.BAD_INPUT),
        (PlanError("x"), Exit.BAD_INPUT),
        (OrderError("x"), Exit.BAD_INPUT),
        (SettingsError("x"), Exit.BAD_INPUT),
        (EngineError("x"), Exit.UNREACHABLE),
        (DriverError("NotFound", "x", retryable=False), Exit.NOT_FOUND),
        (DriverError("Unreachable", "x", retryable=True), Exit.UNREACHABLE),
        (DriverError("KeyRefused", "x", retryable=False), Exit.BAD_INPUT),
        (DriverError("StoreError", "x", retryable=True), Exit.UNEXPECTED),
    ],
    ids=lambda one: getattr(one, "kind", type(one).__name__) if isinstance(one, KedgeError) else "",
)
def test_each_family_of_errors_has_its_exit_code_and_a_next_step(
    error: KedgeError, code: Exit
) -> None:
    told = failures.explain(error)
    assert told is not None
    assert told.code == code
    assert told.next_step


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Exit.UNEXPECTED, "no space left"),
        (OSError(errno.EROFS, "Read-only file system", "r"), Exit.BAD_INPUT, "r: read-only"),
        (OSError(errno.ENOTDIR, "Not a directory", "a/b"), Exit.BAD_INPUT, "a/b: not a dir"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), Exit.NOT_FOUND, "a: no such"),
    ],
    ids=["a full disk", "read-only", "no folder", "not there"],
)
def test_a_disk_that_cannot_be_used_is_nothing_unexpected(
    error: OSError, code: Exit, said: str
) -> None:
    told = failures.explain(error)
    assert told is not None
    assert told.code == code
    assert told.message.startswith(said)
    assert told.next_step


def test_of_a_file_that_has_no_name_nobody_could_mend_anything() -> None:
    assert failures.explain(FileNotFoundError(errno.ENOENT, "No such file or directory")) is None


@pytest.mark.parametrize(
    "words", [["rotate"], ["retire", "a" * 16, "--yes"], ["grace", "1d"]], ids=" ".join
)
def test_a_home_that_never_had_a_ring_is_not_told_that_it_lost_one(
    home: Path, words: list[str]
) -> None:
    error = document(run(home, "codec", *words, "--json"))["error"]
    assert error["exit"] == Exit.BAD_INPUT
    assert error["next"] == "`kedge codec init` makes the rings"


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "policy.yaml"],
        ["diff", "policy.yaml", "sim"],
        ["who-can", "start", "policy.yaml"],
    ],
    ids=lambda words: words[0],
)
def test_a_policy_file_that_is_not_there_is_not_taken_for_a_fleet(
    home: Path, words: list[str]
) -> None:
    told = run(home, "policy", *words, "--json")
    assert told.exit_code == Exit.NOT_FOUND
    assert "'policy.yaml' is neither a file" in document(told)["error"]["message"]


def test_what_is_no_evidence_is_told_as_that(home: Path, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("kind: Fleet\n")
    (tmp_path / "policy.json").write_text(policy_text(world.policy()))
    words = (str(tmp_path / "fleet.yaml"), "--policy", str(tmp_path / "policy.json"))
    told = run(home, "evidence", "verify", *words)
    assert told.exit_code == Exit.REFUSED
    assert told.stdout.splitlines()[0].startswith("this is no evidence")


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "run.evidence"
    with pytest.raises(FileNotFoundError) as raised:
        desk_evidence._write(target, iter([b"line"]))
    assert raised.value.filename == str(target)


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Exit)
