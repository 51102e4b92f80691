"""Records real histories of every workflow into this folder: ``python -m tests.histories.record`` (see README.md).

Each scenario runs on simulated hosts against a real Temporal server of its own. What is kept is exactly what
``temporal workflow show -o json`` says of each workflow, but for what tells of the machine it was recorded on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHistory

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.spine.scene import Scene, eventually, make_scene, settle
from worker import engine_files
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings
from workflows.wave import TEAMS

FOLDER = Path(__file__).parent
RENEWED_AFTER = 30
"""Events after which the second server asks for continue-as-new."""
ROOT = "/srv/daemon/{node.name}"

PACED: dict[str, Json] = {"pace": 1.0, "seconds": {"switch": 0.3}}
GATES: dict[str, Json] = {
    "commit": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}},
    "data-loss": {"approvals": {"threshold": 1, "roles": ["db-owner"]}},
}
GUARDED: dict[str, Json] = {
    "node": [
        "stage",
        {"stop": {"signal": "TERM", "grace": "5s"}},
        {"snapshot": {"paths": ["data"]}},
        "switch",
        "configure",
        {"start": {"settle": "0s"}},
        {
            "healthy": {
                "service": {"running": True},
                "for": "0s",
                "within": "5s",
                "interval": "50ms",
            }
        },
    ],
    "waves": {"canary": {"nodes": 1}, "widen": ["100%"], "max_unavailable": 1},
    "gates": GATES,
    "commit": {"before": "finalize", "gate": "commit", "lost": "writes since the snapshot"},
    "finalize": {"steps": [{"run": {"argv": ["finish"], "undo": "none"}}]},
    "rollback": {"after_commit": {"restore": "snapshot", "gate": "data-loss"}},
}
ONE_BY_ONE: dict[str, Json] = {
    "waves": {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1},
    "retry": {"attempts": 2, "backoff": "50ms"},
}
SICK = Fault(do="fail", op="healthy", node="n1", run="upgrade/*", type="NotHealthy", message="503")


async def upgrade(scene: Scene) -> None:
    """Canary, bake, a gate that two people sign, the rest."""
    run = await scene.start(scene.plan())
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    assert (await scene.end_of(run)).phase == "done"


async def finalized(scene: Scene) -> None:
    """Through the point of no return, and back behind the gate of the data's owner."""
    run = await scene.start(scene.plan(scene.runbook(**GUARDED)))
    await scene.waits_for(run, "commit")
    await scene.approve(run)
    assert (await scene.end_of(run)).phase == "done"
    await scene.freed()
    back = await scene.rollback()
    await scene.waits_for(back, "data-loss")
    await scene.approve(back, "bob")
    assert (await scene.end_of(back)).phase == "rolled-back"


async def by_itself(scene: Scene) -> None:
    """A node that never gets healthy; the way back is the runbook's."""
    scene.sim.program(SICK)
    book = scene.runbook(**{**ONE_BY_ONE, "on_failure": "rollback"})
    run = await scene.start(scene.plan(book))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    assert (await scene.end_of(run)).phase == "rolled-back"


async def ordered(scene: Scene) -> None:
    """An on-call rollback in the middle of a wave, and another one that finds nothing to do."""
    run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    await eventually(lambda: scene.running()["n1"] is None)
    back = await scene.rollback()
    assert (await scene.end_of(back)).phase == "rolled-back"
    assert (await scene.end_of(run)).phase == "preempted"
    await scene.freed()
    assert (await scene.end_of(await scene.rollback())).phase == "rolled-back"


async def parked(scene: Scene) -> None:
    """Parked, tried again in vain, a node skipped, and taken up again at the end."""
    scene.sim.program(SICK)
    run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    await scene.waits_for(run, "wave-1")
    await scene.decide(run, "retry")
    await scene.waits_for(run, "wave-2")
    await scene.decide(run, "skip")
    await scene.waits_for(run, "end-3")
    scene.sim.clear()
    await scene.decide(run, "retry")
    assert (await scene.end_of(run)).phase == "done"


async def paused(scene: Scene) -> None:
    """Paused in a wave, resumed, paused again, aborted; refused orders and odd signals between."""
    run = await scene.start(scene.plan(scene.runbook(**ONE_BY_ONE)))
    await scene.waits_for(run, "ship")
    await scene.signal(run)
    await scene.signal(run, {"order": "odd"}, 7)
    assert not (await scene.order("approve", run, "olga")).accepted
    await scene.approve(run)
    await eventually(lambda: scene.running()["n1"] is None)
    for verb in ("pause", "resume", "pause"):
        assert (await scene.order(verb, run, "eve")).accepted
    await scene.until(run, "paused")
    assert (await scene.order("abort", run, "eve")).accepted
    assert (await scene.end_of(run)).phase == "aborted"


async def rejected(scene: Scene) -> None:
    """A gate that is rejected, asked again, and expires; a decision to go back."""
    gate: Json = {"ship": {"approvals": {"threshold": 1, "roles": ["sre"]}, "expires": "3s"}}
    run = await scene.start(scene.plan(scene.runbook(gates=gate)))
    await scene.waits_for(run, "ship")
    assert (await scene.order("reject", run, "ada")).accepted
    await scene.waits_for(run, "gate-1")
    await scene.decide(run, "retry")
    await scene.waits_for(run, "gate-2")
    await scene.decide(run, "rollback")
    assert (await scene.end_of(run)).phase == "rolled-back"


async def baked(scene: Scene) -> None:
    """A node dies in the bake and is brought up again."""
    crash = Fault(do="crash", op="start", node="n0", nth=(1,), run="upgrade/*", seconds=0.6)
    scene.sim.program(crash)
    waves: Json = {
        "canary": {"nodes": 1, "bake": {"duration": "1s", "interval": "200ms"}},
        "widen": ["100%"],
    }
    run = await scene.start(scene.plan(scene.runbook(waves=waves, gates={})))
    await scene.waits_for(run, "bake")
    await scene.decide(run, "retry")
    assert (await scene.end_of(run)).phase == "done"


async def teams(scene: Scene) -> None:
    """Quick nodes that share activities; two of them fail and are tried again by themselves."""
    sick = Fault(do="fail", op="healthy", node="n1[25]", run="upgrade/*", nth=(1,))
    scene.sim.program(sick)
    book = scene.runbook(
        waves={"widen": ["100%"], "max_unavailable": 2 * TEAMS},
        gates={},
        retry={"attempts": 2, "backoff": "50ms"},
    )
    run = await scene.start(scene.plan(book))
    assert (await scene.end_of(run)).phase == "done"


async def looked(scene: Scene) -> None:
    """A fleet that is brought up and looked at, and nothing else."""
    await scene.look()


async def renewed(scene: Scene) -> None:
    """Everything again and again in new histories: a gate, waves, the fleet, the way back."""
    waves: Json = {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "domain": "zone"}
    run = await scene.start(scene.plan(scene.runbook(waves=waves)))
    await scene.waits_for(run, "ship")
    await scene.approve(run, "ada")
    for verb in ("pause", "resume", "pause", "resume"):
        assert (await scene.order(verb, run, "olga")).accepted
    plan = (await scene.status(run)).plan
    for _ in range(4):
        fleet = f"fleet/{scene.name}"
        await scene.submit(fleet, scene.envelope("start", fleet, plan, "olga"))
    await scene.approve(run, "bob")
    assert (await scene.end_of(run)).phase == "done"
    await scene.freed()
    assert (await scene.end_of(await scene.rollback())).phase == "rolled-back"
    await scene.freed()


Scenario = Callable[[Scene], Awaitable[None]]
PLAIN: tuple[Scenario, ...] = (
    upgrade,
    finalized,
    by_itself,
    ordered,
    parked,
    paused,
    rejected,
    baked,
    teams,
    looked,
)
RENEWING: tuple[Scenario, ...] = (renewed,)
MANY: Json = [{"name": f"n{at}"} for at in range(20)]
ZONES: Json = [{"name": f"n{at}", "labels": {"zone": f"z{at}"}} for at in range(6)]


async def play(client: Client, home: Path, scenario: Scenario) -> list[WorkflowHistory]:
    """One scenario on a fleet of its own; every history it made, in the order in which they were begun."""
    name = scenario.__name__.replace("_", "-")
    fleet: dict[str, Json] = {"name": name, "root": ROOT}
    if scenario in RENEWING:
        fleet["nodes"] = ZONES
    if scenario is teams:
        fleet["nodes"] = MANY
    options = PACED if scenario in (ordered, paused) else None
    scene = make_scene(client, home, fleet=fleet, options=options)
    scene.name = name
    await settle(scene)
    try:
        async with scene.playing():
            await scenario(scene)
            if scenario is not looked:
                await scene.freed()
    finally:
        await scene.drivers.aclose()
    found = [
        (execution.start_time, execution.id, execution.run_id)
        async for execution in client.list_workflows(
            f'WorkflowId != "" AND TaskQueue = "{scene.settings.task_queue}"'
        )
    ]
    return [
        await client.get_workflow_handle(identity, run_id=run).fetch_history()
        for _, identity, run in sorted(found)
    ]


def neutral(value: Any) -> Any:
    """A history without what tells of the machine: who polled, and where code lies in a trace."""
    if isinstance(value, list):
        return [neutral(one) for one in value]
    if isinstance(value, dict):
        said = {"identity": "recorder", "stackTrace": "", "binaryChecksum": ""}
        return {key: said.get(key, neutral(one)) for key, one in value.items()}
    return value


def worth(identity: str, kept: dict[str, int]) -> bool:
    """Whether a history is kept: chunks and bringing up are alike, so a few of each scenario are enough."""
    what = "wave" if "/wave" in identity else identity.partition("/")[0]
    kept[what] = kept.get(what, 0) + 1
    return kept[what] <= {"wave": 3}.get(what, 1_000)


def keep(scenario: Scenario, histories: list[WorkflowHistory]) -> None:
    """Each history in a file, an event a line, named by the workflow's id and its place among its renewals."""
    renewals: dict[str, int] = {}
    kept: dict[str, int] = {}
    folder = FOLDER / scenario.__name__
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for history in histories:
        if not worth(history.workflow_id, kept):
            continue
        events = neutral(json.loads(history.to_json()))["events"]
        number = renewals[history.workflow_id] = renewals.get(history.workflow_id, 0) + 1
        renewed_name = f".{number}" if number > 1 else ""
        path = folder / f"{history.workflow_id.replace('/', '_')}{renewed_name}.json"
        lines = ",\n".join(json.dumps(event, sort_keys=True) for event in events)
        path.write_text(f'{{"events": [\n{lines}\n]}}\n')
        size = path.stat().st_size
        print(f"{path.relative_to(FOLDER)}: {len(events)} events, {size} bytes")


async def record(home: Path, scenarios: tuple[Scenario, ...], *, renewing: bool) -> None:
    """Record these scenarios on an engine of their own."""
    settings = Settings.load(home=home / "engine", payloads="open")
    engine = Engine(settings)
    with pytest.MonkeyPatch.context() as patch:
        if renewing:
            wanted = "limit.historyCount.suggestContinueAsNew"
            patch.setitem(engine_files.DYNAMIC_CONFIG, wanted, RENEWED_AFTER)
        engine.start()
    try:
        client = await connect(settings, identity="recorder", patience=10)
        for scenario in scenarios:
            keep(scenario, await play(client, home / scenario.__name__, scenario))
    finally:
        engine.stop()


async def main() -> None:
    """Record everything, or the scenarios that are named."""
    named = set(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        for name, every in (("plain", PLAIN), ("renewing", RENEWING)):
            wanted = tuple(one for one in every if not named or one.__name__ in named)
            if wanted:
                await record(Path(folder) / name, wanted, renewing=every is RENEWING)


if __name__ == "__main__":
    asyncio.run(main())
