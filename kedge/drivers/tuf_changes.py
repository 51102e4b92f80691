"""What a draft changes, told to who is to sign it: every difference from what is published has a sentence.

Where people have words for a difference (keys, thresholds, files, versions) they are used. Whatever is left is told by its
place in the metadata: somebody who can write a draft would put it where nobody looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from kedge.drivers.tuf_layout import AnyMetadata, Layout
from kedge.drivers.tuf_repository import PERIODS
from kedge.model.base import Digest
from kedge.trust.custody import custom_of
from kedge.trust.refusal import quoted
from kedge.trust.tufkeys import content_digest, ssh_key

_CHUNK = 1 << 20
_AUTHORED = {"author", "added", "document"}
"""What keepers write beside a release's document; the first is told, the others follow from the release."""

Place: TypeAlias = tuple[str, ...]
"""Where something stands in metadata."""


@dataclass(frozen=True)
class Told:
    """What a draft changes, in sentences, and the sha256 of the bytes that they are about."""

    said: tuple[str, ...]
    content: Digest


@dataclass
class _Telling:
    """Sentences, and the places that they are about."""

    said: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    def tell(self, said: str, *places: Place) -> None:
        self.said.append(said)
        self.places += places

    def tells(self, place: Place) -> bool:
        return any(place[: len(one)] == one for one in self.places)


def changes(layout: Layout, role: str) -> Told | None:
    """What the draft of a role changes; None where there is none, or none that is newer than what is published."""
    draft, published = layout.draft(role), layout.newest(role)
    if draft is None or (
        published is not None and published.signed.version >= draft.signed.version
    ):
        return None
    telling = _Telling(places=[("version",), ("expires",)])
    before = None if published is None else published.signed
    if before is None:
        telling.tell(f"is the first {role} metadata")
    new = draft.signed
    if isinstance(new, Root):
        _roles(telling, _held(before), _held(new))
        _periods(telling, before, new)
    elif isinstance(new, Targets):
        _roles(telling, _held(before), _held(new))
        _paths(telling, before, new)
        _files(telling, layout, {} if before is None else before.targets, new.targets)
    elif isinstance(new, Snapshot):
        _listed(telling, layout, {} if before is None else before.meta, new.meta)
    elif isinstance(new, Timestamp):
        was = {} if before is None else {"snapshot.json": before.snapshot_meta}
        _listed(telling, layout, was, {"snapshot.json": new.snapshot_meta})
    rest = list(_rest(telling, _as_told(before), _as_told(new)))
    said = [*telling.said, *rest] or ["changes nothing but its expiry"]
    until = f"is valid until {new.expires:%Y-%m-%dT%H:%M:%SZ}"
    return Told((*said, until), content_digest(draft.signed_bytes))


# -- keys ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Role:
    """A role as metadata above it has it; ``at`` is its place there."""

    threshold: int
    keys: dict[str, Key]
    at: Place


def _held(signed: object) -> dict[str, _Role]:
    """Every role that this metadata gives keys to."""
    if isinstance(signed, Root):
        return {
            name: _Role(
                role.threshold, {one: signed.keys[one] for one in role.keyids}, ("roles", name)
            )
            for name, role in signed.roles.items()
        }
    if isinstance(signed, Targets) and signed.delegations is not None:
        keys, roles = signed.delegations.keys, signed.delegations.roles or {}
        return {
            name: _Role(
                role.threshold,
                {one: keys[one] for one in role.keyids if one in keys},
                ("delegations", "roles", name),
            )
            for name, role in roles.items()
        }
    return {}


def _roles(telling: _Telling, old: Mapping[str, _Role], new: Mapping[str, _Role]) -> None:
    for name in sorted({*old, *new}):
        if name not in new:
            telling.tell(f"takes {name} away", old[name].at)
            continue
        role = new[name]
        was = old.get(name, _Role(0, {}, role.at))
        for keyid in sorted(role.keys.keys() - was.keys.keys()):
            telling.tell(f"lets {_who(role.keys[keyid])} sign {name}")
        for keyid in sorted(was.keys.keys() - role.keys.keys()):
            telling.tell(f"lets {_who(was.keys[keyid])} sign {name} no more")
        if role.threshold != was.threshold:
            telling.tell(
                f"asks for {role.threshold} signature(s) of {name}"
                + (f", {was.threshold} until now" if was.threshold else "")
            )
        telling.places += [(*role.at, "keyids"), (*role.at, "threshold")]
    # A key that stays under its id and is another now is told by its place.
    telling.places += _keys(old) ^ _keys(new)


def _keys(roles: Mapping[str, _Role]) -> set[Place]:
    return {(*role.at[:-2], "keys", keyid) for role in roles.values() for keyid in role.keys}


def _who(key: Key) -> str:
    found = ssh_key(key)
    return f"{found.comment} ({found.fingerprint})" if found.comment else found.fingerprint


def _periods(telling: _Telling, before: Root | None, new: Root) -> None:
    """After how many days metadata expires."""
    was = {} if before is None else before.unrecognized_fields.get(PERIODS)
    now = new.unrecognized_fields.get(PERIODS)
    if now != was:
        each = sorted(now.items()) if isinstance(now, dict) else [("all", now)]
        days = ", ".join(_plain(f"{role} {one}") for role, one in each)
        telling.tell(f"says after how many days metadata expires: {days}", (PERIODS,))


def _paths(telling: _Telling, before: Targets | None, new: Targets) -> None:
    """Which files a component may list."""
    delegations = None if before is None else before.delegations
    old = {} if delegations is None else delegations.roles or {}
    for name, role in ((new.delegations.roles or {}) if new.delegations else {}).items():
        if name in old and old[name].paths == role.paths:
            continue
        at = ("delegations", "roles", name)
        paths = ", ".join(map(_plain, role.paths or ())) or "nothing"
        telling.tell(f"lets {name} say what {paths} is", (*at, "paths"), (*at, "name"))
        if name not in old and role.terminating:
            telling.places.append((*at, "terminating"))


# -- files and versions ----------------------------------------------------------------------------


def _files(
    telling: _Telling,
    layout: Layout,
    old: Mapping[str, TargetFile],
    new: Mapping[str, TargetFile],
) -> None:
    for path in sorted({*old, *new}):
        at = ("targets", path)
        if path not in new:
            telling.tell(f"takes {_plain(path)} out", at)
            continue
        one, was = new[path], old.get(path)
        if was is not None and (was.hashes, was.length) == (one.hashes, one.length):
            continue
        digest = one.hashes.get("sha256", "")
        author = custom_of(one).get("author", "") if was is None else ""
        telling.tell(
            f"lists {_plain(path)}, sha256 {digest[:16]}…, {one.length} bytes"
            + (f", made by {_plain(author)}" if author else "")
            + _here(layout.target(path, digest), digest),
            (*at, "length"), (*at, "hashes"),
        )  # fmt: skip
        if was is None:
            telling.places += [(*at, "custom", "kedge", name) for name in _AUTHORED]


def _here(file: Path, digest: str) -> str:
    """Whether the file that is listed lies in the folder: nothing to say when it does."""
    try:
        sha256 = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(_CHUNK):
                sha256.update(chunk)
    except (OSError, ValueError):
        return ", which is not in this folder"
    return "" if sha256.hexdigest() == digest else ", AND THE FILE IN THIS FOLDER IS ANOTHER"


def _listed(
    telling: _Telling, layout: Layout, old: Mapping[str, MetaFile], new: Mapping[str, MetaFile]
) -> None:
    """Versions of metadata, in a snapshot or a timestamp."""
    for name in sorted({*old, *new}):
        role, at = _plain(name.removesuffix(".json")), ("meta", name)
        if name not in new:
            telling.tell(f"leaves {role} out", at)
        elif name not in old or old[name] != new[name]:
            was = f", {old[name].version} until now" if name in old else ""
            telling.tell(
                f"says that version {new[name].version} of {role} is the newest{was}"
                f"{_is_newest(layout, name.removesuffix('.json'), new[name])}",
                at,
            )


def _is_newest(layout: Layout, role: str, meta: MetaFile) -> str:
    """Whether that is so in this folder: nothing to say when it is."""
    kept = [one for one in (layout.newest(role), layout.draft(role)) if one is not None]
    newest = max((one.signed.version for one in kept), default=0)
    if newest > meta.version:
        return f", AND VERSION {newest} IS IN THIS FOLDER"
    if any(_is_that(meta, one) for one in kept):
        return ""
    return ", WHICH IS NOT IN THIS FOLDER"


def _is_that(meta: MetaFile, metadata: AnyMetadata) -> bool:
    try:
        meta.verify_length_and_hashes(metadata.to_bytes())
    except RepositoryError:
        return False
    return bool(metadata.signed.version == meta.version)


# -- everything else -------------------------------------------------------------------------------


def _as_told(signed: Any) -> dict[str, Any]:
    """Metadata as values by place: delegations by name, and their order, which decides."""
    said: dict[str, Any] = {} if signed is None else signed.to_dict()
    delegations = said.get("delegations")
    if isinstance(delegations, dict) and isinstance(delegations.get("roles"), list):
        roles = {str(one.get("name")): one for one in delegations["roles"]}
        said["delegations"] = {**delegations, "roles": roles}
    return said


def _rest(telling: _Telling, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """What has no sentence yet. The first metadata of a role may be of its type and of this specification."""
    if not old:
        kinds = {("_type",): new.get("_type"), ("spec_version",): new.get("spec_version")}
        telling.places += list(kinds)
        telling.places += [("consistent_snapshot",)] if new.get("consistent_snapshot") else []
    before, after = dict(_leaves(old)), dict(_leaves(new))
    for place in sorted({*before, *after}):
        if before.get(place) == after.get(place) or telling.tells(place):
            continue
        was, now = (quoted(str(one.get(place, "nothing"))) for one in (before, after))
        yield f"changes {_plain('.'.join(place))} from {was} to {now}"
    common = [one for one in _order(old) if one in _order(new)]
    if common != [one for one in _order(new) if one in common]:
        yield f"puts the components in another order: {', '.join(map(_plain, _order(new)))}"


def _order(said: Mapping[str, Any]) -> list[str]:
    delegations = said.get("delegations")
    return list(delegations["roles"]) if isinstance(delegations, dict) else []


def _leaves(value: object, at: Place = ()) -> Iterator[tuple[Place, object]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, (*at, str(key)))
    else:
        yield at, value


def _plain(text: str) -> str:
    """As it is where that is short printable text, else quoted."""
    return text if len(text) <= 200 and text.isascii() and text.isprintable() else quoted(text)
