"""Plans and statuses to draw: an etcd fleet of five, and one of five hundred."""

from __future__ import annotations

from typing import Any

from kedge.model.order import OrderVerdict, Tally
from kedge.model.plan import (
    Configuration,
    DocumentRef,
    Gate,
    Leg,
    Plan,
    PlannedNode,
    PlannedRelease,
    PointOfNoReturn,
    Program,
    ServiceTemplate,
    Step,
    Wave,
    WayBack,
)
from kedge.model.run import Failure
from kedge.model.status import RunStatus, Showing, Waiting

NOW = "2026-03-01T12:10:00Z"
PLAN_DIGEST = "ab" * 32


def release(version: str) -> PlannedRelease:
    return PlannedRelease(
        component="etcd",
        version=version,
        reports=version,
        document="0" * 64,
        artifacts=(),
        configuration=Configuration(service=ServiceTemplate(argv=("bin/etcd",))),
    )


def plan(nodes: int = 5) -> Plan:
    """Canary of one, a wave of most, the last node behind the point of no return."""
    legs = (Leg(steps=(Step(name="stage", op="stage", timeout=60.0),)),)
    rest = tuple(range(1, nodes - 1))
    return Plan(
        fleet=DocumentRef(name="etcd", digest="1" * 64),
        environment="test",
        runbook=DocumentRef(name="etcd-minor", digest="2" * 64),
        policy=DocumentRef(name="people", digest="3" * 64),
        before=release("3.5.0"),
        after=release("3.5.1"),
        nodes=tuple(
            PlannedNode(
                name=f"etcd-{index + 1}",
                address="127.0.0.1",
                platform="linux/amd64",
                root=f"/srv/etcd-{index + 1}",
                transport="sim",
                service="process",
            )
            for index in range(nodes)
        ),
        programs=(Program(name="forward", legs=legs),),
        waves=(
            Wave(index=0, name="canary", batches=((0,),), max_unavailable=1),
            Wave(index=1, name="followers", batches=(rest,), max_unavailable=2, gate="ship-it"),
            Wave(
                index=2, name="last-node", batches=((nodes - 1,),), max_unavailable=1, gate="commit"
            ),
        ),
        gates=(
            Gate(name="ship-it", threshold=2, roles=("sre",), expires=3600.0),
            Gate(name="commit", threshold=2, roles=("db-owner",), expires=3600.0),
        ),
        commit=PointOfNoReturn(wave=2, gate="commit", lost="the cluster version rises to 3.5.1"),
        way_back=(
            WayBack(from_wave=0, kind="none"),
            WayBack(from_wave=1, kind="switch-back"),
            WayBack(from_wave=3, kind="forbidden"),
        ),
    )


def status(**given: Any) -> RunStatus:
    base = RunStatus(
        run="upgrade/etcd/1",
        fleet="etcd",
        kind="upgrade",
        plan=PLAN_DIGEST,
        epoch=7,
        phase="widening",
        said="wave followers: 3 nodes, 2 at a time",
        requester="olga",
        before="3.5.0",
        after="3.5.1",
        waves=3,
        wave=1,
        nodes=5,
        nodes_done=1,
        started="2026-03-01T12:07:47Z",
        seconds={"preflight": 3.2},
    )
    return base.model_copy(update=given)


def verdict(person: str) -> OrderVerdict:
    return OrderVerdict(
        accepted=True,
        rule="accepted",
        said=f"{person} says approve",
        digest="4" * 64,
        verb="approve",
        person=person,
    )


def at_gate() -> RunStatus:
    """Waits at ship-it; alice signed, one more is needed."""
    showing = Showing(
        run="upgrade/etcd/1",
        plan=PLAN_DIGEST,
        subject="ship-it",
        title="gate ship-it",
        said=("3.5.0 → 3.5.1", "1 of 5 nodes done", "next: wave followers, 3 nodes, 2 at a time"),
        wave=1,
        waves=3,
        nodes_done=1,
        nodes=5,
        reversible="switch-back",
    )
    tally = Tally(gate="ship-it", threshold=2, signed=(verdict("alice"),), missing=1, met=False)
    return status(
        phase="gate",
        said="waits for gate ship-it",
        waiting=Waiting(
            kind="gate",
            subject="ship-it",
            since="2026-03-01T12:06:50Z",
            until="2026-03-01T13:06:50Z",
            showing=showing,
            shown="5" * 64,
            tally=tally,
        ),
    )


def failure(node: int = 2) -> Failure:
    return Failure(
        node=node,
        name=f"etcd-{node + 1}",
        program="forward",
        leg=0,
        step="healthy",
        type="NotHealthy",
        said="not healthy for 5 s within 120 s: connection refused",
    )


def parked() -> RunStatus:
    """etcd-3 did not get healthy; three choices."""
    failures = (failure(),)
    showing = Showing(
        run="upgrade/etcd/1",
        plan=PLAN_DIGEST,
        subject="wave-1",
        title="wave: etcd-3 at healthy: NotHealthy",
        said=("3.5.0 → 3.5.1", "2 of 5 nodes done"),
        wave=1,
        waves=3,
        nodes_done=2,
        nodes=5,
        failures=failures,
        reversible="switch-back",
        choices=("retry", "skip", "rollback", "abort"),
    )
    return status(
        phase="parked",
        said="wave: etcd-3 at healthy: NotHealthy",
        nodes_done=2,
        failures=failures,
        waiting=Waiting(
            kind="parked",
            subject="wave-1",
            since="2026-03-01T12:09:56Z",
            showing=showing,
            shown="6" * 64,
        ),
    )
