"""docs/orders.md says what the code does: its example is an order, its table has every rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from kedge.model.order import Envelope, Order, Rule
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
