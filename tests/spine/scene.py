"""A whole scene for tests: people with keys, a fleet, two releases, a plan, a worker in this process, orders."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import secrets
import signal
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from kedge.drivers.registry import Drivers
from kedge.drivers.signers import sign_with_key
from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_host import SimHost, State
from kedge.model.base import Json, canonical
from kedge.model.fleet import Fleet
from kedge.model.order import Envelope, OrderVerdict
from kedge.model.plan import Artifact, Choice, Plan, PlannedNode, Verb
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.run import RunEnd, Submitted
from kedge.model.runbook import Runbook
from kedge.model.status import FleetStatus, RunStatus
from kedge.plan.compile import compile_plan
from kedge.plan.digest import plan_digest
from kedge.plan.places import planned_nodes
from kedge.trust.orders import bytes_to_sign, make, seal
from tests.daemons import AS_US
from worker.processes import identify
from worker.settings import Settings
from worker.wiring import drivers_of, worker_of

PEOPLE = {
    "olga": ("operator",),
    "ada": ("sre",),
    "bob": ("db-owner",),
    "eve": ("oncall",),
}
MAY: dict[str, list[str]] = {
    "start": ["operator"],
    "approve": ["sre", "db-owner"],
    "reject": ["sre", "db-owner"],
    "pause": ["operator", "oncall"],
    "resume": ["operator", "oncall"],
    "abort": ["operator", "oncall"],
    "decide": ["operator", "oncall"],
    "rollback": ["oncall"],
}

DAEMON = """#!/bin/sh
# A daemon that says each real start and stop in a log outside of everything kedge writes.
echo "start $1 {version} $$" >> "$2"
trap 'echo "stop $1 {version} $$" >> "$2"; exit 0' TERM
while :; do sleep 0.05; done
"""


def archive(files: dict[str, bytes]) -> bytes:
    """A tar archive with these files, each executable."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, body in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), 0o755
            tar.addfile(info, io.BytesIO(body))
    return content.getvalue()


@dataclass
class Scene:
    """Everything of one test; ``fleet`` is also the name of the fleet's workflow (``fleet/<name>``)."""

    client: Client
    settings: Settings
    home: Path
    drivers: Drivers
    name: str
    policy: Policy
    document: Fleet
    releases: dict[str, Release]
    keys: dict[str, Path]
    nonce: Callable[[], str] = field(default=lambda: secrets.token_hex(16))
    meddled: str = ""
    """What the test did to this scene behind kedge's back, so that its evidence need not verify at the end."""

    def runbook(self, **given: Json) -> Runbook:
        """A small runbook: canary, gate, the rest; ``given`` replaces whole keys."""
        probe: dict[str, Json] = {"service": {"running": True}}
        base: dict[str, Json] = {
            "kind": "Runbook",
            "name": "roll",
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
                    "bake": {"duration": "200ms", "interval": "100ms"},
                    "gate": "ship",
                },
                "widen": ["100%"],
                "max_unavailable": 2,
            },
            "gates": {"ship": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}}},
            "retry": {"attempts": 2, "backoff": "50ms"},
        }
        return Runbook.model_validate({**base, **given}, strict=False)

    def plan(
        self, runbook: Runbook | None = None, before: str = "1.0.0", after: str = "1.1.0"
    ) -> Plan:
        """The plan from one release to the other."""
        return compile_plan(
            self.document,
            self.releases[before],
            self.releases[after],
            runbook or self.runbook(),
            self.policy,
        )

    async def ensure(self) -> None:
        """Bring the fleet up on its first release."""
        result = await self.client.execute_workflow(
            "Ensure",
            self.name,
            id=f"ensure/{self.name}",
            task_queue=self.settings.task_queue,
        )
        assert not result["problems"], result

    async def look(self) -> dict[str, Any]:
        """How the nodes are, as ``kedge doctor`` asks."""
        result: dict[str, Any] = await self.client.execute_workflow(
            "Look", self.name, id=f"look/{self.name}", task_queue=self.settings.task_queue
        )
        return result

    # -- orders --------------------------------------------------------------------------------------------------

    def envelope(
        self,
        verb: Verb,
        target: str,
        plan: str,
        who: str,
        **given: Any,
    ) -> Envelope:
        """A signed order."""
        now = datetime.now(UTC)
        order = make(
            verb,
            target,
            plan=plan,
            person=who,
            issued=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            expires=f"{now + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
            nonce=self.nonce(),
            **given,
        )
        text = bytes_to_sign(order)
        return seal(text, sign_with_key(self.keys[who], text))

    async def submit(self, workflow: str, envelope: Envelope) -> Submitted:
        """Send an order as an update; waits until the workflow is there and a worker answers."""
        handle = self.client.get_workflow_handle(workflow)
        answer: Submitted = await handle.execute_update(
            "submit_order", envelope, result_type=Submitted
        )
        return answer

    async def start(self, plan: Plan, who: str = "olga") -> str:
        """Store a plan and order its start; the run's id."""
        digest = await self.drivers.blobs.put(canonical(plan))
        assert digest == plan_digest(plan)
        await self.open_fleet()
        submitted = await self.submit(
            f"fleet/{self.name}", self.envelope("start", f"fleet/{self.name}", digest, who)
        )
        assert submitted.verdict.accepted, submitted.verdict
        assert submitted.run is not None
        return submitted.run

    async def open_fleet(self) -> WorkflowHandle[Any, Any]:
        """The fleet's own workflow, started if it is not there."""
        return await self.client.start_workflow(
            "Fleet",
            self.name,
            id=f"fleet/{self.name}",
            task_queue=self.settings.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )

    async def order(self, verb: Verb, run: str, who: str, **given: Any) -> OrderVerdict:
        """Sign and send an order about a run, bound to what the run shows now."""
        status = await self.status(run)
        waiting = status.waiting
        if verb in ("approve", "reject", "decide") and waiting is not None:
            given = {"subject": waiting.subject, "shown": waiting.shown, **given}
        return (await self.submit(run, self.envelope(verb, run, status.plan, who, **given))).verdict

    async def signal(self, workflow: str, *sent: Any, name: str = "order") -> None:
        """A plain signal with whatever it is given, as the stock command line would send it."""
        await self.client.get_workflow_handle(workflow).signal(name, args=sent)

    async def approve(self, run: str, *people: str) -> None:
        """Everybody approves the open gate."""
        for who in people or ("ada", "bob"):
            verdict = await self.order("approve", run, who)
            assert verdict.accepted, verdict

    async def decide(self, run: str, choice: Choice, who: str = "olga") -> None:
        """Decide the parked item."""
        verdict = await self.order("decide", run, who, choice=choice)
        assert verdict.accepted, verdict

    async def rollback(self, who: str = "eve") -> str:
        """An on-call rollback of whatever holds or held the lease."""
        fleet = await self.fleet_status()
        assert fleet.plan is not None
        target = f"fleet/{self.name}"
        submitted = await self.submit(target, self.envelope("rollback", target, fleet.plan, who))
        assert submitted.verdict.accepted, submitted.verdict
        assert submitted.run is not None
        return submitted.run

    # -- looking -------------------------------------------------------------------------------------------------

    async def status(self, run: str) -> RunStatus:
        """What a run says of itself."""
        handle = self.client.get_workflow_handle(run)
        status: RunStatus = await handle.query("status", result_type=RunStatus)
        return status

    async def fleet_status(self) -> FleetStatus:
        """What the fleet says of itself."""
        handle = self.client.get_workflow_handle(f"fleet/{self.name}")
        status: FleetStatus = await handle.query("status", result_type=FleetStatus)
        return status

    async def until(
        self, run: str, wanted: Callable[[RunStatus], bool] | str, seconds: float = 60
    ) -> RunStatus:
        """Wait until a run's status is as wanted (a phase, or a condition); fails with the last status."""
        ends = asyncio.get_running_loop().time() + seconds
        last: object = None
        while asyncio.get_running_loop().time() < ends:
            try:
                status = await self.status(run)
            except (RPCError, WorkflowUpdateFailedError) as error:
                last = error
            else:
                last = status
                if (status.phase == wanted) if isinstance(wanted, str) else wanted(status):
                    return status
                if status.ended is not None:
                    break
            await asyncio.sleep(0.05)
        raise AssertionError(f"{run} did not come to {wanted}: {last}")

    async def end_of(self, run: str, seconds: float = 90) -> RunEnd:
        """How a run ends; fails with its last status when it does not."""
        handle = self.client.get_workflow_handle(run, result_type=RunEnd)
        try:
            return await asyncio.wait_for(handle.result(), seconds)
        except TimeoutError:
            raise AssertionError(f"{run} does not end: {await self.status(run)}") from None

    async def freed(self) -> FleetStatus:
        """Wait until nobody has the lease."""

        async def free() -> bool:
            return (await self.fleet_status()).holder is None

        await eventually(free)
        return await self.fleet_status()

    async def records(self, what: str | None = None) -> list[dict[str, Any]]:
        """The fleet's evidence, all of it or of one kind."""
        found: list[dict[str, Any]] = []
        since = 0
        while page := await self.drivers.evidence.read(self.name, since):
            found += [entry.record for entry in page if isinstance(entry.record, dict)]
            since = page[-1].seq
        return [one for one in found if what is None or one.get("what") == what]

    async def waits_for(self, run: str, subject: str) -> RunStatus:
        """Wait until a gate or a parked item (by the beginning of its name) is open."""
        return await self.until(
            run, lambda s: s.waiting is not None and s.waiting.subject.startswith(subject)
        )

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """A worker in this process for the length of the block."""
        async with worker_of(self.settings, self.client, self.drivers):
            yield

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """A worker, and the fleet brought up on its first release."""
        async with self.working():
            await self.ensure()
            yield

    # -- simulated hosts -----------------------------------------------------------------------------------------

    @property
    def sim(self) -> SimTransport:
        """The simulator that this scene's worker has."""
        found = self.drivers.transport.named("sim")
        assert isinstance(found, SimTransport)
        return found

    def node(self, name: str) -> PlannedNode:
        """A node as every plan has it."""
        return next(node for node in planned_nodes(self.document) if node.name == name)

    def host(self, name: str) -> SimHost:
        """What a simulated host really is."""
        return self.sim.host(self.node(name))

    def digest(self, version: str) -> str:
        """The digest of a release's archive."""
        return self.releases[version].artifacts["linux/amd64"].digest

    def running(self) -> dict[str, str | None]:
        """The version that really runs on each simulated node."""
        versions = {self.digest(version): version for version in self.releases}
        now = time.time()
        states = {node.name: self.host(node.name).state for node in self.document.nodes}
        return {
            name: versions.get(state.running_release or "") if state.alive(now) else None
            for name, state in states.items()
        }

    def happened(self) -> list[tuple[str, State]]:
        """Every change of a simulated host since the beginning, in order: the node and its new state."""
        file = self.settings.home / "sim" / "hosts.jsonl"
        found: list[tuple[str, State]] = []
        for line in file.read_text().splitlines():
            change = json.loads(line)
            if "state" in change:
                found.append((change["host"].rsplit("#", 1)[1], State(*change["state"])))
        return found


async def eventually(
    holds: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 60
) -> None:
    """Wait until something holds."""
    ends = asyncio.get_running_loop().time() + seconds
    while True:
        found = holds()
        if found if isinstance(found, bool) else await found:
            return
        assert asyncio.get_running_loop().time() < ends, f"not within {seconds:g} seconds"
        await asyncio.sleep(0.02)


def make_keys(folder: Path) -> dict[str, Path]:
    """A fresh ed25519 key for each person."""
    folder.mkdir(parents=True)
    keys: dict[str, Path] = {}
    for person in PEOPLE:
        path = folder / person
        key = asyncssh.generate_private_key("ssh-ed25519", comment=person)
        key.write_private_key(str(path))
        key.write_public_key(f"{path}.pub")
        path.chmod(0o600)
        keys[person] = path
    return keys


def make_policy(keys: dict[str, Path]) -> Policy:
    """Who may do what in tests."""
    people = [
        {"name": who, "roles": list(roles), "keys": [Path(f"{keys[who]}.pub").read_text().strip()]}
        for who, roles in PEOPLE.items()
    ]
    said = {"kind": "Policy", "name": "test", "environment": "test", "people": people, "may": MAY}
    return Policy.model_validate(said, strict=False)


def make_release(folder: Path, version: str, files: dict[str, bytes]) -> Release:
    """A release of the test daemon; its archive lies in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = archive(files)
    path = folder / f"daemon-{version}.tar"
    path.write_bytes(content)
    said = {
        "kind": "Release",
        "component": "daemon",
        "version": version,
        "artifacts": {
            "linux/amd64": {
                "digest": hashlib.sha256(content).hexdigest(),
                "length": len(content),
                "source": str(path),
            }
        },
        "upgrade_from": ">=1.0.0",
        "downgrade_to": ">=1.0.0",
    }
    return Release.model_validate(said, strict=False)


def make_scene(
    client: Client,
    home: Path,
    *,
    nodes: int = 3,
    transport: str = "sim",
    options: dict[str, Json] | None = None,
    fleet: dict[str, Json] | None = None,
    daemon: str = DAEMON,
    **settings: Any,
) -> Scene:
    """A scene with its own task queue, fleet name, home and keys.

    ``fleet`` replaces whole keys of the Fleet document, ``daemon`` is the program of every release.
    """
    name = f"t-{secrets.token_hex(4)}"
    keys = make_keys(home / "keys")
    policy = make_policy(keys)
    releases = {
        version: make_release(
            home / "releases",
            version,
            {"daemon": daemon.replace("{version}", version).encode()},
        )
        for version in ("1.0.0", "1.1.0", "1.2.0")
    }
    document = Fleet.model_validate(
        {
            "kind": "Fleet",
            "name": name,
            "environment": "test",
            "release": "1.0.0.yaml",
            "transport": transport,
            "options": options or {},
            "root": str(home / "nodes" / "{node.name}"),
            "run": {
                "argv": ["{node.current}/daemon", "{node.name}", str(home / "truth.log")],
                **(AS_US if transport == "local" else {}),
            },
            "nodes": [{"name": f"n{index}"} for index in range(nodes)],
            **(fleet or {}),
        },
        strict=False,
    )
    settings.setdefault("graceful_shutdown_seconds", 0)
    known = Settings.load(home=home / "home", task_queue=f"queue-{name}", **settings)
    return Scene(
        client=client,
        settings=known,
        home=home,
        drivers=drivers_of(known),
        name=name,
        policy=policy,
        document=document,
        releases=releases,
        keys=keys,
    )


async def settle(scene: Scene) -> None:
    """Pin the policy, keep the archives, and remember the fleet, as ``kedge up`` does."""
    for release in scene.releases.values():
        for platform, item in release.artifacts.items():
            await scene.drivers.artifacts.keep(
                Artifact(
                    platform=platform, digest=item.digest, length=item.length, source=item.source
                )
            )
    await scene.drivers.pins.pin(scene.name, scene.policy)
    await scene.drivers.fleets.remember(scene.name, scene.document, scene.releases["1.0.0"])


def end_daemons(scene: Scene, node: str = "*") -> None:
    """End the daemons of a local fleet: they outlive kedge on purpose, and would outlive the test."""
    for kept in scene.home.glob(f"nodes/{node}/.kedge/service.json"):
        one = json.loads(kept.read_text())
        identity = identify(one["pid"])
        if identity is not None and identity.started == str(one["start"]):
            os.kill(one["pid"], signal.SIGKILL)
