"""A policy that changes in the middle of a run: it takes power away at once, and gives none to a run under way."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.model.base import Json, canonical, digest_of
from kedge.model.policy import Person, Policy
from kedge.model.run import RunEnd
from kedge.trust.policies import policy_text, text_digest
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, make_keys
from tests.spine.test_commit import GUARDED, NEW, OLD, committed

pytestmark = pytest.mark.temporal

BOOK: dict[str, Json] = {
    "waves": {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1},
    "retry": {"attempts": 2, "backoff": "50ms"},
    "gates": {"ship": {"approvals": {"threshold": 2, "roles": ["sre", "db-owner"]}}},
}


async def at_the_gate(scene: Scene) -> str:
    run = await scene.start(scene.plan(scene.runbook(**BOOK)))
    await scene.waits_for(run, "ship")
    return run


def successor(policy: Policy, **changes: Any) -> Policy:
    """The next version."""
    fields = {"version": policy.version + 1, "previous": text_digest(policy_text(policy))}
    return Policy(**{**dict(policy), **fields, **changes})


async def change(scene: Scene, policy: Policy) -> None:
    """Who has the machine pins it."""
    await scene.drivers.pins.pin(scene.name, policy)


def newcomer(scene: Scene, *roles: str) -> Person:
    """Somebody with a key, who is in no policy yet."""
    keys = make_keys(scene.home / f"more-{len(scene.keys)}")
    scene.keys["zoe"] = keys["ada"]
    line = keys["ada"].with_name("ada.pub").read_text().strip()
    return Person(name="zoe", roles=roles, keys=(line,))


async def test_who_is_added_by_a_change_has_no_say_in_a_run_under_way(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await at_the_gate(scene)
        more = successor(
            scene.policy, people=(*scene.policy.people, newcomer(scene, "sre", "operator"))
        )
        await change(scene, more)
        assert (await scene.status(run)).policy == digest_of(scene.policy) != digest_of(more)
        for verb in ("approve", "pause", "abort"):
            given: dict[str, Any] = {} if verb == "approve" else {"subject": ""}
            found = await scene.order(verb, run, "zoe", **given)
            assert found.rule == "unknown-person", found.said
            assert "a change gives no power over it" in found.said
        # In a new run zoe has all of it; in this one the others go on as they did.
        await scene.approve(run, "ada", "bob")
        assert (await scene.end_of(run)).phase == "done"
        await scene.freed()
        scene.policy = more
        other = await scene.start(scene.plan(scene.runbook(**BOOK), "1.1.0", "1.2.0"), "zoe")
        await scene.waits_for(other, "ship")
        assert (await scene.order("pause", other, "zoe")).accepted


async def test_a_role_that_a_change_adds_does_not_count_at_a_gate_of_a_run_under_way(
    stage: Stage,
) -> None:
    scene = await stage()
    async with scene.playing():
        run = await at_the_gate(scene)
        people = tuple(
            Person(name="olga", roles=("operator", "sre"), keys=person.keys)
            if person.name == "olga"
            else Person(name="eve", roles=("oncall", "sre"), keys=person.keys)
            if person.name == "eve"
            else person
            for person in scene.policy.people
        )
        await change(scene, successor(scene.policy, people=people))
        found = await scene.order("approve", run, "eve")
        assert found.rule == "role", found.said
        await scene.approve(run, "ada")
        status = await scene.status(run)
        assert status.waiting is not None
        assert status.waiting.tally is not None
        assert status.waiting.tally.missing == 1


async def test_a_change_that_asks_for_more_stops_a_run_under_way(stage: Stage) -> None:
    scene = await stage()
    async with scene.playing():
        run = await at_the_gate(scene)
        stricter = Policy.model_validate(
            {
                **successor(scene.policy).model_dump(mode="json"),
                "gates": {"every": {"threshold": 3}},
            },
            strict=False,
        )
        await change(scene, stricter)
        await scene.approve(run, "ada", "bob")
        parked = await scene.waits_for(run, "wave")
        assert parked.waiting is not None
        assert "the policy for 3" in parked.waiting.showing.title
        assert scene.running() == {"n0": "1.1.0", "n1": "1.0.0", "n2": "1.0.0"}


@pytest.mark.parametrize("how", ["revoked", "taken out"])
async def test_a_gate_is_asked_again_when_who_signed_it_was_taken_out(
    stage: Stage, how: str
) -> None:
    scene = await stage()
    more = newcomer(scene, "sre")
    scene.policy = scene.policy.model_copy(update={"people": (*scene.policy.people, more)})
    await change(scene, scene.policy)
    async with scene.playing():
        run = await at_the_gate(scene)
        assert (await scene.order("pause", run, "olga")).accepted
        await scene.approve(run, "ada", "bob")
        await scene.until(run, "paused")
        if how == "revoked":
            less = successor(scene.policy, revoked={"people": ("ada",)})
        else:
            people = tuple(person for person in scene.policy.people if person.name != "ada")
            less = successor(scene.policy, people=people)
        await change(scene, less)
        assert (await scene.order("resume", run, "olga")).accepted
        parked = await scene.until(run, "parked")
        assert parked.waiting is not None
        assert "lacks 1 signature(s)" in parked.waiting.showing.title
        assert "retry asks ship again" in parked.waiting.showing.title
        await scene.decide(run, "retry")
        await scene.waits_for(run, "ship")
        # ada's word counts no more; what bob signed is asked for anew with the rest.
        assert (await scene.order("approve", run, "ada")).rule in ("revoked", "unknown-person")
        await scene.approve(run, "bob", "zoe")
        end: RunEnd = await scene.end_of(run)
        assert end.phase == "done", end.said
        allowed = [one for one in await scene.records("allowed") if one["run"] == run]
        assert any(len(one["policies"]) == 2 for one in allowed)


async def test_a_way_back_asks_for_its_gate_again_when_who_signed_it_was_revoked(
    stage: Stage,
) -> None:
    scene = await stage()
    owner = newcomer(scene, "db-owner")
    scene.policy = scene.policy.model_copy(update={"people": (*scene.policy.people, owner)})
    await change(scene, scene.policy)
    async with scene.playing():
        await committed(scene, GUARDED)
        back = await scene.rollback()
        await scene.waits_for(back, "data-loss")
        assert (await scene.order("pause", back, "eve")).accepted
        await scene.approve(back, "bob")
        await scene.until(back, "paused")
        await change(scene, successor(scene.policy, revoked={"people": ("bob",)}))
        assert (await scene.order("resume", back, "eve")).accepted
        parked = await scene.until(back, "parked")
        assert parked.waiting is not None
        assert "the gate data-loss lacks 1 signature(s)" in parked.waiting.showing.title
        assert "retry asks data-loss again" in parked.waiting.showing.title
        assert scene.running() == NEW, "no data was restored on a word that counts no more"
        await scene.decide(back, "retry")
        await scene.waits_for(back, "data-loss")
        assert (await scene.order("approve", back, "bob")).rule == "revoked"
        assert scene.running() == NEW
        await scene.approve(back, "zoe")
        end: RunEnd = await scene.end_of(back)
    assert end.phase == "rolled-back", end.said
    assert scene.running() == OLD


async def test_a_way_back_is_ordered_by_who_may_now(stage: Stage) -> None:
    """An order to a fleet goes by the policy that is pinned; the way back then goes by it and by none older."""
    scene = await stage()
    async with scene.playing():
        run = await at_the_gate(scene)
        await scene.approve(run, "ada", "bob")
        await scene.end_of(run)
        await scene.freed()
        people = tuple(person for person in scene.policy.people if person.name != "eve")
        people += (newcomer(scene, "oncall"),)
        await change(scene, successor(scene.policy, people=people))
        target = f"fleet/{scene.name}"
        plan = (await scene.fleet_status()).plan or ""
        gone = await scene.submit(target, scene.envelope("rollback", target, plan, "eve"))
        assert gone.verdict.rule == "unknown-person"
        back = await scene.rollback("zoe")
        assert (await scene.end_of(back)).phase == "rolled-back"
        assert set(scene.running().values()) == {"1.0.0"}


async def test_a_pin_that_was_put_back_is_not_gone_by(stage: Stage) -> None:
    scene = await stage()
    scene.meddled = "the policy that this was judged by is not among the pins any more"
    async with scene.playing():
        run = await at_the_gate(scene)
        less = successor(scene.policy, revoked={"people": ("ada",)})
        await change(scene, less)
        assert (await scene.order("approve", run, "ada")).rule == "revoked"
        folder = scene.settings.policy_dir
        pin = folder / f"{scene.name}.json"
        pin.write_bytes(canonical(scene.policy))
        found = await scene.order("approve", run, "ada")
        assert (found.rule, "put back" in found.said) == ("policy", True), found.said
        # With the version too, as far as somebody can reach it: who saw the later one goes on knowing it.
        (folder / scene.name / "000002.json").unlink()
        found = await scene.order("approve", run, "ada")
        assert (found.rule, "put back" in found.said) == ("policy", True), found.said
        policies = await scene.records("policy")
        assert [(one["number"], one["by"]) for one in policies] == [(1, "first"), (2, "owner")]
