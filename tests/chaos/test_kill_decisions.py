"""The kill table's second half: before and after every activity of an upgrade and of two ways back.

Each row kills once while several fleets stand at points of their own; every one of them goes on to its end.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from tests.chaos import plots, table
from tests.chaos.conftest import Cast
from tests.chaos.plots import Plot
from tests.chaos.table import MORTALS, Scene
from tests.chaos.theatre import Kind, Theatre, Troupe

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

AT_ONCE = 7
PATIENCE = 150.0
"""Seconds in which all runs of a row come to their end although somebody died, on a machine that has much to do."""

Row = tuple[tuple[Plot, Scene, str], ...]


def rows() -> list[object]:
    """All instants of all plots, so many to a row that each lies far from its neighbours."""
    shows: tuple[tuple[Plot, tuple[Scene, ...]], ...] = (
        (plots.upgrade, table.UPGRADE),
        (plots.automatic, table.AUTOMATIC),
        (plots.ordered, table.ORDERED),
    )
    instants = [
        (plot, scene, when)
        for plot, scenes in shows
        for scene, when in itertools.product(scenes, ("before", "after"))
    ]
    count = -(-len(instants) // AT_ONCE)
    return [
        pytest.param(tuple(instants[number::count]), id=f"row-{number}") for number in range(count)
    ]


@pytest.mark.parametrize("kind", MORTALS)
@pytest.mark.parametrize("row", rows())
async def test_runs_go_on_whoever_dies_around_an_activity(
    theatre: Theatre, cast: Cast, row: Row, kind: Kind
) -> None:
    troupes = await asyncio.gather(*(cast(theatre) for _ in row))
    posts = [
        f"activity.{scene.activity}.{when}@{troupe.name}"
        for troupe, (_, scene, when) in zip(troupes, row, strict=True)
    ]
    begun = time.monotonic()

    async def play(plot: Plot, troupe: Troupe, said: str) -> None:
        try:
            await plot(troupe)
        except BaseException as error:
            error.add_note(f"{plot.__name__}: {said}")
            raise

    async with asyncio.TaskGroup() as stage:
        armed = [
            stage.create_task(theatre.points.nth(post, scene.nth, "wait"))
            for post, (_, scene, _) in zip(posts, row, strict=True)
        ]
        for troupe, post, (plot, scene, when) in zip(troupes, posts, row, strict=True):
            stage.create_task(play(plot, troupe, f"{when} {scene.what} ({post})"))
        await asyncio.gather(*armed)
        await asyncio.to_thread(theatre.kill, kind)
        for post in posts:
            theatre.points.release(post)
        await theatre.restart()
    assert time.monotonic() - begun < PATIENCE
