"""How a release came to be trusted, from the bytes of TUF metadata alone: the pinned root, its rotations, the delegation.

A worker keeps the metadata by which it verified a release, by digest (:class:`kedge.model.trusted.Custody`). Whoever has
a record of it judges again what the client judged (TUF specification 1.0.34, section 5): signatures against thresholds
of distinct keys, versions, lengths and hashes from one metadata to the next, and expiry as at the time of the record.
Pure: neither network, nor files, nor a clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from kedge.model.base import Digest
from kedge.model.evidence import Document
from kedge.model.release import Release
from kedge.model.trusted import Custody, MetadataVersions, ReleaseName
from kedge.plan.digest import document_digest
from kedge.trust.tufkeys import KeysError, content_digest, fingerprints, sound_delegations

WRITTEN = timedelta(seconds=60)
"""What may pass between the client's look at the clock and the record's: judging how the archives were built takes a moment."""
_INSTANT = "%Y-%m-%dT%H:%M:%SZ"


class CustodyError(Exception):
    """Metadata that do not lead where they should; one sentence."""


@dataclass(frozen=True)
class Lineage:
    """What metadata say that hold from the pinned root on. ``expires`` is when the first of them runs out."""

    targets: Mapping[str, TargetFile]
    signers: tuple[str, ...]
    versions: MetadataVersions
    expires: str
    release: Release


def judge_custody(
    record: Mapping[str, Any],
    documents: Mapping[Digest, Document],
    known: MutableMapping[Any, Lineage | CustodyError],
) -> str | None:
    """Why a ``release`` record does not follow from the metadata that it names; None when it does. Total.

    ``known`` keeps what the same metadata were found to say before: many runs share them.
    """
    try:
        custody = Custody.model_validate_json(json.dumps(record.get("custody")))
        name = ReleaseName.model_validate_json(json.dumps(record.get("release")))
    except ValidationError:
        return "what it names is no metadata of a release"
    root = str(record.get("root"))
    asked = (root, name, custody)
    if asked not in known:
        try:
            known[asked] = _lineage(root, name, custody, documents)
        except CustodyError as error:
            known[asked] = error
    found = known[asked]
    if isinstance(found, CustodyError):
        return str(found)
    return next(_differences(record, name, custody, found), None)


def signed_by(holder: Root | Targets, role: str, metadata: Metadata[Any]) -> tuple[str, ...]:
    """Fingerprints of who signed for a role. Raises :class:`CustodyError`.

    A signature that stands there and does not hold is refused, too. ``holder`` was found sound
    (:func:`kedge.trust.tufkeys.sound_delegations`), so that ids are distinct keys.
    """
    result = holder.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not result.verified or set(result.signed) != set(metadata.signatures):
        raise CustodyError(
            f"a signature of {role} does not hold, or there are too few "
            f"({len(result.signed)} hold, {result.threshold} are asked for)"
        )
    return fingerprints(result.signed.values())


def custom_of(target: TargetFile) -> dict[str, str]:
    """What the keepers wrote beside a target: author, when it was added, the document's digest. Only texts are taken."""
    custom = target.custom.get("kedge") if isinstance(target.custom, dict) else None
    pairs = custom.items() if isinstance(custom, dict) else ()
    return {str(key): value[:200] for key, value in pairs if isinstance(value, str)}


def authors_of(target: TargetFile, signers: tuple[str, ...]) -> tuple[str, ...]:
    """Who made a release: whom its document's entry names, and who signed that list."""
    author = custom_of(target).get("author")
    return tuple(dict.fromkeys([*([author] if author else []), *signers]))


def _lineage(
    root: Digest, name: ReleaseName, custody: Custody, documents: Mapping[Digest, Document]
) -> Lineage:
    """Follows the metadata down to the release. Raises :class:`CustodyError`."""
    papers: dict[Digest, bytes] = {}
    for digest in custody.digests:
        if digest not in documents:
            raise CustodyError(f"the metadata {digest[:12]} are not in the file")
        papers[digest] = documents[digest].content.encode()
        if content_digest(papers[digest]) != digest:
            raise CustodyError(f"the metadata {digest[:12]} are other bytes")
    if custody.roots[0] != root:
        raise CustodyError(f"they begin with root {custody.roots[0][:12]}, pinned is {root[:12]}")
    try:
        return _followed(name, custody, papers)
    except (RepositoryError, KeysError) as error:
        raise CustodyError(str(error)[:300]) from error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as e:
        # Metadata of the right form with values that are not: the library does not look at each of them.
        raise CustodyError(f"they make no sense: {type(e).__name__}") from e


def _followed(name: ReleaseName, custody: Custody, papers: Mapping[Digest, bytes]) -> Lineage:
    root = _newest_root([papers[one] for one in custody.roots])
    timestamp = _read(papers[custody.timestamp], "timestamp", Timestamp)
    signed_by(root.signed, "timestamp", timestamp)
    snapshot = _linked(
        timestamp.signed.snapshot_meta, papers[custody.snapshot], "snapshot", Snapshot
    )
    signed_by(root.signed, "snapshot", snapshot)
    meta = snapshot.signed.meta
    targets = _linked(meta["targets.json"], papers[custody.targets], "targets", Targets)
    signed_by(root.signed, "targets", targets)
    sound_delegations(targets.signed)
    own = _linked(
        meta[f"{name.component}.json"], papers[custody.component], name.component, Targets
    )
    signers = signed_by(targets.signed, name.component, own)
    sound_delegations(own.signed)
    _may_list(targets.signed, own.signed, name)
    content = papers[custody.document]
    own.signed.targets[name.document].verify_length_and_hashes(content)
    release = Release.model_validate_json(content)
    if (release.component, release.version) != (name.component, name.version):
        raise CustodyError(f"the document is of {release.component}@{release.version}")
    every = (root, timestamp, snapshot, targets, own)
    numbers = [one.signed.version for one in every]
    return Lineage(
        targets=own.signed.targets,
        signers=signers,
        versions=MetadataVersions(
            root=numbers[0], timestamp=numbers[1], snapshot=numbers[2], targets=numbers[3],
            component=numbers[4],
        ),
        expires=f"{min(one.signed.expires for one in every):{_INSTANT}}",
        release=release,
    )  # fmt: skip


def _newest_root(chain: list[bytes]) -> Metadata[Root]:
    """The last root, each signed as the one before it and as it itself asks, and one version further."""
    now = _read(chain[0], "root", Root)
    sound_delegations(now.signed)
    # A later root that was pinned may bear signatures of the keys before it: its own threshold is what counts.
    now.signed.verify_delegate("root", now.signed_bytes, now.signatures)
    for content in chain[1:]:
        new = _read(content, "root", Root)
        if new.signed.version != now.signed.version + 1:
            raise CustodyError(
                f"root version {now.signed.version} is followed by {new.signed.version}"
            )
        sound_delegations(new.signed)
        # Signatures of keys that one of the two does not have stand there by right: old and new keepers sign both.
        result = new.signed.get_root_verification_result(
            now.signed, new.signed_bytes, new.signatures
        )
        if not result.verified:
            raise CustodyError(f"root version {new.signed.version} has too few signatures")
        now = new
    return now


def _read(content: bytes, role: str, kind: type[Any]) -> Metadata[Any]:
    found: Metadata[Any] = Metadata.from_bytes(content)
    if not isinstance(found.signed, kind):
        raise CustodyError(f"what stands for {role} is of type {found.signed.type}")
    return found


def _linked(link: Any, content: bytes, role: str, kind: type[Any]) -> Metadata[Any]:
    """Metadata that other metadata name by version, and by length and hashes where they do."""
    link.verify_length_and_hashes(content)
    found = _read(content, role, kind)
    if found.signed.version != link.version:
        raise CustodyError(
            f"{role} is of version {found.signed.version}, {link.version} was signed for"
        )
    return found


def _may_list(top: Targets, own: Targets, name: ReleaseName) -> None:
    """It is the component that says what its files are, and it does not say that this release was revoked."""
    if name.tombstone in own.targets or name.tombstone in top.targets:
        raise CustodyError(f"{name} was revoked by then")
    if name.document not in own.targets:
        raise CustodyError(f"they list no release {name}")
    for path in (one for one in own.targets if one.startswith(name.folder)):
        roles = top.delegations.get_roles_for_target(path) if top.delegations is not None else ()
        first = next((role for role, _ in roles), None)
        if path in top.targets or first != name.component:
            raise CustodyError(f"{path} is listed by who has no say about {name.component}")


def _differences(
    record: Mapping[str, Any], name: ReleaseName, custody: Custody, found: Lineage
) -> Iterator[str]:
    """What the record says that the metadata do not."""
    if document_digest(found.release) != record.get("document"):
        yield "the document is another than the record says"
    if custody.document != record.get("target"):
        yield "the bytes of the document are others than the record says"
    if list(authors_of(found.targets[name.document], found.signers)) != record.get("authors"):
        yield "its authors are others than the record says"
    if found.versions.model_dump() != record.get("versions"):
        yield "the metadata are of other versions than the record says"
    if found.expires != record.get("expires"):
        yield f"the metadata ran out at {found.expires}, which is not what the record says"
    try:
        at = datetime.strptime(str(record.get("at")), _INSTANT) - WRITTEN  # noqa: DTZ007 - only compared as text
    except (ValueError, OverflowError):
        yield "nobody says when it was verified"
    else:
        if f"{at:{_INSTANT}}" >= found.expires:
            yield f"the metadata had run out at {found.expires}, before the record was written"
    yield from _archives(record, found)
    attested = sorted(
        str(one.hashes.get("sha256"))
        for path, one in found.targets.items()
        if path.startswith(f"{name.folder}provenance-")
    )
    named = record.get("attestations")
    if attested != sorted(map(str, named if isinstance(named, list) else ())):
        yield "the attestations are others than those that are listed"


def _archives(record: Mapping[str, Any], found: Lineage) -> Iterator[str]:
    """The archives stand in the list, in the document and in the record with one digest and one length."""
    archives = []
    for platform, one in sorted(found.release.artifacts.items()):
        listed = found.targets.get(one.source.removeprefix("tuf:"))
        signed = (listed.hashes.get("sha256"), listed.length) if listed is not None else None
        if signed != (one.digest, one.length) or not one.source.startswith("tuf:"):
            yield f"the archive for {platform} is not listed with the digest and length of the document"
        archives.append((platform, one.digest, one.length))
    given = record.get("artifacts")
    said = [
        (one.get("platform"), one.get("digest"), one.get("length"))
        for one in (given if isinstance(given, list) else ())
        if isinstance(one, dict)
    ]
    if said != archives:
        yield "the archives are others than the record says"
