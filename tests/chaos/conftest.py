"""One theatre for each test process: its engine and worker are killed and started anew all the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.chaos.theatre import Theatre, Troupe, troupe_of

Cast = Callable[..., Awaitable[Troupe]]


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A theatre as it is."""
    theatre = Theatre(tmp_path_factory.mktemp("chaos"))
    yield theatre
    theatre.close()


@pytest.fixture(scope="session")
def renewing_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A theatre in which every history is renewed after a few events."""
    theatre = Theatre(tmp_path_factory.mktemp("chaos"), renews=15)
    yield theatre
    theatre.close()


@pytest.fixture
def theatre(house: Theatre) -> Iterator[Theatre]:
    """A theatre with engine and worker running, and nothing armed."""
    house.open()
    yield house
    house.points.clear()


@pytest.fixture
def renewing(renewing_house: Theatre) -> Iterator[Theatre]:
    """The same, with histories that are renewed all the time."""
    renewing_house.open()
    yield renewing_house
    renewing_house.points.clear()


@pytest.fixture
async def cast() -> AsyncIterator[Cast]:
    """Makes fleets that are brought up, and ends them with the test."""
    made: list[Troupe] = []
    one_by_one = asyncio.Lock()

    async def bring(theatre: Theatre, *, nodes: int = 2, linger: float = 0.2) -> Troupe:
        async with one_by_one:
            if not theatre.bystanders:
                aside = await troupe_of(theatre, nodes=1)
                await aside.appear()
                aside.stand_by()
                await aside.drivers.aclose()
        troupe = await troupe_of(theatre, nodes=nodes, linger=linger)
        made.append(troupe)
        await troupe.appear()
        return troupe

    yield bring
    for troupe in made:
        troupe.leave()
        await troupe.drivers.aclose()
