"""Deaths around continue-as-new: histories are renewed after a few events, and what they carry is not lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos import plots
from tests.chaos.conftest import Cast
from tests.chaos.plots import Plot
from tests.chaos.table import MORTALS
from tests.chaos.theatre import Kind, Theatre, Troupe, persist

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

PLOTS: tuple[Plot, ...] = (plots.upgrade, plots.automatic, plots.ordered)


async def renewals(troupe: Troupe) -> dict[str, int]:
    """How often each workflow of a fleet was renewed."""
    found: dict[str, int] = {}
    status = "CONTINUED_AS_NEW"
    seen = [
        execution.id
        async for execution in troupe.client.list_workflows("")
        if troupe.name in execution.id
        and execution.status is not None
        and execution.status.name == status
    ]
    for identity in seen:
        found[identity] = found.get(identity, 0) + 1
    return found


async def first_run(troupe: Troupe, workflow: str) -> str:
    """The run id a workflow has now; empty while it is not there."""
    try:
        described = await troupe.client.get_workflow_handle(workflow).describe()
    except Exception:  # noqa: BLE001 - not there yet, or nobody answers now
        return ""
    return described.run_id or ""


@pytest.mark.parametrize("plot", PLOTS)
async def test_a_run_that_is_renewed_all_the_time_does_what_any_run_does(
    renewing: Theatre, cast: Cast, plot: Plot
) -> None:
    troupe = await cast(renewing)
    await plot(troupe)
    renewed = await persist(lambda: renewals(troupe))
    assert len(renewed) >= 2, renewed


QUESTIONS = (3, 4, 5)
"""The fleet reads the plan, then the run; each new history of the run reads it again."""


@pytest.mark.parametrize("kind", MORTALS)
async def test_renewed_runs_go_on_whoever_dies_at_their_first_question(
    renewing: Theatre, cast: Cast, kind: Kind
) -> None:
    whens = [(nth, when) for nth in QUESTIONS for when in ("before", "after")]
    troupes = await asyncio.gather(*(cast(renewing) for _ in whens))
    posts = [
        f"activity.plan_facts.{when}@{troupe.name}"
        for troupe, (_, when) in zip(troupes, whens, strict=True)
    ]
    async with asyncio.TaskGroup() as stage:
        armed = [
            stage.create_task(renewing.points.nth(post, nth, "wait"))
            for post, (nth, _) in zip(posts, whens, strict=True)
        ]
        for troupe in troupes:
            stage.create_task(plots.upgrade(troupe))
        await asyncio.gather(*armed)
        await asyncio.to_thread(renewing.kill, kind)
        for post in posts:
            renewing.points.release(post)
        await renewing.restart()


@pytest.mark.parametrize("kind", MORTALS)
@pytest.mark.parametrize("whose", ["fleet/{}", "upgrade/{}/1"])
async def test_a_death_at_the_instant_of_a_renewal(
    renewing: Theatre, cast: Cast, kind: Kind, whose: str
) -> None:
    troupe = await cast(renewing)
    workflow = whose.format(troupe.name)

    async def assassin() -> None:
        before = ""
        while True:
            now = await first_run(troupe, workflow)
            if before and now and now != before:
                break
            before = now or before
            await asyncio.sleep(0.005)
        await renewing.strike(kind)

    async with asyncio.TaskGroup() as both:
        both.create_task(assassin())
        both.create_task(plots.upgrade(troupe))
