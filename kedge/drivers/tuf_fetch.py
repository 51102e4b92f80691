"""How the files of a release repository are got, bounded in size; from a folder here, over HTTP in :mod:`tuf_http`.

What arrives is looked at once before TUF's own rules are: every threshold must mean distinct keys, the bytes must be the
one form in which metadata is written, and version numbers may not leap.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Snapshot, Timestamp
from tuf.ngclient import FetcherInterface

from kedge.drivers.tuf_layout import AnyMetadata
from kedge.model.trusted import Attack
from kedge.trust.tufkeys import KeysError, sound_delegations

LEAP = 1_000_000
"""How much higher than the last seen a version may be. Nobody publishes that often; who holds a single key could
otherwise make every later honest version look old for ever (fast-forward)."""
CHUNK = 256 * 1024
"""Bytes that are read at once."""
_HEX = re.compile(r"[0-9a-f]{2,4096}")


class RepositoryRefusalError(RepositoryError):
    """What a repository serves is refused by a rule of ours, with the name of the attack."""

    def __init__(self, attack: Attack, said: str) -> None:
        super().__init__(said)
        self.attack = attack


class Fetched(threading.local):
    """What this thread fetched last, for whoever has to say what was wrong with it."""

    def __init__(self) -> None:
        self.name = ""
        self.version = 0
        """The version that the metadata says it has."""
        self.digest = ""
        """sha256 of the bytes that came, when all of them came."""


class Guarded(FetcherInterface):
    """``seen`` gives the version of a role's metadata that was trusted last, 0 for none. What comes is kept in
    ``scratch`` while it is verified: archives are large, and ``/tmp`` may be memory.
    """

    last: Fetched
    seen: Callable[[str], int]
    scratch: Path | None = None

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class, in ``scratch``."""
        received = 0
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            for chunk in self.fetch(url):
                received += len(chunk)
                if received > max_length:
                    raise DownloadLengthMismatchError(
                        f"{url.rsplit('/', 1)[-1]} goes on beyond the {max_length} bytes that it may have"
                    )
                file.write(chunk)
            file.seek(0)
            yield file

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As the base class: metadata, looked at before it is handed on."""
        content = super().download_bytes(url, max_length)
        name = unquote(url.rsplit("/", 1)[-1])
        self.last.name, self.last.version = name, 0
        if name.endswith(".json") and "/metadata/" in url:
            try:
                self._look(name, content)
            except RepositoryError:
                raise
            except (
                Exception
            ) as error:  # what is not even of the right types may break anything that looks at it
                raise RepositoryRefusalError(
                    "arbitrary-software", f"{name} is not TUF metadata"
                ) from error
        return content

    def fetch(self, url: str) -> Iterator[bytes]:
        """As the base class; what came is remembered by its digest."""
        self.last.digest = ""
        sha256 = hashlib.sha256()
        for chunk in super().fetch(url):
            sha256.update(chunk)
            yield chunk
        self.last.digest = sha256.hexdigest()

    def _look(self, name: str, content: bytes) -> None:
        try:
            metadata: AnyMetadata = Metadata.from_bytes(content)
        except RepositoryError as error:
            raise RepositoryRefusalError(
                "arbitrary-software", f"{name} is not TUF metadata"
            ) from error
        self.last.version = metadata.signed.version
        if metadata.to_bytes() != content or not _bare(metadata):
            # Two spellings of the same metadata: one of them was not written by the repository.
            raise RepositoryRefusalError(
                "arbitrary-software", f"{name} is not written as the repository writes it"
            )
        try:
            sound_delegations(metadata.signed)
        except KeysError as error:
            raise RepositoryRefusalError("key-compromise", f"{name}: {error}") from error
        self._leaps(name, metadata)

    def _leaps(self, name: str, metadata: AnyMetadata) -> None:
        role = name.removesuffix(".json").split(".", 1)[-1] if name[0].isdigit() else name[:-5]
        told = {role: metadata.signed.version}
        if isinstance(metadata.signed, Timestamp):
            told["snapshot"] = metadata.signed.snapshot_meta.version
        if isinstance(metadata.signed, Snapshot):
            told |= {
                one.removesuffix(".json"): meta.version
                for one, meta in metadata.signed.meta.items()
            }
        for one, version in told.items():
            if version > self.seen(one) + LEAP:
                raise RepositoryRefusalError(
                    "fast-forward",
                    f"{name} leaps to version {version} of {one}, from {self.seen(one)}",
                )


def _bare(metadata: AnyMetadata) -> bool:
    """Whether there is nothing beside what is signed but signatures, in lower-case hex."""
    return not metadata.unrecognized_fields and all(
        not one.unrecognized_fields and _HEX.fullmatch(one.signature)
        for one in metadata.signatures.values()
    )


class FolderFetcher(Guarded):
    """Files below one folder. Only regular files are read; names cannot leave it."""

    def __init__(self, folder: Path, seen: Callable[[str], int]) -> None:
        self._folder = folder
        self.seen = seen
        self.last = Fetched()

    @property
    def base(self) -> str:
        """What addresses begin with."""
        return "folder:/"

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = PurePosixPath(unquote(url.removeprefix("folder:/")))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise DownloadError(f"{path} is no name of a file in a repository")
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"there is no {path}", 404) from error
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DownloadError(f"{path} is not a regular file")
        return _chunks(descriptor)


def _chunks(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
