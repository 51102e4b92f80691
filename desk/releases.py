"""The release repository at the desk: what its keepers and its readers may ask for.

Keepers work on a folder: they add, sign, publish, revoke, rotate. Readers ask the repository that the settings name, through
the same client as the workers. Every change is a draft until the thresholds are met; with keys that suffice one call does
it all.
"""
# ruff: noqa: PLC0415 - TUF's library is loaded by those who need it

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from desk.release_roles import (
    Changed,
    KeyChange,
    RoleSpec,
    RoleView,
    changed_in,
    key_id,
    public_key,
    role_keys,
    views_of,
)
from kedge.drivers.artifacts import VerifiedArtifacts
from kedge.drivers.tuf_releases import TufReleases
from kedge.model.base import Digest, Frozen
from kedge.model.errors import DriverError, OrderError, PlanError
from kedge.model.plan import Artifact
from kedge.model.trusted import UNKNOWN, ReleaseName, TrustedRelease

if TYPE_CHECKING:
    from kedge.drivers.metadata_signers import MetadataKey
    from kedge.drivers.tuf_changes import Told
    from kedge.drivers.tuf_repository import NewRelease, Repository


class ListedRelease(Frozen):
    """One line of the list."""

    name: ReleaseName
    revoked: bool
    added: str = ""
    author: str = ""


class Verified(Frozen):
    """Everything of the repository, verified: each release with every file that it has."""

    location: str
    root: Digest
    releases: tuple[ListedRelease, ...]
    files: int
    bytes: int
    expires: str


class ReleaseDesk:
    """Questions and changes. ``folder`` is the keepers' copy of the repository."""

    def __init__(self, releases: TufReleases, location: str | None) -> None:
        self._releases = releases
        self.location = location

    # -- keepers ----------------------------------------------------------------------------------

    async def init(
        self,
        folder: Path,
        roles: Sequence[RoleSpec],
        signers: Sequence[MetadataKey],
        *,
        days: Mapping[str, int] | None = None,
    ) -> Changed:
        """A new repository; published at once where the keys at hand suffice, and its root pinned in this home.

        Roles that are not named take the keys at hand, any one of them. Raises ``PlanError`` when there is one already.
        """
        from kedge.drivers.tuf_layout import TOP
        from kedge.drivers.tuf_repository import Repository, RoleKeys

        given = {spec.role: role_keys(spec) for spec in roles}
        if any(role not in given for role in TOP) and not signers:
            raise OrderError(
                "a repository needs keys",
                next_step="--key FILE for all roles, or --role NAME=THRESHOLD:FILE.pub,FILE.pub for each",
            )
        at_hand = RoleKeys(1, tuple(one.key for one in signers))
        repository = Repository(folder)
        with repository.layout.locked():
            repository.create(
                {role: given.get(role, at_hand) for role in TOP}, dict(days or {}), _now()
            )
            changed = await _finish(repository, signers, publish=True)
        if changed.root is not None:
            self._releases.pin((folder / "metadata" / "1.root.json").read_bytes())
        return changed

    async def add(
        self,
        folder: Path,
        new: NewRelease,
        signers: Sequence[MetadataKey],
        *,
        component: RoleSpec | None = None,
        publish: bool = False,
    ) -> Changed:
        """Adds a release, with whatever stands beside it. ``component`` gives the keys of one that is new.

        Raises as :meth:`kedge.drivers.tuf_repository.Repository.add_release`.
        """
        with self._at_work(folder) as repository:
            before = _begun(repository)
            keys = None if component is None else role_keys(component)
            repository.add_release(new, _now(), keys=keys)
            return await _finish(repository, signers, publish=publish, before=before)

    async def attach(
        self,
        folder: Path,
        name: ReleaseName,
        extra: Mapping[str, bytes],
        signers: Sequence[MetadataKey],
        *,
        publish: bool = False,
    ) -> Changed:
        """Puts attestations (``provenance-<n>.json``) or vendor's material beside a release that is there."""
        with self._at_work(folder) as repository:
            before = _begun(repository)
            repository.attach(name, extra, _now())
            return await _finish(repository, signers, publish=publish, before=before)

    async def sign(
        self,
        folder: Path,
        roles: Sequence[str],
        signers: Sequence[MetadataKey],
        *,
        copies: Sequence[Path] = (),
        shown: Mapping[str, Digest] | None = None,
    ) -> Changed:
        """Signs the drafts of these roles (none named: every one the keys are of), and takes over signatures from
        somebody's copies of drafts.

        ``shown`` are the drafts that were looked at, by the sha256 of their bytes: no other is signed. Raises
        ``PlanError`` for one that was exchanged since; None: nobody looked.
        """
        from kedge.drivers.tuf_layout import MAX_METADATA, read_metadata

        with self._at_work(folder) as repository:
            merged: list[str] = []
            for copy in copies:
                with copy.open("rb") as file:
                    found = read_metadata(file.read(MAX_METADATA), str(copy))
                if repository.merge(copy.stem, found):
                    merged.append(copy.stem)
            drafts = repository.layout.drafted()
            strange = [role for role in roles if role not in drafts]
            if strange:
                raise DriverError(
                    "NotFound", f"there is no draft of {', '.join(strange)}", retryable=False,
                    next_step=f"drafts: {', '.join(drafts) or 'none'}",
                )  # fmt: skip
            wanted = tuple(roles or drafts)
            if shown is not None:
                wanted = tuple(role for role in wanted if role in shown)
                _still(repository, {role: shown[role] for role in wanted})
            signed = await _sign(repository, wanted, signers)
            if signers and not signed and not merged:
                raise PlanError(
                    "none of the drafts takes a signature of these keys",
                    next_step="kedge release list --drafts shows whose are asked for",
                )
            return changed_in(repository, signed=(*merged, *signed))

    async def publish(
        self, folder: Path, signers: Sequence[MetadataKey], *, renew: Sequence[str] | None = None
    ) -> Changed:
        """Publishes every draft that has its signatures. ``renew``: roles to give a new expiry; empty: those that need
        it soonest, snapshot and timestamp.
        """
        with self._at_work(folder) as repository:
            now, before = _now(), _begun(repository)
            if renew is not None:
                for role in renew:
                    if role not in ("snapshot", "timestamp"):
                        repository.authority(role)
                        repository.renew(role, now)
            return await _finish(
                repository, signers, publish=True, renew=renew is not None, before=before
            )

    async def revoke(
        self,
        folder: Path,
        name: ReleaseName,
        signers: Sequence[MetadataKey],
        *,
        reason: str,
        by: str,
        publish: bool = False,
    ) -> Changed:
        """Takes a release out for good."""
        from kedge.drivers.tuf_revocations import revoke

        with self._at_work(folder) as repository:
            before = _begun(repository)
            revoke(repository, name, reason=reason, by=by, now=_now())
            return await _finish(repository, signers, publish=publish, before=before)

    async def reinstate(
        self,
        folder: Path,
        name: ReleaseName,
        signers: Sequence[MetadataKey],
        *,
        publish: bool = False,
    ) -> Changed:
        """Takes a revocation back: the release is listed again, with the very files that it had."""
        from kedge.drivers.tuf_revocations import reinstate

        with self._at_work(folder) as repository:
            before = _begun(repository)
            reinstate(repository, name, _now())
            return await _finish(repository, signers, publish=publish, before=before)

    async def rotate(
        self,
        folder: Path,
        change: KeyChange,
        signers: Sequence[MetadataKey],
        *,
        publish: bool = False,
    ) -> Changed:
        """Changes the keys of a role."""
        with self._at_work(folder) as repository:
            before = _begun(repository)
            repository.rotate(
                change.role,
                add=[public_key(path) for path in change.add],
                remove=[key_id(repository, change.role, wanted) for wanted in change.remove],
                threshold=change.threshold,
                now=_now(),
            )
            return await _finish(repository, signers, publish=publish, before=before)

    def drafts(self, folder: Path) -> tuple[RoleView, ...]:
        """Every role of the repository, with how far it is."""
        return views_of(self._opened(folder), drafts_only=False)

    async def new_release(
        self,
        document: Path,
        artifacts: VerifiedArtifacts,
        *,
        author: str,
        extra: Mapping[str, bytes] | None = None,
    ) -> NewRelease:
        """A release from a Release document whose archives lie where it says; every one of them is verified."""
        from desk.documents import read_release
        from kedge.drivers.tuf_repository import NewRelease

        release = read_release(document).value
        files: dict[str, Path] = {}
        for platform, one in release.artifacts.items():
            files[platform] = await artifacts.unpackable(Artifact.of(platform, one))
            # A cached copy has its digest for a name; the document's own name has the ending.
            files[platform] = _named_like(files[platform], one.source)
        return NewRelease(document=release, files=files, author=author, extra=dict(extra or {}))

    def changes(self, folder: Path, roles: Sequence[str] = ()) -> dict[str, Told]:
        """What each draft changes, in sentences, for who is to sign it."""
        from kedge.drivers.tuf_changes import changes

        layout = self._opened(folder).layout
        found = {
            role: changes(layout, role) for role in layout.drafted() if not roles or role in roles
        }
        return {role: told for role, told in found.items() if told is not None}

    @contextmanager
    def _at_work(self, folder: Path) -> Iterator[Repository]:
        """The keepers' folder as it is now, for the length of the block: what was verified is what is built on."""
        from kedge.drivers.tuf_repository import Repository

        with Repository.open(folder).layout.locked():
            yield self._opened(folder)

    def _opened(self, folder: Path) -> Repository:
        """The keepers' folder, after it was verified: whoever can write there could put something under our signatures."""
        from kedge.drivers.tuf_audit import verify_published
        from kedge.drivers.tuf_repository import Repository

        repository = Repository.open(folder)
        repository.layout.hold()
        own = self.location is not None and Path(self.location) == Path(folder).absolute()
        verify_published(repository, self._releases.pinned() if own else None)
        return repository

    # -- readers ----------------------------------------------------------------------------------

    def trust(self, root: Digest) -> Digest:
        """Pins the repository's first root metadata in this home, if it has this digest."""
        return self._releases.pin(self._releases.first_root(root))

    def listed(self, root: Digest | None = None) -> tuple[ListedRelease, ...]:
        """Every release, the revoked ones too, as a worker sees them."""
        from kedge.trust.custody import custom_of

        found: list[ListedRelease] = []
        for name, target in sorted(
            self._releases.client(root).names().items(), key=lambda one: str(one[0])
        ):
            custom = custom_of(target)
            found.append(
                ListedRelease(
                    name=name,
                    revoked=target.path == name.tombstone,
                    added=custom.get("added", ""),
                    author=custom.get("author", ""),
                )
            )
        return tuple(found)

    def show(self, name: ReleaseName, root: Digest | None = None) -> TrustedRelease:
        """One release, verified. Raises as :meth:`kedge.drivers.ports.Releases.trusted`."""
        return self._releases.read(name, root)

    def verify(
        self,
        folder: Path,
        *,
        only: ReleaseName | None = None,
        root: Digest | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Verified:
        """Every release with every byte of its files, as a worker would take them. ``folder`` is for downloads.

        Raises ``DriverError`` at the first thing that is not as it was signed.
        """
        client = self._releases.client(root)
        listed = self.listed(root)
        files = size = 0
        expires = ""
        for one in listed:
            if (one.revoked and only is None) or (only is not None and one.name != only):
                continue
            say(f"verifies {one.name}")
            # One that was revoked and is asked for by its name is refused here, with the reason.
            release = client.trusted(one.name)
            expires = min(expires or release.expires, release.expires)
            names = [artifact.source.removeprefix("tuf:") for artifact in release.artifacts]
            for path in (*names, *release.vendor):
                into = folder / "target"
                client.fetch(path, into)
                size += into.stat().st_size
                into.unlink()
                files += 1
            files += 1 + len(release.attestations)
        if only is not None and all(one.name != only for one in listed):
            raise DriverError(UNKNOWN, f"the repository lists no release {only}", retryable=False)
        return Verified(
            location=self.location or "",
            root=client.root,
            releases=tuple(one for one in listed if only in (None, one.name)),
            files=files,
            bytes=size,
            expires=expires,
        )


def _still(repository: Repository, shown: Mapping[str, Digest]) -> None:
    """Raise unless the drafts are those that were shown: others may write there while somebody reads."""
    from kedge.drivers.tuf_changes import changes

    for role, digest in shown.items():
        told = changes(repository.layout, role)
        if told is None or told.content != digest:
            raise PlanError(
                f"the draft of {role} is another than the one that was shown: nothing was signed",
                next_step="kedge release sign shows what is there now",
            )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


async def _sign(
    repository: Repository, roles: Sequence[str], signers: Sequence[MetadataKey]
) -> tuple[str, ...]:
    """Signs drafts with those of the keys that are asked for; the roles that were signed."""
    signed: list[str] = []
    for role in roles:
        content = repository.bytes_to_sign(role)
        if content is None:
            continue
        wanted, current = repository.keys_for(role), repository.current(role)
        for signer in signers:
            keyid = signer.key.keyid
            if keyid not in wanted or current is None or keyid in current.signatures:
                continue
            if repository.add_signature(role, await signer.sign(content)):
                signed.append(role)
    return tuple(dict.fromkeys(signed))


async def _finish(
    repository: Repository,
    signers: Sequence[MetadataKey],
    *,
    publish: bool,
    renew: bool = False,
    before: Sequence[str] = (),
) -> Changed:
    """Signs what the keys at hand can sign, and publishes what is complete, when that is wanted.

    Drafts that were there ``before`` are not signed along: who signs them is to see what is in them. Snapshot and
    timestamp say nothing but which files there are.
    """
    from kedge.drivers import tuf_publish

    fresh = [role for role in repository.layout.drafted() if role not in before]
    signed = await _sign(repository, fresh, signers)
    unseen = _unseen(repository, before, signers)
    if not publish:
        return changed_in(repository, signed=signed, unseen=unseen)
    now = _now()
    try:
        found = tuf_publish.ready(repository)
    except tuf_publish.NotSignedError:
        # Something waits for people, and it is said which: no mistake.
        return changed_in(repository, signed=signed, unseen=unseen)
    snapshot = tuf_publish.compose_snapshot(repository, found, now, renew=renew)
    signed += await _sign(repository, ["snapshot"], signers)
    snapshot = repository.current("snapshot") or snapshot
    if not tuf_publish.signed_enough(found, "snapshot", snapshot):
        return changed_in(repository, signed=signed, unseen=unseen)
    timestamp = tuf_publish.compose_timestamp(repository, found, snapshot, now, renew=renew)
    signed += await _sign(repository, ["timestamp"], signers)
    timestamp = repository.current("timestamp") or timestamp
    if not tuf_publish.signed_enough(found, "timestamp", timestamp):
        return changed_in(repository, signed=signed, unseen=unseen)
    published = tuf_publish.commit(repository, found, snapshot, timestamp, now)
    return changed_in(repository, signed=signed, unseen=unseen, published=published)


def _begun(repository: Repository) -> tuple[str, ...]:
    """The drafts that are there and say something new: who signs them is to see it first."""
    from kedge.drivers.tuf_audit import only_renews

    now, drafted = _now(), repository.layout.drafted()
    return tuple(role for role in drafted if not only_renews(repository, role, now))


def _unseen(
    repository: Repository, before: Sequence[str], signers: Sequence[MetadataKey]
) -> tuple[str, ...]:
    """The drafts of others that the keys at hand could have signed, and that lack signatures."""
    hands = {signer.key.keyid for signer in signers}
    found: list[str] = []
    for role in before:
        state = repository.state(role) if role not in ("snapshot", "timestamp") else None
        if state is not None and state.waits and hands & state.unsigned.keys():
            found.append(role)
    return tuple(found)


def _named_like(file: Path, source: str) -> Path:
    """The file as the document names it, when that is where it lies."""
    named = Path(source.removeprefix("file:"))
    return named if named.is_file() else file
