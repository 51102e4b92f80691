"""As whom daemons of tests run: as the tests themselves do."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kedge.model.base import Json

AS_US: dict[str, Json] = {"user": "root"} if os.geteuid() == 0 else {}
"""A part of a Fleet's `run`: daemons write down what happens to them where a user of a node's own does not come."""


@contextlib.contextmanager
def passable(folder: Path) -> Iterator[Path]:
    """A folder that the users of nodes can get to. Pytest's own are closed to them, so root gets another one."""
    if os.geteuid() != 0:
        yield folder
        return
    made = Path(tempfile.mkdtemp(prefix="kedge-test-", dir="/tmp"))
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def end_below(folder: Path) -> None:
    """Ends the daemons of every node below a folder, and the engine and the workers of a home there."""
    for state in (*folder.rglob("service.json"), *folder.rglob("run/*.json")):
        if found := re.search(r'"pid": *(\d+)', state.read_text()):
            _end(int(found[1]), folder)


def _end(pid: int, folder: Path) -> None:
    """Ends a process if it is one of the folder's: a number alone may be somebody else's by now."""
    try:
        where = Path(f"/proc/{pid}/cwd").readlink()
        ours = folder in (where, *where.parents)
        if ours or str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
