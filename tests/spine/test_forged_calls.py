"""Every registered activity and workflow, called by somebody who has the frontend alone, with every field varied.

No host changes, no later leg becomes allowed, and the record stays verifiable (which the fixture looks at).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowHandle
from temporalio.service import RPCError

from activities.every import every_activity
from activities.plans import facts_of
from kedge.model.base import Json, canonical
from kedge.model.order import Envelope, OrderVerdict
from kedge.model.plan import Gate, Plan
from kedge.model.run import (
    FleetState,
    LegRequest,
    PlanFacts,
    RollbackRequest,
    Run,
    RunEnd,
    Warrant,
    WaveRequest,
    WaveResult,
)
from kedge.plan.digest import plan_digest
from tests.spine.conftest import Stage
from tests.spine.forger import Forger, Known, calls_of, forging
from tests.spine.scene import Scene
from worker.wiring import ground_of
from workflows.every import EVERY_WORKFLOW

pytestmark = pytest.mark.temporal

SLOW: dict[str, Json] = {
    "waves": {
        "canary": {"nodes": 1, "bake": {"duration": "120s", "interval": "1s"}},
        "widen": ["100%"],
        "max_unavailable": 1,
    },
    "gates": {},
    "on_failure": "rollback",
    "retry": {"attempts": 1},
}
MOST_CALLS = 120
"""Calls of one activity: beyond that every n-th of them."""


def seen(scene: Scene) -> list[object]:
    """What every host is on, what runs there, and how often anything was done to it."""
    hosts = [scene.host(node.name) for node in scene.document.nodes]
    return [(host.state, host.counts) for host in hosts]


async def live(scene: Scene, run: str, plan: Plan, order: Envelope) -> Run:
    """A run as everybody reads it in the engine."""
    status = await scene.status(run)
    warrant = await scene.drivers.blobs.put(canonical(Warrant(start=order)))
    return Run(
        id=run, fleet=scene.name, plan=plan_digest(plan), epoch=status.epoch, warrant=warrant
    )


async def started(scene: Scene, plan: Plan) -> tuple[str, Envelope]:
    digest = await scene.drivers.blobs.put(canonical(plan))
    await scene.open_fleet()
    target = f"fleet/{scene.name}"
    order = scene.envelope("start", target, digest, "olga")
    run = (await scene.submit(target, order)).run
    assert run is not None
    return run, order


def known_of(scene: Scene, plan: Plan, run: Run, order: Envelope) -> Known:
    number = run.id.rpartition("/")[2]
    back = run.model_copy(update={"id": f"rollback/{scene.name}/{number}-auto"})
    later = run.model_copy(update={"epoch": run.epoch + 1})
    verdict = OrderVerdict(accepted=True, rule="accepted", said="", digest="0" * 64)
    return Known(
        types={
            Run: (run, back, later),
            Envelope: (order,),
            OrderVerdict: (verdict,),
            PlanFacts: (facts_of(plan),),
            FleetState: (FleetState(fleet=scene.name),),
            Gate: (Gate(name="ship", threshold=1, roles=("sre",), expires=60.0),),
        },
        names={
            "fleet": (scene.name,),
            "target": (run.id, f"fleet/{scene.name}"),
            "now": ("2026-01-01T00:00:00Z",),
            "base": (run.warrant, "0" * 64),
            "gate": ("ship", None),
            "plan": (run.plan,),
            "digest": (run.plan,),
            "run": (run.id, back.id),
            "key": (f"{run.id}@{run.epoch}/n1/forward/0/1.1", f"lease/{'0' * 64}"),
            "nodes": ((1, 2), (0,), (0, 1, 2), (99,)),
            "wave": (1, 0, None, 7),
            "legs": (facts_of(plan).legs["forward"],),
            "record": (
                {"what": "leg", "run": run.id, "node": "n1", "program": "forward", "leg": 0},
                {"what": "admitted", "run": run.id, "epoch": run.epoch, "nodes": ["n1"]},
                {"what": "decision", "stage": "ended", "outcome": "done", "said": ""},
            ),
            "parallel": (5, 1),
            "ordered": (None,),
            "state": (None,),
        },
    )


def some(calls: list[Any]) -> list[Any]:
    step = -(-len(calls) // MOST_CALLS)
    return calls[::step] if step > 1 else calls


async def call_everything(scene: Scene, known: Known) -> dict[str, list[str]]:
    """Every activity of the registry, each from a workflow of the forger; what came of the calls."""
    queue = f"forger-{secrets.token_hex(4)}"
    activities = every_activity(ground_of(scene.drivers, scene.client))
    names = {one.__name__: some(calls_of(one, known)) for one in activities}
    assert all(names.values())
    async with forging(scene.client, queue):
        handles = [
            await scene.client.start_workflow(
                Forger.run,
                args=[name, scene.settings.task_queue, calls[part::3]],
                id=f"{queue}/{name}/{part}",
                task_queue=queue,
                execution_timeout=timedelta(minutes=3),
            )
            for name, calls in names.items()
            for part in range(3)
        ]
        results = await asyncio.gather(*(handle.result() for handle in handles))
    found: dict[str, list[str]] = {name: [] for name in names}
    for handle, result in zip(handles, results, strict=True):
        found[handle.id.split("/")[1]] += result
    return found


async def start_everything(scene: Scene, known: Known, run: Run) -> None:
    """Every workflow of the registry, under names that kedge itself would use and under others, for some seconds."""
    handles: list[WorkflowHandle[Any, Any]] = []
    number = run.id.rpartition("/")[2]
    names = [f"rollback/{scene.name}/{number}-auto", f"upgrade/{scene.name}/7"]
    for defined in EVERY_WORKFLOW:
        name = defined.__name__
        calls = calls_of(inspect.unwrap(vars(defined)["run"]), known)[:40]
        for place, arguments in enumerate(calls):
            with contextlib.suppress(RPCError):
                handles.append(
                    await scene.client.start_workflow(
                        name,
                        args=arguments,
                        id=names.pop()
                        if names and name == "Rollback"
                        else f"x/{run.fleet}/{name}/{place}",
                        task_queue=scene.settings.task_queue,
                        execution_timeout=timedelta(seconds=20),
                    )
                )
    await asyncio.sleep(8)
    for handle in handles:
        with contextlib.suppress(RPCError):
            await handle.terminate()


async def test_nothing_that_anybody_calls_moves_a_host_or_allows_a_later_leg(
    stage: Stage, tell: Any
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(**SLOW))
    async with scene.playing():
        run_id, order = await started(scene, plan)
        await scene.until(run_id, lambda status: status.child is not None)
        await baked(scene, run_id)
        run = await live(scene, run_id, plan, order)
        before = seen(scene)
        known = known_of(scene, plan, run, order)
        called = await call_everything(scene, known)
        await start_everything(scene, known, run)
        assert seen(scene) == before
        refused = await wave(scene, run, plan, 1, 1)
        assert [failure.type for failure in refused.failures] == ["NotAdmitted"]
        status = await scene.status(run_id)
        assert (status.phase, status.ended) == ("widening", None), status.said
        assert seen(scene) == before
        await scene.order("abort", run_id, "olga")
        assert (await scene.end_of(run_id)).phase == "aborted"
    many = sum(len(one) for one in called.values())
    tell(f"{many} forged calls of {len(called)} activities")
    assert {"NotAdmitted", "NotAuthorised"} <= set(called["run_leg"])
    assert not [one for one in await scene.records("admitted") if one["nodes"] != ["n0"]]


async def baked(scene: Scene, run: str) -> None:
    """Wait until the canary of a run is looked at in its bake."""
    for _ in range(600):
        if any(one.get("why") == "bake" for one in await scene.records("looked")):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{run} bakes nothing")


async def wave(
    scene: Scene, run: Run, plan: Plan, wave: int, node: int, **given: Any
) -> WaveResult:
    """A forged Wave."""
    request = WaveRequest.model_validate(
        {
            "run": run,
            "wave": wave,
            "program": "forward",
            "legs": facts_of(plan).legs["forward"],
            "nodes": (node,),
            "parallel": 5,
            "budget": 0,
            "serial": 2**40,
            **given,
        }
    )
    result: WaveResult = await scene.client.execute_workflow(
        "Wave",
        request,
        id=f"forged/{scene.name}/{scene.nonce()}",
        task_queue=scene.settings.task_queue,
        result_type=WaveResult,
        execution_timeout=timedelta(seconds=60),
    )
    return result


async def test_a_wave_with_the_warrant_of_a_live_run_moves_no_node_of_a_later_wave(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(**SLOW))
    async with scene.playing():
        run_id, order = await started(scene, plan)
        await baked(scene, run_id)
        run, before = await live(scene, run_id, plan, order), seen(scene)
        for node in (1, 2):
            found = await wave(scene, run, plan, 1, node)
            assert [failure.type for failure in found.failures] == ["NotAdmitted"]
            assert "bake of wave" in found.failures[0].said or "baked for" in found.failures[0].said
        # Another round of what is done repeats nothing.
        for round_ in (1, 128):
            assert (await wave(scene, run, plan, 0, 0, round=round_, anew=round_)).done == 1
        assert seen(scene) == before
        assert (await scene.status(run_id)).phase == "widening"


async def test_a_rollback_on_the_order_that_started_a_run_takes_nothing_back_that_ended_well(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(gates={}, waves={"widen": ["100%"]}, on_failure="rollback"))
    async with scene.playing():
        run_id, order = await started(scene, plan)
        run = await live(scene, run_id, plan, order)
        assert (await scene.end_of(run_id)).phase == "done"
        before = seen(scene)
        number = run_id.rpartition("/")[2]
        for name in (f"rollback/{scene.name}/{number}-auto", f"rollback/{scene.name}/9"):
            back = run.model_copy(update={"id": name})
            request = RollbackRequest(run=back, requester="olga", of=run_id, automatic=True)
            handle = await scene.client.start_workflow(
                "Rollback",
                request,
                id=name,
                task_queue=scene.settings.task_queue,
                result_type=RunEnd,
            )
            status = await scene.until(name, "parked")
            assert "NotAdmitted" in status.said or "was spent by" in status.said
            await handle.terminate()
        assert seen(scene) == before
        assert set(scene.running().values()) == {"1.1.0"}


async def test_places_are_counted_over_all_waves_that_anybody_starts(stage: Stage) -> None:
    scene = await stage(nodes=8, options={"pace": 1.0, "seconds": {"switch": 0.4}})
    waves: Json = {"widen": ["100%"], "max_unavailable": 2}
    plan = scene.plan(scene.runbook(gates={}, waves=waves))
    async with scene.playing():
        run_id, order = await started(scene, plan)
        await scene.until(run_id, lambda status: status.child is not None)
        run = await live(scene, run_id, plan, order)
        await asyncio.gather(*(wave(scene, run, plan, 0, node) for node in range(8)))
        assert (await scene.end_of(run_id)).phase == "done"
    assert most_down(scene) <= 2
    assert all(scene.host(node.name).counts.starts == 2 for node in scene.document.nodes)


def most_down(scene: Scene) -> int:
    """How many nodes were down at once, at most, since all of them ran."""
    down: set[str] = set()
    ran: set[str] = set()
    most = 0
    for node, state in scene.happened():
        runs = state.running_release is not None
        (ran.add if runs else down.add)(node)
        if runs:
            down.discard(node)
        if len(ran) == len(scene.document.nodes):
            most = max(most, len(down))
    return most


async def test_a_forged_leg_names_a_run_a_wave_and_a_node_and_nothing_else_counts(
    stage: Stage,
) -> None:
    scene = await stage()
    plan = scene.plan(scene.runbook(**SLOW))
    queue = f"forger-{secrets.token_hex(4)}"
    async with scene.playing():
        run_id, order = await started(scene, plan)
        await baked(scene, run_id)
        run, before = await live(scene, run_id, plan, order), seen(scene)
        fields = {name for name, one in LegRequest.model_fields.items() if one.annotation is int}
        fields -= {"node", "leg"}
        legs = [
            {
                "run": run.model_dump(mode="json"),
                "node": 1,
                "program": "forward",
                "leg": 0,
                "serial": 1,
                "wave": wave,
            }
            | dict.fromkeys(fields - {"program", "leg"}, number)
            for wave in (0, 1)
            for number in (0, 1, 500, 2**40)
        ]
        async with forging(scene.client, queue):
            found = await scene.client.execute_workflow(
                Forger.run,
                args=["run_leg", scene.settings.task_queue, [[leg] for leg in legs]],
                id=queue,
                task_queue=queue,
            )
        assert set(found) <= {"NotAdmitted", "NotAuthorised"}
        assert seen(scene) == before
        tokens = {scene.host(node.name).token for node in scene.document.nodes}
        assert all(token is None or token[1] < 10_000 for token in tokens), (
            "no forger raises a fence"
        )
