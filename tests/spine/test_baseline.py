"""A rollback puts back what ran before, configuration too; and what would go wrong behind the stop is seen before it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kedge.model.base import Json
from kedge.model.errors import DriverError
from tests.spine.conftest import Stage
from tests.spine.scene import Scene

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

FILES: dict[str, Json] = {
    "files": {"app.conf": "level = {settings.level}\n"},
    "settings": {"level": "info"},
}
BOOK: dict[str, Json] = {
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "retry": {"attempts": 2, "backoff": "50ms"},
}


async def local(stage: Stage) -> Scene:
    """Two real daemons with a file of configuration."""
    return await stage(transport="local", nodes=2, fleet=FILES)


def change(scene: Scene) -> None:
    """What somebody writes into the Fleet document together with the next release."""
    scene.document = scene.document.model_copy(update={"settings": {"level": "debug"}})


def conf(scene: Scene, node: str) -> str:
    return (Path(scene.node(node).root) / "config/current/app.conf").read_text()


def starts(scene: Scene) -> list[str]:
    """The starts and stops that the daemons themselves wrote down: ``start n0 1.0.0``."""
    lines = (scene.home / "truth.log").read_text().splitlines()
    return [" ".join(line.split()[:3]) for line in lines]


async def upgraded(scene: Scene) -> str:
    change(scene)
    run = await scene.start(scene.plan(scene.runbook(**BOOK)))
    assert (await scene.end_of(run)).phase == "done"
    assert {conf(scene, node) for node in ("n0", "n1")} == {"level = debug\n"}
    return run


async def test_a_setting_changed_with_a_release_goes_back_with_it(stage: Stage) -> None:
    scene = await local(stage)
    async with scene.playing():
        await upgraded(scene)
        end = await scene.end_of(await scene.rollback())
    assert (end.phase, end.said) == ("rolled-back", "every node runs its baseline")
    assert {conf(scene, node) for node in ("n0", "n1")} == {"level = info\n"}
    steps = [step for leg in await scene.records("leg") for step in leg["steps"]]
    back = [step for step in steps if "/back/configure" in step["key"]]
    assert len(back) == 2
    assert all(step["result"]["known"] for step in back)


async def test_a_rollback_that_failed_midway_is_not_called_baseline(stage: Stage) -> None:
    scene = await local(stage)
    async with scene.playing():
        await upgraded(scene)
        # Somebody points the configuration back to that of the new release after the rollback.
        await scene.end_of(await scene.rollback())
        await scene.freed()
        root = Path(scene.node("n0").root)
        service = root / ".kedge/service.json"
        generations = [one.name for one in (root / "config").iterdir() if one.name != "current"]
        other = next(
            one for one in generations if f'"generation":"{one}"' not in service.read_text()
        )
        service.write_text(
            service.read_text().replace(next(one for one in generations if one != other), other)
        )
        (root / "config/current").unlink()
        (root / "config/current").symlink_to(other)
        end = await scene.end_of(await scene.rollback())
    assert (end.phase, end.said) == ("rolled-back", "every node runs its baseline")
    assert conf(scene, "n0") == "level = info\n"
    assert starts(scene).count("start n0 1.0.0") == 3


async def test_where_the_earlier_configuration_is_not_known_nobody_claims_it(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        assert (await scene.end_of(run)).phase == "done"
        # As on a host that an older kedge moved: it kept nothing of what ran.
        scene.host("n1").ran = ()
        end = await scene.end_of(await scene.rollback())
    assert end.phase == "rolled-back"
    said = "every node runs 1.0.0; the configuration that ran before is not known of n1"
    assert end.said == said


async def test_an_edit_by_hand_parks_with_its_diff_and_a_person_decides(stage: Stage) -> None:
    scene = await local(stage)
    edited = {"on_failure": "rollback"}
    async with scene.playing():
        path = Path(scene.node("n0").root) / "config/current/app.conf"
        path.write_text("level = info\ncache = 4\n")
        change(scene)
        run = await scene.start(scene.plan(scene.runbook(**BOOK, **edited)))
        status = await scene.waits_for(run, "wave-1")
        assert "EditedByHand" in status.said
        assert "retry overwrites the edit on n0" in status.said
        assert status.failures[0].step == "check"
        assert "+cache = 4" in str(status.failures[0].saw["diff"])
        assert sorted(starts(scene)) == ["start n0 1.0.0", "start n1 1.0.0"]
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
    kept = list((Path(scene.node("n0").root) / ".kedge/edits").glob("*/app.conf"))
    assert [one.read_text() for one in kept] == ["level = info\ncache = 4\n"]


async def test_an_old_release_that_was_cleaned_away_is_brought_again_for_a_rollback(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        assert (await scene.end_of(run)).phase == "done"
        scene.host("n1").releases = (scene.digest("1.1.0"),)
        back = await scene.rollback()
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}
    legs = [leg for leg in await scene.records("leg") if leg["run"] == back]
    sent = {leg["node"]: next(step.get("sent") for step in leg["steps"]) for leg in legs}
    assert sent["n1"]["digest"] == scene.digest("1.0.0")
    assert sent["n0"] is None, "what is there is not brought again"


async def test_an_archive_that_is_nowhere_parks_the_rollback_while_the_node_serves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        assert (await scene.end_of(run)).phase == "done"

        async def nowhere(*_: object) -> Path:
            raise DriverError("NotFound", "the repository does not answer", retryable=True)

        monkeypatch.setattr(scene.drivers.artifacts, "fetch", nowhere)
        lost = scene.host("n1")
        lost.releases = (scene.digest("1.1.0"),)
        back = await scene.rollback()
        status = await scene.waits_for(back, "back")
        assert "the repository does not answer; the daemon was not stopped" in status.said
        assert scene.running()["n1"] == "1.1.0"
        lost.releases = (*lost.releases, scene.digest("1.0.0"))
        await scene.decide(back, "retry")
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}


async def test_an_old_release_that_is_gone_is_brought_before_an_upgrade_stops_anything(
    stage: Stage,
) -> None:
    scene = await local(stage)
    async with scene.playing():
        gone = Path(scene.node("n0").root) / "releases" / scene.digest("1.0.0")
        gone.chmod(0o755)
        shutil.rmtree(gone)
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        assert (await scene.end_of(run)).phase == "done"
        assert (gone / "daemon").exists()
        steps = [step["key"] for leg in await scene.records("leg") for step in leg["steps"]]
        assert [key.rsplit("/", 2)[-1] for key in steps if "brings" in key] == ["check-brings"]


async def test_an_old_release_that_was_changed_is_noticed_before_an_upgrade_stops_anything(
    stage: Stage,
) -> None:
    scene = await local(stage)
    async with scene.playing():
        daemon = Path(scene.node("n0").root) / "releases" / scene.digest("1.0.0") / "daemon"
        daemon.chmod(0o755)
        daemon.write_text(daemon.read_text() + "# changed\n")
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        status = await scene.waits_for(run, "wave-1")
        assert "DigestMismatch" in status.said
        assert sorted(starts(scene)) == ["start n0 1.0.0", "start n1 1.0.0"]
        await scene.order("abort", run, "eve")
        await scene.end_of(run)
