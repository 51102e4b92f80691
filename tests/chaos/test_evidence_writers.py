"""Two writers of one record, killed between any two writes of either store: it verifies, and has every effect once.

They are forked within milliseconds and do nothing but a worker's own legs, so that more of the kills fall into a write than
with whole workers (``test_two_workers``). The effects are real: local hosts, whose journals are held against the record.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from activities.bringing_up import BringingUpActivities
from activities.nodes import NodeActivities
from activities.orders import OrderActivities
from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import ensure_key
from kedge.model.base import Json, canonical, digest_of
from kedge.model.order import Expected
from kedge.model.policy import EvidenceRules
from kedge.model.run import JudgeRequest, Lease, ObserveRequest, OpenRequest, Run
from kedge.trust import evidence_file
from kedge.trust.evidence import Asked, verify_parts
from tests.chaos import truth, writers
from tests.conftest import Tell
from tests.drivers import databases
from tests.spine.scene import Scene, end_daemons, make_scene, settle
from worker.wiring import ground_of

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(560)]

KILLS = 40
NODES = 60
"""Each leg is admitted once, so there is one for each node: half of them are each writer's."""
WAVES: dict[str, Json] = {"widen": ["100%"], "max_unavailable": 2}
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where the record is kept; None: the file in the home."""
    if request.param == "sqlite":
        yield None
        return
    if databases.program("postgres") is None:
        pytest.skip("PostgreSQL is not installed: tools/packages installs it")
    with pytest.MonkeyPatch.context() as patch, databases.from_packages() as server:
        patch.setenv("PGPASSFILE", str(server.passfile))
        yield server.fresh()


@contextmanager
def forking() -> Iterator[subprocess.Popen[str]]:
    """The process that writers are forked from."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.writers"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as forks:  # fmt: skip
        try:
            yield forks
        finally:
            forks.kill()


async def staged(home: Path, address: str | None) -> Scene:
    given: dict[str, Any] = {} if address is None else {"evidence_url": address}
    scene = make_scene(
        cast("Client", None), home, nodes=NODES, transport="local", checkpoint_records=20, **given
    )
    key = ensure_key(scene.settings.checkpoint_key)
    rules = EvidenceRules(signers=(key.public.line,))
    scene.policy = scene.policy.model_copy(update={"evidence": rules})
    await settle(scene)
    return scene


async def begun(scene: Scene) -> Run:
    """An order to start is accepted and its warrant stored, as the fleet does it."""
    runbook = scene.runbook(waves=WAVES, gates={})
    plan = await scene.drivers.blobs.put(canonical(scene.plan(runbook)))
    target = f"fleet/{scene.name}"
    envelope = scene.envelope("start", target, plan, "olga")
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, workflow_id=target)
    client = await Client.connect("127.0.0.1:1", lazy=True)
    orders = OrderActivities(ground_of(scene.drivers, client))
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    expected = Expected(verbs=("start",), target=target, plan=plan, now=now)
    request = JudgeRequest(envelope=envelope, expected=expected, fleet=scene.name, lease=Lease())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "get_workflow_handle", lambda _: NothingThere())
        run: Run | None = (await environment.run(orders.judge_fleet_order, request)).run
    assert run is not None
    everyone = tuple(range(NODES))
    nodes = NodeActivities(orders._ground)
    ensured = await environment.run(BringingUpActivities(orders._ground).ensure_fleet, scene.name)
    assert ensured.problems == ()
    environment.info = replace(environment.info, workflow_id=run.id)
    seen = await environment.run(
        nodes.observe_nodes, ObserveRequest(run=run, nodes=everyone, serial=0, probes=True)
    )
    assert seen.problems == ()
    opened = await environment.run(nodes.open_wave, OpenRequest(run=run, wave=0, serial=1))
    assert opened.failure is None
    return run


class NothingThere:
    """What an engine without workflows answers: the fleet is new, and no name is taken."""

    async def describe(self) -> None:
        raise RPCError("not found", RPCStatusCode.NOT_FOUND, b"")


class Writer:
    """One of the two: it is given legs of its own nodes, killed, and given what is left."""

    def __init__(self, name: str, scene: Scene, run: Run, nodes: tuple[int, ...]) -> None:
        self.path = scene.home / name
        self._asked: dict[str, Any] = {
            "settings": {
                "home": str(scene.settings.home),
                "evidence_url": scene.settings.evidence_url,
                "checkpoint_records": 20,
            },
            "run": run.model_dump(mode="json"),
            "told": str(self.path),
        }
        self._nodes = nodes
        self._attempt = 1
        self.pid = 0

    def left(self) -> list[int]:
        """The nodes whose legs it has not said to be done."""
        done = writers.told(self.path)
        return [node for node in self._nodes if node not in done]

    def begin(self, forks: subprocess.Popen[str]) -> None:
        """Forks it for the legs that are left."""
        left = [(node, self._attempt) for node in self.left()]
        self._attempt += 10
        assert forks.stdin is not None
        assert forks.stdout is not None
        forks.stdin.write(json.dumps({**self._asked, "legs": left}) + "\n")
        forks.stdin.flush()
        self.pid = int(forks.stdout.readline())

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def kill(self) -> bool:
        """SIGKILL; False when it had come to its end."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        until = time.monotonic() + 10
        while self.alive():
            assert time.monotonic() < until, "it does not die"
            time.sleep(0.002)
        return True


async def test_two_writers_are_killed_in_the_middle_of_their_writes(
    tmp_path: Path, address: str | None, tell: Tell
) -> None:
    scene = await staged(tmp_path, address)
    dice = random.Random(2)
    try:
        run = await begun(scene)
        two = (
            Writer("a", scene, run, tuple(range(0, NODES, 2))),
            Writer("b", scene, run, tuple(range(1, NODES, 2))),
        )
        kills = await asyncio.to_thread(torment, two, dice)
        assert kills == KILLS
        await scene.drivers.aclose()
        assert [one.left() for one in two] == [[], []]
        await assert_every_effect_once(scene, run)
        tell(
            f"two writers of {'PostgreSQL' if address else 'SQLite'} under {kills} kills,"
            f" {NODES} legs: every effect in the record and in a journal, once"
        )
    finally:
        await scene.drivers.aclose()
        end_daemons(scene)


def torment(two: tuple[Writer, Writer], dice: random.Random) -> int:
    """Kills one of them again and again, at any instant, then lets both come to their end."""
    kills = 0
    with forking() as forks:
        for one in two:
            one.begin(forks)
        while kills < KILLS and any(one.left() for one in two):
            time.sleep(dice.uniform(0.02, 0.5))
            one = dice.choice([one for one in two if one.left()] or two)
            kills += one.kill()
            one.begin(forks)
        for one in two:
            until = time.monotonic() + 120
            while one.alive():
                assert time.monotonic() < until, Path(f"{one.path}.log").read_text()[-2000:]
                time.sleep(0.02)
    return kills


async def assert_every_effect_once(scene: Scene, run: Run) -> None:
    """The record verifies against the journals of all hosts, and each step of each leg is in both, once."""
    names = [node.name for node in scene.document.nodes]
    roots = {name: scene.home / "nodes" / name for name in names}
    journals = {name: (root / ".kedge" / "journal").read_bytes() for name, root in roots.items()}
    target = scene.home / "run.evidence"
    exported = await desk_evidence.export(
        scene.drivers.evidence, scene.drivers.blobs, run.id, target, whole=True
    )
    parts = evidence_file.read(target.read_bytes().splitlines(keepends=True))
    pinned = {digest_of(scene.policy): scene.policy}
    report = verify_parts(parts, Asked(pinned=pinned, journals=journals))
    assert report.findings == ()
    assert [one for one in report.unproven if run.id not in one] == []
    assert report.signed == exported.last
    legs = [
        one.record
        for one in parts.entries
        if isinstance(one.record, dict) and one.record.get("what") == "leg"
    ]
    seen = Counter(
        str(step["key"])
        for leg in cast("list[dict[str, Any]]", legs)
        for step in leg["steps"]
        if not step["replayed"]
    )
    plan = scene.plan(scene.runbook(waves=WAVES, gates={}))
    steps = sum(len(leg.steps) for leg in plan.program("forward").legs)
    for name in names:
        kept = [str(record["key"]) for record in truth.journal(roots[name])]
        of_run = {key for key in kept if key.startswith(run.id) and "/forward/" in key}
        assert len(of_run) == steps, (name, sorted(of_run))
        mine = {key for key in seen if f"/{name}/" in key}
        replayed_only = of_run - mine
        # A step whose session was killed before it was written down stands in the record as found in the journal.
        everywhere = {
            str(step["key"])
            for leg in cast("list[dict[str, Any]]", legs)
            for step in leg["steps"]
            if leg["node"] == name
        }
        assert replayed_only <= everywhere
        assert everywhere == of_run
    assert [key for key, number in seen.items() if number > 1] == []
