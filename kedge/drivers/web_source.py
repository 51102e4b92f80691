"""Archives at web addresses: resumed where they broke off, from mirrors in turn, held to length and digest.

The bytes are pinned by the release, so a server is trusted with nothing but availability: ``http`` is as safe as ``https``
here, and a mirror may go on where another one stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urljoin, urlsplit

from kedge import __version__
from kedge.drivers.files import store_error
from kedge.drivers.owners import make_folder
from kedge.host.filetypes import HEAD, describe
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact

if TYPE_CHECKING:
    import urllib3
    from urllib3.response import BaseHTTPResponse

CHUNK = 1 << 18
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""How long a server may send nothing."""
SLOWEST = 16 * 1024
"""Bytes a second that a download must come with, on average after its first minute."""
GRACE_SECONDS = 60.0
TRIES = 5
"""How often one address is asked before the next one; each goes on at the byte that the last one reached."""
PAUSE_SECONDS = 0.5
"""Before the second try; twice as long before each further one."""
MAX_REDIRECTS = 5
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same address is asked again."""


class _AddressError(Exception):
    """Why one address did not give the archive; ``again``: a further try may."""

    def __init__(self, reason: str, *, again: bool, missing: bool = False) -> None:
        super().__init__(reason)
        self.again = again
        self.missing = missing


class Clock(Protocol):
    """Seconds that only grow, and a pause: tests bring their own."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Waits."""
        ...


class WebSource:
    """:class:`kedge.drivers.artifacts.ArtifactSource` of ``http:`` and ``https:`` addresses.

    ``cache`` keeps finished downloads under their digest and unfinished ones beside them. Proxies come from the standard
    environment variables, certificates from the system's store.
    """

    def __init__(self, cache: Path, clock: Clock = time) -> None:
        self._cache = cache
        self._clock = clock

    def candidates_now(self, artifact: Artifact) -> Sequence[Path]:
        """As :meth:`candidates`, in this thread."""
        done = self._cache / artifact.digest
        try:
            make_folder(self._cache)
            with _locked(self._cache / f"{artifact.digest}.lock"):
                if not _is(done, artifact):
                    self._fetch(artifact, done)
        except OSError as error:
            raise store_error(f"keep what comes from {artifact.source}", error) from error
        return (done,)

    async def candidates(self, artifact: Artifact) -> Sequence[Path]:
        """See :meth:`kedge.drivers.artifacts.ArtifactSource.candidates`.

        Raises ``DriverError``: ``Unreachable`` (retryable) while an address may answer later, ``DigestMismatch`` where
        one sent other bytes and none the right ones, ``NotFound`` where no address has it.
        """
        import asyncio  # noqa: PLC0415 - the command line that only reads addresses pays nothing

        return await asyncio.to_thread(self.candidates_now, artifact)

    def _fetch(self, artifact: Artifact, done: Path) -> None:
        part = done.with_name(f"{done.name}.part")
        refused: list[str] = []
        missing = passing = 0
        addresses = tuple(dict.fromkeys((artifact.source, *artifact.mirrors)))
        for address in addresses:
            try:
                self._from(address, artifact, part)
            except _AddressError as error:
                refused.append(f"{address}: {error}")
                missing += error.missing
                passing += error.again
            else:
                part.replace(done)
                return
        self._give_up(artifact, refused, gone=missing == len(addresses), later=passing > 0)

    @staticmethod
    def _give_up(artifact: Artifact, refused: list[str], *, gone: bool, later: bool) -> None:
        kind = "NotFound" if gone else "Unreachable" if later else "DigestMismatch"
        raise DriverError(
            kind,
            f"the archive for {artifact.platform} did not arrive: {'; '.join(refused)}",
            retryable=kind == "Unreachable",
            next_step="check the addresses of the release document, or put the archive into a release directory",
        )

    def _from(self, address: str, artifact: Artifact, part: Path) -> None:
        """All of the archive in ``part``, its digest checked. Raises ``_AddressError``."""
        pause = PAUSE_SECONDS
        # What another address, or an older download, left may be other bytes: that is not this address's fault.
        foreign = _size(part) > 0
        for tried in range(1, TRIES + 1):
            try:
                self._continue(address, artifact, part)
                self._check(artifact, part, again=foreign)
            except _AddressError as error:
                if not error.again or tried == TRIES:
                    raise
                foreign = foreign and _size(part) > 0
                self._clock.sleep(pause)
                pause *= 2
            else:
                return

    @staticmethod
    def _check(artifact: Artifact, part: Path, *, again: bool) -> None:
        if _is(part, artifact):
            return
        with part.open("rb") as file:
            head = file.read(HEAD)
        part.unlink()
        said = f"it sent {describe(head)} with another sha256 than the release says"
        raise _AddressError(said, again=again)

    def _continue(self, address: str, artifact: Artifact, part: Path) -> None:
        """Append what is missing; a server that knows no ranges sends all of it again."""
        import urllib3  # noqa: PLC0415 - only who fetches pays for it

        have = _size(part)
        if have > artifact.length:
            part.unlink()
            have = 0
        if have == artifact.length:
            return
        headers = {
            "User-Agent": f"kedge/{__version__}",
            # Bytes are pinned as they are stored, so nothing may pack them on the way.
            "Accept-Encoding": "identity",
        }
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with _answer(address, headers) as answer:
                self._status(answer, part, have)
                self._body(answer, artifact, part, fresh=answer.status != 206)
        except urllib3.exceptions.HTTPError as error:
            raise _AddressError(_reason(error), again=True) from error

    def _status(self, answer: BaseHTTPResponse, part: Path, have: int) -> None:
        status = answer.status
        if status == 416:
            part.unlink(missing_ok=True)
            raise _AddressError("it does not have the rest of the archive", again=True)
        if status == 206:
            span = answer.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {have}-"):
                part.unlink(missing_ok=True)
                raise _AddressError(
                    f"it sent another part than was asked for ({span!r:.60})", again=True
                )
            return
        if status != 200:
            raise _AddressError(
                f"HTTP status {status}", again=status in PASSING, missing=status in {404, 410}
            )

    def _body(
        self, answer: BaseHTTPResponse, artifact: Artifact, part: Path, *, fresh: bool
    ) -> None:
        size = 0 if fresh else _size(part)
        begun, came = self._clock.monotonic(), 0
        with part.open("wb" if fresh else "ab") as file:
            while chunk := answer.read1(CHUNK):
                size += len(chunk)
                came += len(chunk)
                if size > artifact.length:
                    file.truncate(0)
                    said = f"it sends more than the {artifact.length} bytes of the archive"
                    raise _AddressError(said, again=False)
                file.write(chunk)
                spent = self._clock.monotonic() - begun
                if spent > GRACE_SECONDS and came < spent * SLOWEST:
                    raise _AddressError(f"only {came} bytes came in {spent:.0f} s", again=True)
            file.flush()
            os.fsync(file.fileno())
        if size < artifact.length:
            head = part.read_bytes()[:HEAD] if size <= HEAD else b""
            declared = answer.headers.get("Content-Length", "")
            if fresh and declared == str(size):
                part.unlink()
                said = f"it sent {describe(head) if head else 'a file'} of {size} bytes, the release says {artifact.length}"
                raise _AddressError(said, again=False)
            raise _AddressError(f"it broke off after {size} of {artifact.length} bytes", again=True)


@contextlib.contextmanager
def _answer(address: str, headers: dict[str, str]) -> Iterator[BaseHTTPResponse]:
    """The answer behind redirects. Raises ``_AddressError``, ``urllib3.exceptions.HTTPError``."""
    from urllib3 import Retry, Timeout  # noqa: PLC0415

    pool = _pool(address)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = pool.request(
                "GET", address, headers=headers, preload_content=False, redirect=False,
                retries=Retry(0, redirect=0), timeout=Timeout(connect=CONNECT_SECONDS, read=SILENCE_SECONDS),
            )  # fmt: skip
            place = answer.headers.get("Location")
            if answer.status not in {301, 302, 303, 307, 308} or not place:
                try:
                    yield answer
                finally:
                    answer.close()
                return
            answer.close()
            address = _next(address, place)
        raise _AddressError(f"more than {MAX_REDIRECTS} redirects", again=False)
    finally:
        pool.clear()


def _next(address: str, place: str) -> str:
    """Where a redirect leads. Raises ``_AddressError`` where it leaves the web, or falls from https to http."""
    target = urljoin(address, place)
    schemes = urlsplit(address).scheme.lower(), urlsplit(target).scheme.lower()
    if schemes[1] not in {"http", "https"} or schemes == ("https", "http"):
        raise _AddressError(f"it redirects to {target[:200]!r}, which is not followed", again=False)
    return target


def _pool(address: str) -> urllib3.PoolManager:
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    import urllib3  # noqa: PLC0415

    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme.lower())
    if proxy and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy)
    return urllib3.PoolManager()


def _reason(error: Exception) -> str:
    """The cause that a person can act on, without the library's own words around it."""
    inner = error
    while (deeper := getattr(inner, "reason", None)) is not None and isinstance(deeper, Exception):
        inner = deeper
    text = str(inner).rpartition(": ")[2] if "Failed to" in str(inner) else str(inner)
    return text[:300] or type(inner).__name__


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time fetches an archive; the others find it done."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is(path: Path, artifact: Artifact) -> bool:
    if _size(path) != artifact.length:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == artifact.digest
