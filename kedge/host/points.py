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
from typing import Tuple

_directory = os.environ.get("KEDGE_POINTS", "")
_node = ""


def of_node(name: str) -> None:
    """Say which node this process works on, so that `<point>@<node>` means it alone."""
    global _node  # noqa: PLW0603 -- one process is one session on one node
    _node = name.replace("/", "_")


def reach(point: str) -> None:
    """Stop here if a test asked for it."""
    order, reached = taken(point, _node)
    if order == "wait":
        while os.path.lexists(reached):
            time.sleep(0.005)
    else:
        obey(order)


def taken(point: str, whose: str) -> Tuple[str, str]:
    """What is ordered at this point, and the file whose removal ends a `wait`; empty when nothing is."""
    if not _directory:
        return "", ""
    for name in (f"{point}@{whose}", point):
        path = f"{_directory}/{name}"
        reached = f"{path}.reached"
        try:
            os.rename(path, reached)
            with open(reached, encoding="ascii") as told:
                return told.read().strip(), reached
        except OSError:
            continue
    return "", ""


def obey(order: str) -> None:
    """Die or stop, if that is ordered."""
    if order == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
