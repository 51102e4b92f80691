"""Evidence: each key once, one unbroken chain per fleet, whoever appends and whoever is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kedge.drivers.evidence import MAX_RECORD, SqliteEvidence
from kedge.drivers.ports import EvidenceEntry
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.trust.chain import genesis, verify

WRITER = """
import asyncio, sys
from pathlib import Path
from kedge.drivers.evidence import SqliteEvidence

async def main(path, who, shared, count):
    evidence = SqliteEvidence(Path(path))
    async def one(number):
        key = f"shared/{number}" if number % 2 else f"{who}/{number}"
        await evidence.append("etcd", key, {"who": who, "number": number})
        print(key, flush=True)
    for start in range(0, int(count), 20):
        await asyncio.gather(*(one(number) for number in range(start, start + 20)))
    await evidence.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def evidence(tmp_path: Path) -> AsyncIterator[SqliteEvidence]:
    made = SqliteEvidence(tmp_path / "evidence.db")
    yield made
    await made.aclose()


async def everything(evidence: SqliteEvidence, fleet: str = "etcd") -> list[EvidenceEntry]:
    found: list[EvidenceEntry] = []
    while page := await evidence.read(fleet, len(found)):
        found += page
    return found


async def assert_sound(evidence: SqliteEvidence, fleet: str = "etcd") -> list[EvidenceEntry]:
    """One chain without a gap, each key once, and its head is the head."""
    entries = await everything(evidence, fleet)
    verdict = verify(fleet, [entry.link() for entry in entries])
    assert verdict.ok, verdict.said
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len({entry.key for entry in entries}) == len(entries)
    head = await evidence.head(fleet)
    assert (head.seq, head.hash) == (len(entries), verdict.head)
    return entries


async def test_an_empty_chain_begins_with_its_fleet(evidence: SqliteEvidence) -> None:
    head = await evidence.head("etcd")
    assert (head.seq, head.hash) == (0, genesis("etcd"))
    assert await evidence.read("etcd") == ()


async def test_records_follow_each_other(evidence: SqliteEvidence) -> None:
    records: list[Json] = [{"what": "start"}, ["any", 1, None], "text"]
    heads = [
        await evidence.append("etcd", f"k{number}", record) for number, record in enumerate(records)
    ]
    entries = await assert_sound(evidence)
    assert [entry.record for entry in entries] == records
    assert [entry.hash for entry in entries] == [head.hash for head in heads]


async def test_a_key_is_appended_once_and_the_first_record_stays(evidence: SqliteEvidence) -> None:
    first = await evidence.append("etcd", "k", {"at": 1})
    await evidence.append("etcd", "other", {})
    again = await evidence.append("etcd", "k", {"at": 2})
    assert again == first
    assert [entry.record for entry in await assert_sound(evidence)] == [{"at": 1}, {}]


async def test_fleets_have_chains_of_their_own(evidence: SqliteEvidence) -> None:
    await evidence.append("etcd", "k", 1)
    await evidence.append("nats", "k", 1)
    (etcd,) = await assert_sound(evidence, "etcd")
    (nats,) = await assert_sound(evidence, "nats")
    assert etcd.hash != nats.hash


async def test_a_key_is_part_of_what_is_hashed(evidence: SqliteEvidence, tmp_path: Path) -> None:
    other = SqliteEvidence(tmp_path / "other.db")
    one = await evidence.append("etcd", "k1", 1)
    two = await other.append("etcd", "k2", 1)
    assert one.hash != two.hash
    await other.aclose()


async def test_a_page_is_bounded_and_goes_on(evidence: SqliteEvidence) -> None:
    await asyncio.gather(*(evidence.append("etcd", f"k{number}", number) for number in range(25)))
    page = await evidence.read("etcd", since=10, limit=5)
    assert [entry.seq for entry in page] == [11, 12, 13, 14, 15]


async def test_what_is_no_canonical_json_is_refused_alone(evidence: SqliteEvidence) -> None:
    good = evidence.append("etcd", "good", 1)
    for record in (float("nan"), 2**60, "x" * MAX_RECORD):
        with pytest.raises(DriverError) as caught:
            await evidence.append("etcd", "bad", record)
        assert (caught.value.kind, caught.value.retryable) == ("StoreError", False)
    await good
    assert len(await assert_sound(evidence)) == 1


async def test_names_that_are_no_text_are_refused_alone(evidence: SqliteEvidence) -> None:
    for fleet, key in (("etcd", "\ud800"), ("\ud800", "k")):
        with pytest.raises(DriverError) as caught:
            await evidence.append(fleet, key, 1)
        assert not caught.value.retryable
    assert (await evidence.append("etcd", "k", 1)).seq == 1


async def test_appending_while_it_is_closed_loses_nothing(evidence: SqliteEvidence) -> None:
    async def appends(who: str) -> None:
        for number in range(20):
            await evidence.append("etcd", f"{who}/{number}", number)

    async def closes() -> None:
        for _ in range(10):
            await evidence.aclose()

    await asyncio.gather(appends("a"), closes(), appends("b"), closes())
    assert len(await assert_sound(evidence)) == 40


async def test_a_thousand_at_once_are_few_transactions(evidence: SqliteEvidence) -> None:
    begun = time.perf_counter()
    await asyncio.gather(*(evidence.append("etcd", f"k{number}", number) for number in range(1000)))
    assert time.perf_counter() - begun < 10
    assert len(await assert_sound(evidence)) == 1000


async def test_the_same_key_at_once_is_one_entry(evidence: SqliteEvidence) -> None:
    heads = await asyncio.gather(*(evidence.append("etcd", "k", number) for number in range(50)))
    assert len(set(heads)) == 1
    assert len(await assert_sound(evidence)) == 1


async def test_a_cancelled_append_does_not_stop_the_others(evidence: SqliteEvidence) -> None:
    tasks = [
        asyncio.create_task(evidence.append("etcd", f"k{number}", number)) for number in range(20)
    ]
    await asyncio.sleep(0)
    tasks[3].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, BaseException) for one in results) == 1
    assert len(await assert_sound(evidence)) in {19, 20}


async def test_it_goes_on_after_being_closed(evidence: SqliteEvidence) -> None:
    await evidence.append("etcd", "k1", 1)
    await evidence.aclose()
    await evidence.append("etcd", "k2", 2)
    assert len(await assert_sound(evidence)) == 2


async def test_a_disk_that_refuses_is_an_error_that_may_pass(tmp_path: Path) -> None:
    (tmp_path / "evidence.db").mkdir()
    evidence = SqliteEvidence(tmp_path / "evidence.db")
    with pytest.raises(DriverError) as caught:
        await evidence.append("etcd", "k", 1)
    assert (caught.value.kind, caught.value.retryable) == ("StoreError", True)
    (tmp_path / "evidence.db").rmdir()
    assert (await evidence.append("etcd", "k", 1)).seq == 1
    await evidence.aclose()


def writer(path: Path, who: str, count: int = 200) -> subprocess.Popen[str]:
    arguments = [str(path), who, "shared", str(count)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True
    )


async def test_many_processes_write_one_chain(evidence: SqliteEvidence, tmp_path: Path) -> None:
    writers = [writer(tmp_path / "evidence.db", who) for who in ("a", "b", "c")]
    await asyncio.gather(*(evidence.append("etcd", f"own/{number}", 0) for number in range(100)))
    for one in writers:
        await asyncio.to_thread(one.communicate, None, 60)
    assert [one.returncode for one in writers] == [0, 0, 0]
    entries = await assert_sound(evidence)
    assert len(entries) == 100 + 3 * 100 + 100


@pytest.mark.parametrize("lines", [1, 40, 150])
async def test_a_killed_writer_loses_nothing_it_was_told_and_breaks_nothing(
    evidence: SqliteEvidence, tmp_path: Path, lines: int
) -> None:
    one = writer(tmp_path / "evidence.db", "a", 2000)
    assert one.stdout is not None
    told = [await asyncio.to_thread(one.stdout.readline) for _ in range(lines)]
    one.kill()
    rest, _ = await asyncio.to_thread(one.communicate)
    # A last line that was cut off by the kill tells nothing.
    lines_told = [*told, *rest.splitlines(keepends=True)]
    acknowledged = {line.strip() for line in lines_told if line.endswith("\n")}
    keys = {entry.key for entry in await assert_sound(evidence)}
    assert acknowledged <= keys
    await evidence.append("etcd", "after", {})
    await assert_sound(evidence)
