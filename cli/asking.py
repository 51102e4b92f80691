"""Questions to who sits at the terminal. Ctrl-C and the end of input answer them: no, and nothing is done."""

from __future__ import annotations

import getpass
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


def agrees(question: str) -> bool:
    """Whether the answer is yes. Enter alone, Ctrl-C and Ctrl-D are no."""
    try:
        with _interruptible():
            return typer.confirm(question, default=False, err=True)
    except typer.Abort:
        sys.stderr.write("\n")
        return False


def passphrase_asker() -> Callable[[], str] | None:
    """Asks for a key's passphrase on a terminal; None where there is nobody to ask.

    Called in the main thread it raises ``KeyboardInterrupt`` where no passphrase is given; in another one nobody can
    interrupt it.
    """
    return _passphrase if sys.stdin.isatty() else None


def _passphrase() -> str:
    try:
        with _interruptible():
            return getpass.getpass("passphrase of the key: ", stream=sys.stderr)
    except EOFError:
        raise KeyboardInterrupt from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a question at once.

    Under ``asyncio.run`` the first one only marks the task as cancelled, and the question would stand there as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
