"""Which command answers what a run waits for. Pure: the same words everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cli import words
from kedge.model.status import RunStatus, Waiting

KEY = "<your key>"
OVER = frozenset({"done", "aborted", "rolled-back", "preempted", "rejected", "terminated"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A command to type, and what it does."""

    does: str
    command: str


def answers(status: RunStatus, program: Sequence[str] = ("kedge",)) -> tuple[Answer, ...]:
    """The commands that move a run on from where it waits; none when it waits for nobody."""
    waiting = status.waiting
    if status.phase in OVER:
        return ()
    if status.phase == "paused":
        return (_answer(program, "go on", "resume", status.run),)
    if waiting is None:
        return ()
    if waiting.kind == "gate":
        return (
            _answer(program, "sign for it", "approve", status.run, "--gate", waiting.subject),
            _answer(program, "refuse it", "reject", status.run, "--gate", waiting.subject),
        )
    if waiting.kind == "parked":
        return tuple(
            _answer(
                program,
                _CHOICES.get(choice, choice),
                "decide",
                status.run,
                "--item",
                waiting.subject,
                "--choice",
                choice,
            )
            for choice in _choices(waiting)
        )
    return ()


def way_back(status: RunStatus, program: Sequence[str] = ("kedge",)) -> Answer | None:
    """The command that takes the fleet back now; None for a rollback or a run that is over."""
    if status.kind != "upgrade" or status.phase in OVER:
        return None
    return _answer(program, "take the fleet back", "rollback", status.fleet)


_CHOICES = {
    "retry": "try it again",
    "skip": "go on without this node",
    "rollback": "take the fleet back",
    "abort": "end the run as it stands",
}


def _choices(waiting: Waiting) -> tuple[str, ...]:
    return waiting.showing.choices


def _answer(program: Sequence[str], does: str, *given: str) -> Answer:
    return Answer(does, words.command(*program, *given, "--key", KEY))
