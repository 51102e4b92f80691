"""Real nodes on this machine: kedge beside a bare asyncio script that does the same host operations.

Both move as many nodes at a time, in turns within one run, so that what else the machine does hits both. Once
with nodes that must have lived for a second before they count as healthy, once with nodes that count at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.bare import Work, end_all
from bench.figures import Histories, histories_of, tree_seconds
from bench.home import Home, opened
from kedge.model.base import Frozen, Json
from kedge.model.runbook import Runbook

NODES = 200
AT_ONCE = 20
REPETITIONS = {0.0: 7, 1.0: 3}
"""By the seconds a node must have lived."""


class Turn(Frozen):
    """One repetition: seconds of both, and processor seconds of everything each of them started."""

    bare: float
    kedge: float
    bare_processor: float
    kedge_processor: float


class Compared(Frozen):
    """All repetitions with nodes that must have lived for ``healthy_for`` seconds."""

    nodes: int
    at_once: int
    healthy_for: float
    turns: tuple[Turn, ...]
    histories: Histories

    @property
    def ratio(self) -> float:
        """The median of kedge's time by the script's."""
        return median(turn.kedge / turn.bare for turn in self.turns)

    @property
    def over(self) -> float:
        """The median of what kedge takes more, in milliseconds a node."""
        return median((turn.kedge - turn.bare) / self.nodes * 1000 for turn in self.turns)


def runbook(at_once: int, healthy_for: float) -> Runbook:
    """One wave over all nodes: no canary, no gate, no bake, as the script has none."""
    said: dict[str, Json] = {
        "kind": "Runbook",
        "name": "bench-local",
        "node": [
            "stage",
            {"stop": {"signal": "TERM", "grace": "10s"}},
            "switch",
            "configure",
            {"start": {"settle": "0s"}},
            {
                "healthy": {
                    "service": {"running": True},
                    "for": f"{healthy_for:g}s",
                    "within": "30s",
                    "interval": "200ms",
                }
            },
        ],
        "waves": {"widen": ["100%"], "max_unavailable": at_once},
    }
    return Runbook.model_validate(said, strict=False)


class Ground:
    """The nodes of both sides, and the release each side is at."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._nodes = tuple(node.name for node in home.fleet.nodes)
        self._bare = home.folder / "bare"
        self._minor = 0
        self._kedge = self._version()

    def _version(self) -> str:
        return f"1.{self._minor}.0"

    async def prepare(self) -> None:
        """Both sides on the first release, all daemons running."""
        await self._home.ensure()
        await self._move_bare(self._version(), 0.0)

    async def turn(self, healthy_for: float, *, kedge_first: bool) -> tuple[Turn, Histories]:
        """Both sides to the next release."""
        self._minor += 1
        version = self._version()
        if kedge_first:
            ours, used, histories = await self._move_kedge(version, healthy_for)
            bare = await self._move_bare(version, healthy_for)
        else:
            bare = await self._move_bare(version, healthy_for)
            ours, used, histories = await self._move_kedge(version, healthy_for)
        turn = Turn(
            bare=round(bare[0], 3),
            kedge=round(ours, 3),
            bare_processor=round(bare[1], 3),
            kedge_processor=round(used, 3),
        )
        return turn, histories

    async def _move_bare(self, version: str, healthy_for: float) -> tuple[float, float]:
        artifact = self._home.release(version).artifacts["linux/amd64"]
        work = Work(
            folder=str(self._bare),
            nodes=self._nodes,
            archive=artifact.source,
            digest=artifact.digest,
            version=version,
            at_once=AT_ONCE,
            healthy_for=healthy_for,
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.bare",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        said, _ = await child.communicate(work.model_dump_json().encode() + b"\n")
        if child.returncode != 0:
            raise RuntimeError("the bare script failed")
        told = json.loads(said)
        return told["seconds"], told["processor"]

    async def _move_kedge(self, version: str, healthy_for: float) -> tuple[float, float, Histories]:
        home = self._home
        plan = await home.plan(runbook(AT_ONCE, healthy_for), self._kedge, version)
        pids = home.pids()
        before = sum(tree_seconds(pid) for pid in pids)
        begun = time.monotonic()
        run = await home.start(plan)
        end = await run.result()
        seconds = time.monotonic() - begun
        used = sum(tree_seconds(pid) for pid in pids) - before
        if end.phase != "done":
            raise RuntimeError(f"the run ended otherwise: {end}")
        self._kedge = version
        return seconds, used, await histories_of(home.client, run.id)

    def close(self) -> None:
        """Ends all daemons of both sides."""
        end_all(self._bare, self._nodes)
        for node in self._nodes:
            kept = self._home.folder / "nodes" / node / ".kedge" / "service.json"
            try:
                os.kill(json.loads(kept.read_text())["pid"], signal.SIGTERM)
            except (FileNotFoundError, ProcessLookupError, ValueError):
                continue


async def compare(
    say: Callable[[str], None], repetitions: dict[float, int], nodes: int = NODES
) -> list[Compared]:
    """All repetitions in one home, the sides in alternating order; ``say`` is told how far it is."""
    found: list[Compared] = []
    async with opened(nodes, "local") as home:
        ground = Ground(home)
        try:
            await ground.prepare()
            for healthy_for, times in repetitions.items():
                turns: list[Turn] = []
                for number in range(times):
                    say(f"{nodes} local nodes, {healthy_for:g} s each: {number + 1} of {times}")
                    turn, histories = await ground.turn(healthy_for, kedge_first=number % 2 == 1)
                    turns.append(turn)
                found.append(
                    Compared(
                        nodes=nodes,
                        at_once=AT_ONCE,
                        healthy_for=healthy_for,
                        turns=tuple(turns),
                        histories=histories,
                    )
                )
        finally:
            ground.close()
    return found


def report(found: Sequence[Compared]) -> list[str]:
    """What was measured, in lines."""
    lines: list[str] = []
    for one in found:
        needs = f"that need {one.healthy_for:g} s" if one.healthy_for else "that need nothing"
        lines.append(f"{one.nodes} local nodes {needs}, {one.at_once} at a time:")
        lines += [
            f"  script {turn.bare:6.2f} s, kedge {turn.kedge:6.2f} s"
            f" (processor {turn.bare_processor:.1f} s, {turn.kedge_processor:.1f} s)"
            for turn in one.turns
        ]
        lines.append(
            f"  median: {one.ratio:.2f} × the script, {one.over:.1f} ms a node over it;"
            f" {one.histories.scheduled / one.nodes:.3f} activities a node"
        )
    return lines
