"""As whom daemons of tests run: as the tests themselves do."""

from __future__ import annotations

import os

from kedge.model.base import Json

AS_US: dict[str, Json] = {"user": "root"} if os.geteuid() == 0 else {}
"""A part of a Fleet's `run`: daemons write down what happens to them where a user of a node's own does not come."""
