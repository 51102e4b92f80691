"""Whether a release may be moved to: what the repository's client verified, held against the plan and the policy."""

from __future__ import annotations

from kedge.model.base import Digest, Frozen, Json
from kedge.model.order import Instant
from kedge.model.plan import Artifact, PlannedRelease
from kedge.model.policy import ReleaseRules
from kedge.model.provenance import ProvenanceVerdict
from kedge.model.trusted import Custody, MetadataVersions, ReleaseName, TrustedRelease
from kedge.trust.provenance import BundleVerifier, judge_artifacts


class ReleaseVerdict(Frozen):
    """The decision about a release, fit to be evidence.

    ``authors`` are who added it and who signed for it; ``provenance`` the verdict on each artifact, by platform, where
    the policy asks for one.
    """

    ok: bool
    said: str
    release: ReleaseName
    root: Digest
    document: Digest
    target: Digest
    authors: tuple[str, ...]
    artifacts: tuple[Artifact, ...]
    attestations: tuple[Digest, ...]
    versions: MetadataVersions
    expires: str
    provenance: dict[str, ProvenanceVerdict] = {}
    custody: Custody | None = None

    def record(self) -> dict[str, Json]:
        """What of it stands in the evidence."""
        return self.model_dump(mode="json")


def judge_release(
    found: TrustedRelease,
    planned: PlannedRelease,
    rules: ReleaseRules,
    now: Instant,
    *,
    platforms: frozenset[str],
    bundles: BundleVerifier | None = None,
) -> ReleaseVerdict:
    """Whether ``found`` is the release of the plan, and was built as the policy asks. Pure and total.

    ``platforms`` are those of the plan's nodes: the provenance of nothing else matters.
    """
    wanted = {one.platform: one.digest for one in planned.artifacts if one.platform in platforms}
    provenance: dict[str, ProvenanceVerdict] = {}
    if rules.provenance is not None:
        provenance = judge_artifacts(wanted, found.attestations, rules.provenance, now, bundles)
    asked = platforms if rules.provenance is not None else frozenset()
    wrong = [*_other(found, planned, rules), *unproven(provenance, asked)]
    return ReleaseVerdict(
        ok=not wrong,
        said=wrong[0] if wrong else f"{found.name} is signed, listed and the one of the plan",
        release=found.name,
        root=found.root,
        document=found.digest,
        target=found.target,
        authors=found.authors,
        artifacts=found.artifacts,
        attestations=tuple(one.digest for one in found.attestations),
        versions=found.versions,
        expires=found.expires,
        provenance=provenance,
        custody=found.custody,
    )


def _other(found: TrustedRelease, planned: PlannedRelease, rules: ReleaseRules) -> list[str]:
    """How it is not the plan's release."""
    if found.root != rules.root:
        return [
            f"it was verified from the root {found.root[:12]}, the policy names {rules.root[:12]}"
        ]
    if (planned.component, planned.version) != (found.name.component, found.name.version):
        return [f"the plan goes to {planned.component}@{planned.version}, this is {found.name}"]
    if found.digest != planned.document:
        return [f"{found.name} in the repository is another document than the one of the plan"]
    signed = {(one.platform, one.digest, one.length) for one in found.artifacts}
    if signed != {(one.platform, one.digest, one.length) for one in planned.artifacts}:
        return [f"the archives of {found.name} are others than those of the plan"]
    return []


def unproven(provenance: dict[str, ProvenanceVerdict], asked: frozenset[str]) -> list[str]:
    """Why the artifacts for the platforms that are asked for are not proven; no platform at all proves nothing."""
    missing = [
        f"there is no archive for {platform}" for platform in sorted(asked - set(provenance))
    ]
    return missing + [
        f"the provenance for {platform} is not what the policy asks for: {verdict.said}"
        for platform, verdict in sorted(provenance.items())
        if not verdict.ok
    ]
