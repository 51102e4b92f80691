"""The evidence of all fleets in one PostgreSQL database, for workers on several machines: the rules are the file's.

Appends to one fleet are made one after the other: each transaction takes the fleets' advisory locks, in one order,
before it reads the chain's end, and unique keys stand behind that. The lock goes with the transaction, so a worker that
is killed holds up nobody. Where the answer to a commit is lost, the same key may be appended again without harm.

The password comes as PostgreSQL's own programs take it: ``PGPASSWORD``, ``PGPASSFILE`` or ``~/.pgpass``, a service file.
It is never in the address, and no error repeats the address.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from kedge.drivers.evidence import checkpoint_of, entry_of
from kedge.drivers.evidence_writer import (
    Append,
    Decision,
    OwnTexts,
    Written,
    WrittenEvidence,
    write_batch,
)
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.trust.chain import EvidenceEntry, EvidenceHead, genesis

T = TypeVar("T")

CONNECT_SECONDS = 10
LOCK_WAIT = 30
"""Seconds that a transaction waits for other workers, or a statement runs, before it is given up."""

_SCHEMA = (
    # COLLATE "C": bytes, whatever the database's language.
    """
CREATE TABLE IF NOT EXISTS entries (
    fleet TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    record TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (fleet, seq),
    UNIQUE (fleet, key)
)
""",
    """
CREATE TABLE IF NOT EXISTS checkpoints (
    fleet TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    hash TEXT NOT NULL,
    at TEXT NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (fleet, seq, hash, key)
)
""",
    """
CREATE OR REPLACE FUNCTION kedge_appended_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'evidence is only appended to'; END $$
""",
    *(
        f"CREATE OR REPLACE TRIGGER {table}_only_appended BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION kedge_appended_only()"
        for table in ("entries", "checkpoints")
    ),
)
_SCHEMA_LOCK = int.from_bytes(hashlib.sha256(b"kedge-evidence-schema").digest()[:8], signed=True)

_ENTRY = "SELECT seq, key, record, previous, hash FROM entries WHERE fleet = %s"
_READ = _ENTRY + " AND seq > %s ORDER BY seq LIMIT %s"
_HEAD = "SELECT seq, hash FROM entries WHERE fleet = %s ORDER BY seq DESC LIMIT 1"
_CHECKPOINTS = """
SELECT fleet, seq, hash, at, key, signature FROM checkpoints
WHERE fleet = %(fleet)s AND seq > %(since)s AND seq <= COALESCE(
    (SELECT seq FROM checkpoints WHERE fleet = %(fleet)s AND seq > %(since)s ORDER BY seq LIMIT 1 OFFSET %(last)s), seq)
ORDER BY seq, at, key
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresEvidence(WrittenEvidence):
    """:class:`kedge.drivers.ports.Evidence` in the database at ``url`` (``postgresql://user@host:port/name``)."""

    def __init__(self, url: str) -> None:
        super().__init__(PostgresStore(url))


class PostgresStore:
    """One connection for questions, one for the writing thread. Tables are made where they are not there."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reading: Connection | None = None
        self._lock = threading.Lock()
        self._prepared = False

    def writing(self) -> PostgresWriting:
        """See :meth:`kedge.drivers.evidence_writer.Store.writing`."""
        return PostgresWriting(self._open())

    def read_head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        return self._ask(lambda database: _head(database, fleet))

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        rows = self._ask(lambda database: database.execute(_READ, (fleet, since, limit)).fetchall())
        return tuple(entry_of(*row) for row in rows)

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """See :meth:`kedge.drivers.ports.Evidence.find`."""
        row = self._ask(
            lambda database: database.execute(_ENTRY + " AND key = %s", (fleet, key)).fetchone()
        )
        return None if row is None else entry_of(*row)

    def under(self, fleet: str, prefix: str, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.under`."""
        rows = self._ask(
            lambda database: database.execute(
                _ENTRY + " AND starts_with(key, %s) ORDER BY seq LIMIT %s", (fleet, prefix, limit)
            ).fetchall()
        )
        return tuple(entry_of(*row) for row in rows)

    def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See :meth:`kedge.drivers.ports.Evidence.keep_checkpoint`."""
        self._ask(
            lambda database: database.execute(
                "INSERT INTO checkpoints VALUES"
                " (%(fleet)s, %(seq)s, %(hash)s, %(at)s, %(key)s, %(signature)s) ON CONFLICT DO NOTHING",
                checkpoint.model_dump(),
            )
        )

    def checkpoints(self, fleet: str, since: int, limit: int) -> tuple[Checkpoint, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.checkpoints`."""
        asked = {"fleet": fleet, "since": since, "last": limit - 1}
        rows = self._ask(lambda database: database.execute(_CHECKPOINTS, asked).fetchall())
        return tuple(checkpoint_of(*row) for row in rows)

    def error(self, error: Exception) -> DriverError:
        """See :meth:`kedge.drivers.evidence_writer.Store.error`."""
        return _store_error(error)

    def close(self) -> None:
        """See :meth:`kedge.drivers.evidence_writer.Store.close`."""
        with self._lock:
            self._drop()

    def _ask(self, question: Callable[[Connection], T]) -> T:
        """One question at a time. A connection that was lost meanwhile is made anew, once."""
        with self._lock:
            for last in (False, True):
                fresh = self._reading is None
                try:
                    self._reading = self._reading or self._open()
                    return question(self._reading)
                except psycopg.Error as error:
                    self._drop()
                    if last or fresh:
                        raise _store_error(error) from error
        raise AssertionError("unreachable")

    def _drop(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            with contextlib.suppress(psycopg.Error):
                reading.close()

    def _open(self) -> Connection:
        database = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            client_encoding="utf8",
            application_name="kedge",
            # A machine that is gone without a word must not hold the others up for long.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        try:
            for name in (
                "statement_timeout",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
            ):
                database.execute(f"SET {name} = '{LOCK_WAIT}s'")
            # Under a stricter level a transaction sees what was there before it waited for the lock, and never appends.
            database.execute("SET default_transaction_isolation = 'read committed'")
            # An append that was answered survives the loss of power, whatever the server's default.
            database.execute("SET synchronous_commit = on")
            if not self._prepared:
                _prepare(database)
                self._prepared = True
        except BaseException:
            database.close()
            raise
        return database


class PostgresWriting:
    """The writing thread's connection."""

    def __init__(self, database: Connection) -> None:
        self._database = database
        self._own = OwnTexts()

    def write(self, batch: list[Append | Decision]) -> list[Written]:
        """See :meth:`kedge.drivers.evidence_writer.Writing.write`."""
        database = self._database
        with database.transaction():
            # A statement sees what was committed before it began, so the ends are read behind the locks.
            for lock in sorted({_lock_of(one.fleet) for one in batch}):
                database.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
            appends = [one for one in batch if isinstance(one, Append)]
            transaction = _PostgresTransaction(database, appends, self._own)
            answers = write_batch(transaction, batch)
            transaction.flush()
        return answers

    def close(self) -> None:
        """See :meth:`kedge.drivers.evidence_writer.Writing.close`."""
        self._database.close()


class _PostgresTransaction:
    """See :class:`kedge.drivers.evidence_writer.Transaction`. Appends are looked up at once, and inserted at once."""

    def __init__(self, database: Connection, appends: list[Append], own: OwnTexts) -> None:
        self._database = database
        self._own = own
        self._ends: dict[str, EvidenceHead] = {}
        self._looked_up = {(one.fleet, one.key) for one in appends}
        self._known = _known(database, appends) if appends else {}
        self._rows: list[tuple[Any, ...]] = []

    def head(self, fleet: str) -> EvidenceHead:
        end = self._ends.get(fleet)
        if end is None:
            end = self._ends[fleet] = _head(self._database, fleet)
        return end

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        known = self._known.get((fleet, key))
        if known is not None or (fleet, key) in self._looked_up:
            return known
        row = self._database.execute(_ENTRY + " AND key = %s", (fleet, key)).fetchone()
        return None if row is None else entry_of(*row)

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        self.flush()
        rows = self._database.execute(_READ, (fleet, since, limit)).fetchall()
        return tuple(entry_of(*row, own=self._own) for row in rows)

    def insert(self, fleet: str, entry: EvidenceEntry, text: str) -> None:
        self._rows.append((fleet, entry.seq, entry.key, text, entry.previous, entry.hash))
        self._own.add(text)
        self._ends[fleet] = EvidenceHead(entry.seq, entry.hash)
        self._known[fleet, entry.key] = entry

    def flush(self) -> None:
        """Inserts what waits."""
        if self._rows:
            with self._database.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO entries VALUES (%s, %s, %s, %s, %s, %s)", self._rows
                )
            self._rows.clear()


def _lock_of(fleet: str) -> int:
    """The advisory lock of a fleet's chain."""
    return int.from_bytes(
        hashlib.sha256(b"kedge-evidence\0" + fleet.encode()).digest()[:8], signed=True
    )


def _known(database: Connection, batch: list[Append]) -> dict[tuple[str, str], EvidenceEntry]:
    """Those of the batch that are there already."""
    rows = database.execute(
        "SELECT fleet, seq, key, record, previous, hash FROM entries"
        " WHERE (fleet, key) IN (SELECT * FROM unnest(%s::text[], %s::text[]))",
        ([one.fleet for one in batch], [one.key for one in batch]),
    )
    return {(fleet, key): entry_of(seq, key, *rest) for fleet, seq, key, *rest in rows}


def _head(database: Connection, fleet: str) -> EvidenceHead:
    row = database.execute(_HEAD, (fleet,)).fetchone()
    return EvidenceHead(*row) if row else EvidenceHead(0, genesis(fleet))


def _prepare(database: Connection) -> None:
    """Makes the tables where they are not there. Who may not make any finds them made by who may."""
    encoding = database.execute("SHOW server_encoding").fetchone()
    if encoding != ("UTF8",):
        raise DriverError(
            "StoreError",
            "the evidence database is not encoded in UTF8",
            retryable=False,
            next_step="make it with: createdb --encoding UTF8 --template template0 NAME",
        )
    there = database.execute(
        "SELECT to_regclass('entries') IS NOT NULL AND to_regclass('checkpoints') IS NOT NULL"
        " AND (SELECT count(*) FROM pg_trigger WHERE (tgrelid, tgname) IN"
        " ((to_regclass('entries'), 'entries_only_appended'),"
        " (to_regclass('checkpoints'), 'checkpoints_only_appended'))) = 2"
    ).fetchone()
    if there == (True,):
        return
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        for statement in _SCHEMA:
            database.execute(statement)


def _store_error(error: Exception) -> DriverError:
    """In words, without the address: what libpq says may name user and host, never the password."""
    if isinstance(error, DriverError):
        return error
    step = "check KEDGE_EVIDENCE_URL, that the server runs, and PGPASSFILE or PGPASSWORD"
    if isinstance(error, (errors.InsufficientPrivilege, errors.UndefinedTable)):
        step = "let the worker's role make tables once, or make them as docs/evidence.md says"
    said = " ".join(str(error).split())[:500] or type(error).__name__
    return DriverError(
        "StoreError",
        f"the evidence database cannot be read or written: {said}",
        retryable=True,
        next_step=step,
    )
