"""The way back before and behind the point of no return: forbidden, or by snapshots and a gate of its own."""

from __future__ import annotations

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.status import RunStatus
from tests.spine.conftest import Stage
from tests.spine.latches import PACED, STEPS, in_flight, latch, let_through
from tests.spine.scene import Scene

pytestmark = pytest.mark.temporal

OLD = {"n0": "1.0.0", "n1": "1.0.0", "n2": "1.0.0"}
NEW = {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.1.0"}
LOST = "writes since the snapshot"
GUARDED: dict[str, Json] = {
    "node": [
        "stage",
        {"stop": {"signal": "TERM", "grace": "5s"}},
        {"snapshot": {"paths": ["data"]}},
        "switch",
        "configure",
        {"start": {"settle": "0s"}},
        {
            "healthy": {
                "service": {"running": True},
                "for": "0s",
                "within": "5s",
                "interval": "50ms",
            }
        },
    ],
    "waves": {"canary": {"nodes": 1}, "widen": ["100%"], "last_node": True, "max_unavailable": 1},
    "gates": {
        "commit": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}},
        "data-loss": {"approvals": {"threshold": 1, "roles": ["db-owner"]}},
    },
    "commit": {"before": "last-node", "gate": "commit", "lost": LOST},
    "rollback": {"after_commit": {"restore": "snapshot", "gate": "data-loss"}},
}
FORBIDDEN: dict[str, Json] = {
    **GUARDED,
    "gates": {"commit": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}}},
    "rollback": {"after_commit": "forbidden"},
}
FINALIZED: dict[str, Json] = {
    **GUARDED,
    "waves": {"canary": {"nodes": 1}, "widen": ["100%"], "max_unavailable": 1},
    "commit": {"before": "finalize", "gate": "commit", "lost": LOST},
    "finalize": {"steps": [{"run": {"argv": ["finish"], "undo": "none"}}]},
}


async def committed(scene: Scene, book: dict[str, Json]) -> str:
    """A run that went through its point of no return to its end."""
    run = await scene.start(scene.plan(scene.runbook(**book)))
    status = await scene.waits_for(run, "commit")
    assert guards(status)
    await scene.approve(run)
    assert (await scene.end_of(run)).phase == "done"
    await scene.freed()
    return run


def guards(status: RunStatus) -> bool:
    """Who signs is told what the gate is about."""
    assert status.waiting is not None
    showing = status.waiting.showing
    return "point of no return" in showing.reversible and showing.lost == LOST


async def test_before_the_point_of_no_return_the_way_back_is_open(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**FORBIDDEN)))
        await scene.waits_for(run, "commit")
        assert scene.running() == {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.0.0"}
        end = await scene.end_of(await scene.rollback())
    assert end.phase == "rolled-back"
    assert scene.running() == OLD


async def test_behind_it_there_is_no_way_back_where_the_runbook_forbids_it(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await committed(scene, FORBIDDEN)
        end = await scene.end_of(await scene.rollback())
    assert end.phase == "rejected"
    assert end.said == f"the point of no return is behind the fleet: {LOST}"
    assert scene.running() == NEW


@pytest.mark.parametrize("book", [GUARDED, FINALIZED], ids=["last-node", "finalize"])
async def test_behind_it_snapshots_of_the_upgrade_are_restored_when_who_owns_the_data_signs(
    stage: Stage, book: dict[str, Json]
) -> None:
    scene = await stage()
    async with scene.playing():
        await committed(scene, book)
        back = await scene.rollback()
        status = await scene.waits_for(back, "data-loss")
        assert status.waiting is not None
        assert status.waiting.showing.lost == LOST
        assert scene.running() == NEW, "nothing is done before it is signed"
        refused = await scene.order("approve", back, "ada")
        assert refused.rule == "role"
        await scene.approve(back, "bob")
        end = await scene.end_of(back)
    assert end.phase == "rolled-back"
    assert scene.running() == OLD
    for name in OLD:
        host = scene.host(name)
        assert host.state.data == (scene.digest("1.0.0"),), "what the new release wrote is gone"
        assert len(host.replaced) == 1


async def test_finalize_steps_that_fail_park_and_are_done_once_when_they_are_tried_again(
    stage: Stage,
) -> None:
    scene = await stage()
    failing = Fault(do="fail", op="run", run="upgrade/*", type="CommandFailed", message="exit 1")
    async with scene.playing():
        scene.sim.program(failing)
        run = await scene.start(scene.plan(scene.runbook(**FINALIZED)))
        await scene.waits_for(run, "commit")
        assert scene.host("n0").counts.runs == 0
        await scene.approve(run)
        status = await scene.waits_for(run, "finalize-1")
        assert status.said == "finalize: n0 at run: CommandFailed: “exit 1”"
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "abort"), (
            "no way back by itself any more"
        )
        scene.sim.clear()
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
    assert [scene.host(name).counts.runs for name in OLD] == [1, 0, 0]


async def test_finalize_steps_are_done_on_another_node_when_the_first_was_skipped(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        scene.sim.program(
            Fault(do="fail", op="stop", node="n0", run="upgrade/*", type="StopTimeout")
        )
        book: dict[str, Json] = {**FINALIZED, "retry": {"attempts": 1}}
        run = await scene.start(scene.plan(scene.runbook(**book)))
        await scene.waits_for(run, "wave")
        await scene.decide(run, "skip")
        await scene.waits_for(run, "end")
        await scene.decide(run, "skip")
        await scene.waits_for(run, "commit")
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
    assert [scene.host(name).counts.runs for name in OLD] == [0, 1, 0]


async def test_the_finalize_steps_once_begun_are_behind_the_point_of_no_return(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="run", run="upgrade/*", type="CommandFailed"))
        run = await scene.start(scene.plan(scene.runbook(**FINALIZED)))
        await scene.waits_for(run, "commit")
        await scene.approve(run)
        await scene.waits_for(run, "finalize")
        back = await scene.rollback()
        status = await scene.waits_for(back, "data-loss")
        assert status.waiting is not None
        assert status.waiting.showing.lost == LOST
        await scene.approve(back, "bob")
        assert (await scene.end_of(back)).phase == "rolled-back"
        await scene.freed()
        # A new upgrade by the same plan has not begun them yet: the plain way back is open.
        scene.sim.clear()
        run = await scene.start(scene.plan(scene.runbook(**FINALIZED)))
        await scene.waits_for(run, "commit")
        assert (await scene.end_of(await scene.rollback())).phase == "rolled-back"
    assert scene.running() == OLD


async def test_a_way_back_that_began_to_restore_restores_whoever_goes_on(stage: Stage) -> None:
    scene = await stage()
    stuck = Fault(do="fail", op="stop", node="n0", run="rollback/*/2", type="StopTimeout")
    async with scene.playing():
        await committed(scene, GUARDED)
        scene.sim.program(stuck)
        first = await scene.rollback()
        await scene.waits_for(first, "data-loss")
        await scene.approve(first, "bob")
        await scene.waits_for(first, "back")
        assert scene.running() == {**OLD, "n0": "1.1.0"}, "the last node is restored already"
        second = await scene.rollback()
        status = await scene.waits_for(second, "data-loss")
        assert status.waiting is not None
        await scene.approve(second, "bob")
        end = await scene.end_of(second)
    assert end.phase == "rolled-back"
    assert scene.host("n0").state.data == (scene.digest("1.0.0"),)


async def test_nobody_signing_for_the_loss_ends_the_way_back_and_it_may_be_ordered_again(
    stage: Stage,
) -> None:
    scene = await stage()
    short: Json = {
        "commit": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}},
        "data-loss": {
            "approvals": {"threshold": 1, "roles": ["db-owner"]},
            "expires": "2s",
        },
    }
    async with scene.playing():
        await committed(scene, {**GUARDED, "gates": short})
        end = await scene.end_of(await scene.rollback())
        assert end.phase == "rejected"
        assert "expired" in end.said
        await scene.freed()
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        assert (await scene.order("reject", back, "bob")).accepted
        assert (await scene.end_of(back)).phase == "rejected"
    assert scene.running() == NEW


async def test_nothing_goes_back_by_itself_behind_the_point_of_no_return(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="healthy", node="n2", run="upgrade/*"))
        once: Json = {"attempts": 1, "backoff": "0s"}
        book: dict[str, Json] = {**GUARDED, "on_failure": "rollback", "retry": once}
        run = await scene.start(scene.plan(scene.runbook(**book)))
        await scene.waits_for(run, "commit")
        await scene.approve(run)
        status = await scene.waits_for(run, "wave")
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "abort")
        assert status.waiting.showing.reversible == "restore"
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        await scene.approve(back, "bob")
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert scene.running() == OLD


async def test_a_paused_rollback_begins_no_further_node_and_an_aborted_one_ends(
    stage: Stage,
) -> None:
    scene = await stage(options=PACED)
    snapshot: Json = {"snapshot": {"paths": ["data"]}}
    async with scene.playing():
        await committed(scene, {**GUARDED, "node": [*STEPS[:2], snapshot, *STEPS[2:]]})
        latch(scene, "n2", run="rollback/*")
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        assert (await scene.order("pause", back, "eve")).accepted
        await scene.approve(back, "bob")
        await scene.until(back, "paused")
        assert scene.running() == NEW, "it was paused before the first node"
        assert (await scene.order("resume", back, "eve")).accepted
        await in_flight(scene, "n2", "1.0.0")
        assert (await scene.order("pause", back, "eve")).accepted
        let_through(scene)
        await scene.until(back, "paused")
        assert scene.running() == {**NEW, "n2": "1.0.0"}
        assert (await scene.order("abort", back, "eve")).accepted
        end = await scene.end_of(back)
    assert end.phase == "aborted"
    assert end.release is None
    assert end.nodes_done == 1


async def test_snapshots_of_an_older_upgrade_are_never_restored(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await committed(scene, GUARDED)
        plan = scene.plan(scene.runbook(**GUARDED), before="1.1.0", after="1.2.0")
        run = await scene.start(plan)
        await scene.waits_for(run, "commit")
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        assert all(len(scene.host(name).snapshots) == 2 for name in OLD)
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        await scene.approve(back, "bob")
        assert (await scene.end_of(back)).phase == "rolled-back"
    assert scene.running() == NEW
    kept = (scene.digest("1.0.0"), scene.digest("1.1.0"))
    assert all(scene.host(name).state.data == kept for name in OLD)
