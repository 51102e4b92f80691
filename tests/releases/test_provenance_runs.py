"""A run whose policy asks for provenance: refused without it, started with it, and what was judged is evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from activities.trusted import ReleaseTrust
from kedge.model.base import digest_of
from kedge.model.policy import ReleaseRules
from kedge.model.provenance import Builder, ProvenanceRules
from kedge.model.run import Run
from kedge.plan.digest import plan_digest
from tests.releases.test_runs import TEAM, daemon, judged, signed_scene
from tests.spine.conftest import Stage
from tests.trust import building

pytestmark = pytest.mark.temporal


def envelope(builder: str, digests: list[str]) -> bytes:
    said = building.statement(
        builder,
        {
            "subject": [{"name": f"{at}.tar", "digest": {"sha256": one}} for at, one in enumerate(digests)],
            "predicate/runDetails/metadata": None,
        },
    )  # fmt: skip
    return building.wrap(json.dumps(said).encode(), building.private(builder))


async def test_nothing_starts_before_enough_builders_arrived_at_the_same_bytes(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    assert scene.policy.releases is not None
    asked = ProvenanceRules(
        builders=(
            building.builder("a"),
            building.builder("b"),
            Builder(
                id="https://c.example.org/keyless",
                identity={"issuer": "https://i.example.org", "subject": "x"},  # type: ignore[arg-type]
            ),
        ),
        sources=("git+https://git.example.org/db/db@refs/tags/*",),
        build_types=(building.BUILD_TYPE,),
        builders_agree=2,
        trusted_root="0" * 64,
    )
    rules = ReleaseRules(root=scene.policy.releases.root, provenance=asked)
    scene.policy = scene.policy.model_copy(update={"releases": rules})
    plan = scene.plan()
    digests = [one.digest for one in plan.after.artifacts]

    async def attach(number: int, content: bytes) -> None:
        await world.desk.attach(
            world.folder, daemon("1.1.0"), {f"provenance-{number}.json": content}, world.signers(*TEAM), publish=True
        )  # fmt: skip

    async with scene.playing():
        # The first release was installed before the policy asked for this.
        await scene.drivers.pins.pin(scene.name, scene.policy)
        nothing = await judged(scene, plan)
        assert (nothing.accepted, nothing.rule) == (False, "release")
        assert "nobody who is believed arrived at" in nothing.said
        # One builder twice, one bundle whose trusted root is not kept here, and one that built something else.
        await attach(1, envelope("a", digests))
        await attach(2, envelope("a", [*digests, "9" * 64]))
        await attach(3, b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}')
        await attach(4, envelope("b", ["9" * 64]))
        one = await judged(scene, plan)
        assert (one.accepted, one.rule) == (False, "release")
        assert "1 builder arrived at" in one.said
        await attach(5, envelope("b", digests))
        two = await judged(scene, plan)
        assert two.accepted, two.said
    found = [record for record in await scene.records("release") if record["ok"]]
    (verdict,) = found[0]["provenance"].values()
    assert verdict["agreed"] == [building.builder_id("a"), building.builder_id("b")]
    rules_said = {one["name"]: (one["rule"], one["said"]) for one in verdict["envelopes"]}
    assert rules_said["daemon/1.1.0/provenance-2.json"][0] == "repeated"
    assert rules_said["daemon/1.1.0/provenance-4.json"][0] == "subject"
    rule, said = rules_said["daemon/1.1.0/provenance-3.json"]
    assert rule == "bundle"
    assert "is not kept here" in said


async def test_what_was_found_by_other_rules_is_a_record_of_its_own(
    stage: Stage, tmp_path: Path
) -> None:
    scene, world = await signed_scene(stage, tmp_path)
    assert scene.policy.releases is not None
    plan = scene.plan()
    digests = [one.digest for one in plan.after.artifacts]
    files = {f"provenance-{at}.json": envelope(one, digests) for at, one in ((1, "a"), (2, "b"))}
    await world.desk.attach(
        world.folder, daemon("1.1.0"), files, world.signers(*TEAM), publish=True
    )
    agreed = [
        ReleaseRules(
            root=scene.policy.releases.root,
            provenance=building.rules().model_copy(
                update={
                    "builders": (building.builder("a"), building.builder("b")),
                    "sources": ("git+https://git.example.org/db/db@refs/tags/*",),
                    "builders_agree": many,
                    "max_age": None,
                }
            ),
        )
        for many in (1, 2)
    ]
    run = Run(id="upgrade/x/1", fleet=scene.name, plan=plan_digest(plan), epoch=1, warrant="0" * 64)
    drivers = scene.drivers
    # Two workers, and the first of them once more under rules that have changed meanwhile.
    for rules in (agreed[0], agreed[0], agreed[1]):
        trust = ReleaseTrust(drivers.releases, drivers.blobs, drivers.evidence)
        await trust.stands(run, plan, rules)
    page = await drivers.evidence.read(scene.name)
    keys = [one.key for one in page if one.key.startswith("release/")]
    assert keys == [f"release/{run.id}/{digest_of(one)[:16]}" for one in agreed]
