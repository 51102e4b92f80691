"""Releases and runs: what may start, what stops a run under way, what it takes to go on, and what never stops it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import activities.bringing_up
import activities.sessions
from kedge.drivers.ports import SessionEnd, SessionRequest, Transport
from kedge.drivers.tuf_repository import NewRelease
from kedge.model.base import Json, canonical, digest_of
from kedge.model.order import OrderVerdict
from kedge.model.plan import Plan, PlannedNode
from kedge.model.policy import ReleaseRules
from kedge.model.run import WaveResult, WideningRequest, WideningStop
from kedge.model.trusted import ReleaseName
from kedge.trust import evidence_file
from kedge.trust.evidence import Asked, verify_parts
from kedge.trust.tufkeys import content_digest
from tests.releases.world import World
from tests.spine.conftest import Stage
from tests.spine.forgery import Entry, joined, relinked, split
from tests.spine.latches import PACED, STEPS, in_flight, latch, let_through
from tests.spine.records import exported
from tests.spine.scene import Scene, eventually
from tests.spine.test_forged import Forger, hosts
from worker.wiring import drivers_of

pytestmark = pytest.mark.temporal

TEAM = ("ada", "bob", "robot")
ONE_BY_ONE: dict[str, Json] = {
    "node": STEPS,
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "on_failure": "rollback",
    "failure_budget": 1,
}
"""One node after the other; what fails may fail once, and then the run goes back by itself."""


async def signed_scene(stage: Stage, base: Path, **given: Any) -> tuple[Scene, World]:
    """A scene whose policy takes releases of a signed repository only; 1.0.0 and 1.1.0 are there, 1.2.0 is not.

    Both were made by nina, unless ``author`` says otherwise.
    """
    author = given.pop("author", "nina")
    world = World(base / "releases")
    made = await world.init()
    assert made.root is not None
    scene = await stage(release_repository=str(world.folder), **given)
    for version in ("1.0.0", "1.1.0"):
        document = scene.releases[version]
        files = {name: Path(one.source) for name, one in document.artifacts.items()}
        new = NewRelease(document=document, files=files, author=author)
        await world.desk.add(world.folder, new, world.signers(*TEAM), publish=True)
    rules = ReleaseRules(root=made.root)
    scene.policy = scene.policy.model_copy(update={"releases": rules})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    return scene, world


def daemon(version: str) -> ReleaseName:
    return ReleaseName(component="daemon", version=version)


async def revoke(world: World, version: str) -> None:
    await world.desk.revoke(
        world.folder, daemon(version), world.signers(*TEAM), reason="CVE-1", by="ada", publish=True
    )


async def judged(scene: Scene, plan: Plan) -> OrderVerdict:
    digest = await scene.drivers.blobs.put(canonical(plan))
    await scene.open_fleet()
    target = f"fleet/{scene.name}"
    return (await scene.submit(target, scene.envelope("start", target, digest, "olga"))).verdict


async def test_a_signed_release_runs_and_what_was_verified_is_evidence(
    stage: Stage, tmp_path: Path
) -> None:
    scene, _ = await signed_scene(stage, tmp_path)
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
    (record,) = [one for one in await scene.records("release") if one["run"] == run]
    assert record["ok"]
    assert record["release"] == {"component": "daemon", "version": "1.1.0"}
    assert record["root"] == scene.policy.releases.root if scene.policy.releases else False
    assert record["authors"][0] == "nina"
    assert record["versions"]["component"] == 2
    await judged_again(scene, run, record["custody"]["timestamp"])


async def judged_again(scene: Scene, run: str, timestamp: str) -> None:
    """From the exported file alone: it holds, and with other bytes for one metadata file it does not, at its record."""
    asked = Asked(pinned={digest_of(scene.policy): scene.policy})
    lines = await exported(scene, run, whole=True)
    report = verify_parts(evidence_file.read(lines), asked)
    assert report.ok, report.findings
    assert not [one for one in report.unproven if "worker's word" in one]
    # Who has the worker's account writes the record anew, over a timestamp that no key signed.
    objects = split(lines)
    (paper,) = [
        one["document"] for one in objects if one.get("document", {}).get("digest") == timestamp
    ]
    paper["content"] = paper["content"].replace('"version": 1', '"version": 7').replace("20", "21")
    paper["digest"] = content_digest(paper["content"].encode())

    def renamed(entries: list[Entry]) -> None:
        for entry in entries:
            custody = entry["record"].get("custody")
            if custody and custody["timestamp"] == timestamp:
                custody["timestamp"] = paper["digest"]

    forged = verify_parts(evidence_file.read(relinked(joined(objects), renamed)), asked)
    found = [one for one in forged.findings if one.kind == "release"]
    assert "not signed as the record says" in found[0].said
    assert found[0].seq is not None


@pytest.mark.parametrize("why", ["not listed", "revoked", "other bytes", "stale"])
async def test_what_is_not_signed_for_does_not_start(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    plan = scene.plan(after="1.2.0" if why == "not listed" else "1.1.0")
    if why == "revoked":
        await revoke(world, "1.1.0")
    if why == "other bytes":
        # Called 1.1.0, with the archive of 1.2.0: what it says of itself is not what was signed.
        other = scene.releases["1.2.0"].model_copy(update={"version": "1.1.0"})
        scene.releases["1.1.0"] = other
        plan = scene.plan()
    async with scene.playing():
        if why == "stale":
            ago = datetime.now(UTC) - timedelta(days=14)
            monkeypatch.setattr("desk.releases._now", lambda: ago)
            await world.publish(renew=[])
        verdict = await judged(scene, plan)
    assert not verdict.accepted
    assert verdict.rule == "release"
    said = {"not listed": "lists no release", "revoked": "was revoked by ada: CVE-1",
            "other bytes": "another document", "stale": "freeze"}[why]  # fmt: skip
    assert said in verdict.said
    assert set(scene.running().values()) == {"1.0.0"}


async def test_a_release_that_is_revoked_under_way_parks_the_run_and_asks(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path, options=PACED)
    async with scene.playing():
        latch(scene, "n0")
        run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
        await in_flight(scene, "n0")
        await revoke(world, "1.1.0")
        await asyncio.sleep(2.1)  # for so long it may be believed that the release stands
        let_through(scene)
        status = await scene.waits_for(run, "wave-1")
        # Whatever the runbook says of failures: nobody goes on without a node because of it, nobody goes back unasked.
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "rollback", "abort")
        assert "ReleaseRevoked: “daemon@1.1.0 was revoked by ada: CVE-1”" in status.said
        assert [failure.name for failure in status.failures] == ["the run"]
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0"}
        await scene.decide(run, "retry")
        await scene.waits_for(run, "wave-2")
        assert scene.running()["n1"] == "1.0.0", "it is revoked still"
        await world.desk.reinstate(
            world.folder, daemon("1.1.0"), world.signers(*TEAM), publish=True
        )
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert [scene.host(name).counts.starts for name in ("n0", "n1", "n2")] == [2, 2, 2]


async def test_taking_the_rules_out_of_the_policy_frees_no_run_under_way(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        loose = scene.policy.model_copy(update={"releases": None})
        await scene.drivers.pins.pin(scene.name, loose)
        await revoke(world, "1.1.0")
        await scene.approve(run)
        status = await scene.waits_for(run, "wave-1")
        assert "ReleaseRevoked" in status.said


async def test_rules_put_into_the_policy_hold_for_runs_under_way_too(
    stage: Stage, tmp_path: Path
) -> None:
    scene, _ = await signed_scene(stage, tmp_path)
    strict = scene.policy
    scene.policy = strict.model_copy(update={"releases": None})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    async with scene.playing():
        run = await scene.start(scene.plan(after="1.2.0"))
        await scene.waits_for(run, "ship")
        await scene.drivers.pins.pin(scene.name, strict)
        verdict = await scene.order("approve", run, "ada")
        assert (verdict.accepted, verdict.rule) == (False, "release")
        assert "lists no release daemon@1.2.0" in verdict.said


async def test_a_repository_that_is_not_renewed_parks_the_run_until_it_is(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, world = await signed_scene(stage, tmp_path, options=PACED)
    async with scene.playing():
        latch(scene, "n0")
        run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
        await in_flight(scene, "n0")
        ago = datetime.now(UTC) - timedelta(days=14)
        monkeypatch.setattr("desk.releases._now", lambda: ago)
        await world.publish(renew=[])
        monkeypatch.undo()
        await asyncio.sleep(2.1)
        let_through(scene)
        status = await scene.waits_for(run, "wave-1")
        assert "RepositoryStale" in status.said
        await world.publish(renew=[])
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"


async def test_the_way_back_is_open_whatever_became_of_either_release(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        await revoke(world, "1.1.0")
        await revoke(world, "1.0.0")
    # The worker that takes it up has never seen either of them.
    async with scene.working():
        back = await scene.rollback()
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}
    (record,) = await scene.records("release-back")
    assert not record["stands"]
    assert record["type"] == "ReleaseRevoked"


async def test_no_workflow_that_anybody_starts_brings_what_is_not_signed_for(
    stage: Stage, tmp_path: Path
) -> None:
    # The order is olga's own, and good; the fleet refused it. Who reaches the engine carries it past the fleet.
    scene, _ = await signed_scene(stage, tmp_path)
    forger = Forger(scene, scene.plan(scene.runbook(**ONE_BY_ONE), after="1.2.0"))
    async with scene.playing():
        before = hosts(scene)
        run = await forger.run(await forger.warrant(forger.order("olga")))
        wave: WaveResult = await forger.start("Wave", forger.wave(run), WaveResult)
        assert wave.done == 0
        assert [failure.type for failure in wave.failures] == ["ReleaseUnknown"]
        request = WideningRequest(run=run, facts=forger.facts, wave=0, serial=1)
        stop: WideningStop = await forger.start("CanaryWidening", request, WideningStop)
        assert [failure.type for failure in stop.failures] == ["ReleaseUnknown"]
        assert hosts(scene) == before


async def test_who_made_a_release_does_not_approve_it(stage: Stage, tmp_path: Path) -> None:
    scene, _ = await signed_scene(stage, tmp_path, author="ada")
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        verdict = await scene.order("approve", run, "ada")
        assert (verdict.accepted, verdict.rule) == (False, "author")
        assert (await scene.order("approve", run, "bob")).accepted


async def test_a_wave_is_not_opened_for_a_release_that_was_revoked_at_its_gate(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        await revoke(world, "1.1.0")
        await scene.approve(run)
        status = await scene.waits_for(run, "wave-1")
        assert "ReleaseRevoked" in status.said
        await scene.decide(run, "rollback", who="eve")
        assert (await scene.end_of(run)).phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}


async def test_nothing_is_installed_that_is_not_signed_for(stage: Stage, tmp_path: Path) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    await revoke(world, "1.0.0")
    async with scene.working():
        result = await scene.client.execute_workflow(
            "Ensure", scene.name, id=f"ensure/{scene.name}", task_queue=scene.settings.task_queue
        )
    assert result["installed"] == 0
    assert result["problems"][0] == "n0: is not installed: daemon@1.0.0 was revoked by ada: CVE-1"
    assert set(scene.running().values()) == {None}


async def test_a_release_that_is_revoked_while_a_fleet_is_brought_up_goes_to_no_further_node(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities.sessions, "AT_ONCE", 1)
    gone = asyncio.Event()
    talk = activities.sessions.talk

    async def slowly(transport: Transport, node: PlannedNode, asked: SessionRequest) -> SessionEnd:
        end = await talk(transport, node, asked)
        if node.name == "n1":
            await gone.wait()
        return end

    monkeypatch.setattr(activities.bringing_up, "talk", slowly)
    scene, world = await signed_scene(stage, tmp_path, nodes=4)
    async with scene.working():
        handle = await scene.client.start_workflow(
            "Ensure", scene.name, id=f"ensure/{scene.name}", task_queue=scene.settings.task_queue
        )
        await eventually(lambda: scene.running()["n0"] == "1.0.0")
        await revoke(world, "1.0.0")
        # What was seen of it counts for two seconds.
        await asyncio.sleep(2.1)
        gone.set()
        result = await handle.result()
    assert (result["installed"], result["running"]) == (1, 1)
    assert result["problems"] == [
        f"{node}: is not installed: daemon@1.0.0 was revoked by ada: CVE-1"
        for node in ("n1", "n2", "n3")
    ]
    assert "kedge release revoke daemon@1.0.0 --undo" in result["choices"][0]
    assert scene.running() == {"n0": "1.0.0", "n1": None, "n2": None, "n3": None}


async def test_a_reboot_needs_no_repository(stage: Stage, tmp_path: Path) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    async with scene.playing():
        world.folder.rename(tmp_path / "gone")
        await scene.ensure()


async def test_a_hostile_archive_is_refused_at_a_real_start_and_nothing_is_written_on_a_host(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path, transport="local")
    digest = scene.digest("1.1.0")
    # This worker has to fetch the archive; the keeper of the files changed a byte of it.
    for mine in (
        scene.settings.home / "artifacts" / digest,
        scene.home / "releases" / "daemon-1.1.0.tar",
    ):
        mine.unlink()
    (served,) = world.folder.glob(f"targets/daemon/1.1.0/{digest}.*")
    content = bytearray(served.read_bytes())
    content[600] ^= 1
    served.write_bytes(content)
    scene.drivers = drivers_of(scene.settings)
    async with scene.playing():
        before = written(scene)
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "wave-1")
        assert "RepositoryRefused" in status.said
        assert "arbitrary-software" in status.said
        assert written(scene) == before
        content[600] ^= 1
        served.write_bytes(content)
        await scene.decide(run, "retry")
        await scene.waits_for(run, "ship")
        assert any(digest in path for path in written(scene))


def written(scene: Scene) -> set[str]:
    """What lies on the hosts beside kedge's own journal and fence."""
    found = (path.relative_to(scene.home) for path in scene.home.glob("nodes/**/*"))
    return {str(path) for path in found if ".kedge" not in path.parts}
