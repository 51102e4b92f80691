"""The on-call engineer rolls back: at any moment, twice, and as far as the point of no return allows."""

from __future__ import annotations

import asyncio

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json, canonical
from kedge.model.policy import GateMinimums, Minimum
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually

pytestmark = pytest.mark.temporal

OLD = {"n0": "1.0.0", "n1": "1.0.0", "n2": "1.0.0"}
NEW = {"n0": "1.1.0", "n1": "1.1.0", "n2": "1.1.0"}
ONE_BY_ONE: dict[str, Json] = {
    "waves": {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1},
    "retry": {"attempts": 2, "backoff": "50ms"},
}


async def preflight(scene: Scene) -> str:
    asked: Json = [{"tcp": "127.0.0.1:1"}]
    scene.sim.program(Fault(do="hang", op="probe", run="upgrade/*", seconds=30))
    book = scene.runbook(**{**ONE_BY_ONE, "preflight": asked})
    return await scene.start(scene.plan(book))


async def gate(scene: Scene) -> str:
    run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
    await scene.waits_for(run, "ship")
    return run


async def wave(scene: Scene) -> str:
    # n1 is between its stop and its start, and stays there.
    scene.sim.program(Fault(do="hang", op="switch", node="n1", run="upgrade/*"))
    run = await gate(scene)
    await scene.approve(run)
    await eventually(lambda: scene.running() == {"n0": "1.1.0", "n1": None, "n2": "1.0.0"})
    return run


async def parked(scene: Scene) -> str:
    scene.sim.program(Fault(do="fail", op="healthy", node="n1", run="upgrade/*"))
    run = await gate(scene)
    await scene.approve(run)
    await scene.waits_for(run, "wave")
    return run


async def paused(scene: Scene) -> str:
    run = await gate(scene)
    assert (await scene.order("pause", run, "olga")).accepted
    await scene.approve(run)
    await scene.until(run, "paused")
    return run


async def baking(scene: Scene) -> str:
    long: Json = {
        "canary": {"nodes": 1, "bake": {"duration": "60s", "interval": "200ms"}},
        "widen": ["100%"],
    }
    run = await scene.start(scene.plan(scene.runbook(waves=long, gates={})))
    await scene.until(run, lambda s: s.child is not None)
    await eventually(lambda: scene.running()["n0"] == "1.1.0")
    await asyncio.sleep(0.5)
    return run


async def returning(scene: Scene) -> str:
    scene.sim.program(
        Fault(do="fail", op="healthy", node="n1", run="upgrade/*"),
        Fault(do="fail", op="stop", run="rollback/*-auto", type="StopTimeout"),
    )
    run = await scene.start(scene.plan(scene.runbook(**{**ONE_BY_ONE, "on_failure": "rollback"})))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    back = (await scene.until(run, lambda s: s.successor is not None)).successor or ""
    await scene.waits_for(back, "back-1")
    return run


async def finished(scene: Scene) -> str:
    run = await gate(scene)
    await scene.approve(run)
    assert (await scene.end_of(run)).phase == "done"
    return run


MOMENTS = {
    "preflight": preflight,
    "gate": gate,
    "wave": wave,
    "baking": baking,
    "returning": returning,
    "parked": parked,
    "paused": paused,
    "finished": finished,
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_an_on_call_rollback_needs_nobody_and_no_moment(stage: Stage, moment: str) -> None:
    scene = await stage()
    async with scene.playing():
        run = await MOMENTS[moment](scene)
        epoch = (await scene.fleet_status()).epoch
        back = await scene.rollback()
        status = await scene.fleet_status()
        assert (status.holder, status.epoch > epoch) == (back, True)
        end = await scene.end_of(back)
        assert scene.running() == OLD
        beaten = await scene.end_of(run)
        fleet = await scene.freed()
        happened = len(scene.happened())
        await asyncio.sleep(0.5)
        assert len(scene.happened()) == happened, "the older run acts no more"
    assert end.phase == "rolled-back"
    assert end.release == fleet.release == "1.0.0"
    assert beaten.phase == ("done" if moment == "finished" else "preempted")
    switched = sum(scene.host(name).counts.switches == 3 for name in OLD)
    touched = {"preflight": 0, "gate": 1, "wave": 1, "baking": 1, "paused": 1}
    touched |= {"returning": 2, "parked": 2, "finished": 3}
    assert switched == touched[moment], "who was not switched is not switched back"


async def test_a_rollback_of_what_is_back_already_moves_nothing(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await gate(scene)
        first = await scene.rollback()
        assert (await scene.end_of(first)).phase == "rolled-back"
        await scene.freed()
        counts = [scene.host(name).counts for name in OLD]
        second = await scene.rollback()
        end = await scene.end_of(second)
    assert end.phase == "rolled-back"
    assert end.said == "every node runs its baseline"
    assert end.release == "1.0.0"
    assert [scene.host(name).counts for name in OLD] == counts


async def test_a_rollback_ordered_while_one_is_under_way_takes_over_and_finishes_it(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        await finished(scene)
        scene.sim.program(Fault(do="hang", op="switch", node="n1", run="rollback/*/2"))
        first = await scene.rollback()
        await eventually(lambda: scene.running() == {"n0": "1.1.0", "n1": None, "n2": "1.0.0"})
        second = await scene.rollback()
        end = await scene.end_of(second)
        beaten = await scene.end_of(first)
    assert beaten.phase == "preempted"
    assert end.phase == "rolled-back"
    assert scene.running() == OLD
    assert all(scene.host(name).counts.switches == 3 for name in OLD), "none went back twice"


async def test_a_fleet_that_never_had_a_run_has_nothing_to_roll_back(stage: Stage) -> None:
    scene = await stage()
    plan = scene.plan()
    digest = await scene.drivers.blobs.put(canonical(plan))
    async with scene.playing():
        await scene.open_fleet()
        target = f"fleet/{scene.name}"
        answer = await scene.submit(target, scene.envelope("rollback", target, digest, "eve"))
    assert answer.run is None
    assert answer.verdict.rule == "not-open"


async def test_a_rollback_is_possible_after_the_policy_became_another(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await gate(scene)
        people = tuple(
            person.model_copy(update={"roles": (*person.roles, "db-owner")})
            for person in scene.policy.people
            if person.name != "bob"
        )
        asked = GateMinimums(start="required", every=Minimum(threshold=3))
        changed = {"people": people, "clock_skew": 10.0, "gates": asked}
        stricter = scene.policy.model_copy(update=changed)
        await scene.drivers.pins.pin(scene.name, stricter)
        back = await scene.rollback()
        assert (await scene.end_of(back)).phase == "rolled-back"
        assert (await scene.end_of(run)).phase == "preempted"
        await scene.freed()
        digest = (await scene.fleet_status()).plan or ""
        target = f"fleet/{scene.name}"
        answer = await scene.submit(target, scene.envelope("start", target, digest, "olga"))
        assert answer.verdict.rule == "policy", "a start needs a plan of this policy"
    assert scene.running() == OLD


async def test_a_second_start_waits_for_the_end_of_the_first(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await gate(scene)
        fleet = await scene.fleet_status()
        target = f"fleet/{scene.name}"
        assert fleet.plan is not None
        envelope = scene.envelope("start", target, fleet.plan, "olga")
        answer = await scene.submit(target, envelope)
        assert answer.run is None
        assert answer.verdict.rule == "lease"
        assert run in answer.verdict.said
        assert (await scene.fleet_status()).holder == run
        verdicts = [
            one for one in await scene.records("order") if one["digest"] == answer.verdict.digest
        ]
        assert [(one["accepted"], one["rule"]) for one in verdicts] == [(False, "lease")]
        assert (await scene.order("abort", run, "eve")).accepted
        await scene.end_of(run)
        await scene.freed()
        again = await scene.submit(target, envelope)
        assert again.verdict.accepted, "a refused order is not spent"
        assert again.run is not None
