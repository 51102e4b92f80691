"""In which order nodes go and how many are out at once, told by the hosts themselves."""

from __future__ import annotations

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually

pytestmark = pytest.mark.temporal

PACE: dict[str, Json] = {"pace": 1.0, "seconds": {"switch": 0.3}}
"""A node is down for this long, so that others may be down at the same time."""


def downs(scene: Scene) -> tuple[list[str], int, dict[str, set[str]]]:
    """In which order nodes went down, how many were down at once at most, and who with whom."""
    down: set[str] = set()
    order: list[str] = []
    most = 0
    company: dict[str, set[str]] = {}
    up: set[str] = set()
    for name, state in scene.happened():
        if state.pid is None and name in up:
            order.append(name)
            down.add(name)
            up.discard(name)
        elif state.pid is not None:
            up.add(name)
            down.discard(name)
        for one in down:
            company.setdefault(one, set()).update(down)
        most = max(most, len(down))
    return order, most, company


async def through(scene: Scene, waves: Json, **given: Json) -> None:
    """One upgrade without gates."""
    book = scene.runbook(**{"waves": waves, "gates": {}, **given})
    async with scene.playing():
        run = await scene.start(scene.plan(book))
        assert (await scene.end_of(run)).phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_nodes_are_out_at_once_than_may_be(stage: Stage, most: int) -> None:
    scene = await stage(nodes=7, options=PACE)
    await through(
        scene, {"canary": {"nodes": 1}, "widen": ["50%", "100%"], "max_unavailable": most}
    )
    order, found, _ = downs(scene)
    assert found == 1 if most == 1 else 1 < found <= most
    assert sorted(order) == [f"n{index}" for index in range(7)], "each once"
    assert order[0] == "n0"
    assert set(order[:4]) == {"n0", "n1", "n2", "n3"}, "wave after wave"


LEADS: Json = {"http": "http://{node.address}:1/", "expect": {"leader": True}}


def answering(name: str, **labels: str) -> dict[str, Json]:
    """A node that says that it does not lead."""
    said: dict[str, Json] = {"answers": {"*": {"leader": False}}}
    return {"name": name, "options": said, "labels": {**labels}}


def leading(name: str, **labels: str) -> dict[str, Json]:
    """A node that says that it leads."""
    said: dict[str, Json] = {"answers": {"*": {"leader": True}}}
    return {"name": name, "options": said, "labels": {**labels}}


async def test_who_leads_when_the_wave_opens_goes_last_and_alone(stage: Stage) -> None:
    nodes: Json = [answering("n0"), leading("n1"), answering("n2"), answering("n3")]
    scene = await stage(options=PACE, fleet={"nodes": nodes})
    await through(scene, {"last": LEADS, "widen": ["100%"], "max_unavailable": 2})
    order, most, company = downs(scene)
    assert order[-1] == "n1"
    assert company["n1"] == {"n1"}, "it goes when all others are through"
    assert most <= 2


async def test_the_leader_of_the_first_failure_domain_goes_last_of_the_wave(stage: Stage) -> None:
    nodes: Json = [
        leading("n0", zone="a"),
        answering("n1", zone="a"),
        answering("n2", zone="b"),
        answering("n3", zone="b"),
    ]
    scene = await stage(options=PACE, fleet={"nodes": nodes})
    await through(scene, {"domain": "zone", "last": LEADS, "widen": ["100%"], "max_unavailable": 2})
    assert downs(scene)[0][-1] == "n0"
    assert downs(scene)[0][0] == "n1"


ZONES: dict[str, Json] = {
    "nodes": [{"name": f"n{index}", "labels": {"zone": "abc"[index % 3]}} for index in range(6)]
}
APART = {"n0": {"n0", "n3"}, "n1": {"n1", "n4"}, "n2": {"n2", "n5"}}


def zones_apart(scene: Scene) -> None:
    """Nodes of two failure domains were never out together."""
    company = downs(scene)[2]
    for together in APART.values():
        for name in together:
            assert company[name] <= together


async def test_one_failure_domain_is_out_at_a_time(stage: Stage) -> None:
    scene = await stage(options=PACE, fleet=ZONES)
    await through(scene, {"domain": "zone", "widen": ["100%"], "max_unavailable": 2})
    order, most, _ = downs(scene)
    assert most <= 2
    assert [set(order[at : at + 2]) for at in (0, 2, 4)] == list(APART.values())
    zones_apart(scene)


async def test_failure_domains_stay_apart_after_a_pause_and_after_a_retry(stage: Stage) -> None:
    scene = await stage(options=PACE, fleet=ZONES)
    sick = Fault(do="fail", op="healthy", node="n3", run="upgrade/*", nth=(1,))
    waves: Json = {"domain": "zone", "widen": ["100%"], "max_unavailable": 2}
    book = scene.runbook(waves=waves, gates={}, retry={"attempts": 1})
    async with scene.playing():
        scene.sim.program(sick)
        run = await scene.start(scene.plan(book))
        await scene.waits_for(run, "wave")
        await scene.decide(run, "retry")
        await eventually(lambda: scene.running()["n1"] is None)
        assert (await scene.order("pause", run, "olga")).accepted
        await scene.until(run, "paused")
        assert (await scene.order("resume", run, "olga")).accepted
        assert (await scene.end_of(run)).phase == "done"
    zones_apart(scene)


async def test_groups_go_one_after_the_other_and_the_last_node_alone(stage: Stage) -> None:
    labels = ["leader", "follower", "follower", "learner", "follower"]
    nodes: Json = [
        {"name": f"n{index}", "labels": {"role": role}} for index, role in enumerate(labels)
    ]
    scene = await stage(options=PACE, fleet={"nodes": nodes})
    waves: Json = {
        "order": [{"role": "learner"}, {"role": "follower"}, {"role": "leader"}],
        "widen": ["100%"],
        "last_node": True,
        "max_unavailable": 2,
    }
    await through(scene, waves)
    order, most, company = downs(scene)
    assert order[0] == "n3"
    assert order[-1] == "n0"
    assert company["n0"] == {"n0"}
    assert company["n3"] == {"n3"}
    assert most <= 2


async def test_a_wave_of_many_chunks_keeps_to_what_may_be_out(stage: Stage) -> None:
    scene = await stage(nodes=520)
    waves: Json = {"canary": {"nodes": 1}, "widen": ["100%"], "max_unavailable": 260}
    book = scene.runbook(waves=waves, gates={}, failure_budget=1, retry={"attempts": 1})
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="healthy", node="n200", run="upgrade/*"))
        run = await scene.start(scene.plan(book))
        await scene.waits_for(run, "end")
        await scene.decide(run, "skip")
        end = await scene.end_of(run)
    assert end.nodes_done == 519
    order, most, _ = downs(scene)
    assert len(order) == len(set(order)) == 520
    assert most <= 260


async def test_the_way_back_goes_the_other_way_round_and_keeps_to_the_same_limits(
    stage: Stage,
) -> None:
    scene = await stage(options=PACE, fleet=ZONES)
    waves: Json = {"domain": "zone", "widen": ["100%"], "max_unavailable": 2}
    await through(scene, waves)
    before = len(downs(scene)[0])
    async with scene.working():
        assert (await scene.end_of(await scene.rollback())).phase == "rolled-back"
    order, most, _ = downs(scene)
    back = order[before:]
    assert most <= 2
    assert [set(back[at : at + 2]) for at in (0, 2, 4)] == list(reversed(APART.values()))
    zones_apart(scene)


async def test_one_node_alone_is_not_stopped_before_the_gate_that_no_wave_comes_after(
    stage: Stage,
) -> None:
    scene = await stage(nodes=1)
    waves: Json = {"canary": {"nodes": 1}, "widen": ["50%", {"to": "100%", "gate": "ship"}]}
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves=waves)))
        await scene.waits_for(run, "ship")
        assert scene.running() == {"n0": "1.0.0"}
        assert (await scene.status(run)).nodes_done == 0
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
    assert scene.running() == {"n0": "1.1.0"}
