"""Nodes that died meanwhile: real daemons, killed before the start, at a gate, in a wave, on the way back, at the end.

Nobody is stopped while as many nodes as may be out are out already, whatever brought them down; and no run says that all
is well about a node that it has not just looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from kedge.model.run import RunEnd
from tests.spine.conftest import Stage
from tests.spine.scene import DAEMON, Scene, archive, eventually
from workflows.calls import WAITING

pytestmark = pytest.mark.temporal

ONE_BY_ONE: dict[str, Json] = {
    "waves": {"widen": ["100%"], "max_unavailable": 1},
    "gates": {},
    "retry": {"attempts": 1},
}
SIMPLE: list[Json] = [
    "stage", {"stop": {"signal": "TERM", "grace": "5s"}}, "switch", "configure",
    {"start": {"settle": "0s"}},
]  # fmt: skip
SLOW: dict[str, Json] = {
    **ONE_BY_ONE,
    "node": [
        "stage",
        {"stop": {"signal": "TERM", "grace": "5s"}},
        "switch",
        "configure",
        {"start": {"settle": "1s"}},
        {
            "healthy": {
                "service": {"running": True},
                "for": "0s",
                "within": "5s",
                "interval": "50ms",
            }
        },
    ],
}
"""Each node takes a second after it was stopped, so that others can die meanwhile."""


def kill(scene: Scene, node: str) -> None:
    """The daemon of a node dies."""
    kept = json.loads((scene.home / "nodes" / node / ".kedge" / "service.json").read_text())
    os.kill(kept["pid"], signal.SIGKILL)


def truth(scene: Scene) -> list[str]:
    """What the daemons themselves said, in order: ``start n0 1.0.0``."""
    path = scene.home / "truth.log"
    if not path.exists():
        return []
    return [" ".join(line.split()[:3]) for line in path.read_text().splitlines()]


async def said(scene: Scene, line: str) -> None:
    """Wait until a daemon said so."""

    async def there() -> bool:
        return line in truth(scene)

    await eventually(there)


def running(scene: Scene) -> set[str]:
    """The nodes whose daemon runs, by the process itself."""
    found = set()
    for kept in scene.home.glob("nodes/*/.kedge/service.json"):
        try:
            os.kill(json.loads(kept.read_text())["pid"], 0)
        except ProcessLookupError:
            continue
        found.add(kept.parent.parent.name)
    return found


async def test_a_node_that_was_dead_before_the_start_parks_the_run_before_another_is_stopped(
    stage: Stage,
) -> None:
    scene = await stage(transport="local")
    async with scene.playing():
        kill(scene, "n2")
        run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
        status = await scene.waits_for(run, "preflight")
        assert "n2" in status.said
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "abort")
        assert [line for line in truth(scene) if line.startswith("stop")] == []
        # A person goes on without it: it is left out, and one at a time is possible.
        await scene.decide(run, "skip")
        await scene.waits_for(run, "end")
        await scene.decide(run, "skip")
        end = await scene.end_of(run)
    assert end.release is None
    assert "1 node(s) were skipped" in end.said
    assert "not n2 (its daemon does not run)" in end.said
    assert running(scene) == {"n0", "n1"}


async def test_a_canary_that_died_while_its_gate_waited_is_seen_and_stops_the_next_wave(
    stage: Stage,
) -> None:
    scene = await stage(transport="local")
    waves: Json = {
        "canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1,
    }  # fmt: skip
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves=waves)))
        status = await scene.waits_for(run, "ship")
        assert status.waiting is not None
        assert "3 of 3 nodes serve" in status.waiting.showing.said
        assert status.waiting.looked is not None
        kill(scene, "n0")
        await scene.approve(run)
        # What was signed is not so any more: the gate is asked again, and shows the canary as it is.
        status = await scene.until(
            run,
            lambda s: (
                s.waiting is not None and any("not n0" in one for one in s.waiting.showing.said)
            ),
        )
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert status.waiting.tally.signed == ()
        assert [failure.name for failure in status.failures] == ["n0"]
        await scene.approve(run)
        status = await scene.waits_for(run, "serving")
        assert "n0 (its daemon does not run)" in status.said
        assert "max_unavailable is 1" in status.said
        assert status.waiting is not None
        assert status.waiting.showing.choices == ("retry", "skip", "rollback", "abort")
        assert [line for line in truth(scene) if line.startswith("stop")] == ["stop n0 1.0.0"]
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.said == "done: every node is on the new release; 3 of 3 nodes serve"
    assert truth(scene).count("start n0 1.1.0") == 2, "what should run was started, nothing else"
    assert truth(scene).count("stop n0 1.0.0") == 1
    assert running(scene) == {"n0", "n1", "n2"}


async def test_a_gate_that_has_its_signatures_waits_for_nobody_while_nodes_are_looked_at_once_more(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await scene.start(scene.plan())
        waiting = (await scene.waits_for(run, "ship")).waiting
        assert waiting is not None
        listed = scene.client.get_workflow_handle(run)
        assert (await listed.describe()).typed_search_attributes[WAITING] == "gate ship"
        scene.sim.program(Fault(do="hang", key="*/serving-*", seconds=3))
        await scene.approve(run, "ada")
        status = await scene.status(run)
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert status.waiting.tally.missing == 1
        await scene.approve(run, "bob")
        status = await scene.status(run)
        assert (status.phase, status.waiting) == ("gate", None)
        assert status.said == "looks at 3 nodes before gate ship passes"
        # Nor can it be closed: the run can be paused, aborted or rolled back.
        late = await scene.order("reject", run, "ada", subject=waiting.subject, shown=waiting.shown)
        assert (late.accepted, late.rule) == (False, "not-open")
        assert (await scene.status(run)).waiting is None
        described = await listed.describe()
        assert described.typed_search_attributes.get(WAITING) is None
        scene.sim.clear()
        end = await scene.end_of(run)
    assert end.phase == "done"
    asked = [one for one in await scene.records("asked") if one["subject"] == "ship"]
    assert len(asked) == 1


async def test_a_node_that_died_in_its_wave_after_it_was_done_keeps_the_next_from_being_stopped(
    stage: Stage,
) -> None:
    scene = await stage(transport="local")
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**SLOW)))
        await said(scene, "stop n1 1.0.0")
        kill(scene, "n0")
        status = await scene.waits_for(run, "serving")
        assert "n0 (its daemon does not run)" in status.said
        assert "stop n2 1.0.0" not in truth(scene)
        # A person goes on without it; the end says so.
        await scene.decide(run, "skip")
        end = await scene.end_of(run)
    assert "without 1 node" in end.said
    assert "not n0 (its daemon does not run)" in end.said
    assert truth(scene).count("stop n1 1.0.0") == 1
    assert running(scene) == {"n1", "n2"}


async def test_the_end_is_declared_only_after_a_look_at_every_node(stage: Stage) -> None:
    scene = await stage(transport="local")
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**SLOW)))
        await said(scene, "stop n2 1.0.0")
        kill(scene, "n0")
        status = await scene.waits_for(run, "serving")
        assert "2 of 3 nodes serve; not n0 (its daemon does not run)" in status.said
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert end.said == "done: every node is on the new release; 3 of 3 nodes serve"
    assert (end.release, end.nodes_done) == ("1.1.0", 3)
    looks = [one for one in await scene.records("looked") if one["why"] == "end"]
    assert [one["nodes"]["n0"]["serving"] for one in looks] == [False, False, True]
    assert [set(one["nodes"]) for one in looks[:2]] == [{"n0", "n1", "n2"}] * 2


async def through(scene: Scene, **given: Json) -> RunEnd:
    run = await scene.start(scene.plan(scene.runbook(**given)))
    end = await scene.end_of(run)
    await scene.freed()
    return end


async def test_a_node_that_died_while_others_went_back_is_started_before_the_next_is_stopped(
    stage: Stage,
) -> None:
    scene = await stage(transport="local")
    async with scene.playing():
        await through(scene, **SLOW)
        run = await scene.rollback()
        await said(scene, "stop n1 1.1.0")
        kill(scene, "n2")
        end = await scene.end_of(run)
    assert end.phase == "rolled-back"
    assert end.said == "every node runs its baseline"
    story = truth(scene)
    assert story.count("start n2 1.0.0") == 3, "by up, on its way back, and after it died"
    again = len(story) - 1 - story[::-1].index("start n2 1.0.0")
    assert again < story.index("stop n0 1.1.0"), story
    assert running(scene) == {"n0", "n1", "n2"}


async def test_nodes_that_do_not_serve_the_new_release_keep_nobody_from_going_back(
    stage: Stage,
) -> None:
    scene = await stage(options={"answers": {"*": {"status": "ok"}}})
    probe: Json = {"http": "http://127.0.0.1:1/health", "within": "1s", "interval": "50ms"}
    book: dict[str, Json] = {**ONE_BY_ONE, "node": [*SIMPLE, {"healthy": probe}]}
    async with scene.playing():
        await through(scene, **book)
        scene.sim.program(Fault(do="unhealthy", release=scene.digest("1.1.0")))
        end = await scene.end_of(await scene.rollback())
    assert (end.phase, end.said) == ("rolled-back", "every node runs its baseline")
    assert set(scene.running().values()) == {"1.0.0"}


async def test_a_node_that_runs_its_baseline_and_does_not_serve_is_named_before_the_end(
    stage: Stage,
) -> None:
    scene = await stage(options={"answers": {"*": {"status": "ok"}}})
    probe: Json = {"http": "http://127.0.0.1:1/health", "within": "1s", "interval": "50ms"}
    book: dict[str, Json] = {**ONE_BY_ONE, "node": [*SIMPLE, {"healthy": probe}]}
    async with scene.playing():
        await through(scene, **book)
        sick = Fault(do="unhealthy", node="n1", key="*/serving-*", release=scene.digest("1.0.0"))
        scene.sim.program(sick)
        run = await scene.rollback()
        status = await scene.waits_for(run, "serving")
        assert "n1 (NotHealthy" in status.said
        scene.sim.clear()
        await scene.decide(run, "retry")
        end = await scene.end_of(run)
    assert (end.phase, end.said) == ("rolled-back", "every node runs its baseline")


async def test_two_that_may_be_out_are_two_whatever_brought_the_first_down(stage: Stage) -> None:
    scene = await stage(nodes=5, transport="local")
    waves: Json = {"canary": {"nodes": 1}, "widen": ["100%"], "max_unavailable": 2}
    book: dict[str, Json] = {**SLOW, "waves": waves}
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**book)))
        await said(scene, "stop n1 1.0.0")
        kill(scene, "n0")
        await scene.waits_for(run, "serving")
        await scene.decide(run, "skip")
        end = await scene.end_of(run)
    assert "not n0" in end.said


async def test_a_node_that_an_aborted_run_moved_passes_the_preflight_of_the_next(
    stage: Stage,
) -> None:
    said: dict[str, Json] = {
        hashlib.sha256(archive({"daemon": DAEMON.replace("{version}", one).encode()}))
        .hexdigest(): {"version": one}
        for one in ("1.0.0", "1.1.0")
    }  # fmt: skip
    scene = await stage(options={"answers": said})
    healthy: Json = {
        "http": "http://{node.name}/version", "expect": {"version": "{release.version}"},
        "for": "0s", "within": "5s", "interval": "50ms",
    }  # fmt: skip
    book = scene.runbook(
        node=[*SIMPLE, {"healthy": healthy}],
        waves={"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1},
    )
    async with scene.playing():
        run = await scene.start(scene.plan(book))
        await scene.waits_for(run, "ship")
        assert (await scene.order("abort", run, "olga")).accepted
        assert (await scene.end_of(run)).phase == "aborted"
        await scene.freed()
        switched = scene.host("n0").counts.switches
        run = await scene.start(scene.plan(book))
        await scene.waits_for(run, "ship")
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"
    assert set(scene.running().values()) == {"1.1.0"}
    assert scene.host("n0").counts.switches == switched, "it was there already"
