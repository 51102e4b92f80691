"""The release repository as activities and faces use it: pinned roots, one client each, answers for a moment."""
# ruff: noqa: PLC0415 - TUF's library takes half a second to load: only who asks for a signed release pays

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from kedge.drivers.files import read_bounded, store_error, write_atomic
from kedge.drivers.owners import check_owners
from kedge.drivers.trusted_roots import TrustedRoots
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact
from kedge.model.provenance import ProvenanceRules
from kedge.model.trusted import REFUSED, ReleaseName, Standing, TrustedRelease

if TYPE_CHECKING:
    from kedge.drivers.tuf_client import Client
    from kedge.trust.provenance import BundleVerifier

GRACE = 600.0
"""Seconds for which that is believed while the repository does not answer (and never beyond its metadata's expiry)."""
MAX_ROOT = 512_000


class TufReleases:
    """:class:`kedge.drivers.ports.Releases` over a TUF repository at ``location`` (a folder or an address).

    ``trust`` holds the pinned roots (``root.json`` is this home's own, ``<digest>.json`` those that policies name) and,
    per root, the memory of what was newest; ``sigstore/`` the trusted roots of builders without keys.
    """

    def __init__(self, location: str | None, trust: Path) -> None:
        self._location = location
        self._trust = trust
        self.roots = TrustedRoots(trust / "sigstore")
        self._clients: dict[Digest, Client] = {}
        self._stood: dict[tuple[Digest, ReleaseName, Digest], tuple[float, Standing]] = {}
        self._locks: dict[object, asyncio.Lock] = {}

    # -- the port ---------------------------------------------------------------------------------

    async def trusted(self, name: ReleaseName, root: Digest | None = None) -> TrustedRelease:
        """See :meth:`kedge.drivers.ports.Releases.trusted`."""
        return await asyncio.to_thread(self.read, name, root)

    async def standing(
        self,
        name: ReleaseName,
        document: Digest,
        root: Digest | None = None,
        *,
        within: float = 2.0,
    ) -> Standing:
        """See :meth:`kedge.drivers.ports.Releases.standing`."""
        client = await asyncio.to_thread(self.client, root)
        asked = (client.root, name, document)
        # Many nodes ask at the same moment: the repository is asked once, the others wait.
        async with self._locks.setdefault(asked, asyncio.Lock()):
            known = self._stood.get(asked)
            if known is not None and time.monotonic() - known[0] < within:
                return known[1]
            try:
                found = await asyncio.to_thread(client.standing, name, document)
            except DriverError as error:
                if error.kind == "Unreachable" and known is not None and _holds(*known):
                    return known[1]
                self._stood.pop(asked, None)
                raise
            self._stood[asked] = (time.monotonic(), found)
            return found

    async def bundles(self, rules: ProvenanceRules | None) -> BundleVerifier | None:
        """See :meth:`kedge.drivers.ports.Releases.bundles`."""
        return await asyncio.to_thread(self.roots.verifier, rules)

    # -- the same, blocking -----------------------------------------------------------------------

    def read(self, name: ReleaseName, root: Digest | None = None) -> TrustedRelease:
        """As :meth:`trusted`."""
        return self.client(root).trusted(name)

    def client(self, root: Digest | None = None) -> Client:
        """The client that begins at this root; None: at the one pinned here.

        Where a policy names a root that is not here yet, it is got from the repository: its digest says that it is the
        one. Raises ``DriverError``: ``NotFound`` (no repository, no root), ``Unreachable``, ``RepositoryRefused``.
        """
        if self._location is None:
            raise DriverError(
                "NotFound", "no release repository is named in the settings", retryable=False,
                next_step="set release_repository (a folder or an address) in kedge.toml, or KEDGE_RELEASE_REPOSITORY",
            )  # fmt: skip
        wanted = root or self.pinned()
        if wanted is None:
            raise DriverError(
                "NotFound", "no root of a release repository is pinned here", retryable=False,
                next_step="kedge release trust DIGEST, with the digest from who keeps its root keys",
            )  # fmt: skip
        found = self._clients.get(wanted)
        if found is None:
            from kedge.drivers.tuf_client import Client

            content = self._root(wanted)
            memory = self._trust / "memory" / wanted[:32]
            found = self._clients.setdefault(wanted, Client(self._location, content, memory))
        return found

    def known(self) -> tuple[Client, ...]:
        """The client of the root pinned here, and those that were asked for. Raises as :meth:`client`."""
        wanted = dict.fromkeys([*([self.pinned()] if self.pinned() else []), *self._clients])
        return tuple(self.client(root) for root in wanted) or (self.client(),)

    def pinned(self) -> Digest | None:
        """The digest of the root pinned in this home, if one is."""
        content = self._kept(self._trust / "root.json")
        return None if content is None else sha256(content).hexdigest()

    def pin(self, content: bytes) -> Digest:
        """Pins a root in this home from now on; returns its digest. Raises ``DriverError`` for one that is no good."""
        digest = sha256(content).hexdigest()
        _sound(content, "this root metadata")
        try:
            for name in (f"{digest}.json", "root.json"):
                write_atomic(self._trust / name, content)
        except OSError as error:
            raise store_error("pin the root of the release repository", error) from error
        return digest

    def first_root(self, wanted: Digest | None) -> bytes:
        """The first root metadata that the repository serves; see :func:`kedge.drivers.tuf_client.first_root`."""
        if self._location is None:
            self.client()
        from kedge.drivers.tuf_client import first_root

        return first_root(self._location or "", wanted)

    def _root(self, wanted: Digest) -> bytes:
        for name in ("root.json", f"{wanted}.json"):
            content = self._kept(self._trust / name)
            if content is not None and sha256(content).hexdigest() == wanted:
                _sound(content, str(self._trust / name))
                return content
        content = self.first_root(wanted)
        try:
            write_atomic(self._trust / f"{wanted}.json", content)
        except OSError as error:
            raise store_error("keep the root of the release repository", error) from error
        return content

    def _kept(self, path: Path) -> bytes | None:
        try:
            content = read_bounded(path, MAX_ROOT)
        except OSError as error:
            raise store_error(f"read {path}", error) from error
        check_owners(path)
        return content


class TufSource:
    """:class:`kedge.drivers.artifacts.ArtifactSource` of ``tuf:`` addresses: targets of the repository.

    The root is the one pinned here, or any that a policy named here: the archive is held to the digest in its signed
    document whatever it comes from.
    """

    def __init__(self, releases: TufReleases, cache: Path) -> None:
        self._releases = releases
        self._cache = cache

    async def candidates(self, artifact: Artifact) -> Sequence[Path]:
        """See :meth:`kedge.drivers.artifacts.ArtifactSource.candidates`."""
        return await asyncio.to_thread(self._candidates, artifact)

    def _candidates(self, artifact: Artifact) -> Sequence[Path]:
        path = artifact.source.removeprefix("tuf:")
        into = self._cache / artifact.digest
        for client in self._releases.known():
            try:
                client.fetch(path, into)
            except DriverError as error:
                if error.kind != "NotFound":
                    raise
            else:
                return (into,)
        return ()


def _sound(content: bytes, where: str) -> None:
    from kedge.drivers.tuf_layout import read_metadata
    from kedge.trust.tufkeys import KeysError, sound_delegations

    metadata = read_metadata(content, where)
    try:
        sound_delegations(metadata.signed)
    except KeysError as error:
        raise DriverError(
            REFUSED, f"{where}: {error}", retryable=False, detail={"attack": "key-compromise"}
        ) from error


def _holds(seen: float, standing: Standing) -> bool:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return time.monotonic() - seen < GRACE and standing.expires > now
