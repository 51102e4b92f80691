"""Nodes that stay in flight for as long as a test wants, so that nothing depends on how fast the machine is."""

from __future__ import annotations

from datetime import UTC, datetime

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.spine.scene import Scene, eventually

PACED: dict[str, Json] = {"pace": 1.0}
"""Options of simulated nodes whose waits are real."""
STEPS: list[Json] = [
    "stage",
    {"stop": {"signal": "TERM", "grace": "5s"}},
    "switch",
    "configure",
    {"start": {"settle": "0s"}},
    {"healthy": {"tcp": "127.0.0.1:1", "for": "0s", "within": "90s", "interval": "50ms"}},
]
"""A leg whose last step waits until the node is let through."""


def latch(scene: Scene, *nodes: str, run: str = "upgrade/*") -> None:
    """Legs of these nodes do not get healthy in these runs before they are let through; looks find the nodes well."""
    scene.sim.program(
        *(
            Fault(do="unhealthy", op="healthy", node=node, run=run, key=f"*/{program}/*")
            for node in nodes
            for program in ("forward", "back")
        )
    )


def let_through(scene: Scene, *, but: tuple[str, ...] = (), run: str = "upgrade/*") -> None:
    """All are let through, but for some."""
    scene.sim.clear()
    latch(scene, *but, run=run)


async def in_flight(scene: Scene, node: str, version: str = "1.1.0") -> None:
    """Wait until a node that is latched runs this version, and waits to be let through."""
    await eventually(lambda: scene.running()[node] == version)


async def held(scene: Scene, run: str) -> None:
    """Wait until the wave in flight was told to hold: whatever ends in it afterwards finds it told."""

    async def told() -> bool:
        widening = (await scene.status(run)).child
        assert widening is not None, "the run has no wave in flight"
        wave = (await scene.client.get_workflow_handle(widening).query("progress"))["child"]
        assert wave is not None, "no wave is in flight"
        events = scene.client.get_workflow_handle(wave).fetch_history_events()
        return any(
            [
                event.workflow_execution_signaled_event_attributes.signal_name == "hold"
                async for event in events
            ]
        )

    await eventually(told)


async def baking(scene: Scene, run: str) -> datetime:
    """Wait until a run bakes; until when."""
    found: list[str] = []

    async def until() -> bool:
        child = (await scene.status(run)).child
        if child is None:
            return False
        progress = await scene.client.get_workflow_handle(child).query("progress")
        found.append(progress["until"])
        return progress["until"] is not None

    await eventually(until)
    return datetime.strptime(found[-1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
