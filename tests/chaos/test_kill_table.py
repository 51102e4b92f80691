"""The kill table: at every instant of ``table`` somebody dies, is started anew, and the run goes on to its end.

What is asserted is in ``ground``: the daemons' own log, the kernel's count of renames, bytes hashed anew.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.chaos import truth
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground, assert_leg
from tests.chaos.table import FORKED, HOST, KINDS, SESSION, points_of
from tests.chaos.theatre import NEW, OLD, Kind, Theatre, Troupe

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


async def arm(troupe: Troupe, points: tuple[str, ...], kind: Kind) -> dict[str, str]:
    """Each node gets a point of its own; by node."""
    posts = dict(zip(troupe.names, points, strict=False))
    for node, point in posts.items():
        troupe.theatre.points.arm(f"{point}@{node}", "kill" if kind == "host" else "wait")
    return posts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", HOST)
async def test_all_nodes_of_a_wave_lose_somebody_at_every_instant_of_a_step(
    theatre: Theatre, cast: Cast, step: str, kind: Kind
) -> None:
    points = points_of(step, kind)
    troupe = await cast(theatre, nodes=len(points) + 1)
    plan = troupe.plan_to(NEW, waves={"widen": ["100%"], "max_unavailable": len(points)}, gates={})
    posts = await arm(troupe, points, kind)
    run = await troupe.start(plan)
    for node, point in posts.items():
        await theatre.points.reached(f"{point}@{node}")
    hosts = theatre.hosts()
    if kind != "host":
        await asyncio.to_thread(theatre.kill, kind)
        if kind != "frozen":
            release(troupe, posts)
        await theatre.restart()
    end = await troupe.ended(run)
    assert end.phase == "done", end
    assert end.nodes_done == len(troupe.names)
    assert end.release == NEW
    if points != SESSION and kind != "engine":
        # What was done before was found in the journals, not done again.
        assert end.replayed > 0
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))
    release(troupe, posts)
    if kind == "frozen":
        # Whoever still stood there goes on now, and finds that nothing is left for it to do.
        truth.wait_gone(hosts)
        await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))
    for node in troupe.names:
        if kind != "host" or posts.get(node) not in FORKED:
            assert_leg(troupe, node)


def release(troupe: Troupe, posts: dict[str, str]) -> None:
    """Everybody goes on."""
    for node, point in posts.items():
        troupe.theatre.points.release(f"{point}@{node}")
