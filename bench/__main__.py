"""``make bench``: the figures of simulated and of real nodes, as a person reads them.

Times depend on the machine and on what else it does; ratios are of one run, both sides in turns.
"""

from __future__ import annotations

import argparse
import asyncio

from bench import local, simulated


def said_of_simulated(one: simulated.Simulated) -> str:
    """One size in a few lines."""
    return (
        f"{one.nodes} simulated nodes: {one.seconds:.1f} s, {one.per_node:.2f} ms a node, "
        f"{one.activities_per_node:.2f} activities a node\n"
        f"  largest history {one.histories.largest_events} events ({one.histories.largest}), "
        f"{one.histories.largest_bytes} bytes; {one.histories.events} events in {one.histories.workflows} workflows\n"
        f"  worker {one.worker.peak:.0f} MiB at its peak, {one.worker_seconds:.1f} s of processor; "
        f"engine {one.engine.peak:.0f} MiB, {one.engine_seconds:.1f} s"
    )


def said_of_local(one: local.Compared) -> str:
    """One comparison in a few lines."""
    turns = ", ".join(f"{turn.kedge:.2f}/{turn.bare:.2f}" for turn in one.turns)
    return (
        f"{one.nodes} local nodes, {one.at_once} at a time, healthy for {one.healthy_for:g} s: "
        f"{one.ratio:.2f} × the bare script, {one.over:.2f} ms a node over it (medians)\n"
        f"  seconds of kedge/script in turns: {turns}"
    )


async def main(*, real: bool, large: bool) -> None:
    """Measures and prints; ``large`` adds the larger size of simulated nodes, ``real`` the local nodes."""
    sizes = simulated.SIZES if large else simulated.SIZES[:1]
    seen = []
    for nodes in sizes:
        seen.append(await simulated.measure(nodes))
        print(said_of_simulated(seen[-1]), flush=True)
    if len(seen) > 1:
        ratio = seen[-1].per_node / seen[0].per_node
        print(
            f"time a node at {seen[-1].nodes} by that at {seen[0].nodes}: {ratio:.2f}", flush=True
        )
    if real:
        for one in await local.compare(local.REPETITIONS):
            print(said_of_local(one), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--no-local", action="store_true", help="leave the local nodes out")
    parser.add_argument(
        "--no-large", action="store_true", help="leave the 5,000 simulated nodes out"
    )
    given = parser.parse_args()
    asyncio.run(main(real=not given.no_local, large=not given.no_large))
