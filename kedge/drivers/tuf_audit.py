"""What a keeper's folder holds, before anything is built on it or signed: others may be able to write there.

Published metadata is verified from the first root on (expiry apart: it is the keepers who renew), and a draft is told as
what it changes, so that nobody signs what he was not shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets

from kedge.drivers.tuf_layout import AnyMetadata
from kedge.drivers.tuf_publish import clean
from kedge.drivers.tuf_repository import Repository
from kedge.model.base import Digest
from kedge.model.errors import DriverError
from kedge.model.trusted import REFUSED
from kedge.trust.tufkeys import KeysError, content_digest, sound_delegations, ssh_key

_CHUNK = 1 << 20


def verify_published(repository: Repository, pinned: Digest | None) -> None:
    """Raise ``DriverError`` kind ``RepositoryRefused`` when published metadata is not what its keys signed.

    ``pinned`` is the digest that the first root must have; None: nobody pinned one here.
    """
    layout = repository.layout
    if layout.newest("timestamp") is None:
        return
    roots = _roots(repository, pinned)
    every = {role: _published(repository, role) for role in ("timestamp", "snapshot", "targets")}
    for role, metadata in every.items():
        _signed(roots, role, metadata)
    meant = every["timestamp"].signed.snapshot_meta.version
    named = _published(repository, "snapshot", meant)
    _same(every["timestamp"].signed.snapshot_meta, named, f"{meant}.snapshot.json")
    snapshot: Snapshot = named.signed
    lists = _lists(repository)
    for name in sorted({one for held in lists for one in _held(held)}):
        component = layout.newest(name)
        if component is not None:
            _signed(lists, name, component)
    for name, meta in snapshot.meta.items():
        listed = _published(repository, name.removesuffix(".json"), meta.version)
        _same(meta, listed, f"{meta.version}.{name}")


def _same(meta: MetaFile, metadata: AnyMetadata, name: str) -> None:
    try:
        meta.verify_length_and_hashes(metadata.to_bytes())
    except RepositoryError as error:
        raise _refused(f"{name} is not the one that was published") from error


def _roots(repository: Repository, pinned: Digest | None) -> list[Root]:
    """Those whose keys may have signed what is published: the newest root, the one before, and one that is signed and
    about to be published, since a publication may have been cut off.
    """
    layout = repository.layout
    first = _published(repository, "root", 1)
    digest = content_digest((layout.metadata / "1.root.json").read_bytes())
    if pinned is not None and digest != pinned:
        raise _refused(
            f"it begins with root {digest[:12]}, and {pinned[:12]} is pinned in this home"
        )
    found: list[Root] = [first.signed]
    _signed(found, "root", first)
    drafted = layout.draft("root")
    later = [
        _published(repository, "root", one) for one in range(2, max(layout.versions("root")) + 1)
    ]
    for metadata in [*later, *([drafted] if drafted is not None else [])]:
        new: Root = metadata.signed
        _sound(new)
        result = new.get_root_verification_result(
            found[-1], metadata.signed_bytes, metadata.signatures
        )
        if result and new.version == found[-1].version + 1:
            found.append(new)
        elif metadata is not drafted:
            raise _refused(f"{new.version}.root.json is not signed by those that may")
    return found[-3:]


def _lists(repository: Repository) -> list[Targets]:
    """The newest top-level targets metadata, and the one before it, for the same reason."""
    versions = sorted(repository.layout.versions("targets"))[-2:]
    return [_published(repository, "targets", one).signed for one in versions]


def _published(repository: Repository, role: str, version: int | None = None) -> AnyMetadata:
    layout = repository.layout
    found = layout.newest(role) if version is None else layout.published(role, version)
    if found is None:
        raise _refused(
            f"there is no {role} metadata" + (f" of version {version}" if version else "")
        )
    return found


def _signed(holders: Sequence[Root | Targets], role: str, metadata: AnyMetadata) -> None:
    _sound(metadata.signed)
    if not any(role in _held(holder) and clean(holder, role, metadata) for holder in holders):
        raise _refused(f"the published {role} metadata is not signed by those that may")


def _sound(signed: object) -> None:
    try:
        sound_delegations(signed)  # type: ignore[arg-type]
    except KeysError as error:
        raise _refused(str(error)) from error


def _refused(said: str) -> DriverError:
    return DriverError(
        REFUSED,
        f"this folder is not the repository that its keepers published: {said}",
        retryable=False,
        next_step="sign nothing here; get the folder from a copy that `kedge release verify` finds good",
    )


def changes(repository: Repository, role: str) -> tuple[str, ...]:
    """What the draft of a role changes, in sentences for who is to sign it; empty without a draft."""
    draft, published = repository.layout.draft(role), repository.layout.newest(role)
    if draft is None or (
        published is not None and published.signed.version >= draft.signed.version
    ):
        return ()
    before = None if published is None else published.signed
    said = [] if before is not None else [f"is the first {role} metadata"]
    if isinstance(draft.signed, Root):
        said += _roles(_held(before), _held(draft.signed))
    elif isinstance(draft.signed, Targets):
        old = {} if before is None else before.targets
        said += _roles(_held(before), _held(draft.signed))
        said += _files(repository, old, draft.signed.targets)
    if not said:
        said = ["changes nothing but its expiry"]
    return (*said, f"is valid until {draft.signed.expires:%Y-%m-%dT%H:%M:%SZ}")


def only_renews(repository: Repository, role: str) -> bool:
    """Whether the draft of a role says word for word what is published, for longer."""
    draft, published = repository.layout.draft(role), repository.layout.newest(role)
    if draft is None or published is None:
        return False
    anew = {name: draft.signed.to_dict()[name] for name in ("version", "expires")}
    return bool({**published.signed.to_dict(), **anew} == draft.signed.to_dict())


def _held(signed: object) -> dict[str, tuple[int, dict[str, Key]]]:
    """Threshold and keys of every role that this metadata gives keys to."""
    if isinstance(signed, Root):
        return {
            name: (role.threshold, {one: signed.keys[one] for one in role.keyids})
            for name, role in signed.roles.items()
        }
    if isinstance(signed, Targets) and signed.delegations is not None:
        keys, roles = signed.delegations.keys, signed.delegations.roles or {}
        return {
            name: (role.threshold, {one: keys[one] for one in role.keyids if one in keys})
            for name, role in roles.items()
        }
    return {}


def _roles(
    old: Mapping[str, tuple[int, dict[str, Key]]], new: Mapping[str, tuple[int, dict[str, Key]]]
) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if name not in new:
            yield f"takes {name} away"
            continue
        before = old.get(name, (0, {}))
        threshold, keys = new[name]
        for keyid in keys.keys() - before[1].keys():
            yield f"lets {_who(keys[keyid])} sign {name}"
        for keyid in before[1].keys() - keys.keys():
            yield f"lets {_who(before[1][keyid])} sign {name} no more"
        if threshold != before[0]:
            yield f"asks for {threshold} signature(s) of {name}" + (
                f", {before[0]} until now" if before[0] else ""
            )


def _who(key: Key) -> str:
    found = ssh_key(key)
    return f"{found.comment} ({found.fingerprint})" if found.comment else found.fingerprint


def _files(
    repository: Repository, old: Mapping[str, TargetFile], new: Mapping[str, TargetFile]
) -> Iterator[str]:
    for path in sorted({*old, *new}):
        if path not in new:
            yield f"takes {path} out"
        elif path not in old or old[path].hashes != new[path].hashes:
            digest = new[path].hashes.get("sha256", "")
            state = _here(repository.layout.target(path, digest), digest)
            yield f"lists {path}, sha256 {digest[:16]}…, {new[path].length} bytes{state}"


def _here(file: Path, digest: str) -> str:
    """Whether the file that is listed lies in the folder: nothing to say when it does."""
    try:
        sha256 = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK):
                sha256.update(chunk)
    except OSError:
        return ", which is not in this folder"
    return "" if sha256.hexdigest() == digest else ", AND THE FILE IN THIS FOLDER IS ANOTHER"
