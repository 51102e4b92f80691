"""The documents in docs/documents.md are sound."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kedge.model.fleet import Fleet
from kedge.model.steps import VERBS
from kedge.plan.parse import KINDS, parse_any

TEXT = (Path(__file__).parent.parent.parent / "docs" / "documents.md").read_text()
BLOCKS = re.findall(r"```yaml\n(kind: .*?)```", TEXT, re.DOTALL)


def test_there_is_one_example_of_each_kind() -> None:
    assert [block.split("\n")[0] for block in BLOCKS] == [f"kind: {kind}" for kind in KINDS]


@pytest.mark.parametrize("block", BLOCKS, ids=list(KINDS))
def test_an_example_is_a_sound_document(block: str) -> None:
    parsed = parse_any(block.encode(), "docs/documents.md")
    assert parsed.value.kind in KINDS
    if isinstance(parsed.value, Fleet):
        assert len(parsed.value.nodes) == 2


def test_every_step_is_explained() -> None:
    assert [verb for verb in VERBS if f"| `{verb}` |" not in TEXT] == []
