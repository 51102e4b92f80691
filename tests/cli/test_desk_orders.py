"""Orders drafted from what a run shows: what is signed is what was seen, or there is no order."""

from __future__ import annotations

from pathlib import Path

import pytest

from desk.orders import (
    QUICK_LIFE,
    Asked,
    about_run,
    draft,
    fleet_target,
    life_of,
    owner_of,
    plan_to_undo,
    read_sent,
)
from kedge.model.errors import DriverError, OrderError
from kedge.model.policy import Person, Policy
from kedge.model.status import FleetStatus, RunStatus
from kedge.trust import envelope as envelopes
from tests.cli import worlds

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIORlgOAj6tZv3j6dfFUuhMrIyt6TIhMBIq+eTRQW1BIw"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIELLtk2VrVow+We0b2E+ZSwhkdh2yDuF15gN2xvlzMmO"


def policy() -> Policy:
    return Policy(
        name="house",
        environment="test",
        people=(Person(name="alice", roles=("sre",), keys=(f"{KEY} alice@desk",)),),
        may={"approve": ("sre",)},
        max_lifetime=7200.0,
    )


def test_an_approval_names_what_the_open_gate_shows() -> None:
    status = worlds.at_gate()
    assert status.waiting is not None
    asked = Asked(verb="approve", target=status.run, subject="ship-it")
    assert about_run(asked, status) == ("ship-it", status.waiting.shown, status.waiting.showing)
    assert about_run(asked.model_copy(update={"subject": ""}), status)[0] == "ship-it"


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (
            Asked(verb="approve", target="r", subject="other"),
            worlds.at_gate(),
            "waits at gate ship-it",
        ),
        (Asked(verb="approve", target="r"), worlds.parked(), "parked on wave-1"),
        (
            Asked(verb="decide", target="r", choice="retry"),
            worlds.at_gate(),
            "waits at gate ship-it",
        ),
        (Asked(verb="reject", target="r"), worlds.status(), "in phase widening"),
    ],
)
def test_what_is_not_open_cannot_be_drafted(asked: Asked, status: RunStatus, said: str) -> None:
    with pytest.raises(DriverError, match=said) as caught:
        about_run(asked, status)
    assert caught.value.kind == "NotFound"
    assert status.run in (caught.value.next_step or "")


def test_a_decision_needs_one_of_the_choices_that_are_offered() -> None:
    status = worlds.parked()
    with pytest.raises(OrderError, match="needs a choice") as caught:
        about_run(Asked(verb="decide", target=status.run), status)
    assert "retry | skip | rollback | abort" in (caught.value.next_step or "")
    assert status.waiting is not None
    showing = status.waiting.showing.model_copy(update={"choices": ("abort",)})
    fewer = status.model_copy(
        update={"waiting": status.waiting.model_copy(update={"showing": showing})}
    )
    with pytest.raises(OrderError, match="retry is not open"):
        about_run(Asked(verb="decide", target=status.run, choice="retry"), fewer)


def test_other_verbs_name_the_plan_as_what_was_shown() -> None:
    status = worlds.status()
    assert about_run(Asked(verb="pause", target=status.run), status) == ("", status.plan, None)


def test_a_draft_is_the_canonical_bytes_of_its_order() -> None:
    asked = Asked(verb="pause", target="upgrade/etcd/1", person="alice", comment="lunch")
    one = draft(asked, plan="a" * 64, shown="a" * 64, subject="", life=900.0)
    two = draft(asked, plan="a" * 64, shown="a" * 64, subject="", life=900.0)
    assert one.bytes_to_sign == envelopes.bytes_to_sign(one.order)
    assert one.order.nonce != two.order.nonce
    lived = envelopes.moment(one.order.expires) - envelopes.moment(one.order.issued)
    assert lived.total_seconds() == 900


def test_an_order_lives_as_long_as_the_policy_lets_it_and_shorter_when_sent_at_once() -> None:
    asked = Asked(verb="approve", target="r")
    assert life_of(asked, policy(), carried=True) == 7200.0
    assert life_of(asked, policy(), carried=False) == QUICK_LIFE
    assert life_of(asked, None, carried=True) == 3600.0
    assert life_of(asked.model_copy(update={"life": 60.0}), policy(), carried=True) == 60.0


def test_a_key_belongs_to_the_person_the_policy_gives_it_to() -> None:
    assert owner_of(policy(), f"{KEY} whatever it is called") == "alice"
    assert owner_of(policy(), OTHER) == ""
    assert owner_of(policy(), "no key at all") == ""
    assert owner_of(None, KEY) == ""


def test_a_rollback_names_the_plan_of_the_fleet_and_needs_one() -> None:
    fleet = FleetStatus(fleet="etcd", epoch=1, holder=None, last=None, release=None)
    with pytest.raises(DriverError, match="nothing to take back"):
        plan_to_undo(fleet)
    assert plan_to_undo(fleet.model_copy(update={"plan": "b" * 64})) == "b" * 64


@pytest.mark.parametrize("name", ["etcd", "fleet/etcd", "upgrade/etcd/3", "rollback/etcd/4"])
def test_a_fleet_is_meant_by_its_name_or_by_one_of_its_runs(name: str) -> None:
    assert fleet_target(name) == "fleet/etcd"


def test_files_that_are_no_order_are_said_to_be_none(tmp_path: Path) -> None:
    order, signature = tmp_path / "order.json", tmp_path / "order.json.sig"
    made = draft(
        Asked(verb="pause", target="upgrade/etcd/1"),
        plan="a" * 64,
        shown="a" * 64,
        subject="",
        life=900.0,
    )
    order.write_bytes(made.bytes_to_sign)
    signature.write_bytes(b"\xff\xfe")
    with pytest.raises(OrderError, match="not an armored SSH signature"):
        read_sent(order, signature)
    assert read_sent(order, None).order == made.order
    order.write_bytes(made.bytes_to_sign + b"\n")
    with pytest.raises(OrderError, match="spaces or newlines"):
        read_sent(order, None)
