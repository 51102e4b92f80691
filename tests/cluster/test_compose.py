"""The cluster of docker-compose.yml, called from outside its containers, while one of two workers is killed.

Where no registry of images answers, its images are those of ``deploy/offline``.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client

from kedge.drivers.checkpoints import ensure_key
from tests.cli import scene as scenes
from tests.conftest import Tell
from tests.spine.forgery import entries_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
KEDGE = str(Path(sys.executable).parent / "kedge")
SAID = "the canary looks well to me"
"""What an approver says: a word of a payload, which Temporal must not see."""


def ran(
    *words: str, seconds: float = 120, code: int | None = 0, env: dict[str, str] | None = None
) -> str:
    """What a program says; it ends with ``code``."""
    done = subprocess.run(
        words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert code is None or done.returncode == code, (
        words,
        done.stdout[-3000:],
        done.stderr[-3000:],
    )
    return done.stdout


@dataclass
class Cluster:
    """A project of Compose with an ``.env`` of its own, and kedge as ``deploy/outside`` tells it."""

    folder: Path
    files: tuple[str, ...] = ("docker-compose.yml",)
    project: str = field(default_factory=lambda: f"kedge-test-{secrets.token_hex(4)}")

    def make_env(self) -> None:
        """As README says, in a folder that has nothing else of a checkout."""
        (self.folder / "deploy").mkdir(parents=True)
        for name in ("make-env", "outside"):
            (self.folder / "deploy" / name).write_bytes((ROOT / "deploy" / name).read_bytes())
        ran("bash", str(self.folder / "deploy" / "make-env"), str(self.folder))
        with (self.folder / ".env").open("a") as file:
            for name in ("TEMPORAL_PORT", "TEMPORAL_UI_PORT", "POSTGRES_PORT"):
                file.write(f"{name}={free_port()}\n")

    def compose(self, *words: str, seconds: float = 120, code: int | None = 0) -> str:
        files = [word for file in self.files for word in ("--file", file)]
        project = ["--project-name", self.project, "--env-file", str(self.folder / ".env")]
        return ran("docker", "compose", *project, *files, *words, seconds=seconds, code=code)

    def workers(self) -> dict[str, str]:
        """The state of each container of a worker that runs, by the name its processes have for their host."""
        listed = self.compose("ps", "--format", "json", "worker").splitlines()
        return {one["ID"][:12]: one["Health"] for one in map(json.loads, listed)}

    @property
    def outside(self) -> dict[str, str]:
        """The environment that ``eval "$(deploy/outside)"`` makes."""
        script = f'eval "$(bash {self.folder}/deploy/outside)" && env -0'
        told = ran("bash", "-c", script).split("\0")
        return dict(line.split("=", 1) for line in told if line)

    def kedge(self, *words: str, code: int = 0) -> Any:
        """The JSON that the command line says, called from outside."""
        return json.loads(ran(KEDGE, *words, "--json", code=code, env=self.outside, seconds=600))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.fixture
def cluster(tmp_path: Path, tell: Tell) -> Iterator[Cluster]:
    """Everything is up and healthy, with two workers; nothing of it is left."""
    made = Cluster(tmp_path / "work")
    made.make_env()
    began = time.monotonic()
    try:
        made.compose("pull", "--quiet", "--ignore-buildable", seconds=600)
    except (AssertionError, subprocess.TimeoutExpired):
        ran("bash", str(ROOT / "deploy" / "offline" / "build"), seconds=2400)
        made.files += ("deploy/offline/compose.yml",)
    built = time.monotonic()
    try:
        made.compose("build", seconds=1200)
        worker = time.monotonic()
        made.compose("up", "--detach", "--wait", "--scale", "worker=2", seconds=600)
        up = time.monotonic()
        tell(
            f"images {built - began:.0f} s, the worker's {worker - built:.0f} s, up and healthy after {up - worker:.0f} s"
        )
        yield made
    except BaseException:
        sys.stderr.write(made.compose("ps", "--all", code=None))
        sys.stderr.write(made.compose("logs", "--tail", "20", code=None))
        raise
    finally:
        made.compose("down", "--volumes", "--timeout", "5", "--rmi", "local", code=None)


def test_a_migration_from_outside_goes_on_when_one_of_two_workers_is_killed(
    cluster: Cluster, tell: Tell
) -> None:
    began = time.monotonic()
    assert list(cluster.workers().values()) == ["healthy", "healthy"]
    home = Path(cluster.outside["KEDGE_HOME"])
    scene = scenes.build(cluster.folder / "etcd", name="etcd", nodes=8, pace=1.0, step_seconds=2.0)
    signer = ensure_key(home / "trust" / "checkpoint_key").public.line
    with scene.policy.open("a") as policy:
        policy.write(f"evidence:\n  named: required\n  signers: [{json.dumps(signer)}]\n")
    up = cluster.kedge(
        "up", "--no-worker", "--fleet", str(scene.fleet), "--policy", str(scene.policy)
    )
    assert up["fleets"][0]["running"] == 8

    run = cluster.kedge("start", *scene.documents, "--key", str(scene.key("olga")))["run"]
    cluster.kedge("watch", run, "--until-waiting", code=7)
    for person in ("alice", "bob"):
        approve = ("approve", run, "--gate", "ship-it", "--comment", SAID)
        cluster.kedge(*approve, "--key", str(scene.key(person)))
    killed = asyncio.run(busy_worker(cluster, run))
    ran("docker", "kill", killed)
    assert cluster.kedge("watch", run)["phase"] == "done"
    assert killed not in cluster.workers()

    effects = assert_every_effect_once(cluster, run, scene)
    assert_psql_reads_the_record(cluster)
    assert_temporal_saw_no_payload(cluster, run)
    tell(
        f"{run} of 8 nodes, {effects} effects, the worker {killed} killed with a leg; {time.monotonic() - began:.0f} s"
    )


async def busy_worker(cluster: Cluster, run: str) -> str:
    """The container of a worker that has a leg of the run in hand just now."""
    client = await Client.connect(cluster.outside["TEMPORAL_ADDRESS"])
    workers = set(cluster.workers())
    until = time.monotonic() + 120
    while time.monotonic() < until:
        query = f"WorkflowType = 'Wave' AND ExecutionStatus = 'Running' AND WorkflowId STARTS_WITH '{run}/'"
        async for wave in client.list_workflows(query):
            handle = client.get_workflow_handle(wave.id)
            for pending in (await handle.describe()).raw_description.pending_activities:
                host = pending.last_worker_identity.partition("@")[2]
                if (
                    pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
                    and host in workers
                ):
                    return host
        await asyncio.sleep(0.2)
    raise AssertionError("no worker had a leg of the run")


def assert_every_effect_once(cluster: Cluster, run: str, scene: scenes.Scene) -> int:
    """The exported file verifies by nothing but the policy, and has each step once; how many."""
    file = cluster.folder / "run.evidence"
    cluster.kedge("evidence", "export", run, "--output", str(file))
    # As a third party: no home, no cluster, no keys.
    alone = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    verify = (KEDGE, "--home", str(cluster.folder / "nobody"), "evidence", "verify", str(file))
    report = json.loads(ran(*verify, "--policy", str(scene.policy), "--json", env=alone))
    assert (report["ok"], report["ended"], report["unproven"]) == (True, True, []), report
    entries = entries_of(file.read_bytes().splitlines(keepends=True))
    legs = [one["record"] for one in entries if one["record"].get("what") == "leg"]
    done = Counter(step["key"] for leg in legs for step in leg["steps"] if not step["replayed"])
    assert [key for key, number in done.items() if number > 1] == []
    assert {leg["node"] for leg in legs} == {f"sim-{number}" for number in range(1, 9)}
    return len(done)


def assert_psql_reads_the_record(cluster: Cluster) -> None:
    """The stock client reads what docs/evidence.md says, as the workers' role and from outside."""
    outside = cluster.outside
    question = (
        "SELECT count(*), max(e.seq), count(c.signature) FROM entries e LEFT JOIN checkpoints c"
        " ON c.fleet = e.fleet AND c.seq = e.seq AND c.hash = e.hash WHERE e.fleet = 'etcd'"
    )
    words = ("psql", outside["KEDGE_EVIDENCE_URL"], "--no-psqlrc", "-At", "-c", question)
    records, last, signed = map(int, ran(*words, env=outside).split("|"))
    assert records == last > 0
    assert signed > 0


def assert_temporal_saw_no_payload(cluster: Cluster, run: str) -> None:
    """Neither what people said nor the name of a node stands in Temporal's databases; the run's id, by which it knows it, does."""
    for database in ("temporal", "temporal_visibility"):
        dump = cluster.compose(
            "exec", "-T", "postgres", "pg_dump", "-U", "temporal", "--data-only", database
        )
        # Payloads are bytes there, which a dump writes in hex.
        for word in (SAID, "sim-1", "sim-8"):
            assert word not in dump
            assert word.encode().hex() not in dump
        assert run in dump or run.encode().hex() in dump
