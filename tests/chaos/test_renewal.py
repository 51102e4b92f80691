"""Deaths around continue-as-new: histories are renewed after a few events, and what they carry is not lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos import plots
from tests.chaos.conftest import Cast
from tests.chaos.plots import Plot
from tests.chaos.table import ROTATION
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


@pytest.mark.parametrize("kind", ROTATION)
@pytest.mark.parametrize("nth", range(3, 6))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_renewed_run_goes_on_whoever_dies_at_its_first_question(
    renewing: Theatre, cast: Cast, kind: Kind, nth: int, when: str
) -> None:
    # Each new history of a run begins with reading the plan; the fleet's and the run's first are the first two.
    troupe = await cast(renewing)
    point = f"activity.plan_facts.{when}"

    async def assassin() -> None:
        await renewing.points.nth(point, nth, "wait")
        await renewing.strike(kind, point)

    async with asyncio.TaskGroup() as both:
        both.create_task(assassin())
        await asyncio.sleep(0)
        both.create_task(plots.upgrade(troupe))


@pytest.mark.parametrize("kind", ROTATION)
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
