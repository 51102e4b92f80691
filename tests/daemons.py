"""As whom daemons of tests run: as the tests themselves do."""

from __future__ import annotations

import os
from pathlib import Path

from kedge.model.base import Json

AS_US: dict[str, Json] = {"user": "root"} if os.geteuid() == 0 else {}
"""A part of a Fleet's `run`: daemons write down what happens to them where a user of a node's own does not come."""


def passable(folder: Path) -> Path:
    """A folder that the users of nodes can get to: pytest closes its own, and root's daemons are somebody else."""
    if os.geteuid() == 0:
        for path in (folder, *folder.parents):
            if path.owner() == "root" and "pytest" in str(path):
                path.chmod(0o711)
    return folder
