"""How gates count: tables of who signed and what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.model.order import OrderVerdict
from kedge.trust.approvals import tally
from tests.trust import world

ALICE = ("alice", ("operator", "sre"), "ka")
BOB = ("bob", ("db-owner",), "kb")
CAROL = ("carol", ("sre",), "kc")
DORA = ("dora", ("on-call",), "kd")
BOTH = ("erin", ("sre", "db-owner"), "ke")


def signed(person: str, roles: tuple[str, ...], material: str, **changes: Any) -> OrderVerdict:
    fields: dict[str, Any] = {
        "accepted": True,
        "rule": "accepted",
        "said": "",
        "digest": "0" * 64,
        "verb": "approve",
        "subject": "ship-it",
        "person": person,
        "roles": roles,
        "key": f"SHA256:{material}",
        "material": material,
    }
    return OrderVerdict(**{**fields, **changes})


TABLE: list[tuple[str, dict[str, Any], list[OrderVerdict], int, tuple[str, ...]]] = [
    ("nobody signed", {}, [], 2, ()),
    ("one of two signed", {}, [signed(*CAROL)], 1, ()),
    ("two of two signed", {}, [signed(*CAROL), signed(*BOB)], 0, ()),
    ("more than needed signed", {}, [signed(*CAROL), signed(*BOB), signed(*ALICE)], 0, ()),
    ("the same person twice", {}, [signed(*CAROL), signed(*CAROL)], 1, ()),
    ("the same person with two keys", {}, [signed(*CAROL), signed("carol", ("sre",), "k2")], 1, ()),
    ("two people with one key", {}, [signed(*CAROL), signed("erin", ("sre",), "kc")], 1, ()),
    ("one key under two kinds", {}, [signed(*CAROL), signed("erin", ("sre",), "kc", key="SHA256:other")], 1, ()),
    ("a role that is not the gate's", {}, [signed(*CAROL), signed(*DORA)], 1, ()),
    ("a refused order", {}, [signed(*CAROL), signed(*BOB, accepted=False, rule="expired")], 1, ()),
    ("a rejection", {}, [signed(*CAROL), signed(*BOB, verb="reject")], 1, ()),
    ("an approval of another gate", {}, [signed(*CAROL), signed(*BOB, subject="no-return")], 1, ()),
    ("a verdict without a key", {}, [signed(*CAROL), signed("bob", ("db-owner",), "", key="")], 1, ()),
    ("a verdict without a person", {}, [signed(*CAROL), signed("", ("db-owner",), "kb")], 1, ()),
    ("enough people but a role missing", {"each_of": ("sre", "db-owner")}, [signed(*CAROL), signed(*ALICE)], 1, ("db-owner",)),
    ("each role there", {"each_of": ("sre", "db-owner")}, [signed(*CAROL), signed(*BOB)], 0, ()),
    ("one person with both roles is still one person", {"each_of": ("sre", "db-owner")}, [signed(*BOTH)], 1, ()),
    ("one person with both roles and another", {"each_of": ("sre", "db-owner")}, [signed(*BOTH), signed(*CAROL)], 0, ()),
    ("a role missing and people missing", {"threshold": 3, "each_of": ("db-owner",)}, [signed(*CAROL)], 2, ("db-owner",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "verdicts", "missing", "roles"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_a_gate_counts(
    gate: dict[str, Any], verdicts: list[OrderVerdict], missing: int, roles: tuple[str, ...]
) -> None:
    found = tally(world.gate(**gate), verdicts)
    assert (found.missing, found.missing_roles, found.met) == (missing, roles, missing == 0)


def test_the_tally_holds_the_verdicts_that_counted() -> None:
    found = tally(world.gate(), [signed(*CAROL), signed(*CAROL), signed(*BOB)])
    assert [one.person for one in found.signed] == ["carol", "bob"]
    assert (found.gate, found.threshold) == ("ship-it", 2)
