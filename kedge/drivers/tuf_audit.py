"""What a keeper's folder holds, before anything is built on it or signed: others may be able to write there.

Published metadata is verified from the first root on (expiry apart: it is the keepers who renew). What a change is built on
is the newest targets metadata and the newest list of each component, so each of them must be signed by the keys that it
has *now*: keys that were rotated out say nothing any more, whoever holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import MetaFile, Root, Snapshot, Targets

from kedge.drivers.tuf_layout import TOP, TYPES, AnyMetadata, Layout
from kedge.drivers.tuf_publish import clean
from kedge.drivers.tuf_repository import Repository
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.trusted import REFUSED
from kedge.trust.tufkeys import KeysError, content_digest, sound_delegations


@dataclass(frozen=True)
class _Roots:
    """``now``: the newest root, and one that is signed and about to be published, since a publication may have been cut
    off. ``before`` is the one that the newest followed.
    """

    now: tuple[Root, ...]
    before: tuple[Root, ...] = ()


def verify_published(repository: Repository, pinned: Digest | None) -> None:
    """Raise ``DriverError`` kind ``RepositoryRefused`` when published metadata is not what its keys signed.

    ``pinned`` is the digest that the first root must have; None: nobody pinned one here.
    """
    layout = repository.layout
    _drafts_fit(layout)
    published = layout.roles()
    if not published:
        return
    roots = _roots(repository, pinned)
    targets = _published(repository, "targets")
    _signed(roots.now, "targets", targets)
    known = set(TOP) | set(_delegated(targets.signed))
    for name in published:
        if name not in known:
            raise _refused(
                f"there is metadata of {name}, which no published targets metadata names"
            )
    for name in _delegated(targets.signed):
        component = layout.newest(name)
        if component is not None and not _cut_off(layout, targets.signed, name):
            _signed([targets.signed], name, component)
    _newest_state(repository, roots)


def _newest_state(repository: Repository, roots: _Roots) -> None:
    """Timestamp and snapshot, and that what the snapshot names is what lies here.

    The keys of the root before count for these two: a publication may have been cut off before ``timestamp.json``, and
    nothing is built on either of them.
    """
    timestamp = repository.layout.newest("timestamp")
    if timestamp is None:
        return  # cut off before anything was published, or taken away: clients see nothing either
    every = (*roots.now, *roots.before)
    _signed(every, "timestamp", timestamp)
    _signed(every, "snapshot", _published(repository, "snapshot"))
    meant = timestamp.signed.snapshot_meta.version
    named = _published(repository, "snapshot", meant)
    _same(timestamp.signed.snapshot_meta, named, f"{meant}.snapshot.json")
    snapshot: Snapshot = named.signed
    for name, meta in snapshot.meta.items():
        listed = _published(repository, name.removesuffix(".json"), meta.version)
        _same(meta, listed, f"{meta.version}.{name}")


def _cut_off(layout: Layout, targets: Targets, name: str) -> bool:
    """Whether a publication that gives a component new keys was cut off before the list that they signed was written."""
    draft = layout.draft(name)
    return draft is not None and clean(targets, name, draft)


def _same(meta: MetaFile, metadata: AnyMetadata, name: str) -> None:
    try:
        meta.verify_length_and_hashes(metadata.to_bytes())
    except RepositoryError as error:
        raise _refused(f"{name} is not the one that was published") from error


def _roots(repository: Repository, pinned: Digest | None) -> _Roots:
    """Those whose keys may have signed what is published, each signed as the one before it asks."""
    layout = repository.layout
    drafted = layout.draft("root")
    if not layout.versions("root"):
        # The very first publication writes the root last but one.
        if drafted is None or pinned is not None or not clean(drafted.signed, "root", drafted):
            raise _refused("there is no root metadata")
        _sound(drafted.signed)
        return _Roots((drafted.signed,))
    first = _published(repository, "root", 1)
    digest = content_digest(layout.content(layout.metadata / "1.root.json") or b"")
    if pinned is not None and digest != pinned:
        raise _refused(
            f"it begins with root {digest[:12]}, and {pinned[:12]} is pinned in this home"
        )
    chain: list[Root] = [first.signed]
    _signed(chain, "root", first)
    for version in range(2, max(layout.versions("root")) + 1):
        later = _published(repository, "root", version)
        if not _follows(later, chain[-1]):
            raise _refused(f"{version}.root.json is not signed by those that may")
        chain.append(later.signed)
    next_ = [drafted.signed] if drafted is not None and _follows(drafted, chain[-1]) else []
    return _Roots((chain[-1], *next_), tuple(chain[-2:-1]))


def _follows(metadata: AnyMetadata, before: Root) -> bool:
    new: Root = metadata.signed
    _sound(new)
    signed = new.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
    return signed.verified and new.version == before.version + 1


def _drafts_fit(layout: Layout) -> None:
    """A draft is of its role's type and one version further than what is published, or of a state that is gone."""
    for role in layout.drafted():
        draft, published = layout.draft(role), layout.newest(role)
        if draft is None:
            continue
        last = 0 if published is None else published.signed.version
        kind: type[Any] = TYPES.get(role, Targets)
        if not isinstance(draft.signed, kind) or draft.signed.version > last + 1:
            raise DriverError(
                REFUSED,
                f"the draft of {role} is none: it says that it is version {draft.signed.version} of "
                f"{draft.signed.type} metadata, and version {last} of {role} is published",
                retryable=False,
                next_step=f"no kedge made it: remove {layout.drafts / (role + '.json')}",
            )


def _published(repository: Repository, role: str, version: int | None = None) -> AnyMetadata:
    layout = repository.layout
    found = layout.newest(role) if version is None else layout.published(role, version)
    if found is None:
        raise _refused(
            f"there is no {role} metadata" + (f" of version {version}" if version else "")
        )
    if not isinstance(found.signed, TYPES.get(role, Targets)):
        raise _refused(f"what stands for {role} is {found.signed.type} metadata")
    return found


def _delegated(targets: Targets) -> tuple[str, ...]:
    """The components that targets metadata gives keys to."""
    _sound(targets)
    return tuple(sorted(targets.delegations.roles or ())) if targets.delegations is not None else ()


def _signed(holders: Sequence[Root | Targets], role: str, metadata: AnyMetadata) -> None:
    _sound(metadata.signed)
    if not any(clean(holder, role, metadata) for holder in holders):
        raise _refused(f"the published {role} metadata is not signed by those that may")


def _sound(signed: Any) -> None:
    try:
        sound_delegations(signed)
    except KeysError as error:
        raise _refused(str(error)) from error


def _refused(said: str) -> DriverError:
    return DriverError(
        REFUSED,
        f"this folder is not the repository that its keepers published: {said}",
        retryable=False,
        next_step="sign nothing here; get the folder from a copy that `kedge release verify` finds good",
    )


def only_renews(repository: Repository, role: str, now: datetime) -> bool:
    """Whether the draft of a role says word for word what is published, for no longer than the role may."""
    draft, published = repository.layout.draft(role), repository.layout.newest(role)
    if draft is None or published is None or draft.signed.version != published.signed.version + 1:
        return False
    anew = {name: draft.signed.to_dict()[name] for name in ("version", "expires")}
    said: dict[str, object] = published.signed.to_dict()
    until = now + repository.period(role)
    return bool(draft.signed.expires <= until and {**said, **anew} == draft.signed.to_dict())
