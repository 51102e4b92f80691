"""Archives that releases name: found by scheme, verified before anyone gets a path."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from kedge.drivers.files import store_error, sync_directory
from kedge.drivers.owners import make_folder
from kedge.host.errors import Fault
from kedge.host.releases import fill
from kedge.host.unpacked import MAX_MEMBERS, MAX_UNPACKED, Limits, Unpacked
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact

_CHUNK = 1024 * 1024

Identity: TypeAlias = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime: whenever the content may have changed, this has."""


class ArtifactSource(Protocol):
    """Finds archives of one scheme. It need not verify: :class:`VerifiedArtifacts` does."""

    async def candidates(self, artifact: Artifact) -> Sequence[Path]:
        """Local files that may be the artifact, best first; empty where there is none.

        Raises ``DriverError`` kind ``Unreachable`` (retryable) when the source may answer later.
        """
        ...


class FileSource:
    """``file:`` addresses and plain paths: absolute, or relative to the ``releases`` directories.

    An artifact without a source is looked for in those directories under its digest.
    """

    def __init__(self, releases: Sequence[Path]) -> None:
        self._releases = tuple(directory.absolute() for directory in releases)

    async def candidates(self, artifact: Artifact) -> Sequence[Path]:
        """See :meth:`ArtifactSource.candidates`; a relative path stays inside its directory."""
        source = artifact.source
        if source.startswith("file:"):
            parts = urlsplit(source)
            if parts.netloc not in {"", "localhost"}:
                raise DriverError(
                    "NotFound", f"{source}: a file address names no other host", retryable=False
                )
            source = unquote(parts.path)
        path = PurePosixPath(source or artifact.digest)
        if "\0" in source or ".." in path.parts:
            raise DriverError(
                "NotFound", f"{source!r}: a path with '..' is not followed", retryable=False
            )
        if path.is_absolute():
            return (Path(path),)
        return tuple(directory / path for directory in self._releases)


class VerifiedArtifacts:
    """:class:`kedge.drivers.ports.Artifacts` over one source per scheme.

    ``cache`` is a directory of archives named by their digest; it is asked before any source.
    ``sources`` maps a scheme to what finds its archives; plain paths are of the scheme ``file``.
    """

    def __init__(self, cache: Path, sources: Mapping[str, ArtifactSource]) -> None:
        self._cache = cache.absolute()
        self._sources = dict(sources)
        self._verified: dict[tuple[str, str], tuple[Path, Identity]] = {}
        self._unpackable: set[tuple[str, int, str | None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}

    async def fetch(self, artifact: Artifact) -> Path:
        """See :meth:`kedge.drivers.ports.Artifacts.fetch`."""
        found = self._verified_before(artifact)
        if found is not None:
            return found
        # Many nodes ask for one archive at the same moment: it is read once, the others wait.
        lock = self._locks.setdefault(artifact.digest, asyncio.Lock())
        async with lock:
            return self._verified_before(artifact) or await self._find(artifact)

    async def unpackable(self, artifact: Artifact) -> Path:
        """As :meth:`fetch`, and every member of the archive was looked at as a host would, with nothing written.

        Raises as :meth:`fetch`, and ``ArchiveRefused`` (not retryable) for what no host takes.
        """
        path = await self.fetch(artifact)
        asked = (artifact.digest, artifact.strip, artifact.program)
        if asked not in self._unpackable:
            await asyncio.to_thread(check_packing, path, artifact)
            self._unpackable.add(asked)
        return path

    async def keep(self, artifact: Artifact) -> Path:
        """Fetch an artifact and keep it in the cache, so that its digest is enough to find it from now on.

        Linked where the file system can (a change of the original is found at the next fetch), else copied.
        Raises as :meth:`unpackable`, and ``StoreError`` (retryable) when the cache cannot be written.
        """
        found = await self.unpackable(artifact)
        kept = self._cache / artifact.digest
        if found != kept:
            try:
                await asyncio.to_thread(_link_or_copy, found, kept)
            except OSError as error:
                raise store_error(f"keep the archive {artifact.digest[:12]}", error) from error
        return kept

    def _verified_before(self, artifact: Artifact) -> Path | None:
        known = self._verified.get((artifact.digest, artifact.source))
        if known is None or known[1][2] != artifact.length:
            return None
        path, identity = known
        return path if _identity(path) == identity else None

    async def _find(self, artifact: Artifact) -> Path:
        cached = self._cache / artifact.digest
        candidates = [cached, *await self._source(artifact).candidates(artifact)]
        wrong: list[str] = []
        for path in candidates:
            identity = _identity(path)
            if identity is None:
                continue
            said = await asyncio.to_thread(_check, path, artifact)
            if said is None and _identity(path) == identity:
                self._verified[artifact.digest, artifact.source] = (path, identity)
                return path
            wrong.append(said or f"{path} changed while it was read")
        if wrong:
            raise DriverError(
                "DigestMismatch", "; ".join(wrong), retryable=False,
                next_step="The archive is not the one that the release names: get that one.",
            )  # fmt: skip
        looked = ", ".join(str(path) for path in candidates)
        raise DriverError(
            "NotFound",
            f"the archive {artifact.source} for {artifact.platform} is in none of: {looked}",
            retryable=False,
            next_step="Put it there, or name the directory that has it as a release directory.",
        )

    def _source(self, artifact: Artifact) -> ArtifactSource:
        scheme, colon, _ = artifact.source.partition(":")
        name = scheme.lower() if colon and "/" not in scheme else "file"
        source = self._sources.get(name)
        if source is None:
            known = ", ".join(sorted(self._sources))
            raise DriverError(
                "NotFound",
                f"{artifact.source}: no artifact driver for {name!r} (there are: {known})",
                retryable=False,
            )
        return source


def check_packing(path: Path, artifact: Artifact) -> None:
    """Look at every member of an archive as a host would, with the limits that hosts have by default.

    Raises ``DriverError``: ``ArchiveRefused`` for what no host takes, ``DigestMismatch`` for other bytes; neither is
    retryable.
    """
    out = Unpacked(None, Limits(MAX_UNPACKED, MAX_MEMBERS, artifact.strip))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fill(descriptor, artifact.digest, out, artifact.program, _nothing)
    except Fault as error:
        raise DriverError(
            error.kind, f"{path.name}: {error}", retryable=False,
            next_step="Publish the archive in a form that hosts unpack: docs/documents.md, Release.",
        ) from error  # fmt: skip
    except OSError as error:
        raise store_error(f"read {path}", error) from error
    finally:
        os.close(descriptor)


def _nothing() -> None:
    """What a host does between two parts of an archive: it looks at the fence."""


def _link_or_copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        try:
            os.link(source, fresh)
        except OSError:
            shutil.copyfile(source, fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
        fresh.replace(target)
        sync_directory(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _check(path: Path, artifact: Artifact) -> str | None:
    """None when the file is the artifact, else a sentence that says how it differs."""
    sha256 = hashlib.sha256()
    length = 0
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != artifact.length:
                size = os.fstat(file.fileno()).st_size
                return f"{path} has {size} bytes, the release says {artifact.length}"
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                length += len(chunk)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    if length != artifact.length or sha256.hexdigest() != artifact.digest:
        return f"{path} has sha256 {sha256.hexdigest()}, the release says {artifact.digest}"
    return None
