"""Releases held to the policy's repository: judged before a run begins, asked about again before each step of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

from kedge.drivers.ports import Blobs, Evidence, Releases
from kedge.model.base import Digest, Json, digest_of
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact, Plan
from kedge.model.policy import Policy, ReleaseRules
from kedge.model.release import Release
from kedge.model.run import Run
from kedge.model.trusted import NOT_TRUSTED, OF_RELEASES, UNREACHABLE, ReleaseName, TrustedRelease
from kedge.plan.digest import document_digest
from kedge.trust.provenance import judge_artifacts
from kedge.trust.releases import ReleaseVerdict, judge_release, unproven

PAUSES = (0.3, 1.0, 3.0)
"""Seconds before a repository that does not answer is asked again."""
KEPT = 64

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class ReleaseTrust:
    """What one worker knows of releases. A policy without rules for releases asks for nothing, and nothing is done."""

    releases: Releases
    blobs: Blobs
    evidence: Evidence
    _judged: OrderedDict[tuple[str, Digest, Digest], None] = field(default_factory=OrderedDict)
    """The runs, their plans and the rules under which their release was found good in this process."""
    _authors: OrderedDict[tuple[Digest, Digest], tuple[str, ...]] = field(
        default_factory=OrderedDict
    )
    _sources: OrderedDict[Digest, Artifact] = field(default_factory=OrderedDict)
    """Where the repository has the archives of releases that were found good."""
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def source(self, artifact: Artifact) -> Artifact:
        """The archive with the address under which the repository has it, where that is known."""
        return self._sources.get(artifact.digest, artifact)

    async def judged(self, plan: Plan, rules: ReleaseRules) -> ReleaseVerdict:
        """The verdict on the release a plan goes to. Raises ``DriverError`` of a kind in ``OF_RELEASES``, or NotFound."""
        name = ReleaseName(component=plan.after.component, version=plan.after.version)
        found = await self._trusted(name, rules)
        # Signatures by the dozen take a moment, and sigstore another to load.
        verdict = await asyncio.to_thread(
            judge_release,
            found,
            plan.after,
            rules,
            _now(),
            platforms=frozenset(node.platform for node in plan.nodes),
            bundles=await self.releases.bundles(rules.provenance),
        )
        if verdict.ok:
            self._known(found, rules)
            for attestation in found.attestations:
                await self.blobs.put(attestation.content.encode())
            for paper in found.papers:
                await self.blobs.put(paper)
        return verdict

    async def stands(
        self, run: Run, plan: Plan, rules: ReleaseRules, *, within: float = 2.0
    ) -> None:
        """Raise ``DriverError`` of a kind in ``OF_RELEASES`` unless the release may still be moved to.

        Whatever a start order's verdict was: each worker judges for itself before its first step in a run, and what it
        saw is evidence. From then on the repository is asked whether the release still stands; what was seen ``within``
        so many seconds counts.
        """
        asked = (run.id, run.plan, digest_of(rules))
        async with self._locks.setdefault(run.id, asyncio.Lock()):
            if asked not in self._judged:
                verdict = await self.judged(plan, rules)
                # By its rules: of two workers none must take the place of what the other found by others.
                key = f"release/{run.id}/{asked[2][:16]}"
                await self.note(run.fleet, key, run.id, verdict)
                if not verdict.ok:
                    raise DriverError(NOT_TRUSTED, verdict.said, retryable=False)
                _keep(self._judged, asked, None)
                return
        name = ReleaseName(component=plan.after.component, version=plan.after.version)
        try:
            await self.releases.standing(name, plan.after.document, rules.root, within=within)
        except DriverError as error:
            _raise_of_the_release(error)

    async def authors(self, plan: Plan, policy: Policy) -> tuple[str, ...]:
        """Who made the release of a plan, as person names and fingerprints. Raises as :meth:`judged`."""
        rules = policy.releases
        if rules is None:
            return ()
        known = self._authors.get((rules.root, plan.after.document))
        if known is None:
            name = ReleaseName(component=plan.after.component, version=plan.after.version)
            found = await self._trusted(name, rules)
            if found.digest != plan.after.document:
                said = f"{name} in the repository is another document than the one of the plan"
                raise DriverError(NOT_TRUSTED, said, retryable=False)
            self._known(found, rules)
            known = found.authors
        return known

    async def baseline(
        self, release: Release, policy: Policy, platforms: frozenset[str]
    ) -> str | None:
        """None when a release may be installed where nothing runs yet, else why not. ``platforms`` are the nodes'."""
        rules = policy.releases
        if rules is None:
            return None
        name = ReleaseName(component=release.component, version=release.version)
        try:
            found = await self._trusted(name, rules)
        except DriverError as error:
            return error.message
        if found.digest != document_digest(release):
            return f"{name} in the repository is another document than the one recorded here"
        if rules.provenance is not None:
            wanted = {at: one.digest for at, one in release.artifacts.items() if at in platforms}
            try:
                bundles = await self.releases.bundles(rules.provenance)
            except DriverError as error:
                return error.message
            verdicts = await asyncio.to_thread(
                judge_artifacts, wanted, found.attestations, rules.provenance, _now(), bundles
            )
            wrong = unproven(verdicts, platforms)
            if wrong:
                return wrong[0]
        self._known(found, rules)
        return None

    async def baseline_stands(self, release: Release, policy: Policy) -> str | None:
        """None when a release that was found good may be installed on further nodes, else why not.

        As for steps of a run: what was seen within the last two seconds counts.
        """
        rules = policy.releases
        if rules is None:
            return None
        name = ReleaseName(component=release.component, version=release.version)
        try:
            await self.releases.standing(name, document_digest(release), rules.root)
        except DriverError as error:
            return error.message
        return None

    async def went_back(self, run: Run, plan: Plan, policy: Policy) -> None:
        """Write down how the release that a way back leads to stands. It closes nothing, and waits for nobody."""
        rules = policy.releases
        if rules is None:
            return
        name = ReleaseName(component=plan.before.component, version=plan.before.version)
        record: dict[str, Json] = {
            "what": "release-back", "run": run.id, "release": str(name), "document": plan.before.document,
        }  # fmt: skip
        try:
            async with asyncio.timeout(3):
                stood = await self.releases.standing(name, plan.before.document, rules.root)
            record |= {"stands": True, "versions": stood.versions.model_dump(mode="json")}
        except (DriverError, TimeoutError) as error:
            said = (
                error.message if isinstance(error, DriverError) else "the repository was too slow"
            )
            kind = error.kind if isinstance(error, DriverError) else UNREACHABLE
            record |= {"stands": False, "type": kind, "said": said[:500]}
        await self.evidence.append(run.fleet, f"release-back/{run.id}@{run.epoch}", record)

    async def note(self, fleet: str, key: str, run: str, verdict: ReleaseVerdict) -> None:
        """What was verified about a release is evidence, once per key; a refusal has a key of its own."""
        record: dict[str, Json] = {"at": _now(), "what": "release", "run": run, **verdict.record()}
        await self.evidence.append(fleet, key if verdict.ok else f"{key}/refused", record)

    async def _trusted(self, name: ReleaseName, rules: ReleaseRules) -> TrustedRelease:
        for pause in PAUSES:
            try:
                return await self.releases.trusted(name, rules.root)
            except DriverError as error:
                if error.kind != "Unreachable":
                    _raise_of_the_release(error)
            await asyncio.sleep(pause)
        try:
            return await self.releases.trusted(name, rules.root)
        except DriverError as error:
            _raise_of_the_release(error)

    def _known(self, found: TrustedRelease, rules: ReleaseRules) -> None:
        _keep(self._authors, (rules.root, found.digest), found.authors)
        for artifact in found.artifacts:
            _keep(self._sources, artifact.digest, artifact)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _keep(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    while len(memory) > KEPT:
        memory.popitem(last=False)


def _raise_of_the_release(error: DriverError) -> NoReturn:
    """Raise it as one of the run: whatever is wrong with the repository is not mended by trying on a node again."""
    if error.kind in OF_RELEASES:
        raise error
    raise DriverError(
        UNREACHABLE,
        error.message,
        retryable=False,
        detail=error.detail,
        next_step=error.next_step,
    ) from error
