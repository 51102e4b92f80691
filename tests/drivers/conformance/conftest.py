"""The rig of a conformance test: once with real processes, once simulated, once simulated on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.drivers.conformance.rigs import LocalRig, Rig, SimRig


@pytest.fixture(params=["local", "sim", "sim-on-disk"])
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    made: Rig
    if request.param == "local":
        monkeypatch.setenv("KEDGE_POINTS", str(tmp_path / "points"))
        made = LocalRig(tmp_path)
    else:
        made = SimRig(tmp_path, tmp_path / "sim.jsonl" if request.param == "sim-on-disk" else None)
    yield made
    await made.transport.aclose()
    _end_daemons(tmp_path / "nodes")


def _end_daemons(roots: Path) -> None:
    """Ends every process that works in a node's root of this test: daemons and their children."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().parent == roots:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
