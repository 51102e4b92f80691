"""Every way by which a workflow or an activity can bring words to Temporal, through the codec, and the database searched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import (
    UnsandboxedWorkflowRunner,
    Worker,
    WorkflowInstance,
    WorkflowInstanceDetails,
)

from tests.secrets.conftest import Place, found
from worker.codec import ClientCodec, open_converter, worker_converter
from worker.sandbox import judged
from worker.sealed import FromClients, Seals
from worker.wiring import with_converter

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(120)]

QUICK = timedelta(seconds=20)
ONCE = RetryPolicy(maximum_attempts=1)


SAID: set[str] = set()


def word(what: str) -> str:
    said = f"crown-{what}-word"
    SAID.add(said)
    return said


@activity.defn
async def talk(said: str) -> str:
    if not activity.info().is_local:
        activity.heartbeat(word("heartbeat"))
    if said == word("sick"):
        raise ApplicationError(word("failure"), word("detail"), type="Sick")
    if said == word("burst"):
        raise RuntimeError(word("burst-inside"))
    return word("result")


@workflow.defn
class Talker:
    """Says a word of its own in every place there is."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.run
    async def run(self, said: str) -> str:
        workflow.set_current_details(word("current-details"))
        workflow.upsert_memo({"more": word("upserted-memo")})
        await workflow.sleep(0.01, summary=word("timer-summary"))
        await workflow.execute_activity(
            talk, said, start_to_close_timeout=QUICK, summary=word("activity-summary")
        )
        await workflow.execute_local_activity(talk, word("local"), start_to_close_timeout=QUICK)
        for bad in ("sick", "burst"):
            for run in (workflow.execute_activity, workflow.execute_local_activity):
                with pytest.raises(Exception):  # noqa: B017, PT011 - what it is wrapped in is not the point
                    await run(talk, word(bad), start_to_close_timeout=QUICK, retry_policy=ONCE)
        await workflow.execute_child_workflow(
            Child.run, word("child"), memo={"child": word("child-memo")},
            static_summary=word("child-summary"), static_details=word("child-details"),
        )  # fmt: skip
        await workflow.wait_condition(lambda: "stop" in self.heard)
        if not workflow.info().continued_run_id:
            workflow.continue_as_new(word("continued"), memo={"next": word("next-memo")})
        raise ApplicationError(word("end"), type="Ended")

    @workflow.signal
    def hear(self, said: str) -> None:
        self.heard.append(said)

    @workflow.update
    def ask(self, said: str) -> str:
        if said == word("bad-update"):
            raise ApplicationError(word("update-failure"))
        return word("update-result")

    @ask.validator
    def _judge(self, said: str) -> None:
        if said == word("refused-update"):
            raise ValueError(word("update-refusal"))

    @workflow.query
    def look(self, said: str) -> str:
        if said == word("bad-query"):
            raise ValueError(word("query-failure"))
        return word("query-result")


@workflow.defn
class Child:
    """A child, whose parent is told."""

    @workflow.run
    async def run(self, said: str) -> str:
        return word("child-result") + said


@workflow.defn
class Broken:
    """A workflow whose task fails again and again: its own words are in the failure of the task."""

    @workflow.run
    async def run(self, said: str) -> None:
        raise RuntimeError(word("task-failure") + said)


class JudgedRunner(UnsandboxedWorkflowRunner):
    """As :class:`worker.sandbox.BoundRunner`, without a sandbox: these workflows say in words what they have sent."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        rules = FromClients(
            starts={"Talker": "talker/", "Broken": "broken/"},
            signals=frozenset({"hear"}),
            updates=frozenset({"ask"}),
        )
        return judged(
            super().create_instance(det), det.info, Seals(det.info, AnyName(**vars(rules)))
        )


class AnyName(FromClients):
    """Rules that ask for no name: an argument here is a word to look for."""

    def may_start(self, kind: str, identity: str, arguments: Iterable[Payload]) -> bool:
        return identity.startswith(self.starts.get(kind, "?")) and len(list(arguments)) == 1


async def everything(client: Client, queue: str) -> None:
    codec = client.data_converter.payload_codec
    own, runner = client, UnsandboxedWorkflowRunner()
    if isinstance(codec, ClientCodec):
        own, runner = with_converter(client, worker_converter(codec.rings)), JudgedRunner()
    worker = Worker(
        own, task_queue=queue, workflows=[Talker, Child, Broken], activities=[talk], workflow_runner=runner,
    )  # fmt: skip
    async with worker:
        run = await client.start_workflow(
            Talker.run, word("argument"), id=f"talker/{queue}", task_queue=queue,
            memo={"m": word("memo")}, static_summary=word("summary"), static_details=word("details"),
        )  # fmt: skip
        await run.signal(Talker.hear, word("signal"))
        assert await run.execute_update(Talker.ask, word("update")) == word("update-result")
        for bad in ("bad-update", "refused-update"):
            with pytest.raises(WorkflowUpdateFailedError):
                await run.execute_update(Talker.ask, word(bad))
        assert await run.query(Talker.look, word("query")) == word("query-result")
        with pytest.raises(WorkflowQueryFailedError):
            await run.query(Talker.look, word("bad-query"))
        await run.signal(Talker.hear, "stop")
        await asyncio.sleep(0.5)
        again = client.get_workflow_handle(f"talker/{queue}")
        for _ in range(50):
            try:
                await again.signal(Talker.hear, "stop")
            except RPCError:
                break
            await asyncio.sleep(0.1)
        with pytest.raises(WorkflowFailureError):
            await run.result()
        broken = await client.start_workflow(
            Broken.run, word("broken"), id=f"broken/{queue}", task_queue=queue
        )
        for _ in range(100):
            history = await broken.fetch_history()
            if any(event.HasField("workflow_task_failed_event_attributes") for event in history.events):  # fmt: skip
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("its task did not fail")
        await broken.terminate()


async def test_no_word_of_a_workflow_or_an_activity_stands_in_temporals_database(
    place: Place,
) -> None:
    await everything(await place.client(), "sealed")
    place.engine.stop()
    try:
        assert len(SAID) > 30
        assert found([place.database], ["crown-"]) == {}
    finally:
        place.engine.start()


# What Temporal never writes down: what is asked and answered in memory alone.
PASSING = {"local", "query", "query-result", "bad-query", "query-failure", "current-details", "heartbeat",
           "refused-update", "update-refusal"}  # fmt: skip


async def test_the_same_words_in_the_open_are_found_by_that_search(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.converter_of", lambda _: open_converter())
    await everything(await place.client(), "open")
    place.engine.stop()
    try:
        missing = SAID - set(found([place.database], SAID))
        assert missing <= {word(one) for one in PASSING}
    finally:
        place.engine.start()
