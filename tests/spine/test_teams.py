"""Nodes whose legs are quick share activities: what that changes, and what it does not."""

from __future__ import annotations

import secrets
from collections import Counter

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from bench.figures import histories_of
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.run import (
    LegDone,
    LegFacts,
    LegRequest,
    Missed,
    Run,
    TeamDone,
    TeamRequest,
    WaveRequest,
    WaveResult,
    failure_of_the_run,
)
from tests.spine.conftest import Stage
from tests.spine.scene import Scene
from tests.spine.test_waves import downs
from worker.sandbox import ContextFreeRunner
from worker.wiring import restrictions
from workflows.wave import TEAMS, Wave

pytestmark = pytest.mark.temporal

NODES = 48
PLACES = 2 * TEAMS
"""Teams of two."""
ALL: dict[str, Json] = {
    "waves": {"widen": ["100%"], "max_unavailable": PLACES},
    "gates": {},
    "retry": {"attempts": 2, "backoff": "50ms"},
}


async def legs(scene: Scene) -> Counter[str]:
    """How many records of a leg the evidence has, by node."""
    return Counter(str(one["node"]) for one in await scene.records("leg"))


def started(scene: Scene) -> Counter[int]:
    """How many nodes were started so often."""
    return Counter(scene.host(node.name).counts.starts for node in scene.document.nodes)


async def test_quick_nodes_share_activities_and_no_more_are_out_than_may_be(stage: Stage) -> None:
    scene = await stage(nodes=NODES)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**ALL)))
        end = await scene.end_of(run)
        counted = (await histories_of(scene.client, run)).activities
    assert (end.phase, end.nodes_done, end.replayed) == ("done", NODES, 0)
    assert counted["run_legs"] > 0
    assert counted["run_leg"] + counted["run_legs"] < NODES
    assert downs(scene)[1] <= PLACES
    assert set((await legs(scene)).values()) == {1}, "one record a node"
    assert started(scene) == {2: NODES}


async def test_who_fails_in_a_team_is_tried_again_by_itself(stage: Stage) -> None:
    scene = await stage(nodes=NODES)
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="healthy", node="n3?", run="upgrade/*", nth=(1,)))
        run = await scene.start(scene.plan(scene.runbook(**ALL)))
        end = await scene.end_of(run)
    assert (end.phase, end.nodes_done) == ("done", NODES)
    again = {node for node, records in (await legs(scene)).items() if records == 2}
    assert again == {f"n{index}" for index in range(30, 40)}
    assert started(scene) == {2: NODES}, "looking again does not start again"


async def test_a_team_whose_connection_broke_off_is_tried_again_and_nothing_is_done_twice(
    stage: Stage,
) -> None:
    scene = await stage(nodes=NODES)
    async with scene.playing():
        gone = Fault(do="die", op="start", at="recorded", node="n3[05]", run="upgrade/*", nth=(1,))
        scene.sim.program(gone)
        run = await scene.start(scene.plan(scene.runbook(**ALL)))
        end = await scene.end_of(run)
    assert (end.phase, end.nodes_done) == ("done", NODES)
    assert end.replayed >= 10, "the journals answered for what was done"
    assert started(scene) == {2: NODES}


async def test_nobody_is_begun_once_a_node_of_a_team_failed_for_good(stage: Stage) -> None:
    scene = await stage(nodes=NODES)
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="healthy", node="n16", run="upgrade/*"))
        once: dict[str, Json] = {**ALL, "retry": {"attempts": 1}}
        book = scene.runbook(**once)
        run = await scene.start(scene.plan(book))
        status = await scene.waits_for(run, "wave")
        assert [failure.name for failure in status.failures] == ["n16"]
        begun = set(await legs(scene))
        assert "n16" in begun
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert (end.phase, end.nodes_done) == ("done", NODES)
    assert len(begun) < NODES
    assert started(scene) == {2: NODES - 1, 3: 1}


def _quickly(node: int) -> LegDone:
    return LegDone(node=node, done=1, replayed=0, seconds=0.01)


class Quick:
    """Activities of nobody's hosts: single legs are done at once; what a team says, the test says."""

    def __init__(self, *, revoked: bool = False, lost: bool = True) -> None:
        self.revoked = revoked
        self.lost = lost
        self.teams: list[TeamRequest] = []
        self.alone: list[LegRequest] = []

    @activity.defn
    async def run_leg(self, request: LegRequest) -> LegDone:
        self.alone.append(request)
        return _quickly(request.node)

    @activity.defn
    async def run_legs(self, request: TeamRequest) -> TeamDone:
        self.teams.append(request)
        if not self.revoked and self.lost:
            raise ApplicationError("nobody knows", type="Unknown", non_retryable=True)
        if not self.revoked:
            return TeamDone(done=tuple(map(_quickly, request.nodes)), missed=())
        *others, last = request.nodes
        why = failure_of_the_run("ReleaseRevoked", "it was revoked")
        return TeamDone(
            done=tuple(map(_quickly, others)),
            missed=(Missed(node=last, failure=why),),
        )

    async def wave(self, client: Client, *, quick: bool = False) -> WaveResult:
        """A wave of these activities, on a queue of its own."""
        queue = f"queue-{secrets.token_hex(4)}"
        asked = WaveRequest(
            run=Run(id="upgrade/x/1", fleet="x", plan="0" * 64, warrant="0" * 64, epoch=1),
            wave=0,
            program="forward",
            legs=(LegFacts(timeout=5, attempts=1, backoff=0.1),),
            nodes=tuple(range(NODES)),
            parallel=PLACES,
            budget=0,
            serial=1_000,
            quick=quick,
        )
        async with Worker(
            client,
            task_queue=queue,
            workflows=[Wave],
            activities=[self.run_leg, self.run_legs],
            workflow_runner=ContextFreeRunner(restrictions=restrictions()),
        ):
            result: WaveResult = await client.execute_workflow(
                Wave.run, asked, id=f"wave/{queue}", task_queue=queue
            )
        return result


async def test_after_a_team_of_which_nothing_is_known_each_node_is_tried_with_a_higher_token(
    client: Client,
) -> None:
    seen = Quick(revoked=False)
    result = await seen.wave(client)
    assert (result.done, result.failures) == (NODES, ())
    lost = {node for team in seen.teams for node in team.nodes}
    assert lost, "there were teams"
    assert all(team.leg.serial == 1_000 for team in seen.teams)
    assert {one.node: one.serial for one in seen.alone} == {
        node: 1_001 if node in lost else 1_000 for node in range(NODES)
    }


async def test_a_release_that_is_revoked_stops_a_wave_of_teams_and_is_no_nodes_failure(
    client: Client,
) -> None:
    seen = Quick(revoked=True)
    result = await seen.wave(client)
    assert [failure.type for failure in result.failures] == ["ReleaseRevoked"]
    assert 1 <= len(seen.teams) <= TEAMS, "those that were in flight, and no further one"
    missed = {team.nodes[-1] for team in seen.teams}
    assert missed <= set(result.remaining)
    assert result.done == NODES - len(result.remaining)


async def test_a_chunk_after_a_quick_one_begins_in_teams(client: Client) -> None:
    first = Quick(lost=False)
    before = await first.wave(client)
    assert before.quick
    assert len(first.alone) == PLACES, "nothing was known of them"
    second = Quick(lost=False)
    result = await second.wave(client, quick=before.quick)
    assert (result.done, result.quick, second.alone) == (NODES, True, [])
    assert {len(team.nodes) for team in second.teams} == {PLACES // TEAMS}


async def test_a_widening_pays_for_single_legs_once(stage: Stage) -> None:
    scene = await stage(nodes=NODES)
    async with scene.playing():
        waves: dict[str, Json] = {"widen": ["50%", "100%"], "max_unavailable": PLACES}
        run = await scene.start(scene.plan(scene.runbook(**{**ALL, "waves": waves})))
        end = await scene.end_of(run)
        counted = (await histories_of(scene.client, run)).activities
    assert (end.phase, end.nodes_done) == ("done", NODES)
    assert counted["run_leg"] <= PLACES, "of the first wave alone"
    assert downs(scene)[1] <= PLACES
