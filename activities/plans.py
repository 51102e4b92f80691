"""Plans, read and asked: what a workflow needs of them, and the way back."""

from __future__ import annotations

from temporalio import activity

from activities.admission import Admissions
from activities.ground import Ground
from activities.heartbeats import pulse
from kedge.model.plan import Plan, ProgramName
from kedge.model.run import LegFacts, PlanFacts, ReturnRequest, WaveFacts
from kedge.plan.wayback import Return, choose_around
from kedge.trust.wholeness import is_automatic

MARGIN = 60.0
"""Seconds a leg may take beyond the sum of its steps' time-outs: the connection, the lock, the journal."""


class PlanActivities:
    """Questions to the pure core that need the whole plan."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._admissions = Admissions(ground)

    @activity.defn
    async def plan_facts(self, digest: str) -> PlanFacts:
        """The little a workflow needs of a plan."""
        async with pulse():
            return facts_of(await self._ground.plan(digest))

    @activity.defn
    async def choose_way_back(self, request: ReturnRequest) -> Return:
        """Decide the way back from what the record has of every node, and write the decision down."""
        async with pulse():
            run, plan = request.run, await self._ground.plan(request.run.plan)
            await self._ground.went_back(run)
            seen, given_up = await self._admissions.seen(run, plan)
            choice = choose_around(
                plan,
                seen,
                # Who asks may leave nodes out, and adds none.
                unseen=tuple(sorted({*seen.unreachable, *request.unseen})),
                given_up=given_up,
                automatic=is_automatic(run.id),
            )
            return await self._admissions.decided(run, choice)


def facts_of(plan: Plan) -> PlanFacts:
    """A plan without its nodes."""
    commit = plan.commit
    waves = []
    for at, wave in enumerate(plan.waves):
        gates = [*(plan.moved_gates if at == 0 else ()), *([wave.gate] if wave.gate else [])]
        if commit is not None and commit.wave == at and commit.gate not in gates:
            gates.append(commit.gate)
        waves.append(
            WaveFacts(
                name=wave.name,
                size=len(wave.nodes),
                parallel=wave.max_unavailable,
                gates=tuple(gates),
                bake=wave.bake.duration if wave.bake else 0.0,
                interval=wave.bake.interval if wave.bake else 5.0,
            )
        )
    legs: dict[ProgramName, tuple[LegFacts, ...]] = {
        program.name: tuple(
            LegFacts(
                timeout=sum(step.timeout for step in leg.steps) + MARGIN,
                attempts=leg.attempts,
                backoff=leg.backoff,
            )
            for leg in program.legs
        )
        for program in plan.programs
    }
    finalize = bool(legs.get("finalize"))
    return PlanFacts(
        nodes=len(plan.nodes),
        before=plan.before.version,
        after=plan.after.version,
        before_document=plan.before.document,
        after_document=plan.after.document,
        start_gate=plan.start_gate,
        waves=tuple(waves),
        gates=plan.gates,
        legs=legs,
        commit=commit,
        finalize_node=plan.waves[0].nodes[0] if finalize else None,
        failure_budget=plan.failure_budget,
        on_failure=plan.on_failure,
        way_back=plan.way_back,
        policy=plan.policy.digest,
    )
