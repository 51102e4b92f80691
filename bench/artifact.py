"""Verifying a large artifact: what the host program and the worker take, beside ``sha256sum`` of the same bytes.

The archive is of 100 MB that do not compress, in three files. All turns run one after the other on warm files, so that the
disk counts where something is written and nowhere else. ``sha256sum`` is a process, as a script would call it; the host
program answers over its socket, as in a migration.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from kedge.drivers.artifacts import FileSource, VerifiedArtifacts
from kedge.drivers.local import LocalTransport
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.model.base import Frozen, Json
from kedge.model.plan import Artifact, PlannedNode

FILES = {"bin/daemon": 90_000_000, "bin/ctl": 8_000_000, "share/terms": 2_000_000}
"""Name to bytes: 100 MB in all."""
REPETITIONS = 5
AIM = 1.3
"""The check of an artifact may take that many times ``sha256sum``."""


class Cost(Frozen):
    """Medians in seconds. Ratios are to ``sha256sum``."""

    bytes: int
    sha256sum: float
    archive: float
    """The host program reads the archive and compares length and digest, before it unpacks anything."""
    release: float
    """It compares every unpacked file with the release's manifest: before the switch, after it, before a start."""
    fetch: float
    """The worker reads the archive and compares, before a host is told of it."""
    stage: float
    """All of ``stage``: the archive's check, unpacking, a digest for each file, everything on the disk."""

    def ratio(self, seconds: float) -> float:
        """How many times ``sha256sum``."""
        return seconds / self.sha256sum


def make_archive(path: Path) -> Artifact:
    """A plain tar of ``FILES``, random bytes."""
    with tarfile.open(path, mode="w") as tar:
        for name, size in FILES.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = size, 0o755
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(
        platform="linux/amd64", digest=digest, length=path.stat().st_size, source=str(path)
    )


class Ground:
    """One node and one archive; every call does its work anew."""

    def __init__(self, folder: Path, transport: LocalTransport) -> None:
        self._folder = folder
        self._transport = transport
        self._calls = 0
        self.archive = make_archive(folder / "artifact.tar")

    async def sha256sum(self) -> float:
        """The ruler."""
        begun = time.monotonic()
        child = await asyncio.create_subprocess_exec(
            "sha256sum", self.archive.source, stdout=subprocess.PIPE
        )
        said, _ = await child.communicate()
        taken = time.monotonic() - begun
        if said.split()[0].decode() != self.archive.digest:
            raise RuntimeError("sha256sum says another digest")
        return taken

    async def check_archive(self) -> float:
        """A ``stage`` under another digest: refused once every byte was read, with nothing unpacked."""
        wrong = "0" * 64
        taken, end = await self._session("n-refused", self._stage(wrong))
        fault = end.fault("n-refused")
        if fault is None or fault.kind != "DigestMismatch":
            raise RuntimeError(f"the host program took an archive of another digest: {fault}")
        return taken

    async def stage(self) -> float:
        """On a node that has nothing yet."""
        name = f"n-{self._calls}"
        taken, end = await self._session(name, self._stage(self.archive.digest))
        self._done(end)
        return taken

    async def check_release(self) -> float:
        """Every file of the release that is on the node ``n-standing``."""
        taken, end = await self._session(
            "n-standing", {"op": "verify", "digest": self.archive.digest}
        )
        self._done(end)
        return taken

    async def prepare(self) -> None:
        """The release on the node that ``check_release`` asks, and the server started."""
        _, end = await self._session("n-standing", self._stage(self.archive.digest))
        self._done(end)

    async def fetch(self) -> float:
        """By a worker that has not seen the archive yet."""
        artifacts = VerifiedArtifacts(
            self._folder / f"cache-{self._calls}", {"file": FileSource(())}
        )
        begun = time.monotonic()
        await artifacts.fetch(self.archive)
        return time.monotonic() - begun

    def _stage(self, digest: str) -> dict[str, Json]:
        return {
            "op": "stage",
            "digest": digest,
            "length": self.archive.length,
            "source": self.archive.source,
            "max_bytes": 1 << 30,
            "max_members": 100,
        }

    async def _session(self, name: str, op: dict[str, Json]) -> tuple[float, SessionEnd]:
        self._calls += 1
        node = PlannedNode(
            name=name,
            address="127.0.0.1",
            platform="linux/amd64",
            root=str(self._folder / name),
            transport="local",
            service="process",
        )
        key = f"bench/{self._calls}"
        asked = SessionRequest(run="bench", token=(1, self._calls, 1), ops=({**op, "key": key},))
        begun = time.monotonic()
        end = await self._transport.session(node, asked, _unheard)
        return time.monotonic() - begun, end

    @staticmethod
    def _done(end: SessionEnd) -> None:
        fault = end.fault("the node")
        if fault is not None:
            raise fault


def _unheard(event: HostEvent) -> None:
    """Nobody listens."""


async def measure(say: Callable[[str], None]) -> Cost:
    """All parts in turns; ``say`` is told how far it is."""
    folder = Path(tempfile.mkdtemp(prefix="kedge-bench-"))
    transport = LocalTransport(folder / "home")
    try:
        ground = await asyncio.to_thread(Ground, folder, transport)
        await ground.prepare()
        parts: dict[str, Callable[[], Awaitable[float]]] = {
            "sha256sum": ground.sha256sum,
            "archive": ground.check_archive,
            "release": ground.check_release,
            "fetch": ground.fetch,
            "stage": ground.stage,
        }
        taken: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(REPETITIONS):
            say(f"an artifact of {ground.archive.length} bytes: {number + 1} of {REPETITIONS}")
            for name, part in parts.items():
                taken[name].append(await part())
        medians = {name: round(median(seconds), 4) for name, seconds in taken.items()}
        return Cost(bytes=ground.archive.length, **medians)
    finally:
        await transport.aclose()
        await asyncio.to_thread(_remove, folder)


def _remove(folder: Path) -> None:
    # Releases are read-only directories.
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def report(cost: Cost) -> list[str]:
    """What was measured, in lines."""

    def line(what: str, seconds: float) -> str:
        return f"  {what:<58} {seconds * 1000:7.1f} ms  {cost.ratio(seconds):5.2f} ×"

    return [
        f"an artifact of {cost.bytes / 1e6:.0f} MB, beside sha256sum of it (aim: checks at most {AIM} ×):",
        line("sha256sum", cost.sha256sum),
        line("host: length and digest of the archive", cost.archive),
        line("host: every file of the release by its manifest", cost.release),
        line("worker: length and digest, before a host is told of it", cost.fetch),
        line("host: all of stage (checked, unpacked, on the disk)", cost.stage),
    ]
