"""docs/orders.md and docs/policy.md say what the code does: their examples hold, their tables have every rule and field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from kedge.model.order import Envelope, Order, Rule
from kedge.model.policy import Policy
from kedge.plan.parse import parse
from kedge.plan.policies import who_can
from kedge.plan.policy_advice import advice
from kedge.trust.orders import read

TEXT = (Path(__file__).parents[2] / "docs" / "orders.md").read_text()


def test_the_example_is_an_order_in_its_canonical_form() -> None:
    found = re.search(r"```json\n(.+)\n```", TEXT)
    assert found is not None
    assert read(Envelope(order=found[1], signature="")).person == "carol"


def test_every_field_and_every_rule_is_explained() -> None:
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_-]+)`", row)}
    assert set(Order.model_fields) <= named
    assert set(get_args(Rule)) - {"accepted"} <= named


POLICY = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()


def test_every_field_of_a_policy_is_explained() -> None:
    rows = [line.split("|")[1] for line in POLICY.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert set(Policy.model_fields) <= named


def test_the_examples_of_policies_are_policies_that_their_people_can_use_and_change() -> None:
    examples = re.findall(r"```yaml\n(.+?)```", POLICY, re.DOTALL)
    found = [
        parse(text.encode(), f"example-{number}", Policy).value
        for number, text in enumerate(examples)
    ]
    assert [policy.name for policy in found] == ["mine", "team", "bank"]
    for policy in found:
        assert policy.change is not None
        for verb in ("start", "approve", "rollback", "abort", "decide"):
            assert who_can(policy, verb), (policy.name, verb)
    assert not [said for said in advice(found[2]) if "nobody" in said]
