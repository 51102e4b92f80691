"""Whole runs with the codec: Temporal's database has nothing of them, and rotation in the middle goes unnoticed."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json
from tests.secrets.conftest import Place, Staged, found
from worker.codec import NoCodec

pytestmark = [pytest.mark.temporal, pytest.mark.timeout(240)]

NODES: Json = [{"name": f"crownnode-{at}"} for at in range(3)]
SICK = Fault(
    do="fail", op="healthy", node="crownnode-1", nth=(1, 2), type="NotHealthy",
    message="crownfailure in its log",
)  # fmt: skip
WORDS = ("crownnode-1", "crowncomment", "crownfailure")


async def whole_run(scene: Any) -> None:
    """Canary, gate, a node that parks, a decision; signals and updates, children, failures, heartbeats, queries."""
    async with scene.playing():
        scene.sim.program(SICK)
        waves = {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1}
        run = await scene.start(scene.plan(scene.runbook(waves=waves)))
        await scene.waits_for(run, "ship")
        verdict = await scene.order("approve", run, "ada", comment="crowncomment")
        assert verdict.accepted
        status = await scene.status(run)
        envelope = scene.envelope(
            "approve", run, status.plan, "bob",
            subject=status.waiting.subject, shown=status.waiting.shown,
        )  # fmt: skip
        await scene.signal(run, envelope)
        await scene.waits_for(run, "wave-1")
        assert "crownfailure" in str((await scene.status(run)).failures)
        await scene.decide(run, "retry")
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()


async def test_with_a_ring_no_word_of_a_plan_gets_into_temporals_database(
    place: Place, staged: Staged
) -> None:
    scene = await staged(await place.client(), fleet={"nodes": NODES})
    await whole_run(scene)
    place.engine.stop()
    try:
        assert found([place.database], WORDS) == {}
        # What Temporal works with itself is in the open, as the documentation says.
        assert set(found([place.database], [scene.name, "NotHealthy", "1.1.0"])) == {
            scene.name, "NotHealthy", "1.1.0",
        }  # fmt: skip
    finally:
        place.engine.start()


async def test_the_same_run_in_the_open_is_found_by_that_search(
    place: Place, staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.client.converter_of", lambda _: open_converter())
    scene = await staged(await place.client(), fleet={"nodes": NODES})
    await whole_run(scene)
    place.engine.stop()
    try:
        assert set(found([place.database], WORDS)) == set(WORDS)
    finally:
        place.engine.start()


def open_converter() -> Any:
    import dataclasses

    from temporalio.contrib.pydantic import pydantic_data_converter

    return dataclasses.replace(pydantic_data_converter, payload_codec=NoCodec())
