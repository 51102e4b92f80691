"""The kill table's second half: before and after every activity of an upgrade and of two ways back."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.chaos import plots, table
from tests.chaos.conftest import Cast
from tests.chaos.plots import Plot
from tests.chaos.table import ROTATION, Scene
from tests.chaos.theatre import Kind, Theatre

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

PATIENCE = 90.0
"""Seconds a whole run may take although somebody died in it, on a machine that has much else to do."""


def rows() -> list[object]:
    """Each scene's two instants; who dies there takes turns."""
    made: list[object] = []
    shows: tuple[tuple[Plot, tuple[Scene, ...]], ...] = (
        (plots.upgrade, table.UPGRADE),
        (plots.automatic, table.AUTOMATIC),
        (plots.ordered, table.ORDERED),
    )
    for plot, scenes in shows:
        for number, scene in enumerate(scenes):
            for offset, when in enumerate(("before", "after")):
                # Shifted by one after each round, so that an activity does not always meet the same death.
                turn = 2 * number + offset + (2 * number + offset) // len(ROTATION)
                kind = ROTATION[turn % len(ROTATION)]
                name = (
                    f"{plot.__name__}: {when} {scene.what} ({scene.activity} {scene.nth}): {kind}"
                )
                made.append(pytest.param(plot, scene, when, kind, id=name))
    return made


@pytest.mark.parametrize(("plot", "scene", "when", "kind"), rows())
async def test_a_run_goes_on_whoever_dies_around_an_activity(
    theatre: Theatre, cast: Cast, plot: Plot, scene: Scene, when: str, kind: Kind
) -> None:
    troupe = await cast(theatre)
    point = f"activity.{scene.activity}.{when}"
    begun = time.monotonic()

    async def assassin() -> None:
        # A worker kills itself at the very instant; whoever else dies, it is while the worker stands there.
        await theatre.points.nth(point, scene.nth, "kill" if kind == "worker" else "wait")
        await theatre.points.reached(point)
        if kind == "worker":
            assert await asyncio.to_thread(theatre.worker_ended)
            await theatre.restart()
        else:
            await theatre.strike(kind, point)

    async with asyncio.TaskGroup() as both:
        striking = both.create_task(assassin())
        await asyncio.sleep(0)
        both.create_task(plot(troupe))
    assert striking.done()
    assert time.monotonic() - begun < PATIENCE
