"""A release repository with its keepers, for tests: people with SSH keys, releases of a made-up daemon, a client."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from desk.release_roles import Changed, KeyChange, RoleSpec
from desk.releases import ReleaseDesk
from kedge.drivers.artifacts import FileSource, VerifiedArtifacts
from kedge.drivers.metadata_signers import KeyFile
from kedge.drivers.tuf_releases import TufReleases
from kedge.drivers.tuf_repository import NewRelease, Repository
from kedge.model.release import Release
from kedge.model.trusted import ReleaseName

KINDS = {
    "root": "ssh-ed25519",
    "rita": "ssh-ed25519",
    "ada": "ssh-ed25519",
    "bob": "ecdsa-sha2-nistp384",
    "robot": "ecdsa-sha2-nistp256",
    "carol": "ssh-ed25519",
    "eve": "ssh-ed25519",
}
"""Who has which kind of key. Root and rita keep the root, ada and bob sign releases, the robot snapshots and the
timestamp; carol may come later, eve has nothing to say."""


def archive(version: str, name: str = "daemon") -> bytes:
    """A small tar archive, the same at each call."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        body = f"#!/bin/sh\necho {name} {version}\n".encode()
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(body), 0o755
        tar.addfile(info, io.BytesIO(body))
    return gzip.compress(content.getvalue(), mtime=0)


@dataclass
class World:
    """One repository. ``folder`` is the keepers', ``home`` a worker's."""

    base: Path
    keys: dict[str, KeyFile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for person, kind in KINDS.items():
            if self.key_file(person).exists():
                self.keys[person] = KeyFile(self.key_file(person))
            else:
                self.person(person, kind)

    def person(self, name: str, kind: str = "ssh-ed25519") -> KeyFile:
        """A new person with a key; ``name`` and ``name.pub`` lie in ``keys/``."""
        path = self.key_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = {"key_size": 3072} if kind == "ssh-rsa" else {}
        key = asyncssh.generate_private_key(kind, comment=name, **size)
        key.write_private_key(str(path))
        path.chmod(0o600)
        key.write_public_key(f"{path}.pub")
        self.keys[name] = KeyFile(path)
        return self.keys[name]

    def key_file(self, name: str) -> Path:
        """A person's private key."""
        return self.base / "keys" / name

    @property
    def folder(self) -> Path:
        """The keepers' repository."""
        return self.base / "repository"

    @property
    def repository(self) -> Repository:
        """The same, opened."""
        return Repository.open(self.folder)

    @property
    def desk(self) -> ReleaseDesk:
        """The keepers' desk; its home pins what it makes."""
        return ReleaseDesk(TufReleases(str(self.folder), self.base / "keepers"), str(self.folder))

    def signers(self, *people: str) -> list[KeyFile]:
        """These people's keys."""
        return [self.keys[name] for name in people]

    def spec(self, role: str, threshold: int, *people: str) -> RoleSpec:
        """The keys of a role."""
        files = tuple(self.key_file(name) for name in people)
        return RoleSpec(role=role, threshold=threshold, keys=files)

    async def init(self) -> Changed:
        """Two of two for the root, two of two for targets, the robot for the rest; published."""
        roles = [
            self.spec("root", 2, "root", "rita"),
            self.spec("targets", 2, "ada", "bob"),
            self.spec("snapshot", 1, "robot"),
            self.spec("timestamp", 1, "robot"),
        ]
        every = self.signers("root", "rita", "ada", "bob", "robot")
        return await self.desk.init(self.folder, roles, every)

    def release(self, version: str, component: str = "daemon") -> NewRelease:
        """A release whose archive lies in ``archives/``."""
        content = archive(version, component)
        file = self.base / "archives" / f"{component}-{version}.tar.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        said = {
            "kind": "Release",
            "component": component,
            "version": version,
            "artifacts": {
                "linux/amd64": {
                    "digest": hashlib.sha256(content).hexdigest(),
                    "length": len(content),
                    "source": str(file),
                }
            },
            "upgrade_from": "*",
        }
        document = Release.model_validate(said, strict=False)
        return NewRelease(document=document, files={"linux/amd64": file}, author="ada")

    async def add(
        self,
        version: str,
        component: str = "daemon",
        *,
        by: Sequence[str] = ("ada", "bob", "robot"),
    ) -> ReleaseName:
        """Adds and publishes a release."""
        new = self.release(version, component)
        changed = await self.desk.add(self.folder, new, self.signers(*by), publish=True)
        assert changed.published, changed
        return new.name

    async def publish(self, *by: str, renew: Sequence[str] | None = None) -> Changed:
        """Publishes with these keys."""
        return await self.desk.publish(self.folder, self.signers(*(by or ("robot",))), renew=renew)

    async def rotate(self, change: KeyChange, *by: str) -> Changed:
        """Changes keys and publishes."""
        return await self.desk.rotate(self.folder, change, self.signers(*by), publish=True)

    def reader(self, location: Path | str | None = None, name: str = "worker") -> TufReleases:
        """A worker's view of the repository, pinned to its first root."""
        found = TufReleases(str(location or self.folder), self.base / name)
        if found.pinned() is None:
            found.pin((self.folder / "metadata" / "1.root.json").read_bytes())
        return found

    def artifacts(self) -> VerifiedArtifacts:
        """Where the archives of new releases are found."""
        return VerifiedArtifacts(self.base / "cache", {"file": FileSource([self.base])})


async def world_with_a_release(base: Path) -> World:
    """A published repository with one release, ``daemon@1.0.0``."""
    made = World(base)
    await made.init()
    await made.add("1.0.0")
    return made
