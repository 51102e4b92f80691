"""The evidence of all fleets of one home in one SQLite file, hash-chained per fleet.

Several workers may share the file: each transaction takes the write lock first and reads the chain's end inside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Container, Iterator
from pathlib import Path

from kedge.drivers.evidence_writer import (
    MAX_RECORD,
    Append,
    Decision,
    OwnTexts,
    Written,
    WrittenEvidence,
    write_batch,
)
from kedge.drivers.owners import check_owners, make_folder
from kedge.model.base import canonical
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.trust.chain import EvidenceEntry, EvidenceHead, genesis
from kedge.trust.evidence_file import MAX_DEPTH
from kedge.trust.strict_json import too_deep

__all__ = ["MAX_RECORD", "SqliteEvidence"]

LOCK_WAIT = 30.0
"""Seconds that a transaction waits for other workers before it is given up."""

_SCHEMA = (
    """
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
""",
    """
CREATE TABLE IF NOT EXISTS checkpoints (
    fleet TEXT NOT NULL,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL,
    at TEXT NOT NULL,
    key TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (fleet, seq, hash, key)
) STRICT, WITHOUT ROWID
""",
    # Against mistakes, not against who can write the file: what stops those are the chain and the checkpoints.
    *(
        f"CREATE TRIGGER IF NOT EXISTS {table}_{what.lower()} BEFORE {what} ON {table}"
        " BEGIN SELECT RAISE(ABORT, 'evidence is only appended to'); END"
        for table in ("entries", "checkpoints")
        for what in ("UPDATE", "DELETE")
    ),
)

_READ = """
SELECT seq, key, record, previous, hash FROM entries WHERE fleet = ? AND seq > ? ORDER BY seq LIMIT ?
"""
_FIND = "SELECT seq, key, record, previous, hash FROM entries WHERE fleet = ? AND key = ?"
_CHECKPOINTS = """
SELECT fleet, seq, hash, at, key, signature FROM checkpoints
WHERE fleet = :fleet AND seq > :since AND seq <= COALESCE(
    (SELECT seq FROM checkpoints WHERE fleet = :fleet AND seq > :since ORDER BY seq LIMIT 1 OFFSET :last), seq)
ORDER BY seq, at, key
"""


class SqliteEvidence(WrittenEvidence):
    """:class:`kedge.drivers.ports.Evidence` in the file at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__(SqliteStore(path))


class SqliteStore:
    """The file at ``path``: a connection for each question, one for the writing thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked = False

    def writing(self) -> SqliteWriting:
        """See :meth:`kedge.drivers.evidence_writer.Store.writing`."""
        return SqliteWriting(self._open())

    def read_head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        if not self._path.exists():
            # Who only looks makes no file: a face may be asked in any home.
            return EvidenceHead(0, genesis(fleet))
        with self._reading() as database:
            return _head(database, fleet)

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        if not self._path.exists():
            return ()
        with self._reading() as database:
            rows = database.execute(_READ, (fleet, since, limit)).fetchall()
        return tuple(entry_of(*row) for row in rows)

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """See :meth:`kedge.drivers.ports.Evidence.find`."""
        if not self._path.exists():
            return None
        with self._reading() as database:
            row = database.execute(_FIND, (fleet, key)).fetchone()
        return None if row is None else entry_of(*row)

    def under(self, fleet: str, prefix: str, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.under`."""
        if not self._path.exists():
            return ()
        with self._reading() as database:
            rows = database.execute(
                "SELECT seq, key, record, previous, hash FROM entries"
                " WHERE fleet = ? AND key >= ? AND key < ? ORDER BY seq LIMIT ?",
                (fleet, prefix, prefix + chr(sys.maxunicode), limit),
            ).fetchall()
        return tuple(entry_of(*row) for row in rows)

    def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See :meth:`kedge.drivers.ports.Evidence.keep_checkpoint`."""
        with self._reading() as database:
            database.execute(
                "INSERT OR IGNORE INTO checkpoints VALUES (:fleet, :seq, :hash, :at, :key, :signature)",
                checkpoint.model_dump(),
            )

    def checkpoints(self, fleet: str, since: int, limit: int) -> tuple[Checkpoint, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.checkpoints`."""
        if not self._path.exists():
            return ()
        asked = {"fleet": fleet, "since": since, "last": limit - 1}
        with self._reading() as database:
            rows = database.execute(_CHECKPOINTS, asked).fetchall()
        return tuple(checkpoint_of(*row) for row in rows)

    def error(self, error: Exception) -> DriverError:
        """See :meth:`kedge.drivers.evidence_writer.Store.error`."""
        return _store_error(error)

    def close(self) -> None:
        """Nothing is kept open between questions."""

    def _open(self) -> sqlite3.Connection:
        make_folder(self._path.parent)
        if not self._checked:
            check_owners(self._path)
            self._checked = True
        # What SQLite makes beside it has its mode, and it would make it itself as the umask says. Only where there is
        # none: closing any descriptor of a file lets go of every lock that this process has on it, SQLite's too.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None)
        try:
            _enter_wal(database)
            # FULL: an append that was answered survives the loss of power, not only of a process.
            database.execute("PRAGMA synchronous = FULL")
            for statement in _SCHEMA:
                database.execute(statement)
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(self._open()) as database:
                yield database
        except (sqlite3.Error, OSError) as error:
            raise _store_error(error) from error


class SqliteWriting:
    """The writing thread's connection."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._own = OwnTexts()

    def write(self, batch: list[Append | Decision]) -> list[Written]:
        """See :meth:`kedge.drivers.evidence_writer.Writing.write`."""
        database = self._database
        # The write lock first: what is read behind it stays the end of every chain until the commit.
        database.execute("BEGIN IMMEDIATE")
        try:
            answers = write_batch(_SqliteTransaction(database, self._own), batch)
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise
        return answers

    def close(self) -> None:
        """See :meth:`kedge.drivers.evidence_writer.Writing.close`."""
        self._database.close()


class _SqliteTransaction:
    """See :class:`kedge.drivers.evidence_writer.Transaction`."""

    def __init__(self, database: sqlite3.Connection, own: OwnTexts) -> None:
        self._database = database
        self._own = own
        self._ends: dict[str, EvidenceHead] = {}

    def head(self, fleet: str) -> EvidenceHead:
        end = self._ends.get(fleet)
        if end is None:
            end = self._ends[fleet] = _head(self._database, fleet)
        return end

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        row = self._database.execute(_FIND, (fleet, key)).fetchone()
        return None if row is None else entry_of(*row)

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        rows = self._database.execute(_READ, (fleet, since, limit))
        return tuple(entry_of(*row, own=self._own) for row in rows)

    def insert(self, fleet: str, entry: EvidenceEntry, text: str) -> None:
        self._database.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
            (fleet, entry.seq, entry.key, text, entry.previous, entry.hash),
        )
        self._own.add(text)
        self._ends[fleet] = EvidenceHead(entry.seq, entry.hash)


def entry_of(
    seq: int, key: str, record: str, previous: str, digest: str, *, own: Container[str] = ()
) -> EvidenceEntry:
    """A row as a value. A record that somebody made unreadable is kept as text: the chain says that it was edited.

    So is one that is not in its canonical form: what has a key twice says one thing here and another to a database's
    own functions, and both would have the hash of the one. ``own`` are texts that are known to be canonical.
    """
    try:
        read = json.loads(record)
        if record not in own and (too_deep(read, MAX_DEPTH) or canonical(read) != record.encode()):
            read = record
    except (ValueError, RecursionError):
        read = record
    return EvidenceEntry(seq, key, read, previous, digest)


def checkpoint_of(
    fleet: str, seq: int, digest: str, at: str, key: str, signature: str
) -> Checkpoint:
    """A row as a value, unchecked: who changed it is found out by who verifies it."""
    return Checkpoint.model_construct(
        fleet=fleet, seq=seq, hash=digest, at=at, key=key, signature=signature
    )


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


def _store_error(error: Exception) -> DriverError:
    return DriverError(
        "StoreError",
        f"the evidence cannot be read or written: {error}",
        retryable=True,
        next_step="Check the disk and that the evidence file belongs to this user.",
    )
