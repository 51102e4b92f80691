"""What every store of evidence shares: one thread that writes, and everything that waits goes into one transaction.

A thousand appends cost a few fsyncs. The rules are here (:func:`write_batch`); how a transaction locks a
fleet's chain is the store's own: :class:`Store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeAlias

from kedge.drivers.ports import MAX_BEHIND, Decide, Decided
from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.trust.chain import EvidenceEntry, EvidenceHead, link_text
from kedge.trust.evidence_file import MAX_DEPTH
from kedge.trust.strict_json import too_deep

MAX_RECORD = 1024 * 1024
"""The largest canonical record, in bytes."""
MAX_KEY = 1000
"""The longest key, in bytes: it is indexed."""
MAX_OWN = 4 * 1024 * 1024
"""Characters of its own records that a writing thread knows again."""
BATCH = 500
"""The most appends of one transaction: nobody waits for more than these."""


class Append(NamedTuple):
    """A record on its way into the chain of its fleet; ``text`` is its canonical form."""

    fleet: str
    key: str
    record: Json
    text: str
    strict: bool = False


class Decision(NamedTuple):
    """A conditional append on its way into the chain of its fleet."""

    fleet: str
    since: int | Callable[[], int]
    decide: Decide


Written: TypeAlias = EvidenceHead | Decided | Exception
"""What became of one of a batch: an append's place, a decision's result, or why this one alone was not written."""


class OwnTexts:
    """Canonical forms that one writing thread made itself: of those it reads again, none has to be judged again.

    They are compared letter by letter, so whatever else stands in the store is judged as ever. The oldest go first.
    """

    def __init__(self, most: int = MAX_OWN) -> None:
        """``most``: characters that are kept."""
        self._most = most
        self._size = 0
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        """Keep one more."""
        if text not in self._texts:
            self._texts[text] = None
            self._size += len(text)
        while self._size > self._most:
            oldest = next(iter(self._texts))
            del self._texts[oldest]
            self._size -= len(oldest)

    def __contains__(self, text: object) -> bool:
        """Whether this thread made exactly that text."""
        return text in self._texts


class Transaction(Protocol):
    """One open transaction. The fleets it writes to are locked: no other worker appends to them until it ends."""

    def head(self, fleet: str) -> EvidenceHead:
        """The end of the chain, with what this transaction inserted."""
        ...

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """The entry under a key, with what this transaction inserted."""
        ...

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        """Entries in order, with what this transaction inserted."""
        ...

    def insert(self, fleet: str, entry: EvidenceEntry, text: str) -> None:
        """Adds an entry; ``text`` is its record's canonical form."""
        ...


class Writing(Protocol):
    """One open connection of the writing thread. Whatever it raises, it is thrown away and opened anew."""

    def write(self, batch: list[Append | Decision]) -> list[Written]:
        """Writes a batch in one transaction (:func:`write_batch`); durable when it returns."""
        ...

    def close(self) -> None:
        """Lets go; raises nothing that matters."""
        ...


class Store(Protocol):
    """Where records are kept. Everything here blocks, and is called in threads."""

    def writing(self) -> Writing:
        """A connection of its own for the thread that writes."""
        ...

    def read_head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        ...

    def read(self, fleet: str, since: int, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        ...

    def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """See :meth:`kedge.drivers.ports.Evidence.find`."""
        ...

    def under(self, fleet: str, prefix: str, limit: int) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.under`."""
        ...

    def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See :meth:`kedge.drivers.ports.Evidence.keep_checkpoint`."""
        ...

    def checkpoints(self, fleet: str, since: int, limit: int) -> tuple[Checkpoint, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.checkpoints`."""
        ...

    def error(self, error: Exception) -> DriverError:
        """What went wrong, for people."""
        ...

    def close(self) -> None:
        """Lets connections for reading go; the next question opens them again."""
        ...


class _Waiting(NamedTuple):
    what: Append | Decision
    answer: Future[Any]


class WrittenEvidence:
    """:class:`kedge.drivers.ports.Evidence` over a store.

    The writing thread starts with the first append and ends with :meth:`aclose`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def append(
        self, fleet: str, key: str, record: Json, *, strict: bool = False
    ) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.append`.

        Raises ``StoreError``, not retryable, for a record that is no canonical JSON or too large.
        """
        text = _checked(fleet, key, record)
        answer: Future[EvidenceHead] = Future()
        self._hand_over(_Waiting(Append(fleet, key, record, text, strict), answer))
        return await asyncio.wrap_future(answer)

    async def append_decided(
        self, fleet: str, since: int | Callable[[], int], decide: Decide
    ) -> Decided:
        """See :meth:`kedge.drivers.ports.Evidence.append_decided`."""
        _checked(fleet, "", None)
        answer: Future[Decided] = Future()
        self._hand_over(_Waiting(Decision(fleet, since, decide), answer))
        return await asyncio.wrap_future(answer)

    async def head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        return await asyncio.to_thread(self._store.read_head, fleet)

    async def read(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        return await asyncio.to_thread(self._store.read, fleet, since, limit)

    async def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """See :meth:`kedge.drivers.ports.Evidence.find`."""
        return await asyncio.to_thread(self._store.find, fleet, key)

    async def under(self, fleet: str, prefix: str, limit: int = 1000) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.under`."""
        return await asyncio.to_thread(self._store.under, fleet, prefix, limit)

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See :meth:`kedge.drivers.ports.Evidence.keep_checkpoint`."""
        await asyncio.to_thread(self._store.keep_checkpoint, checkpoint)

    async def checkpoints(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[Checkpoint, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.checkpoints`."""
        return await asyncio.to_thread(self._store.checkpoints, fleet, since, limit)

    async def aclose(self) -> None:
        """Writes what waits, then ends the thread. Appending again starts it again."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._waiting.put(None)
        if thread is not None:
            await asyncio.to_thread(thread.join)
        await asyncio.to_thread(self._store.close)

    def _hand_over(self, one: _Waiting) -> None:
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

    def _write_all(self, waiting: queue.SimpleQueue[_Waiting | None]) -> None:
        """The writing thread: one transaction after the other until it is told to end."""
        writing: Writing | None = None
        ending = False
        while not ending:
            batch, ending = _next_batch(waiting)
            if not batch:
                continue
            try:
                writing = writing or self._store.writing()
                answers = writing.write([one.what for one in batch])
            except Exception as error:  # noqa: BLE001 - it is raised to all who wait; the thread goes on
                if writing is not None:
                    with contextlib.suppress(Exception):
                        writing.close()
                    writing = None
                for one in batch:
                    if one.answer.set_running_or_notify_cancel():
                        one.answer.set_exception(self._store.error(error))
                continue
            for one, written in zip(batch, answers, strict=True):
                if not one.answer.set_running_or_notify_cancel():
                    continue
                if isinstance(written, Exception):
                    one.answer.set_exception(written)
                else:
                    one.answer.set_result(written)
        if writing is not None:
            with contextlib.suppress(Exception):
                writing.close()


def write_batch(transaction: Transaction, batch: Iterable[Append | Decision]) -> list[Written]:
    """The rules of every store: each key once, each record behind the last, a decision on what it was shown."""
    return [
        _append(transaction, one) if isinstance(one, Append) else _decide(transaction, one)
        for one in batch
    ]


def _append(transaction: Transaction, one: Append) -> EvidenceHead | DriverError:
    known = transaction.find(one.fleet, one.key)
    if known is None:
        known = _insert(transaction, one)
    elif one.strict and not _same(known.record, one.record):
        return _taken(one.key)
    return EvidenceHead(known.seq, known.hash)


def _decide(transaction: Transaction, one: Decision) -> Decided | Exception:
    fleet = one.fleet
    since = one.since if isinstance(one.since, int) else one.since()
    read = transaction.read(fleet, since, MAX_BEHIND + 1)
    if len(read) > MAX_BEHIND:
        said = f"more than {MAX_BEHIND} entries of {fleet} follow {since}: read them first"
        return DriverError("Behind", said, retryable=True)
    try:
        pairs = [
            Append(fleet, key, record, _checked(fleet, key, record), strict=True)
            for key, record in one.decide(read, transaction.head(fleet))
        ]
    except Exception as error:  # noqa: BLE001 - it is raised to the caller; the others of the batch are written
        return error
    known = [transaction.find(fleet, pair.key) for pair in pairs]
    for pair, there in zip(pairs, known, strict=True):
        if there is not None and not _same(there.record, pair.record):
            return _taken(pair.key)
    if len({pair.key for pair in pairs}) < len(pairs):
        return ValueError("a decision names a key twice")
    appended = tuple(
        there or _insert(transaction, pair) for pair, there in zip(pairs, known, strict=True)
    )
    return Decided(read, appended, transaction.head(fleet))


def _insert(transaction: Transaction, one: Append) -> EvidenceEntry:
    end = transaction.head(one.fleet)
    digest = link_text(end.hash, one.key, one.text.encode())
    entry = EvidenceEntry(end.seq + 1, one.key, one.record, end.hash, digest)
    transaction.insert(one.fleet, entry, one.text)
    return entry


def _same(first: Json, second: Json) -> bool:
    """Whether two records say the same; when they were written makes no difference."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return canonical(first) == canonical(second)
    return canonical({**first, "at": None}) == canonical({**second, "at": None})


def _taken(key: str) -> DriverError:
    return DriverError(
        "KeyTaken",
        f"the record already has another entry under {key}",
        retryable=False,
        next_step="`kedge evidence show FLEET` shows what it says",
    )


def _checked(fleet: str, key: str, record: Json) -> str:
    """The canonical form of a record; raises ``StoreError`` for what no store could keep."""
    try:
        _check_name(fleet, key)
        text = _text_of(record)
    except ValueError as error:
        raise DriverError("StoreError", f"evidence {key}: {error}", retryable=False) from error
    if len(text) > MAX_RECORD:
        raise DriverError(
            "StoreError", f"evidence {key} has more than {MAX_RECORD} bytes", retryable=False
        )
    return text.decode()


def _check_name(fleet: str, key: str) -> None:
    """Raises ``ValueError`` for a name that one of the stores could not keep as it is."""
    canonical([fleet, key])
    if len(fleet.encode()) > MAX_KEY or len(key.encode()) > MAX_KEY:
        raise ValueError(f"its key has more than {MAX_KEY} bytes")
    if "\0" in fleet or "\0" in key:
        raise ValueError("its key has a NUL character")


def _text_of(record: Json) -> bytes:
    """The canonical form; raises ``ValueError`` for what has none, or is nested deeper than anybody reads."""
    if too_deep(record, MAX_DEPTH):
        raise ValueError("it is nested too deep")
    return canonical(record)


def _next_batch(waiting: queue.SimpleQueue[_Waiting | None]) -> tuple[list[_Waiting], bool]:
    """Waits for an append, then takes all that wait by now; True when the end was asked for."""
    batch: list[_Waiting] = []
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
