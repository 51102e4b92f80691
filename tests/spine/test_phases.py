"""What people say to a run in each of its phases: pause, resume, abort, reject, and nothing at all."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.plan import Verb
from tests.spine.conftest import Stage
from tests.spine.latches import PACED, STEPS, baking, held, in_flight, latch, let_through
from tests.spine.scene import Scene

pytestmark = pytest.mark.temporal

OLD = {"n0": "1.0.0", "n1": "1.0.0", "n2": "1.0.0"}
NEW = {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.1.0"}
CANARY = {**OLD, "n0": "1.1.0"}

LOOKING = Fault(do="hang", op="probe", run="upgrade/*", seconds=3)
"""Preflight takes long enough to say something meanwhile."""
FAIL = Fault(do="fail", op="healthy", node="n1", type="NotHealthy", message="503", run="upgrade/*")


async def say(scene: Scene, verb: Verb, run: str, who: str = "olga") -> None:
    verdict = await scene.order(verb, run, who)
    assert verdict.accepted, verdict


async def to_preflight(scene: Scene) -> str:
    scene.sim.program(LOOKING)
    return await scene.start(scene.plan(scene.runbook(preflight=[{"tcp": "127.0.0.1:1"}])))


async def to_gate(scene: Scene) -> str:
    run = await scene.start(scene.plan())
    await scene.waits_for(run, "ship")
    return run


async def to_wave(scene: Scene) -> str:
    waves: Json = {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1}
    latch(scene, "n1")
    run = await scene.start(scene.plan(scene.runbook(waves=waves, node=STEPS)))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    await in_flight(scene, "n1")
    return run


async def to_bake(scene: Scene) -> str:
    waves: dict[str, Json] = {
        "canary": {"nodes": 1, "bake": {"duration": "60s", "interval": "100ms"}, "gate": "ship"},
        "widen": ["100%"],
        "max_unavailable": 2,
    }
    run = await scene.start(scene.plan(scene.runbook(waves=waves)))
    await baking(scene, run)
    return run


async def to_parked(scene: Scene) -> str:
    scene.sim.program(FAIL)
    run = await to_gate(scene)
    await scene.approve(run)
    await scene.waits_for(run, "wave")
    return run


PHASES = {
    "preflight": to_preflight,
    "gate": to_gate,
    "wave": to_wave,
    "bake": to_bake,
    "parked": to_parked,
}


@pytest.mark.parametrize("phase", ["preflight", "gate", "wave"])
async def test_a_paused_run_waits_and_goes_on_after_a_resume(stage: Stage, phase: str) -> None:
    scene = await stage(options=PACED)
    async with scene.playing():
        run = await PHASES[phase](scene)
        await say(scene, "pause", run)
        if phase == "wave":
            await held(scene, run)
        let_through(scene)
        if phase == "gate":
            # A gate may be passed meanwhile; nothing follows from it.
            await scene.approve(run)
        await scene.until(run, "paused")
        before = scene.running()
        one_more = {**CANARY, "n1": "1.1.0"}
        assert before == {"preflight": OLD, "gate": CANARY, "wave": one_more}[phase]
        changes = len(scene.happened())
        await asyncio.sleep(0.5)
        assert len(scene.happened()) == changes
        await say(scene, "resume", run, "eve")
        if phase == "preflight":
            await scene.waits_for(run, "ship")
            await scene.approve(run)
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert end.nodes_done == 3
    assert scene.running() == NEW
    for node in NEW:
        assert scene.host(node).counts[:3] == (2, 1, 2), "each node was moved once"


async def test_a_bake_that_was_paused_is_done_anew(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await to_bake(scene)
        first = await baking(scene, run)
        await say(scene, "pause", run)
        await scene.until(run, "paused")
        assert scene.running() == CANARY
        await asyncio.sleep(2)
        await say(scene, "resume", run)
        again = await baking(scene, run)
        assert again - first > timedelta(seconds=1.5), "what was baked before the pause counts not"
        assert scene.running() == CANARY


@pytest.mark.parametrize("phase", PHASES)
async def test_an_aborted_run_ends_and_leaves_nodes_as_they_are(stage: Stage, phase: str) -> None:
    scene = await stage(options=PACED)
    async with scene.playing():
        run = await PHASES[phase](scene)
        await say(scene, "abort", run, "eve")
        let_through(scene)
        end = await scene.end_of(run)
        left = scene.running()
        fleet = await scene.freed()
        await asyncio.sleep(0.3)
        assert scene.running() == left
    assert end.phase == "aborted"
    assert "eve" in end.said
    assert None not in left.values(), "nodes in flight come to their end"
    assert end.release == ("1.0.0" if phase == "preflight" else None)
    assert fleet.release == end.release
    if phase in ("gate", "bake"):
        assert left == CANARY


async def test_a_gate_before_the_first_step_that_is_rejected_ends_the_run(stage: Stage) -> None:
    scene = await stage()
    book = scene.runbook(start={"gate": "ship"}, waves={"widen": ["100%"], "max_unavailable": 2})
    async with scene.playing():
        run = await scene.start(scene.plan(book))
        await scene.waits_for(run, "ship")
        verdict = await scene.order("reject", run, "ada", comment="not on a Friday")
        assert verdict.accepted
        end = await scene.end_of(run)
        fleet = await scene.freed()
    assert end.phase == "rejected"
    assert "not on a Friday" in end.said
    assert end.release == fleet.release == "1.0.0"
    assert scene.running() == OLD


async def test_a_later_gate_that_is_rejected_parks_and_a_retry_asks_everybody_again(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await to_gate(scene)
        await scene.approve(run, "bob")
        assert (await scene.order("reject", run, "ada")).accepted
        status = await scene.waits_for(run, "gate-1")
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "rollback", "abort")
        await scene.decide(run, "retry")
        status = await scene.waits_for(run, "ship")
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert status.waiting.tally.missing == 2, "a signature before the rejection counts no more"
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"


async def test_a_gate_nobody_signs_parks_and_a_retry_asks_again(stage: Stage) -> None:
    scene = await stage()
    gates: Json = {
        "ship": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}, "expires": "3s"}
    }
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(gates=gates)))
        await scene.waits_for(run, "ship")
        await scene.approve(run, "ada")
        status = await scene.waits_for(run, "gate-1")
        assert status.said == "gate ship expired: too few people signed in time"
        assert scene.running() == CANARY
        await scene.decide(run, "retry")
        status = await scene.waits_for(run, "ship")
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert status.waiting.tally.signed == ()
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
    assert scene.running() == NEW
