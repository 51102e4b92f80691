"""The record of a real run: its file verifies by the pinned policy alone; whatever is changed in it is found at its place."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import CheckpointKey, ensure_key
from kedge.drivers.signers import sign_with_key
from kedge.model.base import Json, canonical, digest_of
from kedge.model.evidence import CheckpointStatement, EvidenceReport
from kedge.model.governance import ChangeRule, Revoked
from kedge.model.order import EvidenceSeen
from kedge.model.policy import EvidenceRules, Policy
from kedge.model.signed_policy import POLICY_NAMESPACE
from kedge.trust import evidence_file
from kedge.trust.chain import append, genesis, linked
from kedge.trust.envelope import order_key
from kedge.trust.evidence import Asked, verify_parts
from kedge.trust.policies import policy_text
from kedge.trust.signers_file import export_signers
from tests.conftest import Tell
from tests.spine.conftest import Stage
from tests.spine.forgery import Entry, changed, entries_of, joined, placed, relinked, split
from tests.spine.records import Kept, exported, kept_run, witnessed
from tests.spine.scene import Scene

pytestmark = pytest.mark.temporal


@pytest.fixture
async def kept(stage: Stage) -> Kept:
    """See :func:`kept_run`."""
    return await kept_run(stage)


async def test_a_run_is_verified_from_its_file_alone(kept: Kept) -> None:
    report = kept.verified()
    assert (report.ok, report.ended, report.findings, report.unproven) == (True, True, (), ())
    assert (report.run, report.records, report.signed) == (kept.run, kept.count, kept.count)
    assert (report.orders, report.refused, report.nodes, report.steps) == (4, 1, 3, 21)
    assert report.witnesses == (kept.key.public.fingerprint,)
    story = [one.said for one in report.story]
    assert [said for said in story if said.startswith("olga signed: approve")] != []
    moved = [one for one in report.story if one.what == "leg"]
    assert sorted(one.who for one in moved) == ["n0", "n1", "n2"]
    assert all("before: " in " ".join(one.details) for one in moved)


async def test_the_same_record_makes_the_same_file(stage: Stage) -> None:
    scene = await witnessed(stage)
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves={"widen": ["100%"]}, gates={})))
        assert (await scene.end_of(run)).phase == "done"
        first = await exported(scene, run)
        assert await exported(scene, run) == first


async def test_every_edit_of_a_record_is_found_at_its_place(kept: Kept, tell: Tell) -> None:
    for place in range(kept.count):
        for name, value in EDITS.items():

            def edit(
                entries: list[Entry], place: int = place, name: str = name, value: Any = value
            ) -> None:
                entries[place][name] = value(entries[place][name])

            report = kept.verified(changed(kept.lines, edit))
            assert not report.ok, (place, name)
            found = report.findings[0]
            # A record whose hash was changed is noticed by what follows it, too.
            assert found.seq == place + 1, (place, name, found)
            assert found.line == kept.lines.index(_line(kept, place)) + 1 - _behind(kept, place)
    tell(
        f"{kept.count * len(EDITS)} edits of {kept.count} records of a run, each found in its line"
    )


EDITS: dict[str, Callable[[Any], Any]] = {
    "record": lambda record: {**record, "said": "nothing happened"},
    "key": lambda key: key + "x",
    "seq": lambda seq: seq + 1000,
    "previous": lambda _: "0" * 64,
    "hash": lambda _: "f" * 64,
}


def _line(kept: Kept, place: int) -> bytes:
    return [line for line in kept.lines if line.startswith(b'{"entry"')][place]


def _behind(kept: Kept, place: int) -> int:
    """The checkpoints before a record: ``changed`` puts them all behind the records."""
    at = kept.lines.index(_line(kept, place))
    return sum(line.startswith(b'{"checkpoint"') for line in kept.lines[:at])


async def test_an_edit_whose_hash_was_taken_anew_is_found_where_the_next_one_follows(
    kept: Kept,
) -> None:
    for place in range(kept.count):

        def edit(entries: list[Entry], place: int = place) -> None:
            entry = entries[place]
            entry["record"] = {**entry["record"], "said": "nothing happened"}
            entry["hash"] = append(entry["previous"], linked(entry["key"], entry["record"])).hash

        report = kept.verified(changed(kept.lines, edit))
        found = report.findings[0]
        sealed = place + 1 in kept.places
        assert (found.kind, found.seq) == (
            ("rewritten", place + 1) if sealed else ("deleted", place + 2)
        ), (place, found)


async def test_every_deletion_is_found_at_its_place(kept: Kept) -> None:
    for place in range(kept.count):
        last = place == kept.count - 1

        def delete(entries: list[Entry], place: int = place) -> None:
            del entries[place]

        report = kept.verified(changed(kept.lines, delete))
        found = report.findings[0]
        assert (found.kind, found.seq) == ("truncated" if last else "deleted", place + 1)


async def test_every_swap_is_found_at_its_place(kept: Kept) -> None:
    for place in range(kept.count - 1):

        def swap(entries: list[Entry], place: int = place) -> None:
            entries[place], entries[place + 1] = entries[place + 1], entries[place]

        report = kept.verified(changed(kept.lines, swap))
        assert (report.findings[0].kind, report.findings[0].seq) == ("reordered", place + 1)


async def test_every_insertion_is_found_at_its_place(kept: Kept) -> None:
    for place in range(kept.count + 1):

        def insert(entries: list[Entry], place: int = place) -> None:
            before = entries[place - 1]["hash"] if place else entries[0]["previous"]
            record: dict[str, Json] = {"what": "ended", "run": kept.run, "said": "by somebody"}
            new = append(before, linked("made-up", record)).hash
            entry = {
                "seq": place + 1,
                "key": "made-up",
                "record": record,
                "previous": before,
                "hash": new,
            }
            for later in entries[place:]:
                later["seq"] += 1
            entries.insert(place, entry)

        report = kept.verified(changed(kept.lines, insert))
        found = report.findings[0]
        if place < kept.count:
            assert (found.kind, found.seq) in {("inserted", place + 1), ("rewritten", place + 1)}
        else:
            assert not report.ok
            assert ("unsigned", place + 1) in {(one.kind, one.seq) for one in report.findings}


async def test_a_record_that_stands_twice_is_found(kept: Kept) -> None:
    for place in range(kept.count - 1):

        def twice(entries: list[Entry], place: int = place) -> None:
            entries.insert(place, copy.deepcopy(entries[place]))

        report = kept.verified(changed(kept.lines, twice))
        assert (report.findings[0].kind, report.findings[0].seq) == ("inserted", place + 2)


async def test_every_truncation_is_found_at_its_place(kept: Kept) -> None:
    entries = [at for at, line in enumerate(kept.lines) if line.startswith(b'{"entry"')]
    for count, at in enumerate(entries):
        report = kept.verified(kept.lines[:at])
        assert ("truncated", count + 1) in {(one.kind, one.seq) for one in report.findings}
        report = kept.verified(joined(split(kept.lines[:at])))
        assert ("truncated", count + 1) in {(one.kind, one.seq) for one in report.findings}


async def test_a_truncation_with_everything_put_right_lacks_a_checkpoint_or_the_end(
    kept: Kept,
) -> None:
    for count in range(1, kept.count):

        def cut(entries: list[Entry], count: int = count) -> None:
            del entries[count:]

        report = kept.verified(relinked(kept.lines, cut, drop=True))
        assert not report.ended
        assert any(kept.run in said for said in report.unproven) or not report.ok
        if count not in kept.places:
            signed = max((place for place in kept.places if place <= count), default=0)
            assert ("unsigned", signed + 1) in {(one.kind, one.seq) for one in report.findings}
        # Who wrote down the end has it found in any case.
        end = {kept.count: entries_of(kept.lines)[-1]["hash"]}
        report = kept.verified(relinked(kept.lines, cut, drop=True), known=end)
        assert ("truncated", count + 1) in {(one.kind, one.seq) for one in report.findings}


async def test_a_record_written_anew_is_found_at_the_next_checkpoint(kept: Kept) -> None:
    for place in range(kept.count):

        def edit(entries: list[Entry], place: int = place) -> None:
            entries[place]["record"]["said"] = "nothing happened"

        report = kept.verified(relinked(kept.lines, edit))
        found = report.findings[0]
        sealed = min(seq for seq in kept.places if seq > place)
        assert (found.kind, found.seq) == ("rewritten", sealed)


async def test_two_ends_signed_for_one_place_are_a_fork(kept: Kept) -> None:
    first = kept.places[0]
    objects = split(kept.lines)
    at = next(at for at, one in enumerate(objects) if one.get("checkpoint", {}).get("seq") == first)
    forked = relinked(
        kept.lines, lambda entries: entries[0]["record"].update(said="else"), kept.key
    )
    other = next(one for one in split(forked) if one.get("checkpoint", {}).get("seq") == first)
    objects.insert(at + 1, other)
    report = kept.verified(joined(objects))
    assert (report.findings[0].kind, report.findings[0].seq) == ("forked", first)


def _without(what: str, **named: Any) -> Callable[[list[Entry]], object]:
    def change(entries: list[Entry]) -> None:
        place = next(
            at
            for at, one in enumerate(entries)
            if one["record"].get("what") == what
            and all(one["record"].get(name) == value for name, value in named.items())
        )
        del entries[place]

    return change


def _said(
    what: str, edit: Callable[[dict[str, Any]], object], **named: Any
) -> Callable[[list[Entry]], object]:
    def change(entries: list[Entry]) -> None:
        record = next(
            one["record"]
            for one in entries
            if one["record"].get("what") == what
            and all(one["record"].get(name) == value for name, value in named.items())
        )
        edit(record)

    return change


def _again(what: str) -> Callable[[list[Entry]], object]:
    def change(entries: list[Entry]) -> None:
        one = next(one for one in entries if one["record"].get("what") == what)
        entries.append({**copy.deepcopy(one), "key": one["key"] + "/again"})

    return change


def _step(op: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: next(step for step in record["steps"] if step["op"] == op)


def _refused(rule: str) -> Callable[[list[Entry]], object]:
    def change(entries: list[Entry]) -> None:
        one = next(one for one in entries if one["record"].get("accepted") is False)
        one["record"]["rule"] = rule
        one["key"] = order_key(one["record"]["digest"], rule, one["record"]["key"])

    return change


FORGED: list[tuple[str, str, Callable[[list[Entry]], object]]] = [
    ("an approval taken out", "gate", _without("order", person="bob", verb="approve")),
    ("the start order taken out", "lease", _without("order", verb="start")),
    ("another person said to have approved", "order", _said("order", lambda r: r.update(person="eve"), person="bob")),
    ("another key said to have signed", "order", _said("order", lambda r: r.update(key="SHA256:x"), person="bob")),
    ("a refused order turned into an accepted one", "order", _said("order", lambda r: r.update(accepted=True, rule="accepted"), person="olga", verb="approve")),
    ("an accepted order turned into a refused one", "order", _said("order", lambda r: r.update(accepted=False, rule="role"), person="bob")),
    ("the time of an order moved", "order", _said("order", lambda r: r["case"]["expected"].update(now="2020-01-01T00:00:00Z"), person="bob")),
    ("a signature of somebody else", "order", _said("order", lambda r: r["case"]["envelope"].update(signature="-----"), person="bob")),
    ("judged by another policy", "policy", _said("order", lambda r: r["case"].update(policies=["0" * 64]), person="bob")),
    ("judged by no policy", "policy", _said("order", lambda r: r["case"].update(policies=[]), person="bob")),
    ("the lease of another epoch", "warrant", _said("lease", lambda r: r.update(epoch=7))),
    ("what allowed a wave taken out", "gate", _without("allowed", wave=1)),
    ("another plan", "warrant", _said("allowed", lambda r: r.update(plan="0" * 64), wave=1)),
    ("other bytes switched to", "release", _said("leg", lambda r: _step("switch")(r)["after"].update(release="0" * 64), node="n1")),
    ("other bytes sent", "release", _said("leg", lambda r: _step("stage")(r)["sent"].update(digest="0" * 64), node="n1")),
    ("a node moved twice", "effect", _again("leg")),
    ("another person said to have been refused", "order", _said("order", lambda r: r.update(person="bob"), person="olga", verb="approve")),
    ("another key said to have been refused", "order", _said("order", lambda r: r.update(key="SHA256:x"), person="olga", verb="approve")),
    ("another reason to refuse", "order", _refused("expired")),
    ("nobody said to have asked for the run", "order", _said("order", lambda r: r["case"]["expected"].update(requester=None), person="bob")),
    ("an end of the record that its signer did not see", "order", _said("order", lambda r: r.update(evidence={"seq": 1, "hash": "0" * 64}), person="bob")),
    ("a review said to be closed", "order", _said("order", lambda r: r.update(closes=True), person="bob")),
    ("another version said to be pinned", "policy", _said("policy", lambda r: r.update(version=7))),
    ("the lease of another run", "warrant", _said("lease", lambda r: r.update(run="upgrade/other/77"))),
    ("the lease taken out", "warrant", _without("lease")),
    ("a node moved in a wave before its own", "gate", _said("leg", lambda r: r.update(wave=0), node="n1")),
]  # fmt: skip


@pytest.mark.parametrize(("what", "kind", "change"), FORGED, ids=[what for what, *_ in FORGED])
async def test_who_holds_the_workers_key_forges_no_order_and_no_gate(
    kept: Kept, what: str, kind: str, change: Callable[[list[Entry]], object]
) -> None:
    assert kept.verified(relinked(kept.lines, lambda _: None, kept.key)).ok
    report = kept.verified(relinked(kept.lines, change, kept.key))
    assert not report.ok, what
    assert kind in {one.kind for one in report.findings}, report.findings


async def test_a_checkpoint_by_another_key_proves_nothing(kept: Kept, stage: Stage) -> None:
    other = ensure_key((await stage()).settings.checkpoint_key)
    report = kept.verified(relinked(kept.lines, lambda _: None, other))
    assert not report.ok
    assert {one.kind for one in report.findings} == {"unsigned"}
    assert any(other.public.fingerprint in said for said in report.unproven)


def _rotated(
    kept: Kept, new: CheckpointKey, signed: list[tuple[int, CheckpointKey]], **revoked: Any
) -> tuple[list[bytes], Policy]:
    """The record with two records more, that a policy with the key ``new`` alone was pinned and one behind that;
    ``signed`` are more checkpoints: how many records behind the old end, and by whom.
    """
    policy = kept.policy.model_copy(
        update={
            "version": kept.policy.version + 1,
            "previous": digest_of(kept.policy),
            "evidence": EvidenceRules(signers=(new.public.line,)),
            **revoked,
        }
    )

    def more(entries: list[Entry]) -> None:
        pinned = {"what": "policy", "at": "2026-11-23T12:00:00Z", "policies": [digest_of(policy)]}
        behind = {"what": "looked", "at": "2026-11-23T12:00:01Z", "nodes": {}}
        entries.append({"key": "policy/2", "record": pinned})
        entries.append({"key": "looked/behind", "record": behind})

    objects = split(relinked(kept.lines, more))
    hashes = {one["entry"]["seq"]: one["entry"]["hash"] for one in objects if "entry" in one}
    fleet = next(one["header"] for one in objects if "header" in one)
    old = max(one["checkpoint"]["seq"] for one in objects if "checkpoint" in one)
    for place, key in signed:
        statement = CheckpointStatement(
            fleet=fleet["fleet"],
            seq=old + place,
            hash=hashes[old + place],
            at="2026-11-23T12:00:02Z",
        )
        objects.append({"checkpoint": key.sign(statement).model_dump(mode="json")})
        fleet["checkpoints"] += 1
    return joined(placed(objects)), policy


async def test_a_checkpoint_key_that_was_rotated_vouches_up_to_the_change(
    kept: Kept, tmp_path: Path
) -> None:
    new = ensure_key(tmp_path / "new")
    lines, policy = _rotated(kept, new, [(1, kept.key), (2, new)])
    pinned = {digest_of(one): one for one in (kept.policy, policy)}
    report = verify_parts(evidence_file.read(lines), Asked(pinned=pinned))
    assert (report.ok, report.findings, report.unproven) == (True, (), ())
    assert report.signed == report.last == kept.count + 2
    assert set(report.witnesses) == {kept.key.public.fingerprint, new.public.fingerprint}


async def test_a_checkpoint_key_that_a_version_dropped_vouches_for_nothing_behind_it(
    kept: Kept, tmp_path: Path
) -> None:
    lines, policy = _rotated(kept, ensure_key(tmp_path / "new"), [(1, kept.key), (2, kept.key)])
    pinned = {digest_of(one): one for one in (kept.policy, policy)}
    report = verify_parts(evidence_file.read(lines), Asked(pinned=pinned))
    assert [(one.kind, one.seq) for one in report.findings] == [("unsigned", kept.count + 2)]
    said = f"behind record {kept.count + 1} prove nothing: version {policy.version} of the policy"
    assert any(said in one and kept.key.public.fingerprint in one for one in report.unproven)


async def test_who_does_not_see_when_a_key_was_dropped_is_told_so(
    kept: Kept, tmp_path: Path
) -> None:
    _, policy = _rotated(kept, ensure_key(tmp_path / "new"), [])
    pinned = {digest_of(one): one for one in (kept.policy, policy)}
    report = verify_parts(evidence_file.read(kept.lines), Asked(pinned=pinned))
    assert report.ok
    assert any("no record here says when it was pinned" in one for one in report.unproven)


async def test_a_checkpoint_key_that_was_revoked_vouches_for_nothing_anywhere(
    kept: Kept, tmp_path: Path
) -> None:
    new = ensure_key(tmp_path / "new")
    revoked = Revoked(keys=(kept.key.public.line,))
    lines, policy = _rotated(kept, new, [(1, kept.key)], revoked=revoked)
    pinned = {digest_of(one): one for one in (kept.policy, policy)}
    report = verify_parts(evidence_file.read(lines), Asked(pinned=pinned))
    assert [(one.kind, one.seq) for one in report.findings] == [("unsigned", 1)]
    assert (report.signed, report.witnesses) == (0, ())
    assert any("that key was revoked" in one for one in report.unproven)


async def test_no_single_byte_can_be_changed(kept: Kept) -> None:
    whole = b"".join(kept.lines)
    dice = random.Random(4)
    for _ in range(150):
        at = dice.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ (1 << dice.randrange(8))]) + whole[at + 1 :]
        report = kept.verified(flipped.splitlines(keepends=True))
        assert not report.ok, at
        assert report.findings[0].said


@pytest.mark.parametrize(
    ("sentence", "content"),
    [
        ("nothing", b""),
        ("no evidence", b"hello\n"),
        ("another document", b'{"kind":"Policy"}\n'),
        ("a line that is nested too deep", b'{"header":' + b"[" * 500 + b"]" * 500 + b"}\n"),
        ("a line that no parser takes", b"[" * 100_000 + b"]" * 100_000 + b"\n"),
        ("a number that is none", b'{"header":NaN}\n'),
        ("binary", bytes(range(256)) * 40),
        ("a header alone", b'{"header":{"after":{"hash":"' + b"0" * 64 + b'","seq":0}}}\n'),
    ],
)
def test_what_is_no_evidence_is_said_so(sentence: str, content: bytes) -> None:
    parts = evidence_file.read(content.splitlines(keepends=True))
    report = verify_parts(parts, Asked())
    assert not report.ok, sentence
    assert report.findings[0].line is not None


async def test_another_policy_judges_otherwise(kept: Kept) -> None:
    people = tuple(one for one in kept.policy.people if one.name != "bob")
    other = kept.policy.model_copy(update={"people": people})
    report = verify_parts(evidence_file.read(kept.lines), Asked(pinned={digest_of(other): other}))
    assert not report.ok
    assert "policy" in {one.kind for one in report.findings}


async def test_the_policy_is_taken_from_the_file_when_its_digest_is_pinned(kept: Kept) -> None:
    parts = evidence_file.read(kept.lines)
    assert verify_parts(parts, Asked(roots=frozenset({digest_of(kept.policy)}))).ok
    assert not verify_parts(parts, Asked(roots=frozenset({"0" * 64}))).ok


async def test_an_order_names_an_end_that_the_record_had(stage: Stage) -> None:
    scene = await witnessed(stage)
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        seen = status.evidence
        assert seen is not None
        (entry,) = await scene.drivers.evidence.read(scene.name, seen.seq - 1, 1)
        assert (entry.seq, entry.hash) == (seen.seq, seen.hash)
        assert isinstance(entry.record, dict)
        assert entry.record["what"] == "asked"
        for sentence, other in (
            ("another hash", seen.model_copy(update={"hash": "0" * 64})),
            ("a place it never had", seen.model_copy(update={"seq": 1_000_000})),
            ("the right hash at another place", seen.model_copy(update={"seq": seen.seq - 1})),
            ("another fleet's beginning", EvidenceSeen(seq=0, hash=genesis("elsewhere"))),
        ):
            verdict = await scene.order("approve", run, "ada", evidence=other)
            assert (verdict.accepted, verdict.rule) == (False, "evidence"), sentence
        assert (await scene.order("approve", run, "ada", evidence=seen)).accepted
        begin = EvidenceSeen(seq=0, hash=genesis(scene.name))
        assert (await scene.order("approve", run, "bob", evidence=begin)).accepted
        assert (await scene.end_of(run)).phase == "done"
    lines = await exported(scene, run)
    pinned = {digest_of(scene.policy): scene.policy}
    assert verify_parts(evidence_file.read(lines), Asked(pinned=pinned)).ok
    # Who signed it bears witness: a record written anew before that does not fit what he saw.
    key = ensure_key(scene.settings.checkpoint_key)
    forged = relinked(lines, _said("looked", lambda record: record.update(nodes={})), key)
    report = verify_parts(evidence_file.read(forged), Asked(pinned=pinned))
    assert "rewritten" in {one.kind for one in report.findings}


async def test_a_policy_may_ask_that_every_decision_names_what_was_seen(stage: Stage) -> None:
    scene = await stage()
    key = ensure_key(scene.settings.checkpoint_key)
    rules = EvidenceRules(signers=(key.public.line,), named="required")
    scene.policy = scene.policy.model_copy(update={"evidence": rules})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    async with scene.playing():
        run = await scene.start(scene.plan())
        status = await scene.waits_for(run, "ship")
        assert (await scene.order("approve", run, "ada")).rule == "evidence"
        assert (await scene.order("approve", run, "ada", evidence=status.evidence)).accepted
        assert (await scene.order("reject", run, "bob")).rule == "evidence"
        assert (await scene.order("abort", run, "olga")).accepted


async def test_the_journals_of_real_hosts_agree_with_the_record(stage: Stage) -> None:
    scene = await witnessed(stage, nodes=2, transport="local")
    async with scene.playing():
        runbook = scene.runbook(waves={"widen": ["100%"], "max_unavailable": 1}, gates={})
        run = await scene.start(scene.plan(runbook))
        assert (await scene.end_of(run)).phase == "done"
    parts = evidence_file.read(await exported(scene, run, whole=True))
    journals = {
        name: (scene.home / "nodes" / name / ".kedge" / "journal").read_bytes()
        for name in ("n0", "n1")
    }

    def held(changes: dict[str, bytes]) -> EvidenceReport:
        pinned = {digest_of(scene.policy): scene.policy}
        return verify_parts(parts, Asked(pinned=pinned, journals={**journals, **changes}))

    report = held({})
    assert (report.findings, report.unproven) == ((), ())
    lines = journals["n0"].splitlines(keepends=True)
    for sentence, other in (
        ("a line taken out", b"".join(lines[:3] + lines[4:])),
        ("a line changed", journals["n0"].replace(b'"running":true', b'"running":false', 1)),
        ("cut off", b"".join(lines[:-2])),
        ("another host's", journals["n1"]),
        ("nothing", b""),
    ):
        found = held({"n0": other}).findings
        assert found, sentence
        assert {one.kind for one in found} <= {"journal", "effect"}, sentence


def kedge(scene: Scene, *words: str) -> Result:
    return CliRunner().invoke(app, ["--home", str(scene.settings.home), "evidence", *words])


async def test_the_commands_show_export_verify_and_check(stage: Stage) -> None:
    scene = await witnessed(stage)
    target = scene.home / "run.evidence"
    async with scene.playing():
        run = await scene.start(scene.plan())
        await scene.waits_for(run, "ship")
        open_run = await asyncio.to_thread(kedge, scene, "export", run, "-o", str(target))
        assert "has not ended" in open_run.stdout
        found = await asyncio.to_thread(kedge, scene, "verify", str(target), "--json")
        assert found.exit_code == 7, found.output
        await scene.approve(run)
        assert (await scene.end_of(run)).phase == "done"

    def look() -> None:
        exported = json.loads(kedge(scene, "export", run, "-o", str(target), "--json").stdout)
        assert exported["ended"]
        assert exported["last"] >= 20
        good = kedge(scene, "verify", str(target))
        assert good.exit_code == 0, good.output
        for said in ("none changed", "ada signed: approve", "before: release", "sent: "):
            assert said in good.stdout
        elsewhere = ["--home", str(scene.home / "nowhere"), "evidence", "verify", str(target)]
        assert CliRunner().invoke(app, elsewhere).exit_code == 4
        policy = scene.home / "policy.json"
        policy.write_bytes(canonical(scene.policy))
        for trusted in (["--policy", str(policy)], ["--root", digest_of(scene.policy)]):
            assert CliRunner().invoke(app, [*elsewhere, *trusted]).exit_code == 0
        assert kedge(scene, "verify", str(target), "--root", "0" * 64).exit_code == 3
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
        bad = kedge(scene, "verify", str(target), "--json")
        assert bad.exit_code == 3
        assert json.loads(bad.stdout)["findings"]
        assert kedge(scene, "show", run).stdout.count("\n") > 20
        checked = json.loads(kedge(scene, "check", "--json").stdout)
        assert [one["ok"] for one in checked["fleets"]] == [True]
        for words in (["show", "upgrade/nothing/1"], ["export", run + "7"], ["check", "nothing"]):
            assert kedge(scene, *words).exit_code == 4, words
        for words in (["--head", "x"], ["--journal", "n0"], ["--root", "abc"]):
            assert kedge(scene, "verify", str(target), *words).exit_code == 2, words

    await asyncio.to_thread(look)


async def test_whoever_changes_the_store_is_found_by_a_check(stage: Stage) -> None:
    scene = await witnessed(stage)
    scene.meddled = "a record is taken out of the store"
    async with scene.playing():
        run = await scene.start(scene.plan(scene.runbook(waves={"widen": ["100%"]}, gates={})))
        assert (await scene.end_of(run)).phase == "done"
    await scene.drivers.aclose()

    def look() -> None:
        assert kedge(scene, "check").exit_code == 0
        with contextlib.closing(sqlite3.connect(scene.settings.home / "evidence.db")) as file:
            file.execute("DROP TRIGGER entries_update")
            file.execute(
                "UPDATE entries SET hash = 'none' WHERE seq = (SELECT max(seq) FROM entries)"
            )
            file.commit()
            assert kedge(scene, "check").exit_code == 3
            file.execute("DROP TRIGGER entries_delete")
            file.execute("DELETE FROM entries WHERE seq = 7")
            file.commit()
        found = kedge(scene, "check", "--json")
        assert found.exit_code == 3
        (report,) = json.loads(found.stdout)["fleets"]
        assert (report["findings"][0]["kind"], report["findings"][0]["seq"]) == ("deleted", 7)

    await asyncio.to_thread(look)


async def test_policies_that_were_changed_by_signature_follow_from_the_first(stage: Stage) -> None:
    scene = await stage()
    key = ensure_key(scene.settings.checkpoint_key)
    rules = EvidenceRules(signers=(key.public.line,))
    change = ChangeRule(threshold=2, roles=("sre", "db-owner"))
    first = scene.policy.model_copy(update={"evidence": rules, "change": change})
    await scene.drivers.pins.pin(scene.name, first)
    scene.policy = first
    runbook = scene.runbook(waves={"widen": ["100%"], "max_unavailable": 1}, gates={})
    async with scene.playing():
        one = await scene.start(scene.plan(runbook))
        assert (await scene.end_of(one)).phase == "done"
        second = first.model_copy(
            update={"version": 2, "previous": digest_of(first), "max_lifetime": 1800.0}
        )
        text = policy_text(second)
        signatures = tuple(
            sign_with_key(scene.keys[who], text.encode(), namespace=POLICY_NAMESPACE)
            for who in ("ada", "bob")
        )
        await scene.drivers.pins.pin(scene.name, second, signatures=signatures)
        scene.policy = second
        await asyncio.sleep(1.2)
        two = await scene.start(scene.plan(runbook, before="1.1.0", after="1.2.0"))
        assert (await scene.end_of(two)).phase == "done"
    parts = evidence_file.read(await exported(scene, two))
    assert parts.header is not None
    assert parts.header.after.seq > 0
    root = digest_of(first)
    report = verify_parts(parts, Asked(roots=frozenset({root})))
    assert (report.findings, report.policies) == ((), (digest_of(second),))
    # The second vouches for the first, which it was made from.
    older = evidence_file.read(await exported(scene, one))
    assert verify_parts(older, Asked(pinned={digest_of(second): second})).ok
    # Without its signatures it follows from nothing.
    lines = await exported(scene, two)
    unsigned = [
        line for line in split(lines) if line.get("document", {}).get("what") != "policy-change"
    ]
    unsigned[0]["header"]["documents"] -= 1
    found = verify_parts(evidence_file.read(joined(unsigned)), Asked(roots=frozenset({root})))
    assert "policy" in {one.kind for one in found.findings}
    report = await desk_evidence.check(
        scene.drivers.evidence, scene.drivers.blobs, scene.name, (first,)
    )
    assert report.findings == ()


@pytest.mark.skipif(
    shutil.which("jq") is None, reason="jq is not installed: tools/packages installs it"
)
async def test_the_recipe_verifies_by_hand_what_was_not_changed(kept: Kept, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text()
    recipe = re.search(r"## By hand.*?```sh\n(.*?)```", text, re.DOTALL)
    assert recipe is not None
    (tmp_path / "allowed_signers").write_text(export_signers(kept.policy.people))

    def follow(lines: list[bytes]) -> subprocess.CompletedProcess[str]:
        (tmp_path / "run.evidence").write_bytes(b"".join(lines))
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", recipe[1]],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = await asyncio.to_thread(follow, kept.lines)
    assert done.returncode == 0, done.stderr
    plan = next(
        one["document"]
        for one in split(kept.lines)
        if one.get("document", {}).get("what") == "plan"
    )
    assert plan["digest"] in done.stdout
    assert done.stdout.count("Good ") == 2

    def edit(entries: list[Entry]) -> None:
        entries[6]["record"]["said"] = "nothing happened"

    assert (await asyncio.to_thread(follow, changed(kept.lines, edit))).returncode != 0
    other = ensure_key(tmp_path / "other")
    forged = relinked(kept.lines, lambda _: None, other)
    again = await asyncio.to_thread(follow, forged)
    # Whose key it is is for the policy to say: that part of the recipe is the reader's.
    assert again.returncode == 0
    assert (tmp_path / "workers").read_text().split()[3] not in str(kept.policy.evidence)
