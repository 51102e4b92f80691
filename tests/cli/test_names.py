"""A run, a fleet, a policy or a release that is named by what is no name is refused before anything is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exits import Exit
from cli.main import app

BAD = {
    "nothing": "",
    "a blank": " ",
    "a way out of a folder": "../../etc",
    "a way out inside a run's id": "upgrade/../1",
    "a line more": "upgrade/sim/1\n",
    "a terminal's escape": "\x1b[31msim",
    "half a query": "sim' OR KedgeFleet = 'x",
    "more than any name has": "a" * 5000,
    "capital letters": "Sim",
    "a workflow that is no run": "ensure/sim/1/2",
    "a right-to-left mark": "sim\u202e",
}
RUNS = [
    "status ?", "watch ?", "approve ? --key K", "reject ? --key K", "pause ? --key K", "resume ? --key K",
    "abort ? --key K", "decide ? --choice retry --key K", "review ? --key K", "review ?",
    "order request pause ? -o O", "evidence show ?", "evidence export ?",
]  # fmt: skip
FLEETS = [
    "rollback ? --key K", "order request rollback ? -o O", "evidence check ?", "policy show ?",
    "policy pin ? FILE",
]  # fmt: skip
POLICIES = [
    "policy explain ?", "policy who-can rollback ?", "policy signers ?", "policy diff ? sim",
    "policy diff sim ?",
]  # fmt: skip


def told(home: Path, command: str, name: str) -> tuple[int, str, str]:
    """The exit code, the sentence, and all that was printed."""
    words = [name if word == "?" else word for word in command.split(" ")]
    done = CliRunner().invoke(app, ["--home", str(home), *words, "--json"])
    said = json.loads(done.stdout)["error"]
    assert said["exit"] == done.exit_code
    assert len(said["message"]) < 400
    assert said["message"].isprintable()
    return done.exit_code, said["message"], done.output


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("command", [*RUNS, *FLEETS])
def test_what_is_no_name_of_a_run_or_fleet_is_bad_input(
    command: str, bad: str, tmp_path: Path
) -> None:
    code, said, _ = told(tmp_path / "home", command, BAD[bad])
    assert code == Exit.BAD_INPUT
    assert "kedge list" in said
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad != "a blank"])
@pytest.mark.parametrize("command", POLICIES)
def test_what_is_no_name_of_a_policy_is_refused_with_what_would_be_one(
    command: str, bad: str, tmp_path: Path
) -> None:
    code, said, printed = told(tmp_path / "home", command, BAD[bad])
    assert code in {Exit.BAD_INPUT, Exit.NOT_FOUND}
    assert "Errno" not in printed
    assert "FLEET@NUMBER" in said or "no policy is pinned here for the fleet sim" in said


def test_a_filter_of_the_list_that_is_no_name_is_bad_input(tmp_path: Path) -> None:
    assert told(tmp_path / "home", "list --fleet ?", "a\nb")[0] == Exit.BAD_INPUT
