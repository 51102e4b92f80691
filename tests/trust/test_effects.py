"""The ends of hosts' journals as records tell them, which may come later than what they tell."""

from __future__ import annotations

import pytest

from kedge.model.base import Json
from kedge.trust.effects import Ledger

SIGHTS: list[tuple[str, list[tuple[int, str, Json]], str]] = [
    ("it grows", [(3, "a", [7, 1, 1]), (5, "b", [7, 2, 1])], ""),
    ("nothing was added", [(3, "a", [7, 1, 1]), (3, "a", [7, 2, 1])], ""),
    ("a worker that was held up tells late what it did before the fence rose", [(5, "b", [8, 1, 1]), (3, "a", [7, 2, 1])], ""),
    ("the attempt before tells late", [(5, "b", [7, 2, 2]), (3, "a", [7, 2, 1]), (6, "c", [7, 3, 1])], ""),
    ("lines were taken out", [(5, "b", [7, 1, 1]), (3, "a", [7, 2, 1])], "lines were taken out"),
    ("lines were taken out under one token", [(5, "b", [7, 1, 1]), (3, "a", [7, 1, 1])], "lines were taken out"),
    ("lines were taken out behind what came late", [(5, "b", [7, 2, 1]), (3, "a", [7, 1, 1]), (4, "c", [7, 3, 1])], "lines were taken out"),
    ("it was written anew", [(5, "b", [7, 1, 1]), (6, "c", [7, 2, 1]), (5, "x", [7, 3, 1])], "ended otherwise after 5 lines"),
    ("what comes late tells of another", [(5, "b", [7, 2, 1]), (5, "x", [7, 1, 1])], "ended otherwise after 5 lines"),
    ("nobody says under which token", [(5, "b", None), (3, "a", None)], "lines were taken out"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sights", "said"), [row[1:] for row in SIGHTS], ids=[row[0] for row in SIGHTS]
)
def test_a_journal_only_grows(sights: list[tuple[int, str, Json]], said: str) -> None:
    ledger = Ledger()
    for seq, (lines, digest, token) in enumerate(sights, 1):
        ledger.sight(seq, "n0", [lines, digest * 64], token)
    assert [(one.seq, said in one.said) for one in ledger.findings] == (
        [(len(sights), True)] if said else []
    )
