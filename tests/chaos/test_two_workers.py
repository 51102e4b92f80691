"""Two whole workers move one fleet and write one record while they are killed two hundred times.

In the end the file of the record is verified by the command line, with the journals of all hosts, and has each step that
a journal has once, and no other.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kedge.drivers.checkpoints import CheckpointKey, ensure_key
from kedge.model.policy import EvidenceRules
from tests.chaos import truth
from tests.chaos.pair import Pair
from tests.chaos.theatre import NEW, OLD, Theatre, Troupe, troupe_of
from tests.conftest import Tell
from tests.drivers import databases
from tests.spine.forgery import Entry, changed, entries_of, relinked

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

NODES = 6
KILLS = {"sqlite": 200, "postgres": 40}
KEDGE = (sys.executable, "-P", "-c", "import sys; from cli.main import main; sys.exit(main())")


@pytest.fixture(params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Pair, int]]:
    """Engine and both workers run; how many kills this store has to bear."""
    address = None
    with ExitStack() as stack:
        if request.param == "postgres":
            if databases.program("postgres") is None:
                pytest.skip("PostgreSQL is not installed: tools/packages installs it")
            server = stack.enter_context(databases.from_packages())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("PGPASSFILE", str(server.passfile))
            address = server.fresh()
        made = Pair(Theatre(tmp_path, evidence_url=address), random.Random(4))
        stack.callback(made.close)
        made.open()
        yield made, int(os.environ.get("KILLS", KILLS[request.param]))


async def test_two_workers_under_two_hundred_kills_write_each_effect_down_once(
    pair: tuple[Pair, int], tell: Tell
) -> None:
    both, kills = pair
    began = time.monotonic()
    theatre = both.theatre
    key = ensure_key(theatre.settings.checkpoint_key)
    theatre.policy = theatre.policy.model_copy(
        update={"evidence": EvidenceRules(signers=(key.public.line,))}
    )
    troupe = await troupe_of(theatre, nodes=NODES, linger=0.02)
    try:
        await troupe.appear()
        killing = asyncio.create_task(both.kill_often(kills, 0.8, lambda: written(troupe)))
        runs = await moved(troupe, both, killing)
        await killing
        assert both.kills == kills
        assert both.busy > 0, "no kill fell on a worker that did something"
        seen = await asyncio.to_thread(assert_every_effect_once, troupe, runs, key)
    finally:
        troupe.leave()
        await troupe.drivers.aclose()
    took = time.monotonic() - began
    tell(
        f"{kills} kills of working workers, {both.busy} of them with sessions open, in {len(runs)} runs"
        f" of {NODES} nodes: {seen} effects, each in a journal and in the record once; {took:.0f} s"
    )


def written(troupe: Troupe) -> int:
    """Lines in the journals of all hosts."""
    journals = (troupe.root(node) / ".kedge" / "journal" for node in troupe.names)
    return sum(journal.read_bytes().count(b"\n") for journal in journals)


async def moved(troupe: Troupe, both: Pair, killing: asyncio.Task[None]) -> list[str]:
    """Up and back again, for as long as somebody is killed, and then once more to the end; the runs."""
    plan = troupe.plan_to(
        NEW, waves={"widen": ["50%", "100%"], "max_unavailable": 3}, gates={},
        retry={"attempts": 20, "backoff": "50ms"},
    )  # fmt: skip
    runs: list[str] = []
    last = False
    while not last:
        last = killing.done()
        for phase in ("done", "rolled-back"):
            run = await (troupe.start(plan) if phase == "done" else troupe.rollback())
            runs.append(run)
            both.under_way.set()
            end = await troupe.ended(run, 400)
            both.under_way.clear()
            assert end.phase == phase, end
    return runs


class Told:
    """The record of all runs in a file, and the journals it is held against, as the command line takes them."""

    def __init__(self, troupe: Troupe, run: str) -> None:
        self.file = troupe.home / "run.evidence"
        self._told = dict(troupe.settings.child_environment())
        self._journals = [
            f"--journal={node}={troupe.root(node) / '.kedge' / 'journal'}" for node in troupe.names
        ]
        self._ask(0, "evidence", "export", run, "--whole", "--output", str(self.file))
        self.lines = self.file.read_bytes().splitlines(keepends=True)

    def verified(self, lines: list[bytes] | None = None, *, code: int = 0) -> dict[str, Any]:
        """What ``kedge evidence verify`` says of the file, or of other lines, with this exit code."""
        file = self.file
        if lines is not None:
            file = self.file.with_suffix(".forged")
            file.write_bytes(b"".join(lines))
        return self._ask(code, "evidence", "verify", str(file), *self._journals)

    def _ask(self, code: int, *words: str) -> dict[str, Any]:
        argv = [*KEDGE, *words, "--json"]
        done = subprocess.run(
            argv, env=self._told, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def assert_every_effect_once(troupe: Troupe, runs: list[str], key: CheckpointKey) -> int:
    """The file verifies against all journals, and both have the same effects; how many."""
    told = Told(troupe, runs[-1])
    report = told.verified()
    assert (report["ok"], report["ended"], report["unproven"]) == (True, True, []), report
    legs = [one["record"] for one in leg_entries(entries_of(told.lines))]
    done = Counter(
        str(step["key"]) for leg in legs for step in leg["steps"] if not step["replayed"]
    )
    assert [key for key, number in done.items() if number > 1] == []
    effects = 0
    for node in troupe.names:
        # The journal has each key once, or this fails.
        kept = [str(one["key"]) for one in truth.journal(troupe.root(node))]
        of_runs = {key for key in kept if key.startswith(("upgrade/", "rollback/"))}
        in_record = {
            str(step["key"]) for leg in legs if leg["node"] == node for step in leg["steps"]
        }
        assert in_record == of_runs
        effects += len(of_runs)
        # And the daemons say the same: nobody was started or stopped a second time.
        assert truth.told(troupe.folder, node) == story(len(runs)), node
    assert_what_is_wrong_is_found(told, key)
    return effects


def story(runs: int) -> list[tuple[str, str]]:
    """What the daemon of a node and the command of its leg write in so many runs up and back again."""
    said = [("start", OLD)]
    for number in range(runs):
        before, after = (OLD, NEW) if number % 2 == 0 else (NEW, OLD)
        ran = [("run", NEW)] if after == NEW else []
        said += [("signal", before), ("stop", before), *ran, ("start", after)]
    return said


def leg_entries(entries: list[Entry]) -> list[Entry]:
    """The records of legs that did something, with their places in the chain."""
    return [one for one in entries if one["record"].get("what") == "leg"]


def assert_what_is_wrong_is_found(told: Told, key: CheckpointKey) -> None:
    """Somebody with the worker's own key takes a leg out, or writes one down twice: the same question finds it."""

    def without(entries: list[Entry]) -> None:
        entries.remove(acting(entries))

    def twice(entries: list[Entry]) -> None:
        entries.append({**acting(entries), "key": "made-up"})

    def acting(entries: list[Entry]) -> Entry:
        return next(
            one
            for one in reversed(leg_entries(entries))
            if any(not step["replayed"] for step in one["record"]["steps"])
        )

    alone = told.verified(relinked(told.lines, without, key))["unproven"]
    assert any("in the journal of" in said for said in alone), alone
    findings = told.verified(relinked(told.lines, twice, key), code=3)["findings"]
    assert any("was done a second time" in one["said"] for one in findings), findings
    assert told.verified(changed(told.lines, without), code=3)["findings"]
