"""Floods: whoever reaches the frontend can fill neither a history nor the evidence, nor make a run or a fleet deaf."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.service import RPCError

from kedge.model.order import OrderVerdict, Rule
from kedge.plan.lease import unproven
from tests.spine.scene import Scene, make_scene, settle
from workflows.ordered import KEPT_REFUSALS, MOST_ORDERS

T = TypeVar("T")


@pytest.fixture
async def scene(client: Client, tmp_path: Path) -> Scene:
    """Three simulated nodes."""
    made = make_scene(client, tmp_path)
    await settle(made)
    return made


async def flood(scene: Scene, workflow: str, count: int) -> None:
    """That many signals that are no orders, each another one."""
    for start in range(0, count, 50):
        await asyncio.gather(
            *(scene.signal(workflow, f"junk {number}") for number in range(start, start + 50))
        )


async def patiently(say: Callable[[], Awaitable[T]]) -> T:
    """What a person does who is told to send it again in a moment."""
    for _ in range(100):
        try:
            return await say()
        except (WorkflowUpdateFailedError, RPCError):
            await asyncio.sleep(0.2)
    return await say()


@pytest.mark.temporal
async def test_a_flood_of_junk_leaves_a_run_and_its_fleet_hearing(scene: Scene) -> None:
    fleet = f"fleet/{scene.name}"
    async with scene.working():
        await scene.ensure()
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        await flood(scene, run, MOST_ORDERS + 200)
        await flood(scene, fleet, MOST_ORDERS + 50)
        for who in ("ada", "bob"):
            # A history full of junk is renewed meanwhile: the gate is shown anew before somebody can sign it.
            await scene.waits_for(run, "ship")
            await patiently(partial(scene.approve, run, who))
        assert (await scene.end_of(run)).phase == "done"
        back = await patiently(scene.rollback)
        assert (await scene.end_of(back)).phase == "rolled-back"
    refused = [one for one in await scene.records("order") if not one["accepted"]]
    assert 0 < len(refused) <= 2 * KEPT_REFUSALS
    for workflow in (run, fleet):
        handle = scene.client.get_workflow_handle(workflow)
        assert (await handle.describe()).history_length < 10_000


@pytest.mark.parametrize("rule", ["unreadable", "signature", "unknown-key"])
def test_what_anybody_can_make_is_only_counted_in_a_flood(rule: Rule) -> None:
    assert unproven(OrderVerdict(accepted=False, rule=rule, said="", digest="0" * 64))


@pytest.mark.parametrize("rule", ["role", "expired", "not-open"])
def test_what_a_person_signed_is_always_evidence(rule: Rule) -> None:
    assert not unproven(OrderVerdict(accepted=False, rule=rule, said="", digest="0" * 64))
