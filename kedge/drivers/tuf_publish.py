"""Publishing: what enough people signed becomes what clients see, all of it at once.

The last file written is ``timestamp.json``, and it is replaced by a rename: until then clients see the old state whole,
from then on the new one. A publication that is killed is finished by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from kedge.drivers.tuf_layout import AnyMetadata
from kedge.drivers.tuf_repository import Repository, RoleState
from kedge.model.errors import PlanError


class NotSignedError(PlanError):
    """Root or targets lack signatures, or a component under its new keys: nothing can be published before."""


@dataclass(frozen=True)
class Ready:
    """What would be published: metadata by role, the new ones among them, and the drafts that wait for signatures."""

    state: Mapping[str, AnyMetadata]
    fresh: tuple[str, ...]
    waiting: tuple[RoleState, ...]


def ready(repository: Repository) -> Ready:
    """Looks at root, targets and components. Raises ``PlanError`` for drafts that cannot be published like this."""
    layout = repository.layout
    state: dict[str, AnyMetadata] = {}
    fresh: list[str] = []
    waiting: list[RoleState] = []
    root = _chosen(repository, "root", None, fresh, waiting)
    if root is None:
        _not_yet(waiting, "root")
    state["root"] = root
    targets = _chosen(repository, "targets", root.signed, fresh, waiting)
    if targets is None:
        _not_yet(waiting, "targets")
    state["targets"] = targets
    delegations = targets.signed.delegations
    for name in sorted(delegations.roles or ()) if delegations is not None else ():
        found = _chosen(repository, name, targets.signed, fresh, waiting)
        if found is not None:
            state[name] = found
    _none_left_out(repository, state, waiting)
    for role in layout.drafted():
        # A draft whose delegation is itself a draft that waits cannot be counted yet.
        known = {*state, *(one.role for one in waiting), "snapshot", "timestamp"}
        if role not in known and (unseen := repository.state(role)) is not None:
            waiting.append(unseen)
    return Ready(state, tuple(fresh), tuple(waiting))


def _none_left_out(
    repository: Repository, state: Mapping[str, AnyMetadata], waiting: list[RoleState]
) -> None:
    """A list that clients have seen stays there: a snapshot without it is refused by them whole, as an attack."""
    snapshot = repository.layout.newest("snapshot")
    for name in snapshot.signed.meta if snapshot is not None else ():
        if name.removesuffix(".json") not in state:
            _not_yet(waiting, name.removesuffix(".json"))


def _chosen(
    repository: Repository,
    role: str,
    holder: Root | Targets | None,
    fresh: list[str],
    waiting: list[RoleState],
) -> AnyMetadata | None:
    """The draft when it is complete, else what is published and holds still."""
    layout = repository.layout
    draft, published = layout.draft(role), layout.newest(role)
    if (
        draft is not None
        and published is not None
        and draft.signed.version <= published.signed.version
    ):
        if draft.signed_bytes != published.signed_bytes:
            raise PlanError(
                f"the draft of {role} was made for a state that is gone: "
                f"version {published.signed.version} is published",
                next_step=f"remove {layout.drafts / (role + '.json')} and make the change again",
            )
        draft = None
    if draft is not None:
        if _complete(repository, role, draft, holder):
            fresh.append(role)
            return draft
        state = repository.state(role)
        if state is not None:
            waiting.append(state)
    if published is not None and holder is not None and not clean(holder, role, published):
        if draft is None:
            raise PlanError(
                f"{role} is not signed by the keys that it has now",
                next_step=f"kedge release publish --renew {role}",
            )
        return None
    return published


def _complete(
    repository: Repository, role: str, draft: AnyMetadata, holder: Root | Targets | None
) -> bool:
    if role != "root":
        return holder is not None and clean(holder, role, draft)
    state = repository.state("root")
    return state is not None and state.missing == 0


def clean(holder: Root | Targets, role: str, metadata: AnyMetadata) -> bool:
    """Whether the threshold is met, and every signature that stands there is one of the role's that holds."""
    result = holder.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return result.verified and set(metadata.signatures) == set(result.signed)


def _not_yet(waiting: list[RoleState], role: str) -> NoReturn:
    missing = next((one.missing for one in waiting if one.role == role), 1)
    raise NotSignedError(
        f"{role} lacks {missing} signature(s), and nothing can be published before",
        next_step=f"kedge release sign {role} --key FILE",
    )


def compose_snapshot(
    repository: Repository, found: Ready, now: datetime, *, renew: bool = False
) -> AnyMetadata:
    """The snapshot for this state: the published one or a draft that says the same, else a new draft."""
    meta = {
        f"{role}.json": _meta(metadata) for role, metadata in found.state.items() if role != "root"
    }
    made: AnyMetadata = Metadata(
        Snapshot(
            version=_next(repository, "snapshot"),
            expires=_until(repository, "snapshot", now),
            meta=meta,
        )
    )
    return _composed(repository, found, made, now, renew=renew)


def compose_timestamp(
    repository: Repository,
    found: Ready,
    snapshot: AnyMetadata,
    now: datetime,
    *,
    renew: bool = False,
) -> AnyMetadata:
    """The timestamp for this snapshot: the published one or a draft that says the same, else a new draft."""
    made: AnyMetadata = Metadata(
        Timestamp(
            version=_next(repository, "timestamp"),
            expires=_until(repository, "timestamp", now),
            snapshot_meta=_meta(snapshot),
        )
    )
    return _composed(repository, found, made, now, renew=renew)


def _composed(
    repository: Repository, found: Ready, made: AnyMetadata, now: datetime, *, renew: bool
) -> AnyMetadata:
    """``made``, unless the published metadata or a draft says the same already.

    Of a draft every word counts, and it may not be valid for longer: others may have written it.
    """
    role = made.signed.type
    root: Root = found.state["root"].signed
    draft, published = repository.layout.draft(role), repository.layout.newest(role)
    if (
        draft is not None
        and now < draft.signed.expires <= made.signed.expires
        and _words(draft) == _words(made)
    ):
        return draft
    if (
        published is not None
        and not renew
        and not published.signed.is_expired(now)
        and _words(published, version=made.signed.version) == _words(made)
        and clean(root, role, published)
    ):
        return published
    repository.layout.keep_draft(role, made)
    return made


def _words(metadata: AnyMetadata, *, version: int | None = None) -> dict[str, Any]:
    """What metadata says, but for its expiry; with ``version`` as if it were that one."""
    said: dict[str, Any] = metadata.signed.to_dict()
    return {**said, "expires": "", "version": version or metadata.signed.version}


def _until(repository: Repository, role: str, now: datetime) -> datetime:
    until: datetime = repository.draft(role, now).signed.expires
    return until


def signed_enough(found: Ready, role: str, metadata: AnyMetadata) -> bool:
    """Whether snapshot or timestamp metadata has all it needs under the root that will hold."""
    root: Root = found.state["root"].signed
    return clean(root, role, metadata)


def commit(
    repository: Repository,
    found: Ready,
    snapshot: AnyMetadata,
    timestamp: AnyMetadata,
    now: datetime,
) -> tuple[str, ...]:
    """Writes it all, ``timestamp.json`` last; returns the roles that are new. Raises ``PlanError`` for what expired."""
    layout = repository.layout
    every = {**found.state, "snapshot": snapshot, "timestamp": timestamp}
    late = [role for role, metadata in every.items() if metadata.signed.is_expired(now)]
    if late:
        raise PlanError(
            f"expired already: {', '.join(late)}",
            next_step=f"kedge release publish --renew {' '.join(late)}",
        )
    changed = [*found.fresh]
    for role in ("snapshot", "timestamp"):
        before = layout.newest(role)
        if before is None or before.signed.version != every[role].signed.version:
            changed.append(role)
    for role in sorted(changed, key=lambda one: (one == "timestamp", one == "root")):
        layout.publish(role, every[role])
    for role in changed:
        layout.drop_draft(role)
    return tuple(changed)


def _next(repository: Repository, role: str) -> int:
    newest = repository.layout.newest(role)
    return 1 if newest is None else newest.signed.version + 1


def _meta(metadata: AnyMetadata) -> MetaFile:
    content = metadata.to_bytes()
    return MetaFile.from_data(metadata.signed.version, content, ["sha256"])
