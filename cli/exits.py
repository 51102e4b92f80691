"""Exit codes: a stable part of the contract with scripts."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the command's exit code means; ``docs/cli.md`` lists them from ``MEANINGS``."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    REFUSED = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    ENDED_BADLY = 6
    WAITING = 7
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.UNEXPECTED: "something failed that is nobody's input, such as a full disk; the message says what, or where its details are. "
    "Or nobody reads the output any more, and there is no message",
    Exit.BAD_INPUT: "bad input: an option, a document (one that is not there, too), a key or an order that cannot be used",
    Exit.REFUSED: "refused: the order broke the rule that is named, and the run is unchanged; or the evidence does not "
    "hold, and it is said where; or a release, or its repository, is not to be trusted",
    Exit.NOT_FOUND: "there is no such run, fleet, gate, item or file",
    Exit.UNREACHABLE: "the engine, or a worker behind it, cannot be had or does not answer",
    Exit.ENDED_BADLY: "the run ended otherwise than wanted (rolled back, aborted, rejected, pre-empted), "
    "or a node could not be brought up",
    Exit.WAITING: "a result was asked for, but the run still goes on or waits for a person; or evidence holds, and the run "
    "goes on behind its end; or a draft of release metadata waits for signatures",
    Exit.INTERRUPTED: "interrupted with Ctrl-C, or answered otherwise than yes; what was begun on the engine goes on",
}
