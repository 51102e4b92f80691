"""Many simulated nodes in one migration: the cost of a node, and whether it stays the same with five times as many.

The worker is a process of its own, the engine is the embedded one on its file database; the nodes are
simulated, so what is measured is kedge and Temporal and nothing of hosts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import mean

from bench.figures import Histories, Memory, histories_of, memory_of, processor_seconds
from bench.home import Home, opened
from kedge.model.base import Frozen, Json
from kedge.model.runbook import Runbook
from kedge.model.status import RunStatus

AT_ONCE = 100
SMALL, LARGE = 1_000, 5_000
ORDER = (SMALL, LARGE, SMALL)
"""The small size before and after the large one: what else the machine does changes meanwhile."""


class Simulated(Frozen):
    """The figures of one migration. ``seconds`` is from the start order to the end of the run."""

    nodes: int
    at_once: int
    seconds: float
    phases: dict[str, float]
    """Seconds of the run in each phase, as the run itself says."""
    steps: int
    """Done on hosts; ``replayed`` are those that a journal answered for."""
    replayed: int
    plan_seconds: float
    plan_bytes: int
    histories: Histories
    worker: Memory
    engine: Memory
    worker_seconds: float
    """Processor time of the worker, and below of the engine, from the start order to the end of the run."""
    engine_seconds: float

    @property
    def per_node(self) -> float:
        """Milliseconds by the clock."""
        return self.seconds / self.nodes * 1000

    @property
    def processor_per_node(self) -> float:
        """Milliseconds of processor time of worker and engine together."""
        return (self.worker_seconds + self.engine_seconds) / self.nodes * 1000

    @property
    def activities_per_node(self) -> float:
        """All activities of the run, those of preflight, waves and the fleet too, by node."""
        return self.histories.scheduled / self.nodes


def runbook(at_once: int) -> Runbook:
    """The ordinary case: a canary, its bake, a gate of two people, then a third of the fleet, then all of it."""
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


async def measure(nodes: int, at_once: int = AT_ONCE) -> Simulated:
    """One migration of so many simulated nodes, in a home of its own."""
    async with opened(nodes, "sim", sim_in_memory=True) as home:
        await home.ensure()
        return await _migrate(home, nodes, at_once)


async def _migrate(home: Home, nodes: int, at_once: int) -> Simulated:
    begun = time.monotonic()
    plan = await home.plan(runbook(at_once), "1.0.0", "1.1.0")
    planned = time.monotonic() - begun
    pids = home.pids()
    before = [processor_seconds(pid) for pid in pids]
    begun = time.monotonic()
    run = await home.start(plan)
    await home.approve(run.id, "ship")
    end = await run.result()
    seconds = time.monotonic() - begun
    used = [processor_seconds(pid) - spent for pid, spent in zip(pids, before, strict=True)]
    if end.phase != "done" or end.nodes_done != nodes:
        raise RuntimeError(f"the run ended otherwise: {end}")
    status = await run.query("status", result_type=RunStatus)
    worker, engine = (memory_of(pid) for pid in pids)
    return Simulated(
        nodes=nodes,
        at_once=at_once,
        seconds=round(seconds, 3),
        phases=status.seconds,
        steps=end.steps,
        replayed=end.replayed,
        plan_seconds=round(planned, 3),
        plan_bytes=len(plan.model_dump_json()),
        histories=await histories_of(home.client, run.id),
        worker=worker,
        engine=engine,
        worker_seconds=round(used[0], 2),
        engine_seconds=round(used[1], 2),
    )


async def measure_all(say: Callable[[str], None]) -> list[Simulated]:
    """The migrations of ``ORDER``, one after the other; ``say`` is told which."""
    found = []
    for nodes in ORDER:
        say(f"{nodes} simulated nodes, {AT_ONCE} at a time")
        found.append(await measure(nodes))
    return found


def report(found: list[Simulated]) -> list[str]:
    """What was measured, in lines."""
    lines: list[str] = []
    for one in found:
        histories = one.histories
        worker, engine = (
            used / one.nodes * 1000 for used in (one.worker_seconds, one.engine_seconds)
        )
        lines += (
            f"{one.nodes} simulated nodes, {one.at_once} at a time: {one.seconds:.1f} s",
            f"  a node: {one.per_node:.2f} ms, {one.activities_per_node:.3f} activities",
            f"  processor time a node: worker {worker:.2f} ms, engine {engine:.2f} ms",
            f"  {histories.workflows} workflows, {histories.events} events",
            f"  largest history: {histories.largest_events} events ({histories.largest})",
            f"  largest in bytes: {histories.largest_bytes / 1024:.0f} KiB",
            f"  memory at its peak: worker {one.worker.peak:.0f} MiB, engine {one.engine.peak:.0f} MiB",
            f"  plan: {one.plan_bytes / 1024:.0f} KiB, compiled in {one.plan_seconds:.2f} s",
        )
    small = [one for one in found if one.nodes == SMALL]
    large = [one for one in found if one.nodes == LARGE]
    if small and large:
        clock = mean(one.per_node for one in large) / mean(one.per_node for one in small)
        used = mean(one.processor_per_node for one in large) / mean(
            one.processor_per_node for one in small
        )
        lines.append(
            f"a node of {LARGE} takes {clock:.2f} × the time of a node of {SMALL}"
            f" ({used:.2f} × the processor time)"
        )
    return lines
