"""Looks at many nodes: they end, fit a message, and what was not seen is never a pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

import activities.sessions
from activities.bringing_up import BringingUpActivities
from activities.ground import Ground
from activities.legs import LegActivities
from activities.nodes import NodeActivities
from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json, canonical
from kedge.model.plan import Plan
from kedge.model.run import (
    THE_RUN,
    Checked,
    CheckRequest,
    LegRequest,
    Observed,
    ObserveRequest,
    Opened,
    OpenRequest,
    Run,
    Warrant,
)
from kedge.trust.envelope import order_digest, order_key
from kedge.trust.orders import signer_of
from tests.spine.scene import Scene, make_scene, settle
from worker.wiring import ground_of

MESSAGE = 2 * 1024 * 1024
"""The largest payload the engine takes."""


class Looks:
    """Node activities on simulated hosts, with a warrant for one run; no engine."""

    def __init__(self, scene: Scene, ground: Ground, plan: Plan, run: Run) -> None:
        self.scene, self.ground, self.plan, self.run = scene, ground, plan, run
        self.activities = NodeActivities(ground)
        self.looks = 0

    async def begin(self, *, there: bool = False) -> None:
        """Another run that has its lease and has looked at every node; ``there``: all of them are through."""
        order = self.scene.envelope("start", f"fleet/{self.scene.name}", self.run.plan, "olga")
        warrant = await self.scene.drivers.blobs.put(canonical(Warrant(start=order)))
        self.run = run = self.run.model_copy(
            update={
                "id": f"upgrade/{self.scene.name}/{self.run.epoch}",
                "epoch": self.run.epoch + 1,
                "warrant": warrant,
            }
        )
        nodes = [node.name for node in self.plan.nodes]
        digest = order_digest(order)
        accepted: dict[str, Json] = {
            "what": "order", "accepted": True, "digest": digest, "key": signer_of(order),
            "verb": "start", "target": f"fleet/{self.scene.name}",
        }  # fmt: skip
        lease: dict[str, Json] = {
            "what": "lease", "order": digest, "run": run.id, "epoch": run.epoch, "plan": run.plan,
            "verb": "start", "snapshots": 0, "policies": ["0" * 64],
        }  # fmt: skip
        ready: dict[str, Json] = {
            "what": "looked", "why": "preflight", "token": [run.epoch, 0, 1], "run": run.id,
            "nodes": {name: {} for name in nodes}, "there": list[Json](nodes if there else []),
        }  # fmt: skip
        await self.ground.note(run.fleet, order_key(digest, "accepted", ""), accepted)
        await self.ground.note(run.fleet, f"lease/{digest}", lease)
        await self.ground.note(run.fleet, f"ready/{run.id}", ready)

    async def check(self) -> Checked:
        """One look of the bake of the first wave, whose nodes are all through by the record."""
        await self.begin(there=True)
        asked = CheckRequest(run=self.run, wave=0, serial=1)
        return await self._environment().run(self.activities.check_nodes, asked)

    def _environment(self) -> ActivityEnvironment:
        environment = ActivityEnvironment()
        self.looks += 1
        environment.info = dataclasses.replace(environment.info, activity_id=f"look-{self.looks}")
        return environment

    async def observe(self, *, probes: bool = False) -> Observed:
        """A look at every node."""
        nodes = tuple(range(len(self.plan.nodes)))
        asked = ObserveRequest(run=self.run, nodes=nodes, serial=1, probes=probes)
        return await self._environment().run(self.activities.observe_nodes, asked)

    async def open(self) -> Opened:
        """The first wave, opened."""
        asked = OpenRequest(run=self.run, wave=0, serial=1)
        return await ActivityEnvironment().run(self.activities.open_wave, asked)


async def looks(home: Path, nodes: int, *, up: bool = True, **runbook: Json) -> Looks:
    """A fleet of ``nodes`` in memory that goes in one wave."""
    # Nobody listens there: these activities ask no engine.
    no_client = await Client.connect("127.0.0.1:1", lazy=True)
    scene = make_scene(no_client, home, nodes=nodes, sim_in_memory=True)
    await settle(scene)
    waves: Json = {"widen": [{"to": "100%", "bake": {"duration": "1s"}}], "max_unavailable": 1}
    plan = scene.plan(scene.runbook(**{"waves": waves, "gates": {}, **runbook}))
    digest = await scene.drivers.blobs.put(canonical(plan))
    target = f"fleet/{scene.name}"
    order = scene.envelope("start", target, digest, "olga")
    warrant = await scene.drivers.blobs.put(canonical(Warrant(start=order)))
    run = Run(id=f"upgrade/{scene.name}/1", fleet=scene.name, plan=digest, epoch=7, warrant=warrant)
    ground = ground_of(scene.drivers, no_client)
    made = Looks(scene, ground, plan, run)
    await made.begin()
    if up:
        await ActivityEnvironment().run(BringingUpActivities(ground).ensure_fleet, scene.name)
    return made


async def test_a_bake_whose_nodes_all_died_still_fits_a_message(tmp_path: Path) -> None:
    made = await looks(tmp_path, 700)
    large: dict[str, Json] = {"log": "x" * 3900, "exit": "y" * 3900}
    sim = made.scene.drivers.transport.named("sim")
    assert isinstance(sim, SimTransport)
    sim.program(Fault(do="fail", op="healthy", type="ServiceDied", detail=large))
    checked = await made.check()
    assert len(checked.failures) == 700
    assert len(checked.model_dump_json()) < MESSAGE


async def test_a_look_that_takes_too_long_ends_and_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activities.sessions, "LOOKING", -1.0)
    made = await looks(tmp_path, 3)
    checked = await made.check()
    assert [(failure.node, failure.type) for failure in checked.failures] == [(THE_RUN, "Unseen")]
    seen = await made.observe()
    assert seen.unreachable == (0, 1, 2)
    assert [problem.type for problem in seen.problems] == ["Unseen"] * 3


async def test_a_node_of_which_nobody_knows_whether_it_leads_goes_last(tmp_path: Path) -> None:
    probe: Json = {"http": "http://{node.address}/leads", "expect": {"leads": True}}
    waves: Json = {"last": probe, "widen": ["100%"], "max_unavailable": 1}
    made = await looks(tmp_path, 3, waves=waves)
    options = {"answers": {"*": {"leads": False}}}
    nodes = tuple(
        node if index == 0 else node.model_copy(update={"options": options})
        for index, node in enumerate(made.plan.nodes)
    )
    plan = made.plan.model_copy(update={"nodes": nodes})
    made.ground._plans[made.run.plan] = plan
    assert (await made.open()).batches == ((1, 2), (0,))


async def test_an_empty_node_is_a_problem_also_for_a_way_back(tmp_path: Path) -> None:
    made = await looks(tmp_path, 3, up=False)
    seen = await made.observe()
    assert seen.empty == (0, 1, 2)
    assert {problem.type for problem in seen.problems} == {"UnknownRelease"}


async def test_what_legs_began_is_found_also_when_it_is_written_down_between_two_looks(
    tmp_path: Path,
) -> None:
    final: Json = {"steps": [{"run": {"argv": ["set"], "undo": "none"}}]}
    made = await looks(tmp_path, 2, finalize=final)
    assert not (await made.observe()).finalized
    record: dict[str, Json] = {
        "what": "finalize-begun",
        "plan": made.run.plan,
        "upgrade": made.run.epoch,
    }
    await made.ground.note(made.run.fleet, "begun", record)
    assert (await made.observe()).finalized
    assert (await made.observe()).finalized


async def test_what_bringing_up_starts_is_evidence(tmp_path: Path) -> None:
    made = await looks(tmp_path, 2)
    records = [entry.record for entry in await made.ground.evidence.read(made.run.fleet)]
    said = [one["what"] for one in records if isinstance(one, dict)]
    assert said[3:] == ["policy", "installed", "installed"]


async def test_a_leg_that_is_not_allowed_is_evidence(tmp_path: Path) -> None:
    made = await looks(tmp_path, 2)
    forged = made.run.model_copy(update={"id": f"upgrade/{made.run.fleet}x/1"})
    legs = LegActivities(made.ground)
    asked = LegRequest(run=forged, node=0, program="forward", leg=0, serial=1, wave=0)
    with pytest.raises(ApplicationError):
        await ActivityEnvironment().run(legs.run_leg, asked)
    last = (await made.ground.evidence.read(made.run.fleet))[-1].record
    assert isinstance(last, dict)
    failed = last["failed"]
    assert isinstance(failed, dict)
    assert failed["type"] == "NotAuthorised"
