"""JSON Schemas of the four documents, for editors."""

from __future__ import annotations

import json

from kedge.model.base import Json
from kedge.plan.descriptions import DESCRIPTIONS, EXAMPLES
from kedge.plan.parse import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(kind: str) -> dict[str, Json]:
    """The JSON Schema of a kind of document. Raises ``KeyError`` for a kind there is not."""
    made: dict[str, Json] = KINDS[kind].model_json_schema(by_alias=True, mode="validation")
    definitions = made.get("$defs")
    for model, part in {
        kind: made,
        **(definitions if isinstance(definitions, dict) else {}),
    }.items():
        _describe(model, part)
    required = made.get("required")
    # The model knows its own kind; a document has to say it.
    said: list[Json] = (
        ["kind", *(key for key in required if key != "kind")]
        if isinstance(required, list)
        else ["kind"]
    )
    return {"$schema": DIALECT, **_shorthand(made), "required": said}


def _describe(model: str, part: Json) -> None:
    """Put sentences and examples to the properties of one model."""
    properties = part.get("properties") if isinstance(part, dict) else None
    for name, wanted in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(wanted, dict):
            continue
        wanted.pop("title", None)
        for table, key in ((DESCRIPTIONS, "description"), (EXAMPLES, "examples")):
            found = table.get(f"{model}.{name}", table.get(f"*.{name}"))
            if found is not None:
                wanted[key] = [found] if table is EXAMPLES else found


def _shorthand(made: dict[str, Json]) -> dict[str, Json]:
    """A step may be a bare verb, a bake a duration: spellings that are expanded before the model sees them."""
    definitions = made.get("$defs")
    if not isinstance(definitions, dict):
        return made
    shorter: dict[str, Json] = {
        "NodeStep": {"enum": ["stage", "switch", "configure", "start"]},
        "BakeRule": {"type": "string", "description": "a duration"},
        "Widening": {
            "type": ["string", "integer"],
            "description": "a share: 30%, 100%, or a number of nodes",
        },
        "HttpCall": {"type": "string", "description": "the URL"},
        "GrpcCall": {"type": "string", "description": "grpc://host:port"},
        "TcpCall": {"type": "string", "description": "host:port"},
        "Probe": {"type": "string", "description": "the name of one of the runbook's facts"},
        "LastNode": {"const": True},
    }
    opened: dict[str, Json] = {
        name: _either(shorter[name], definition) if name in shorter else definition
        for name, definition in definitions.items()
    }
    return {**made, "$defs": opened}


def _either(short: Json, full: Json) -> Json:
    return {"anyOf": [short, full]}


def schema_text(kind: str) -> str:
    """The schema as the text of a file."""
    return json.dumps(schema(kind), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
