"""What others can verify: the record of it all as one file, and what becomes of it when one bit is changed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from demo.documents import FLEET
from demo.policies import POLICY
from demo.show import Show, ShowError
from demo.trusting import flip

REFUSED = 3
FILE, FORGED = "etcd.evidence", "forged.evidence"
SHOWN = 30
"""Lines of a verdict that are shown."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A byte in an exported file: its place, its line (from 1), the record there, and the node whose name it is of."""

    place: int
    line: int
    seq: int
    node: str


def prove(show: Show) -> None:
    """Exports the evidence of the first run, verifies it, changes one bit in a copy, and verifies that."""
    begun = time.monotonic()
    screen, folder = show.screen, show.paths.folder
    run = list(show.runs)[-1]
    screen.act("What others can verify")
    screen.say(
        "All of this was written down, the refused orders too: a chain of records for each fleet, signed as it grows. "
        f"Here is that of {FLEET}, from its first record to the end of {run} and of what that owed, as one file."
    )
    show.kedge("evidence", "export", run, "--whole", "-o", FILE)
    screen.say(
        "Whoever has that file and the policy verifies it, with neither network, database, nor Temporal: every signature "
        "is judged again, and it says what happened in order. The policy of the first day is enough: the second version is in "
        "the file, and has to follow from it."
    )
    show.kedge("evidence", "verify", FILE, "--policy", POLICY, last=SHOWN)
    forged = folder / FORGED
    forged.write_bytes((folder / FILE).read_bytes())
    spot = a_step(forged)
    flip(forged, spot.place)
    other = chr(ord(spot.node[-1]) ^ 1)
    screen.strike(
        f"one bit of a copy is changed, byte {spot.place:,} of {forged.stat().st_size:,}: it says now that what was "
        f"done on {spot.node} was done on {spot.node[:-1]}{other}"
    )
    answer = show.kedge(
        "evidence", "verify", FORGED, "--policy", POLICY, "--quiet", codes=(REFUSED,)
    )
    where = f"record {spot.seq}, line {spot.line}"
    found = any(where in line for line in answer.out)
    show.judge(
        f"found, at its place: {where}" if found else f"NOT found at its place, {where}", ok=found
    )
    show.stretch("evidence", begun)


def a_step(file: Path) -> Spot:
    """The last letter of a node's name, in the middle one of the records of what was done on nodes. Raises ``ShowError``."""
    begin, spots = 0, []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        entry = json.loads(line).get("entry", {})
        record = entry.get("record")
        if isinstance(record, dict) and record.get("what") == "leg":
            named = f'"node":"{record["node"]}"'.encode()
            last = line.index(named) + len(named) - 2
            spots.append(Spot(begin + last, number, entry["seq"], record["node"]))
        begin += len(line)
    if not spots:
        raise ShowError(f"{file} says nothing of what was done on any node")
    return spots[len(spots) // 2]
