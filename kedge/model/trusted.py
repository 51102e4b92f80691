"""Releases out of a signed repository: how they are named, and what is known of one that was verified."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field

from kedge.model.base import Digest, Frozen, Json, Name
from kedge.model.notation import Version
from kedge.model.plan import Artifact

Attack = Literal[
    "arbitrary-software",
    "rollback",
    "fast-forward",
    "freeze",
    "endless-data",
    "mix-and-match",
    "extraneous-dependencies",
    "wrong-software",
    "key-compromise",
]
"""What a repository is refused for, by the names of the TUF specification (1.5.2, "Attacks and weaknesses")."""

UNKNOWN, REVOKED = "ReleaseUnknown", "ReleaseRevoked"
REFUSED, STALE = "RepositoryRefused", "RepositoryStale"
NOT_TRUSTED, UNREACHABLE = "ReleaseNotTrusted", "RepositoryUnreachable"
OF_RELEASES = frozenset({UNKNOWN, REVOKED, REFUSED, STALE, NOT_TRUSTED, UNREACHABLE})
"""Kinds of ``DriverError`` that say of a release that nothing further may be done with it: never a node's fault.

``ReleaseUnknown``: the repository does not list it. ``ReleaseRevoked``: it did once. ``RepositoryRefused``: what the
repository serves is not what its keys signed, ``attack`` in the detail says how. ``RepositoryStale``: its metadata
expired, or it is held back. ``ReleaseNotTrusted``: it is signed, but not the one that is meant, or its provenance is
not what the policy asks for. ``RepositoryUnreachable``: it did not answer, for so long that nothing is gone by any more.
"""

_AT = re.compile(
    r"(?:tuf:)?(?P<component>[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?)(?P<mark>[@/])"
    r"(?P<version>[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63})"
)


class ReleaseName(Frozen):
    """One release of a repository. People write ``etcd@3.5.1`` or ``tuf:etcd/3.5.1``."""

    component: Name
    version: Version

    def __str__(self) -> str:
        return f"{self.component}@{self.version}"

    @property
    def folder(self) -> str:
        """What the names of its targets begin with."""
        return f"{self.component}/{self.version}/"

    @property
    def document(self) -> str:
        """The target that is its Release document."""
        return f"{self.folder}release.json"

    @property
    def tombstone(self) -> str:
        """The target that says that it was revoked, and why."""
        return f"{self.folder}revoked.json"


def release_name(text: str) -> ReleaseName | None:
    """The release that a text names, or None where it is no such name but, say, a file's.

    ``tuf:`` and a slash go together; a bare name has an ``@``.
    """
    found = _AT.fullmatch(text)
    if found is None or (found["mark"] == "/") != text.startswith("tuf:"):
        return None
    return ReleaseName(component=found["component"], version=found["version"])


class MetadataVersions(Frozen):
    """Which versions of the repository's metadata something was verified with."""

    root: int
    timestamp: int
    snapshot: int
    targets: int
    component: int


class Attestation(Frozen):
    """An attestation that stands beside a release: the target's name, its digest, and its bytes as text (JSON)."""

    name: str
    digest: Digest
    content: str


class Custody(Frozen):
    """The metadata that led to a release, as sha256 of their very bytes: ``roots`` from the pinned one to the newest, the
    component's delegated metadata, and the bytes of ``release.json``.
    """

    roots: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=257)]
    timestamp: Digest
    snapshot: Digest
    targets: Digest
    component: Digest
    document: Digest

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All of them, in the order in which each leads to the next."""
        return (
            *self.roots, self.timestamp, self.snapshot, self.targets, self.component, self.document,
        )  # fmt: skip


class TrustedRelease(Frozen):
    """A release whose whole chain was verified: pinned root, timestamp, snapshot, targets, the component's delegation.

    ``document`` is the text of ``release.json``, ``target`` the digest of those bytes; ``digest`` is that of the
    document's meaning, as plans name it. ``authors`` are who added it and who signed the delegation's metadata, as
    person names or key fingerprints (``SHA256:…``). ``expires`` is the moment, RFC 3339, at which the first of the
    metadata runs out.
    """

    name: ReleaseName
    root: Digest
    document: str
    target: Digest
    digest: Digest
    artifacts: tuple[Artifact, ...]
    authors: tuple[str, ...]
    attestations: tuple[Attestation, ...] = ()
    vendor: tuple[str, ...] = ()
    """Names of the targets with what the vendor published beside the archives (``vendor-…``)."""
    added: str = ""
    versions: MetadataVersions
    expires: str
    custody: Custody | None = None
    """None where there was more of it than is kept."""
    papers: Annotated[tuple[bytes, ...], Field(exclude=True, repr=False)] = ()
    """The bytes that ``custody`` names."""


class Standing(Frozen):
    """That a release is listed still, and by which metadata that was seen."""

    name: ReleaseName
    versions: MetadataVersions
    expires: str


MOST_REASON = 500
"""The longest reason of a revocation, in characters."""


class Revocation(Frozen):
    """The signed word that a release is not to be used any more: the target ``revoked.json``."""

    kind: Literal["Revoked"] = "Revoked"
    component: Name
    version: Version
    document: Digest
    """Digest of what ``release.json`` meant."""
    listed: Digest | None = None
    """Digest of what was listed of it: the only files with which it can be listed again."""
    reason: Annotated[str, Field(max_length=MOST_REASON)] = ""
    by: str = ""
    at: str


def attack_of(detail: dict[str, Json] | None) -> Attack | None:
    """The attack that an error's detail names, if it names one."""
    named = (detail or {}).get("attack")
    return named if named in get_args(Attack) else None  # type: ignore[return-value]
