"""Whether a release may be moved to: what is asked for and not there is a refusal, whatever else holds."""

from __future__ import annotations

import pytest

from kedge.model.plan import PlannedRelease
from kedge.model.policy import ReleaseRules
from kedge.model.trusted import MetadataVersions, ReleaseName, TrustedRelease
from kedge.trust.releases import ReleaseVerdict, judge_release
from tests.trust import building, world

ROOT = "7" * 64


def planned() -> PlannedRelease:
    release = world.plan().after
    artifact = release.artifacts[0].model_copy(update={"digest": building.SUBJECT})
    return release.model_copy(update={"artifacts": (artifact,)})


def trusted(*envelopes: bytes) -> TrustedRelease:
    release = planned()
    return TrustedRelease(
        name=ReleaseName(component=release.component, version=release.version),
        root=ROOT,
        document="{}",
        target="8" * 64,
        digest=release.document,
        artifacts=release.artifacts,
        authors=("ada",),
        attestations=building.attested(*envelopes),
        versions=MetadataVersions(root=1, timestamp=1, snapshot=1, targets=1, component=1),
        expires="2030-01-01T00:00:00Z",
    )


def judge(*envelopes: bytes, platforms: frozenset[str]) -> ReleaseVerdict:
    rules = ReleaseRules(root=ROOT, provenance=building.rules())
    return judge_release(trusted(*envelopes), planned(), rules, building.NOW, platforms=platforms)


def test_a_release_that_enough_builders_built_may_be_moved_to() -> None:
    found = judge(building.envelope("a"), building.envelope("b"), platforms=frozenset({"linux"}))
    assert found.ok, found.said


@pytest.mark.parametrize("platforms", [{"plan9"}, {"linux", "plan9"}])
def test_a_platform_without_an_archive_is_not_proven(platforms: set[str]) -> None:
    both = (building.envelope("a"), building.envelope("b"))
    found = judge(*both, platforms=frozenset(platforms))
    assert not found.ok
    assert found.said == "there is no archive for plan9"


def test_one_builder_too_few_is_said_with_its_platform() -> None:
    found = judge(building.envelope("a"), platforms=frozenset({"linux"}))
    assert not found.ok
    assert "the provenance for linux is not what the policy asks for: 1 builder" in found.said
