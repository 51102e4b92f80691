"""Scenes for the tests of this folder, and an engine whose histories are renewed all the time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from desk import evidence as desk_evidence
from kedge.model.evidence import EvidenceReport
from tests.spine.scene import Scene, end_daemons, make_scene, settle
from worker import engine_files
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings

Stage = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def staged(tmp_path: Path) -> AsyncIterator[Stage]:
    """Makes scenes on any client, settled, and clears them away after the test."""
    made: list[Scene] = []

    async def make(client: Client, **given: Any) -> Scene:
        home = tmp_path / f"scene-{len(made)}"
        home.mkdir()
        scene = make_scene(client, home, **given)
        await settle(scene)
        made.append(scene)
        return scene

    yield make
    reports = [await verified(scene) for scene in made if not scene.meddled]
    for scene in made:
        await scene.drivers.aclose()
        end_daemons(scene)
    assert [report.findings for report in reports if report is not None and report.findings] == []


async def verified(scene: Scene) -> EvidenceReport | None:
    """Whatever a test did: the record of it verifies, from its first line on. None where there is none."""
    drivers = scene.drivers
    if (await drivers.evidence.head(scene.name)).seq == 0:
        return None
    pinned = await desk_evidence.pinned_here(drivers.pins, scene.name)
    return await desk_evidence.check(drivers.evidence, drivers.blobs, scene.name, pinned)


@pytest.fixture
async def stage(client: Client, staged: Stage) -> Stage:
    """Makes scenes on the engine of this process: by default three simulated nodes."""

    async def make(**given: Any) -> Scene:
        return await staged(client, **given)

    return make


@pytest.fixture(scope="session")
def renewing_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a running engine that asks for continue-as-new after a few events."""
    settings = Settings.load(home=tmp_path_factory.mktemp("renewing"), payloads="open")
    engine = Engine(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine_files.DYNAMIC_CONFIG, "limit.historyCount.suggestContinueAsNew", 30)
        engine.start()
    yield settings
    engine.stop()


@pytest.fixture
async def renewing(renewing_settings: Settings) -> Client:
    """A client of that engine."""
    return await connect(renewing_settings, patience=10)
