"""A thousand simulated nodes in one migration: what does not depend on the machine's speed.

The times are for people to read (``make bench``); nothing here is timed.
"""

from __future__ import annotations

import pytest

from bench.simulated import measure

pytestmark = [pytest.mark.scale, pytest.mark.timeout(480)]

NODES = 1_000


async def test_a_thousand_nodes_cost_few_activities_and_short_histories() -> None:
    seen = await measure(NODES)
    assert (seen.steps, seen.replayed) == (7 * NODES, 0), "one leg a node, and none of them twice"
    assert seen.activities_per_node <= 0.35, "quick nodes share activities"
    assert seen.histories.largest_events < 10_000
    assert seen.histories.largest_bytes < 10_000_000
    assert seen.worker.peak < 700, "MiB"
