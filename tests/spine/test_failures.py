"""Nodes that fail: within the budget and over it, in a wave and in its bake; what people may decide, and what follows."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.plan import Choice
from kedge.model.status import RunStatus
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually

pytestmark = pytest.mark.temporal

SICK = Fault(do="fail", op="healthy", node="n1", run="upgrade/*", type="NotHealthy", message="503")
"""n1 never gets healthy on the new release."""
ALL_AT_ONCE: dict[str, Json] = {
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "retry": {"attempts": 2, "backoff": "50ms"},
}


async def failing(scene: Scene, **given: Json) -> tuple[str, RunStatus]:
    """A run that is parked because n1, the second of three, failed."""
    scene.sim.program(SICK)
    run = await scene.start(scene.plan(scene.runbook(**{**ALL_AT_ONCE, **given})))
    return run, await scene.waits_for(run, "wave")


def stopped_there(status: RunStatus) -> None:
    """The run says what happened, where, and which decisions are open."""
    assert status.waiting is not None
    assert status.waiting.kind == "parked"
    assert status.waiting.showing.choices == ("retry", "skip", "rollback", "abort")
    assert status.said == "wave: n1 at healthy: NotHealthy: “503”"
    assert [failure.name for failure in status.failures] == ["n1"]
    assert status.waiting.showing.reversible == "switch-back"


async def test_a_node_that_fails_once_is_tried_again_and_nobody_is_asked(stage: Stage) -> None:
    scene = await stage()
    once = SICK.model_copy(update={"nth": (1,)})
    async with scene.playing():
        scene.sim.program(once)
        run = await scene.start(scene.plan(scene.runbook(**ALL_AT_ONCE)))
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert scene.host("n1").counts.starts == 2, "looking again does not start again"


async def test_a_retry_does_what_failed_anew_and_goes_on(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run, status = await failing(scene)
        stopped_there(status)
        assert scene.running() == {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.0.0"}
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert [scene.host(name).counts.starts for name in ("n0", "n1", "n2")] == [2, 3, 2]


async def test_a_retry_that_fails_again_parks_again_and_each_decision_is_for_one_of_them(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run, status = await failing(scene)
        old = scene.envelope("decide", run, status.plan, "olga", choice="retry", **about(status))
        await scene.decide(run, "retry")
        again = await scene.waits_for(run, "wave-2")
        stopped_there(again)
        late = (await scene.submit(run, old)).verdict
        assert late.rule == "subject"
        scene.sim.clear()
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"


def about(status: RunStatus) -> dict[str, Any]:
    """What an order about the open item must name."""
    assert status.waiting is not None
    return {"subject": status.waiting.subject, "shown": status.waiting.shown}


async def test_a_retry_starts_a_daemon_anew_also_when_it_was_started_again_before(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        # It dies at its first start and is started again by itself; then it is sick.
        dead = Fault(do="crash", op="start", node="n1", nth=(1,), run="upgrade/*", seconds=0)
        scene.sim.program(dead, SICK)
        run = await scene.start(scene.plan(scene.runbook(**ALL_AT_ONCE)))
        status = await scene.waits_for(run, "wave")
        assert status.failures[0].type == "NotHealthy"
        assert scene.host("n1").counts.starts == 3
        scene.sim.clear()
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
    assert scene.host("n1").counts.starts == 4


async def test_a_node_of_many_decisions_is_never_fenced_off_by_its_own_bake(stage: Stage) -> None:
    scene = await stage(nodes=1)
    node = [*scene.runbook().model_dump(mode="json", by_alias=True, exclude_defaults=True)["node"]]
    pauses: list[Json] = [{"probe": {"tcp": "127.0.0.1:1", "decision": True}} for _ in range(40)]
    waves: Json = {"bake": {"duration": "200ms", "interval": "100ms"}}
    async with scene.playing():
        book = scene.runbook(node=[*pauses, *node], waves=waves, gates={})
        run = await scene.start(scene.plan(book))
        assert (await scene.end_of(run)).phase == "done"


async def test_a_skip_goes_on_without_the_node_and_says_so_to_the_end(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run, _ = await failing(scene)
        await scene.decide(run, "skip")
        status = await scene.waits_for(run, "end")
        assert status.said == "all waves are through, but 1 node(s) are not on the new release"
        assert [failure.name for failure in status.failures] == ["n1"]
        assert scene.running()["n2"] == "1.1.0"
        await scene.decide(run, "skip")
        end = await scene.end_of(run)
        fleet = await scene.freed()
    assert end.phase == "done"
    assert end.said == "done, but 1 node(s) were skipped and are not on the new release"
    assert end.nodes_done == 2
    assert end.release is None
    assert fleet.release is None


async def test_a_retry_at_the_end_takes_up_skipped_nodes_of_every_wave(stage: Stage) -> None:
    scene = await stage(nodes=4)
    waves: Json = {"canary": {"nodes": 2}, "widen": ["100%"], "max_unavailable": 1}
    async with scene.playing():
        run, _ = await failing(scene, waves=waves)
        await scene.decide(run, "skip")
        await scene.waits_for(run, "end")
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.release == "1.1.0"
    assert end.nodes_done == 4
    assert set(scene.running().values()) == {"1.1.0"}


@pytest.mark.parametrize("choice", ["rollback", "abort"])
async def test_a_person_may_give_up_or_go_back(stage: Stage, choice: Choice) -> None:
    scene = await stage()
    async with scene.playing():
        run, _ = await failing(scene)
        await scene.decide(run, choice)
        end = await scene.end_of(run)
        fleet = await scene.freed()
    if choice == "abort":
        assert end.phase == "aborted"
        assert scene.running() == {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.0.0"}
        assert fleet.release is None
    else:
        assert end.phase == "rolled-back"
        assert end.successor is not None
        assert set(scene.running().values()) == {"1.0.0"}
        assert scene.host("n2").counts == (1, 0, 1, 0), "who was not touched is not touched"
        assert end.release == fleet.release == "1.0.0"


async def test_a_failure_goes_back_by_itself_where_the_runbook_says_so(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        scene.sim.program(SICK)
        book = scene.runbook(**{**ALL_AT_ONCE, "on_failure": "rollback"})
        run = await scene.start(scene.plan(book))
        end = await scene.end_of(run)
        assert end.successor == f"rollback/{scene.name}/1-auto"
        back = await scene.status(end.successor)
    assert end.phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}
    assert back.kind == "rollback"
    assert back.requester == "olga"
    decisions = [one["said"] for one in await scene.records("decision")]
    assert "going back by itself: n1: “503”" in decisions


@pytest.mark.parametrize("budget", [1, 2])
async def test_failures_within_the_budget_do_not_stop_the_waves(stage: Stage, budget: int) -> None:
    scene = await stage(nodes=6)
    waves: Json = {"canary": {"nodes": 2}, "widen": ["100%"], "max_unavailable": 3}
    async with scene.playing():
        run = await with_budget(scene, budget, waves, sick="n[14]")
        if budget == 1:
            status = await scene.waits_for(run, "wave")
            assert sorted(failure.name for failure in status.failures) == ["n1", "n4"]
        else:
            status = await scene.waits_for(run, "end")
            assert sorted(failure.name for failure in status.failures) == ["n1", "n4"]
            assert status.nodes_done == 4
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.nodes_done == 6
    assert set(scene.running().values()) == {"1.1.0"}


async def with_budget(scene: Scene, budget: int, waves: Json, *, sick: str) -> str:
    scene.sim.program(SICK.model_copy(update={"node": sick}))
    given = {**ALL_AT_ONCE, "waves": waves, "failure_budget": budget}
    return await scene.start(scene.plan(scene.runbook(**given)))


async def test_nodes_that_failed_within_the_budget_keep_their_places_among_the_unavailable(
    stage: Stage,
) -> None:
    scene = await stage(nodes=4)
    waves: Json = {
        "canary": {"nodes": 1, "gate": "ship"},
        "widen": ["100%"],
        "max_unavailable": 1,
    }
    gates: Json = {"ship": {"approvals": {"threshold": 1, "roles": ["sre"]}}}
    async with scene.playing():
        scene.sim.program(SICK.model_copy(update={"node": "n0"}))
        given = {**ALL_AT_ONCE, "waves": waves, "gates": gates, "failure_budget": 2}
        run = await scene.start(scene.plan(scene.runbook(**given)))
        await scene.waits_for(run, "ship")
        await scene.approve(run, "ada")
        status = await scene.waits_for(run, "wave")
        assert status.said == "1 node(s) are out, and no more may be"
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0", "n3": "1.0.0"}
        await scene.decide(run, "skip")
        await scene.waits_for(run, "end")
    assert set(scene.running().values()) == {"1.1.0"}, "a person said to go on without it"


BAKED: dict[str, Json] = {
    **ALL_AT_ONCE,
    "waves": {
        "canary": {"nodes": 2, "bake": {"duration": "2s", "interval": "200ms"}},
        "widen": ["100%"],
        "max_unavailable": 1,
    },
}


async def dying(scene: Scene, **given: Json) -> str:
    """A run of which the first node's daemon dies within the bake, once."""
    crash = Fault(do="crash", op="start", node="n0", nth=(1,), run="upgrade/*", seconds=1.0)
    scene.sim.program(crash)
    return await scene.start(scene.plan(scene.runbook(**{**BAKED, **given})))


async def test_a_node_that_dies_in_the_bake_parks_and_a_retry_starts_it_and_bakes_again(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await dying(scene)
        status = await scene.waits_for(run, "bake")
        assert "n0" in status.said
        assert scene.running() == {"n0": None, "n1": "1.1.0", "n2": "1.0.0"}
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.nodes_done == 3
    assert set(scene.running().values()) == {"1.1.0"}
    assert scene.host("n0").counts[:3] == (3, 1, 2), "it is started, and not upgraded again"


async def test_skipping_who_died_in_the_bake_does_not_cut_the_bake_of_the_others_short(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await dying(scene)
        await scene.waits_for(run, "bake-1")
        scene.host("n1").become(pid=None)
        await scene.decide(run, "skip")
        status = await scene.waits_for(run, "bake-2")
        assert "n1" in status.said
        assert scene.running()["n2"] == "1.0.0"
        await scene.decide(run, "skip")
        status = await scene.waits_for(run, "end")
        assert status.nodes_done == 1
    assert scene.running() == {"n0": None, "n1": None, "n2": "1.1.0"}


async def test_a_bake_that_fails_goes_back_by_itself_where_the_runbook_says_so(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await dying(scene, on_failure="rollback")
        end = await scene.end_of(run)
    assert end.phase == "rolled-back"
    assert set(scene.running().values()) == {"1.0.0"}


async def test_preflight_that_fails_parks_and_looks_again_or_leaves_nodes_out(
    stage: Stage,
) -> None:
    scene = await stage()
    gone = Fault(do="unreachable", node="n1", run="upgrade/*", message="no route")
    async with scene.playing():
        scene.sim.program(gone)
        run = await scene.start(scene.plan(scene.runbook(**ALL_AT_ONCE)))
        status = await scene.waits_for(run, "preflight-1")
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "abort")
        assert "n1" in status.said
        assert "no route" in status.said
        await scene.decide(run, "retry")
        await scene.waits_for(run, "preflight-2")
        await scene.decide(run, "skip")
        await scene.waits_for(run, "end")
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.1.0"}
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.release == "1.1.0"


async def test_nodes_that_are_there_already_are_left_alone(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await with_budget(scene, 0, {"canary": {"nodes": 1}, "widen": ["100%"]}, sick="n1")
        await scene.waits_for(run, "wave")
        await scene.decide(run, "abort")
        await scene.end_of(run)
        scene.sim.clear()
        await scene.freed()
        before = [scene.host(name).counts for name in ("n0", "n1")]
        run = await scene.start(scene.plan(scene.runbook(**ALL_AT_ONCE)))
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.nodes_done == 3
    assert [scene.host(name).counts for name in ("n0", "n1")] == before
    assert set(scene.running().values()) == {"1.1.0"}


async def test_a_way_back_that_fails_asks_what_to_do_and_gives_up_nodes(stage: Stage) -> None:
    scene = await stage()
    stuck = Fault(
        do="fail", op="stop", node="n0", run="rollback/*", type="StopTimeout", message="x"
    )
    async with scene.playing():
        run, _ = await failing(scene)
        scene.sim.program(stuck)
        await scene.decide(run, "rollback")
        back = (await scene.until(run, lambda s: s.successor is not None)).successor or ""
        status = await scene.waits_for(back, "back-1")
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "abort")
        assert status.said == "back: n0 at stop: StopTimeout: “x”"
        assert scene.running()["n1"] == "1.0.0", "the last go back first"
        refused = await scene.order("abort", run, "eve")
        assert refused.rule == "verb", "the way back is a run of its own"
        await scene.decide(back, "retry")
        await scene.waits_for(back, "back-2")
        await scene.decide(back, "skip")
        end = await scene.end_of(run)
        fleet = await scene.freed()
    assert end.phase == "rolled-back"
    said = "2 of 3 nodes run their baseline; given up, and not known to be back: n0"
    assert end.said == said
    assert end.release is None
    assert fleet.release is None
    await eventually(lambda: scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0"})


async def test_a_step_that_takes_longer_than_its_timeout_parks_and_says_what_to_do(
    stage: Stage,
) -> None:
    scene = await stage(options={"pace": 0.01, "seconds": {"snapshot": 100}})
    node: Json = [
        "stage", {"stop": {"grace": "5s"}}, {"snapshot": {"paths": ["data"], "timeout": "5s"}}, "switch", "configure",
        "start", {"healthy": {"service": {"running": True}, "within": "5s"}},
    ]  # fmt: skip
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**{**ALL_AT_ONCE, "node": node})))
        status = await scene.waits_for(run, "wave")
        assert "n0 at snapshot: StepTimeout: “did not end within 5 s, its `timeout`" in status.said
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "rollback", "abort")
        assert scene.running()["n0"] is None
        await scene.decide(run, "rollback")
        assert (await scene.end_of(run)).phase == "rolled-back"
        assert scene.running()["n0"] == "1.0.0"
