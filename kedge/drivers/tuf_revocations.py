"""Taking a release out of a repository, and the way back from that.

What is revoked leaves a signed word in its place: that it was, why, and what was listed of it, by digest. Whoever takes the
revocation back lists exactly that again. Where the files are found is old metadata in the keepers' folder, which others
may have written; the word's digest says which of it is the one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import ValidationError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import TargetFile

from kedge.drivers.files import read_bounded, store_error
from kedge.drivers.tuf_layout import Layout
from kedge.drivers.tuf_repository import Repository, instant
from kedge.model.base import Digest, canonical, digest_of
from kedge.model.errors import PlanError
from kedge.model.trusted import ReleaseName, Revocation

MAX_WORD = 64 * 1024
"""The largest revocation, in bytes."""


def revoke(
    repository: Repository, name: ReleaseName, *, reason: str, by: str, now: datetime
) -> None:
    """Takes a release out, and leaves the signed word why in its place."""
    listed = repository.listed(name)
    own = _files_of(name, listed)
    custom = listed[name.document].custom or {}
    word = Revocation(
        component=name.component,
        version=name.version,
        document=str(custom.get("kedge", {}).get("document", "")),
        listed=_listing(own),
        reason=reason,
        by=by,
        at=instant(now),
    )
    draft = repository.draft(name.component, now)
    for path in own:
        del draft.signed.targets[path]
    content = canonical(word)
    repository.layout.keep_bytes(name.tombstone, content)
    draft.signed.targets[name.tombstone] = TargetFile.from_data(name.tombstone, content)
    repository.layout.keep_draft(name.component, draft)


def reinstate(repository: Repository, name: ReleaseName, now: datetime) -> None:
    """Lists a release again that was revoked, with the very files that it had. Raises ``PlanError``."""
    known = repository.component(name.component)
    if known is None or name.tombstone not in known.targets:
        raise PlanError(f"{name} is not revoked", next_step="kedge release list")
    before = listed_before(repository.layout, name, known.targets[name.tombstone])
    draft = repository.draft(name.component, now)
    del draft.signed.targets[name.tombstone]
    draft.signed.targets.update(before)
    repository.layout.keep_draft(name.component, draft)


def listed_before(
    layout: Layout, name: ReleaseName, tombstone: TargetFile
) -> dict[str, TargetFile]:
    """What was listed of a release when it was revoked. Raises ``PlanError`` where that is not here any more."""
    word = _word(layout, tombstone)
    for version in sorted(layout.versions(name.component), reverse=True):
        old = layout.published(name.component, version)
        found = {} if old is None else _files_of(name, getattr(old.signed, "targets", {}))
        if word.listed is not None and _listing(found) == word.listed:
            return found
    raise PlanError(
        f"no published metadata of {name.component} here lists {name} as it was revoked",
        next_step="get the folder's older metadata from a copy, or add it under another version",
    )


def _word(layout: Layout, tombstone: TargetFile) -> Revocation:
    place = layout.target(tombstone.path, tombstone.hashes.get("sha256", ""))
    try:
        content = read_bounded(place, MAX_WORD) or b""
        tombstone.verify_length_and_hashes(content)
        return Revocation.model_validate_json(content)
    except OSError as error:
        raise store_error(f"read {place}", error) from error
    except (RepositoryError, ValidationError) as error:
        raise PlanError(
            f"{place} is not the revocation that was signed",
            next_step="get it from a copy of the repository",
        ) from error


def _files_of(name: ReleaseName, listed: Mapping[str, TargetFile]) -> dict[str, TargetFile]:
    return {path: one for path, one in listed.items() if path.startswith(name.folder)}


def _listing(files: Mapping[str, TargetFile]) -> Digest:
    return digest_of({path: one.to_dict() for path, one in files.items()})
