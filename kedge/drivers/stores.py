"""What one home keeps in plain files: blobs by digest, pinned policies, known fleets."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

from pydantic import ValidationError

from kedge.drivers.files import read_bounded, store_error, write_atomic
from kedge.drivers.owners import check_owners
from kedge.drivers.ports import MAX_BLOB, Blobs, FleetRecord
from kedge.model.base import Digest, Frozen, canonical
from kedge.model.errors import DriverError

MAX_DOCUMENT = 8 * 1024 * 1024
"""The largest pinned policy or fleet record, in bytes."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAFE_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def _file_of(folder: Path, name: str) -> Path:
    """``folder/<name>.json``; refuses every name that is not a plain document name."""
    if not _SAFE_NAME.fullmatch(name):
        raise DriverError(
            "StoreError", f"{name!r} is not a name that a file may have", retryable=False
        )
    return folder / f"{name}.json"


class FileBlobs:
    """:class:`kedge.drivers.ports.Blobs` in ``<root>/<aa>/<digest>``.

    Writers need no lock: a digest has one content, and each writer renames a whole file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, content: bytes) -> Digest:
        """See :meth:`kedge.drivers.ports.Blobs.put`; a damaged file of that digest is mended."""
        if len(content) > MAX_BLOB:
            raise DriverError(
                "StoreError",
                f"{len(content)} bytes are more than the store takes ({MAX_BLOB})",
                retryable=False,
            )
        return await asyncio.to_thread(self._put, content)

    def _put(self, content: bytes) -> Digest:
        digest = hashlib.sha256(content).hexdigest()
        path = self._path(digest)
        try:
            # What is there is read, not trusted by its name: a put must end with good bytes.
            if read_bounded(path, MAX_BLOB) != content:
                write_atomic(path, content, 0o644)
        except OSError as error:
            raise store_error(f"keep {digest[:12]}", error) from error
        return digest

    async def get(self, digest: Digest) -> bytes:
        """See :meth:`kedge.drivers.ports.Blobs.get`."""
        return await asyncio.to_thread(self._get, digest)

    def _get(self, digest: Digest) -> bytes:
        try:
            content = read_bounded(self._path(digest), MAX_BLOB)
        except OSError as error:
            raise store_error(f"read {digest[:12]}", error) from error
        if content is None:
            raise DriverError(
                "NotFound",
                f"the store has nothing under {digest[:12]}",
                retryable=False,
                next_step="Check that this worker has the same home or store as whoever sent it.",
            )
        if hashlib.sha256(content).hexdigest() != digest:
            raise DriverError(
                "StoreError",
                f"what the store has under {digest[:12]} is not what was put there",
                retryable=False,
                next_step="The file was changed or damaged; put the document again to mend it.",
            )
        return content

    async def has(self, digest: Digest) -> bool:
        """See :meth:`kedge.drivers.ports.Blobs.has`."""
        return self._path(digest).is_file()

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DriverError("NotFound", f"{digest[:80]!r} is not a digest", retryable=False)
        return self._root / digest[:2] / digest


class FileFleets:
    """:class:`kedge.drivers.ports.Fleets` in ``<folder>/<fleet>.json``; documents go to ``blobs``."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self._folder = folder
        self._blobs = blobs

    async def remember(
        self, fleet: str, document: Frozen, baseline: Frozen | None = None
    ) -> FleetRecord:
        """See :meth:`kedge.drivers.ports.Fleets.remember`; the documents are durable first."""
        path = _file_of(self._folder, fleet)
        recorded = await self.known(fleet)
        digest = await self._blobs.put(canonical(document))
        kept = recorded.baseline if recorded else None
        if baseline is not None:
            kept = await self._blobs.put(canonical(baseline))
        record = FleetRecord(fleet=fleet, document=digest, baseline=kept)
        try:
            await asyncio.to_thread(write_atomic, path, canonical(record))
        except OSError as error:
            raise store_error(f"record the fleet {fleet}", error) from error
        return record

    async def known(self, fleet: str) -> FleetRecord | None:
        """See :meth:`kedge.drivers.ports.Fleets.known`. Raises ``StoreError`` for a broken record."""
        return await asyncio.to_thread(self._read, _file_of(self._folder, fleet))

    async def every(self) -> tuple[FleetRecord, ...]:
        """See :meth:`kedge.drivers.ports.Fleets.every`."""
        return await asyncio.to_thread(self._every)

    async def forget(self, fleet: str) -> None:
        """See :meth:`kedge.drivers.ports.Fleets.forget`."""
        _file_of(self._folder, fleet).unlink(missing_ok=True)

    def _every(self) -> tuple[FleetRecord, ...]:
        if not self._folder.is_dir():
            return ()
        records = (self._read(path) for path in sorted(self._folder.glob("[a-z0-9]*.json")))
        return tuple(record for record in records if record is not None)

    def _read(self, path: Path) -> FleetRecord | None:
        try:
            content = read_bounded(path, MAX_DOCUMENT)
        except OSError as error:
            raise store_error(f"read {path.name}", error) from error
        if content is None:
            return None
        check_owners(path)
        try:
            return FleetRecord.model_validate_json(content)
        except ValidationError as error:
            raise DriverError(
                "StoreError", f"{path} is not the record of a fleet", retryable=False
            ) from error
