"""The one visible table of drivers: which name in a document stands for which class.

Wiring calls :func:`open_drivers` once per process; nobody else builds drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kedge.drivers.artifacts import ArtifactSource, FileSource, VerifiedArtifacts
from kedge.drivers.checkpoints import SignedEvidence
from kedge.drivers.evidence import SqliteEvidence
from kedge.drivers.evidence_writer import WrittenEvidence
from kedge.drivers.local import LocalTransport
from kedge.drivers.owners import check_owners
from kedge.drivers.policy_pins import FilePolicyPins
from kedge.drivers.ports import Evidence, HostEvent, SessionEnd, SessionRequest, Transport
from kedge.drivers.sim import SimTransport
from kedge.drivers.stores import FileBlobs, FileFleets
from kedge.drivers.tuf_releases import TufReleases, TufSource
from kedge.drivers.web_source import WebSource
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """What drivers are built from.

    ``home`` holds everything; ``releases`` are the directories that relative artifact paths are
    looked for in, ``repository`` the signed release repository (a folder or an address); ``policies`` is the folder of pinned policies (``<home>/trust/policies`` when
    None). ``local_limit`` bounds sessions on this machine at a time, 0 refuses them. The simulator keeps its hosts
    in ``<home>/sim/hosts.jsonl``, in memory alone with ``sim_in_memory``; ``sim_pace`` is how many
    real seconds a simulated one takes. ``evidence_url`` names a PostgreSQL database (no password in it);
    None: ``<home>/evidence.db``. With ``checkpoint_key`` the evidence is signed as it grows by the key in that file
    (made where there is none), after ``checkpoint_records`` records or ``checkpoint_seconds`` seconds at the latest.
    """

    home: Path
    releases: tuple[Path, ...] = ()
    repository: str | None = None
    policies: Path | None = None
    local_limit: int | None = None
    sim_in_memory: bool = False
    sim_pace: float = 0.0
    evidence_url: str | None = None
    checkpoint_key: Path | None = None
    checkpoint_records: int = 1000
    checkpoint_seconds: float = 60.0


def _local(settings: DriverSettings) -> Transport:
    return LocalTransport(settings.home, limit=settings.local_limit)


def _sim(settings: DriverSettings) -> Transport:
    state = None if settings.sim_in_memory else settings.home / "sim" / "hosts.jsonl"
    return SimTransport(pace=settings.sim_pace, state=state)


TRANSPORTS: dict[str, Callable[[DriverSettings], Transport]] = {
    "local": _local,
    "sim": _sim,
}
"""By the name in a node's ``transport``. SSH and Docker join here, each a module of its own."""

ARTIFACT_SOURCES: dict[str, Callable[[DriverSettings, TufReleases], ArtifactSource]] = {
    "file": lambda settings, _: FileSource(settings.releases),
    "http": lambda settings, _: WebSource(settings.home / "artifacts" / "fetched"),
    "https": lambda settings, _: WebSource(settings.home / "artifacts" / "fetched"),
    "tuf": lambda settings, releases: TufSource(releases, settings.home / "artifacts" / "fetched"),
}
"""By the scheme of an artifact's ``source`` (plain paths are ``file``): ``kedge.model.release.SOURCES``."""


def _sqlite(settings: DriverSettings) -> WrittenEvidence:
    return SqliteEvidence(settings.home / "evidence.db")


def _postgres(settings: DriverSettings) -> WrittenEvidence:
    # Its library takes a while to load: only who uses it pays.
    from kedge.drivers.evidence_postgres import PostgresEvidence  # noqa: PLC0415

    return PostgresEvidence(settings.evidence_url or "")


EVIDENCE: dict[str, Callable[[DriverSettings], WrittenEvidence]] = {
    "file": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
}
"""By the scheme of ``evidence_url``; without one it is ``file``."""


def _evidence(settings: DriverSettings) -> Evidence:
    made = EVIDENCE[(settings.evidence_url or "file:").partition(":")[0]](settings)
    if settings.checkpoint_key is None:
        return made
    return SignedEvidence(
        made,
        settings.checkpoint_key,
        records=settings.checkpoint_records,
        seconds=settings.checkpoint_seconds,
    )


class Transports:
    """:class:`kedge.drivers.ports.Transport` for all nodes: each by the transport it names.

    A transport is built when a node first needs it.
    """

    def __init__(self, settings: DriverSettings) -> None:
        self._settings = settings
        self._open: dict[str, Transport] = {}

    def named(self, name: str) -> Transport:
        """The transport of that name. Raises ``DriverError`` kind ``NotFound``, not retryable."""
        found = self._open.get(name)
        if found is None:
            if name not in TRANSPORTS:
                known = ", ".join(sorted(TRANSPORTS))
                raise DriverError(
                    "NotFound", f"no transport {name!r}; there are: {known}", retryable=False
                )
            found = self._open[name] = TRANSPORTS[name](self._settings)
        return found

    async def session(
        self,
        node: PlannedNode,
        request: SessionRequest,
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        """See :meth:`kedge.drivers.ports.Transport.session`."""
        return await self.named(node.transport).session(node, request, on_event)

    async def put(self, node: PlannedNode, artifact: Path, digest: Digest, length: int) -> str:
        """See :meth:`kedge.drivers.ports.Transport.put`."""
        return await self.named(node.transport).put(node, artifact, digest, length)

    async def aclose(self) -> None:
        """Closes every transport that was built."""
        for transport in self._open.values():
            await transport.aclose()
        self._open.clear()


@dataclass(frozen=True, slots=True)
class Drivers:
    """All drivers of one process, behind their ports."""

    transport: Transports
    blobs: FileBlobs
    artifacts: VerifiedArtifacts
    releases: TufReleases
    evidence: Evidence
    pins: FilePolicyPins
    fleets: FileFleets

    async def aclose(self) -> None:
        """Ends what the drivers started: servers, connections, the evidence's thread."""
        await self.transport.aclose()
        await self.evidence.aclose()


TRUSTED = (
    "kedge.toml",
    "trust",
    "policies",
    "fleets",
    "run",
    "engine",
    "cache",
    "host",
    "artifacts",
)
"""What a home trusts by its place: settings, pins, addresses of running processes, compiled modules, the host program."""


def open_drivers(settings: DriverSettings) -> Drivers:
    """Builds the drivers of one process; nothing is started or made on disk before it is used.

    Raises ``DriverError`` where somebody else can change what this home trusts.
    """
    home = settings.home
    for name in TRUSTED:
        check_owners(home / name)
    blobs = FileBlobs(home / "store")
    releases = TufReleases(settings.repository, home / "trust" / "releases")
    sources = {scheme: make(settings, releases) for scheme, make in ARTIFACT_SOURCES.items()}
    return Drivers(
        transport=Transports(settings),
        blobs=blobs,
        artifacts=VerifiedArtifacts(home / "artifacts", sources),
        releases=releases,
        evidence=_evidence(settings),
        pins=FilePolicyPins(settings.policies or home / "trust" / "policies"),
        fleets=FileFleets(home / "fleets", blobs),
    )
