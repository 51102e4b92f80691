"""``run_leg``: one leg of one node: one activity, one connection, one call of the host program. ``run_legs``: the same for
nodes whose legs are so short that an activity for each would cost more than the leg.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from temporalio import activity

from activities.errors import LOST, saw_of, sentence, to_temporal, unexpected
from activities.ground import Ground
from activities.heartbeats import Pulse, pulse
from activities.looks import BACK
from activities.records import journal_of, sent_by, step_of
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.outside import line
from kedge.model.plan import Artifact, Plan, PlannedNode
from kedge.model.run import (
    Failure,
    LegDone,
    LegRequest,
    Missed,
    TeamDone,
    TeamRequest,
    failure_of_the_run,
)
from kedge.model.trusted import OF_RELEASES
from kedge.plan.availability import UNAVAILABLE
from kedge.plan.render import operations

ONCE = frozenset({"run", "snapshot", "restore"})
"""Operations that keep their key over all rounds: done once is done."""


FINALIZE_BEGUN, RESTORE_BEGUN = "finalize-begun", "restore-begun"
"""Written down before the act: whoever computes a way back later must know it, and hosts no longer show it."""
_BEGUN = {"finalize": FINALIZE_BEGUN, "restore": RESTORE_BEGUN}


class LegActivities:
    """The only activity that changes a node's release."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    @activity.defn
    async def run_leg(self, request: LegRequest) -> LegDone:
        """Run the steps of a leg. What the host's journal has as done is not done again.

        Raises ``ApplicationError`` whose type is the host's error type and whose one detail is a ``Failure``.
        """
        async with pulse() as beating:
            (found,) = await self._legs(request, (request.node,), beating)
        if isinstance(found, BaseException):
            raise found
        if isinstance(found, LegDone):
            return found
        error, failure = found
        raise to_temporal(error, failure) from error

    @activity.defn
    async def run_legs(self, request: TeamRequest) -> TeamDone:
        """The same leg of several nodes, side by side: begun at once, each with its own end and its own record.

        Raises ``ApplicationError``, to be tried again, when the connection to one of them was lost: the journals of
        those that were done say so then.
        """
        async with pulse() as beating:
            answers = await self._legs(request.leg, request.nodes, beating)
        done: list[LegDone] = []
        missed: list[Missed] = []
        for node, found in zip(request.nodes, answers, strict=True):
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, LegDone):
                done.append(found)
            elif found[0].kind in LOST:
                raise to_temporal(*found) from found[0]
            else:
                missed.append(Missed(node=node, failure=found[1]))
        return TeamDone(done=tuple(done), missed=tuple(missed))

    async def _legs(
        self, request: LegRequest, nodes: tuple[int, ...], beating: Pulse
    ) -> list[LegDone | tuple[DriverError, Failure] | BaseException]:
        """One leg of each of these nodes, as far as so many may be out at once now."""
        refusal: DriverError | None = None
        try:
            plan, going, refusal = await self._places(request, nodes)
        except DriverError as error:
            return [await self._refused(request.at(node), f"node {node}", error) for node in nodes]
        # All are waited for, whatever becomes of one: no session is left to itself.
        ended = await asyncio.gather(
            *(self._placed(request.at(node), plan, beating) for node in going),
            return_exceptions=True,
        )
        answers = dict(zip(going, ended, strict=True))
        if refusal is not None:
            refused = refusal, _failure(refusal, request, "the run", "")
            answers |= {node: refused for node in nodes if node not in answers}
        return [answers[node] for node in nodes]

    async def _places(
        self, request: LegRequest, nodes: tuple[int, ...]
    ) -> tuple[Plan, tuple[int, ...], DriverError | None]:
        """Which of these nodes may be stopped now, and why the others may not."""
        plan = await self._ground.plan(request.run.plan)
        for node in nodes:
            await self._ground.authorise(
                request.run, program=request.program, wave=request.wave, node=node
            )
        if request.program == "finalize":
            return plan, nodes, None
        going, refusal = await self._ground.looks.before_stop(
            request.run, plan, _group(request), nodes, request.accepted
        )
        return plan, going, refusal

    async def _placed(
        self, request: LegRequest, plan: Plan, beating: Pulse
    ) -> LegDone | tuple[DriverError, Failure]:
        """One leg of a node that has its place; after its last leg the node serves."""
        serves = False
        try:
            found = await self._leg(request, beating)
            last = request.leg == len(plan.program(request.program).legs) - 1
            serves = last and isinstance(found, LegDone)
            return found
        finally:
            if request.program != "finalize":
                self._ground.looks.ended(
                    request.run, plan, _group(request), request.node, done=serves
                )

    async def _leg(
        self, request: LegRequest, beating: Pulse
    ) -> LegDone | tuple[DriverError, Failure]:
        """One leg, its record durable; or what went wrong, in both its shapes."""
        begun = time.monotonic()
        name = f"node {request.node}"

        def on_event(event: HostEvent) -> None:
            step = event.key.rsplit("/", 1)[-1]
            beating.at[request.node] = (request.node, step, event.said or event.op)

        try:
            plan = await self._ground.plan(request.run.plan)
            node = plan.nodes[request.node]
            name = node.name
            await self._allow(request)
            ops = _operations(plan, request)
            end = await self._session(plan, node, request, ops, on_event)
        except DriverError as error:
            return await self._refused(request, name, error)
        except Exception as error:  # noqa: BLE001 - no leg is left without a record and an end
            return await self._refused(request, name, unexpected(error, name))
        finally:
            beating.at.pop(request.node, None)
        archives = sent_by(ops, (*plan.after.artifacts, *plan.before.artifacts))
        try:
            await self._write_down(request, node, end, archives)
        except DriverError:
            raise  # the store's: what was done stands in the host's journal, and is written down by the next try
        except Exception as error:  # noqa: BLE001 - as above
            return await self._refused(request, name, unexpected(error, name))
        fault = end.fault(node.name)
        if fault is not None:
            step = end.failed.key.rsplit("/", 1)[-1].split("#")[0] if end.failed is not None else ""
            return fault, _failure(fault, request, name, step)
        replayed = sum(event.replayed for event in end.done)
        return LegDone(
            node=request.node,
            done=len(end.done) - replayed,
            replayed=replayed,
            seconds=round(time.monotonic() - begun, 4),
        )

    async def _allow(self, request: LegRequest) -> None:
        await self._ground.authorise(
            request.run, program=request.program, wave=request.wave, node=request.node
        )
        if request.program in ("forward", "finalize"):
            await self._ground.stands(request.run)
        what = _BEGUN.get(request.program)
        if what is not None:
            run = request.run
            upgrade = run.snapshots or run.epoch
            key = f"{run.id}@{run.epoch}/{what}"
            record: dict[str, Json] = {
                "what": what,
                "plan": run.plan,
                "run": run.id,
                "upgrade": upgrade,
            }
            await self._ground.note(run.fleet, key, record)

    async def _session(
        self,
        plan: Plan,
        node: PlannedNode,
        request: LegRequest,
        planned: tuple[dict[str, Json], ...],
        on_event: Callable[[HostEvent], None],
    ) -> SessionEnd:
        artifacts = (*plan.after.artifacts, *plan.before.artifacts)
        ops = await self._ground.with_sources(node, planned, artifacts)
        asked = SessionRequest(
            run=request.run.id,
            token=(request.run.epoch, request.serial, activity.info().attempt),
            ops=ops,
        )
        return await self._ground.transport.session(node, asked, on_event)

    async def _refused(
        self, request: LegRequest, name: str, error: DriverError
    ) -> tuple[DriverError, Failure]:
        """One record of an attempt of which no end was heard: not allowed, nobody there, the connection lost."""
        where = f"{name}/{request.program}/{request.leg}/{request.serial}.{activity.info().attempt}"
        run = request.run
        record: dict[str, Json] = {
            **_about(request, name),
            "steps": [],
            "failed": {"key": "", "type": error.kind, "message": line(error.message, 500)},
        }
        await self._ground.note(run.fleet, f"{run.id}@{run.epoch}/{where}/unheard", record)
        return error, _failure(error, request, name, "")

    async def _write_down(
        self,
        request: LegRequest,
        node: PlannedNode,
        end: SessionEnd,
        archives: Mapping[str, Artifact],
    ) -> None:
        """One record per attempt of a leg: every step with what was seen before and after, and which bytes were sent."""
        run, failed = request.run, end.failed
        attempt = f"{request.leg}/{request.serial}.{activity.info().attempt}"
        error = None if failed is None else failed.error
        await self._ground.note(
            run.fleet,
            f"{run.id}@{run.epoch}/{node.name}/{request.program}/{attempt}",
            {
                **_about(request, node.name),
                "steps": [step_of(event, archives) for event in end.done],
                "failed": None
                if failed is None or error is None
                else {"key": failed.key, "type": error.type, "message": line(error.message, 500)},
                "journal": journal_of(end),
            },
        )


def _group(request: LegRequest) -> int:
    """Among which nodes a leg is: those of its wave, or all that go back."""
    if request.program != "forward" or request.wave is None:
        return BACK
    return request.wave


def _operations(plan: Plan, request: LegRequest) -> tuple[dict[str, Json], ...]:
    """The operations of a leg as the plan has them, with the keys of this round."""
    planned = operations(
        plan,
        request.node,
        request.program,
        request.leg,
        run_id=request.run.id,
        epoch=request.run.epoch,
        snapshot_epoch=request.run.snapshots or None,
    )
    if request.round:
        planned = tuple(
            op if op["op"] in ONCE else {**op, "key": f"{op['key']}#{request.round}"}
            for op in planned
        )
    if request.anew:
        planned = tuple({**op, "anew": request.anew} if op["op"] == "run" else op for op in planned)
    return planned


def _about(request: LegRequest, node: str) -> dict[str, Json]:
    """Which leg of which run a record is about."""
    return {
        "what": "leg",
        "run": request.run.id,
        "node": node,
        "program": request.program,
        "leg": request.leg,
        "wave": request.wave,
        "token": [request.run.epoch, request.serial, activity.info().attempt],
    }


def _failure(error: DriverError, request: LegRequest, name: str, step: str) -> Failure:
    if error.kind == UNAVAILABLE:
        return failure_of_the_run(error.kind, error.message, request.program, error.detail)
    if error.kind in OF_RELEASES:
        # It lies with no node, and no node is gone on without because of it.
        return failure_of_the_run(error.kind, error.message, request.program)
    return Failure(
        node=request.node,
        name=name,
        program=request.program,
        leg=request.leg,
        step=step,
        type=error.kind,
        said=sentence(error, name),
        saw=saw_of(error),
    )
