"""What one call of the command line carries: where home is, how to speak, how errors are told."""

from __future__ import annotations

import contextlib
import errno
import json as json_format
import os
import re
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from cli.exits import Exit

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.text import Text

    from desk.desk import Desk

Result = TypeVar("Result")


@dataclass
class Session:
    """One call of ``kedge``.

    Without ``json`` people's words go to standard output. With it, standard output carries one JSON
    document and nothing else; people's words go to standard error.
    """

    home: Path | None = None
    debug: bool = False
    json: bool = False

    @property
    def program(self) -> tuple[str, ...]:
        """How this kedge is called, for commands that people copy."""
        return ("kedge",) if self.home is None else ("kedge", "--home", str(self.home))

    def desk(self) -> Desk:
        """The desk of this home. Raises ``SettingsError``."""
        from desk.desk import Desk  # noqa: PLC0415 - heavy, and --help must be quick

        return Desk.open(self.home)

    def say(self, *what: RenderableType) -> None:
        """Words for people."""
        console = _console(stderr=self.json)
        for one in what:
            _print(console, one)

    def aside(self, *what: RenderableType) -> None:
        """Words for people that are not the command's result: always on standard error."""
        console = _console(stderr=True)
        for one in what:
            _print(console, one)

    def note(self, text: str) -> None:
        """A remark beside the result: always on standard error."""
        from kedge.model.outside import visible  # noqa: PLC0415 - pydantic is heavy

        sys.stderr.write(visible(text) + "\n")
        sys.stderr.flush()

    def document(self, value: BaseModel | dict[str, Any] | list[Any]) -> None:
        """The one JSON document of this call. Only with ``json``; otherwise nothing."""
        if self.json:
            plain = value if isinstance(value, (dict, list)) else value.model_dump(mode="json")
            text = json_format.dumps(plain, indent=2, ensure_ascii=False)
            sys.stdout.write(_UNSEEN.sub(_escaped, text) + "\n")
            sys.stdout.flush()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs asynchronous work to its end."""
        import asyncio  # noqa: PLC0415 - not for --help

        return asyncio.run(work)


_UNSEEN = re.compile(r"[^\n -~]")


def _escaped(found: re.Match[str]) -> str:
    """A character of a JSON text as it may stand on a terminal: what cannot be seen is escaped, and means the same."""
    return found[0] if found[0].isprintable() else json_format.dumps(found[0])[1:-1]


def _console(*, stderr: bool) -> Console:
    from cli.terminal import Terminal  # noqa: PLC0415 - heavy, and --help must be quick

    # Not a terminal: wide enough that no table or tree is cut.
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Terminal(file=stream, width=width)


def _print(console: Console, what: RenderableType) -> None:
    """Sentences are left whole where no terminal breaks lines: they can be searched and cut then."""
    from rich.text import Text  # noqa: PLC0415 - heavy, and --help must be quick

    whole = isinstance(what, str) or (isinstance(what, Text) and not console.is_terminal)
    if isinstance(what, Text) and not whole:
        what = _indented(what)
    console.print(what, highlight=False, markup=False, soft_wrap=whole)


def _indented(what: Text) -> RenderableType:
    """A line of which the rest, where the terminal breaks it, stands below its beginning and not below the margin."""
    from rich.padding import Padding  # noqa: PLC0415 - heavy, and --help must be quick

    margin = len(what.plain) - len(what.plain.lstrip(" "))
    if not margin or "\n" in what.plain:
        return what
    return Padding(what[margin:], (0, 0, 0, margin), expand=False)


def begin(ctx: typer.Context, *, json: bool = False) -> Session:
    """The session of the running command."""
    session = ctx.find_root().obj
    if not isinstance(session, Session):  # the app was called without its callback
        session = Session()
        ctx.find_root().obj = session
    session.json = json
    return session


def report(error: BaseException, session: Session) -> Exit:
    """Tells an error in words (and, with ``json``, as a document) and gives its exit code.

    A ``KedgeError`` is told as it is. Everything else is unexpected: one sentence, and the stack in a
    log file, or on standard error with ``--debug``.
    """
    from cli.failures import explain  # noqa: PLC0415 - errors only

    told = explain(error)
    if told is None:
        return _unexpected(error, session)
    _tell(session, told.type, told.message, told.next_step, told.code, told.problems)
    if session.debug:
        _print_stack(error)
    return told.code


def tell_misuse(error: Exception) -> None:
    """The document for words that are no command line; typer itself says it to people."""
    said = getattr(error, "format_message", lambda: str(error))()
    step = "the command's --help shows its options"
    document = {"type": "Usage", "message": said, "next": step, "exit": int(Exit.BAD_INPUT)}
    Session(json=True).document({"error": document})


def _tell(
    session: Session,
    kind: str,
    message: str,
    next_step: str,
    code: Exit,
    problems: tuple[str, ...],
) -> None:
    from kedge.model.outside import line  # noqa: PLC0415 - errors only

    # Of what others wrote into a sentence, no line begins where ours do.
    own = [line(one, 2000) for one in problems] or [f"kedge: {line(message, 4000)}"]
    session.note("\n".join(own))
    if next_step:
        session.note(f"next: {line(next_step, 2000)}")
    error: dict[str, Any] = {"type": kind, "message": message, "next": next_step, "exit": int(code)}
    if problems:
        error["problems"] = list(problems)
    session.document({"error": error})


def _unexpected(error: BaseException, session: Session) -> Exit:
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        raise error  # the reader of our output is gone; typer ends quietly
    what = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    if session.debug:
        _print_stack(error)
        step = "report this, with what is above"
    else:
        log = _write_log(error, session)
        step = f"the details are in {log}; call it again with --debug to see them here"
    _tell(session, "Unexpected", f"this should not happen: {what}", step, Exit.UNEXPECTED, ())
    return Exit.UNEXPECTED


def _print_stack(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - errors only

    traceback.print_exception(error)


def _write_log(error: BaseException, session: Session) -> str:
    import tempfile  # noqa: PLC0415 - errors only
    import traceback  # noqa: PLC0415 - errors only

    stack = "".join(traceback.format_exception(error))
    text = f"{datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(sys.argv)}\n{stack}\n"
    home = session.home or Path(os.environ.get("KEDGE_HOME", ".kedge"))
    # Both may be read-only or full; then there is no log, and --debug is what is left.
    with contextlib.suppress(OSError):
        if home.is_dir():
            (home / "logs").mkdir(0o700, exist_ok=True)
            path = home / "logs" / "kedge-cli.log"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            return str(path.absolute())
    with contextlib.suppress(OSError):
        # A name of its own: one that everybody knows could be another user's link.
        descriptor, name = tempfile.mkstemp(prefix="kedge-cli-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return name
    return "no file (none could be written)"
