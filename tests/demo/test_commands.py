"""Commands of the show: run as processes of their own, shown as they are, ended when they must."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from demo.commands import CommandError, Commands, Running, environment
from demo.screen import Screen


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def commands(shown: io.StringIO, tmp_path: Path) -> Commands:
    return Commands(tmp_path, Screen(Console(file=shown, width=100, highlight=False, markup=False)))


def test_a_command_is_shown_with_what_it_prints(commands: Commands, shown: io.StringIO) -> None:
    answer = commands.run("sh", "-c", "echo out; echo err >&2; echo last")
    assert (answer.code, answer.out, answer.err) == (0, ("out", "last"), ("err",))
    assert answer.last == "last"
    text = shown.getvalue()
    assert "$ sh -c 'echo out; echo err >&2; echo last'" in text
    assert "│ out" in text
    assert "│ err" in text


def test_it_runs_where_the_documents_are(commands: Commands, tmp_path: Path) -> None:
    assert commands.run("pwd").last == str(tmp_path)


def test_an_exit_code_that_was_not_expected_ends_the_show(commands: Commands) -> None:
    assert commands.run("sh", "-c", "exit 3", codes=(3,)).code == 3
    with pytest.raises(CommandError, match="exit code 3, not 0"):
        commands.run("sh", "-c", "exit 3")


def test_only_the_last_lines_where_that_is_enough(commands: Commands, shown: io.StringIO) -> None:
    commands.run("seq", "9", last=2)
    assert [line.split()[-1] for line in shown.getvalue().splitlines() if "│" in line] == [
        "before)", "8", "9",
    ]  # fmt: skip


def test_of_a_refusal_the_last_lines_are_what_it_says_of_it(
    commands: Commands, shown: io.StringIO
) -> None:
    refusal = "seq 9; echo the plan >&2; echo refused >&2; echo next >&2; exit 3"
    commands.run("sh", "-c", refusal, codes=(3,), last=2)
    lines = [line.split()[-1] for line in shown.getvalue().splitlines() if "│" in line]
    assert lines == ["before)", "refused", "next"]


def test_a_command_that_fails_is_shown_whole(commands: Commands, shown: io.StringIO) -> None:
    with pytest.raises(CommandError):
        commands.run("sh", "-c", "echo one; echo two; echo why >&2; exit 1", last=1)
    assert all(word in shown.getvalue() for word in ("│ one", "│ two", "│ why"))


def test_a_command_that_hangs_is_ended(tmp_path: Path, commands: Commands) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandError, match="took more than"):
        commands.quietly("sleep", "60", seconds=0.3)
    assert time.monotonic() - begun < 10
    assert tmp_path.exists()


def test_what_was_begun_is_ended_with_the_show(commands: Commands) -> None:
    running = commands.begin("sleep", "60")
    assert not running.ended
    commands.end_all()
    assert running.ended


def test_words_are_waited_for(commands: Commands) -> None:
    running = commands.begin(
        "sh", "-c", "sleep 0.2; echo first; sleep 0.2; echo here it is; sleep 60"
    )
    running.until()
    assert running._out == ["first"]
    running.until("here")
    assert not running.ended
    running.end()


def test_words_that_never_come_end_the_show(commands: Commands) -> None:
    running = commands.begin("echo", "something else")
    with pytest.raises(CommandError, match="never said 'here'"):
        running.until("here")


def test_what_others_print_moves_no_cursor(shown: io.StringIO, tmp_path: Path) -> None:
    screen = Screen(Console(file=shown, width=100))
    Running(["printf", "a\\033[2Jb\\007\\n"], tmp_path, screen).wait(0)
    assert "a[2Jb" in shown.getvalue()
    assert not {"\x1b", "\x07"} & set(shown.getvalue())


def test_on_a_terminal_long_lines_stay_beside_the_margin_and_words_whole(
    shown: io.StringIO,
) -> None:
    line = f"   key  {'word ' * 12}{'d' * 64} {'x' * 90}"
    Screen(Console(file=shown, width=80, force_terminal=True, color_system=None)).output(line)
    lines = shown.getvalue().splitlines()
    assert all(one.startswith("   │    ") for one in lines)
    assert " ".join(one[5:].strip() for one in lines).split() == line.split()
    # A digest is broken nowhere, even where it fits on no line.
    assert [len(one) <= 80 for one in lines] == [True, True, False]


def test_in_a_file_lines_are_whole(shown: io.StringIO) -> None:
    Screen(Console(file=shown, width=80)).output("word " * 40)
    assert len(shown.getvalue().splitlines()) == 1


def test_no_other_kedge_or_temporal_gets_in() -> None:
    given = {
        "PATH": "/bin",
        "KEDGE_HOME": "/else",
        "KEDGE_ENGINE_PORT": "7233",
        "TEMPORAL_ADDRESS": "cluster:7233",
        "KEDGE_TEMPORAL_BINARY": "/opt/temporal",
    }
    made = environment(given, 90)
    assert made["PATH"] == "/bin"
    assert made["KEDGE_TEMPORAL_BINARY"] == "/opt/temporal"
    assert made["COLUMNS"] == "90"
    assert not {"KEDGE_HOME", "KEDGE_ENGINE_PORT", "TEMPORAL_ADDRESS"} & set(made)
