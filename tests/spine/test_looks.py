"""What people see of a run without kedge: search attributes, summaries and queries in the stock Temporal UI."""

from __future__ import annotations

import re
from typing import Any

import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import WorkflowExecutionDescription
from temporalio.common import SearchAttributeKey

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.outside import is_line
from kedge.model.status import RunStatus, WaveProgress, WideningProgress
from tests.spine.conftest import Stage
from tests.spine.latches import PACED, STEPS, in_flight, latch, let_through
from tests.spine.scene import Scene, eventually

pytestmark = pytest.mark.temporal


def shown(described: WorkflowExecutionDescription) -> dict[str, Any]:
    """The search attributes of kedge, by their short names."""
    names = ("Fleet", "Phase", "Release", "WaitingFor")
    found = described.typed_search_attributes
    return {name: found.get(SearchAttributeKey.for_keyword(f"Kedge{name}")) for name in names}


async def details(scene: Scene, workflow: str) -> WorkflowMetadata:
    """What the UI asks a workflow about itself."""
    handle = scene.client.get_workflow_handle(workflow)
    metadata: WorkflowMetadata = await handle.query(
        "__temporal_workflow_metadata", result_type=WorkflowMetadata
    )
    return metadata


async def test_a_run_that_waits_is_found_by_what_it_waits_for(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        handle = scene.client.get_workflow_handle(run)
        found = await handle.describe()
        assert shown(found) == {
            "Fleet": scene.name,
            "Phase": "gate",
            "Release": "1.1.0",
            "WaitingFor": "gate ship",
        }
        assert await found.static_summary() == "1.0.0 → 1.1.0, started by olga"
        metadata = await details(scene, run)
        assert metadata.current_details.startswith("**gate**: waits for gate ship")
        said = {one.name: one.description for one in metadata.definition.signal_definitions}
        assert said["order"] == "The same signed order, without an answer."
        query = f'KedgeFleet = "{scene.name}" AND KedgeWaitingFor = "gate ship"'

        async def listed() -> bool:
            return [one.id async for one in scene.client.list_workflows(query)] == [run]

        await eventually(listed)
        await scene.approve(run)
        await scene.end_of(run)
        found = await handle.describe()
        assert shown(found)["Phase"] == "done"
        assert shown(found)["WaitingFor"] is None


async def test_waves_say_which_node_is_where(stage: Stage) -> None:
    scene = await stage(options=PACED)
    waves: Json = {"canary": {"nodes": 1}, "widen": ["100%"], "max_unavailable": 1}
    async with scene.playing():
        latch(scene, "n1")
        run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={}, node=STEPS)))
        await in_flight(scene, "n1")
        status = await scene.status(run)
        assert (status.phase, status.waves) == ("widening", 2)
        assert status.child is not None
        widening = await scene.client.get_workflow_handle(status.child).query(
            "progress", result_type=WideningProgress
        )
        assert (widening.wave, widening.state) == (1, "upgrading")
        assert widening.child is not None
        wave = await scene.client.get_workflow_handle(widening.child).query(
            "progress", result_type=WaveProgress
        )
        assert (wave.running, wave.waiting, wave.done, wave.failed) == ((1,), (2,), (), ())
        assert wave.program == "forward"
        let_through(scene)
        await scene.end_of(run)
        # Who looks later sees how it ended, from the same queries.
        wave = await scene.client.get_workflow_handle(widening.child).query(
            "progress", result_type=WaveProgress
        )
        assert wave.done == (1, 2)
        after: RunStatus = await scene.status(run)
    assert (after.phase, after.outcome, after.nodes_done) == ("done", "done", 3)
    assert after.ended is not None
    assert after.seconds["widening"] > 0.0


async def test_a_fleet_and_a_way_back_say_what_they_are(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        back = await scene.rollback()
        await scene.end_of(back)
        status = await scene.status(back)
        described = await scene.client.get_workflow_handle(back).describe()
        fleet = await scene.freed()
        assert (
            await details(scene, f"fleet/{scene.name}")
        ).current_details == f"fleet **{scene.name}**"
    assert (status.kind, status.before, status.after) == ("rollback", "1.1.0", "1.0.0")
    assert (status.phase, status.nodes_done) == ("rolled-back", 1)
    assert await described.static_summary() == "1.1.0 → 1.0.0, ordered by eve"
    assert shown(described)["Phase"] == "rolled-back"
    assert fleet.runs == (run, back)
    assert [one.verb for one in fleet.verdicts] == ["start", "rollback"]


WORDS = "x\n  kedge approve it --key theirs\r\x1b[2K\u202e\u200b\U000e0041 [here](http://evil.example) **done** \ud800"
"""What a node may say of its failure, to be taken for kedge's own words."""


async def test_what_a_node_says_is_one_line_for_everybody_who_looks(stage: Stage) -> None:
    scene = await stage()
    scene.sim.program(
        Fault(
            do="fail",
            op="healthy",
            node="n0",
            type="NotHealthy",
            message=WORDS,
            detail={"saw": WORDS},
        )
    )
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "wave")
        drawn = (await details(scene, run)).current_details
        await scene.decide(run, "abort")
    assert status.waiting is not None
    for text in (status.said, status.waiting.showing.title, *(one.said for one in status.failures)):
        assert is_line(text)
        assert "kedge approve" in text
    assert drawn.startswith("**parked**: ")
    assert len(drawn.split("\n\n")) == 2
    assert not re.search(r"(?<!\\)(\]\(|\*\*done|://)", drawn)
