"""The record of a real run, exported once, for all who change something in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import CheckpointKey, ensure_key
from kedge.model.base import digest_of
from kedge.model.evidence import EvidenceReport
from kedge.model.policy import EvidenceRules, Policy
from kedge.trust import evidence_file
from kedge.trust.evidence import Asked, verify_parts
from tests.spine.conftest import Stage
from tests.spine.forgery import entries_of, split
from tests.spine.scene import Scene


@dataclass(frozen=True)
class Kept:
    """The exported file of a run, by lines, the policy that is pinned, and the worker's key."""

    lines: list[bytes]
    policy: Policy
    key: CheckpointKey
    run: str

    def verified(self, lines: list[bytes] | None = None, **asked: Any) -> EvidenceReport:
        pinned = {digest_of(self.policy): self.policy}
        parts = evidence_file.read(self.lines if lines is None else lines)
        return verify_parts(parts, Asked(pinned=pinned, **asked))

    @property
    def count(self) -> int:
        return len(entries_of(self.lines))

    @property
    def places(self) -> list[int]:
        """Where checkpoints stand."""
        return sorted(
            {one["checkpoint"]["seq"] for one in split(self.lines) if "checkpoint" in one}
        )


async def witnessed(stage: Stage, **given: Any) -> Scene:
    """A scene whose policy names its worker's checkpoint key."""
    scene = await stage(**given)
    key = ensure_key(scene.settings.checkpoint_key)
    rules = EvidenceRules(signers=(key.public.line,))
    scene.policy = scene.policy.model_copy(update={"evidence": rules})
    await scene.drivers.pins.pin(scene.name, scene.policy)
    return scene


async def exported(scene: Scene, run: str, **given: Any) -> list[bytes]:
    target = scene.home / "run.evidence"
    await desk_evidence.export(scene.drivers.evidence, scene.drivers.blobs, run, target, **given)
    return target.read_bytes().splitlines(keepends=True)


_KEPT: list[Kept] = []


async def kept_run(stage: Stage) -> Kept:
    """One run for all tests of this process: a refused approval, a gate of two, three nodes."""
    if not _KEPT:
        scene = await witnessed(stage)
        async with scene.playing():
            run = await scene.start(scene.plan())
            await scene.waits_for(run, "ship")
            assert (await scene.order("approve", run, "olga")).rule == "role"
            await scene.approve(run)
            assert (await scene.end_of(run)).phase == "done"
        key = ensure_key(scene.settings.checkpoint_key)
        _KEPT.append(Kept(await exported(scene, run), scene.policy, key, run))
    return _KEPT[0]
