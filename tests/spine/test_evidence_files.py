"""Files whose chain holds and that are not what was exported: a beginning cut off, another name, papers laid beside.

None of these takes a key: every one is sealed anew by the documented form.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.evidence import Trusted
from kedge.drivers.sim_faults import Fault
from kedge.model.base import Json, digest_of
from kedge.model.errors import OrderError
from kedge.model.evidence import EvidenceReport
from kedge.trust import evidence_file
from kedge.trust.envelope import order_key
from kedge.trust.evidence import Asked, verify_parts
from tests.spine.conftest import Stage
from tests.spine.forgery import Entry, entries_of, joined, relinked, split
from tests.spine.records import Kept, exported, kept_run, witnessed
from tests.spine.scene import Scene

pytestmark = pytest.mark.temporal

Objects = list[dict[str, Any]]


@pytest.fixture
async def kept(stage: Stage) -> Kept:
    """See :func:`kept_run`."""
    return await kept_run(stage)


def header_of(objects: Objects) -> dict[str, Any]:
    return next(one["header"] for one in objects if "header" in one)


def cut_before(objects: Objects, seq: int) -> Objects:
    """The part behind the record ``seq``, with a header that says so."""
    objects = copy.deepcopy(objects)
    header = header_of(objects)
    hashes = {one["entry"]["seq"]: one["entry"]["hash"] for one in objects if "entry" in one}
    header["after"] = {"seq": seq, "hash": hashes[seq]}
    left = [
        one
        for one in objects
        if one.get("entry", {}).get("seq", seq + 1) > seq
        and one.get("checkpoint", {}).get("seq", seq) >= seq
    ]
    header["checkpoints"] = sum("checkpoint" in one for one in left)
    return left


def began_at(objects: Objects, run: str) -> int:
    """The record of the order that a run acts on."""
    entries = [one["entry"] for one in objects if "entry" in one]
    order = next(
        one["record"]["order"]
        for one in entries
        if one["record"]["what"] == "lease" and one["record"]["run"] == run
    )
    return next(int(one["seq"]) for one in entries if one["record"].get("digest") == order)


async def test_a_run_whose_beginning_was_left_out_is_found(kept: Kept) -> None:
    objects = split(kept.lines)
    first = began_at(objects, kept.run)
    for seq in range(1, kept.count):
        report = kept.verified(joined(cut_before(objects, seq)))
        found = [one for one in report.findings if "does not begin in here" in one.said]
        if seq < first:
            assert report.ok, (seq, report.findings)
        else:
            assert [(one.kind, one.seq) for one in found] == [("truncated", seq + 1)], seq


async def test_a_way_back_that_began_by_itself_is_exported_with_the_order_it_acts_on(
    stage: Stage,
) -> None:
    scene = await witnessed(stage)
    async with scene.playing():
        scene.sim.program(Fault(do="fail", op="healthy", node="n1", run="upgrade/*"))
        waves: Json = {"canary": {"nodes": 1}, "widen": ["100%"]}
        book = scene.runbook(waves=waves, gates={}, on_failure="rollback")
        for _ in range(2):
            run = await scene.start(scene.plan(book))
            back = (await scene.end_of(run)).successor or ""
    lines = await exported(scene, back)
    report = verified(scene, lines)
    assert (report.ok, report.ended, report.run) == (True, True, back), report.findings
    objects = split(lines)
    header = header_of(objects)
    assert header["after"]["seq"] > 0
    first = began_at(objects, run)
    assert header["after"]["seq"] < first
    report = verified(scene, joined(cut_before(objects, first)))
    assert ("truncated", first + 1) in {(one.kind, one.seq) for one in report.findings}


def verified(scene: Scene, lines: list[bytes]) -> EvidenceReport:
    pinned = {digest_of(scene.policy): scene.policy}
    return verify_parts(evidence_file.read(lines), Asked(pinned=pinned))


def _header(**named: Any) -> Callable[[Objects, Kept], object]:
    def change(objects: Objects, _: Kept) -> None:
        header_of(objects).update(named)

    return change


def _another_number(objects: Objects, kept: Kept) -> None:
    header_of(objects)["run"] = kept.run + "1"


NAMES: list[tuple[str, Callable[[Objects, Kept], object], str]] = [
    ("no run at all", _header(run=""), "does not say which run"),
    ("words", _header(run="all is well"), "does not say which run"),
    ("another run", _another_number, "no record in here is about"),
    ("a run of another fleet", _header(run="upgrade/other/1"), "is no run of the fleet"),
    ("true for a number", _header(format=True), "not in its one form"),
]


@pytest.mark.parametrize(
    ("change", "said"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
async def test_a_file_under_another_name_is_found(
    kept: Kept, change: Callable[[Objects, Kept], object], said: str
) -> None:
    objects = split(kept.lines)
    change(objects, kept)
    report = kept.verified(joined(objects))
    assert [(one.line, said in one.said) for one in report.findings] == [(1, True)]


async def test_every_document_is_one_that_a_record_names_as_what_it_is(kept: Kept) -> None:
    objects = split(kept.lines)
    papers = [at for at, one in enumerate(objects) if "document" in one]
    kinds = {
        "plan",
        "policy",
        "policy-change",
        "release",
        "warrant",
        "attestation",
        "metadata",
        "other",
    }
    for at in papers:
        what = objects[at]["document"]["what"]
        for kind in kinds - {what} - ({"policy"} if what == "policy-change" else set()):
            changed = copy.deepcopy(objects)
            changed[at]["document"]["what"] = kind
            report = kept.verified(joined(changed))
            assert ("document", at + 1) in {(one.kind, one.line) for one in report.findings}, kind


@pytest.mark.parametrize(
    "what", ["plan", "warrant", "policy", "policy-change", "metadata", "other"]
)
async def test_a_document_that_nobody_names_is_found(kept: Kept, what: str) -> None:
    objects = split(kept.lines)
    digest = hashlib.sha256(b"{}").hexdigest()
    objects.append({"document": {"digest": digest, "what": what, "content": "{}"}})
    header_of(objects)["documents"] += 1
    report = kept.verified(joined(_by_digest(objects)))
    (found,) = report.findings
    assert (found.kind, digest[:12] in found.said) == ("document", True)
    assert f'"digest":"{digest}"'.encode() in joined(_by_digest(objects))[(found.line or 0) - 1]


def _by_digest(objects: Objects) -> Objects:
    papers = sorted(
        (one for one in objects if "document" in one),
        key=lambda one: str(one["document"]["digest"]),
    )
    rest = [one for one in objects if "document" not in one and "header" not in one]
    return [{"header": header_of(objects)}, *papers, *rest]


async def test_documents_stand_in_one_order(kept: Kept) -> None:
    objects = split(kept.lines)
    papers = [at for at, one in enumerate(objects) if "document" in one]
    for at in papers[:-1]:
        changed = copy.deepcopy(objects)
        changed[at], changed[at + 1] = changed[at + 1], changed[at]
        report = kept.verified(joined(changed))
        assert [(one.kind, one.line) for one in report.findings] == [("unreadable", at + 2)]


async def test_a_checkpoint_stands_once_and_behind_the_record_it_is_over(kept: Kept) -> None:
    objects = split(kept.lines)
    first = next(at for at, one in enumerate(objects) if "entry" in one)
    for at in (at for at, one in enumerate(objects) if "checkpoint" in one):
        seq = objects[at]["checkpoint"]["seq"]
        for to in range(first, len(objects) - 1):
            moved = copy.deepcopy(objects)
            moved.insert(to, moved.pop(at))
            if moved == objects:
                continue
            report = kept.verified(joined(moved))
            assert ("checkpoint", seq) in {(one.kind, one.seq) for one in report.findings}, to
        twice = copy.deepcopy(objects)
        twice.insert(at, twice[at])
        header_of(twice)["checkpoints"] += 1
        report = kept.verified(joined(twice))
        assert [(one.kind, one.seq, one.line) for one in report.findings] == [
            ("checkpoint", seq, at + 2)
        ]
        for more in (" ", " else"):
            other = copy.deepcopy(objects)
            other[at]["checkpoint"]["key"] += more
            report = kept.verified(joined(other))
            assert ("checkpoint", seq, at + 1) in {
                (one.kind, one.seq, one.line) for one in report.findings
            }


def _again(entries: list[Entry]) -> None:
    entries.insert(3, {"key": entries[1]["key"], "record": {"what": "opened", "said": "again"}})


def _two_steps(entries: list[Entry]) -> None:
    steps = next(one["record"] for one in entries if one["record"]["what"] == "leg")["steps"]
    steps.append(steps[0])


@pytest.mark.parametrize(
    ("kind", "said", "change"),
    [("inserted", "under the same key", _again), ("effect", "twice in one attempt", _two_steps)],
    ids=["a key", "a step of one attempt"],
)
async def test_what_stands_there_once_is_found_when_who_holds_the_workers_key_writes_it_twice(
    kept: Kept, kind: str, said: str, change: Callable[[list[Entry]], object]
) -> None:
    report = kept.verified(relinked(kept.lines, change, kept.key))
    assert [one.kind for one in report.findings if said in one.said] == [kind]


async def test_an_end_that_was_noted_before_the_file_begins_is_said_to_be_compared_with_nothing(
    kept: Kept,
) -> None:
    objects = split(kept.lines)
    first = began_at(objects, kept.run)
    part = joined(cut_before(objects, first - 1))
    report = kept.verified(part, known={1: "0" * 64})
    assert report.ok
    assert any("noted at 1 was compared with nothing" in one for one in report.unproven)
    end = entries_of(kept.lines)[-1]
    report = kept.verified(part, known={end["seq"]: end["hash"]})
    assert not any("compared with nothing" in one for one in report.unproven)


def test_two_ends_that_contradict_each_other_are_not_taken_for_one() -> None:
    one, other = f"7:{'a' * 64}", f"7:{'b' * 64}"
    assert len(Trusted(heads=(one, one)).held().heads) == 2
    with pytest.raises(OrderError, match="two ends are named for record 7"):
        Trusted(heads=(one, other)).held()


def _gone(entries: list[Entry], **named: Any) -> None:
    del entries[
        next(at for at, one in enumerate(entries) if named.items() <= one["record"].items())
    ]


def _says(entries: list[Entry], what: str, **said: Any) -> None:
    next(one["record"] for one in entries if one["record"]["what"] == what).update(said)


def _renumbered(entries: list[Entry], **named: Any) -> None:
    """Left out, and what counts records counts anew."""
    seqs = [one["seq"] for one in entries if not named.items() <= one["record"].items()]
    _gone(entries, **named)
    now = {old: new for new, old in enumerate(seqs, entries[0]["seq"])}
    for one in entries:
        record = one["record"]
        if record["what"] == "admitted":
            head, _, seq = one["key"].rpartition("/")
            one["key"] = f"{head}/{now[int(seq)]}"
        elif record["what"] == "leg":
            record["token"][1] = now[record["token"][1]]


def _saw_otherwise(entries: list[Entry]) -> None:
    looked = next(one["record"] for one in entries if one["record"]["what"] == "looked")
    for sight in looked["nodes"].values():
        sight["running"] = False


def _did_otherwise(entries: list[Entry]) -> None:
    leg = next(one["record"] for one in entries if one["record"]["what"] == "leg")
    leg["steps"][0]["before"] = {}


def _only_it_knew(entries: list[Entry]) -> None:
    one = next(one for one in entries if one["record"].get("accepted") is False)
    one["record"].update(rule="not-open")
    one["key"] = order_key(one["record"]["digest"], "not-open", one["record"]["key"])


def _too_late(entries: list[Entry]) -> None:
    one = next(one for one in entries if one["record"].get("accepted") is False)
    one["record"].update(rule="expired")
    one["record"]["case"]["expected"]["now"] = "2099-01-01T00:00:00Z"
    one["key"] = order_key(one["record"]["digest"], "expired", one["record"]["key"])


LIES: list[tuple[str, Callable[[list[Entry]], object], str]] = [
    ("an order that was refused left out", lambda e: _renumbered(e, what="order", accepted=False), "what it leaves out, an order"),
    ("what nobody saw", _saw_otherwise, "say that it saw what it did not see"),
    ("another observation", _did_otherwise, "their observations and failures"),
    ("another end", lambda e: _says(e, "end", outcome="rejected", left=None), "that a run was rejected or pre-empted"),
    ("a reason that only the worker knew", _only_it_knew, "by what only it and the engine knew"),
    ("another time", _too_late, "or refuses one that had not"),
]  # fmt: skip


FOUND: list[tuple[str, Callable[[list[Entry]], object], str]] = [
    ("a leg left out", lambda e: _renumbered(e, what="leg", node="n2"), "have no leg in the record, such as n2"),
    ("an admission left out", lambda e: _gone(e, what="admitted", nodes=["n0"]), "nothing in the record let it through"),
    ("nobody looked at", lambda e: _says(e, "looked", nodes={}), "were never looked at"),
    ("a bake that was not looked at", lambda e: _gone(e, what="looked", why="bake"), "let through, and must not be"),
    ("a failure that was none", lambda e: _says(e, "leg", failed={"key": "", "type": "x", "message": ""}), "is missing"),
    ("an order that nobody gave", lambda e: _says(e, "end", outcome="aborted", left=None), "no order that ended it"),
    ("a fleet on another release", lambda e: _says(e, "end", left="before"), "left the fleet otherwise"),
    ("another round", lambda e: _says(e, "admitted", round=3), "another round"),
    ("a wave that is later", lambda e: _says(e, "admitted", wave=1), "not of wave 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"), [row[1:] for row in FOUND], ids=[row[0] for row in FOUND]
)
async def test_what_the_record_does_not_bear_out_is_found_whoever_signs_it(
    kept: Kept, change: Callable[[list[Entry]], object], said: str
) -> None:
    report = kept.verified(relinked(kept.lines, change, kept.key))
    found = [one for one in report.findings if one.kind == "admission"]
    assert any(said in one.said for one in found), report.findings


@pytest.mark.parametrize(
    ("change", "named"), [row[1:] for row in LIES], ids=[row[0] for row in LIES]
)
async def test_what_is_not_proven_is_named_on_the_page(
    kept: Kept, change: Callable[[list[Entry]], object], named: str
) -> None:
    """What who holds the worker's key can say unfound; where it is found one day, the page says too little of us."""
    page = " ".join((Path(__file__).parents[2] / "docs" / "evidence.md").read_text().split())
    assert named in page[page.index("## What is not proven") :]
    report = kept.verified(relinked(kept.lines, change, kept.key))
    assert report.findings == ()
