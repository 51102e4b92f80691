"""Provenance at the desk: what a policy makes of a release's attestations, and how a builder makes one."""
# ruff: noqa: PLC0415 - TUF and sigstore are loaded by those who need them

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from desk.documents import read_bytes, read_policy, read_release
from desk.orders import Signer
from desk.upstream import VERDICT, hashed, judge_again, utc_now
from kedge.drivers.tuf_releases import TufReleases
from kedge.model.base import Digest, Frozen
from kedge.model.errors import DocumentError, DriverError, OrderError, PlanError
from kedge.model.provenance import ProvenanceRules, ProvenanceVerdict
from kedge.model.release import Release
from kedge.model.trusted import Attestation, TrustedRelease, release_name
from kedge.model.upstream import VendorImport
from kedge.trust.dsse import MOST_BYTES, compose, pae, raw_signature, read_envelope, signers
from kedge.trust.envelope import moment
from kedge.trust.keys import PublicKey, parse_public_key
from kedge.trust.provenance import judge_artifacts
from kedge.trust.statement import PAYLOAD_TYPE, Build, statement_of


class Explained(Frozen):
    """What the policy makes of a release. ``verdicts`` are by platform; ``root`` where it came out of a repository."""

    component: str
    version: str
    policy: str
    rules: ProvenanceRules
    verdicts: dict[str, ProvenanceVerdict]
    root: Digest | None = None
    vendor: VendorImport | None = None
    """The verdict that was recorded when the release was imported from its vendor."""
    vendor_again: VendorImport | None = None
    """The same, judged anew from what is kept beside the release."""

    @property
    def ok(self) -> bool:
        """Whether every artifact is proven, and what the vendor signed is so still."""
        vendor = self.vendor_again is None or self.vendor_again.ok
        return vendor and bool(self.verdicts) and all(one.ok for one in self.verdicts.values())


@dataclass(frozen=True)
class Asked:
    """By which policy, and with what beside the release."""

    policy: Path
    attestations: tuple[Path, ...] = ()
    trusted_root: Path | None = None


def rules_of(policy: Path) -> tuple[str, Digest, ProvenanceRules]:
    """The policy's name, the root it pins, and its rules. Raises ``PlanError`` where it asks for no provenance."""
    found = read_policy(policy).value
    if found.releases is None or found.releases.provenance is None:
        raise PlanError(
            f"the policy {found.name} asks for no provenance: there is nothing to judge by",
            next_step="add releases.provenance to it, with builders, sources and build_types",
        )
    return found.name, found.releases.root, found.releases.provenance


class ProvenanceDesk:
    """Questions about provenance in one home: its release repository, and the trusted roots that are kept here."""

    def __init__(self, releases: TufReleases) -> None:
        self._releases = releases

    def explain(self, release: str, asked: Asked) -> Explained:
        """What the policy makes of a release: a Release document in a file, or one of the repository (``etcd@3.5.1``).

        Raises ``DocumentError``, ``PlanError`` (the policy asks for nothing), ``OrderError``, and as
        :meth:`kedge.drivers.ports.Releases.trusted`.
        """
        name = release_name(release)
        if name is None or Path(release).exists():
            return self._explained(read_release(Path(release)).value, (), asked)
        _, root, _ = rules_of(asked.policy)
        found = self._releases.read(name, root)
        document = Release.model_validate_json(found.document)
        explained = self._explained(document, found.attestations, asked)
        vendor, again = self._vendor(found, document) if found.vendor else (None, None)
        return explained.model_copy(
            update={"root": found.root, "vendor": vendor, "vendor_again": again}
        )

    def _explained(
        self, release: Release, attestations: tuple[Attestation, ...], asked: Asked
    ) -> Explained:
        name, _, provenance = rules_of(asked.policy)
        given = (*attestations, *(read_attestation(path) for path in asked.attestations))
        if asked.trusted_root is not None:
            kept = self._releases.roots.keep(read_bytes(asked.trusted_root))
            if kept != provenance.trusted_root:
                pinned = provenance.trusted_root or "none"
                raise OrderError(
                    f"{asked.trusted_root} has sha256 {kept}, the policy {name} pins {pinned}",
                    next_step="get the trusted root that the policy means, or have the policy changed",
                )
        subjects = {platform: one.digest for platform, one in sorted(release.artifacts.items())}
        verifier = self._releases.roots.verifier(provenance)
        return Explained(
            component=release.component,
            version=release.version,
            policy=name,
            rules=provenance,
            verdicts=judge_artifacts(subjects, given, provenance, utc_now(), verifier),
        )

    def _vendor(
        self, found: TrustedRelease, document: Release
    ) -> tuple[VendorImport | None, VendorImport | None]:
        """The verdict of the import, and the same anew from what is kept beside the release; None for both where the
        release was not imported.
        """
        client = self._releases.client(found.root)
        files: dict[str, bytes] = {}
        with tempfile.TemporaryDirectory(prefix="kedge-vendor-") as folder:
            for place, path in enumerate(found.vendor):
                into = Path(folder) / str(place)
                client.fetch(path, into)
                files[path.rpartition("/")[2]] = into.read_bytes()
        if VERDICT not in files:
            return None, None
        archives = {platform: one.digest for platform, one in document.artifacts.items()}
        return judge_again(found.name, files, archives)


def read_attestation(path: Path) -> Attestation:
    """An envelope or bundle in a file, whatever is in it. Raises ``DocumentError`` for what is no regular file."""
    content = read_bytes(path)
    if len(content) > MOST_BYTES:
        raise DocumentError((f"{path}:1:1: is longer than {MOST_BYTES} bytes",))
    return Attestation(
        name=path.name,
        digest=hashlib.sha256(content).hexdigest(),
        # What is no text is refused when it is judged, under its name.
        content=content.decode("utf-8", "surrogateescape"),
    )


# -- making one ------------------------------------------------------------------------------------


class Claim(Frozen):
    """What a builder says, as text from a command line."""

    builder: str
    build_type: str
    source: str
    started: str = ""
    finished: str = ""


class Made(Frozen):
    """An envelope that was made: its text, and the key that signed it as a policy's line."""

    envelope: str
    subjects: dict[str, Digest]
    key: str


async def attest(
    files: Sequence[Path], claim: Claim, signer: Signer, passphrase: Callable[[], str] | None
) -> Made:
    """The envelope of a builder about what it built.

    Raises ``OrderError`` for a claim that cannot be, ``DocumentError`` for files that cannot be read, ``DriverError`` as
    :mod:`kedge.drivers.signers`.
    """
    subjects: dict[str, Digest] = {}
    for path in files:
        if path.name in subjects:
            raise OrderError(f"two files are called {path.name}; a subject is known by its name")
        subjects[path.name] = (await asyncio.to_thread(hashed, path))[0]
    try:
        build = Build(
            builder=claim.builder,
            build_type=claim.build_type,
            source=claim.source,
            subjects=subjects,
            started=claim.started,
            finished=claim.finished,
        )
    except ValidationError as error:
        one = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise OrderError(
            f"no such build can be: {one['loc'][0]}: {one['msg']}",
            next_step="builder, build type and source are addresses; times are such as 2025-01-31T12:00:00Z",
        ) from error
    if build.started and build.finished and moment(build.started) > moment(build.finished):
        raise OrderError(
            f"no build begins at {build.started} and ends at {build.finished}",
            next_step="--started and --finished, such as 2025-01-31T12:00:00Z; without --finished it ends now",
        )
    payload = statement_of(build)
    key, wire = await _signed(pae(PAYLOAD_TYPE, payload), signer, passphrase)
    envelope = compose(PAYLOAD_TYPE, payload, [(key.fingerprint, raw_signature(wire))])
    if not signers(read_envelope(envelope), [key]):
        raise DriverError(
            "KeyRefused", "what was signed does not verify", retryable=False,
            next_step="sign with the private key file",
        )  # fmt: skip
    return Made(envelope=envelope.decode(), subjects=subjects, key=key.line)


async def _signed(
    content: bytes, signer: Signer, passphrase: Callable[[], str] | None
) -> tuple[PublicKey, bytes]:
    from desk.signing import agent_key
    from kedge.drivers.signers import open_key, sign_bare_with_agent

    if signer.key is None:
        return await sign_bare_with_agent(agent_key(signer.agent or ""), content)
    # In this thread and not in one of its own: it may ask for a passphrase, and Ctrl-C has to end that.
    private = open_key(signer.key, passphrase)
    kind = private.get_algorithm()
    algorithm = "rsa-sha2-512" if kind == "ssh-rsa" else kind
    wire: bytes = await asyncio.to_thread(private.sign, content, algorithm.encode())
    return parse_public_key(private.export_public_key().decode().strip()), wire
