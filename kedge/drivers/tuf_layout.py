"""A release repository's folder: where what lies, and reading and writing it without half-written files.

::

    metadata/1.root.json  N.snapshot.json  N.targets.json  N.<component>.json  timestamp.json
    targets/<component>/<version>/<sha256>.<name>
    drafts/<role>.json            metadata that is not published yet, with the signatures it has so far

Any static web server can serve it: clients read ``metadata/`` and ``targets/`` alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from kedge.drivers.files import read_bounded, store_error, sync_directory, write_atomic
from kedge.drivers.owners import PUBLIC, make_folder
from kedge.model.errors import DriverError

AnyMetadata: TypeAlias = Metadata[Any]

TOP = ("root", "targets", "snapshot", "timestamp")
TYPES: dict[str, type] = {
    "root": Root,
    "targets": Targets,
    "snapshot": Snapshot,
    "timestamp": Timestamp,
}
MAX_METADATA = 5_000_000
"""The largest metadata file in bytes (as python-tuf's clients have it)."""
_CHUNK = 1024 * 1024
_VERSIONED = re.compile(r"([1-9][0-9]{0,9})\.([a-z0-9][a-z0-9._-]{0,62})\.json")


class Layout:
    """The files of one repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = folder / "metadata"
        self.targets = folder / "targets"
        self.drafts = folder / "drafts"
        self._kept: dict[Path, bytes | None] | None = None
        self._names: dict[Path, list[Path]] = {}

    def exists(self) -> bool:
        """Whether there is a repository, published or in drafts."""
        return (self.metadata / "1.root.json").exists() or (self.drafts / "root.json").exists()

    def hold(self) -> None:
        """From now on no metadata is read twice: whoever else writes here cannot exchange what was verified."""
        self._kept = {}

    @contextmanager
    def locked(self, seconds: float = 30.0) -> Iterator[None]:
        """Nobody else on this machine changes the repository within the block."""
        make_folder(self.folder, PUBLIC)
        with exclusive(self.folder / ".lock", seconds, f"the repository {self.folder}"):
            yield

    # -- metadata ---------------------------------------------------------------------------------

    def newest(self, role: str) -> AnyMetadata | None:
        """The published metadata of a role with the highest version; None when it has none."""
        if role == "timestamp":
            return self._read(self.metadata / "timestamp.json")
        version = max(self.versions(role), default=0)
        return self.published(role, version) if version else None

    def published(self, role: str, version: int) -> AnyMetadata | None:
        """One published version of a role's metadata, if it is there."""
        return self._read(self.metadata / f"{version}.{role}.json")

    def roles(self) -> tuple[str, ...]:
        """The roles of which there is published metadata, by name."""
        found = (_VERSIONED.fullmatch(path.name) for path in self._listed(self.metadata))
        names = {one[2] for one in found if one is not None}
        if self.metadata / "timestamp.json" in self._listed(self.metadata):
            names.add("timestamp")
        return tuple(sorted(names))

    def versions(self, role: str) -> list[int]:
        """The published versions of a role, in no order."""
        found = (_VERSIONED.fullmatch(path.name) for path in self._listed(self.metadata))
        return [int(one[1]) for one in found if one is not None and one[2] == role]

    def draft(self, role: str) -> AnyMetadata | None:
        """The draft of a role, if there is one."""
        return self._read(self.drafts / f"{role}.json")

    def drafted(self) -> tuple[str, ...]:
        """Roles that have a draft: root first, then targets, components by name, snapshot, timestamp."""
        names = {path.stem for path in self._listed(self.drafts) if path.suffix == ".json"}
        ranks = {"root": 0, "targets": 1, "snapshot": 3, "timestamp": 4}
        return tuple(sorted(names, key=lambda name: (ranks.get(name, 2), name)))

    def keep_draft(self, role: str, metadata: AnyMetadata) -> None:
        """Writes a draft."""
        self.write(self.drafts / f"{role}.json", metadata.to_bytes())

    def drop_draft(self, role: str) -> None:
        """Removes a draft; no error when there is none."""
        path = self.drafts / f"{role}.json"
        path.unlink(missing_ok=True)
        self._now_has(path, None)

    def publish(self, role: str, metadata: AnyMetadata) -> None:
        """Writes published metadata: ``timestamp.json`` is replaced, everything else has a name of its own."""
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        self.write(self.metadata / name, metadata.to_bytes())

    def write(self, path: Path, content: bytes) -> None:
        """Raises ``DriverError`` kind ``StoreError``."""
        try:
            write_atomic(path, content, 0o644)
        except OSError as error:
            raise store_error(f"write {path}", error) from error
        self._now_has(path, content)

    def content(self, path: Path) -> bytes | None:
        """The bytes of a metadata file, if it is there."""
        if self._kept is not None and path in self._kept:
            return self._kept[path]
        try:
            content = read_bounded(path, MAX_METADATA)
        except OSError as error:
            raise store_error(f"read {path}", error) from error
        if self._kept is not None:
            self._kept[path] = content
        return content

    def _read(self, path: Path) -> AnyMetadata | None:
        content = self.content(path)
        return None if content is None else read_metadata(content, str(path))

    def _listed(self, folder: Path) -> list[Path]:
        """The files of a folder, by name."""
        if self._kept is None or folder not in self._names:
            self._names[folder] = sorted(folder.iterdir()) if folder.is_dir() else []
        return self._names[folder]

    def _now_has(self, path: Path, content: bytes | None) -> None:
        """What we wrote or removed ourselves."""
        if self._kept is None or path.parent not in (self.metadata, self.drafts):
            return
        self._kept[path] = content
        others = [one for one in self._listed(path.parent) if one != path]
        self._names[path.parent] = sorted([*others, path]) if content is not None else others

    # -- targets ----------------------------------------------------------------------------------

    def target(self, name: str, digest: str) -> Path:
        """Where a target lies (consistent snapshots: its digest stands before its file name)."""
        folder, _, base = name.rpartition("/")
        return self.targets / folder / f"{digest}.{base}"

    def keep_bytes(self, name: str, content: bytes) -> None:
        """Puts a target there."""
        self.write(self.target(name, hashlib.sha256(content).hexdigest()), content)

    def keep_file(self, name: str, source: Path, *, digest: str, length: int) -> None:
        """Copies a target there. Raises ``DriverError`` kind ``DigestMismatch`` for a file that is not the one meant."""
        place = self.target(name, digest)
        try:
            make_folder(place.parent, PUBLIC)
            with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".new-", delete=False) as new:
                fresh = Path(new.name)
                try:
                    said = _copied(source, new.fileno(), digest, length)
                    if said is not None:
                        raise DriverError(
                            "DigestMismatch", f"{source}: {said}", retryable=False,
                            next_step="The document and the archive do not belong together: mend one of them.",
                        )  # fmt: skip
                    os.fchmod(new.fileno(), 0o644)
                    os.fsync(new.fileno())
                    fresh.replace(place)
                finally:
                    fresh.unlink(missing_ok=True)
            sync_directory(place.parent)
        except OSError as error:
            raise store_error(f"copy {source} to {place}", error) from error


def read_metadata(content: bytes, where: str) -> AnyMetadata:
    """Metadata from bytes. Raises ``DriverError`` kind ``StoreError``."""
    try:
        found: AnyMetadata = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise DriverError(
            "StoreError", f"{where} is not TUF metadata", retryable=False,
            next_step="Get the file from a copy of the repository.",
        ) from error  # fmt: skip
    return found


@contextmanager
def exclusive(path: Path, seconds: float, what: str) -> Iterator[None]:
    """An exclusive lock on a file for the length of the block. Raises ``DriverError`` kind ``Busy`` (retryable)."""
    make_folder(path.parent, PUBLIC)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DriverError(
                        "Busy", f"{what} is in use by another kedge", retryable=True,
                        next_step="Try again in a moment.",
                    ) from None  # fmt: skip
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _copied(source: Path, target: int, digest: str, length: int) -> str | None:
    """Copies a regular file; None when it is the one meant, else a sentence."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if found.st_size != length:
            return f"has {found.st_size} bytes, the release says {length}"
        sha256 = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            _write_all(target, chunk)
    if sha256.hexdigest() != digest:
        return f"has sha256 {sha256.hexdigest()}, the release says {digest}"
    return None


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
