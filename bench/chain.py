"""The chain above an artifact: a signed repository that lists it, and two builders who say how they arrived at it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kedge.drivers.metadata_signers import KeyFile
from kedge.drivers.tuf_releases import TufReleases
from kedge.drivers.tuf_repository import NewRelease
from kedge.model.plan import Artifact
from kedge.model.provenance import ProvenanceRules
from kedge.model.release import Release
from kedge.model.trusted import ReleaseName
from kedge.trust.dsse import compose, pae
from kedge.trust.provenance import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, judge_artifacts
from worker.desk_releases import ReleaseDesk, RoleSpec

BUILDERS = ("https://one.example.org/builder", "https://two.example.org/builder")
BUILD_TYPE = "https://slsa.example.org/make/v1"
SOURCE = "git+https://git.example.org/daemon@refs/tags/v1.0.0"
KEEPERS = ("ada", "bob")
"""Both have to sign, for every role."""


class Chain:
    """A repository with one release, and a reader that knows nothing but the pinned root."""

    def __init__(self, folder: Path, archive: Artifact) -> None:
        self._folder = folder
        self._archive = archive
        self._name = ReleaseName(component="daemon", version="1.0.0")
        self._builders = {one: Ed25519PrivateKey.generate() for one in BUILDERS}
        self._repository = folder / "repository"

    async def publish(self) -> None:
        """The release, its provenance beside it, published."""
        files = [self._keeper(name) for name in KEEPERS]
        signers = [KeyFile(file) for file in files]
        desk = ReleaseDesk(self._reader("keepers"), str(self._repository))
        roles = [
            RoleSpec(role=role, threshold=len(files), keys=tuple(files))
            for role in ("root", "targets", "snapshot", "timestamp")
        ]
        await desk.init(self._repository, roles, signers)
        said = {
            "kind": "Release",
            "component": self._name.component,
            "version": self._name.version,
            "artifacts": {
                self._archive.platform: {
                    "digest": self._archive.digest,
                    "length": self._archive.length,
                    "source": self._archive.source,
                }
            },
            "upgrade_from": "*",
        }
        new = NewRelease(
            document=Release.model_validate(said, strict=False),
            files={self._archive.platform: Path(self._archive.source)},
            author=KEEPERS[0],
            extra={f"provenance-{at}.json": self._said(one) for at, one in enumerate(BUILDERS)},
        )
        changed = await desk.add(self._repository, new, signers, publish=True)
        if changed.waiting:
            raise RuntimeError(f"the release is not published: {changed.waiting}")

    async def verify(self) -> None:
        """Everything anew: root, timestamp, snapshot, targets, delegation, document, and the builders' word.

        Raises unless the archive is the one that they all name.
        """
        shutil.rmtree(self._folder / "reader", ignore_errors=True)
        reader = self._reader("reader")
        reader.pin((self._repository / "metadata" / "1.root.json").read_bytes())
        trusted = await reader.trusted(self._name)
        artifacts = {one.platform: one.digest for one in trusted.artifacts}
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        verdicts = judge_artifacts(artifacts, trusted.attestations, self._rules(), now)
        if artifacts != {self._archive.platform: self._archive.digest} or not all(
            one.ok for one in verdicts.values()
        ):
            raise RuntimeError(f"the chain does not hold: {verdicts}")

    def _reader(self, name: str) -> TufReleases:
        return TufReleases(str(self._repository), self._folder / name)

    def _keeper(self, name: str) -> Path:
        path = self._folder / "keys" / name
        path.parent.mkdir(exist_ok=True)
        key = asyncssh.generate_private_key("ssh-ed25519", comment=name)
        key.write_private_key(str(path))
        key.write_public_key(f"{path}.pub")
        path.chmod(0o600)
        return path

    def _rules(self) -> ProvenanceRules:
        keys = {
            one: key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            for one, key in self._builders.items()
        }
        said = {
            "builders": [{"id": one, "keys": [line]} for one, line in keys.items()],
            "sources": [SOURCE],
            "build_types": [BUILD_TYPE],
            "builders_agree": len(BUILDERS),
        }
        return ProvenanceRules.model_validate(said, strict=False)

    def _said(self, builder: str) -> bytes:
        """What a builder says, in its envelope."""
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "daemon.tar", "digest": {"sha256": self._archive.digest}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {"source": {"uri": SOURCE}},
                },
                "runDetails": {
                    "builder": {"id": builder},
                    "metadata": {"startedOn": moment, "finishedOn": moment},
                },
            },
        }
        payload = json.dumps(statement).encode()
        signature = self._builders[builder].sign(pae(PAYLOAD_TYPE, payload))
        return compose(PAYLOAD_TYPE, payload, [("", signature)])
