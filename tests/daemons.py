"""As whom daemons of tests run: as the tests themselves do."""

from __future__ import annotations

import contextlib
import os
import shutil
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
