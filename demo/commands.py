"""kedge as the viewer would call it: every command is shown, run as a process of its own, and its output shown."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from demo.screen import Screen

COMMAND_SECONDS = 180.0
"""How long any one command of the show may take."""


class CommandError(Exception):
    """A command did not end as it should have."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended. ``out`` and ``err`` are the lines it printed."""

    code: int
    out: tuple[str, ...]
    err: tuple[str, ...]

    @property
    def last(self) -> str:
        """The last line of standard output: the run's id, where a command starts one."""
        return self.out[-1] if self.out else ""


def environment(given: Mapping[str, str], width: int) -> dict[str, str]:
    """The environment for the show's commands: no setting of another kedge or another Temporal gets in.

    The binary to start the engine from stays what it was: it is the machine's, not a home's.
    """
    kept = {name: value for name, value in given.items() if not is_foreign(name)}
    return {**kept, "COLUMNS": str(width), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def is_foreign(name: str) -> bool:
    """Whether a variable speaks of another home or another Temporal."""
    return name.startswith(("KEDGE_", "TEMPORAL_")) and name != "KEDGE_TEMPORAL_BINARY"


class Running:
    """A command that runs. Its lines are shown as they come; with ``last``, only so many of them, at its end."""

    def __init__(
        self, argv: Sequence[str], folder: Path, screen: Screen, *, last: int | None = None
    ) -> None:
        self._shown = shlex.join(argv)
        self._screen = screen
        self._last = last
        width = max(60, min(screen.console.width, 160) - 6)
        self._child = subprocess.Popen(
            [*_program(argv[0]), *argv[1:]],
            cwd=folder,
            env=environment(os.environ, width),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._begun = time.monotonic()
        self._out: list[str] = []
        self._err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, into), daemon=True)
            for stream, into in ((self._child.stdout, self._out), (self._child.stderr, self._err))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self._child.poll() is not None

    def wait(self, *codes: int, seconds: float = COMMAND_SECONDS) -> Answer:
        """Waits for the end. Raises ``CommandError`` for an exit code that is none of ``codes``, or at the time's end."""
        try:
            code = self._child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise CommandError(f"`{self._shown}` took more than {seconds:.0f} s") from None
        self._drain()
        answer = Answer(code=code, out=tuple(self._out), err=tuple(self._err))
        self._show_last(answer, all_of_it=code not in codes)
        if self._last != 0:
            self._screen.took(time.monotonic() - self._begun, code)
        if code not in codes:
            wanted = " or ".join(str(one) for one in codes)
            raise CommandError(f"`{self._shown}` ended with exit code {code}, not {wanted}")
        return answer

    def _show_last(self, answer: Answer, *, all_of_it: bool) -> None:
        if self._last is None or (self._last == 0 and not all_of_it):
            return
        lines = (*answer.out, *answer.err)
        # Why a command refuses is said on standard error.
        told = answer.out if answer.code == 0 else lines
        shown = lines if all_of_it else told[-self._last :]
        if len(shown) < len(told):
            before = len(told) - len(shown)
            self._screen.output(f"… ({before} line{'' if before == 1 else 's'} before)")
        for line in shown:
            self._screen.output(line)

    def until(self, words: str = "", seconds: float = COMMAND_SECONDS) -> None:
        """Waits until the command has printed a line with these words (or any). Raises ``CommandError`` if it never does."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.ended
            if ended:
                self._drain()
            if any(words in line for line in tuple(self._out)):
                return
            if ended or time.monotonic() > deadline:
                raise CommandError(f"`{self._shown}` never said {words!r}")
            time.sleep(0.02)

    def end(self) -> None:
        """Ends the command, if it still runs."""
        if not self.ended:
            self._child.terminate()
            try:
                self._child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def _drain(self) -> None:
        """Reads what an ended command left in its pipes. A process that inherited them is not waited for."""
        for reader in self._readers:
            reader.join(timeout=2)

    def _read(self, stream: IO[str], into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip("\n"))
            if self._last is None:
                self._screen.output(line)


class Commands:
    """Runs commands in the show's folder, where the documents are."""

    def __init__(self, folder: Path, screen: Screen) -> None:
        self.folder = folder
        self._screen = screen
        self._running: list[Running] = []

    def run(self, *argv: str, codes: Sequence[int] = (0,), last: int | None = None) -> Answer:
        """Shows a command, runs it, shows what it prints (or the ``last`` lines). Raises ``CommandError``."""
        return self.begin(*argv, last=last).wait(*codes)

    def begin(self, *argv: str, last: int | None = None) -> Running:
        """The same, without waiting for its end."""
        self._screen.command(shlex.join(argv))
        running = Running(argv, self.folder, self._screen, last=last)
        self._running.append(running)
        return running

    def quietly(
        self, *argv: str, codes: Sequence[int] = (0,), seconds: float = COMMAND_SECONDS
    ) -> Answer:
        """Runs a command that is no part of the show. Raises ``CommandError``."""
        return Running(argv, self.folder, self._screen, last=0).wait(*codes, seconds=seconds)

    def end_all(self) -> None:
        """Ends what still runs of the commands that were begun."""
        for running in self._running:
            running.end()


def _program(name: str) -> list[str]:
    """The program of this very environment where it is one of kedge's."""
    if name != "kedge":
        return [name]
    beside = Path(sys.executable).with_name("kedge")
    return [str(beside)] if beside.exists() else [sys.executable, "-P", "-m", "cli.main"]
