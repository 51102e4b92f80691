"""The JSON Schemas under docs/schemas are those of the code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedge.plan.descriptions import DESCRIPTIONS, EXAMPLES
from kedge.plan.parse import KINDS
from kedge.plan.schema import schema, schema_text

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_fresh(kind: str) -> None:
    written = (SCHEMAS / f"{kind.lower()}.json").read_text()
    assert written == schema_text(kind), "schema_text(kind) is another: write it there"


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


def properties(kind: str) -> dict[str, dict[str, Any]]:
    """Every property of a kind's schema, as ``Model.property``."""
    described: dict[str, Any] = schema(kind)
    parts = {kind: described, **described.get("$defs", {})}
    return {
        f"{model}.{name}": wanted
        for model, part in parts.items()
        for one in part.get("anyOf", [part])
        for name, wanted in one.get("properties", {}).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_has_a_sentence(kind: str) -> None:
    missing = [name for name, one in properties(kind).items() if not one.get("description")]
    assert missing == []
    assert all(str(one["description"]).endswith(".") for one in properties(kind).values())


def test_no_sentence_is_left_of_a_property_that_is_gone() -> None:
    known = {name for kind in KINDS for name in properties(kind)}
    shared = {f"*.{name.partition('.')[2]}" for name in known}
    for table in (DESCRIPTIONS, EXAMPLES):
        assert set(table) - known - shared == set()
