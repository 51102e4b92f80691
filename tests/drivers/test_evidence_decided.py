"""Conditional appends: decided on what the fleet's chain has, under its lock, by whatever worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from kedge.drivers.checkpoints import SignedEvidence
from kedge.drivers.evidence_writer import WrittenEvidence
from kedge.drivers.ports import MAX_BEHIND
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.trust.chain import EvidenceEntry, EvidenceHead, verify
from tests.drivers.conftest import Place

ROOT = Path(__file__).parents[2]
SLOTS = 5
"""Entries that may stand in a chain by the rule that these tests decide by."""

RACER = """
import asyncio, sys
from tests.drivers.conftest import opened
from tests.drivers.test_evidence_decided import takes

async def main(address, who):
    evidence = opened(address)
    for number in range(20):
        decided = await evidence.append_decided("etcd", 0, takes(f"{who}/{number}"))
        print(len(decided.appended), flush=True)
    await evidence.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


class takes:  # noqa: N801 - used as the function it makes
    """Takes a slot while there is one: a decision that is wrong as soon as two workers make it at once."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(
        self, entries: tuple[EvidenceEntry, ...], head: EvidenceHead
    ) -> Sequence[tuple[str, Json]]:
        assert head.seq == (entries[-1].seq if entries else 0)
        return [(self._key, {"what": "taken"})] if len(entries) < SLOTS else []


@pytest.fixture
async def evidence(place: Place) -> AsyncIterator[WrittenEvidence]:
    made = place()
    yield made
    await made.aclose()


async def assert_sound(evidence: WrittenEvidence, many: int) -> None:
    entries = await evidence.read("etcd")
    assert verify("etcd", [entry.link() for entry in entries]).ok
    assert [entry.seq for entry in entries] == list(range(1, many + 1))


async def test_it_decides_on_what_follows_the_cursor_and_says_what_it_read(
    evidence: WrittenEvidence,
) -> None:
    for number in range(3):
        await evidence.append("etcd", f"k{number}", number)
    seen: list[tuple[tuple[EvidenceEntry, ...], EvidenceHead]] = []

    def decide(
        entries: tuple[EvidenceEntry, ...], head: EvidenceHead
    ) -> Sequence[tuple[str, Json]]:
        seen.append((entries, head))
        return [("a", {"n": head.seq + 1}), ("b", {"n": head.seq + 2})]

    decided = await evidence.append_decided("etcd", 1, decide)
    ((entries, head),) = seen
    assert decided.read == entries
    assert [entry.record for entry in entries] == [1, 2]
    assert head.seq == 3
    assert [(one.seq, one.key, one.record) for one in decided.appended] == [
        (4, "a", {"n": 4}),
        (5, "b", {"n": 5}),
    ]
    assert decided.head == EvidenceHead(5, decided.appended[1].hash)
    assert (await evidence.read("etcd"))[3:] == decided.appended
    await assert_sound(evidence, 5)


async def test_nothing_decided_appends_nothing(evidence: WrittenEvidence) -> None:
    head = await evidence.append("etcd", "k", 1)
    decided = await evidence.append_decided("etcd", head.seq, lambda *_: ())
    assert (decided.read, decided.appended, decided.head) == ((), (), head)


async def test_a_taken_key_with_another_record_is_an_error_and_nothing_of_it_is_appended(
    evidence: WrittenEvidence,
) -> None:
    first = await evidence.append("etcd", "k", {"at": "1", "n": 1})
    others: list[Json] = [{"at": "2", "n": 2}, {"at": "1"}, [1], "n"]
    for record in others:
        with pytest.raises(DriverError, match="another entry under k") as caught:
            await evidence.append_decided("etcd", 0, lambda *_, r=record: [("new", 1), ("k", r)])
        assert (caught.value.kind, caught.value.retryable) == ("KeyTaken", False)
        with pytest.raises(DriverError, match="another entry under k"):
            await evidence.append("etcd", "k", record, strict=True)
        assert await evidence.append("etcd", "k", record) == first
    await assert_sound(evidence, 1)


async def test_a_taken_key_with_the_same_record_is_the_entry_of_the_first_time(
    evidence: WrittenEvidence,
) -> None:
    first = await evidence.append("etcd", "k", {"at": "1", "n": 1})
    again: Json = {"at": "2", "n": 1}
    decided = await evidence.append_decided("etcd", 0, lambda *_: [("new", 1), ("k", again)])
    assert [(one.seq, one.record) for one in decided.appended] == [(2, 1), (1, {"at": "1", "n": 1})]
    assert await evidence.append("etcd", "k", again, strict=True) == first
    await assert_sound(evidence, 2)


async def test_what_a_decision_raises_is_raised_to_its_caller_alone(
    evidence: WrittenEvidence,
) -> None:
    def fails(*_: object) -> Sequence[tuple[str, Json]]:
        raise LookupError("of this one")

    results = await asyncio.gather(
        evidence.append("etcd", "before", 1),
        evidence.append_decided("etcd", 0, fails),
        evidence.append_decided("etcd", 0, lambda *_: [("nan", float("nan"))]),
        evidence.append_decided("etcd", 0, lambda *_: [("twice", 1), ("twice", 1)]),
        evidence.append("etcd", "after", 1),
        return_exceptions=True,
    )
    kinds = [type(one).__name__ for one in results]
    assert kinds == ["EvidenceHead", "LookupError", "DriverError", "ValueError", "EvidenceHead"]
    await assert_sound(evidence, 2)


async def test_a_caller_far_behind_reads_first(
    evidence: WrittenEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_BEHIND > SLOTS
    monkeypatch.setattr("kedge.drivers.evidence_writer.MAX_BEHIND", SLOTS)
    for number in range(SLOTS + 1):
        await evidence.append("etcd", f"k{number}", number)
    with pytest.raises(DriverError, match="read them first") as caught:
        await evidence.append_decided("etcd", 0, lambda *_: [("k", 1)])
    assert (caught.value.kind, caught.value.retryable) == ("Behind", True)
    assert (await evidence.append_decided("etcd", 1, lambda *_: [("k", 1)])).head.seq == SLOTS + 2


async def test_decisions_of_one_transaction_see_each_other(
    evidence: WrittenEvidence,
) -> None:
    decided = await asyncio.gather(
        *(evidence.append_decided("etcd", 0, takes(f"k{number}")) for number in range(9))
    )
    assert sum(len(one.appended) for one in decided) == SLOTS
    await assert_sound(evidence, SLOTS)


async def test_racing_workers_never_take_the_last_slot_twice(place: Place, address: str) -> None:
    workers = [place() for _ in range(3)]
    others = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", RACER, address, who, stdout=subprocess.PIPE, cwd=ROOT
        )
        for who in ("x", "y")
    ]

    async def races(evidence: WrittenEvidence, who: int) -> int:
        taken = 0
        for number in range(20):
            decided = await evidence.append_decided("etcd", 0, takes(f"{who}/{number}"))
            taken += len(decided.appended)
        return taken

    taken = sum(await asyncio.gather(*(races(one, who) for who, one in enumerate(workers))))
    for one in others:
        out, _ = await asyncio.wait_for(one.communicate(), 60)
        assert one.returncode == 0
        taken += sum(map(int, out.split()))
    assert taken == SLOTS
    await assert_sound(workers[0], SLOTS)
    for evidence in workers:
        await evidence.aclose()


async def test_what_was_decided_is_sealed_as_other_records_are(
    place: Place, tmp_path: Path
) -> None:
    evidence = SignedEvidence(place(), tmp_path / "key")
    decided = await evidence.append_decided("etcd", 0, lambda *_: [("k", {"what": "ended"})])
    (checkpoint,) = await evidence.checkpoints("etcd")
    assert (checkpoint.seq, checkpoint.hash) == (decided.head.seq, decided.head.hash)
    await evidence.aclose()
