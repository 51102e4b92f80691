"""A home of its own for a benchmark: engine, a worker as a process, people with keys, a fleet, releases, orders."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
from temporalio.client import Client, RPCError, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy

from desk import codec
from kedge.drivers.registry import Drivers
from kedge.drivers.signers import sign_with_key
from kedge.model.base import Json, canonical
from kedge.model.fleet import Fleet
from kedge.model.plan import Artifact, Plan, Verb
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.run import EnsureResult, RunEnd, Submitted
from kedge.model.runbook import Runbook
from kedge.model.status import RunStatus
from kedge.plan.compile import compile_plan
from kedge.trust.orders import bytes_to_sign, make, seal
from worker.background import BackgroundWorker
from worker.client import connect
from worker.engine import Engine
from worker.settings import Settings
from worker.wiring import drivers_of

STARTER, APPROVERS = "olga", ("ada", "bob")
PEOPLE = {STARTER: "operator", **dict.fromkeys(APPROVERS, "sre")}
MAY: dict[str, list[str]] = {"start": ["operator"], "approve": ["sre"], "rollback": ["operator"]}

DAEMON = """#!/bin/sh
# Release {version}: the smallest daemon there is. It idles, and ends at once when it is told to.
exec /bin/sleep 1000000
"""


@dataclass
class Home:
    """Everything of one benchmark; ``name`` is the fleet's."""

    settings: Settings
    engine: Engine
    worker: BackgroundWorker
    client: Client
    drivers: Drivers
    name: str
    policy: Policy
    fleet: Fleet
    keys: dict[str, Path]
    folder: Path
    releases: dict[str, Release] = field(default_factory=dict)

    def release(self, version: str) -> Release:
        """The release of that version; its archive is made when it is asked for first."""
        known = self.releases.get(version)
        if known is None:
            known = self.releases[version] = make_release(self.folder / "releases", version)
        return known

    async def keep(self, version: str) -> None:
        """Put the archive of a release where the worker finds it by its digest."""
        for platform, item in self.release(version).artifacts.items():
            archive = Artifact(
                platform=platform, digest=item.digest, length=item.length, source=item.source
            )
            await self.drivers.artifacts.keep(archive)

    async def plan(self, runbook: Runbook, before: str, after: str) -> Plan:
        """The plan from one release to the other; their archives are kept."""
        for version in (before, after):
            await self.keep(version)
        return compile_plan(
            self.fleet, self.release(before), self.release(after), runbook, self.policy
        )

    def pids(self) -> tuple[int, int]:
        """The worker and the engine, which must run."""
        worker, engine = self.worker.state(), self.engine.state()
        if worker is None or engine is None:
            raise RuntimeError("the worker or the engine has ended")
        return worker.process.pid, engine.process.pid

    async def ensure(self) -> None:
        """Bring the fleet up on its first release."""
        result = await self.client.execute_workflow(
            "Ensure",
            self.name,
            id=f"ensure/{self.name}",
            task_queue=self.settings.task_queue,
            result_type=EnsureResult,
        )
        if result.problems:
            raise RuntimeError(f"the fleet did not come up: {result.problems[:3]}")

    async def start(self, plan: Plan) -> WorkflowHandle[Any, RunEnd]:
        """Store a plan and order its start; the run."""
        digest = await self.drivers.blobs.put(canonical(plan))
        target = f"fleet/{self.name}"
        await self.client.start_workflow(
            "Fleet",
            self.name,
            id=target,
            task_queue=self.settings.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        submitted = await self._submit("start", target, digest, STARTER)
        if submitted.run is None:
            raise RuntimeError(f"the start was refused: {submitted.verdict}")
        return self.client.get_workflow_handle(submitted.run, result_type=RunEnd)

    async def approve(self, run: str, gate: str, seconds: float = 600) -> None:
        """Wait until the gate is open, then sign it by everybody who has to."""
        handle = self.client.get_workflow_handle(run)
        ends = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < ends:
            try:
                status = await handle.query("status", result_type=RunStatus)
            except RPCError:
                # The run may be so young that no worker has it yet.
                status = None
            if status is not None and status.waiting is not None:
                if status.waiting.subject != gate:
                    raise RuntimeError(f"{run} waits for {status.waiting.subject}: {status.said}")
                for person in APPROVERS:
                    shown = {"subject": gate, "shown": status.waiting.shown}
                    await self._submit("approve", run, status.plan, person, **shown)
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{run} did not come to gate {gate} within {seconds:g} s")

    async def _submit(
        self, verb: Verb, target: str, plan: str, person: str, **given: Any
    ) -> Submitted:
        now = datetime.now(UTC)
        order = make(
            verb,
            target,
            plan=plan,
            person=person,
            issued=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            expires=f"{now + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
            nonce=secrets.token_hex(16),
            **given,
        )
        text = bytes_to_sign(order)
        envelope = seal(text, sign_with_key(self.keys[person], text))
        handle = self.client.get_workflow_handle(target)
        submitted: Submitted = await handle.execute_update(
            "submit_order", envelope, result_type=Submitted
        )
        if not submitted.verdict.accepted:
            raise RuntimeError(f"an order to {verb} was refused: {submitted.verdict.said}")
        return submitted


def make_keys(folder: Path) -> dict[str, Path]:
    """A fresh key for each person."""
    folder.mkdir(parents=True)
    keys: dict[str, Path] = {}
    for person in PEOPLE:
        keys[person] = folder / person
        key = asyncssh.generate_private_key("ssh-ed25519", comment=person)
        key.write_private_key(str(keys[person]))
        key.write_public_key(f"{keys[person]}.pub")
        keys[person].chmod(0o600)
    return keys


def make_policy(keys: dict[str, Path]) -> Policy:
    """Who may do what."""
    people = [
        {"name": who, "roles": [role], "keys": [Path(f"{keys[who]}.pub").read_text().strip()]}
        for who, role in PEOPLE.items()
    ]
    said = {"kind": "Policy", "name": "bench", "environment": "bench", "people": people, "may": MAY}
    return Policy.model_validate(said, strict=False)


def make_release(folder: Path, version: str) -> Release:
    """A release of the idle daemon; its archive lies in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        body = DAEMON.replace("{version}", version).encode()
        info = tarfile.TarInfo("daemon")
        info.size, info.mode = len(body), 0o755
        tar.addfile(info, io.BytesIO(body))
    path = folder / f"daemon-{version}.tar"
    path.write_bytes(content.getvalue())
    artifact = {
        "digest": hashlib.sha256(content.getvalue()).hexdigest(),
        "length": len(content.getvalue()),
        "source": str(path),
    }
    said = {
        "kind": "Release",
        "component": "daemon",
        "version": version,
        "artifacts": {"linux/amd64": artifact},
        "upgrade_from": ">=1.0.0",
        "downgrade_to": ">=1.0.0",
    }
    return Release.model_validate(said, strict=False)


def make_fleet(folder: Path, name: str, nodes: int, transport: str) -> Fleet:
    """A fleet of so many nodes below ``folder``."""
    said: dict[str, Json] = {
        "kind": "Fleet",
        "name": name,
        "environment": "bench",
        "release": "1.0.0.yaml",
        "transport": transport,
        "root": str(folder / "nodes" / "{node.name}"),
        "files": {"daemon.conf": "name = {node.name}\nrelease = {release.version}\n"},
        "run": {
            "argv": ["{node.current}/daemon"],
            **({"user": "root"} if os.geteuid() == 0 else {}),
        },
        "nodes": [{"name": f"n{index:05}"} for index in range(nodes)],
    }
    return Fleet.model_validate(said, strict=False)


@asynccontextmanager
async def opened(nodes: int, transport: str, **settings: Any) -> AsyncIterator[Home]:
    """A home in a folder of its own, with engine and worker running; both end with the block.

    The first release is remembered as what the fleet begins with; ``Home.ensure`` installs it.
    """
    folder = Path(tempfile.mkdtemp(prefix="kedge-bench-"))
    name = f"b-{secrets.token_hex(3)}"
    known = Settings.load(
        home=folder / "home",
        task_queue=f"queue-{name}",
        log_level="warning",
        **settings,
    )
    codec.ensure(known)
    engine, worker = Engine(known), BackgroundWorker(known)
    drivers = drivers_of(known)
    try:
        keys = make_keys(folder / "keys")
        state = await asyncio.to_thread(engine.start)
        client = await connect(known, patience=10)
        home = Home(
            settings=known,
            engine=engine,
            worker=worker,
            client=client,
            drivers=drivers,
            name=name,
            policy=make_policy(keys),
            fleet=make_fleet(folder, name, nodes, transport),
            keys=keys,
            folder=folder,
        )
        await drivers.pins.pin(name, home.policy)
        await home.keep("1.0.0")
        await drivers.fleets.remember(name, home.fleet, home.release("1.0.0"))
        await asyncio.to_thread(worker.start, state.address)
        yield home
    finally:
        await drivers.aclose()
        await asyncio.to_thread(worker.stop)
        await asyncio.to_thread(engine.stop)
        shutil.rmtree(folder, ignore_errors=True)
