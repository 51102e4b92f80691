"""Many simulated nodes in one migration: the cost of a node, and whether it stays the same with five times as many.

The worker is a process of its own, the engine is the embedded one on its file database; the nodes are
simulated, so what is measured is kedge and Temporal and nothing of hosts.
"""

from __future__ import annotations

import asyncio
import time

from bench.figures import Histories, Memory, histories_of, memory_of, processor_seconds
from bench.home import Home, opened
from kedge.model.base import Frozen, Json
from kedge.model.run import RunStatus
from kedge.model.runbook import Runbook

SIZES = (1_000, 5_000)


class Simulated(Frozen):
    """The figures of one size. ``seconds`` is from the start order to the end of the run."""

    nodes: int
    seconds: float
    per_node: float
    """Milliseconds."""
    plan_bytes: int
    compiled: float
    """Seconds to compile the plan."""
    phases: dict[str, float]
    histories: Histories
    worker: Memory
    worker_seconds: float
    """Processor time of the worker in the run."""
    engine: Memory
    engine_seconds: float

    @property
    def activities_per_node(self) -> float:
        """All activities of the run, those of preflight and waves too, by node."""
        return self.histories.scheduled / self.nodes


def runbook(at_once: int) -> Runbook:
    """The ordinary case: a canary, its bake, a gate of two people, then a third, then all."""
    probe: dict[str, Json] = {"service": {"running": True}}
    said: dict[str, Json] = {
        "kind": "Runbook",
        "name": "bench",
        "preflight": [probe],
        "node": [
            "stage",
            {"stop": {"signal": "TERM", "grace": "5s"}},
            "switch",
            "configure",
            {"start": {"settle": "0s"}},
            {"healthy": {**probe, "for": "0s", "within": "5s", "interval": "50ms"}},
        ],
        "waves": {
            "canary": {
                "nodes": 1,
                "bake": {"duration": "100ms", "interval": "100ms"},
                "gate": "ship",
            },
            "widen": ["30%", "100%"],
            "max_unavailable": at_once,
        },
        "gates": {"ship": {"approvals": {"threshold": 2, "roles": ["sre"]}}},
    }
    return Runbook.model_validate(said, strict=False)


async def measure(nodes: int, at_once: int = 100) -> Simulated:
    """One migration of so many simulated nodes, in a home of its own."""
    async with opened(nodes, "sim", sim_in_memory=True) as home:
        await home.ensure()
        return await _migrate(home, nodes, at_once)


async def _migrate(home: Home, nodes: int, at_once: int) -> Simulated:
    begun = time.monotonic()
    plan = await home.plan(runbook(at_once), "1.0.0", "1.1.0")
    compiled = time.monotonic() - begun
    worker, engine = home.worker.state(), home.engine.state()
    if worker is None or engine is None:
        raise RuntimeError("the worker or the engine has ended")
    spent = [processor_seconds(one.process.pid) for one in (worker, engine)]
    begun = time.monotonic()
    run = await home.start(plan)
    await home.approve(run.id, "ship")
    end = await run.result()
    seconds = time.monotonic() - begun
    if end.phase != "done" or end.nodes_done != nodes:
        raise RuntimeError(f"the run ended otherwise: {end}")
    memory = [memory_of(one.process.pid) for one in (worker, engine)]
    used = [processor_seconds(one.process.pid) for one in (worker, engine)]
    status = await home.client.get_workflow_handle(run.id).query("status", result_type=RunStatus)
    return Simulated(
        nodes=nodes,
        seconds=round(seconds, 2),
        per_node=round(seconds / nodes * 1000, 3),
        plan_bytes=len(plan.model_dump_json()),
        compiled=round(compiled, 2),
        phases=status.seconds,
        histories=await histories_of(home.client, run.id),
        worker=memory[0],
        worker_seconds=round(used[0] - spent[0], 1),
        engine=memory[1],
        engine_seconds=round(used[1] - spent[1], 1),
    )


async def main() -> None:
    """Prints the figures of every size."""
    for nodes in SIZES:
        print((await measure(nodes)).model_dump_json(indent=1))


if __name__ == "__main__":
    asyncio.run(main())
