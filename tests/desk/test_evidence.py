"""The record of a fleet as a face reads it from the store, whatever somebody wrote into that."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import SignedEvidence, ensure_key
from kedge.drivers.evidence import SqliteEvidence
from kedge.drivers.stores import FileBlobs
from kedge.model.evidence import Checkpoint
from kedge.model.policy import EvidenceRules
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from tests.trust import world


@pytest.mark.parametrize("far", [5, 2001, 10**12])
async def test_a_row_far_behind_the_end_is_read_once_and_found(far: int, tmp_path: Path) -> None:
    store = SqliteEvidence(tmp_path / "evidence.db")
    for number in range(3):
        await store.append("db", f"k{number}", {"what": "x", "n": number})
    with closing(sqlite3.connect(tmp_path / "evidence.db")) as file, file:
        row = ("db", far, "far", '{"what": "x"}', "0" * 64, "1" * 64)
        file.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)
    read = await asyncio.wait_for(desk_evidence.everything(store, "db"), 60)
    assert [one.seq for one in read] == [1, 2, 3, far]
    blobs = FileBlobs(tmp_path / "blobs")
    report = await desk_evidence.check(store, blobs, "db", (world.policy(),))
    assert not report.ok
    assert report.findings[0].seq == 4
    await store.aclose()


class Busy(SignedEvidence):
    """A store in which a worker writes and signs one more record before each question is answered, and one behind it."""

    written = 0

    async def writes(self) -> None:
        self.written += 1
        await self.append("db", f"k{self.written}", {"what": "ended", "n": self.written})

    async def head(self, fleet: str) -> EvidenceHead:
        await self.writes()
        found = await super().head(fleet)
        await self.writes()
        return found

    async def read(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[EvidenceEntry, ...]:
        found = await super().read(fleet, since, limit)
        if found:
            await self.writes()
        return found

    async def checkpoints(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[Checkpoint, ...]:
        if since == 0:
            await self.writes()
        return await super().checkpoints(fleet, since, limit)


async def test_a_record_that_goes_on_being_written_while_it_is_checked_is_not_cut_off(
    tmp_path: Path,
) -> None:
    key = ensure_key(tmp_path / "key")
    policy = world.policy(evidence=EvidenceRules(signers=(key.public.line,)))
    store = Busy(SqliteEvidence(tmp_path / "evidence.db"), tmp_path / "key")
    await store.writes()
    blobs = FileBlobs(tmp_path / "blobs")
    report = await asyncio.wait_for(desk_evidence.check(store, blobs, "db", (policy,)), 60)
    assert (report.ok, report.findings) == (True, ())
    assert 0 < report.signed <= report.last
    await store.aclose()
