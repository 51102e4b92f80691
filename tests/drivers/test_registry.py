"""The registry: names in documents find their drivers, and nothing is made before it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.drivers.ports import (
    Artifacts,
    Blobs,
    Evidence,
    Fleets,
    PolicyPins,
    SessionRequest,
    Transport,
)
from kedge.drivers.registry import (
    ARTIFACT_SOURCES,
    TRANSPORTS,
    DriverSettings,
    open_drivers,
)
from kedge.model import fleet, release
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode


def node(transport: str) -> PlannedNode:
    return PlannedNode(
        name="n1", address="sim", platform="linux/amd64", root="/sim/n1", transport=transport,
        service="process",
    )  # fmt: skip


ASKED = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=({"key": "o", "op": "observe"},))


async def test_a_node_is_reached_by_the_transport_it_names(tmp_path: Path) -> None:
    drivers = open_drivers(DriverSettings(home=tmp_path / "home"))
    end = await drivers.transport.session(node("sim"), ASKED, lambda _event: None)
    assert end.ok
    assert (tmp_path / "home" / "sim" / "hosts.jsonl").exists()
    assert drivers.transport.named("sim") is drivers.transport.named("sim")
    await drivers.aclose()


async def test_a_name_that_is_none_says_which_there_are(tmp_path: Path) -> None:
    drivers = open_drivers(DriverSettings(home=tmp_path))
    with pytest.raises(DriverError) as caught:
        await drivers.transport.session(node("pigeon"), ASKED, lambda _event: None)
    assert (caught.value.kind, caught.value.retryable) == ("NotFound", False)
    assert all(name in caught.value.message for name in TRANSPORTS)


async def test_nothing_is_made_before_it_is_used(tmp_path: Path) -> None:
    drivers = open_drivers(DriverSettings(home=tmp_path / "home", sim_in_memory=True))
    for name in TRANSPORTS:
        drivers.transport.named(name)
    await drivers.aclose()
    assert not (tmp_path / "home").exists()


def test_every_driver_is_what_its_port_asks_for(tmp_path: Path) -> None:
    drivers = open_drivers(DriverSettings(home=tmp_path))
    transport: Transport = drivers.transport
    blobs: Blobs = drivers.blobs
    artifacts: Artifacts = drivers.artifacts
    evidence: Evidence = drivers.evidence
    pins: PolicyPins = drivers.pins
    fleets: Fleets = drivers.fleets
    assert all((transport, blobs, artifacts, evidence, pins, fleets))


def test_documents_know_the_drivers_that_there_are() -> None:
    assert set(TRANSPORTS) == set(fleet.TRANSPORTS)
    assert set(ARTIFACT_SOURCES) == set(release.SOURCES)
