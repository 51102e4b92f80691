"""``make bench``: prints the figures of docs/scale.md as they are on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import against, artifact, evidence, local, simulated, verification

PARTS = ("artifact", "evidence", "verification", "simulated", "local")


def main() -> int:
    """Measures and prints; the figures as JSON too where a file is named."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="leave the other parts out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="only the simulated nodes, in turns with another checkout that is set up",
    )
    parser.add_argument("--turns", type=int, default=2, help="how often, with --against")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine()}
    print(figures["machine"])
    if asked.against is not None:
        there = asked.against.resolve()
        sides = against.measure(there, asked.turns, say)
        print("\n".join(against.report(there, sides)))
        figures["against"] = [one.model_dump(mode="json") for one in sides]
        return _finish(figures, asked.json)
    parts = PARTS if asked.only is None else (asked.only,)
    if "artifact" in parts:
        cost = asyncio.run(artifact.measure(say))
        print("\n".join(artifact.report(cost)))
        figures["artifact"] = cost.model_dump(mode="json")
    if "evidence" in parts:
        verified = asyncio.run(evidence.measure(say))
        print("\n".join(evidence.report(verified)))
        figures["evidence"] = verified.model_dump(mode="json")
    if "verification" in parts:
        judged = verification.measure(say)
        print("\n".join(verification.report(judged)))
        figures["verification"] = [one.model_dump(mode="json") for one in judged]
    if "simulated" in parts:
        found = asyncio.run(simulated.measure_all(say))
        print("\n".join(simulated.report(found)))
        figures["simulated"] = [one.model_dump(mode="json") for one in found]
    if "local" in parts:
        compared = asyncio.run(local.compare(say, local.REPETITIONS))
        print("\n".join(local.report(compared)))
        figures["local"] = [one.model_dump(mode="json") for one in compared]
    return _finish(figures, asked.json)


def _finish(figures: dict[str, Any], file: Path | None) -> int:
    figures["machine at the end"] = machine()
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    print(figures["machine at the end"])
    return 0


def machine() -> str:
    """When and where, and how busy the machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    now = datetime.now(UTC)
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{now:%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores, {memory:.0f} GiB;"
        f" load average over 1, 5 and 15 minutes: {busy}"
    )


def say(what: str) -> None:
    """How far it is, on standard error."""
    sys.stderr.write(f"… {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
