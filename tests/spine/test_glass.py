"""Breaking the glass: one person alone, with a reason, and a review by somebody else that stays open until it is signed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.orders import OrderActivities
from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import ensure_key
from kedge.drivers.found_keys import make
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json, canonical, digest_of
from kedge.model.governance import BreakGlass, ReviewRule, Revoked
from kedge.model.order import Envelope, OrderVerdict
from kedge.model.policy import EvidenceRules
from kedge.model.review import Review
from kedge.model.run import GlassNotice, GlassRequest, Note, Refused, Run
from kedge.trust.evidence import Asked, verify_parts
from tests.spine.conftest import Stage
from tests.spine.scene import Scene, eventually
from worker.wiring import ground_of

pytestmark = pytest.mark.temporal

WHY = "writes are lost every second, and nobody of on-call answers"
GLASS = BreakGlass(
    roles=("operator",),
    verbs=("rollback", "pause", "abort", "decide"),
    review=ReviewRule(threshold=2, roles=("sre", "operator", "db-owner")),
)
BOOK: dict[str, Json] = {
    "waves": {"canary": {"nodes": 1, "gate": "ship"}, "widen": ["100%"], "max_unavailable": 1},
    "retry": {"attempts": 2, "backoff": "50ms"},
}


async def breakable(stage: Stage) -> Scene:
    """A scene whose policy lets operators break the glass."""
    scene: Scene = await stage()
    scene.policy = scene.policy.model_copy(update={"break_glass": GLASS})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    return scene


async def at_the_gate(scene: Scene) -> str:
    run = await scene.start(scene.plan(scene.runbook(**BOOK)))
    await scene.waits_for(run, "ship")
    return run


async def to_fleet(scene: Scene, verb: Any, who: str, **given: Any) -> OrderVerdict:
    fleet = await scene.fleet_status()
    target = f"fleet/{scene.name}"
    given = {"plan": fleet.plan, **given}
    assert given["plan"] is not None
    envelope = scene.envelope(verb, target, given.pop("plan"), who, **given)
    return (await scene.submit(target, envelope)).verdict


async def review(scene: Scene, owed: Review, who: str) -> OrderVerdict:
    return await to_fleet(scene, "review", who, plan=owed.plan, subject=owed.run, shown=owed.shown)


async def test_one_person_takes_the_fleet_back_alone_and_others_review_it(stage: Stage) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        run = await at_the_gate(scene)
        assert (await to_fleet(scene, "rollback", "olga")).rule == "role"
        alone = {"break_glass": True}
        assert (await to_fleet(scene, "rollback", "olga", **alone)).rule == "break-glass"
        assert (
            await to_fleet(scene, "rollback", "ada", **alone, comment=WHY)
        ).rule == "break-glass"
        assert (await scene.fleet_status()).reviews == ()
        broken = await to_fleet(scene, "rollback", "olga", **alone, comment=WHY)
        assert broken.accepted, broken.said
        fleet = await scene.freed()
        back = fleet.runs[-1]
        (seen,) = (await scene.status(back)).orders
        assert (seen.person, seen.break_glass) == ("olga", True)
        assert (await scene.end_of(run)).phase == "preempted"
        assert (await scene.end_of(back)).phase == "rolled-back"
        assert set(scene.running().values()) == {"1.0.0"}

        (owed,) = fleet.reviews
        assert (owed.run, owed.people) == (back, ("olga",))
        assert (owed.orders[0].verb, owed.orders[0].reason) == ("rollback", WHY)
        plan = await scene.drivers.blobs.put(canonical(scene.plan(scene.runbook(**BOOK))))
        start = await to_fleet(scene, "start", "olga", plan=plan)
        assert start.rule == "break-glass"
        assert "kedge review" in start.said

        assert (await review(scene, owed, "olga")).rule == "requester"
        assert (await review(scene, owed, "eve")).rule == "role"
        first = await review(scene, owed, "ada")
        assert first.accepted, first.said
        assert not first.closes
        (owed,) = (await scene.fleet_status()).reviews
        assert (await review(scene, owed, "ada")).rule == "duplicate-person"
        assert (await to_fleet(scene, "start", "olga", plan=plan)).rule == "break-glass"
        second = await review(scene, owed, "bob")
        assert second.accepted, second.said
        assert second.closes
        assert (await scene.fleet_status()).reviews == ()
        assert (await review(scene, owed, "bob")).rule == "not-open"
        assert (await to_fleet(scene, "start", "olga", plan=plan)).accepted
        rules = [one["rule"] for one in await scene.records("order") if one["verb"] == "review"]
        assert rules.count("accepted") == 2


async def test_the_evidence_of_the_way_back_goes_on_to_its_review_and_verifies(
    stage: Stage,
) -> None:
    scene = await breakable(stage)
    key = ensure_key(scene.settings.checkpoint_key)
    rules = EvidenceRules(signers=(key.public.line,))
    scene.policy = scene.policy.model_copy(update={"evidence": rules})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    file = scene.home / "run.evidence"
    async with scene.playing():
        await at_the_gate(scene)
        broken = await to_fleet(scene, "rollback", "olga", break_glass=True, comment=WHY)
        assert broken.accepted, broken.said
        back = (await scene.freed()).runs[-1]
        for who in ("ada", "bob"):
            (owed,) = (await scene.fleet_status()).reviews
            assert (await review(scene, owed, who)).accepted
    await desk_evidence.export(scene.drivers.evidence, scene.drivers.blobs, back, file, whole=True)
    report = verify_parts(
        desk_evidence.read_file(file), Asked(pinned={digest_of(scene.policy): scene.policy})
    )
    # The last review is signed as soon as it is written: nothing stands behind the last checkpoint.
    assert (report.findings, report.unproven, report.ended) == ((), (), True)
    assert report.signed == report.last
    signed = [
        one
        for one in report.story
        if one.said.startswith(("ada signed: review", "bob signed: review"))
    ]
    assert len(signed) == 2


async def test_a_run_tells_its_fleet_before_it_follows_who_breaks_the_glass(stage: Stage) -> None:
    scene = await breakable(stage)
    scene.policy = scene.policy.model_copy(
        update={"may": {**scene.policy.may, "decide": ("oncall",), "pause": ("oncall",)}}
    )
    await scene.drivers.pins.pin(scene.name, scene.policy)
    scene.sim.program(Fault(do="fail", op="healthy", node="n0", run="upgrade/*"))
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(**BOOK)))
        await scene.waits_for(run, "wave")
        assert (await scene.order("decide", run, "olga", choice="abort")).rule == "role"
        broken = await scene.order(
            "decide", run, "olga", choice="abort", break_glass=True, comment=WHY
        )
        assert broken.accepted, broken.said
        assert (await scene.end_of(run)).phase == "aborted"
        fleet = await scene.freed()
        (owed,) = fleet.reviews
        assert (owed.run, owed.people, len(owed.orders)) == (run, ("olga",), 1)
        assert (owed.orders[0].verb, owed.orders[0].choice) == ("decide", "abort")
        for who in ("ada", "bob"):
            (owed,) = (await scene.fleet_status()).reviews
            assert (await review(scene, owed, who)).accepted
        # What the run says again opens no second review.
        end = await scene.end_of(run)
        assert len(end.glass) == 1
        await scene.signal(
            f"fleet/{scene.name}", GlassNotice(run=run, envelope=end.glass[0]), name="glass_broken"
        )
        assert (await scene.fleet_status()).reviews == ()


async def test_a_change_of_the_policy_loses_the_fleet_no_review(
    stage: Stage, client: Client
) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        run = await at_the_gate(scene)
        status = await scene.status(run)
        broken = scene.envelope("pause", run, status.plan, "olga", break_glass=True, comment=WHY)
        assert (await scene.submit(run, broken)).verdict.accepted
    never = scene.envelope("pause", run, status.plan, "olga", break_glass=True, comment=WHY)
    scene.policy = scene.policy.model_copy(update={"revoked": Revoked(people=("olga",))})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    orders = OrderActivities(ground_of(scene.drivers, client))
    fleet = ActivityEnvironment()
    fleet.info = replace(fleet.info, workflow_id=f"fleet/{scene.name}")

    async def late(envelope: Envelope, of: str = run) -> OrderVerdict:
        notice = GlassNotice(run=of, envelope=envelope)
        return await fleet.run(orders.judge_glass, GlassRequest(fleet=scene.name, notice=notice))

    # The run accepted it while she might: the record says so, and the review is owed.
    found = await late(broken)
    assert (found.accepted, found.person, bool(found.material)) == (True, "olga", True)
    assert (await late(never)).rule == "revoked"
    assert not (await late(broken, f"upgrade/{scene.name}/77")).accepted
    # Nobody writes such a record but who judges orders.
    forged = found.model_copy(update={"digest": (await late(never)).digest})
    with pytest.raises(ApplicationError):
        await fleet.run(orders.keep_verdict, Refused(fleet=scene.name, verdict=forged))
    with pytest.raises(ApplicationError):
        await fleet.run(orders.record, forged_note(scene, run, status.plan, forged))
    assert (await late(never)).rule == "revoked"


def forged_note(scene: Scene, run: str, plan: str, verdict: OrderVerdict) -> Note:
    """A record of a workflow under the key of an order's verdict."""
    of = Run(id=run, fleet=scene.name, plan=plan, epoch=1, warrant="0" * 64)
    key = f"order/{verdict.digest}/accepted"
    return Note(run=of, key=key, record={"what": "order", **verdict.model_dump(mode="json")})


async def test_a_review_by_a_key_that_was_revoked_is_signed_anew_by_the_same_person(
    stage: Stage,
) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        await at_the_gate(scene)
        broken = await to_fleet(scene, "rollback", "olga", break_glass=True, comment=WHY)
        assert broken.accepted, broken.said
        await scene.freed()
        (owed,) = (await scene.fleet_status()).reviews
        stolen = await review(scene, owed, "bob")
        assert (stolen.accepted, stolen.closes) == (True, False)
        people = tuple(
            one.model_copy(update={"keys": (renewed(scene, "bob"),)}) if one.name == "bob" else one
            for one in scene.policy.people
        )
        changes = {"people": people, "revoked": Revoked(keys=(stolen.key,))}
        scene.policy = scene.policy.model_copy(update=changes)
        await scene.drivers.pins.pin(scene.name, scene.policy)
        by_ada = await review(scene, owed, "ada")
        assert (by_ada.accepted, by_ada.closes) == (True, False)
        assert (await scene.fleet_status()).reviews
        again = await review(scene, owed, "bob")
        assert (again.rule, again.closes) == ("accepted", True), again.said
        assert not (await scene.fleet_status()).reviews


def renewed(scene: Scene, who: str) -> str:
    """Another key of somebody, with which he signs from now on: its public line."""
    made = make(scene.home / f"{who}-again", who)
    assert made.file is not None
    scene.keys[who] = made.file
    return made.line


async def test_nobody_opens_a_review_without_an_order_that_breaks_the_glass(stage: Stage) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        run = await at_the_gate(scene)
        status = await scene.status(run)
        other = f"upgrade/{scene.name}/77"

        def said(**given: Any) -> Envelope:
            given = {"target": run, "who": "olga", "break_glass": True, "comment": WHY, **given}
            target, who = given.pop("target"), given.pop("who")
            return scene.envelope("pause", target, status.plan, who, **given)

        forged = said()
        forged = forged.model_copy(update={"order": forged.order.replace("olga", "eve")})
        wrong: list[Any] = [
            GlassNotice(run=run, envelope=forged),
            GlassNotice(run=other, envelope=said()),
            GlassNotice(run="upgrade/another/1", envelope=said(target="upgrade/another/1")),
            GlassNotice(run=run, envelope=said(who="ada")),
            GlassNotice(run=run, envelope=said(break_glass=False)),
            GlassNotice(run=run, envelope=said(comment="")),
            "nonsense",
            {"run": run},
        ]
        for notice in wrong:
            await scene.signal(f"fleet/{scene.name}", notice, name="glass_broken")
        await scene.signal(
            f"fleet/{scene.name}", GlassNotice(run=run, envelope=said()), name="glass_broken"
        )

        async def opened() -> bool:
            return len((await scene.fleet_status()).reviews) > 0

        await eventually(opened)
        (owed,) = (await scene.fleet_status()).reviews
        assert (owed.run, len(owed.orders)) == (run, 1)


async def test_a_fleet_begun_anew_in_the_engine_owes_what_its_record_says(stage: Stage) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        await at_the_gate(scene)
        broken = await to_fleet(scene, "rollback", "olga", break_glass=True, comment=WHY)
        assert broken.accepted, broken.said
        before = await scene.freed()
        back = before.runs[-1]
        await scene.client.get_workflow_handle(f"fleet/{scene.name}").terminate()
        await scene.client.start_workflow(
            "Fleet",
            args=[scene.name],
            id=f"fleet/{scene.name}",
            task_queue=scene.settings.task_queue,
        )
        assert (await scene.fleet_status()).reviews == ()
        plan = await scene.drivers.blobs.put(canonical(scene.plan(scene.runbook(**BOOK))))
        start = await to_fleet(scene, "start", "olga", plan=plan)
        assert start.rule == "break-glass"
        assert f"kedge review {back}" in start.said
        (owed,) = (await scene.fleet_status()).reviews
        assert (owed.run, owed.people, owed.orders) == (back, ("olga",), before.reviews[0].orders)
        assert (await review(scene, owed, "olga")).rule == "requester"
        for who in ("ada", "bob"):
            assert (await to_fleet(scene, "start", "olga", plan=plan)).rule == "break-glass"
            (owed,) = (await scene.fleet_status()).reviews
            assert (await review(scene, owed, who)).accepted
        assert (await to_fleet(scene, "start", "olga", plan=plan)).accepted


async def test_a_review_is_owed_though_the_policy_lets_nobody_break_the_glass_any_more(
    stage: Stage,
) -> None:
    scene = await breakable(stage)
    async with scene.playing():
        run = await at_the_gate(scene)
        fleet = scene.client.get_workflow_handle(f"fleet/{scene.name}")
        status = await scene.status(run)
        envelope = scene.envelope("pause", run, status.plan, "olga", break_glass=True, comment=WHY)
        broken = (await scene.submit(run, envelope)).verdict
        assert broken.accepted, broken.said
        # The first notice is lost with the Fleet that had it; when it is told again, nobody may break the glass any more.
        await fleet.terminate()
        await scene.client.start_workflow(
            "Fleet",
            args=[scene.name],
            id=f"fleet/{scene.name}",
            task_queue=scene.settings.task_queue,
        )
        await scene.drivers.pins.pin(
            scene.name, scene.policy.model_copy(update={"break_glass": None})
        )
        await scene.signal(
            f"fleet/{scene.name}", GlassNotice(run=run, envelope=envelope), name="glass_broken"
        )

        async def opened() -> bool:
            return len((await scene.fleet_status()).reviews) > 0

        await eventually(opened)
        (owed,) = (await scene.fleet_status()).reviews
        assert (owed.run, owed.people) == (run, ("olga",))
