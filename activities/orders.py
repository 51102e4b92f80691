"""Orders verified against the policy pinned on this worker, and what was decided written down."""

from __future__ import annotations

from temporalio import activity

from activities.ground import Ground
from kedge.model.base import canonical, digest_of
from kedge.model.errors import DriverError, OrderError
from kedge.model.order import OrderVerdict
from kedge.model.run import JudgeRequest, Note, Warrant, WarrantUpdate
from kedge.trust.orders import judge, read, refused


class OrderActivities:
    """Verification is here and not in workflows, because the policy is the worker's own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    @activity.defn
    async def judge_order(self, request: JudgeRequest) -> OrderVerdict:
        """The verdict about an order; every verdict is evidence before it is answered."""
        verdict = await self._judged(request)
        await self._ground.note_verdict(request.fleet, verdict)
        return verdict

    async def _judged(self, request: JudgeRequest) -> OrderVerdict:
        try:
            policy = await self._ground.pins.policy(request.fleet)
        except DriverError as error:
            return refused(
                request.envelope,
                "policy",
                f"no policy is pinned for fleet {request.fleet}: {error.message}",
            )
        expected = request.expected
        if request.any_plan:
            try:
                named = read(request.envelope).plan
                plan = await self._ground.plan(named)
            except OrderError as error:
                return refused(request.envelope, "unreadable", error.message)
            except DriverError:
                return refused(
                    request.envelope, "plan", "the plan this order names is not in the store"
                )
            except ValueError:
                return refused(
                    request.envelope,
                    "plan",
                    "what is stored under this order's plan digest is no plan",
                )
            if plan.fleet.name != request.fleet:
                return refused(request.envelope, "plan", f"the plan is for fleet {plan.fleet.name}")
            if plan.policy.digest != digest_of(policy):
                said = "the plan was made with another policy than the one pinned for this fleet: make it again"
                return refused(request.envelope, "policy", said)
            expected = expected.model_copy(update={"plan": named})
        return judge(request.envelope, expected, policy, signed=request.signed, gate=request.gate)

    @activity.defn
    async def write_warrant(self, update: WarrantUpdate) -> str:
        """Store a warrant and return its digest."""
        if update.start is not None:
            warrant = Warrant(start=update.start)
        else:
            base = update.base or ""
            warrant = Warrant.model_validate_json(await self._ground.blobs.get(base))
        if update.gate is not None:
            approvals = {**warrant.approvals, update.gate: update.approvals}
            warrant = warrant.model_copy(update={"approvals": approvals})
        return await self._ground.blobs.put(canonical(warrant))

    @activity.defn
    async def record(self, note: Note) -> None:
        """Append a decision of a workflow to the fleet's evidence."""
        await self._ground.note(
            note.run.fleet, note.key, {"run": note.run.id, "epoch": note.run.epoch, **note.record}
        )
