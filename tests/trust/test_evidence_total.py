"""Verifying evidence gives an answer whatever stands in it: each record that makes no sense is a finding at its place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from kedge.model.base import Json, canonical, digest_of
from kedge.model.evidence import Document, EvidenceReport, ExportHeader
from kedge.model.order import EvidenceSeen
from kedge.trust import evidence_file, story
from kedge.trust.chain import EvidenceEntry, genesis, link, linked
from kedge.trust.evidence import Asked, verify_parts
from kedge.trust.policies import policy_text, text_digest
from kedge.trust.retrial import Court
from tests.trust import world

POLICY = world.policy()
BY = text_digest(policy_text(POLICY))
PLAN = world.plan()
PAPER = canonical(PLAN).decode()
PLANNED = text_digest(PAPER)
RUN = world.RUN
NODE = PLAN.nodes[0].name

ALLOWED: dict[str, Json] = {
    "what": "allowed", "run": RUN, "epoch": 7, "program": "forward", "wave": 0, "nodes": [0],
    "plan": PLANNED, "warrant": "b" * 64, "policies": [BY], "said": "x",
}  # fmt: skip
STEP: dict[str, Json] = {
    "key": "k", "op": "switch", "before": {}, "after": {"release": "x"}, "replayed": False,
    "skipped": False, "sent": {"digest": "c" * 64, "length": 1},
}  # fmt: skip
RECORDS: dict[str, dict[str, Json]] = {
    "order": {
        "what": "order", "accepted": True, "digest": "a" * 64, "rule": "accepted", "verb": "start",
        "case": {"envelope": {}, "expected": {}, "policies": [BY], "signed": [], "gate": None},
        "target": "fleet/db", "subject": "", "person": "a", "key": "k", "roles": [], "closes": True,
    },
    "refused": {"what": "order", "accepted": False, "digest": "a" * 64, "rule": "lease", "key": "k"},
    "lease": {"what": "lease", "order": "a" * 64, "run": RUN, "epoch": 7, "policies": [BY]},
    "policy": {
        "what": "policy", "policies": [BY], "text": BY, "signatures": [], "version": 1, "by": "first",
    },
    "asked": {"what": "asked", "run": RUN, "subject": "g", "shown": "b" * 64, "showing": {}},
    "release": {
        "what": "release", "ok": True, "run": RUN, "document": "b" * 64, "authors": ["a"],
        "attestations": ["c" * 64], "root": "d" * 64, "versions": {}, "release": {}, "custody": None,
    },
    "allowed": ALLOWED,
    "leg": {
        "what": "leg", "run": RUN, "node": NODE, "program": "forward", "wave": 0, "leg": 0,
        "token": [7, 1, 1], "steps": [STEP], "failed": {"key": "k", "type": "t", "message": "m"},
        "journal": [1, "a" * 64],
    },
    "looked": {"what": "looked", "run": RUN, "nodes": {"n": {"journal": [1, "a" * 64]}}},
    "decision": {"what": "decision", "run": RUN, "stage": "ended", "event": "x", "outcome": "y"},
    "ended": {"what": "ended", "run": RUN, "outcome": "x"},
    "release-back": {"what": "release-back", "run": "r", "versions": {}},
    "glass": {"what": "glass", "order": "a" * 64, "by": "x"},
    "reviewed": {"what": "reviewed", "order": "a" * 64, "review": "b" * 64},
    "opened": {"what": "opened", "run": "r", "nodes": {}},
}  # fmt: skip
ODD: list[Json] = [
    [], {}, [[]], [{}], {"a": []}, None, True, 0, -1, 2**53 - 1, 1.5, "", "x", ["x"], [1], [[1], 2, 3],
]  # fmt: skip


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner: list[tuple[Any, Json]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for name, below in inner:
        yield (*path, name)
        yield from places(below, (*path, name))


def damaged(record: dict[str, Json]) -> Iterator[dict[str, Json]]:
    """The record with each value in turn replaced by each that does not belong there."""
    for path in places(record):
        for odd in ODD if path != ("what",) else ():
            made = copy.deepcopy(record)
            holder: Any = made
            for name in path[:-1]:
                holder = holder[name]
            holder[path[-1]] = odd
            yield made


def verified(records: list[dict[str, Json]]) -> EvidenceReport:
    """A file of them whose chain holds, as anybody can make it, and what comes of verifying it."""
    before, entries = genesis("db"), []
    for number, record in enumerate(records, 1):
        key = f"k{number}"
        entries.append(
            EvidenceEntry(number, key, record, before, link(before, linked(key, record)))
        )
        before = entries[-1].hash
    header = ExportHeader(
        fleet="db", run=RUN, after=EvidenceSeen(seq=0, hash=genesis("db")),
        end=EvidenceSeen(seq=len(entries), hash=before), documents=1, checkpoints=0,
    )  # fmt: skip
    plan = Document(digest=PLANNED, what="plan", content=PAPER)
    parts = evidence_file.read(evidence_file.write(header, [plan], entries, []))
    assert not parts.findings
    return verify_parts(parts, Asked(pinned={digest_of(POLICY): POLICY}))


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_wrong_types_is_judged_like_any_other(kind: str) -> None:
    records = [ALLOWED, *damaged(RECORDS[kind])]
    report = verified(records)
    assert report.records == len(report.story) == len(records)
    # Not one of them was left to the last line.
    assert not [one for one in report.findings if "makes no sense" in one.said]
    assert not [one for one in report.story if "cannot be told" in one.said]


WRONG: list[tuple[str, dict[str, Json], str]] = [
    ("nobody knows who was asked", {**RECORDS["asked"], "subject": []}, "no record of what people"),
    ("allowed in a wave of lists", {**ALLOWED, "wave": []}, "no record of what a run may do"),
    ("allowed by a plan of lists", {**ALLOWED, "plan": []}, "no record of what a run may do"),
    ("a leg of no wave", {**RECORDS["leg"], "wave": []}, "no record of what was done in a wave"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_a_record_of_wrong_types_is_a_finding_at_its_place(
    record: dict[str, Json], said: str
) -> None:
    report = verified([{"what": "other"}, record])
    assert not report.ok
    assert [one.seq for one in report.findings if said in one.said] == [2]


def test_what_nobody_thought_of_is_a_finding_and_never_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Court, "policy", breaks)
    monkeypatch.setitem(story._TELL, "policy", breaks)
    other: dict[str, Json] = {"what": "other", "plan": PLANNED}
    report = verified([other, RECORDS["policy"], {"what": "ended", "run": RUN}])
    assert not report.ok
    assert [(one.kind, one.seq) for one in report.findings] == [("unreadable", 2)]
    assert "ZeroDivisionError" in report.findings[0].said
    assert [one.what for one in report.story] == ["other", "policy", "ended"]
