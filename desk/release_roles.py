"""Roles of a release repository and their keys, as keepers name them and as they are shown."""
# ruff: noqa: PLC0415 - TUF's library is loaded by those who need it

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kedge.model.base import Digest, Frozen
from kedge.model.errors import DriverError

if TYPE_CHECKING:
    from securesystemslib.signer import Key, SSlibKey

    from kedge.drivers.metadata_signers import MetadataKey
    from kedge.drivers.tuf_repository import Repository, RoleKeys, RoleState


KeyHand: TypeAlias = "MetadataKey"
"""A key at hand, by the name that faces know."""


class RoleSpec(Frozen):
    """The keys of a role as they are asked for: files of public keys (or of private ones with the public beside)."""

    role: str
    threshold: int
    keys: tuple[Path, ...]


class KeyChange(Frozen):
    """What becomes of a role's keys. ``add`` are files of public keys, ``remove`` such files or fingerprints."""

    role: str
    add: tuple[Path, ...] = ()
    remove: tuple[str, ...] = ()
    threshold: int | None = None


class KeyHolder(Frozen):
    """A key in metadata as people know it: fingerprint, and the comment of the SSH key."""

    fingerprint: str
    comment: str = ""


class RoleView(Frozen):
    """How far a role's metadata is."""

    role: str
    version: int
    draft: bool
    expires: str
    threshold: int
    missing: int
    signed: tuple[KeyHolder, ...]
    unsigned: tuple[KeyHolder, ...]


class Changed(Frozen):
    """What a call did: the drafts it left, and the roles it published."""

    folder: Path
    drafts: tuple[RoleView, ...]
    published: tuple[str, ...] = ()
    root: Digest | None = None
    """The digest of the first root metadata, once that is published: what policies name."""
    signed: tuple[str, ...] = ()
    """The roles that got a signature in this call."""
    unseen: tuple[str, ...] = ()
    """Drafts that were there before, with changes of others: they were not signed along."""

    @property
    def waiting(self) -> tuple[RoleView, ...]:
        """The drafts that lack signatures."""
        return tuple(one for one in self.drafts if one.missing)


async def signers_of(
    keys: Sequence[Path], agents: Sequence[str], passphrase: Callable[[], str] | None
) -> list[MetadataKey]:
    """The keys to sign with: private key files, and keys of the agent by fingerprint, line or ``.pub`` file.

    Raises ``DriverError`` (``NotFound``, ``KeyRefused``, ``Unreachable``), ``OrderError``.
    """
    from desk.signing import agent_key
    from kedge.drivers.metadata_signers import AgentKey, KeyFile
    from kedge.drivers.signers import held_line

    found: list[MetadataKey] = [KeyFile(path, passphrase) for path in keys]
    for wanted in agents:
        line = await held_line(agent_key(wanted))
        found.append(AgentKey(line))
    return found


def fingerprint_of(signer: MetadataKey) -> str:
    """The fingerprint of a signer's key."""
    from kedge.trust.tufkeys import ssh_key

    return ssh_key(signer.key).fingerprint


# -- inside ---------------------------------------------------------------------------------------


def changed_in(
    repository: Repository,
    *,
    signed: tuple[str, ...] = (),
    published: tuple[str, ...] = (),
    unseen: tuple[str, ...] = (),
) -> Changed:
    """What a call did to a repository, with the drafts as they are now."""
    from hashlib import sha256

    first = repository.layout.metadata / "1.root.json"
    return Changed(
        folder=repository.layout.folder,
        drafts=views_of(repository, drafts_only=True),
        published=published,
        root=sha256(first.read_bytes()).hexdigest() if first.exists() else None,
        signed=tuple(dict.fromkeys(signed)),
        unseen=unseen,
    )


def views_of(repository: Repository, *, drafts_only: bool) -> tuple[RoleView, ...]:
    """Its roles, or those of them that wait to be published."""
    roles = repository.layout.drafted() if drafts_only else repository.roles()
    found = (repository.state(role) for role in roles)
    return tuple(_view(one) for one in found if one is not None and (one.draft or not drafts_only))


def _view(state: RoleState) -> RoleView:
    from kedge.trust.tufkeys import ssh_key

    def holders(keys: Mapping[str, Key]) -> tuple[KeyHolder, ...]:
        found = [ssh_key(key) for key in keys.values()]
        return tuple(KeyHolder(fingerprint=k.fingerprint, comment=k.comment) for k in found)

    return RoleView(
        role=state.role,
        version=state.version,
        draft=state.draft,
        expires=f"{state.expires:%Y-%m-%dT%H:%M:%SZ}",
        threshold=state.threshold,
        missing=state.missing,
        signed=holders(state.signed),
        unsigned=holders(state.unsigned),
    )


def public_key(path: Path) -> SSlibKey:
    """The public key in a file, or beside it. Raises ``DriverError`` kind ``NotFound`` or ``KeyRefused``."""
    from kedge.drivers.files import read_key_line
    from kedge.drivers.metadata_signers import usable

    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    try:
        line = read_key_line(public)
    except (OSError, UnicodeDecodeError) as error:
        raise DriverError(
            "NotFound", f"{public} cannot be read", retryable=False,
            next_step="name the file of a public key (.pub)",
        ) from error  # fmt: skip
    return usable(line, str(public))


def role_keys(spec: RoleSpec) -> RoleKeys:
    """The keys of a role, read from their files. Raises as :func:`public_key`."""
    from kedge.drivers.tuf_repository import RoleKeys

    return RoleKeys(spec.threshold, tuple(public_key(path) for path in spec.keys))


def key_id(repository: Repository, role: str, wanted: str) -> str:
    """The id in metadata of a key that is named by its file or its fingerprint. Raises ``DriverError`` kind ``NotFound``."""
    from kedge.trust.tufkeys import ssh_key

    if not wanted.startswith("SHA256:"):
        return public_key(Path(wanted)).keyid
    for keyid, key in repository.keys_for(role).items():
        if ssh_key(key).fingerprint == wanted:
            return keyid
    raise DriverError(
        "NotFound", f"{wanted} is not a key of {role}", retryable=False,
        next_step="kedge release list --drafts shows the keys of every role",
    )  # fmt: skip
