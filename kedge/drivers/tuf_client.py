"""Reading a release repository as TUF's client workflow says (TUF specification 1.0.34, section 5), by ``tuf.ngclient``.

Added to it: thresholds mean distinct keys; every signature that stands in metadata must hold; a release is taken only
whole, with its document, its archives and nothing else in its folder. What is wrong is said by the name of the attack.

Blocking; one :class:`Client` per pinned root. Its memory of what was newest is a folder that all processes of a home share
under a lock: it is what a rollback is noticed by, also after a restart.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from pydantic import ValidationError
from tuf.api.exceptions import DownloadError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig

from kedge.drivers.files import store_error
from kedge.drivers.owners import make_folder
from kedge.drivers.tuf_attacks import Naming, not_trusted, unreachable
from kedge.drivers.tuf_fetch import FolderFetcher, RepositoryRefusalError
from kedge.drivers.tuf_http import HttpFetcher
from kedge.drivers.tuf_layout import AnyMetadata, exclusive
from kedge.drivers.tuf_repository import EXTRA
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact
from kedge.model.release import Release
from kedge.model.trusted import (
    REFUSED,
    REVOKED,
    UNKNOWN,
    Attestation,
    Custody,
    MetadataVersions,
    ReleaseName,
    Revocation,
    Standing,
    TrustedRelease,
    release_name,
)
from kedge.plan.digest import document_digest
from kedge.trust.custody import CustodyError, authors_of, custom_of, signed_by
from kedge.trust.tufkeys import content_digest

MAX_DOCUMENT = 2 * 1024 * 1024
"""The largest Release document, in bytes."""
MAX_EXTRA = 1024 * 1024
"""The largest attestation, in bytes."""
MOST_ATTESTATIONS = 64
MOST_PAPERS = 32 * 1024 * 1024
"""The most metadata of one release that is kept as evidence, in bytes."""
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Listed:
    """What a component's metadata lists, verified: the files by name, and who signed that list."""

    targets: dict[str, TargetFile]
    signers: tuple[str, ...]
    versions: MetadataVersions
    expires: str


@dataclass(frozen=True)
class View:
    """The repository as it was at one refresh."""

    updater: Updater
    folder: Path

    def metadata(self, role: str) -> AnyMetadata:
        """What the updater verified and kept of a role."""
        return Metadata.from_bytes((self.folder / f"{quote(role, '')}.json").read_bytes())


class Client:
    """One repository (``location``: a folder or an address), from the root metadata in ``bootstrap`` on.

    ``memory`` is a folder of this client alone.
    """

    def __init__(self, location: str, bootstrap: bytes, memory: Path) -> None:
        self._location = location
        self._bootstrap = bootstrap
        self.root: Digest = content_digest(bootstrap)
        self._memory = memory
        self._own = threading.Lock()
        self._fetcher = fetcher_of(location, self._seen)
        self._naming = Naming(location, self._fetcher.last)

    # -- releases ---------------------------------------------------------------------------------

    def trusted(self, name: ReleaseName) -> TrustedRelease:
        """See :meth:`kedge.drivers.ports.Releases.trusted`."""
        with self._refreshed(name) as view:
            listed = self._listed(view, name)
            return self._naming.named(lambda: self._read(view, name, listed), name)

    def standing(self, name: ReleaseName, document: Digest) -> Standing:
        """See :meth:`kedge.drivers.ports.Releases.standing`."""
        with self._refreshed(name) as view:
            listed = self._listed(view, name)
            if custom_of(listed.targets[name.document]).get("document") != document:
                found = self._naming.named(lambda: self._read(view, name, listed), name)
                if found.digest != document:
                    raise not_trusted(
                        f"{name} in the repository is another than the one of this plan"
                    )
        return Standing(name=name, versions=listed.versions, expires=listed.expires)

    def names(self) -> dict[ReleaseName, TargetFile]:
        """Every release that is listed, and the revoked ones by their ``revoked.json``."""
        with self._refreshed(None) as view:
            top: Targets = view.metadata("targets").signed
            components = sorted(top.delegations.roles or ()) if top.delegations is not None else []
            found: dict[ReleaseName, TargetFile] = {}
            for component in components:
                try:
                    listed = self._component(view, component)
                except DriverError as error:
                    if error.kind != UNKNOWN:
                        raise
                    continue
                for path, target in sorted(listed.targets.items()):
                    name = _release_of(path)
                    if name is not None and name.component == component:
                        found[name] = target
            return found

    def fetch(self, path: str, into: Path) -> None:
        """Downloads one target, verified, to ``into`` (replaced whole). Raises as :meth:`trusted`, or ``NotFound``."""
        with self._refreshed(None) as view:
            target = self._naming.named(lambda: view.updater.get_targetinfo(path), None)
        if target is None:
            raise DriverError("NotFound", f"the repository lists no {path}", retryable=False)
        fresh = into.with_name(f".{into.name}.{os.getpid()}.{threading.get_ident()}")
        make_folder(into.parent)
        try:
            # Not under the lock: an archive takes its time, and nothing of the memory is touched.
            self._naming.named(
                lambda: view.updater.download_target(target, str(fresh)), None, target=target
            )
            fresh.replace(into)
        except OSError as error:
            raise store_error(f"keep {path}", error) from error
        finally:
            fresh.unlink(missing_ok=True)

    # -- the repository ---------------------------------------------------------------------------

    @contextmanager
    def _refreshed(self, name: ReleaseName | None) -> Iterator[View]:
        """The repository's newest state, verified, with the memory locked for as long as the block lasts."""
        with self._own, exclusive(self._memory / ".lock", LOCK_SECONDS, "the memory of releases"):
            yield self._naming.named(self._refresh, name)

    def _refresh(self) -> View:
        self._fetcher.scratch = self._memory
        config = UpdaterConfig(max_root_rotations=256, max_delegations=8)
        folder = self._memory / "metadata"
        make_folder(folder)
        updater = Updater(
            str(folder),
            f"{self._fetcher.base}metadata/",
            target_base_url=f"{self._fetcher.base}targets/",
            fetcher=self._fetcher,
            config=config,
            bootstrap=self._bootstrap,
        )
        updater.refresh()
        view = View(updater, folder)
        root: Root = view.metadata("root").signed
        for role in ("timestamp", "snapshot", "targets"):
            _signers(root, role, view.metadata(role))
        return view

    def _seen(self, role: str) -> int:
        """The version of a role's metadata that this home trusted last; 0 for none."""
        try:
            content = (self._memory / "metadata" / f"{quote(role, '')}.json").read_bytes()
            return int(json.loads(content)["signed"]["version"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0

    def _component(self, view: View, component: str, name: ReleaseName | None = None) -> Listed:
        """What a component lists. Loads its metadata if it was not. ``name`` is the release that is asked for, if one is."""
        # Whatever is looked for, the library walks down to the metadata of the component.
        sought = name or ReleaseName(component=component, version="0")
        self._naming.named(lambda: view.updater.get_targetinfo(sought.tombstone), name)
        top: Targets = view.metadata("targets").signed
        delegated = top.delegations.roles if top.delegations is not None else None
        if delegated is None or component not in delegated:
            raise DriverError(
                UNKNOWN, f"the repository has no component {component}", retryable=False,
                next_step="kedge release list shows the releases there are",
            )  # fmt: skip
        metadata = view.metadata(component)
        signers = self._naming.named(lambda: _signers(top, component, metadata), name)
        every = [view.metadata(role) for role in ("root", "timestamp", "snapshot", "targets")]
        versions = [one.signed.version for one in every]
        expires = min(one.signed.expires for one in (*every, metadata))
        signed: Targets = metadata.signed
        self._naming.digests |= {
            one.hashes.get("sha256", ""): path for path, one in signed.targets.items()
        }
        return Listed(
            targets=signed.targets,
            signers=signers,
            versions=MetadataVersions(
                root=versions[0],
                timestamp=versions[1],
                snapshot=versions[2],
                targets=versions[3],
                component=signed.version,
            ),
            expires=f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        )

    def _listed(self, view: View, name: ReleaseName) -> Listed:
        """The same, of a release that is there and was not revoked."""
        listed = self._component(view, name.component, name)
        tombstone = self._naming.named(lambda: view.updater.get_targetinfo(name.tombstone), name)
        if tombstone is not None:
            raise self._revoked(view, name, tombstone)
        if name.document not in listed.targets:
            raise DriverError(
                UNKNOWN, f"the repository lists no release {name}", retryable=False,
                next_step="kedge release list shows the releases there are",
            )  # fmt: skip
        self._may_list(view, name, listed, name.document)
        return listed

    def _may_list(self, view: View, name: ReleaseName, listed: Listed, path: str) -> None:
        """Raise unless it is the component that says what a file is: by its delegation, and before anybody else."""
        found = self._naming.named(lambda: view.updater.get_targetinfo(path), name)
        if found != listed.targets[path]:
            self._naming.named(lambda: _foreign(path, name), name)

    def _revoked(self, view: View, name: ReleaseName, target: TargetFile) -> DriverError:
        content = self._naming.named(
            lambda: self._bytes(view, target, MAX_EXTRA), name, target=target
        )
        why, by = "", ""
        try:
            word = Revocation.model_validate_json(content)
            why, by = word.reason, word.by
        except ValidationError:
            pass  # the name alone says that it is revoked
        return DriverError(
            REVOKED,
            f"{name} was revoked" + (f" by {by}" if by else "") + (f": {why}" if why else ""),
            retryable=False,
            detail={"reason": why, "by": by},
            next_step="go on with another release, or go back",
        )

    def _bytes(self, view: View, target: TargetFile, most: int) -> bytes:
        """A small target's content, verified."""
        if target.length > most:
            raise RepositoryRefusalError(
                "endless-data", f"{target.path} has {target.length} bytes; at most {most} are taken"
            )
        folder = self._memory / "small"
        make_folder(folder)
        file = folder / content_digest(target.path.encode())
        if view.updater.find_cached_target(target, str(file)) is None:
            view.updater.download_target(target, str(file))
        return file.read_bytes()

    def _read(self, view: View, name: ReleaseName, listed: Listed) -> TrustedRelease:
        """A release's document, and that everything in its folder is its own."""
        target = listed.targets[name.document]
        content = self._naming.named(
            lambda: self._bytes(view, target, MAX_DOCUMENT), name, target=target
        )
        release = _document(content, name)
        own = {path: one for path, one in listed.targets.items() if path.startswith(name.folder)}
        for path in own:
            self._may_list(view, name, listed, path)
        artifacts = tuple(_artifacts(release, name, own))
        extra = [path for path in own if EXTRA.fullmatch(path.removeprefix(name.folder))]
        known = {name.document, *extra, *(one.source.removeprefix("tuf:") for one in artifacts)}
        foreign = sorted(set(own) - known)
        if foreign:
            raise RepositoryRefusalError(
                "extraneous-dependencies",
                f"{name} comes with {foreign[0]}, which its document does not name",
            )
        attested = sorted(path for path in extra if path.startswith(f"{name.folder}provenance-"))
        if len(attested) > MOST_ATTESTATIONS:
            raise RepositoryRefusalError(
                "endless-data", f"{name} has more than {MOST_ATTESTATIONS} attestations"
            )
        papers = self._papers(view, name.component, content)
        return TrustedRelease(
            name=name,
            root=self.root,
            document=content.decode(),
            target=content_digest(content),
            digest=document_digest(release),
            artifacts=artifacts,
            authors=authors_of(target, listed.signers),
            attestations=tuple(self._attestation(view, own[path], name) for path in attested),
            vendor=tuple(sorted(path for path in extra if path not in attested)),
            added=custom_of(target).get("added", ""),
            versions=listed.versions,
            expires=listed.expires,
            custody=_custody([content_digest(one) for one in papers]) if papers else None,
            papers=papers,
        )

    def _papers(self, view: View, component: str, document: bytes) -> tuple[bytes, ...]:
        """The bytes by which this release was verified, from the pinned root on; nothing where they are too many."""
        first = Metadata[Root].from_bytes(self._bootstrap).signed.version
        newest = view.metadata("root").signed.version
        history = view.folder / "root_history"
        files = [history / f"{one}.root.json" for one in range(first + 1, newest + 1)]
        files += [
            view.folder / f"{quote(role, '')}.json"
            for role in ("timestamp", "snapshot", "targets", component)
        ]
        if sum(one.stat().st_size for one in files) > MOST_PAPERS:
            return ()
        return (self._bootstrap, *(one.read_bytes() for one in files), document)

    def _attestation(self, view: View, target: TargetFile, name: ReleaseName) -> Attestation:
        content = self._naming.named(
            lambda: self._bytes(view, target, MAX_EXTRA), name, target=target
        )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise not_trusted(f"{target.path} is no text") from error
        return Attestation(name=target.path, digest=content_digest(content), content=text)


def _custody(digests: list[Digest]) -> Custody:
    *roots, timestamp, snapshot, targets, component, document = digests
    return Custody(
        roots=tuple(roots), timestamp=timestamp, snapshot=snapshot, targets=targets,
        component=component, document=document,
    )  # fmt: skip


def _release_of(path: str) -> ReleaseName | None:
    """The release whose document or revocation a target is."""
    component, _, rest = path.partition("/")
    version, _, base = rest.partition("/")
    named = release_name(f"{component}@{version}")
    return named if base in ("release.json", "revoked.json") else None


def _foreign(path: str, name: ReleaseName) -> NoReturn:
    raise RepositoryRefusalError(
        "arbitrary-software", f"{path} is listed by who has no say about {name.component}"
    )


def fetcher_of(location: str, seen: Callable[[str], int]) -> FolderFetcher | HttpFetcher:
    """The way to the files of a repository."""
    if location.startswith(("http://", "https://")):
        return HttpFetcher(location, seen)
    return FolderFetcher(Path(location), seen)


def first_root(location: str, wanted: Digest | None) -> bytes:
    """The repository's first root metadata; with ``wanted`` only the one of that digest.

    Raises ``DriverError``: ``Unreachable``, ``RepositoryRefused``.
    """
    fetcher = fetcher_of(location, lambda _: 0)
    try:
        content = fetcher.download_bytes(f"{fetcher.base}metadata/1.root.json", 512_000)
    except RepositoryRefusalError as error:
        raise DriverError(
            REFUSED, str(error), retryable=False, detail={"attack": error.attack}
        ) from error
    except DownloadError as error:
        raise unreachable(location, error) from error
    if wanted is not None and content_digest(content) != wanted:
        raise DriverError(
            REFUSED,
            f"the repository at {location} begins with root metadata {content_digest(content)[:12]}, "
            f"and {wanted[:12]} is pinned",
            retryable=False,
            detail={"attack": "arbitrary-software"},
            next_step="check the address, or the policy's releases.root, with whoever keeps the root keys",
        )
    return content


def _signers(holder: Root | Targets, role: str, metadata: AnyMetadata) -> tuple[str, ...]:
    """Fingerprints of who signed; a signature that stands there and does not hold is refused, too."""
    try:
        return signed_by(holder, role, metadata)
    except CustodyError as error:
        raise RepositoryRefusalError("arbitrary-software", str(error)) from error


def _document(content: bytes, name: ReleaseName) -> Release:
    try:
        release = Release.model_validate_json(content)
    except ValidationError as error:
        raise not_trusted(
            f"{name.document} is not a Release document that this kedge knows"
        ) from error
    if (release.component, release.version) != (name.component, name.version):
        raise RepositoryRefusalError(
            "wrong-software",
            f"what is listed as {name} says that it is {release.component}@{release.version}",
        )
    return release


def _artifacts(
    release: Release, name: ReleaseName, own: dict[str, TargetFile]
) -> Iterator[Artifact]:
    """The archives, each of them a target of this release with the document's digest and length."""
    for platform, one in sorted(release.artifacts.items()):
        path = one.source.removeprefix("tuf:")
        target = own.get(path)
        if target is None or not one.source.startswith("tuf:"):
            raise RepositoryRefusalError(
                "extraneous-dependencies",
                f"the document of {name} asks for {one.source}, which is not among its files",
            )
        if (target.hashes.get("sha256"), target.length) != (one.digest, one.length):
            raise RepositoryRefusalError(
                "mix-and-match", f"{path} is listed otherwise than the document of {name} says"
            )
        yield Artifact.of(platform, one)
