"""A secret that is missing on a host: the run says so before anything is stopped, and goes on once it is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedge.model.base import Json
from tests.secrets.conftest import Place, Staged

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

ONE_WAVE: dict[str, Json] = {
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "retry": {"attempts": 1, "backoff": "0s"},
}


def pids(home: Path) -> dict[str, int]:
    return {
        path.parts[-3]: json.loads(path.read_text())["pid"]
        for path in home.glob("nodes/*/.kedge/service.json")
    }


async def test_a_missing_secret_parks_a_run_before_a_daemon_is_stopped_and_then_it_goes_on(
    place: Place, staged: Staged, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for node in ("n0", "n1", "n2"):
        (kept / node).write_text("a-secret-of-the-crown")
        (kept / node).chmod(0o600)
    fleet: dict[str, Any] = {
        "secrets": {"db": {"file": f"{kept}/{{node.name}}"}},
        "files": {"app.conf": "password = {secret.db}\n"},
    }
    scene = await staged(await place.client(), transport="local", fleet=fleet)
    async with scene.playing():
        before = pids(scene.home)
        (kept / "n1").rename(kept / "elsewhere")
        run = await scene.start(scene.plan(scene.runbook(**ONE_WAVE)))
        status = await scene.until(run, "parked")
        [failure] = status.failures
        assert failure.type == "NoSecret"
        assert failure.name == "n1"
        assert "the secret db cannot be had" in failure.said
        assert pids(scene.home) == before
        (kept / "elsewhere").rename(kept / "n1")
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
        assert all(pids(scene.home)[node] != pid for node, pid in before.items())
        for node in before:
            file = scene.home / "nodes" / node / "config/current/app.conf"
            assert file.read_text() == "password = a-secret-of-the-crown\n"
        await scene.freed()
