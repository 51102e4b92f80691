"""The desk: everything a face may ask for, as typed asynchronous functions.

It is the composition for people's faces: it loads the settings, opens the stores of the home, and connects
to Temporal when a question needs it. It decides nothing; faces format what it answers. Every error that
leaves it is of the ``KedgeError`` tree.
"""
# ruff: noqa: PLC0415 - Temporal's client and the compiler are loaded by those who need them

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from desk import orders as desk_orders
from desk.orders import Asked, Draft
from kedge.drivers.registry import Drivers, DriverSettings, open_drivers
from kedge.model.base import Digest, Frozen, canonical
from kedge.model.errors import (
    DocumentError,
    DriverError,
    EngineError,
    PlanError,
    SettingsError,
)
from kedge.model.order import Envelope, EvidenceSeen
from kedge.model.plan import Artifact, Plan
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.run import EnsureResult, Submitted
from kedge.model.status import FleetStatus, RunStatus
from kedge.model.trusted import ReleaseName
from kedge.trust.leases import LEASE
from worker.settings import Settings
from worker.settings import SettingsError as SettingsMistake

if TYPE_CHECKING:
    from desk.releases import ReleaseDesk
    from desk.runs import Runs, RunSummary
    from desk.up import Place, Say, Stopped
    from desk.views import RunView
    from kedge.model.fleet import Fleet
    from kedge.plan.parse import Parsed


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class PlanFiles(Frozen):
    """The documents a plan is made from.

    ``before`` is the release that runs now, where that is not what the fleet's document says.
    """

    fleet: Path
    release: Path
    runbook: Path
    policy: Path
    before: Path | None = None


class MadePlan(Frozen):
    """A plan and the digest that people sign; ``policy`` is the one it was made with, ``archives`` are those that its
    nodes need, with where they lie.
    """

    plan: Plan
    digest: Digest
    policy: Policy
    archives: tuple[Artifact, ...] = ()


class Desk:
    """One home, seen from a face. Functions may be called in any order; a connection is made when needed."""

    def __init__(self, settings: Settings, drivers: Drivers) -> None:
        """Built by :meth:`open`; tests may hand in other stores. Of all drivers a face uses the stores alone."""
        self.settings = settings
        self.evidence = drivers.evidence
        self.artifacts = drivers.artifacts
        self.releases = drivers.releases
        self.blobs = drivers.blobs
        self.pins = drivers.pins
        self.fleets = drivers.fleets
        self._runs: Runs | None = None

    @classmethod
    def open(cls, home: Path | None = None) -> Desk:
        """The desk of a home; ``None``: the one that the settings name. Raises ``SettingsError``."""
        try:
            settings = Settings.load(home)
        except SettingsMistake as error:
            raise SettingsError(str(error)) from error
        # Nothing is started here.
        drivers = open_drivers(
            DriverSettings(
                home=settings.home,
                policies=settings.policy_dir,
                repository=settings.release_repository,
                evidence_url=settings.evidence_url,
            )
        )
        return cls(settings, drivers)

    # -- the connection ---------------------------------------------------------------------------

    async def runs(self) -> Runs:
        """Questions and orders over a connection, which is made when there is none. Raises ``EngineError``."""
        if self._runs is None:
            # The client of Temporal takes half a second to load: only who talks to it pays.
            from desk.runs import Runs, quiet_runtime
            from desk.up import engine_error
            from worker.client import EngineUnreachableError, connect

            try:
                client = await connect(self.settings, runtime=quiet_runtime())
            except EngineUnreachableError as error:
                raise engine_error(error) from error
            self._runs = Runs(client, self.settings.task_queue, self._worker_runs)
        return self._runs

    def _worker_runs(self) -> bool:
        """Whether this home's own worker runs. For a cluster elsewhere there need not be one."""
        from worker.background import BackgroundWorker

        return not self.settings.embedded or BackgroundWorker(self.settings).state() is not None

    def release_desk(self) -> ReleaseDesk:
        """The release repository, for its keepers and its readers."""
        from desk.releases import ReleaseDesk

        return ReleaseDesk(self.releases, self.settings.release_repository)

    def release_desk_at(self, location: str) -> ReleaseDesk:
        """The same for a repository elsewhere: a folder or an address. Raises ``SettingsError``."""
        from desk.releases import ReleaseDesk
        from kedge.drivers.tuf_releases import TufReleases

        try:
            settings = Settings.load(self.settings.home, release_repository=location)
        except SettingsMistake as error:
            raise SettingsError(str(error)) from error
        place = settings.release_repository
        return ReleaseDesk(TufReleases(place, settings.home / "trust" / "releases"), place)

    def hang_up(self) -> None:
        """Forgets the connection; the next question makes a new one."""
        self._runs = None

    # -- questions --------------------------------------------------------------------------------

    async def status_of(self, run: str) -> RunStatus:
        """What a run says of itself. Raises ``NotFound``, or ``EngineError``."""
        return await (await self.runs()).status(run)

    async def fleet_status(self, fleet: str) -> FleetStatus:
        """What a fleet's workflow says. Raises ``NotFound`` before its first order, or ``EngineError``.

        Where the record has leases and Temporal has no workflow any more, that is begun anew, by the record.
        """
        runs = await self.runs()
        try:
            return await runs.fleet(fleet)
        except DriverError as error:
            if error.kind != "NotFound" or not await self._was_leased(fleet):
                raise
        await runs.begin(fleet)
        return await runs.fleet(fleet)

    async def _was_leased(self, fleet: str) -> bool:
        try:
            return bool(await self.evidence.under(fleet, LEASE, 1))
        except DriverError:
            return False

    async def fleet_or_new(self, fleet: str) -> FleetStatus:
        """As :meth:`fleet_status`; a fleet that is known here and was never ordered about is new, not missing."""
        try:
            return await self.fleet_status(fleet)
        except DriverError:
            if await self.fleets.known(fleet) is None:
                raise
        return FleetStatus(fleet=fleet, epoch=0, holder=None, last=None, release=None)

    async def every_run(self, fleet: str | None = None) -> tuple[RunSummary, ...]:
        """All runs, or those of one fleet, newest first. Raises ``EngineError``, or ``NotFound`` for no name."""
        if fleet is not None and not _NAME.fullmatch(fleet):
            # It becomes part of a query: nothing but a name gets there.
            raise DriverError("NotFound", f"no fleet has the name {fleet!r}", retryable=False)
        return await (await self.runs()).every(fleet)

    def watch(self, run: str) -> AsyncIterator[RunView]:
        """Views of a run until it is over, through restarts of the engine (:func:`desk.watch.watch`)."""
        from desk.watch import watch

        return watch(self, run)

    async def plan(self, digest: str) -> Plan:
        """The plan under a digest in this home's store. Raises ``DriverError`` kind ``NotFound``."""
        try:
            return Plan.model_validate_json(await self.blobs.get(digest))
        except ValidationError as error:
            raise DriverError(
                "NotFound", f"what is stored under {digest[:12]} is not a plan", retryable=False
            ) from error

    def make_plan(self, files: PlanFiles) -> MadePlan:
        """The plan of document files. Needs no engine and keeps nothing.

        Raises ``DocumentError`` with every problem of every file.
        """
        from desk import documents
        from kedge.plan.digest import plan_digest

        found = documents.read_documents(
            files.fleet,
            files.release,
            files.runbook,
            files.policy,
            before_path=files.before,
            repository=self._signed,
        )
        plan = documents.compiled(found)
        platforms = {node.platform for node in plan.nodes}
        return MadePlan(
            plan=plan,
            digest=plan_digest(plan),
            policy=found.policy,
            archives=(*_archives(found.before, platforms), *_archives(found.after, platforms)),
        )

    async def check_startable(self, made: MadePlan) -> None:
        """Raises ``PlanError`` when the fleet is known to run another release than the plan starts from.

        A fleet's document may still name the release it began with; the fleet's workflow knows better.
        """
        try:
            fleet = await self.fleet_status(made.plan.fleet.name)
        except DriverError:
            return  # its first order is yet to come
        if fleet.release is not None and fleet.release_document != made.plan.before.document:
            raise PlanError(
                f"fleet {fleet.fleet} runs {fleet.release} since {fleet.last}, "
                f"but the plan starts from {made.plan.before.version}",
                next_step="name the release that runs now with --from FILE",
            )

    async def keep_plan(self, made: MadePlan) -> str:
        """Stores a plan and the archives its nodes need, by digest; the plan's is what orders and runs name.

        Raises ``DriverError`` (``NotFound``, ``DigestMismatch``) for an archive that is not what its release says.
        """
        for archive in made.archives:
            await self.artifacts.keep(archive)
        return await self.blobs.put(canonical(made.plan))

    async def make_known(
        self, fleet_file: Path, policy_file: Path | None, *, as_owner: bool = False
    ) -> str:
        """Records a fleet, with the release it runs now, and pins its policy. Returns the fleet's name.

        Raises ``DocumentError`` with every problem of the documents before anything is recorded, and ``PlanError`` for a
        policy that does not follow from the one that is pinned (:func:`desk.policies.pin`).
        """
        from desk import documents
        from desk import policies as desk_policies
        from kedge.trust.policies import read_policy

        problems = list(documents.lint([fleet_file]))
        document = None
        try:
            document = desk_policies.read_document(policy_file) if policy_file else None
        except DocumentError as error:
            problems += error.problems
        if problems:
            raise DocumentError(tuple(problems))
        fleet = documents.read_fleet(fleet_file)
        name = fleet.value.name
        await self._has_its_own_places(fleet)
        if document is not None:
            environment = read_policy(document.policy).environment
            if environment != fleet.value.environment:
                said = f"{policy_file}: environment: is {environment}, but fleet {name} is in {fleet.value.environment}"
                raise DocumentError((said,))
            await desk_policies.pin(self.pins, name, document, as_owner=as_owner)
        elif await self.policy(name) is None:
            raise PlanError(
                f"no policy is pinned for fleet {name}, so nobody could start or approve anything",
                next_step="add --policy FILE",
            )
        signed = partial(self._signed, root=await self._release_root(name))
        baseline = await asyncio.to_thread(documents.read_baseline, fleet, signed)
        for archive in _archives(baseline.value, {node.platform for node in fleet.value.nodes}):
            await self.artifacts.keep(archive)
        await self.fleets.remember(name, fleet.value, baseline.value)
        return name

    async def _has_its_own_places(self, fleet: Parsed[Fleet]) -> None:
        """Raises ``DocumentError`` where a fleet would share a root or a port with another one that is recorded here."""
        from kedge.model.fleet import Fleet
        from kedge.plan.places import shared_places

        others = [
            Fleet.model_validate_json(await self.blobs.get(record.document))
            for record in await self.fleets.every()
            if record.fleet != fleet.value.name
        ]
        problems = shared_places(fleet.value, others)
        if problems:
            raise DocumentError(
                tuple(fleet.problem(path, said) for path, said in problems),
                next_step="give this fleet roots and ports of its own. A fleet that is gone for good is forgotten when its"
                f" file in {self.settings.home / 'fleets'} is removed",
            )

    def _signed(self, name: ReleaseName, root: Digest | None = None) -> str:
        return self.releases.read(name, root).document

    async def _release_root(self, fleet: str) -> Digest | None:
        """The root that the fleet's policy names, if it does."""
        policy = await self.policy(fleet)
        return policy.releases.root if policy is not None and policy.releases is not None else None

    async def policy(self, fleet: str) -> Policy | None:
        """The policy pinned for a fleet on this machine, if one is."""
        try:
            return await self.pins.policy(fleet)
        except DriverError as error:
            if error.kind == "NotFound":
                return None
            raise

    # -- orders -----------------------------------------------------------------------------------

    async def draft_start(
        self, asked: Asked, plan: str, *, policy: Policy | None = None, carried: bool = False
    ) -> Draft:
        """An order to start a stored plan; what is shown is the plan. Raises ``NotFound`` when it is not stored."""
        if not await self.blobs.has(plan):
            raise DriverError(
                "NotFound",
                f"no plan {plan[:12]} is stored in {self.settings.home}",
                retryable=False,
                next_step="give the four documents instead of --plan",
            )
        life = desk_orders.life_of(
            asked, policy or await self.policy(_fleet_of(asked.target)), carried=carried
        )
        seen = await self.seen(_fleet_of(asked.target))
        return desk_orders.draft(asked, plan=plan, shown=plan, subject="", life=life, evidence=seen)

    async def draft_rollback(self, asked: Asked, *, carried: bool = False) -> Draft:
        """An order to take a fleet back: it names the plan of the run that holds the fleet, or of the last one."""
        name = _fleet_of(asked.target)
        fleet = await self.fleet_status(name)
        plan = desk_orders.plan_to_undo(fleet)
        life = desk_orders.life_of(asked, await self.policy(name), carried=carried)
        run = fleet.holder or fleet.last or ""
        about: tuple[str, ...] = (f"takes back what {run} did" if run else "",)
        with contextlib.suppress(DriverError, EngineError):
            # Only words: a rollback must be possible whatever the run in trouble answers.
            status = await (await self.runs()).status(run, seconds=3)
            about += desk_orders.in_words(status)
        seen = await self.seen(name)
        return desk_orders.draft(
            asked, plan=plan, shown=plan, subject="", about=about, life=life, evidence=seen
        )

    async def draft_review(self, asked: Asked, *, carried: bool = False) -> Draft:
        """A signature under what somebody broke the glass for, in the run that is asked about."""
        name = _fleet_of(asked.target)
        review = desk_orders.about_review(await self.fleet_status(name), asked.subject)
        life = desk_orders.life_of(asked, await self.policy(name), carried=carried)
        return desk_orders.draft(
            asked,
            plan=review.plan,
            shown=review.shown,
            subject=review.run,
            about=desk_orders.review_words(review),
            life=life,
        )

    async def draft_for_run(self, asked: Asked, *, carried: bool = False) -> Draft:
        """An order to a run, over what that run shows now. Raises as :func:`desk.orders.about_run`."""
        status = await self.status_of(asked.target)
        subject, shown, showing = desk_orders.about_run(asked, status)
        life = desk_orders.life_of(asked, await self.policy(status.fleet), carried=carried)
        return desk_orders.draft(
            asked,
            plan=status.plan,
            shown=shown,
            subject=subject,
            showing=showing,
            about=() if showing is not None else desk_orders.in_words(status),
            life=life,
            evidence=status.evidence or await self.seen(status.fleet),
        )

    async def seen(self, fleet: str) -> EvidenceSeen | None:
        """The end of a fleet's evidence in this home's store, which whoever signs something now names; None: none here.

        An order must be possible whatever became of the store: what the order then lacks is for the worker to judge.
        """
        try:
            head = await self.evidence.head(fleet)
        except DriverError:
            return None
        return EvidenceSeen(seq=head.seq, hash=head.hash) if head.seq else None

    async def submit(self, target: str, envelope: Envelope) -> Submitted:
        """Sends an order as an update and waits for the verdict. Raises ``NotFound`` or ``EngineError``."""
        return await (await self.runs()).submit(target, envelope)

    async def signal(self, target: str, envelope: Envelope) -> None:
        """Sends an order as a plain signal; nobody waits for the verdict."""
        await (await self.runs()).signal(target, envelope)

    # -- the home ---------------------------------------------------------------------------------

    async def start_up(self, say: Say, *, worker: bool = True) -> Place:
        """Starts engine and worker where they do not run (:func:`desk.up.start`). Raises ``EngineError``."""
        from desk import up as desk_up

        place = await desk_up.start(self.settings, say, worker=worker)
        self.hang_up()
        return place

    async def shut_down(self) -> Stopped:
        """Stops worker and engine; nodes go on. Raises ``EngineError``."""
        from desk import up as desk_up

        self.hang_up()
        return await desk_up.stop(self.settings)

    async def ensure(self, fleet: str) -> EnsureResult:
        """Brings up what should run on a fleet's nodes."""
        return await (await self.runs()).ensure(fleet)

    async def look(self, fleet: str) -> EnsureResult:
        """How a fleet's nodes are now."""
        return await (await self.runs()).look(fleet)


def _archives(release: Release, platforms: set[str]) -> tuple[Artifact, ...]:
    """The archives of a release for these platforms."""
    return tuple(
        Artifact.of(platform, item)
        for platform, item in sorted(release.artifacts.items())
        if platform in platforms
    )


def _fleet_of(target: str) -> str:
    return target.removeprefix("fleet/")
