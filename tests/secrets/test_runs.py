"""Whole runs with the codec: Temporal's database has nothing of them, and rotation in the middle goes unnoticed."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import QueryWorkflowRequest
from temporalio.client import Client, WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import Replayer

from desk import codec as desk_codec
from desk.runs import Runs
from kedge.drivers.codec_ring import FixedRing
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.errors import CodecError
from kedge.trust import codec
from tests.secrets.conftest import Place, Staged, found
from tests.spine.scene import eventually
from worker.codec import KeyRings, client_converter, open_converter, worker_converter
from worker.rings import ring_file
from worker.wiring import runner_of, with_converter
from workflows.every import EVERY_WORKFLOW

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

NODES: Json = [{"name": f"crownnode-{at}"} for at in range(3)]
SICK = Fault(
    do="fail", op="healthy", node="crownnode-1", nth=(1, 2), type="NotHealthy",
    message="crownfailure in its log",
)  # fmt: skip
WORDS = ("crownnode-1", "crowncomment", "crownfailure")


async def whole_run(scene: Any) -> None:
    """Canary, gate, a node that parks, a decision; signals and updates, children, failures, heartbeats, queries."""
    async with scene.playing():
        scene.sim.program(SICK)
        waves = {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1}
        run = await scene.start(scene.plan(scene.runbook(waves=waves)))
        await scene.waits_for(run, "ship")
        verdict = await scene.order("approve", run, "ada", comment="crowncomment")
        assert verdict.accepted
        status = await scene.status(run)
        envelope = scene.envelope(
            "approve", run, status.plan, "bob",
            subject=status.waiting.subject, shown=status.waiting.shown,
        )  # fmt: skip
        await scene.signal(run, envelope)
        await scene.waits_for(run, "wave-1")
        assert "crownfailure" in str((await scene.status(run)).failures)
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


async def test_with_a_ring_no_word_of_a_plan_gets_into_temporals_database(
    place: Place, staged: Staged
) -> None:
    scene = await staged(await place.client(), fleet={"nodes": NODES})
    await whole_run(scene)
    place.engine.stop()
    try:
        assert found([place.database], WORDS) == {}
        # What Temporal works with itself is in the open, as the documentation says.
        assert set(found([place.database], [scene.name, "NotHealthy", "1.1.0"])) == {
            scene.name, "NotHealthy", "1.1.0",
        }  # fmt: skip
    finally:
        place.engine.start()


async def test_the_same_run_in_the_open_is_found_by_that_search(
    place: Place, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.converter_of", lambda _: open_converter())
    scene = await staged(await place.client(), fleet={"nodes": NODES})
    await whole_run(scene)
    place.engine.stop()
    try:
        assert set(found([place.database], WORDS)) == set(WORDS)
    finally:
        place.engine.start()


async def test_what_a_run_says_meanwhile_is_sealed_too_and_its_own_people_read_it(
    place: Place, staged: Staged
) -> None:
    slow: dict[str, Json] = {"pace": 1.0, "seconds": {"stop": 4.0}}
    scene = await staged(await place.client(), fleet={"nodes": NODES}, options=slow)
    runs = Runs(scene.client, scene.settings.task_queue, lambda: True)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(gates={}, waves={"widen": ["100%"]})))
        await scene.until(run, lambda status: status.child is not None)

        async def beats() -> bool:
            return bool((await runs.pieces(run, seconds=5)).steps)

        await eventually(beats)
        sent = [
            payload
            for workflow in await running(scene.client, run)
            for payload in await meanwhile(scene.client, workflow)
        ]
        assert len(sent) >= 2, "heartbeats of activities, and the words a workflow has about itself"
        assert {payload.metadata["encoding"] for payload in sent} == {b"binary/encrypted"}
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


async def running(client: Client, run: str) -> list[str]:
    """The workflows of a run that are open now."""
    asked = f'WorkflowId STARTS_WITH "{run}" AND ExecutionStatus = "Running"'
    return [one.id async for one in client.list_workflows(asked)]


async def meanwhile(client: Client, workflow: str) -> list[Payload]:
    """What the server hands out of a workflow that runs, without a codec: heartbeats, and its current details."""
    bare = with_converter(client, DataConverter.default)
    described = await bare.get_workflow_handle(workflow).describe()
    found = [
        payload
        for pending in described.raw_description.pending_activities
        for payload in pending.heartbeat_details.payloads
    ]
    asked = QueryWorkflowRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=workflow),
        query=WorkflowQuery(query_type="__temporal_workflow_metadata"),
    )
    answer = await client.workflow_service.query_workflow(asked)
    return [*found, *answer.query_result.payloads]


# -- keys that change, are wrong, or are missing ------------------------------------------------------------------


async def keys_in(client: Client, workflow: str) -> set[str]:
    """The names of the keys in a workflow's history; ``open`` for a payload that is not sealed."""
    history = await client.get_workflow_handle(workflow).fetch_history()
    return {
        base64.b64decode(payload["metadata"].get("encryption-key-id", "b3Blbg==")).decode()
        for payload in payloads(json.loads(history.to_json()))
    }


def payloads(value: Any) -> list[dict[str, Any]]:
    """Every payload of a history in JSON, search attributes left out."""
    if isinstance(value, list):
        return [one for part in value for one in payloads(part)]
    if not isinstance(value, dict):
        return []
    if isinstance(value.get("metadata"), dict) and "encoding" in value["metadata"]:
        return [value]
    return [
        one for key, part in value.items() if key != "searchAttributes" for one in payloads(part)
    ]


def active(place: Place) -> set[str]:
    """The names of the keys that seal now, one in each ring."""
    return {key.id for key in desk_codec.show(place.settings).keys if key.use == "seals"}


async def test_a_rotation_in_the_middle_of_a_run_goes_unnoticed(
    place: Place, staged: Staged
) -> None:
    first = active(place)
    scene = await staged(await place.client())
    await scene.open_fleet()
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        # The process that works here and the client that orders go on with what they have open.
        desk_codec.rotate(place.settings)
        second = active(place)
        assert (await scene.order("approve", run, "ada")).accepted
    assert await keys_in(scene.client, run) == first | second
    # A new process, which replays what the first key sealed.
    scene.client = await place.client()
    desk_codec.rotate(place.settings)
    async with scene.working():
        assert (await scene.order("approve", run, "bob")).accepted
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()
    assert await keys_in(scene.client, run) == first | second | active(place)


async def test_who_has_another_ring_or_none_is_told_so_and_writes_nothing(
    place: Place, staged: Staged, tmp_path: Path
) -> None:
    scene = await staged(await place.client())
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        before = (await scene.client.get_workflow_handle(run).describe()).history_length
        other = ring_file(place.settings).path.with_name("other.json")
        other.write_bytes(codec.ring_document(codec.new_ring(b"o" * 32, "")))
        other.chmod(0o600)
        # In the home itself another ring is known to be none of its own, before anything is sent.
        with pytest.raises(CodecError, match="not the workers' ring of"):
            await place.client(codec_ring=other)
        # Elsewhere nobody knows: the first answer tells.
        away = {
            "home": tmp_path / "elsewhere",
            "temporal_config_file": place.profile,
        }
        for given, kind in (
            ({"codec_client_ring": other}, "UnknownKey"),
            ({"payloads": "open"}, "NoRing"),
        ):
            scene_elsewhere = await place.client(**away, **given)
            handle = scene_elsewhere.get_workflow_handle(run)
            with pytest.raises(CodecError) as caught:
                await handle.query("status")
            assert caught.value.kind == kind
            assert caught.value.next_step
        assert (await scene.client.get_workflow_handle(run).describe()).history_length == before
        with pytest.raises(CodecError, match="is not there"):
            await place.client(**away, codec_ring=tmp_path / "nowhere.json")
        with pytest.raises(CodecError, match="there is no ring of keys here"):
            await place.client(**away)
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


async def test_a_worker_with_another_ring_moves_nothing_until_one_with_the_right_ring_comes(
    place: Place, staged: Staged
) -> None:
    scene = await staged(await place.client())
    right = scene.client
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
    rings = KeyRings(*(FixedRing(codec.new_ring(one * 32, "")) for one in (b"w", b"v")))
    wrong = with_converter(right, client_converter(rings))
    await right.get_workflow_handle(run).signal("order", {"not": "an order"})
    scene.client = wrong
    async with scene.working():
        failed = await task_failure(right, run)
    # Its words are sealed with the key that nobody here has; its type says enough, and the worker's log all of it.
    assert 'type: "CodecError"' in failed
    scene.client = right
    async with scene.working():
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()
    ours = {key.id for key in desk_codec.show(place.settings).keys}
    assert await keys_in(right, run) <= ours | {rings.clients.ring().active, rings.of("result").ring().active}  # fmt: skip


async def task_failure(client: Client, run: str) -> str:
    """What the first failed workflow task of a run says, once there is one."""
    for _ in range(600):
        events = (await client.get_workflow_handle(run).fetch_history()).events
        for event in events:
            if event.HasField("workflow_task_failed_event_attributes"):
                return str(event.workflow_task_failed_event_attributes.failure)
        await asyncio.sleep(0.05)
    raise AssertionError("no workflow task failed")


# -- what comes in the open ---------------------------------------------------------------------------------------


async def test_an_order_in_the_open_is_refused_and_stops_nobody(
    place: Place, staged: Staged
) -> None:
    scene = await staged(await place.client())
    outside = with_converter(scene.client, open_converter())
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        assert status.waiting is not None
        envelope = scene.envelope(
            "approve", run, status.plan, "ada", subject="ship", shown=status.waiting.shown
        )
        await outside.get_workflow_handle(run).signal("order", envelope)
        with pytest.raises(CodecError, match="no ring of keys"):
            await outside.get_workflow_handle(run).execute_update("submit_order", envelope)
        after = await scene.until(run, lambda now: now.orders > status.orders)
        assert after.waiting is not None
        refused = await scene.records()
        assert any("unreadable" in json.dumps(one) for one in refused), json.dumps(refused)
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


# -- a home that is switched over ---------------------------------------------------------------------------------


async def test_a_run_that_began_in_the_open_ends_in_a_time_of_grace(
    place: Place, staged: Staged
) -> None:
    scene = await staged(await place.client())
    sealing = scene.client
    scene.client = with_converter(sealing, open_converter())
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
    assert await keys_in(sealing, run) == {"open"}
    # Without grace its history is no history: nothing moves, and nothing is lost.
    scene.client = sealing
    async with scene.working():
        await sealing.get_workflow_handle(run).signal("order", {"not": "an order"})
        assert "application_failure_info" in await task_failure(sealing, run)
    desk_codec.grace(place.settings, "1h")
    try:
        scene.client = await place.client()
        async with scene.working():
            await scene.approve(run)
            assert (await scene.end_of(run)).phase == "done"
            await scene.freed()
    finally:
        desk_codec.grace(place.settings, "0s")
    assert await keys_in(sealing, run) == {"open"} | active(place)


# -- recorded histories -------------------------------------------------------------------------------------------

RECORDED = sorted((Path(__file__).parent.parent / "histories").glob("*/*.json"))


async def test_histories_of_before_replay_in_a_time_of_grace_and_not_after_it() -> None:
    """In the open, and sealed with one ring for all, without a kind."""
    once = codec.new_ring(b"r" * 32, "", "2999-01-01T00:00:00Z")
    chosen = [path for path in RECORDED if path.parent.name in ("upgrade", "parked", "by_itself")]
    assert len(chosen) > 8
    for path in chosen:
        recorded = json.loads(path.read_text())
        begun = recorded["events"][0]["workflowExecutionStartedEventAttributes"]
        for seal_it in (False, True):
            assert sum(sealed_as_before(once, one) for one in payloads(recorded) if seal_it) > 0 or not seal_it  # fmt: skip
            history = WorkflowHistory.from_json(begun["workflowId"], recorded)
            await replaying(once).replay_workflow(history)
    with pytest.raises(RuntimeError, match="failed|refused|sealed"):  # noqa: RUF043 - one of these words
        await replaying(codec.new_ring(b"r" * 32, "")).replay_workflow(history)


def replaying(ring: codec.Ring) -> Replayer:
    rings = KeyRings(FixedRing(codec.new_ring(b"c" * 32, "")), FixedRing(ring))
    return Replayer(
        workflows=EVERY_WORKFLOW, data_converter=worker_converter(rings), workflow_runner=runner_of(rings)
    )  # fmt: skip


def sealed_as_before(ring: codec.Ring, payload: dict[str, Any]) -> bool:
    """Seals a payload of a history as kedge did before payloads had kinds."""
    content = of_json(payload).SerializeToString()
    made = codec.seal(ring, content, "", b"n" * codec.NONCE_BYTES, None)  # type: ignore[arg-type]
    metadata = {"encoding": b"binary/encrypted", "encryption-key-id": made.key.encode()}
    payload.clear()
    payload.update(json_of([Payload(metadata=metadata, data=made.content)]))
    return True


def of_json(payload: dict[str, Any]) -> Payload:
    return ParseDict(payload, Payload())


def json_of(sealed: list[Payload]) -> dict[str, Any]:
    made: dict[str, Any] = MessageToDict(sealed[0])
    return made
