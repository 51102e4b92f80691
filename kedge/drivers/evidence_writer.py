"""What every store of evidence shares: one thread that writes, and everything that waits goes into one transaction.

A thousand appends cost a few fsyncs. How a transaction keeps the rules (each key once, each record behind the last) is
the store's own: :class:`Store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from concurrent.futures import Future
from typing import NamedTuple, Protocol

from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from kedge.trust.evidence_file import MAX_DEPTH
from kedge.trust.strict_json import too_deep

MAX_RECORD = 1024 * 1024
"""The largest canonical record, in bytes."""
MAX_KEY = 1000
"""The longest key, in bytes: it is indexed."""
BATCH = 500
"""The most appends of one transaction: nobody waits for more than these."""


class Append(NamedTuple):
    """A record on its way into the chain of its fleet; ``text`` is its canonical form."""

    fleet: str
    key: str
    record: Json
    text: str


class Writing(Protocol):
    """One open connection of the writing thread. Whatever it raises, it is thrown away and opened anew."""

    def write(self, batch: list[Append]) -> list[EvidenceHead]:
        """Appends a batch in one transaction; durable when it returns. A key that is there already adds nothing."""
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
    append: Append
    answer: Future[EvidenceHead]


class WrittenEvidence:
    """:class:`kedge.drivers.ports.Evidence` over a store.

    The writing thread starts with the first append and ends with :meth:`aclose`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    async def append(self, fleet: str, key: str, record: Json) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.append`.

        Raises ``StoreError``, not retryable, for a record that is no canonical JSON or too large.
        """
        try:
            _check_name(fleet, key)
            text = _text_of(record)
        except ValueError as error:
            raise DriverError("StoreError", f"evidence {key}: {error}", retryable=False) from error
        if len(text) > MAX_RECORD:
            raise DriverError(
                "StoreError", f"evidence {key} has more than {MAX_RECORD} bytes", retryable=False
            )
        answer: Future[EvidenceHead] = Future()
        self._hand_over(_Waiting(Append(fleet, key, record, text.decode()), answer))
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
                heads = writing.write([one.append for one in batch])
            except Exception as error:  # noqa: BLE001 - it is raised to all who wait; the thread goes on
                if writing is not None:
                    with contextlib.suppress(Exception):
                        writing.close()
                    writing = None
                for one in batch:
                    if one.answer.set_running_or_notify_cancel():
                        one.answer.set_exception(self._store.error(error))
                continue
            for one, head in zip(batch, heads, strict=True):
                if one.answer.set_running_or_notify_cancel():
                    one.answer.set_result(head)
        if writing is not None:
            with contextlib.suppress(Exception):
                writing.close()


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
