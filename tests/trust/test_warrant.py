"""What a run may do by the signatures it carries, whatever a workflow claims."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.model.order import Envelope
from kedge.model.plan import Plan, PointOfNoReturn, WayBack
from kedge.model.policy import GateMinimums, Minimum, Policy
from kedge.model.run import Warrant
from kedge.trust.warrant import WarrantVerdict, plan_obeys, verify_warrant
from tests.trust import world

BACK = "rollback/db/2"
NONCES = iter(f"{number:032x}" for number in range(1, 100_000))


def signed(by: str | None = None, **changes: Any) -> Envelope:
    return world.envelope(world.order(**{"nonce": next(NONCES), **changes}), by=by)


def start(**changes: Any) -> Envelope:
    fields = {
        "verb": "start",
        "target": "fleet/db",
        "subject": "",
        "shown": world.PLAN,
        "person": "alice",
    }
    return signed(**{**fields, **changes})


def approval(gate: str, person: str, **changes: Any) -> Envelope:
    return signed(**{"subject": gate, "person": person, **changes})


def approvals(
    target: str = world.RUN, **changes: tuple[Envelope, ...]
) -> dict[str, tuple[Envelope, ...]]:
    full = {
        "begin": (approval("begin", "carol", target=target),),
        "ship-it": (
            approval("ship-it", "carol", target=target),
            approval("ship-it", "bob", target=target),
        ),
        "no-return": (approval("no-return", "bob", target=target),),
    }
    return {**full, **{name.replace("_", "-"): value for name, value in changes.items()}}


def upgrade(warrant: Warrant | None = None, **how: Any) -> WarrantVerdict:
    plan: Plan = how.pop("plan", world.plan())
    policy: Policy = how.pop("policy", world.policy())
    how = {"fleet": "db", "run_id": world.RUN, "wave": 2, **how}
    return verify_warrant(
        warrant or Warrant(start=start(), approvals=approvals()), plan, world.PLAN, policy, **how
    )


def test_a_warrant_with_every_signature_carries_every_wave() -> None:
    for wave, nodes in ((0, (0,)), (1, (1,)), (2, (2, 3))):
        found = upgrade(wave=wave, nodes=nodes)
        assert found.ok, found.said
        assert found.requester == "alice"
    assert upgrade(wave=None, program="finalize").ok


def test_preflight_needs_the_start_order_alone() -> None:
    assert upgrade(Warrant(start=start()), wave=None).ok


def test_the_first_wave_needs_the_start_gate() -> None:
    assert upgrade(Warrant(start=start(), approvals={"begin": approvals()["begin"]}), wave=0).ok
    found = upgrade(Warrant(start=start()), wave=0)
    assert (found.ok, found.said) == (False, "the gate begin lacks 1 signature(s)")


STARTS: list[tuple[str, dict[str, Any], str]] = [
    ("by somebody who may not start", {"person": "carol"}, "(role)"),
    ("for another fleet", {"target": "fleet/other"}, "(target)"),
    ("for another plan", {"plan": "f" * 64}, "(plan)"),
    ("that showed another plan than it names is its own business", {"shown": "f" * 64}, ""),
    ("that is an order to pause", {"verb": "pause"}, "is not one that starts"),
    (
        "that is an order to roll back",
        {"verb": "rollback", "person": "dora"},
        "is not one that starts",
    ),
    (
        "that is an approval",
        {"verb": "approve", "subject": "begin", "person": "carol"},
        "is not one that starts",
    ),
    ("signed by another's key", {"by": "bob"}, "(unknown-key)"),
    ("that lives too long", {"expires": "2025-02-28T00:00:00Z"}, "(too-long-lived)"),
]


@pytest.mark.parametrize(
    ("changes", "said"), [row[1:] for row in STARTS], ids=[row[0] for row in STARTS]
)
def test_a_start_order(changes: dict[str, Any], said: str) -> None:
    found = upgrade(Warrant(start=start(**changes), approvals=approvals()))
    assert found.ok == (said == "")
    assert said in found.said


def test_an_order_that_expired_since_it_was_accepted_still_carries_its_run() -> None:
    """No clock is handed in: the orders were judged in time when they were accepted."""
    old = {"issued": "2001-01-01T00:00:00Z", "expires": "2001-01-01T00:10:00Z"}
    assert upgrade(Warrant(start=start(**old), approvals=approvals())).ok


GATES: list[tuple[str, tuple[Envelope, ...], bool]] = [
    ("nobody approved", (), False),
    ("one of two approved", (approval("ship-it", "carol"),), False),
    ("two approved", (approval("ship-it", "carol"), approval("ship-it", "bob")), True),
    ("the same person twice", (approval("ship-it", "carol"), approval("ship-it", "carol")), False),
    ("who asked for the run", (approval("ship-it", "carol"), approval("ship-it", "alice")), False),
    ("who may not approve", (approval("ship-it", "carol"), approval("ship-it", "dora")), False),
    ("for another run", (approval("ship-it", "carol"), approval("ship-it", "bob", target="upgrade/db/2")), False),
    ("for another gate", (approval("ship-it", "carol"), approval("no-return", "bob")), False),
    ("over another plan", (approval("ship-it", "carol"), approval("ship-it", "bob", plan="f" * 64)), False),
    ("a rejection", (approval("ship-it", "carol"), approval("ship-it", "bob", verb="reject")), False),
    ("signed by another's key", (approval("ship-it", "carol"), approval("ship-it", "bob", by="carol")), False),
    ("one bad and two good", (approval("ship-it", "dora"), approval("ship-it", "carol"), approval("ship-it", "bob")), True),
]  # fmt: skip


@pytest.mark.parametrize(("given", "ok"), [row[1:] for row in GATES], ids=[row[0] for row in GATES])
def test_a_wave_behind_a_gate(given: tuple[Envelope, ...], ok: bool) -> None:  # noqa: FBT001 - a table
    for wave in (1, 2):
        found = upgrade(Warrant(start=start(), approvals=approvals(ship_it=given)), wave=wave)
        assert found.ok == ok, found.said
    assert upgrade(Warrant(start=start(), approvals=approvals(ship_it=given)), wave=0).ok


def test_one_nonce_is_not_two_approvals() -> None:
    once = approval("ship-it", "carol", nonce="e" * 32)
    other = approval("ship-it", "bob", nonce="e" * 32)
    assert not upgrade(
        Warrant(start=start(), approvals=approvals(ship_it=(once, other))), wave=1
    ).ok


def test_an_unreadable_envelope_in_a_warrant_is_a_sentence() -> None:
    broken = Envelope(order="{", signature="x")
    assert "unreadable" in upgrade(Warrant(start=broken)).said
    found = upgrade(Warrant(start=start(), approvals=approvals(ship_it=(broken,))), wave=1)
    assert not found.ok
    assert "unreadable" in found.said


def test_the_wave_behind_the_point_of_no_return_needs_its_gate() -> None:
    warrant = Warrant(start=start(), approvals=approvals(no_return=()))
    assert upgrade(warrant, wave=1).ok
    assert "no-return" in upgrade(warrant, wave=2).said
    late = world.plan(commit=PointOfNoReturn(wave=None, gate="no-return", lost="all"))
    assert upgrade(warrant, wave=2, plan=late).ok
    assert not upgrade(warrant, wave=None, program="finalize", plan=late).ok


CLAIMS: list[tuple[str, dict[str, Any], str]] = [
    ("a node of a later wave as one of an earlier", {"wave": 0, "nodes": (3,)}, "not in wave 0"),
    ("a node that does not exist", {"wave": 2, "nodes": (9,)}, "not in wave 2"),
    ("a node in no wave", {"wave": None, "nodes": (0,)}, "none was named"),
    ("a wave that does not exist", {"wave": 3}, "no wave 3"),
    ("a wave below zero", {"wave": -1}, "no wave -1"),
    ("going back in an upgrade", {"program": "back"}, "does not run the program back"),
    ("restoring in an upgrade", {"program": "restore"}, "does not run the program restore"),
    ("another fleet", {"fleet": "other"}, "not a run of the fleet other"),
    ("a run of another fleet", {"run_id": "upgrade/other/1"}, "not a run of the fleet db"),
    ("a run of no kind", {"run_id": "fleet/db"}, "not a run"),
]


@pytest.mark.parametrize(
    ("claim", "said"), [row[1:] for row in CLAIMS], ids=[row[0] for row in CLAIMS]
)
def test_what_a_workflow_claims_is_not_believed(claim: dict[str, Any], said: str) -> None:
    found = upgrade(**claim)
    assert not found.ok
    assert said in found.said


SHUT = (
    WayBack(from_wave=0, kind="switch-back"),
    WayBack(from_wave=2, kind="forbidden", lost="all"),
)
UNGATED = tuple(wave.model_copy(update={"gate": None}) for wave in world.plan().waves)
MINIMUMS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("fewer people than the policy's minimum", {}, {"gates": GateMinimums(every=Minimum(threshold=2))}, "asks for 1 people"),
    ("a role that the policy requires", {}, {"gates": GateMinimums(point_of_no_return=Minimum(each_of=("sre",)))}, "does not ask for sre"),
    ("a way back with data loss that is too cheap", {}, {"gates": GateMinimums(data_loss=Minimum(threshold=2))}, "data-loss"),
    ("no start gate where one is required", {"start_gate": None}, {"gates": GateMinimums(start="required")}, "requires a gate"),
    ("a requester who counts by the plan alone", {"gates": (world.gate(requester_counts=True), *world.plan().gates[1:])}, {}, "the policy does not"),
    ("a gate that it lists and nobody would be asked at", {"start_gate": None}, {}, "lists the gate begin, and it stands before nothing"),
    ("another environment", {"environment": "test"}, {}, "the plan is for test"),
    ("a way back that is shut behind no gate", {"start_gate": None, "commit": None, "waves": UNGATED, "way_back": SHUT}, {}, "no way back once wave half began"),
    ("a way back that is shut behind a gate that is too cheap", {"commit": None, "way_back": SHUT}, {"gates": GateMinimums(point_of_no_return=Minimum(threshold=3))}, "no way back once wave half began"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "policy", "said"), [row[1:] for row in MINIMUMS], ids=[row[0] for row in MINIMUMS]
)
def test_a_plan_asks_for_no_less_than_the_policy(
    plan: dict[str, Any], policy: dict[str, Any], said: str
) -> None:
    wrong = plan_obeys(world.plan(**plan), world.policy(**policy))
    assert any(said in one for one in wrong), wrong
    assert not upgrade(plan=world.plan(**plan), policy=world.policy(**policy)).ok
    assert plan_obeys(world.plan(), world.policy()) == ()


def back(order: Envelope, **how: Any) -> WarrantVerdict:
    plan: Plan = how.pop("plan", world.plan())
    given = {"data-loss": how.pop("data_loss", ())}
    how = {"fleet": "db", "run_id": BACK, "wave": 1, "nodes": (0,), "program": "back", **how}
    return verify_warrant(
        Warrant(start=order, approvals=given), plan, world.PLAN, world.policy(), **how
    )


def rollback(**changes: Any) -> Envelope:
    fields = {
        "verb": "rollback",
        "target": "fleet/db",
        "subject": "",
        "shown": world.PLAN,
        "person": "dora",
    }
    return signed(**{**fields, **changes})


def decide(**changes: Any) -> Envelope:
    fields = {
        "verb": "decide",
        "target": world.RUN,
        "subject": "wave-1",
        "choice": "rollback",
        "person": "carol",
    }
    return signed(**{**fields, **changes})


SELF = world.plan(on_failure="rollback")

GROUNDS: list[tuple[str, Envelope, Plan, str]] = [
    ("an order to roll back", rollback(), world.plan(), ""),
    ("one by somebody who may not", rollback(person="carol"), world.plan(), "(role)"),
    ("one for another fleet", rollback(target="fleet/other"), world.plan(), "(target)"),
    ("one for another plan", rollback(plan="f" * 64), world.plan(), "(plan)"),
    ("a decision for the way back", decide(), world.plan(), ""),
    ("a decision to try again", decide(choice="retry"), world.plan(), "not one that rolls back"),
    (
        "a decision about another fleet's run",
        decide(target="upgrade/other/1"),
        world.plan(),
        "not one that rolls back",
    ),
    ("a decision over another plan", decide(plan="f" * 64), world.plan(), "(plan)"),
    (
        "an order to abort",
        signed(verb="abort", subject="", person="dora"),
        world.plan(),
        "not one that rolls back",
    ),
    ("the start of a plan that goes back by itself", start(), SELF, ""),
    ("the start of a plan that parks", start(), world.plan(), "not one that rolls back"),
]


@pytest.mark.parametrize(
    ("order", "plan", "said"), [row[1:] for row in GROUNDS], ids=[row[0] for row in GROUNDS]
)
def test_what_a_rollback_may_act_on(order: Envelope, plan: Plan, said: str) -> None:
    found = back(order, plan=plan)
    assert found.ok == (said == ""), found.said
    assert said in found.said


def test_a_way_back_with_data_loss_needs_its_gate() -> None:
    lossy = {"wave": 3, "nodes": (2,), "program": "restore"}
    assert "data-loss lacks 1" in back(rollback(), **lossy).said
    good = (approval("data-loss", "bob", target=BACK),)
    assert back(rollback(), data_loss=good, **lossy).ok
    for wrong in (
        approval("data-loss", "bob"),
        approval("data-loss", "carol", target=BACK),
        approval("ship-it", "bob", target=BACK),
    ):
        assert not back(rollback(), data_loss=(wrong,), **lossy).ok


def test_no_automatic_rollback_goes_through_a_gate() -> None:
    lossy = {"wave": 3, "nodes": (2,), "program": "restore"}
    good = (approval("data-loss", "bob", target=BACK),)
    found = back(start(), plan=SELF, data_loss=good, **lossy)
    assert not found.ok
    assert "not taken without an order" in found.said


def test_a_node_that_the_plan_does_not_have_does_not_go_back() -> None:
    plan = world.plan(on_failure="rollback", way_back=SHUT)
    for node in (-1, 4):
        found = back(start(), plan=plan, wave=None, nodes=(node,))
        assert not found.ok
        assert "not in the plan" in found.said
    assert not back(start(), plan=plan, wave=None, nodes=(3,)).ok


def test_where_no_way_leads_back_none_is_taken() -> None:
    closed = world.plan(
        way_back=(
            WayBack(from_wave=0, kind="switch-back"),
            WayBack(from_wave=3, kind="forbidden", lost="all"),
        )
    )
    assert back(rollback(), plan=closed, wave=2, nodes=(1,)).ok
    assert "no way back" in back(rollback(), plan=closed, wave=3, nodes=(1,)).said
    assert "no way back" in back(rollback(), plan=world.plan(way_back=())).said


def test_restoring_needs_its_gate_wherever_the_fleet_is_said_to_be() -> None:
    for claimed in (None, 0, 1, 3):
        found = back(rollback(), wave=claimed, nodes=(0,), program="restore")
        assert "data-loss lacks 1" in found.said
    plain = world.plan(way_back=(WayBack(from_wave=0, kind="switch-back"),))
    assert "no way back that restores" in back(rollback(), plan=plain, program="restore").said


def test_by_itself_a_run_takes_no_node_further_back_than_its_own_wave_allows() -> None:
    gated = (
        WayBack(from_wave=0, kind="switch-back"),
        WayBack(from_wave=2, kind="restore", gate="data-loss"),
    )
    plan = world.plan(on_failure="rollback", way_back=gated)
    assert back(start(), plan=plan, wave=1, nodes=(1,)).ok
    assert "not taken without an order" in back(start(), plan=plan, wave=1, nodes=(3,)).said
    assert back(rollback(), plan=plan, wave=1, nodes=(3,)).ok
    assert "data-loss" in back(rollback(), plan=plan, wave=None, nodes=(3,)).said


def test_fencing_and_observing_need_the_order_alone() -> None:
    assert back(rollback(), wave=None, nodes=(), program="forward").ok
    assert not back(rollback(), wave=None, nodes=(0,), program="forward").ok
