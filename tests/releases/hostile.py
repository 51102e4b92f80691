"""A hostile mirror: a copy of a repository whose files an attacker writes, with whatever keys he got hold of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Timestamp

from kedge.drivers.tuf_layout import AnyMetadata, Layout
from kedge.model.base import canonical
from kedge.model.release import Release
from kedge.model.trusted import ReleaseName
from tests.releases.world import World, archive


class Mirror:
    """What a worker reads. ``honest`` puts the keepers' files back."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.layout = Layout(folder)
        self.stolen = False
        """Whether a key of the keepers signed something of the attack: clients then remember its version numbers."""
        self.honest()

    def honest(self) -> None:
        """The keepers' files, and no others."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.world.folder, self.folder)

    def read(self, role: str) -> AnyMetadata:
        """The newest metadata of a role."""
        found = self.layout.newest(role)
        assert found is not None
        return found

    def file(self, role: str) -> Path:
        """The file of that."""
        name = "timestamp" if role == "timestamp" else f"{self.read(role).signed.version}.{role}"
        return self.layout.metadata / f"{name}.json"

    async def put(self, role: str, metadata: AnyMetadata, *people: str) -> None:
        """Writes metadata signed by these people; what others signed before is left out."""
        metadata.signatures.clear()
        self.stolen |= bool(set(people) - {"eve"})
        for person in people:
            key = self.world.keys[person]
            metadata.signatures[key.key.keyid] = await key.sign(metadata.signed_bytes)
        self.layout.publish(role, metadata)

    async def again(self, role: str, *people: str, **change: Any) -> AnyMetadata:
        """The next version of a role's metadata, with fields of its signed part changed."""
        metadata = self.read(role)
        metadata.signed.version += 1
        for name, value in change.items():
            setattr(metadata.signed, name, value)
        await self.put(role, metadata, *people)
        return metadata

    async def chain(self, *people: str, leap: int = 1, meta: dict[str, int] | None = None) -> None:
        """Snapshot and timestamp over what lies here, signed by these people (who should be the robot).

        ``meta`` says other versions of roles than the newest; ``leap`` is how much the timestamp's version grows.
        """
        listed = {}
        for name in self.read("snapshot").signed.meta:
            role = name.removesuffix(".json")
            version = (meta or {}).get(role)
            found = self.layout.published(role, version) if version else self.read(role)
            content = b"{}" if found is None else found.to_bytes()
            listed[name] = MetaFile.from_data(
                version or self.read(role).signed.version, content, ["sha256"]
            )
        old = self.read("snapshot").signed
        snapshot: AnyMetadata = Metadata(
            Snapshot(version=old.version + 1, expires=old.expires, meta=listed)
        )
        await self.put("snapshot", snapshot, *people)
        await self.stamp(*people, leap=leap)

    async def stamp(self, *people: str, leap: int = 1) -> None:
        """A timestamp over the newest snapshot that lies here."""
        old, snapshot = self.read("timestamp").signed, self.read("snapshot")
        meta = MetaFile.from_data(snapshot.signed.version, snapshot.to_bytes(), ["sha256"])
        timestamp: AnyMetadata = Metadata(
            Timestamp(version=old.version + leap, expires=old.expires, snapshot_meta=meta)
        )
        await self.put("timestamp", timestamp, *people)

    def target(self, name: ReleaseName, base: str) -> Path:
        """The file of one of a release's targets."""
        (found,) = (self.layout.targets / name.component / name.version).glob(f"*.{base}")
        return found

    def listing(self, name: ReleaseName, **change: Any) -> dict[str, TargetFile]:
        """Targets for a release with an archive of the attacker's; its document changed as said."""
        content = archive(f"{name.version}-evil")
        path = f"{name.folder}linux-amd64.tar.gz"
        self.layout.keep_bytes(path, content)
        found = TargetFile.from_data(path, content)
        said: dict[str, Any] = {
            "component": name.component,
            "version": name.version,
            "upgrade_from": "*",
            "artifacts": {
                "linux/amd64": {
                    "digest": found.hashes["sha256"], "length": len(content), "source": f"tuf:{path}",
                }
            },
            **change,
        }  # fmt: skip
        document = canonical(Release.model_validate(said, strict=False))
        self.layout.keep_bytes(name.document, document)
        return {path: found, name.document: TargetFile.from_data(name.document, document)}
