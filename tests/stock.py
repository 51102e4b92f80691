"""The stock ``temporal`` command line, as people use it with an embedded engine: through the home's profile."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from worker.engine import EngineState
from worker.provision import CLI, find


def stock_temporal() -> str:
    """The program; the test is skipped where there is none."""
    found = find(CLI)
    if found is None:
        pytest.skip("there is no stock temporal command line here (python -m worker.provision cli)")
    return str(found.path)


def reaching(state: EngineState) -> Mapping[str, str]:
    """An environment in which it reaches the engine: address and client certificate are in the profile."""
    return {**os.environ, "TEMPORAL_CONFIG_FILE": str(state.profile)}
