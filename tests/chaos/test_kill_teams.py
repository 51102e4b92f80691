"""Nodes that share an activity lose somebody in the middle of their steps: nothing is done twice, nobody is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from bench.figures import histories_of
from kedge.model.base import Json
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground, assert_leg
from tests.chaos.table import MORTALS
from tests.chaos.theatre import NEW, OLD, Kind, Theatre
from workflows.wave import TEAMS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

NODES = 20
POINTS = ("stop.after-signal", "switch.after-rename", "configure.between-renames", "start.recorded")
"""One for each of four nodes in the middle: two teams, or one and those beside it."""
FIRST = 12


@pytest.mark.parametrize("kind", ["host", *MORTALS])
async def test_teams_lose_somebody_in_the_middle_of_their_steps(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    troupe = await cast(theatre, nodes=NODES, linger=0.0)
    posts = dict(zip(troupe.names[FIRST:], POINTS, strict=False))
    for node, point in posts.items():
        theatre.points.arm(f"{point}@{node}", "kill" if kind == "host" else "wait")
    waves: Json = {"widen": ["100%"], "max_unavailable": 2 * TEAMS}
    run = await troupe.start(troupe.plan_to(NEW, waves=waves, gates={}))
    for node, point in posts.items():
        await theatre.points.reached(f"{point}@{node}")
    if kind != "host":
        await asyncio.to_thread(theatre.kill, kind)
        for node, point in posts.items():
            theatre.points.release(f"{point}@{node}")
        await theatre.restart()
    end = await troupe.ended(run)
    assert (end.phase, end.nodes_done) == ("done", NODES), end
    if kind != "engine":
        assert end.replayed > 0, "journals answered for what was done"
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))
    for node in troupe.names:
        assert_leg(troupe, node)
    assert (await histories_of(troupe.client, run)).activities["run_legs"] > 0
