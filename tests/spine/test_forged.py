"""Whoever reaches the engine sends signals and starts workflows as they like: none of it moves anything."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RawValue

from activities.plans import facts_of
from kedge.model.base import Json, canonical
from kedge.model.order import Envelope
from kedge.model.plan import Plan
from kedge.model.run import (
    Preempted,
    RollbackRequest,
    Run,
    UpgradeRequest,
    Warrant,
    WaveRequest,
    WaveResult,
    WideningRequest,
    WideningStop,
)
from kedge.model.status import RunStatus
from kedge.plan.digest import plan_digest
from tests.spine.conftest import Stage
from tests.spine.latches import PACED, STEPS, baking, in_flight, latch, let_through
from tests.spine.scene import Scene, eventually

pytestmark = pytest.mark.temporal

ONE_BY_ONE: dict[str, Json] = {
    "waves": {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1}
}
BACK: dict[str, Json] = {**ONE_BY_ONE, "on_failure": "rollback", "retry": {"attempts": 1}}
OTHER = "f" * 64


class Forger:
    """Starts workflows by hand, with whatever he finds to hang on their walls."""

    def __init__(self, scene: Scene, plan: Plan) -> None:
        self.scene = scene
        self.plan = plan
        self.facts = facts_of(plan)

    async def run(self, warrant: str, number: int = 1, kind: str = "upgrade") -> Run:
        digest = await self.scene.drivers.blobs.put(canonical(self.plan))
        return Run(
            id=f"{kind}/{self.scene.name}/{number}",
            fleet=self.scene.name,
            plan=digest,
            epoch=9_000_000_000,
            warrant=warrant,
        )

    async def warrant(self, start: Envelope, **approvals: tuple[Envelope, ...]) -> str:
        return await self.scene.drivers.blobs.put(
            canonical(Warrant(start=start, approvals=approvals))
        )

    def order(
        self, who: str, verb: Any = "start", plan: str | None = None, **given: Any
    ) -> Envelope:
        target = f"fleet/{self.scene.name}"
        return self.scene.envelope(verb, target, plan or plan_digest(self.plan), who, **given)

    async def start(self, name: str, request: object, result: type) -> Any:
        handle = await self.scene.client.start_workflow(
            name,
            request,
            id=f"forged/{self.scene.name}/{self.scene.nonce()}",
            task_queue=self.scene.settings.task_queue,
            result_type=result,
            execution_timeout=timedelta(seconds=60),
        )
        return await handle.result()

    def wave(self, run: Run, nodes: tuple[int, ...] = (0,), wave: int = 0) -> WaveRequest:
        return WaveRequest(
            run=run,
            wave=wave,
            program="forward",
            legs=self.facts.legs["forward"],
            nodes=nodes,
            parallel=1,
            budget=0,
            serial=1,
        )


def hosts(scene: Scene) -> list[object]:
    """Everything that anybody may have done to the hosts."""
    found: list[object] = []
    for node in scene.document.nodes:
        host = scene.host(node.name)
        found += [host.token, host.run, host.state, host.counts, len(host.journal)]
    return found


async def test_no_workflow_that_anybody_starts_touches_a_host_without_a_warrant(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(**BACK))
    forger = Forger(scene, plan)
    other = await scene.drivers.blobs.put(canonical(scene.plan()))
    async with scene.playing():
        before = hosts(scene)
        warrants = {
            "of nobody": OTHER,
            "of an approver": await forger.warrant(forger.order("ada")),
            "for another plan": await forger.warrant(forger.order("olga", plan=other)),
            "to go back": await forger.warrant(forger.order("eve", "rollback")),
        }
        for why, warrant in warrants.items():
            run = await forger.run(warrant)
            wave: WaveResult = await forger.start("Wave", forger.wave(run), WaveResult)
            assert wave.done == 0, why
            expected = "NotFound" if warrant == OTHER else "NotAuthorised"
            assert [failure.type for failure in wave.failures] == [expected], why
            request = WideningRequest(run=run, facts=forger.facts, wave=0, serial=1)
            stop: WideningStop = await forger.start("CanaryWidening", request, WideningStop)
            assert stop.why == "failed", why
            assert [failure.type for failure in stop.failures] == [expected], why
        assert hosts(scene) == before


async def test_a_run_that_anybody_starts_parks_before_it_touches_a_host(stage: Stage) -> None:
    scene = await stage()
    forger = Forger(scene, scene.plan(scene.runbook(**BACK)))
    async with scene.playing():
        before = hosts(scene)
        warrant = await forger.warrant(forger.order("ada"))
        run = await forger.run(warrant)
        returning = (await forger.run(warrant, kind="rollback")).model_copy(
            update={"id": f"rollback/{scene.name}/1"}
        )
        for name, request, one in (
            ("Upgrade", UpgradeRequest(run=run, requester="olga"), run),
            ("Rollback", RollbackRequest(run=returning, requester="eve", of=""), returning),
        ):
            handle = await scene.client.start_workflow(
                name, request, id=one.id, task_queue=scene.settings.task_queue
            )
            status = await scene.until(one.id, "parked")
            assert "NotAuthorised" in status.said
            assert status.waiting is not None
            assert "skip" not in status.waiting.showing.choices
            assert hosts(scene) == before
            await handle.terminate()


async def test_a_gate_that_is_not_signed_is_not_passed_by_a_workflow_that_says_so(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(**ONE_BY_ONE))
    forger = Forger(scene, plan)
    async with scene.playing():
        run_id = await scene.start(plan)
        await scene.waits_for(run_id, "ship")
        before = hosts(scene)
        # The real start order, as anybody can read it in the engine's history.
        start = forger.order("olga")
        run = (await forger.run(await forger.warrant(start))).model_copy(update={"id": run_id})
        result: WaveResult = await forger.start("Wave", forger.wave(run, (1,), 1), WaveResult)
        assert [failure.type for failure in result.failures] == ["NotAuthorised"]
        assert "ship" in result.failures[0].said
        result = await forger.start("Wave", forger.wave(run, (1,), 0), WaveResult)
        assert "node 1 is not in wave 0" in result.failures[0].said
        request = WideningRequest(run=run, facts=forger.facts, wave=1, serial=1, passed=("ship",))
        stop: WideningStop = await forger.start("CanaryWidening", request, WideningStop)
        assert [failure.type for failure in stop.failures] == ["NotAuthorised"]
        assert hosts(scene) == before


async def test_who_is_taken_out_of_the_policy_acts_no_more(stage: Stage) -> None:
    scene = await stage(options=PACED)
    async with scene.playing():
        latch(scene, "n1")
        run = await scene.start(scene.plan(scene.runbook(**{**ONE_BY_ONE, "node": STEPS})))
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        await in_flight(scene, "n1")
        people = tuple(
            person.model_copy(update={"roles": (*person.roles, "operator")})
            for person in scene.policy.people
            if person.name != "olga"
        )
        await scene.drivers.pins.pin(scene.name, scene.policy.model_copy(update={"people": people}))
        # A policy that was read is gone by for a second.
        await asyncio.sleep(1.1)
        let_through(scene)
        status = await scene.until(run, lambda s: s.waiting is not None and s.phase == "parked", 30)
        assert "NotAuthorised" in status.said
        assert scene.running()["n2"] == "1.0.0"
        await scene.drivers.pins.pin(scene.name, scene.policy)
        await asyncio.sleep(1.1)
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"


# -- signals ------------------------------------------------------------------------------------------------------

ODD: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "null": (None,),
    "a number": (1.5,),
    "a word": ("approve",),
    "a list": ([],),
    "an object": ({"verb": "approve"},),
    "two objects": ({"order": "x"}, {"signature": "y"}),
    "an envelope and more": ({"order": "x", "signature": "y", "run": "z"},),
    "numbers in it": ({"order": 1, "signature": 2},),
    "much": ({"order": "x" * 20_000, "signature": "y"},),
    "very much": ("x" * 1_900_000,),
    "deep": ([[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]],),
    "bytes": (b"\x00\xff\x00",),
}
UNDECODABLE: dict[str, RawValue] = {
    "no JSON": RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"{'order':")),
    "an unknown encoding": RawValue(Payload(metadata={"encoding": b"x/y"}, data=b"z")),
    "no encoding": RawValue(Payload(data=b"z")),
}


async def throw_everything(scene: Scene, workflow: str, name: str) -> None:
    """Whatever a signal can carry, to one handler."""
    for sent in (*ODD.values(), *((raw,) for raw in UNDECODABLE.values())):
        await scene.signal(workflow, *sent, name=name)


def unreadable(records: list[dict[str, Any]]) -> int:
    return sum(one["rule"] == "unreadable" and not one["accepted"] for one in records)


async def test_whatever_a_signal_carries_a_run_refuses_it_and_goes_on(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        for name in ("order", "preempted", "run_ended", "hold", "no such signal"):
            await throw_everything(scene, run, name)

        async def all_refused() -> bool:
            return len((await scene.status(run)).orders) == len(ODD)

        await eventually(all_refused)
        after = await scene.status(run)
        assert {verdict.rule for verdict in after.orders} == {"unreadable"}
        assert all(verdict.said for verdict in after.orders)
        assert unreadable(await scene.records("order")) == len(ODD)
        assert same(status) == same(after)
        for sent in ((), ("x",), ({"order": "x", "signature": "y"}, 1)):
            with pytest.raises(WorkflowUpdateFailedError):
                await scene.client.get_workflow_handle(run).execute_update(
                    "submit_order", args=list(sent)
                )
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"


def same(status: RunStatus) -> dict[str, Any]:
    return status.model_dump(exclude={"orders", "seconds"})


async def test_whatever_a_signal_carries_a_fleet_refuses_it_and_goes_on(stage: Stage) -> None:
    scene = await stage()
    target = f"fleet/{scene.name}"
    async with scene.playing():
        await scene.open_fleet()
        for name in ("order", "run_ended", "preempted"):
            await throw_everything(scene, target, name)

        async def all_refused() -> bool:
            return len((await scene.fleet_status()).verdicts) == len(ODD)

        await eventually(all_refused)
        assert unreadable(await scene.records("order")) == len(ODD)
        for sent in ((), ("x",), ({"order": "x", "signature": "y"}, 1)):
            with pytest.raises(WorkflowUpdateFailedError):
                await scene.client.get_workflow_handle(target).execute_update(
                    "submit_order", args=list(sent)
                )
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        assert (await scene.fleet_status()).holder == run


async def test_children_that_are_told_to_hold_by_nobody_go_on(stage: Stage) -> None:
    scene = await stage(options=PACED)
    async with scene.playing():
        # A chunk that held would look failed, and this runbook goes back by itself.
        latch(scene, "n1", "n2")
        run = await scene.start(scene.plan(scene.runbook(**{**BACK, "node": STEPS})))
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        await in_flight(scene, "n1")
        child, wave = await children(scene, run)
        await scene.signal(wave, name="hold")
        await scene.signal(wave, "now", name="hold")
        let_through(scene, but=("n2",))
        await in_flight(scene, "n2")
        assert (await children(scene, run))[1] != wave, "who held was asked to no more than end"
        await scene.signal(child, name="hold")
        let_through(scene)
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert all(scene.host(name).counts[:3] == (2, 1, 2) for name in ("n0", "n1", "n2"))


async def children(scene: Scene, run: str) -> tuple[str, str]:
    """The widening and the chunk that run now."""
    child = (await scene.status(run)).child or ""
    progress = await scene.client.get_workflow_handle(child).query("progress")
    return child, progress["child"]


async def test_a_bake_that_is_told_to_hold_by_nobody_is_done_anew(stage: Stage) -> None:
    scene = await stage()
    waves: Json = {
        "canary": {"nodes": 1, "bake": {"duration": "60s", "interval": "100ms"}},
        "widen": ["100%"],
    }
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={})))
        first = await baking(scene, run)
        await asyncio.sleep(1.5)
        await scene.signal((await child_of(scene, run)), name="hold")

        async def anew() -> bool:
            return await baking(scene, run) > first

        await eventually(anew)
        assert scene.running()["n1"] == "1.0.0"
        assert (await scene.status(run)).phase == "widening"


async def child_of(scene: Scene, run: str) -> str:
    return (await scene.until(run, lambda s: s.child is not None)).child or ""


async def test_the_lease_is_not_released_by_who_says_that_the_run_ended(stage: Stage) -> None:
    scene = await stage()
    target = f"fleet/{scene.name}"
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        for _ in range(3):
            await scene.signal(target, run, name="run_ended")
        # The fleet looks for itself, and takes orders meanwhile.
        plan = (await scene.fleet_status()).plan or ""
        begun = asyncio.get_running_loop().time()
        answer = await scene.submit(target, scene.envelope("start", target, plan, "olga"))
        assert asyncio.get_running_loop().time() - begun < 10
        assert answer.verdict.rule == "lease"
        assert (await scene.fleet_status()).holder == run


async def test_a_notice_of_pre_emption_is_believed_only_with_an_order_of_its_own(
    stage: Stage,
) -> None:
    scene = await stage()
    target = f"fleet/{scene.name}"
    plan = scene.plan()
    async with scene.playing():
        await scene.start(plan)
        digest = plan_digest(plan)
        old = scene.envelope("rollback", target, digest, "eve")
        answer = await scene.submit(target, old)
        assert answer.run is not None
        assert (await scene.end_of(answer.run)).phase == "rolled-back"
        await scene.freed()
        # Two seconds, so that the old order is older than the new run by the clock that orders go by.
        await asyncio.sleep(2)
        run = await scene.start(plan)
        status = await scene.waits_for(run, "ship")
        unsigned = Envelope(order="{}", signature="")
        stranger = scene.envelope("rollback", target, digest, "olga")
        foreign = scene.envelope("rollback", "fleet/other", digest, "eve")
        other = scene.envelope("rollback", target, OTHER, "eve")
        fitting = scene.envelope("rollback", target, digest, "eve")
        for epoch, envelope in (
            (status.epoch + 1, old),
            (status.epoch + 1, unsigned),
            (status.epoch + 1, stranger),
            (status.epoch + 1, foreign),
            (status.epoch + 1, other),
            (status.epoch, fitting),
        ):
            notice = Preempted(epoch=epoch, successor="rollback/x/1", envelope=envelope)
            await scene.signal(run, notice, name="preempted")
        await scene.approve(run)
        end = await scene.end_of(run)
    assert end.phase == "done"


async def test_a_child_that_somebody_terminates_parks_the_run_and_a_retry_does_nothing_twice(
    stage: Stage,
) -> None:
    scene = await stage(options=PACED)
    async with scene.playing():
        latch(scene, "n2")
        run = await scene.start(scene.plan(scene.runbook(**{**BACK, "node": STEPS})))
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        await in_flight(scene, "n2")
        _, wave = await children(scene, run)
        await scene.client.get_workflow_handle(wave).terminate()
        status = await scene.waits_for(run, "wave")
        assert f"Lost: “{wave} did not come to its end: Terminated”" in status.said
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "rollback", "abort")
        await scene.decide(run, "retry")
        widening = await child_of(scene, run)
        await scene.client.get_workflow_handle(widening).terminate()
        await scene.waits_for(run, "wave-2")
        let_through(scene)
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert all(scene.host(name).counts[:3] == (2, 1, 2) for name in ("n0", "n1", "n2"))


async def test_a_name_that_somebody_took_is_left_to_him(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await scene.client.start_workflow(
            "Fleet",
            "squatter",
            id=f"upgrade/{scene.name}/1",
            task_queue=scene.settings.task_queue,
        )
        run = await scene.start(scene.plan())
        assert run == f"upgrade/{scene.name}/2"
        await scene.waits_for(run, "ship")
        status = await scene.fleet_status()
        assert (status.holder, status.runs) == (run, (run,))
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        assert (await scene.freed()).release == "1.1.0"
