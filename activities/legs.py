"""``run_leg``: one leg of one node: one activity, one connection, one call of the host program. ``run_legs``: the same for
nodes whose legs are so short that an activity for each would cost more than the leg.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from temporalio import activity

from activities.admission import REFUSALS, Admissions, FailedBefore
from activities.bringing import RETURNING, not_brought, with_missing
from activities.errors import LOST, saw_of, sentence, to_temporal, unexpected
from activities.ground import Ground, goes_back
from activities.heartbeats import Pulse, pulse
from activities.looks import BACK
from activities.recorded import moment
from activities.records import journal_of, sent_by, step_name, step_of
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.model.base import Json, digest_of
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
from kedge.plan.tries import OVERTAKEN
from kedge.trust.admission import Admitted

ONCE = frozenset({"run", "snapshot", "restore"})
"""Operations that keep their key over all rounds: done once is done."""


ANEW = frozenset({"run", "check"})
"""Operations that do something else once a person, who was shown what is wrong, said to try again."""


FINALIZE_BEGUN, RESTORE_BEGUN = "finalize-begun", "restore-begun"
"""Written down before the act: whoever computes a way back later must know it, and hosts no longer show it."""
_BEGUN = {"finalize": FINALIZE_BEGUN, "restore": RESTORE_BEGUN}


WAITS = (0.1, 0.2, 0.5, *(1.0,) * 10)
"""Seconds before a node is asked for again when no place is free: what is in flight comes to its end meanwhile."""

Ended: TypeAlias = LegDone | tuple[DriverError, Failure]


class LegActivities:
    """The only activity that changes a node's release."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._admissions = Admissions(ground)

    @activity.defn
    async def run_leg(self, request: LegRequest) -> LegDone:
        """Run the steps of a leg. What the host's journal has as done is not done again.

        Raises ``ApplicationError`` whose type is the host's error type and whose one detail is a ``Failure``.
        """
        async with pulse() as beating:
            ((_, found),) = await self._all((request,), beating)
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
            answers = await self._all([request.leg.at(node) for node in request.nodes], beating)
        done: list[LegDone] = []
        missed: list[Missed] = []
        for node, found in answers:
            if isinstance(found, LegDone):
                done.append(found)
            elif found[0].kind in LOST:
                raise to_temporal(*found) from found[0]
            else:
                missed.append(Missed(node=node, failure=found[1]))
        return TeamDone(done=tuple(done), missed=tuple(missed))

    async def _all(self, requests: Sequence[LegRequest], beating: Pulse) -> list[tuple[int, Ended]]:
        """The legs of several nodes: allowed each by its signatures, admitted all at once, run side by side."""
        ends: dict[int, Ended] = {}
        allowed: list[LegRequest] = []
        for request in requests:
            try:
                allowed.append(await self._allow(request))
            except DriverError as error:
                ends[request.node] = await self._refused(request, error)
            except Exception as error:  # noqa: BLE001 - no leg is left without a record and an end
                strange = unexpected(error, f"node {request.node}")
                ends[request.node] = await self._refused(request, strange)
        placed = await self._places(allowed, ends)
        try:
            await self._begin(placed, ends, beating)
        finally:
            # Also where the record could not be asked: a place that nobody gives back is one less for the whole run.
            for request in placed:
                await self._give_back(request)
        return [(request.node, ends[request.node]) for request in requests]

    async def _begin(
        self, placed: Sequence[LegRequest], ends: dict[int, Ended], beating: Pulse
    ) -> None:
        """The legs of the nodes that have a place; into ``ends`` goes what became of each."""
        admitted: list[tuple[LegRequest, Admitted]] = []
        if placed:
            for request, found in await self._admitted(placed):
                if isinstance(found, Admitted):
                    admitted.append((request, found))
                    continue
                await self._left(request, done=False)
                ends[request.node] = LegDone(node=request.node, done=0, replayed=0, seconds=0.0)
                if isinstance(found, FailedBefore):
                    ends[request.node] = await self._failed_before(request, found)
                elif found is not None:
                    ends[request.node] = await self._refused(request, found)
        legs = (self._placed(request, found, beating) for request, found in admitted)
        # All are waited for, whatever becomes of one: no session is left to itself.
        answers = await asyncio.gather(*legs, return_exceptions=True)
        for (request, _), answer in zip(admitted, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            ends[request.node] = answer

    async def _places(
        self, allowed: Sequence[LegRequest], ends: dict[int, Ended]
    ) -> list[LegRequest]:
        """Who may be stopped now, by a look at those that must serve; into ``ends`` goes why the others may not."""
        if not allowed or allowed[0].program == "finalize":
            return list(allowed)
        first, nodes = allowed[0], tuple(request.node for request in allowed)
        plan = await self._ground.plan(first.run.plan)
        try:
            going, refusal = await self._ground.looks.before_stop(
                first.run, plan, _group(first), nodes, first.accepted
            )
        except DriverError as error:
            for request in allowed:
                ends[request.node] = await self._refused(request, error)
            return []
        if refusal is not None:
            refused = refusal, _failure(refusal, first, "the run", "")
            ends |= {node: refused for node in nodes if node not in going}
        return [request for request in allowed if request.node in going]

    async def _placed(self, request: LegRequest, admitted: Admitted, beating: Pulse) -> Ended:
        """One leg of a node that has its place; after its last leg the node serves."""
        serves = False
        try:
            plan = await self._ground.plan(request.run.plan)
            found = await self._leg(request, admitted, beating)
            last = request.leg == len(plan.program(request.program).legs) - 1
            serves = last and isinstance(found, LegDone)
            return found
        finally:
            await self._left(request, done=serves)

    async def _give_back(self, request: LegRequest) -> None:
        plan = await self._ground.plan(request.run.plan)
        if request.node in self._ground.looks.of(request.run, plan).flying:
            await self._left(request, done=False)

    async def _left(self, request: LegRequest, *, done: bool) -> None:
        if request.program != "finalize":
            plan = await self._ground.plan(request.run.plan)
            self._ground.looks.ended(request.run, plan, _group(request), request.node, done=done)

    async def _allow(self, request: LegRequest) -> LegRequest:
        """The request, when the signatures carry it, with what the record says of a way back. Raises ``DriverError``."""
        run = request.run
        if goes_back(run.id):
            # How far the fleet had come is not for a workflow to say.
            begun = await self._admissions.begun(run)
            request = request.model_copy(update={"wave": begun})
        await self._ground.authorise(
            run, program=request.program, wave=request.wave, node=request.node
        )
        if request.program in ("forward", "finalize"):
            await self._ground.stands(run)
        return request

    async def _admitted(
        self, requests: Sequence[LegRequest]
    ) -> list[tuple[LegRequest, Admitted | FailedBefore | DriverError | None]]:
        """What the record says to each; who finds no place is asked for again until one is free, or it takes too long."""
        first = requests[0]
        found: dict[int, Admitted | FailedBefore | DriverError | None] = {}
        waiting = [request.node for request in requests]
        for pause in (*WAITS, None):
            found |= await self._admissions.admit(first, tuple(waiting))
            waiting = [node for node in waiting if _is_full(found[node])]
            if not waiting or pause is None:
                break
            await asyncio.sleep(pause)
            await self._look_again(first)
        return [(request, found[request.node]) for request in requests]

    async def _failed_before(self, request: LegRequest, found: FailedBefore) -> Ended:
        """The recorded end of a leg, for a caller that did not hear it."""
        plan = await self._ground.plan(request.run.plan)
        failure = _failure(found.error, request, plan.nodes[request.node].name, found.step)
        return found.error, failure.model_copy(update={"reported": found.reported})

    async def _look_again(self, request: LegRequest) -> None:
        """No place was free: nodes that another worker saw not to serve may serve again."""
        run, plan = request.run, await self._ground.plan(request.run.plan)
        absent = await self._admissions.absent(run, plan)
        await self._ground.looks.again(run, plan, absent)

    async def _leg(self, request: LegRequest, admitted: Admitted, beating: Pulse) -> Ended:
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
            await self._note_begun(request, admitted)
            ops = _operations(plan, request, admitted)
            end, ops = await self._session(plan, node, (request, admitted), ops, on_event)
        except DriverError as error:
            return await self._unheard(request, admitted, name, error)
        except Exception as error:  # noqa: BLE001 - no leg is left without a record and an end
            return await self._unheard(request, admitted, name, unexpected(error, name))
        finally:
            beating.at.pop(request.node, None)
        archives = sent_by(ops, (*plan.after.artifacts, *plan.before.artifacts))
        try:
            await self._write_down(request, admitted, node, end, archives)
        except DriverError:
            raise  # the store's: what was done stands in the host's journal, and is written down by the next try
        except Exception as error:  # noqa: BLE001 - as above
            return await self._unheard(request, admitted, name, unexpected(error, name))
        fault = end.fault(node.name)
        if fault is not None:
            step = step_name(end.failed.key) if end.failed is not None else ""
            if fault.kind == "Fenced":
                fault = await self._fenced(request, fault)
                return fault, _failure(fault, request, name, step)
            failure = _failure(fault, request, name, step)
            return fault, failure.model_copy(update={"reported": True})
        replayed = sum(event.replayed for event in end.done)
        return LegDone(
            node=request.node,
            done=len(end.done) - replayed,
            replayed=replayed,
            seconds=round(time.monotonic() - begun, 4),
        )

    async def _fenced(self, request: LegRequest, fault: DriverError) -> DriverError:
        """Whether a newer run has the host, or another admission of this one: then what that does is waited for."""
        if await self._admissions.overtaken(request.run):
            return fault
        return DriverError(
            OVERTAKEN, fault.message, retryable=False, detail=fault.detail,
            next_step="`kedge status RUN` shows what goes on",
        )  # fmt: skip

    async def _note_begun(self, request: LegRequest, admitted: Admitted) -> None:
        what = _BEGUN.get(request.program)
        if what is not None:
            run = request.run
            key = f"{run.id}@{run.epoch}/{what}"
            record: dict[str, Json] = {
                "what": what,
                "plan": run.plan,
                "run": run.id,
                "upgrade": admitted.snapshots,
            }
            await self._ground.note(run.fleet, key, record, strict=True)

    async def _session(
        self,
        plan: Plan,
        node: PlannedNode,
        asked_for: tuple[LegRequest, Admitted],
        planned: tuple[dict[str, Json], ...],
        on_event: Callable[[HostEvent], None],
    ) -> tuple[SessionEnd, tuple[dict[str, Json], ...]]:
        """How the session ended, and the operations as they were sent."""
        request, admitted = asked_for
        artifacts = (*plan.after.artifacts, *plan.before.artifacts)
        asked = SessionRequest(
            run=request.run.id,
            token=(request.run.epoch, admitted.serial, activity.info().attempt),
            ops=planned,
        )
        transport = self._ground.transport
        # The old release lies on the host: a rollback does not depend on where its archive came from.
        sent = planned
        if request.program not in RETURNING:
            sent = await self._ground.with_sources(node, planned, artifacts)
        end = await transport.session(node, replace(asked, ops=sent), on_event)
        wanted = with_missing(end, sent, artifacts)
        if wanted is None:
            return end, sent
        try:
            sent = await self._ground.with_sources(node, wanted, artifacts)
        except DriverError as error:
            return not_brought(end, error), sent
        return await transport.session(node, replace(asked, ops=sent), on_event), sent

    async def _refused(self, request: LegRequest, error: DriverError) -> Ended:
        """What was not let through is evidence once, and no failure of a node."""
        run = request.run
        record: dict[str, Json] = {
            "what": "refused",
            "run": run.id,
            "epoch": run.epoch,
            "program": request.program,
            "wave": request.wave,
            "node": request.node,
            "failed": {"key": "", "type": error.kind, "message": line(error.message, 500)},
        }
        key = f"refused/{run.id}@{run.epoch}/{digest_of(record)[:32]}"
        await self._ground.note(run.fleet, key, record)
        failure = _failure(error, request, f"node {request.node}", "")
        if error.kind in REFUSALS:
            failure = failure_of_the_run(error.kind, error.message, request.program)
        return error, failure

    async def _unheard(
        self, request: LegRequest, admitted: Admitted, name: str, error: DriverError
    ) -> Ended:
        """One record of an attempt of which no end was heard: nobody there, the connection lost."""
        run = request.run
        where = (
            f"{name}/{request.program}/{request.leg}/{admitted.serial}.{activity.info().attempt}"
        )
        record: dict[str, Json] = {
            **_about(request, admitted, name),
            "steps": [],
            "failed": {"key": "", "type": error.kind, "message": line(error.message, 500)},
        }
        await self._ground.note(run.fleet, f"{run.id}@{run.epoch}/{where}/unheard", record)
        return error, _failure(error, request, name, "")

    async def _write_down(
        self,
        request: LegRequest,
        admitted: Admitted,
        node: PlannedNode,
        end: SessionEnd,
        archives: Mapping[str, Artifact],
    ) -> None:
        """One record per attempt of a leg: every step with what was seen before and after, and which bytes were sent."""
        run, failed = request.run, end.failed
        attempt = f"{request.leg}/{admitted.serial}.{activity.info().attempt}"
        error = None if failed is None else failed.error
        await self._ground.note(
            run.fleet,
            f"{run.id}@{run.epoch}/{node.name}/{request.program}/{attempt}",
            {
                **_about(request, admitted, node.name),
                "heard": True,
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


def _is_full(found: Admitted | FailedBefore | DriverError | None) -> bool:
    return isinstance(found, DriverError) and found.kind == "Full"


def _operations(plan: Plan, request: LegRequest, admitted: Admitted) -> tuple[dict[str, Json], ...]:
    """The operations of a leg as the plan has them, with the keys of the round that the record says."""
    planned = operations(
        plan,
        request.node,
        request.program,
        request.leg,
        run_id=request.run.id,
        epoch=request.run.epoch,
        snapshot_epoch=admitted.snapshots,
    )
    if admitted.round:
        planned = tuple(
            op if op["op"] in ONCE else {**op, "key": f"{op['key']}#{admitted.round}"}
            for op in planned
        )
    if admitted.retries:
        planned = tuple(
            {**op, "anew": admitted.retries} if op["op"] in ANEW else op for op in planned
        )
    return planned


def _about(request: LegRequest, admitted: Admitted, node: str) -> dict[str, Json]:
    """Which leg of which run a record is about."""
    return {
        **moment(),
        "what": "leg",
        "run": request.run.id,
        "node": node,
        "program": request.program,
        "leg": request.leg,
        "wave": request.wave,
        "token": [request.run.epoch, admitted.serial, activity.info().attempt],
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
