"""The JSON Schemas under docs/schemas are those of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kedge.plan.parse import KINDS
from kedge.plan.schema import schema, schema_text

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_fresh(kind: str) -> None:
    written = (SCHEMAS / f"{kind.lower()}.json").read_text()
    assert written == schema_text(kind), "write them anew: kedge runbook schema -o docs/schemas"


@pytest.mark.parametrize("kind", KINDS)
def test_every_reference_of_a_schema_leads_somewhere(kind: str) -> None:
    made = schema(kind)
    definitions = made.get("$defs")
    assert isinstance(definitions, dict)
    text = json.dumps(made)
    for reference in {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}:
        assert reference in definitions


def test_a_schema_asks_for_the_kind() -> None:
    assert all("kind" in list(schema(kind)["required"]) for kind in KINDS)  # type: ignore[arg-type]
