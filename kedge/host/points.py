"""Named instants a test may stop the program at; nothing at all unless `KEDGE_POINTS` is set.

`KEDGE_POINTS` names a directory. When it has a file `<point>@<node>` or `<point>`, the file is renamed
to `<name>.reached` (so it acts once) and its content is obeyed: `kill` (SIGKILL to this process),
`stop` (SIGSTOP to this process), `wait` (until the renamed file is removed). Source:
`docs/host-protocol.md`, Points.
"""

from __future__ import annotations

import os
import signal
import time

_directory = os.environ.get("KEDGE_POINTS", "")
_node = ""


def of_node(name: str) -> None:
    """Say which node this process works on, so that `<point>@<node>` means it alone."""
    global _node  # noqa: PLW0603 -- one process is one session on one node
    _node = name.replace("/", "_")


def reach(point: str) -> None:
    """Stop here if a test asked for it."""
    if not _directory:
        return
    for name in (f"{point}@{_node}", point):
        path = f"{_directory}/{name}"
        reached = f"{path}.reached"
        try:
            os.rename(path, reached)
        except OSError:
            continue
        _obey(reached)
        return


def _obey(reached: str) -> None:
    try:
        with open(reached, encoding="ascii") as told:
            order = told.read().strip()
    except OSError:
        return
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif order == "wait":
        while os.path.lexists(reached):
            time.sleep(0.005)
