"""The repository's own side: releases, keys and revocations, first as drafts that people sign.

Nothing here holds a private key. A change makes new metadata in ``drafts/`` (its version one above the published);
whoever has a key adds a signature; :mod:`kedge.drivers.tuf_publish` publishes what has enough of them.

Roles are TUF's: *root* says which keys the others have, *targets* which components there are and which keys sign each,
a role per *component* lists its releases, *snapshot* and *timestamp* say what is newest. A component's keys can list
files below ``<component>/`` only.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signature, SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    TargetFile,
    Targets,
)

from kedge.drivers.tuf_layout import TOP, AnyMetadata, Layout
from kedge.model.base import canonical
from kedge.model.errors import DriverError, PlanError
from kedge.model.release import Release, ReleaseArtifact
from kedge.model.trusted import ReleaseName
from kedge.plan.digest import document_digest
from kedge.trust.tufkeys import KeysError, content_digest, sound_delegations

DAYS = {"root": 365, "targets": 365, "components": 365, "snapshot": 30, "timestamp": 14}
"""After how many days metadata expires unless it is renewed: the less its keys are worth guarding, the sooner."""
PERIODS = "x-kedge-days"
"""The field of root metadata that says so, signed with the rest."""
EXTRA = re.compile(r"(provenance-[0-9]{1,4}\.json|vendor-[A-Za-z0-9][A-Za-z0-9._+-]{0,120})")
"""What may stand beside a release: attestations, and what its vendor published."""
_ENDINGS = (".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".tgz", ".tar", ".zip", ".whl")
MOST_RELEASES = 2000
"""Releases of one component, so that its metadata stays below what clients take."""


@dataclass(frozen=True)
class RoleKeys:
    """The keys of one role, and how many of them must sign."""

    threshold: int
    keys: tuple[SSlibKey, ...]


@dataclass(frozen=True)
class NewRelease:
    """A release to be added.

    ``files`` are the archives by platform; ``extra`` the attestations (``provenance-<n>.json``) and the vendor's
    material (``vendor-<name>``) by file name; ``author`` a person's name or a key's fingerprint.
    """

    document: Release
    files: Mapping[str, Path]
    author: str
    extra: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> ReleaseName:
        """What it is called."""
        return ReleaseName(component=self.document.component, version=self.document.version)


@dataclass(frozen=True)
class RoleState:
    """How far a role's metadata is: who signed it and who may yet. ``waits`` holds for a draft that lacks signatures."""

    role: str
    version: int
    draft: bool
    expires: datetime
    threshold: int
    signed: dict[str, Key]
    unsigned: dict[str, Key]
    missing: int

    @property
    def waits(self) -> bool:
        """Whether it is a draft that not enough people signed."""
        return self.draft and self.missing > 0


class Repository:
    """One repository in a folder. Every method that changes it expects :meth:`Layout.locked` to be held."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder)

    @classmethod
    def open(cls, folder: Path) -> Repository:
        """The repository that is there. Raises ``DriverError`` kind ``NotFound``."""
        found = cls(folder)
        if not found.layout.exists():
            raise DriverError(
                "NotFound", f"there is no release repository in {folder}", retryable=False,
                next_step="kedge release init makes one, --repository names another folder",
            )  # fmt: skip
        return found

    # -- looking ----------------------------------------------------------------------------------

    def current(self, role: str) -> AnyMetadata | None:
        """The draft of a role, else what is published."""
        draft, published = self.layout.draft(role), self.layout.newest(role)
        if draft is None or published is None:
            return draft or published
        return draft if draft.signed.version > published.signed.version else published

    def root(self) -> Root:
        """The root metadata as it will be once its draft is published."""
        found: Root = self._signed("root", Root)
        return found

    def targets(self) -> Targets:
        """The top-level targets metadata as it will be."""
        found: Targets = self._signed("targets", Targets)
        return found

    def component(self, name: str) -> Targets | None:
        """A component's metadata as it will be; None for a component that has none."""
        found = self.current(name)
        return found.signed if found is not None and name in self.components() else None

    def listed(self, name: ReleaseName) -> dict[str, TargetFile]:
        """What its component lists, where this release is among it. Raises ``DriverError`` kind ``NotFound``."""
        known = self.component(name.component) if name.component in self.components() else None
        if known is None or name.document not in known.targets:
            raise DriverError(
                "NotFound", f"the repository has no release {name}", retryable=False,
                next_step="kedge release list shows those there are",
            )  # fmt: skip
        return known.targets

    def components(self) -> tuple[str, ...]:
        """The components there are, by name."""
        delegations = self.targets().delegations
        return tuple(sorted(delegations.roles or ())) if delegations is not None else ()

    def roles(self) -> tuple[str, ...]:
        """Every role, root first."""
        return ("root", "targets", *self.components(), "snapshot", "timestamp")

    def authority(self, role: str) -> Root | Targets:
        """Who says which keys a role has."""
        if role in TOP:
            return self.root()
        if role not in self.components():
            raise DriverError(
                "NotFound", f"the repository has no component {role}", retryable=False,
                next_step=f"there are: {', '.join(self.components()) or 'none'}",
            )  # fmt: skip
        return self.targets()

    def state(self, role: str) -> RoleState | None:
        """How far a role is; None when it has no metadata yet."""
        found = self.current(role)
        if found is None:
            return None
        results = [
            self.authority(role).get_verification_result(role, found.signed_bytes, found.signatures)
        ]
        before = self.layout.newest("root") if role == "root" else None
        if before is not None and before.signed.version < found.signed.version:
            old: Root = before.signed
            results.append(old.get_verification_result(role, found.signed_bytes, found.signatures))
        published = self.layout.newest(role)
        signed = {key: one for result in results for key, one in result.signed.items()}
        return RoleState(
            role=role,
            version=found.signed.version,
            draft=published is None or found.signed.version > published.signed.version,
            expires=found.signed.expires,
            threshold=results[0].threshold,
            signed=signed,
            unsigned={k: one for result in results for k, one in result.unsigned.items()},
            missing=max(result.missing for result in results),
        )

    def _signed(self, role: str, kind: type[Any]) -> Any:
        found = self.current(role)
        if found is None or not isinstance(found.signed, kind):
            raise DriverError(
                "StoreError", f"the repository has no {role} metadata", retryable=False,
                next_step="Get the folder from a copy of the repository.",
            )  # fmt: skip
        try:
            sound_delegations(found.signed)
        except KeysError as error:
            raise DriverError(
                "RepositoryRefused", f"{role} metadata: {error}", retryable=False,
                detail={"attack": "key-compromise"},
            ) from error  # fmt: skip
        return found.signed

    # -- drafts -----------------------------------------------------------------------------------

    def create(self, roles: Mapping[str, RoleKeys], days: Mapping[str, int], now: datetime) -> None:
        """Drafts of the first root and targets metadata. Raises ``PlanError`` when a repository is there already."""
        if self.layout.exists():
            raise PlanError(
                f"there is a repository in {self.layout.folder} already",
                next_step="kedge release rotate changes its keys",
            )
        root = Root(expires=now, unrecognized_fields={PERIODS: {**DAYS, **days}})
        for role in TOP:
            for key in roles[role].keys:
                root.add_key(key, role)
            root.roles[role].threshold = roles[role].threshold
        _check(root)
        root.expires = now + _period(root, "root")
        self.layout.keep_draft("root", Metadata(root))
        targets = Targets(expires=now + _period(root, "targets"))
        self.layout.keep_draft("targets", Metadata(targets))

    def draft(self, role: str, now: datetime) -> AnyMetadata:
        """New metadata of a role to change and keep: one version above the published, without signatures."""
        found = self.current(role)
        if found is None:
            made: AnyMetadata = Metadata(Targets())
        else:
            made = copy.deepcopy(found)
            made.signatures.clear()
            published = self.layout.newest(role)
            made.signed.version = published.signed.version + 1 if published is not None else 1
        made.signed.expires = now + self.period(role)
        return made

    def period(self, role: str) -> timedelta:
        """For how long metadata of a role is valid: as the published root says, whatever somebody drafted."""
        return _period(self._holding_root(), role)

    def _holding_root(self) -> Root:
        """The root that is published; before the first publication the draft."""
        published = self.layout.newest("root")
        return self.root() if published is None else published.signed

    def add_release(
        self, new: NewRelease, now: datetime, *, keys: RoleKeys | None = None
    ) -> ReleaseName:
        """Adds a release: its files become targets, the component's metadata a draft.

        ``keys`` are those of a component that is new; None: those of targets. Raises ``PlanError`` for a release that
        is there already or was revoked, ``DriverError`` kind ``DigestMismatch`` for files that are not the document's.
        """
        name = new.name
        if name.component in TOP:
            raise PlanError(f"{name.component} is the name of a role; a component needs another")
        known = self.component(name.component) if name.component in self.components() else None
        listed = {} if known is None else known.targets
        if name.document in listed or name.tombstone in listed:
            what = "revoked" if name.tombstone in listed else "there already"
            raise PlanError(
                f"{name} is {what}: a version has one content, for ever",
                next_step="give what you add another version",
            )
        if sum(one.endswith("/release.json") for one in listed) >= MOST_RELEASES:
            raise PlanError(f"{name.component} has {MOST_RELEASES} releases, which is all it may")
        found = self._targets_of(new, now)
        if name.component not in self.components():
            self._delegate(name.component, keys or self._as_targets(), now)
        draft = self.draft(name.component, now)
        draft.signed.targets.update({one.path: one for one in found})
        self.layout.keep_draft(name.component, draft)
        return name

    def attach(self, name: ReleaseName, extra: Mapping[str, bytes], now: datetime) -> None:
        """Puts attestations or vendor's material beside a release that is there. Raises as :meth:`add_release`."""
        listed = self.listed(name)
        draft = self.draft(name.component, now)
        for one in self._extras(name, extra):
            if one.path in listed and listed[one.path].hashes != one.hashes:
                raise PlanError(f"{one.path} is there already, with other content")
            draft.signed.targets[one.path] = one
        self.layout.keep_draft(name.component, draft)

    def rotate(
        self,
        role: str,
        *,
        add: Iterable[SSlibKey] = (),
        remove: Iterable[str] = (),
        threshold: int | None = None,
        now: datetime,
    ) -> tuple[str, ...]:
        """Changes the keys of a role; returns the roles that have a draft for it now.

        ``remove`` are key ids. Raises ``PlanError`` when the threshold could not be met afterwards.
        """
        above = "root" if role in TOP else "targets"
        self.authority(role)
        draft = self.draft(above, now)
        holder: Root | Targets = draft.signed
        for keyid in remove:
            if keyid not in holder.get_delegated_role(role).keyids:
                raise PlanError(f"key {keyid[:12]} is not one of {role}")
            holder.revoke_key(keyid, role)
        for key in add:
            holder.add_key(key, role)
        if threshold is not None:
            holder.get_delegated_role(role).threshold = threshold
        _check(holder)
        self.layout.keep_draft(above, draft)
        changed = [above]
        if role not in ("root", "snapshot", "timestamp") and self.current(role) is not None:
            # Signatures of keys that are gone must not stand there any longer.
            self.layout.keep_draft(role, self.draft(role, now))
            changed.append(role)
        return tuple(dict.fromkeys(changed))

    def renew(self, role: str, now: datetime) -> None:
        """A draft that says the same for longer."""
        self.layout.keep_draft(role, self.draft(role, now))

    def keys_for(self, role: str) -> dict[str, Key]:
        """The keys whose signature a role's draft can use, by id (of root: the old ones too)."""
        holder = self.authority(role)
        found = {keyid: holder.get_key(keyid) for keyid in holder.get_delegated_role(role).keyids}
        before = self.layout.newest("root") if role == "root" else None
        if before is not None:
            old: Root = before.signed
            found |= {keyid: old.get_key(keyid) for keyid in old.roles["root"].keyids}
        return found

    def bytes_to_sign(self, role: str) -> bytes | None:
        """What a signature of the role's draft is over; None when it has no draft."""
        state, found = self.state(role), self.current(role)
        return (
            found.signed_bytes if found is not None and state is not None and state.draft else None
        )

    def add_signature(self, role: str, signature: Signature) -> bool:
        """Adds a signature to the role's draft; whether it counts. Those that do not verify are never kept."""
        found = self.current(role)
        key = self.keys_for(role).get(signature.keyid)
        if found is None or key is None:
            return False
        try:
            key.verify_signature(signature, found.signed_bytes)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is no signature
            return False
        found.signatures[signature.keyid] = signature
        self.layout.keep_draft(role, found)
        return True

    def merge(self, role: str, other: AnyMetadata) -> int:
        """Takes over the signatures of somebody's copy of a draft; how many were new.

        Raises ``PlanError`` when it is another draft.
        """
        found = self.current(role)
        if found is None or found.signed_bytes != other.signed_bytes:
            raise PlanError(
                f"that is not the draft of {role} that is here",
                next_step="sign the draft that lies in drafts/ now",
            )
        new = [one for keyid, one in other.signatures.items() if keyid not in found.signatures]
        return sum(self.add_signature(role, one) for one in new)

    # -- inside -----------------------------------------------------------------------------------

    def _targets_of(self, new: NewRelease, now: datetime) -> list[TargetFile]:
        name, document = new.name, new.document
        artifacts: dict[str, ReleaseArtifact] = {}
        found: list[TargetFile] = []
        for platform, artifact in sorted(document.artifacts.items()):
            file = new.files[platform]
            path = f"{name.folder}{platform.replace('/', '-')}{_ending(file.name)}"
            self.layout.keep_file(path, file, digest=artifact.digest, length=artifact.length)
            found.append(TargetFile(artifact.length, {"sha256": artifact.digest}, path))
            artifacts[platform] = artifact.model_copy(
                update={"source": f"tuf:{path}", "mirrors": ()}
            )
        kept = document.model_copy(update={"artifacts": artifacts})
        content = canonical(kept)
        self.layout.keep_bytes(name.document, content)
        custom = {"author": new.author, "added": instant(now), "document": document_digest(kept)}
        found.append(
            TargetFile(
                len(content),
                {"sha256": content_digest(content)},
                name.document,
                {"custom": {"kedge": custom}},
            )
        )
        return [*found, *self._extras(name, new.extra)]

    def _extras(self, name: ReleaseName, extra: Mapping[str, bytes]) -> list[TargetFile]:
        found: list[TargetFile] = []
        for base, content in sorted(extra.items()):
            if not EXTRA.fullmatch(base):
                raise PlanError(
                    f"{base} is no name for what stands beside a release",
                    next_step="provenance-<n>.json, or vendor-<name>",
                )
            self.layout.keep_bytes(name.folder + base, content)
            found.append(TargetFile.from_data(name.folder + base, content))
        return found

    def _as_targets(self) -> RoleKeys:
        # Not those of a draft: who wrote it may have put a key of his there.
        root = self._holding_root()
        role = root.roles["targets"]
        keys = [root.keys[keyid] for keyid in role.keyids]
        return RoleKeys(role.threshold, tuple(key for key in keys if isinstance(key, SSlibKey)))

    def _delegate(self, component: str, keys: RoleKeys, now: datetime) -> None:
        draft = self.draft("targets", now)
        targets: Targets = draft.signed
        if targets.delegations is None:
            targets.delegations = Delegations({}, {})
        roles = targets.delegations.roles
        if roles is None:
            raise PlanError("the repository delegates by hash prefixes, which kedge does not")
        roles[component] = DelegatedRole(
            component, [], keys.threshold, terminating=True, paths=[f"{component}/*/*"]
        )
        for key in keys.keys:
            targets.add_key(key, component)
        _check(targets)
        self.layout.keep_draft("targets", draft)


def _check(holder: Root | Targets) -> None:
    try:
        sound_delegations(holder)
    except KeysError as error:
        raise PlanError(
            str(error), next_step="give as many different keys as the threshold needs"
        ) from error


def _period(root: Root, role: str) -> timedelta:
    days = root.unrecognized_fields.get(PERIODS)
    known = {**DAYS, **days} if isinstance(days, dict) else DAYS
    return timedelta(days=int(known.get(role, known["components"])))


def _ending(name: str) -> str:
    return next((ending for ending in _ENDINGS if name.lower().endswith(ending)), ".bin")


def instant(now: datetime) -> str:
    """A moment as metadata say it."""
    return f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
