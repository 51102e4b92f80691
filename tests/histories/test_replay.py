"""Histories of real runs, replayed against the workflows as they are now: a run under way survives a new worker."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxRestrictions
from temporalio.workflow import NondeterminismError

from tests.histories.changed import IdleWave, SlowerUpgrade
from worker.sandbox import ContextFreeRunner
from worker.wiring import PURE
from workflows.every import EVERY_WORKFLOW

FOLDER = Path(__file__).parent
HISTORIES = sorted(FOLDER.glob("*/*.json"))


def history(path: Path) -> WorkflowHistory:
    """A recorded history under the name that its workflow had."""
    text = path.read_text()
    begun = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(begun["workflowId"], text)


def kind(path: Path) -> str:
    """The type of the workflow."""
    begun = json.loads(path.read_text())["events"][0]["workflowExecutionStartedEventAttributes"]
    return str(begun["workflowType"]["name"])


def replayer(workflows: list[type]) -> Replayer:
    """Replays as the worker runs them."""
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PURE)
    return Replayer(
        workflows=workflows,
        data_converter=pydantic_data_converter,
        workflow_runner=ContextFreeRunner(restrictions=restrictions),
    )


async def test_every_recorded_history_replays() -> None:
    assert HISTORIES
    every = {history(path).run_id: path for path in HISTORIES}
    assert len(every) == len(HISTORIES)

    async def one_by_one() -> AsyncIterator[WorkflowHistory]:
        for path in HISTORIES:
            yield history(path)

    replayed = 0
    async with replayer(EVERY_WORKFLOW).workflow_replay_iterator(one_by_one()) as results:
        async for result in results:
            path = every[result.history.run_id].relative_to(FOLDER)
            assert result.replay_failure is None, f"{path}: {result.replay_failure}"
            replayed += 1
    assert replayed == len(HISTORIES)


@pytest.mark.parametrize(("changed", "name"), [(SlowerUpgrade, "Upgrade"), (IdleWave, "Wave")])
async def test_a_workflow_that_does_something_else_does_not_replay(
    changed: type, name: str
) -> None:
    again = replayer([changed])
    found = [path for path in HISTORIES if kind(path) == name]
    assert found
    for path in found[:3]:
        with pytest.raises(NondeterminismError):
            await again.replay_workflow(history(path))


def test_the_recorded_histories_are_of_every_workflow_and_of_what_happens_to_them() -> None:
    kinds = {kind(path) for path in HISTORIES}
    assert kinds == {"Fleet", "Upgrade", "CanaryWidening", "Wave", "Rollback", "Ensure", "Look"}
    renewed = {kind(path) for path in HISTORIES if re.search(r"\.\d+\.json$", path.name)}
    assert renewed == {"Fleet", "Upgrade", "CanaryWidening", "Rollback"}
    ends = {end for path in HISTORIES for end in outcomes(path)}
    assert {"done", "rolled-back", "preempted", "aborted"} <= ends


def outcomes(path: Path) -> Iterator[str]:
    """How a run ended, if this history has its end."""
    last = json.loads(path.read_text())["events"][-1]
    for payload in (
        last.get("workflowExecutionCompletedEventAttributes", {})
        .get("result", {})
        .get("payloads", [])
    ):
        value = json.loads(base64.b64decode(payload["data"]))
        if isinstance(value, dict) and "phase" in value:
            yield value["phase"]


def texts(value: Any) -> Iterator[str]:
    """Every text in a history, also those inside payloads."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "data" and isinstance(one, str):
                yield base64.b64decode(one).decode("utf-8", "replace")
            yield from texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, str):
        yield value


PATHS = re.compile(r"/(?:tmp|home|root|work|usr|var|Users|private)/[A-Za-z0-9_.-]+")


def test_recorded_histories_say_nothing_of_where_they_were_recorded() -> None:
    names = {socket.gethostname(), os.environ.get("USER", "recorder-of-none")}
    for path in HISTORIES:
        for text in texts(json.loads(path.read_text())):
            assert not PATHS.search(text), f"{path.name}: {text[:300]}"
            assert not any(name in text for name in names if len(name) > 5), (
                f"{path.name}: {text[:300]}"
            )
            assert "PRIVATE KEY" not in text
