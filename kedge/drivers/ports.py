"""The ports: what activities and faces may ask of the world, and the values they get.

Everything that touches a disk or a network is ``async`` and may be called by many tasks at once.
Faults of the world are raised as :class:`kedge.model.errors.DriverError`; its ``kind`` is stable.
An operation that the host program refused or could not do is *reported*, not raised: it is a fact
about the node, and what was done before it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from kedge.model.base import Digest, Frozen, Json, Name
from kedge.model.errors import DriverError
from kedge.model.evidence import Checkpoint
from kedge.model.plan import Artifact, PlannedNode
from kedge.model.policy import Policy
from kedge.model.provenance import ProvenanceRules
from kedge.model.signed_policy import KeptPolicy
from kedge.model.trusted import ReleaseName, Standing, TrustedRelease
from kedge.trust.chain import EvidenceEntry, EvidenceHead

if TYPE_CHECKING:
    from kedge.trust.provenance import BundleVerifier

Token: TypeAlias = tuple[int, int, int]
"""The fence token ``(epoch, leg, attempt)``, compared in that order (docs/host-protocol.md)."""

MAX_BEHIND = 5000
"""The most entries of evidence that a conditional append reads under the fleet's lock."""

MAX_BLOB = 64 * 1024 * 1024
"""The largest value a content-addressed store takes, in bytes."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """One session with one node's host program: ``ops`` run in order until one fails.

    ``run`` names the migration, ``ops`` are operations as in docs/host-protocol.md, each with its
    idempotency ``key`` and ``op``; ``lock_wait`` is how long the session waits for another one
    on the same node, in seconds. ``look``: every operation is one of ``fence``, ``observe``,
    ``secrets``, ``probe`` and ``healthy``, is done anew whatever its key, and no journal has it.
    """

    run: str
    token: Token
    ops: tuple[dict[str, Json], ...]
    lock_wait: float = 30.0
    look: bool = False


@dataclass(frozen=True, slots=True)
class HostFault:
    """Why an operation failed: the host program's stable error ``type`` and a sentence."""

    type: str
    message: str
    retryable: bool
    detail: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HostEvent:
    """One line of the host program about one operation.

    ``begin``: nothing was done yet. ``progress``: it waits; ``said`` tells for what. ``done``: in
    the host's journal with fsync; ``replayed`` when the journal had it already, ``skipped`` when
    its ``when`` did not hold. ``failed``: ``error`` says why; the session ends with it.
    ``error`` is set exactly when ``ev`` is ``failed``.
    """

    ev: Literal["begin", "progress", "done", "failed"]
    key: str
    op: str = ""
    said: str = ""
    replayed: bool = False
    skipped: bool = False
    result: Mapping[str, Json] = field(default_factory=dict)
    before: Mapping[str, Json] = field(default_factory=dict)
    after: Mapping[str, Json] = field(default_factory=dict)
    error: HostFault | None = None


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended.

    ``ok``: every operation is in ``done``. Otherwise ``failed`` is the one that was not; its
    ``error`` is always there (a session refused as a whole has an empty ``op``). ``observed`` is
    the last observation of the node, empty when the host program had none.
    """

    ok: bool
    done: tuple[HostEvent, ...]
    failed: HostEvent | None = None
    observed: Mapping[str, Json] = field(default_factory=dict)

    def fault(self, node: str) -> DriverError | None:
        """The failure as the error that a caller raises, or None when all went well."""
        if self.failed is None or self.failed.error is None:
            return None
        error = self.failed.error
        return DriverError(
            error.type,
            f"{node}: {self.failed.op or 'session'}: {error.message}",
            retryable=error.retryable,
            detail=error.detail,
        )


class Transport(Protocol):
    """Carries sessions to the host program of a node."""

    async def session(
        self,
        node: PlannedNode,
        request: SessionRequest,
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        """Runs ``request`` on ``node``; ``on_event`` is called for every line as it arrives.

        ``on_event`` is called on the caller's event loop and must not block. A failed operation
        (``Fenced`` and ``Busy`` too) is in the answer. Cancelling the awaiting task closes the
        session: the host program stops before its next operation; the one it is in comes to its
        end on the host, so only a session with a higher token may be sure to act next.

        Raises ``DriverError`` with kind ``Unreachable`` (nothing was sent) or ``TransportLost``
        (anything up to the next operation may have been done), both retryable: the journal on
        the host answers for what was done.
        """
        ...

    async def put(self, node: PlannedNode, artifact: Path, digest: Digest, length: int) -> str:
        """Brings a verified local file to the host; returns the path that ``stage`` reads there.

        Doing it again costs nothing where the file is already there. ``stage`` verifies the bytes
        on the host, so this need not. Raises as :meth:`session` does.
        """
        ...

    async def aclose(self) -> None:
        """Ends connections and host program servers that this object started. Daemons go on."""
        ...


class Blobs(Protocol):
    """A content-addressed store: immutable bytes (at most ``MAX_BLOB``) under their sha256."""

    async def put(self, content: bytes) -> Digest:
        """Keeps ``content`` durably and returns its digest; the same bytes again cost little.

        Raises ``DriverError`` kind ``StoreError`` (too large, disk full; retryable if it may pass).
        """
        ...

    async def get(self, digest: Digest) -> bytes:
        """The bytes, verified against ``digest`` on every read.

        Raises ``DriverError`` kind ``NotFound``, or ``StoreError`` when what is stored is not what
        was put there; neither is retryable.
        """
        ...

    async def has(self, digest: Digest) -> bool:
        """Whether something is stored under ``digest`` (not verified: :meth:`get` does that)."""
        ...


class Artifacts(Protocol):
    """Finds the archives that releases name."""

    async def fetch(self, artifact: Artifact) -> Path:
        """A local file that has exactly the artifact's length and digest.

        Verified once per worker and file identity (device, inode, size, times), again whenever
        that changes. Raises ``DriverError`` kind ``NotFound`` or ``DigestMismatch`` (neither
        retryable), ``Unreachable`` for a source that may answer later.
        """
        ...


class Releases(Protocol):
    """A signed repository of releases, read as its clients must: from a pinned root, against every known attack.

    ``root`` is the digest of the first root metadata, as a policy says; None: the one that is pinned in this home.
    Errors are ``DriverError``, none of them retryable but ``Unreachable``: see ``kedge.model.trusted.OF_RELEASES``.
    ``NotFound`` (not retryable) says that no repository is named in the settings, or no root pinned.
    """

    async def trusted(self, name: ReleaseName, root: Digest | None = None) -> TrustedRelease:
        """The release, after everything about it but its archives was verified. Asks the repository each time."""
        ...

    async def standing(
        self,
        name: ReleaseName,
        document: Digest,
        root: Digest | None = None,
        *,
        within: float = 2.0,
    ) -> Standing:
        """That the release is listed still, with the document of this digest.

        What was seen may be ``within`` seconds old. Where the repository does not answer, what was verified within the last ten minutes counts, while its metadata
        has not expired.
        """
        ...

    async def bundles(self, rules: ProvenanceRules | None) -> BundleVerifier | None:
        """What verifies sigstore bundles by the trusted root that these rules pin; None where they pin none.

        Of a root that is not kept here, something that refuses every bundle.
        """
        ...


Decide: TypeAlias = Callable[[tuple[EvidenceEntry, ...], EvidenceHead], Sequence[tuple[str, Json]]]
"""A pure decision about a chain: its entries after a cursor and its end → the (key, record) pairs to append, or none."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What a conditional append read and wrote.

    ``read`` are the entries after the cursor when the decision was made. ``appended`` are the entries that hold what
    the decision named, in its order; an entry that held it before is among them. ``head`` is the end of the chain.
    """

    read: tuple[EvidenceEntry, ...]
    appended: tuple[EvidenceEntry, ...]
    head: EvidenceHead


class Evidence(Protocol):
    """An append-only, hash-chained record per fleet."""

    async def append(
        self, fleet: str, key: str, record: Json, *, strict: bool = False
    ) -> EvidenceHead:
        """Appends ``record`` once per ``key``; returns where it stands in the chain.

        Durable when it returns. A key that is there already adds nothing and answers with the
        entry of the first time, whatever ``record`` says now; ``strict`` raises ``KeyTaken`` (not retryable) when
        that entry holds another record (its time ``at`` apart). Raises ``DriverError`` kind
        ``StoreError`` (retryable: the same key may be tried again without harm).
        """
        ...

    async def append_decided(
        self, fleet: str, since: int | Callable[[], int], decide: Decide
    ) -> Decided:
        """Appends what ``decide`` returns, under the fleet's lock: no other worker appends between reading and writing.

        ``decide`` gets the entries after the first ``since`` (a number, or what says it at the moment of reading: a
        cursor that other requests of this worker move on) and the end of the chain. It is pure and quick: it runs in
        the writing thread while other workers wait, and its result is thrown away when the transaction fails, so the
        caller must derive nothing lasting from a call that raises. Either all pairs are appended or none. A key that
        holds the same record (its time ``at`` apart) adds nothing; one that holds another raises ``DriverError`` kind
        ``KeyTaken``, not retryable. What ``decide`` raises is raised here and appends nothing. A caller that is more
        than ``MAX_BEHIND`` entries behind must :meth:`read` first: ``Behind``, retryable. Otherwise as :meth:`append`.
        """
        ...

    async def head(self, fleet: str) -> EvidenceHead:
        """The end of the chain as it is now."""
        ...

    async def read(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[EvidenceEntry, ...]:
        """At most ``limit`` entries after the first ``since``, in order."""
        ...

    async def find(self, fleet: str, key: str) -> EvidenceEntry | None:
        """The entry that was appended under ``key``, or None."""
        ...

    async def under(self, fleet: str, prefix: str, limit: int = 1000) -> tuple[EvidenceEntry, ...]:
        """At most ``limit`` entries whose keys begin with ``prefix``, in order of the chain."""
        ...

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keeps a signed statement beside the chain it is about; one per place, hash and key, the first stays.

        Nothing is verified here. Raises as :meth:`append` does.
        """
        ...

    async def checkpoints(
        self, fleet: str, since: int = 0, limit: int = 1000
    ) -> tuple[Checkpoint, ...]:
        """Checkpoints over more than ``since`` entries, by place: at most ``limit``, and all of the last place."""
        ...

    async def aclose(self) -> None:
        """Writes what waits and lets go; it may be used again afterwards."""
        ...


class PolicyPins(Protocol):
    """The policies this worker goes by. They come from its own disk, never over the wire."""

    async def policy(self, fleet: str) -> Policy:
        """The policy pinned for ``fleet``.

        Raises ``DriverError`` kind ``NotFound`` when none is, ``StoreError`` when the file is not
        a policy; neither is retryable.
        """
        ...

    async def pinned(self, fleet: str) -> KeptPolicy:
        """The same, with the signatures under it and how it came to be pinned; raises as :meth:`policy`."""
        ...

    async def kept(self, fleet: str) -> tuple[KeptPolicy, ...]:
        """Every version that was ever pinned for ``fleet`` here, in order; raises as :meth:`policy`."""
        ...

    async def pin(
        self, fleet: str, policy: Policy, *, signatures: tuple[str, ...] | None = None
    ) -> Digest:
        """Pins ``policy`` for ``fleet`` from now on, and keeps what was pinned before; returns its digest.

        It is written down, not judged: with ``signatures`` as one that follows the version before
        (:func:`kedge.trust.policies.judge_change`), without them as the first, or as one that who has the machine put
        there. What is pinned already stays as it is.
        """
        ...


class FleetRecord(Frozen):
    """A fleet this home knows.

    ``document`` is the digest of its canonical Fleet document, ``baseline`` that of the Release
    it began with; both are in :class:`Blobs`.
    """

    fleet: Name
    document: Digest
    baseline: Digest | None = None


class Fleets(Protocol):
    """The fleets known to this home, so that ``kedge up`` can ensure what should run."""

    async def remember(
        self, fleet: str, document: Frozen, baseline: Frozen | None = None
    ) -> FleetRecord:
        """Keeps the documents by digest and the record by name.

        Without ``baseline`` the one that was recorded before stays.
        """
        ...

    async def known(self, fleet: str) -> FleetRecord | None:
        """The record of ``fleet``, or None."""
        ...

    async def every(self) -> tuple[FleetRecord, ...]:
        """All records, by name."""
        ...

    async def forget(self, fleet: str) -> None:
        """Removes the record (not the documents); no error when there is none."""
        ...
