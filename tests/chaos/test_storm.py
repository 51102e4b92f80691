"""Deaths at instants nobody chose: a whole upgrade, and its way back, while somebody dies again and again."""

from __future__ import annotations

import asyncio
import random

import pytest

from kedge.model.base import Json
from tests.chaos.conftest import Cast
from tests.chaos.ground import assert_ground
from tests.chaos.theatre import NEW, OLD, Kind, Theatre

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(500)]

BLOWS = 5


@pytest.mark.parametrize(
    "seed", [int(n) for n in __import__("os").environ.get("STORM", "1 2 3").split()]
)
async def test_a_storm(theatre: Theatre, cast: Cast, seed: int) -> None:
    chance = random.Random(seed)
    troupe = await cast(theatre, nodes=5)
    # A daemon's start that is killed counts as a try of the leg: as many as there may be blows.
    retry: Json = {"attempts": 2 * BLOWS, "backoff": "50ms"}
    waves: Json = {
        "canary": {"nodes": 1, "bake": {"duration": "300ms", "interval": "100ms"}, "gate": "ship"},
        "widen": ["60%", "100%"],
        "max_unavailable": 2,
    }

    async def storm() -> None:
        for _ in range(BLOWS):
            await asyncio.sleep(chance.uniform(0.1, 1.5))
            kind: Kind = chance.choice(("host", "host", "worker", "engine", "all"))
            await theatre.strike(kind)

    async def upgrade() -> str:
        run = await troupe.start(troupe.plan_to(NEW, waves=waves, retry=retry))
        await troupe.waits_for(run, "ship")
        await troupe.approve(run, "ada", "bob")
        end = await troupe.ended(run, 180)
        assert end.phase == "done", end
        return run

    async with asyncio.TaskGroup() as both:
        both.create_task(storm())
        both.create_task(upgrade())
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))

    async def back() -> None:
        end = await troupe.ended(await troupe.rollback(), 180)
        assert end.phase == "rolled-back", end

    async with asyncio.TaskGroup() as both:
        both.create_task(storm())
        both.create_task(back())
    await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW, OLD)))
