"""Two rings, on a real server: who may read or sign in writes no result, and who polls without keys neither reads nor answers."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from temporalio.api.command.v1 import Command, CompleteWorkflowExecutionCommandAttributes
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
)
from temporalio.client import Client, WorkflowFailureError
from temporalio.converter import DataConverter, WorkflowSerializationContext
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from desk.runs import Runs
from kedge.model.base import Json
from kedge.model.errors import FORGED, CodecError
from kedge.model.run import Run, RunEnd
from kedge.trust import codec
from kedge.trust import payload_kinds as kinds
from tests.secrets.conftest import Place, Staged
from tests.secrets.rogue import Rogue
from tests.secrets.test_codec_server import Server, scene, server  # noqa: F401 - fixtures
from tests.spine.scene import Scene
from worker import wiring
from worker.codec import KeyRings, client_converter, label, worker_converter
from worker.rings import ring_file, rings_of
from worker.wiring import with_converter, worker_of

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

ONE_WAVE: dict[str, Json] = {"waves": {"widen": ["100%"], "max_unavailable": 2}, "gates": {}}


def rings(place: Place) -> KeyRings:
    found = rings_of(place.settings)
    assert found is not None
    return found


def bare(client: Client) -> Client:
    """The same connection, for payloads as they are."""
    return with_converter(client, DataConverter.default)


def encoded(server: Server, scene: Scene, *values: Any) -> list[Payload]:  # noqa: F811 - a fixture's value
    """What a person of ``codec.readers`` has sealed for him by the codec server."""
    bearer = {"Authorization": f"Bearer {server.token(scene.keys['ada'])}", "X-Namespace": "default"}  # fmt: skip
    plain = DataConverter.default.payload_converter.to_payloads(values)
    asked = {"payloads": [MessageToDict(one) for one in plain]}
    return [ParseDict(one, Payload()) for one in server.document("/encode", asked, **bearer)["payloads"]]  # fmt: skip


class _Raw:
    """Payloads handed to the client as arguments."""

    def __init__(self, *payloads: Payload) -> None:
        self.payloads = payloads


async def begin(client: Client, kind: str, identity: str, queue: str, *payloads: Payload) -> Any:
    """Starts a workflow with these payloads, whatever they are."""
    from temporalio.api.common.v1 import WorkflowType
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest

    await client.workflow_service.start_workflow_execution(
        StartWorkflowExecutionRequest(
            namespace=client.namespace, workflow_id=identity, request_id=identity,
            workflow_type=WorkflowType(name=kind), task_queue=TaskQueue(name=queue), input=Payloads(payloads=payloads),
        )
    )  # fmt: skip
    return client.get_workflow_handle(identity)


# -- who may read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Wave", "Upgrade", "CanaryWidening", "Rollback", "Fleet", "Ensure", "Look"])  # fmt: skip
async def test_who_may_read_starts_no_workflow_by_what_the_codec_server_seals_for_him(
    scene: Scene,  # noqa: F811
    server: Server,  # noqa: F811
    kind: str,
) -> None:
    run = Run(id=f"upgrade/{scene.name}/9", fleet=scene.name, plan="0" * 64, epoch=9, warrant="0" * 64, snapshots=0)  # fmt: skip
    forged = {
        "run": run.model_dump(mode="json"),
        "wave": 0,
        "program": "forward",
        "nodes": [0, 1, 2],
    }
    values: tuple[Any, ...] = (scene.name, {"fleet": scene.name, "epoch": 2**53 - 2}) if kind == "Fleet" else (forged,)  # fmt: skip
    if kind in ("Ensure", "Look"):
        values = ("another-fleet",)
    async with scene.playing():
        before = len(scene.happened())
        handle = await begin(
            scene.client, kind, f"{kind.lower()}/{scene.name}", scene.settings.task_queue,
            *encoded(server, scene, *values),
        ) if kind not in ("Ensure", "Look") else await begin(
            scene.client, kind, f"{kind.lower()}/x-{scene.name}", scene.settings.task_queue, *encoded(server, scene, *values)
        )  # fmt: skip
        with pytest.raises(WorkflowFailureError) as caught:
            await asyncio.wait_for(handle.result(), 30)
        cause = caught.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == FORGED
        assert len(scene.happened()) == before
        assert set(scene.running().values()) == {"1.0.0"}


@pytest.mark.parametrize("name", ["hold", "preempted", "glass_broken", "run_ended"])
async def test_who_may_read_signals_no_workflow_but_with_orders(
    scene: Scene,  # noqa: F811
    server: Server,  # noqa: F811
    name: str,
) -> None:
    slow: dict[str, Json] = {"bake": {"duration": "2s", "interval": "200ms"}}
    waves: dict[str, Json] = {
        "canary": {"nodes": 1, **slow},
        "widen": ["100%"],
        "max_unavailable": 2,
    }
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={})))
        status = await scene.until(run, lambda now: now.child is not None)
        for target in (run, str(status.child), f"fleet/{scene.name}"):
            [payload] = encoded(server, scene, run)
            await signal(scene.client, target, name, payload)
            await signal(scene.client, target, name)
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


async def signal(client: Client, target: str, name: str, *payloads: Payload) -> None:
    from temporalio.api.common.v1 import WorkflowExecution
    from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest

    await client.workflow_service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace=client.namespace, workflow_execution=WorkflowExecution(workflow_id=target),
            signal_name=name, input=Payloads(payloads=payloads), request_id=name + target + str(len(payloads)),
        )
    )  # fmt: skip


async def test_who_may_read_forges_no_answer_of_an_activity(
    place: Place,
    staged: Staged,
    scene: Scene,  # noqa: F811
    server: Server,  # noqa: F811
) -> None:
    done = {"node": 0, "done": 6, "replayed": 0, "seconds": 0.1}
    team = {"done": [{**done, "node": node} for node in range(3)], "missed": []}
    sealed = {
        "run_leg": encoded(server, scene, done)[0],
        "run_legs": encoded(server, scene, team)[0],
    }

    def answer(task: PollActivityTaskQueueResponse) -> Payload | Failure:
        return sealed.get(task.activity_type.name, sealed["run_leg"])

    await survives(await staged(await place.client(), options=SLOW), answer)


SLOW: dict[str, Json] = {"pace": 1.0, "seconds": {"stop": 0.4}}
"""Legs that are still to come when a wave is seen to have begun."""
LATER = Failure(
    message="not now", application_failure_info=ApplicationFailureInfo(type="Later", non_retryable=False)
)  # fmt: skip
"""The server asks somebody else, and no workflow hears of it."""


@contextmanager
def workers(**given: Any) -> Iterator[None]:
    """Workers of this process are made with these options more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "Worker", functools.partial(Worker, **given))
        yield


async def survives(scene: Scene, answer: Any, most: int = 6) -> Rogue:  # noqa: F811 - no fixture here
    """A run comes to its true end though somebody answers for its legs: every node is on the new release."""
    rogue = Rogue(scene.client, scene.settings.task_queue, 60)

    def instead(task: PollActivityTaskQueueResponse) -> Payload | Failure:
        leg = task.activity_type.name.startswith("run_leg")
        return answer(task) if leg and forged(rogue) < most else LATER

    # Without eager activities: the server hands each to whoever polls.
    with workers(disable_eager_activity_execution=True):
        async with scene.playing():
            run = await scene.start(scene.plan(scene.runbook(**ONE_WAVE)))
            await scene.until(run, "widening")
            polling = asyncio.create_task(rogue.activities(instead, pollers=20))
            while True:
                status = await scene.until(run, lambda now: now.phase in ("done", "parked"), 120)
                if status.phase == "done":
                    break
                # Never an end that is not one: it says that its workers' answers are forged, and goes on.
                assert set(scene.running().values()) != {"1.1.0"}
                await scene.decide(run, "retry")
                await scene.until(run, lambda now: now.phase != "parked")
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
            assert (await scene.end_of(run)).phase == "done"
            assert set(scene.running().values()) == {"1.1.0"}
            await scene.freed()
    assert forged(rogue), "it never got a leg"
    return rogue


def forged(rogue: Rogue) -> int:
    return sum(name.startswith("run_leg") for name in rogue.answered)


# -- who polls without keys -----------------------------------------------------------------------------------------


async def test_a_poller_without_keys_reads_nothing_and_answers_nothing(
    place: Place, staged: Staged
) -> None:
    stage = await staged(await place.client(), fleet={"nodes": [{"name": f"crownnode-{at}"} for at in range(3)]}, options=SLOW)  # fmt: skip
    done = b'{"node":0,"done":6,"replayed":0,"seconds":0.1}'
    open_answer = Payload(metadata={"encoding": b"json/plain"}, data=done)
    final = Failure(
        message="it was not me",
        application_failure_info=ApplicationFailureInfo(type="NotHealthy", non_retryable=True),
    )
    turns: list[Payload | Failure] = [open_answer, final, Payload(), Payload(metadata={"encoding": b"binary/encrypted"}, data=b"x")]  # fmt: skip

    def answer(task: PollActivityTaskQueueResponse) -> Payload | Failure:
        return turns[task.attempt % len(turns)] if task.attempt > 1 else turns[len(task.activity_id) % 2]  # fmt: skip

    rogue = await survives(stage, answer)
    asked = b"".join(task.SerializeToString() for task in rogue.asked)
    assert b"crownnode" not in asked
    assert stage.digest("1.1.0").encode() not in asked


async def test_a_poller_that_answers_with_what_workers_once_said_is_not_believed(
    place: Place, staged: Staged
) -> None:
    """Old answers of the same workflow and type, taken from Temporal's database: a result names its own request."""
    stage = await staged(await place.client())
    old: dict[str, Payload] = {}

    async def learn(run: str) -> None:
        async for one in stage.client.list_workflows(f'WorkflowId STARTS_WITH "{run}" OR WorkflowId = "fleet/{stage.name}"'):  # fmt: skip
            history = await bare(stage.client).get_workflow_handle(one.id).fetch_history()
            names: dict[int, str] = {}
            for event in history.events:
                begun = event.activity_task_scheduled_event_attributes
                ended = event.activity_task_completed_event_attributes
                if begun.activity_type.name:
                    names[event.event_id] = f"{one.id}/{begun.activity_type.name}"
                elif ended.result.payloads:
                    old[names[ended.scheduled_event_id]] = ended.result.payloads[0]

    async with stage.playing():
        run = await stage.start(stage.plan())
        status = await stage.waits_for(run, "ship")
        assert status.waiting is not None
        assert (await stage.order("approve", run, "ada")).accepted
        await learn(run)
    assert f"{run}/judge_order" in old
    rogue = Rogue(stage.client, stage.settings.task_queue, 3)

    def answer(task: PollActivityTaskQueueResponse) -> Payload | Failure:
        return old[f"{task.workflow_execution.workflow_id}/{task.activity_type.name}"]

    # Eve may not approve. Answered with the verdict about ada's order, hers would be accepted.
    envelope = stage.envelope("approve", run, status.plan, "eve", subject="ship", shown=status.waiting.shown)  # fmt: skip
    with workers(no_remote_activities=True):
        async with stage.working():
            asking = asyncio.create_task(stage.submit(run, envelope))
            await asyncio.wait_for(rogue.activities(answer, pollers=2), 60)
            assert rogue.answered == ["judge_order"] * len(rogue.answered)
            assert not asking.done()
    async with stage.working():
        assert (await asking).verdict.rule == "role"
        assert (await stage.status(run)).phase == "gate"
        assert (await stage.order("approve", run, "bob")).accepted
        assert (await stage.end_of(run)).phase == "done"
        await stage.freed()


async def test_a_workflow_that_a_poller_ended_is_no_end_of_a_run(
    place: Place, staged: Staged
) -> None:
    stage = await staged(await place.client())
    rogue = Rogue(stage.client, stage.settings.task_queue, 1)
    end = Payload(metadata={"encoding": b"json/plain"}, data=b'{"done":3,"steps":9,"replayed":0}')

    def close(task: PollWorkflowTaskQueueResponse) -> RespondWorkflowTaskCompletedRequest | None:
        if task.workflow_type.name not in ("Wave", "CanaryWidening"):
            return None
        ended = CompleteWorkflowExecutionCommandAttributes(result=Payloads(payloads=[end]))
        command = Command(
            command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
            complete_workflow_execution_command_attributes=ended,
        )
        return RespondWorkflowTaskCompletedRequest(
            namespace=stage.client.namespace, task_token=task.task_token, identity="rogue", commands=[command],
        )  # fmt: skip

    async with stage.playing():
        polling = asyncio.create_task(rogue.workflows(close))
        run = await stage.start(stage.plan(stage.runbook(**ONE_WAVE)))
        for _ in range(20):
            status = await stage.until(run, lambda now: now.phase in ("done", "parked"), 120)
            if status.phase == "done":
                break
            assert set(stage.running().values()) != {"1.1.0"}
            await stage.decide(run, "retry")
            await asyncio.sleep(0.2)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        assert (await stage.end_of(run)).phase == "done"
        assert set(stage.running().values()) == {"1.1.0"}
        await stage.freed()


# -- answers to clients ---------------------------------------------------------------------------------------------


async def test_an_answer_of_yesterday_is_no_answer_to_todays_question(place: Place) -> None:
    whom = WorkflowSerializationContext("default", "upgrade/etcd/1")
    worker = worker_converter(rings(place)).with_context(whom).payload_codec
    assert worker is not None
    client = await place.client()
    runs = Runs(client, "nobody", lambda: True)
    with runs._named() as [asked]:
        name = kinds.question_name(json.dumps(asked).encode())
        mine = client.data_converter.with_context(whom)
        for request, good in ((name, True), ("", False), (kinds.question_name(b"other"), False)):
            plain = Payload(metadata={"encoding": b"json/plain"}, data=b"1")
            label([plain], kinds.ANSWER, request)
            [sealed] = await worker.encode([plain])
            if good:
                assert await mine.decode([sealed], [int]) == [1]
            else:
                with pytest.raises(CodecError, match="another question"):
                    await mine.decode([sealed], [int])


async def test_a_client_with_the_clients_ring_alone_orders_and_reads_and_makes_no_result(
    place: Place, staged: Staged
) -> None:
    everywhere = await place.client()
    stage = await staged(everywhere)
    laptop = with_converter(everywhere, client_converter(KeyRings(ring_file(place.settings, "clients"))))  # fmt: skip
    with pytest.raises(CodecError, match="their ring of keys is not here"):
        worker_of(stage.settings, laptop, stage.drivers)
    async with stage.playing():
        stage.client = laptop
        run = await stage.start(stage.plan())
        await stage.waits_for(run, "ship")
        runs = Runs(laptop, stage.settings.task_queue, lambda: True)
        assert (await runs.status(run, seconds=10)).phase == "gate"
        await stage.approve(run)
        await stage.until(run, "done")
        stage.client = everywhere
        assert (await stage.end_of(run)).phase == "done"
        with pytest.raises(CodecError, match="sealed between workers"):
            await laptop.get_workflow_handle(run, result_type=RunEnd).result()
        await stage.freed()


@pytest.mark.parametrize(
    "kind",
    [kinds.RESULT, kinds.workflow_input("Wave"), kinds.activity_input("run_leg"), kinds.signal_input("hold"),
     kinds.workflow_result("Upgrade"), kinds.failure("NotHealthy", final=True)],
)  # fmt: skip
async def test_the_clients_keys_seal_nothing_that_passes_for_a_workers(
    place: Place, kind: str
) -> None:
    """Somebody with the clients' ring writes his own codec, and says what he likes beside the content."""
    whom = WorkflowSerializationContext("default", "upgrade/etcd/1")
    known = rings(place).clients.ring()
    content = Payload(metadata={"encoding": b"json/plain"}, data=b"1").SerializeToString()
    made = codec.seal(known, content, "default/upgrade/etcd/1", b"n" * 12, kind)
    forged = Payload(
        metadata={"encoding": b"binary/encrypted", "encryption-key-id": made.key.encode(),
                  "encryption-for": made.bound.encode(), "encryption-kind": kind.encode()},
        data=made.content,
    )  # fmt: skip
    for converter in (worker_converter(rings(place)), client_converter(rings(place))):
        with pytest.raises(CodecError) as caught:
            await converter.with_context(whom).decode([forged], [int])
        assert caught.value.kind == "Tampered"
