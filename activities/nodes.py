"""Looking at many nodes in one activity: preflight and fencing, opening a wave, the looks of a bake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from temporalio import activity

from activities import sessions
from activities.errors import saw_of, sentence
from activities.ground import Ground, now
from activities.heartbeats import pulse
from activities.legs import FINALIZE_BEGUN, RESTORE_BEGUN
from activities.looks import sight_of_node
from activities.records import baked, looked, opened
from activities.sessions import each, talk
from kedge.drivers.ports import SessionEnd, SessionRequest
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import Plan, PlannedNode
from kedge.model.run import (
    Checked,
    CheckRequest,
    Failure,
    Observed,
    ObserveRequest,
    Opened,
    OpenRequest,
    Run,
    bounded,
    failure_of_the_run,
)
from kedge.model.trusted import OF_RELEASES
from kedge.plan import availability
from kedge.plan.programs import RUNS
from kedge.plan.render import probes, secrets

BLIP = 5.0
"""Seconds a node may take in a bake to answer well."""

UNSEEN = DriverError(
    "Unseen", f"was not looked at: looking took longer than {sessions.LOOKING:g} s", retryable=True
)


class NodeActivities:
    """Many sessions side by side; what each node says is put together for the workflow."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._read: dict[tuple[str, str, int], tuple[int, frozenset[str]]] = {}
        self._reading = asyncio.Lock()
        self._baked: set[str] = set()
        """The key of the last look of a bake that was written down."""

    # -- preflight and fencing -----------------------------------------------------------------------------------

    @activity.defn
    async def observe_nodes(self, request: ObserveRequest) -> Observed:
        """Raise the fence on these nodes and look at them; with ``probes`` ask the runbook's preflight probes too."""
        plan = await self._allowed(request.run)
        if isinstance(plan, Failure):
            return Observed(problems=(plan,))
        async with pulse():
            looks = await each(
                request.nodes,
                lambda node: self._look(plan, request, node),
                lambda node: (node, _problem(node, plan.nodes[node].name, "session", UNSEEN)),
            )
            begun = await self._begun(plan, request.run)
            first = request.nodes[0] if request.nodes else 0
            await self._ground.note(
                request.run.fleet,
                f"{request.run.id}@{request.run.epoch}/looked-{request.serial}.{activity.info().attempt}/{first}",
                looked(plan, request, looks, activity.info().attempt),
            )
        self._remember(plan, request, looks)
        return _observed(plan, looks, probed=request.probes).model_copy(
            update={"finalized": FINALIZE_BEGUN in begun, "restored": RESTORE_BEGUN in begun}
        )

    def _remember(
        self, plan: Plan, request: ObserveRequest, looks: list[tuple[int, SessionEnd | Failure]]
    ) -> None:
        """A preflight that asks what a node that serves answers is a look at it: it is reused for a moment."""
        known = self._ground.looks.of(request.run, plan)
        told = request.probes and _asks_serving(plan)
        for index, look in looks:
            sight = None if isinstance(look, Failure) else sight_of_node(plan, index, look)
            if sight is None or (sight.serving and not told):
                known.drop(index)
            else:
                known.put(index, sight)

    async def _allowed(self, run: Run, wave: int | None = None) -> Plan | Failure:
        """The plan, when the signatures allow to look at its nodes; otherwise why not.

        Raises ``DriverError`` for what may be otherwise in a moment.
        """
        try:
            await self._ground.authorise(run, wave=wave)
            return await self._ground.plan(run.plan)
        except DriverError as error:
            if error.retryable:
                raise
            return failure_of_the_run(error.kind, error.message, saw=error.detail)

    async def _look(
        self, plan: Plan, request: ObserveRequest, index: int
    ) -> tuple[int, SessionEnd | Failure]:
        node = plan.nodes[index]
        prefix = f"{request.run.id}@{request.run.epoch}/{node.name}/look-{request.serial}.{activity.info().attempt}"
        ops: list[dict[str, Json]] = [{"key": f"{prefix}/observe", "op": "observe"}]
        if request.probes:
            needed = secrets(plan, index, run_id=request.run.id, epoch=request.run.epoch)
            if needed:
                ops.append({"key": f"{prefix}/secrets", "op": "secrets", "secrets": needed})
            asked = probes(plan, index, "preflight", run_id=request.run.id, epoch=request.run.epoch)
            for number, probe in enumerate(asked):
                ops.append({"key": f"{prefix}/preflight-{number}", "op": "probe", "probe": probe})
        try:
            return index, await self._session(request.run, request.serial, node, ops)
        except DriverError as error:
            return index, _problem(index, node.name, "session", error)

    async def _session(
        self, run: Run, serial: int, node: PlannedNode, ops: Iterable[dict[str, Json]]
    ) -> SessionEnd:
        asked = SessionRequest(
            run=run.id, token=(run.epoch, serial, activity.info().attempt), ops=tuple(ops)
        )
        return await talk(self._ground.transport, node, asked)

    async def _begun(self, plan: Plan, run: Run) -> set[str]:
        """What legs wrote down before they acted in the upgrade that is looked at (an earlier one may have had this
        plan too). Every page of the evidence is read once: what was read stays as it is, so the next look begins
        behind it. Nothing is read for a plan that has nothing that would be in there.
        """
        if not any(program.name in ("finalize", "restore") for program in plan.programs):
            return set()
        upgrade = run.snapshots or run.epoch
        asked = (run.fleet, run.plan, upgrade)
        async with self._reading:
            since, known = self._read.get(asked, (0, frozenset()))
            found = set(known)
            while entries := await self._ground.evidence.read(run.fleet, since):
                for entry in entries:
                    record = entry.record
                    if (
                        isinstance(record, dict)
                        and record.get("plan") == run.plan
                        and record.get("upgrade") == upgrade
                    ):
                        found.add(str(record.get("what")))
                since = entries[-1].seq
            if asked not in self._read:
                self._read.clear()
            self._read[asked] = (since, frozenset(found))
        return found

    # -- waves ---------------------------------------------------------------------------------------------------

    @activity.defn
    async def open_wave(self, request: OpenRequest) -> Opened:
        """The wave's nodes in the order its rules give today. Nothing is asked of hosts when it has no rules.

        Who goes last goes in batches of their own behind all others, so that everybody else is through.
        """
        plan = await self._allowed(request.run, request.wave)
        if isinstance(plan, Failure):
            return Opened(failure=plan)
        try:
            async with pulse():
                await self._ground.stands(request.run, within=0.0)
        except DriverError as error:
            if error.kind not in OF_RELEASES:
                raise
            return Opened(failure=failure_of_the_run(error.kind, error.message))
        skip, only = set(request.skip), request.only
        waves = plan.waves[request.wave : request.wave + 1]
        if only is not None:
            waves = plan.waves[: request.wave + 1]
        batches = [
            tuple(node for node in batch if node not in skip and (only is None or node in only))
            for wave in waves
            for batch in wave.batches
        ]
        async with pulse():
            for number, rule in enumerate(plan.waves[request.wave].rules):
                asked = partial(self._holds, request, plan, number)
                every = [node for batch in batches for node in batch]
                holds = dict(await each(every, asked, lambda node: (node, None)))
                # Who may be the leader for all anybody knows goes last too.
                late = {node for node, held in holds.items() if held is None or held == rule.last}
                batches = [
                    *(tuple(node for node in batch if node not in late) for batch in batches),
                    *(tuple(node for node in batch if node in late) for batch in batches),
                ]
            run = request.run
            key = f"{run.id}@{run.epoch}/opened-{request.wave}-{request.serial}.{activity.info().attempt}"
            await self._ground.note(run.fleet, key, opened(plan, request, batches))
        return Opened(batches=tuple(batch for batch in batches if batch))

    async def _holds(
        self, request: OpenRequest, plan: Plan, number: int, index: int
    ) -> tuple[int, bool | None]:
        """Whether an order rule's probe passes on a node; None when that cannot be said."""
        node = plan.nodes[index]
        attempt = activity.info().attempt
        key = f"{request.run.id}@{request.run.epoch}/{node.name}/order-{request.serial}.{attempt}/{number}"
        run = request.run
        rules = probes(plan, index, "rules", wave=request.wave, run_id=run.id, epoch=run.epoch)
        op: dict[str, Json] = {"key": key, "op": "probe", "probe": rules[number]}
        try:
            end = await self._session(request.run, request.serial, node, [op])
        except DriverError:
            return index, None
        error = end.failed.error if end.failed is not None else None
        if error is None:
            return index, end.ok
        said_no = error.type == "ProbeFailed" and error.detail.get("verdict") == "fail"
        return index, False if said_no else None

    @activity.defn
    async def check_nodes(self, request: CheckRequest) -> Checked:
        """One look of a bake: every node of the wave must run and pass the bake's probe within ``BLIP`` seconds."""
        plan = await self._allowed(request.run, request.wave)
        if isinstance(plan, Failure):
            return Checked(failures=(plan,))
        skip = set(request.skip)
        nodes = [node for node in plan.waves[request.wave].nodes if node not in skip]
        async with pulse():
            looks = await each(
                nodes,
                lambda node: self._checked(plan, request, node),
                lambda node: _problem(node, plan.nodes[node].name, "bake", UNSEEN),
            )
        found = [failure for failure in looks if failure is not None]
        failures = [failure for failure in found if failure.type != UNSEEN.kind]
        if found and not failures:
            # Nothing is known against those that were not looked at; but nothing is known for them either.
            said = f"{len(found)} of {len(nodes)} nodes were not looked at within {sessions.LOOKING:g} s"
            failures = [failure_of_the_run(UNSEEN.kind, said)]
        await self._note_bake(request, len(nodes), failures)
        return Checked(
            failures=bounded(tuple(failures)),
            fenced=any(failure.type == "Fenced" for failure in failures),
        )

    async def _note_bake(self, request: CheckRequest, nodes: int, failures: list[Failure]) -> None:
        """Looks that went well become evidence once a minute, those that did not each: a bake may take days."""
        run, at = request.run, now()
        place = f"{run.id}@{run.epoch}/bake-{request.wave}"
        key = (
            f"{place}/{at[:16]}"
            if not failures
            else f"{place}/{request.serial}.{activity.info().attempt}"
        )
        if key in self._baked:
            return
        record = baked(request, nodes, failures, activity.info().attempt)
        await self._ground.note(run.fleet, key, {"at": at, **record})
        self._baked = {key}

    async def _checked(self, plan: Plan, request: CheckRequest, index: int) -> Failure | None:
        node, wave = plan.nodes[index], plan.waves[request.wave]
        prefix = f"{request.run.id}@{request.run.epoch}/{node.name}/bake-{request.serial}.{activity.info().attempt}"
        probe: dict[str, Json] = {"service": {"running": True}}
        run = request.run
        more = probes(plan, index, "bake", wave=wave.index, run_id=run.id, epoch=run.epoch)
        if more:
            probe = {"all": [probe, *more]}
        ops: list[dict[str, Json]] = [
            {
                "key": f"{prefix}/bake",
                "op": "healthy",
                "probe": probe,
                "for": 0,
                "within": BLIP,
                "interval": 0.5,
            }
        ]
        if request.ensure:
            ops.insert(0, {"key": f"{prefix}/ensure", "op": "ensure"})
        try:
            end = await self._session(request.run, request.serial, node, ops)
        except DriverError as error:
            return _problem(index, node.name, "bake", error)
        if any(event.result.get("started") for event in end.done):
            what: dict[str, Json] = {"what": "started", "run": run.id, "node": node.name}
            await self._ground.note(run.fleet, f"{prefix}/started", what)
        fault = end.fault(node.name)
        return _problem(index, node.name, "bake", fault) if fault is not None else None


def _asks_serving(plan: Plan) -> bool:
    """Whether the preflight asks all that a node that serves on the old release must answer."""
    if plan.serving.before is None:
        return True
    asked = [step.params.get("probe") for step in plan.preflight]
    return plan.serving.before in asked or {"all": [RUNS, plan.serving.before]} in asked


def _problem(node: int, name: str, step: str, error: DriverError) -> Failure:
    return Failure(
        node=node, name=name, program="forward", leg=0, step=step, type=error.kind,
        said=sentence(error, name),
        saw=saw_of(error),
    )  # fmt: skip


def _stopped(index: int, name: str) -> Failure:
    return availability.not_serving(index, name, "its daemon does not run", changed=False)


def _observed(
    plan: Plan, looks: list[tuple[int, SessionEnd | Failure]], *, probed: bool
) -> Observed:
    """Sort nodes by the release ``current`` points to. Whatever is not certain is a problem, never a pass."""
    before = {artifact.digest for artifact in plan.before.artifacts}
    after = {artifact.digest for artifact in plan.after.artifacts}
    lists: dict[str, list[int]] = {
        name: [] for name in ("before", "after", "other", "empty", "unreachable")
    }
    stopped: list[int] = []
    started: list[int] = []
    mixed: list[int] = []
    problems: list[Failure] = []
    for index, look in looks:
        if isinstance(look, Failure):
            lists["unreachable"].append(index)
            problems.append(look)
            continue
        fault = look.fault(plan.nodes[index].name)
        if fault is not None:
            problems.append(
                _problem(index, plan.nodes[index].name, "preflight" if probed else "look", fault)
            )
        digest = look.observed.get("release")
        runs = look.observed.get("running_release") or digest
        kind = "before" if digest in before else "after" if digest in after else "other"
        if runs not in before | after:
            kind = "other"
        elif runs != digest:
            mixed.append(index)
        lists["empty" if digest is None else kind].append(index)
        if not look.observed.get("running"):
            stopped.append(index)
            if probed and fault is None and digest is not None:
                problems.append(_stopped(index, plan.nodes[index].name))
        # A host that does not say what it started last is taken to have started what it is on.
        if look.observed.get("started_release", digest) in after:
            started.append(index)
        if kind == "other" and (fault is None or digest is not None):
            said = (
                "runs a release this plan does not know" if digest else "has no release installed"
            )
            error = DriverError(
                "UnknownRelease", f"{plan.nodes[index].name} {said}", retryable=False
            )
            problems.append(
                _problem(index, plan.nodes[index].name, "preflight" if probed else "look", error)
            )
    return Observed(
        before=tuple(lists["before"]),
        after=tuple(lists["after"]),
        other=tuple(lists["other"]),
        empty=tuple(lists["empty"]),
        unreachable=tuple(lists["unreachable"]),
        stopped=tuple(stopped),
        started_after=tuple(started),
        mixed=tuple(mixed),
        problems=bounded(tuple(problems)),
        fenced=any(problem.type == "Fenced" for problem in problems),
    )
