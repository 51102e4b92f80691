"""The evidence of all fleets of one home in one SQLite file, hash-chained per fleet.

One thread writes: everything that waits at the same moment goes into one transaction, so a thousand
appends cost a few fsyncs. Several workers may share the file: each transaction takes the write lock
first and reads the chain's end inside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from kedge.drivers.ports import EvidenceEntry, EvidenceHead, linked
from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.trust.chain import genesis, link

MAX_RECORD = 1024 * 1024
"""The largest canonical record, in bytes."""
BATCH = 500
"""The most appends of one transaction: nobody waits for more than these."""
LOCK_WAIT = 30.0
"""Seconds that a transaction waits for other workers before it is given up."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    fleet TEXT NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    record TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (fleet, seq),
    UNIQUE (fleet, key)
) STRICT, WITHOUT ROWID
"""


class _Append(NamedTuple):
    fleet: str
    key: str
    record: Json
    text: str
    answer: Future[EvidenceHead]


class SqliteEvidence:
    """:class:`kedge.drivers.ports.Evidence` in the file at ``path``.

    The writing thread starts with the first append and ends with :meth:`aclose`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def append(self, fleet: str, key: str, record: Json) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.append`.

        Raises ``StoreError``, not retryable, for a record that is no canonical JSON or too large.
        """
        try:
            canonical([fleet, key])
            text = canonical(record)
        except ValueError as error:
            raise DriverError("StoreError", f"evidence {key}: {error}", retryable=False) from error
        if len(text) > MAX_RECORD:
            raise DriverError(
                "StoreError", f"evidence {key} has more than {MAX_RECORD} bytes", retryable=False
            )
        answer: Future[EvidenceHead] = Future()
        self._hand_over(_Append(fleet, key, record, text.decode(), answer))
        return await asyncio.wrap_future(answer)

    async def head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        return await asyncio.to_thread(self._read_head, fleet)

    async def read(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        return await asyncio.to_thread(self._read, fleet, since, limit)

    async def aclose(self) -> None:
        """Writes what waits, then ends the thread. Appending again starts it again."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._waiting.put(None)
        await asyncio.to_thread(thread.join)

    def _hand_over(self, one: _Append) -> None:
        with self._lock:
            if self._thread is None:
                # A queue of its own for each thread: the one that ends must find its end.
                self._waiting = queue.SimpleQueue()
                self._thread = threading.Thread(
                    target=self._write_all,
                    args=(self._waiting,),
                    name="kedge-evidence",
                    daemon=True,
                )
                self._thread.start()
            self._waiting.put(one)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None)
        try:
            _enter_wal(database)
            # FULL: an append that was answered survives the loss of power, not only of a process.
            database.execute("PRAGMA synchronous = FULL")
            database.execute(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def _write_all(self, waiting: queue.SimpleQueue[_Append | None]) -> None:
        """The writing thread: one transaction after the other until it is told to end."""
        database: sqlite3.Connection | None = None
        ending = False
        while not ending:
            batch, ending = _next_batch(waiting)
            try:
                database = database or self._open()
                heads = _write(database, batch)
            except Exception as error:  # noqa: BLE001 - it is raised to all who wait; the thread goes on
                if database is not None:
                    with contextlib.suppress(sqlite3.Error):
                        database.close()
                    database = None
                for one in batch:
                    if one.answer.set_running_or_notify_cancel():
                        one.answer.set_exception(_store_error(error))
                continue
            for one, head in zip(batch, heads, strict=True):
                if one.answer.set_running_or_notify_cancel():
                    one.answer.set_result(head)
        if database is not None:
            database.close()

    def _read_head(self, fleet: str) -> EvidenceHead:
        with self._reading() as database:
            return _head(database, fleet)

    def _read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        with self._reading() as database:
            rows = database.execute(
                "SELECT seq, key, record, previous, hash FROM entries"
                " WHERE fleet = ? AND seq > ? ORDER BY seq LIMIT ?",
                (fleet, since, limit),
            ).fetchall()
        return tuple(
            EvidenceEntry(seq, key, json.loads(record), previous, digest)
            for seq, key, record, previous, digest in rows
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(self._open()) as database:
                yield database
        except sqlite3.Error as error:
            raise _store_error(error) from error


def _next_batch(waiting: queue.SimpleQueue[_Append | None]) -> tuple[list[_Append], bool]:
    """Waits for an append, then takes all that wait by now; True when the end was asked for."""
    batch: list[_Append] = []
    one = waiting.get()
    while one is not None:
        batch.append(one)
        if len(batch) == BATCH:
            return batch, False
        try:
            one = waiting.get_nowait()
        except queue.Empty:
            return batch, False
    return batch, True


def _enter_wal(database: sqlite3.Connection) -> None:
    """Changes to WAL, which does not wait for other openers by itself as statements do."""
    until = time.monotonic() + LOCK_WAIT
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _head(database: sqlite3.Connection, fleet: str) -> EvidenceHead:
    row = database.execute(
        "SELECT seq, hash FROM entries WHERE fleet = ? ORDER BY seq DESC LIMIT 1", (fleet,)
    ).fetchone()
    return EvidenceHead(*row) if row else EvidenceHead(0, genesis(fleet))


def _write(database: sqlite3.Connection, batch: list[_Append]) -> list[EvidenceHead]:
    """Appends a batch in one transaction; durable when it returns."""
    ends: dict[str, EvidenceHead] = {}
    answers: list[EvidenceHead] = []
    if not batch:
        return answers
    database.execute("BEGIN IMMEDIATE")
    try:
        for one in batch:
            known = database.execute(
                "SELECT seq, hash FROM entries WHERE fleet = ? AND key = ?", (one.fleet, one.key)
            ).fetchone()
            if known is not None:
                answers.append(EvidenceHead(*known))
                continue
            end = ends.get(one.fleet) or _head(database, one.fleet)
            new = EvidenceHead(end.seq + 1, link(end.hash, linked(one.key, one.record)))
            database.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                (one.fleet, new.seq, one.key, one.text, end.hash, new.hash),
            )
            ends[one.fleet] = new
            answers.append(new)
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise
    return answers


def _store_error(error: Exception) -> DriverError:
    return DriverError(
        "StoreError",
        f"the evidence cannot be read or written: {error}",
        retryable=True,
        next_step="Check the disk and that the evidence file belongs to this user.",
    )
