"""The worker's checkpoint key, and evidence that is signed as it grows.

The key is an OpenSSH Ed25519 key file of the worker's own, readable by nobody else. It signs nothing but checkpoints:
the namespace keeps them apart, and a policy that gives it to a person is no policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from kedge.drivers.files import read_bounded, store_error, sync_directory, write_atomic
from kedge.drivers.owners import check_owners, make_folder
from kedge.drivers.ports import Decide, Decided, Evidence
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint, CheckpointStatement
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from kedge.trust.checkpoints import enclose, to_be_signed, worth_sealing
from kedge.trust.keys import PublicKey, parse_public_key
from kedge.trust.wire import string

_MAX_KEY = 65_536
COMMENT = "kedge-checkpoint"


class CheckpointKey:
    """The key in a file, made by :func:`ensure_key`."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.public: PublicKey = parse_public_key(line)

    @classmethod
    def load(cls, path: Path) -> CheckpointKey:
        """The key at ``path``. Raises ``DriverError``: ``NotFound``, or ``KeyRefused`` for a file that others may read
        and for what is no unencrypted Ed25519 key.
        """
        try:
            content = read_bounded(path, _MAX_KEY)
            mode = 0 if content is None else stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise store_error(f"read the checkpoint key {path}", error) from error
        if content is None:
            raise DriverError(
                "NotFound",
                f"there is no checkpoint key at {path}",
                retryable=False,
                next_step="`kedge up` makes one",
            )
        if mode & 0o077:
            raise _refused(
                f"{path} can be read or written by others than its owner (mode {mode:04o})",
                f"chmod 600 {path}; if others may have read it, remove it, `kedge up` makes another",
            )
        check_owners(path)
        try:
            private = load_ssh_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _refused(f"{path} is not an unencrypted OpenSSH private key", _ANEW) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise _refused(f"{path} is not an Ed25519 key", _ANEW)
        return cls(private)

    def sign(self, statement: CheckpointStatement) -> Checkpoint:
        """The checkpoint of a statement by this key."""
        raw = string(b"ssh-ed25519") + string(self._private.sign(to_be_signed(statement)))
        return enclose(statement, self.public, raw)


_ANEW = "move it away: `kedge up` makes a new one, which then has to be named in the policy"


def ensure_key(path: Path) -> CheckpointKey:
    """The key at ``path``, made there with mode 0600 when there is none; ``<path>.pub`` has its public line.

    Two at a time make one key. Raises as :meth:`CheckpointKey.load` does, and ``StoreError``.
    """
    try:
        if not path.exists():
            _make(path)
    except OSError as error:
        raise store_error(f"write the checkpoint key {path}", error) from error
    key = CheckpointKey.load(path)
    public = path.with_name(path.name + ".pub")
    try:
        if not public.exists():
            write_atomic(public, f"{key.public.line} {COMMENT}\n".encode("ascii"), 0o644)
    except OSError as error:
        raise store_error(f"write {public}", error) from error
    return key


def _make(path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    make_folder(path.parent)
    # mkstemp makes it 0600. A link fails where a key stands: whoever comes second takes that one.
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            return
    finally:
        Path(name).unlink()
    sync_directory(path.parent)


class SignedEvidence:
    """:class:`kedge.drivers.ports.Evidence` that signs checkpoints as it grows.

    At once after a record that seals (a gate, the end of a run: :func:`worth_sealing`), so that it is durable and signed
    when ``append`` returns; otherwise in the background, after ``records`` records or ``seconds`` seconds, whatever comes
    first. The key is loaded, and made where there is none, when it is first needed.
    """

    def __init__(
        self,
        evidence: Evidence,
        key: Path,
        *,
        records: int = 1000,
        seconds: float = 60.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._evidence = evidence
        self._path = key
        self._records = records
        self._seconds = seconds
        self._now = now
        self._key: CheckpointKey | None = None
        self._ends: dict[str, EvidenceHead] = {}
        """By fleet: the furthest place this worker knows of."""
        self._signed: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(
        self, fleet: str, key: str, record: Json, *, strict: bool = False
    ) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.append`; raises ``KeyRefused`` too when it cannot be sealed."""
        head = await self._evidence.append(fleet, key, record, strict=strict)
        await self._grown(fleet, head, seals=worth_sealing(record))
        return head

    async def append_decided(
        self, fleet: str, since: int | Callable[[], int], decide: Decide
    ) -> Decided:
        """See :meth:`kedge.drivers.ports.Evidence.append_decided`; raises as :meth:`append` when it cannot be sealed."""
        decided = await self._evidence.append_decided(fleet, since, decide)
        for entry in decided.appended:
            head = EvidenceHead(entry.seq, entry.hash)
            await self._grown(fleet, head, seals=worth_sealing(entry.record))
        return decided

    async def _grown(self, fleet: str, head: EvidenceHead, *, seals: bool) -> None:
        end = self._ends.get(fleet)
        if end is None or head.seq > end.seq:
            self._ends[fleet] = head
        if seals:
            await self._sign(fleet, head)
        elif head.seq > self._signed.setdefault(fleet, head.seq - 1):
            self._schedule(fleet, head)

    def _schedule(self, fleet: str, head: EvidenceHead) -> None:
        if head.seq - self._signed[fleet] >= self._records:
            self._begin(fleet)
        elif fleet not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[fleet] = loop.call_later(self._seconds, self._begin, fleet)

    def _begin(self, fleet: str) -> None:
        """Signs the end of a fleet's record in the background; what goes wrong there is tried again with the next."""
        timer = self._timers.pop(fleet, None)
        if timer is not None:
            timer.cancel()
        end = self._ends[fleet]
        # Now and not when it is done: the records that come meanwhile are the next checkpoint's.
        self._signed[fleet] = end.seq
        task = asyncio.get_running_loop().create_task(self._quietly(fleet, end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, fleet: str, end: EvidenceHead) -> None:
        with contextlib.suppress(DriverError):
            await self._sign(fleet, end)

    async def _sign(self, fleet: str, head: EvidenceHead) -> None:
        if self._key is None:
            self._key = await asyncio.to_thread(ensure_key, self._path)
        statement = CheckpointStatement(
            fleet=fleet, seq=head.seq, hash=head.hash, at=f"{self._now():%Y-%m-%dT%H:%M:%SZ}"
        )
        await self._evidence.keep_checkpoint(self._key.sign(statement))
        self._signed[fleet] = max(self._signed.get(fleet, 0), head.seq)

    async def head(self, fleet: str) -> EvidenceHead:
        """See :meth:`kedge.drivers.ports.Evidence.head`."""
        return await self._evidence.head(fleet)

    async def read(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.read`."""
        return await self._evidence.read(fleet, since, limit)

    async def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """See :meth:`kedge.drivers.ports.Evidence.find`."""
        return await self._evidence.find(fleet, key)

    async def under(self, fleet: str, prefix: str, limit: int = 1000) -> tuple[EvidenceEntry, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.under`."""
        return await self._evidence.under(fleet, prefix, limit)

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See :meth:`kedge.drivers.ports.Evidence.keep_checkpoint`."""
        await self._evidence.keep_checkpoint(checkpoint)

    async def checkpoints(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[Checkpoint, ...]:
        """See :meth:`kedge.drivers.ports.Evidence.checkpoints`."""
        return await self._evidence.checkpoints(fleet, since, limit)

    async def aclose(self) -> None:
        """Signs what waits for it, then closes the evidence."""
        for fleet in tuple(self._timers):
            self._begin(fleet)
        await asyncio.gather(*self._tasks)
        await self._evidence.aclose()


def _refused(message: str, next_step: str) -> DriverError:
    return DriverError("KeyRefused", message, retryable=False, next_step=next_step)
