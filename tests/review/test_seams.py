"""Where one part relies on another: installing and provenance, a change of policy and what must be named, twice sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.drivers.checkpoints import ensure_key
from kedge.model.policy import EvidenceRules, ReleaseRules
from tests.releases.test_runs import signed_scene
from tests.spine.conftest import Stage
from tests.spine.test_glass import WHY, at_the_gate, breakable
from tests.spine.test_policy_change import change, successor
from tests.trust import building

pytestmark = pytest.mark.temporal


async def test_nothing_is_installed_that_was_not_built_as_the_policy_asks(
    stage: Stage, tmp_path: Path
) -> None:
    scene, _ = await signed_scene(stage, tmp_path)
    assert scene.policy.releases is not None
    rules = ReleaseRules(root=scene.policy.releases.root, provenance=building.rules())
    scene.policy = scene.policy.model_copy(update={"releases": rules})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    async with scene.working():
        result = await scene.client.execute_workflow(
            "Ensure", scene.name, id=f"ensure/{scene.name}", task_queue=scene.settings.task_queue
        )
    assert result["installed"] == 0
    assert "n0: is not installed: the provenance for" in result["problems"][0]
    assert set(scene.running().values()) == {None}


async def test_what_must_be_named_stays_so_for_a_run_that_began_under_it(stage: Stage) -> None:
    scene = await stage()
    line = ensure_key(scene.settings.checkpoint_key).public.line
    rules = EvidenceRules(signers=(line,), named="required")
    scene.policy = scene.policy.model_copy(update={"evidence": rules})
    await change(scene, scene.policy)
    async with scene.playing():
        run = await at_the_gate(scene)
        await change(scene, successor(scene.policy, evidence=EvidenceRules(signers=(line,))))
        assert (await scene.order("approve", run, "ada")).rule == "evidence"


async def test_an_order_that_was_refused_after_it_was_found_good_does_not_come_again(
    stage: Stage,
) -> None:
    """The record has one place for it, and there it was refused in the end: what it did later would stand on nothing."""
    scene = await breakable(stage)
    async with scene.playing():
        run = await at_the_gate(scene)
        status = await scene.status(run)
        given = {"comment": WHY, "break_glass": True}
        order = scene.envelope("pause", run, status.plan, "olga", **given)
        await scene.client.get_workflow_handle(f"fleet/{scene.name}").terminate()
        told = (await scene.submit(run, order)).verdict
        assert (told.rule, "could not be told" in told.said) == ("break-glass", True), told.said
        await scene.open_fleet()
        assert (await scene.submit(run, order)).verdict.rule == "nonce-spent"
        other = scene.envelope("pause", run, status.plan, "olga", **given)
        assert (await scene.submit(run, other)).verdict.accepted
