"""The record of a fleet as a face reads it from the store, whatever somebody wrote into that."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kedge.drivers.evidence import SqliteEvidence
from kedge.drivers.stores import FileBlobs
from tests.trust import world
from worker import desk_evidence


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
