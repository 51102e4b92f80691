"""``look_nodes``: whether nodes serve now, a chunk of them in one activity."""

from __future__ import annotations

from temporalio import activity

from activities.ground import Ground
from activities.heartbeats import pulse
from activities.looks import RunLooks
from kedge.model.errors import DriverError
from kedge.model.plan import Plan
from kedge.model.run import Failure, Looked, LookRequest, bounded, failure_of_the_run
from kedge.plan import availability


class ServingActivities:
    """Looks that a decision follows from: before a wave, at a gate, at the end."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    @activity.defn
    async def look_nodes(self, request: LookRequest) -> Looked:
        """Which of these nodes do not serve. What was seen a moment ago is reused as ``LookRequest`` says."""
        run, looks = request.run, self._ground.looks
        try:
            await self._ground.authorise(run)
            plan = await self._ground.plan(run.plan)
        except DriverError as error:
            if error.retryable:
                raise
            return Looked(problem=failure_of_the_run(error.kind, error.message, saw=error.detail))
        nodes = tuple(node for node in request.nodes if 0 <= node < len(plan.nodes))
        known = looks.of(run, plan)
        first = nodes[0] if nodes else 0
        place = f"{run.id}@{run.epoch}/looked-{request.why}-{request.serial}.{activity.info().attempt}/{first}"
        async with pulse():
            fine = await looks.look(
                run, plan, _wanted(request, plan, known, nodes), key=place, why=request.why
            )
            down = [failure.node for failure in known.not_serving(plan, nodes)]
            if fine and request.ensure and down:
                fine = await looks.look(
                    run, plan, down, key=f"{place}/ensured", why=request.why, ensure=True
                )
        failures = known.not_serving(plan, nodes)
        if request.why == "end":
            failures = (*failures, *_astray(request, plan, known, nodes))
        return Looked(nodes=len(nodes), failures=bounded(failures), fenced=not fine)


def _wanted(request: LookRequest, plan: Plan, known: RunLooks, nodes: tuple[int, ...]) -> list[int]:
    """Which of these nodes are looked at now."""
    if request.ensure:
        return list(nodes)
    if request.why in ("end", "baseline"):
        every, age = range(len(plan.nodes)), availability.end_seconds(len(plan.nodes))
        seen = set(known.seen()) - set(availability.stale(known.ages(), every, age))
        return [node for node in nodes if node not in seen or node in known.down]
    moved = {node for wave in plan.waves[: request.wave] for node in wave.nodes}
    near = moved | {node for nodes in known.moved.values() for node in nodes}
    old = set(availability.stale(known.ages(), near, 0.0)) | known.unseen | known.down
    return [node for node in nodes if node in old]


def _astray(
    request: LookRequest, plan: Plan, known: RunLooks, nodes: tuple[int, ...]
) -> list[Failure]:
    """Nodes that serve, and not on the new release: whoever was not left out must be on it at the end."""
    found: list[Failure] = []
    for node in nodes:
        sight = known.last(node)
        if node in request.down or (sight is not None and (not sight.serving or sight.changed)):
            continue
        message = (
            f"it runs another release than {plan.after.version}"
            if sight is not None
            else "it was worked on while it was looked at"
        )
        name = plan.nodes[node].name
        found.append(availability.not_serving(node, name, message, changed=False))
    return found
