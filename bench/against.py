"""Two checkouts of kedge in turns on one machine: what a simulated node costs here, by what it costs there.

What else the machine does hits both. Each side is measured by its own bench, in its own environment, so the other side
may be as old as ``python -m bench --only simulated --json FILE`` is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from kedge.model.base import Frozen

HERE = Path(__file__).parent.parent


class Cost(Frozen):
    """Milliseconds a node, means of all migrations of that size on one side."""

    nodes: int
    migrations: int
    clock: float
    worker: float
    engine: float

    @property
    def processor(self) -> float:
        """Processor time of worker and engine together."""
        return self.worker + self.engine


class Sides(Frozen):
    """One size on both sides."""

    here: Cost
    there: Cost


def measure(there: Path, turns: int, say: Callable[[str], None]) -> list[Sides]:
    """Both sides so many times, one after the other, and the other way round in every second turn."""
    sides = {HERE: HERE / ".venv", there: there / ".venv"}
    found: dict[Path, list[dict[str, Any]]] = {folder: [] for folder in sides}
    for turn in range(turns):
        for folder in sorted(sides, key=lambda one: (one == HERE) == (turn % 2 == 0)):
            say(f"turn {turn + 1} of {turns}: {folder}")
            python = sys.executable if folder == HERE else str(sides[folder] / "bin" / "python")
            found[folder] += _simulated(python, folder)
    sizes = sorted({one["nodes"] for one in found[HERE]} & {one["nodes"] for one in found[there]})
    return [Sides(here=_cost(size, found[HERE]), there=_cost(size, found[there])) for size in sizes]


def _simulated(python: str, folder: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="kedge-against-") as temporary:
        out = Path(temporary) / "figures.json"
        argv = [python, "-m", "bench", "--only", "simulated", "--json", str(out)]
        subprocess.run(argv, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found: list[dict[str, Any]] = json.loads(out.read_text())["simulated"]
    return found


def _cost(nodes: int, figures: Iterable[dict[str, Any]]) -> Cost:
    own = [one for one in figures if one["nodes"] == nodes]

    def each(name: str) -> float:
        return round(mean(float(one[name]) for one in own) / nodes * 1000, 3)

    return Cost(
        nodes=nodes,
        migrations=len(own),
        clock=each("seconds"),
        worker=each("worker_seconds"),
        engine=each("engine_seconds"),
    )


def report(there: Path, found: Iterable[Sides]) -> list[str]:
    """What was measured, in lines."""
    lines: list[str] = []
    for one in found:
        here, other = one.here, one.there
        processor, clock = here.processor / other.processor, here.clock / other.clock
        lines += [
            f"{here.nodes} simulated nodes, {here.migrations} migration(s) each in turns, here by {there}:",
            f"  processor time a node: {here.processor:.2f} ms by {other.processor:.2f} ms, {processor:.2f} ×",
            f"    worker: {here.worker:.2f} ms by {other.worker:.2f} ms",
            f"    engine: {here.engine:.2f} ms by {other.engine:.2f} ms",
            f"  time a node: {here.clock:.2f} ms by {other.clock:.2f} ms, {clock:.2f} ×",
        ]
    return lines
