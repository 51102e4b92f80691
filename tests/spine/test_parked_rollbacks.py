"""A rollback goes back with the hosts that answer, parks for the others, and is as visible as any run while it does."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from cli.answers import answers
from cli.watching import _is_enough  # pyright: ignore[reportPrivateUsage]
from desk.runs import Runs
from desk.views import view_of
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json, canonical, digest_of
from kedge.model.run import Run, Warrant
from tests.review.test_spent_orders import forged_wave
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually
from tests.spine.test_rollback import ONE_BY_ONE, finished, gate

pytestmark = pytest.mark.temporal

GONE = Fault(do="unreachable", node="n1", run="rollback/*")


async def test_hosts_that_answer_go_back_before_anybody_decides_about_those_that_do_not(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        await finished(scene)
        scene.sim.program(GONE)
        back = await scene.rollback()
        parked = await scene.waits_for(back, "fence-1")
        assert scene.running() == {"n0": "1.0.0", "n1": "1.1.0", "n2": "1.0.0"}
        assert [failure.name for failure in parked.failures] == ["n1"]
        assert "2 of 3 nodes run their baseline; not seen: n1" in parked.said
        # It stays listed for as long as nobody reaches it.
        await scene.decide(back, "retry")
        again = await scene.waits_for(back, "fence-2")
        assert [failure.name for failure in again.failures] == ["n1"]
        scene.sim.clear()
        await scene.decide(back, "retry")
        end = await scene.end_of(back)
    assert (end.phase, end.said, end.release) == (
        "rolled-back",
        "every node runs its baseline",
        "1.0.0",
    )
    assert set(scene.running().values()) == {"1.0.0"}


async def test_a_rollback_whose_host_was_given_up_claims_no_more_than_it_saw(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await finished(scene)
        scene.sim.program(GONE)
        back = await scene.rollback()
        await scene.waits_for(back, "fence-1")
        await scene.decide(back, "skip")
        end = await scene.end_of(back)
    assert end.said == ("2 of 3 nodes run their baseline; given up, and not known to be back: n1")
    assert end.release is None
    assert scene.running()["n1"] == "1.1.0", "nobody touched it"


async def test_a_host_that_goes_away_on_its_way_back_holds_no_other_up(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        await finished(scene)
        # It answers each look, and is away whenever it should stop.
        scene.sim.program(Fault(do="unreachable", node="n2", op="stop", run="rollback/*"))
        back = await scene.rollback()
        parked = await scene.waits_for(back, "fence-1")
        assert scene.running() == {"n0": "1.0.0", "n1": "1.0.0", "n2": "1.1.0"}
        assert [failure.name for failure in parked.failures] == ["n2"]
        scene.sim.clear()
        await scene.decide(back, "retry")
        assert (await scene.end_of(back)).said == "every node runs its baseline"


async def test_a_host_that_comes_back_is_not_acted_on_by_the_older_run(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    waves: Json = {"widen": ["100%"], "max_unavailable": 1}
    plan = scene.plan(scene.runbook(waves=waves, gates={}))
    digest = await scene.drivers.blobs.put(canonical(plan))
    order = scene.envelope("start", f"fleet/{scene.name}", digest, "olga")
    async with scene.playing():
        scene.sim.program(Fault(do="hang", op="switch", node="n1", run="upgrade/*"))
        await scene.open_fleet()
        run = (await scene.submit(f"fleet/{scene.name}", order)).run
        assert run is not None
        await eventually(lambda: scene.running() == {"n0": "1.1.0", "n1": None, "n2": "1.0.0"})
        epoch = (await scene.fleet_status()).epoch
        scene.sim.program(Fault(do="unreachable", node="n2", run="rollback/*"))
        back = await scene.rollback()
        await scene.waits_for(back, "fence-1")
        assert set(scene.running().values()) == {"1.0.0"}
        scene.sim.clear()
        # No fence was raised on it, and its own run would have come to it next.
        older = Run(
            id=run,
            fleet=scene.name,
            plan=digest,
            epoch=epoch,
            warrant=digest_of(Warrant(start=order)),
        )
        happened = len(scene.happened())
        result = await forged_wave(scene.settings.task_queue, client, older, node=2)
        assert (result.done, result.fenced) == (0, True), result
        assert len(scene.happened()) == happened
        await scene.decide(back, "retry")
        assert (await scene.end_of(back)).said == "every node runs its baseline"
        assert (await scene.end_of(run)).phase == "preempted"


async def test_a_parked_rollback_shows_wherever_its_run_is_asked_for(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    runs = Runs(client, scene.settings.task_queue)
    async with scene.playing():
        run, back = await _going_back(scene)
        pieces = await runs.pieces(run, seconds=10)
        view = view_of(pieces, scene.plan(scene.runbook(**ONE_BY_ONE)), "2026-01-01T00:00:00Z")
        assert _is_enough(view, until_waiting=True)
        assert view.status.waiting is None
        commands = [one.command for one in answers(view.asking)]
        assert any(f"decide {back} --item back-1 --choice retry" in one for one in commands)

        async def listed() -> bool:
            rows = {one.run: one.waiting_for for one in await runs.every(scene.name)}
            return rows.get(run) == f"decision back-1 of {back}" and rows.get(back) == (
                "decision back-1"
            )

        await eventually(listed)
        scene.sim.clear()
        await scene.decide(back, "retry")
        assert (await scene.end_of(run)).phase == "rolled-back"
        rows = {one.run: one.waiting_for for one in await runs.every(scene.name)}
        assert (rows[run], rows[back]) == ("", "")


async def _going_back(scene: Scene) -> tuple[str, str]:
    """An upgrade that goes back by itself, and its rollback, which is parked."""
    scene.sim.program(
        Fault(do="fail", op="healthy", node="n1", run="upgrade/*"),
        Fault(do="fail", op="stop", run="rollback/*-auto", type="StopTimeout"),
    )
    run = await scene.start(scene.plan(scene.runbook(**{**ONE_BY_ONE, "on_failure": "rollback"})))
    await scene.waits_for(run, "ship")
    await scene.approve(run)
    back = (await scene.until(run, lambda status: status.successor is not None)).successor or ""
    await scene.waits_for(back, "back-1")
    return run, back


async def test_a_run_whose_workflow_was_terminated_waits_for_nobody(
    stage: Stage, client: Client
) -> None:
    scene = await stage()
    runs = Runs(client, scene.settings.task_queue)
    async with scene.playing():
        run = await gate(scene)

        async def said() -> str:
            rows = {one.run: one for one in await runs.every(scene.name)}
            return f"{rows[run].phase}: {rows[run].waiting_for}" if run in rows else ""

        async def waits() -> bool:
            return await said() == "gate: gate ship"

        async def gone() -> bool:
            return await said() == "terminated: "

        await eventually(waits)
        await client.get_workflow_handle(run).terminate("by a test")
        await eventually(gone)
        status = await runs.status(run)
    assert (status.phase, status.waiting, status.outcome) == ("terminated", None, "terminated")
    assert status.ended is not None
    assert f"kedge rollback {scene.name}" in status.said
    assert answers(status) == ()
