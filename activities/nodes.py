"""Looking at many nodes in one activity: preflight and fencing, opening a wave, the looks of a bake."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from temporalio import activity

from activities import sessions
from activities.admission import Admissions, Token
from activities.errors import saw_of, sentence
from activities.ground import Ground, goes_back
from activities.heartbeats import pulse
from activities.leases import FleetLeases
from activities.legs import FINALIZE_BEGUN, RESTORE_BEGUN
from activities.looks import sight_of_node
from activities.recorded import moment
from activities.records import baked, edits_in, looked, opened
from activities.sessions import each, talk
from kedge.drivers.ports import SessionEnd, SessionRequest
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import Plan, PlannedNode
from kedge.model.run import (
    MAX_EPOCH,
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
from kedge.plan.sights import configuration_of, sorted_sights
from kedge.trust.leases import FENCE, MAX_STEP

BLIP = 5.0
"""Seconds a node may take in a bake to answer well."""

UNSEEN = DriverError(
    "Unseen", f"was not looked at: looking took longer than {sessions.LOOKING:g} s", retryable=True
)


class NodeActivities:
    """Many sessions side by side; what each node says is put together for the workflow."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._admissions = Admissions(ground)
        self._leases = FleetLeases(ground)

    # -- preflight and fencing -----------------------------------------------------------------------------------

    @activity.defn
    async def observe_nodes(self, request: ObserveRequest) -> Observed:
        """Raise the fence on these nodes and look at them; with ``probes`` ask the runbook's preflight probes too."""
        plan = await self._allowed(request.run)
        if isinstance(plan, Failure):
            return Observed(problems=(plan,))
        try:
            tokens = await self._tokens(plan, request)
        except DriverError as error:
            if error.retryable:
                raise
            return Observed(problems=(failure_of_the_run(error.kind, error.message),))
        async with pulse():
            looks = await each(
                request.nodes,
                lambda node: self._look(plan, request, node, tokens),
                lambda node: (node, _problem(node, plan.nodes[node].name, "session", UNSEEN)),
            )
            found = _observed(plan, looks, probed=request.probes)
            token = max(tokens.values(), default=(request.run.epoch, 0, 1))
            await self._ground.note(
                request.run.fleet,
                f"{request.run.id}@{request.run.epoch}/looked-{_task()}",
                {**moment(), **looked(plan, request, looks, found, token)},
                strict=True,
            )
            fence = await self._fences_found(request.run, found)
        self._remember(plan, request, looks)
        begun = await self._admissions.marks(request.run)
        return found.model_copy(
            update={
                "finalized": FINALIZE_BEGUN in begun,
                "restored": RESTORE_BEGUN in begun,
                "fenced": found.fenced and await self._admissions.overtaken(request.run),
                "unknown_fence": fence,
            }
        )

    async def _tokens(self, plan: Plan, request: ObserveRequest) -> dict[int, Token]:
        """With which token each node is looked at. A rollback raises the fence above everything that was admitted."""
        run = request.run
        if goes_back(run.id):
            token = (run.epoch, await self._admissions.fence(run), activity.info().attempt)
            return dict.fromkeys(request.nodes, token)
        return await self._admissions.tokens_of(run, plan, request.nodes)

    async def _fences_found(self, run: Run, seen: Observed) -> int:
        """The highest fence on these hosts that no lease in the record has; 0 when there is none above this run's.

        It is written down: the next lease is above it.
        """
        found = [(failure.name, *_fence_of(failure)) for failure in seen.problems]
        above = {epoch: (name, by) for name, epoch, by in found if epoch > run.epoch}
        if not above:
            return 0
        leases = await self._leases.of(run.fleet)
        known = {one.epoch for one in leases.granted}
        for epoch in sorted(set(above) - known):
            name, by = above[epoch]
            record: dict[str, Json] = {
                "what": "fence-found", "run": run.id, "node": name, "epoch": epoch, "by": by,
            }  # fmt: skip
            await self._ground.note(run.fleet, f"{FENCE}{epoch}/{name}", record)
        highest = leases.highest(int(time.time()))
        return max((one for one in set(above) - known if one - highest <= MAX_STEP), default=0)

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
        self, plan: Plan, request: ObserveRequest, index: int, tokens: Mapping[int, Token]
    ) -> tuple[int, SessionEnd | Failure]:
        node = plan.nodes[index]
        prefix = f"{request.run.id}@{request.run.epoch}/{node.name}/look-{_task()}"
        of = partial(probes, plan, index, run_id=request.run.id, epoch=request.run.epoch)
        ops = self._preflight(plan, request, index, prefix, of("preflight"))
        try:
            end = await self._session(request.run, tokens[index], node, ops)
            if request.probes and end.failed is not None and _moved_already(plan, end):
                # It was moved before this run began: it answers as the new release does.
                after: dict[str, Json] = {"all": [RUNS, *of("after")]}
                ops = self._preflight(plan, request, index, f"{prefix}/moved", (after,))
                end = await self._session(request.run, tokens[index], node, ops)
        except DriverError as error:
            return index, _problem(index, node.name, "session", error)
        return index, end

    def _preflight(
        self,
        plan: Plan,
        request: ObserveRequest,
        index: int,
        prefix: str,
        asked: Iterable[Json],
    ) -> list[dict[str, Json]]:
        """What a look asks a node: how it stands and, where ``request`` has probes, these."""
        ops: list[dict[str, Json]] = [{"key": f"{prefix}/observe", "op": "observe"}]
        if not request.probes:
            return ops
        needed = secrets(plan, index, run_id=request.run.id, epoch=request.run.epoch)
        if needed:
            ops.append({"key": f"{prefix}/secrets", "op": "secrets", "secrets": needed})
        for number, probe in enumerate(asked):
            ops.append({"key": f"{prefix}/preflight-{number}", "op": "probe", "probe": probe})
        return ops

    async def _session(
        self, run: Run, token: Token, node: PlannedNode, ops: Sequence[dict[str, Json]]
    ) -> SessionEnd:
        look = all(op["op"] != "ensure" for op in ops)
        asked = SessionRequest(run=run.id, token=token, ops=tuple(ops), look=look)
        return await talk(self._ground.transport, node, asked)

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
            every = tuple(node for batch in batches for node in batch)
            tokens: Mapping[int, Token] = {}
            if plan.waves[request.wave].rules:
                tokens = await self._admissions.tokens_of(request.run, plan, every)
            for number, rule in enumerate(plan.waves[request.wave].rules):
                asked = partial(self._holds, request, plan, number, tokens)
                holds = dict(await each(every, asked, lambda node: (node, None)))
                # Who may be the leader for all anybody knows goes last too.
                late = {node for node, held in holds.items() if held is None or held == rule.last}
                batches = [
                    *(tuple(node for node in batch if node not in late) for batch in batches),
                    *(tuple(node for node in batch if node in late) for batch in batches),
                ]
            run = request.run
            key = f"{run.id}@{run.epoch}/opened-{request.wave}-{_task()}"
            await self._ground.note(run.fleet, key, opened(plan, request, batches))
        return Opened(batches=tuple(batch for batch in batches if batch))

    async def _holds(
        self,
        request: OpenRequest,
        plan: Plan,
        number: int,
        tokens: Mapping[int, Token],
        index: int,
    ) -> tuple[int, bool | None]:
        """Whether an order rule's probe passes on a node; None when that cannot be said."""
        node = plan.nodes[index]
        key = f"{request.run.id}@{request.run.epoch}/{node.name}/order-{_task()}/{number}"
        run = request.run
        rules = probes(plan, index, "rules", wave=request.wave, run_id=run.id, epoch=run.epoch)
        op: dict[str, Json] = {"key": key, "op": "probe", "probe": rules[number]}
        try:
            end = await self._session(request.run, tokens[index], node, [op])
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
        run = request.run
        try:
            looking = await self._admissions.bake(run, request.wave)
        except DriverError as error:
            if error.retryable:
                raise
            failure = failure_of_the_run(error.kind, error.message)
            return Checked(failures=(failure,), fenced=error.kind == "Fenced")
        index = {node.name: at for at, node in enumerate(plan.nodes)}
        nodes = tuple(index[name] for name in looking.nodes)
        tokens = await self._admissions.tokens_of(run, plan, nodes)
        async with pulse():
            looks = await each(
                nodes,
                lambda node: self._checked(plan, request, node, tokens, ensure=looking.ensure),
                lambda node: _problem(node, plan.nodes[node].name, "bake", UNSEEN),
            )
        found = [failure for failure in looks if failure is not None]
        failures = [failure for failure in found if failure.type != UNSEEN.kind]
        if found and not failures:
            # Nothing is known against those that were not looked at; but nothing is known for them either.
            said = f"{len(found)} of {len(nodes)} nodes were not looked at within {sessions.LOOKING:g} s"
            failures = [failure_of_the_run(UNSEEN.kind, said)]
        token = max(tokens.values(), default=(run.epoch, 0, 1))
        record = {**moment(), **baked(plan, request.run, request.wave, looking, failures, token)}
        key = f"{run.id}@{run.epoch}/bake-{request.wave}/{_task()}"
        await self._ground.note(run.fleet, key, record, strict=True)
        return Checked(
            failures=bounded(tuple(failures)),
            fenced=any(failure.type == "Fenced" for failure in failures)
            and await self._admissions.overtaken(run),
            passed=not failures and await self._admissions.baked(run, request.wave),
        )

    async def _checked(
        self,
        plan: Plan,
        request: CheckRequest,
        index: int,
        tokens: Mapping[int, Token],
        *,
        ensure: bool,
    ) -> Failure | None:
        node, wave = plan.nodes[index], plan.waves[request.wave]
        prefix = f"{request.run.id}@{request.run.epoch}/{node.name}/bake-{_task()}"
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
        if ensure:
            ops.insert(0, {"key": f"{prefix}/ensure", "op": "ensure"})
        try:
            end = await self._session(request.run, tokens[index], node, ops)
        except DriverError as error:
            return _problem(index, node.name, "bake", error)
        if any(event.result.get("started") for event in end.done):
            what: dict[str, Json] = {"what": "started", "run": run.id, "node": node.name}
            await self._ground.note(run.fleet, f"{prefix}/started", what)
        fault = end.fault(node.name)
        if fault is None:
            return None
        reported = fault.kind != "Fenced"
        return _problem(index, node.name, "bake", fault).model_copy(update={"reported": reported})


def _task() -> str:
    """What nobody else's activity has in its keys: the server gives each run of a workflow a name of its own."""
    info = activity.info()
    return f"{info.workflow_run_id}.{info.activity_id}.{info.attempt}"


def _asks_serving(plan: Plan) -> bool:
    """Whether the preflight asks all that a node that serves on the old release must answer."""
    if plan.serving.before is None:
        return True
    asked = [step.params.get("probe") for step in plan.preflight]
    return plan.serving.before in asked or {"all": [RUNS, plan.serving.before]} in asked


def _moved_already(plan: Plan, end: SessionEnd) -> bool:
    """Whether a node that did not pass runs the new release, and was only asked what the old one answers.

    A preflight that the runbook writes is asked of every node as it stands there.
    """
    old = plan.serving.before
    derived = old is not None and [step.params.get("probe") for step in plan.preflight] == [
        {"all": [RUNS, old]}
    ]
    release = end.observed.get("release")
    running = end.observed.get("running_release") or release
    return derived and release == running in {one.digest for one in plan.after.artifacts}


def _fence_of(failure: Failure) -> tuple[int, str]:
    """The epoch of the fence that kept a session out, and the run that raised it as the host says; 0 for other failures."""
    fence, by = failure.saw.get("fence"), failure.saw.get("run")
    epoch = fence[0] if failure.type == "Fenced" and isinstance(fence, list) and fence else 0
    return (epoch if type(epoch) is int and epoch <= MAX_EPOCH else 0), str(by)[:200]


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
    problems: list[Failure] = []
    sights: dict[int, Mapping[str, Json]] = {}
    step = "preflight" if probed else "look"
    for index, look in looks:
        if isinstance(look, Failure):
            problems.append(look)
            continue
        name = plan.nodes[index].name
        fault = look.fault(name)
        if fault is not None:
            problems.append(_problem(index, name, step, fault))
        against = configuration_of(look.observed, edited=edits_in(look))
        sights[index] = {**look.observed, "configuration": list[Json](against)}
        digest = look.observed.get("release")
        if not look.observed.get("running") and probed and fault is None and digest is not None:
            problems.append(_stopped(index, name))
        other = index in sorted_sights(plan, {index: look.observed}).other or digest is None
        if other and (fault is None or digest is not None):
            said = (
                "runs a release this plan does not know" if digest else "has no release installed"
            )
            error = DriverError("UnknownRelease", f"{name} {said}", retryable=False)
            problems.append(_problem(index, name, step, error))
    unreachable = tuple(index for index, look in looks if isinstance(look, Failure))
    return sorted_sights(plan, sights).model_copy(
        update={
            "unreachable": unreachable,
            "problems": bounded(tuple(problems)),
            "fenced": any(problem.type == "Fenced" for problem in problems),
        }
    )
