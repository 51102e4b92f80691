"""Releases from upstream at the desk: what a vendor published is judged, and made a release of the repository.

Everything that was judged goes along as targets beside the release (``vendor-…``): the list of sums, its signatures, the
pinned keys and the verdict. Whoever has the repository can judge it all again, without the vendor and without trusting us.
"""
# ruff: noqa: PLC0415 - TUF and the vendors' formats are loaded by those who need them

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from desk.documents import read_bytes, read_release
from kedge.model.base import Digest, Frozen, canonical
from kedge.model.errors import DocumentError, OrderError
from kedge.model.release import Release, ReleaseArtifact
from kedge.model.trusted import ReleaseName, release_name
from kedge.model.upstream import VendorArchive, VendorImport

if TYPE_CHECKING:
    from desk.release_roles import Changed
    from desk.releases import ReleaseDesk
    from kedge.drivers.metadata_signers import MetadataKey
    from kedge.drivers.tuf_repository import Repository

_CHUNK = 1 << 20
VERDICT = "vendor-import.json"
"""The target with the verdict."""
_PIN = "vendor-pin-"
_MOST_EXTRA = 1 << 20


class ImportRequest(Frozen):
    """What is to be imported. ``archives`` by platform; ``like`` is a Release document that says what vendors do not.

    Without ``like``, ``upgrade_from`` has to be given. See :class:`kedge.trust.upstream.ImportRules` for the rest.
    """

    name: ReleaseName
    archives: dict[str, Path]
    sums: Path
    signatures: tuple[Path, ...]
    pins: tuple[Path, ...]
    like: Path | None = None
    upgrade_from: str = ""
    downgrade_to: str = ""
    needed: int = 1
    complete: bool = False
    in_spite: str = ""


@dataclass(frozen=True)
class Imported:
    """The verdict, and what was done with the repository where it was good."""

    verdict: VendorImport
    changed: Changed | None


@dataclass(frozen=True)
class Keeper:
    """Who imports into which repository. ``author`` is a person's name; empty: the first key's fingerprint."""

    desk: ReleaseDesk
    folder: Path
    signers: Sequence[MetadataKey]
    author: str = ""
    publish: bool = True


async def import_upstream(request: ImportRequest, keeper: Keeper) -> Imported:
    """Judge what the vendor published; where it is good, add it as a release with everything that was judged.

    A refused import changes nothing. Raises ``DocumentError``, ``OrderError`` (files, pins, rules that cannot be used),
    and as :meth:`desk.releases.ReleaseDesk.add`.
    """
    from desk.release_roles import fingerprint_of
    from kedge.drivers.tuf_repository import NewRelease, Repository
    from kedge.trust.upstream import ImportRules, Published, judge_import
    from kedge.trust.vendor_pins import read_pins

    author = keeper.author or (fingerprint_of(keeper.signers[0]) if keeper.signers else "")
    if not author:
        raise OrderError("nobody is said to import it", next_step="--author NAME, or a --key")
    pins, signatures = _read(request.pins), _read(request.signatures)
    published = Published(
        name=request.name,
        sums_name=request.sums.name,
        sums=read_bytes(request.sums),
        signatures=signatures,
        archives=tuple(
            _archive(platform, path) for platform, path in sorted(request.archives.items())
        ),
    )
    rules = ImportRules(
        pins=read_pins(pins),
        needed=request.needed,
        complete=request.complete,
        before=past_imports(Repository.open(keeper.folder), request.name.component),
        in_spite=request.in_spite,
    )
    verdict = judge_import(published, rules, utc_now())
    if not verdict.ok:
        return Imported(verdict, None)
    release = NewRelease(
        document=_document(request, verdict),
        files=request.archives,
        author=author,
        extra=_extra(published.sums_name, published.sums, signatures, pins, verdict),
    )
    changed = await keeper.desk.add(keeper.folder, release, keeper.signers, publish=keeper.publish)
    return Imported(verdict, changed)


def _read(paths: Sequence[Path]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in paths:
        if path.name in found:
            raise OrderError(
                f"two of the files are called {path.name}", next_step="rename one of them"
            )
        found[path.name] = read_bytes(path)
    return found


def _archive(platform: str, path: Path) -> VendorArchive:
    digest: Digest | None = None
    length: int | None = None
    if path.exists():
        digest, length = hashed(path)
    try:
        return VendorArchive(platform=platform, name=path.name, digest=digest, length=length)
    except ValidationError as error:
        raise OrderError(
            f"{platform!r} is no platform", next_step="--archive linux/amd64=FILE"
        ) from error


def _document(request: ImportRequest, verdict: VendorImport) -> Release:
    artifacts = {
        one.platform: ReleaseArtifact(
            digest=one.digest, length=one.length, source=str(request.archives[one.platform])
        )
        for one in verdict.archives
        if one.digest is not None and one.length is not None
    }
    said: dict[str, object] = {}
    if request.like is not None:
        said = read_release(request.like).value.model_dump(mode="python")
        said.pop("reports")
    said |= {
        "component": request.name.component,
        "version": request.name.version,
        "artifacts": artifacts,
    }
    if request.upgrade_from:
        said["upgrade_from"] = request.upgrade_from
    if request.downgrade_to:
        said["downgrade_to"] = request.downgrade_to
    try:
        return Release.model_validate(said)
    except ValidationError as error:
        one = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise OrderError(
            f"no release follows from this: {'.'.join(map(str, one['loc']))}: {one['msg']}",
            next_step="--like names a Release document to take the rest from, or give --upgrade-from",
        ) from error


def _extra(
    sums_name: str,
    sums: bytes,
    signatures: Mapping[str, bytes],
    pins: Mapping[str, bytes],
    verdict: VendorImport,
) -> dict[str, bytes]:
    """What stands beside the release, by the names of its targets."""
    extra = {f"vendor-{plain(sums_name)}": sums, VERDICT: canonical(verdict)}
    for name, content in (
        *((f"vendor-{plain(name)}", content) for name, content in signatures.items()),
        *((f"{_PIN}{plain(name)}", content) for name, content in pins.items()),
    ):
        if name in extra:
            raise OrderError(
                f"two of the files would both be kept as {name}", next_step="rename one of them"
            )
        if len(content) > _MOST_EXTRA:
            raise OrderError(f"{name} is longer than {_MOST_EXTRA} bytes")
        extra[name] = content
    return extra


def plain(name: str) -> str:
    """A file's name in the alphabet of targets."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip("._+-")[:100] or "file"


def past_imports(repository: Repository, component: str) -> tuple[VendorImport, ...]:
    """The verdicts of this component's earlier imports, from the keepers' own folder, of those that were revoked too: what
    was taken once and taken back is no news. Raises ``DocumentError``, ``PlanError``.
    """
    from kedge.drivers.tuf_revocations import listed_before

    known = repository.component(component)
    listed = dict(known.targets) if known is not None else {}
    for path, target in tuple(listed.items()):
        name = release_name(f"{component}@{path.split('/')[1]}")
        if name is not None and path == name.tombstone:
            listed |= listed_before(repository.layout, name, target)
    found: list[VendorImport] = []
    for path, target in sorted(listed.items()):
        if not path.endswith(f"/{VERDICT}"):
            continue
        place = repository.layout.target(path, target.hashes["sha256"])
        content = read_bytes(place)
        if hashlib.sha256(content).hexdigest() != target.hashes["sha256"]:
            raise DocumentError((f"{place}:1:1: is not what was signed: it was changed here",))
        try:
            found.append(VendorImport.model_validate_json(content))
        except ValidationError as error:
            raise DocumentError((f"{place}:1:1: is not the verdict of an import",)) from error
    return tuple(found)


def judge_again(
    name: ReleaseName, files: Mapping[str, bytes], archives: Mapping[str, Digest]
) -> tuple[VendorImport, VendorImport]:
    """The recorded verdict of an import, and the same anew: at the time of the import, without what was before it.

    ``files`` are the ``vendor-…`` targets by their names, ``archives`` the digests that the release itself lists, by
    platform. Raises ``OrderError`` where they are not those of an import.
    """
    from kedge.trust.upstream import ImportRules, Published, judge_import
    from kedge.trust.vendor_pins import read_pins

    try:
        recorded = VendorImport.model_validate_json(files.get(VERDICT, b""))
    except ValidationError as error:
        raise OrderError(f"{name} has no readable {VERDICT} beside it") from error
    pins = {key.removeprefix(_PIN): value for key, value in files.items() if key.startswith(_PIN)}
    kept = {f"vendor-{plain(one.file)}": one.file for one in recorded.signatures}
    names = {one.platform: one.name for one in recorded.archives}
    published = Published(
        name=name,
        sums_name=recorded.sums_name,
        sums=files.get(f"vendor-{plain(recorded.sums_name)}", b""),
        signatures={file: files[key] for key, file in kept.items() if key in files},
        archives=tuple(
            VendorArchive(platform=platform, name=names.get(platform, "?"), digest=digest, length=0)
            for platform, digest in sorted(archives.items())
        ),
    )
    rules = ImportRules(read_pins(pins), needed=recorded.needed, in_spite=recorded.in_spite)
    return recorded, judge_import(published, rules, recorded.at)


def utc_now() -> str:
    """The present moment as documents say it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hashed(path: Path) -> tuple[Digest, int]:
    """sha256 and length of a regular file. Raises ``DocumentError``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DocumentError((f"{path}:1:1: is not a regular file",))
            sha256, length = hashlib.sha256(), 0
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                length += len(chunk)
    except OSError as error:
        raise DocumentError((f"{path}:1:1: cannot be read: {error.strerror}",)) from error
    return sha256.hexdigest(), length
