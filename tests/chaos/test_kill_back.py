"""The kill table on the way back: every node of the fleet stands at another point of it when somebody dies."""

from __future__ import annotations

import asyncio

import pytest

from kedge.model.base import Json
from tests.chaos import truth
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground
from tests.chaos.table import BACK, KINDS, RESTORE
from tests.chaos.theatre import NEW, OLD, Kind, Theatre, Troupe

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def waves(parallel: int) -> dict[str, Json]:
    return {"widen": [{"to": "100%", "name": "all"}], "max_unavailable": parallel}


async def struck(troupe: Troupe, points: tuple[str, ...], kind: Kind, back: str) -> list[int]:
    """Kill somebody while each node stands at its point; gives the sessions that were there."""
    theatre = troupe.theatre
    posts = [f"{point}@{node}" for node, point in zip(troupe.names, points, strict=False)]
    for post in posts:
        await theatre.points.reached(post)
    there = theatre.hosts()
    if kind != "host":
        await asyncio.to_thread(theatre.kill, kind)
        if kind != "frozen":
            for post in posts:
                theatre.points.release(post)
        await theatre.restart()
    end = await troupe.ended(back)
    assert end.phase == "rolled-back", end
    assert end.release == OLD
    if kind != "engine":
        assert end.replayed > 0
    for post in posts:
        theatre.points.release(post)
    return there


def arm(troupe: Troupe, points: tuple[str, ...], kind: Kind) -> None:
    for node, point in zip(troupe.names, points, strict=False):
        troupe.theatre.points.arm(f"{point}@{node}", "kill" if kind == "host" else "wait")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fleet_goes_back_by_switching_whoever_dies(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    troupe = await cast(theatre, nodes=len(BACK) + 1)
    run = await troupe.start(troupe.plan_to(NEW, waves=waves(len(BACK)), gates={}))
    assert (await troupe.ended(run)).phase == "done"
    arm(troupe, BACK, kind)
    there = await struck(troupe, BACK, kind, await troupe.rollback())
    if kind == "frozen":
        truth.wait_gone(there)
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW, OLD)))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fleet_gets_its_data_back_whoever_dies(
    theatre: Theatre, cast: Cast, kind: Kind
) -> None:
    points = tuple(f"restore.{name}" for name in RESTORE)
    troupe = await cast(theatre, nodes=len(points) + 1)
    gates: Json = {
        "ship": {"approvals": {"threshold": 1, "roles": ["sre"]}},
        "loss": {"approvals": {"threshold": 1, "roles": ["db-owner"]}},
    }
    plan = troupe.plan_to(
        NEW,
        waves=waves(len(points)),
        gates=gates,
        commit={"before": "all", "gate": "ship", "lost": "what was written since"},
        rollback={"after_commit": {"restore": "snapshot", "gate": "loss"}},
    )
    run = await troupe.start(plan)
    await troupe.waits_for(run, "ship")
    await troupe.approve(run, "ada")
    assert (await troupe.ended(run)).phase == "done"
    arm(troupe, points, kind)
    back = await troupe.rollback()
    await troupe.waits_for(back, "loss")
    await troupe.approve(back, "bob")
    there = await struck(troupe, points, kind, back)
    if kind == "frozen":
        truth.wait_gone(there)
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW, OLD)), restored=True)
