"""``CanaryWidening``: wave after wave, until a decision is needed; then it returns what it saw."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any, Literal

from temporalio import workflow
from temporalio.exceptions import (
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.nodes import NodeActivities
    from activities.serving import ServingActivities
    from kedge.model.run import (
        THE_RUN,
        Again,
        CheckRequest,
        Failure,
        LookRequest,
        OpenRequest,
        PlanFacts,
        WaveRequest,
        WaveResult,
        WideningRequest,
        WideningStop,
        beside,
        bounded,
        failure_of_the_run,
    )
    from kedge.model.status import WideningProgress
    from kedge.plan.availability import UNAVAILABLE, free_places, of_refusal, unavailable_message

from workflows.calls import SERIALS_A_WAVE, survey, tell, why
from workflows.fanout import look_all
from workflows.wave import Wave, chunk_of

ORDERED = 10.0
"""Seconds until an order that the record has is known here too."""


@workflow.defn(name="CanaryWidening")
class CanaryWidening:
    """Runs waves from ``request.wave`` on. Its state is the wave it is at and what it counted since the request."""

    @workflow.init
    def __init__(self, request: WideningRequest) -> None:
        self._request = request
        self._wave = request.wave
        self._serial = request.serial
        self._done = request.done
        self._steps = request.steps
        self._replayed = request.replayed
        self._down: list[int] = list(request.down)
        self._tolerated: list[Failure] = list(request.failures)
        self._absent: tuple[Failure, ...] = ()
        """The nodes that did not serve when they were last looked at, but for those that are out."""
        self._ensure = request.ensure
        self._redo: tuple[int, ...] = ()
        """The nodes of the wave at hand that failed before, and are done again."""
        self._quick = request.quick
        """The last legs were quick."""
        self._stuck = False
        """The last chunks found no place for any node."""
        self._held = False
        self._state: Literal["opening", "upgrading", "baking", "stopping"] = "opening"
        self._children: dict[str, workflow.ChildWorkflowHandle[Wave, WaveResult]] = {}
        self._until: datetime | None = None

    @workflow.run
    async def run(self, request: WideningRequest) -> WideningStop:
        """Runs waves until a decision is needed."""
        facts, again = request.facts, request.again
        while self._wave < len(facts.waves):
            missing = [gate for gate in facts.waves[self._wave].gates if gate not in request.passed]
            if missing:
                return await self._stop("gate", gate=missing[0])
            stop = await self._upgrade(facts, again)
            if stop is None:
                stop = await self._bake(facts, ensure=again is not None and again.ensure)
            if stop is not None:
                return stop
            again = None
            self._wave += 1
            if self._wave < len(facts.waves):
                await self._renew_if_long(None)
        return await self._stop("done")

    @workflow.signal(
        description="Begin no further node and return; nodes in flight come to their end."
    )
    async def hold(self, *_: Any) -> None:
        """Begin no further node and return. Anybody can say so: who did not mean it starts this anew."""
        self._held = True
        for child in list(self._children.values()):
            await tell(child, Wave.hold)

    @workflow.query(description="The wave at hand and what is done in it now.")
    def progress(self) -> WideningProgress:
        """The wave at hand and what is done in it now."""
        return WideningProgress(
            wave=self._wave,
            state=self._state,
            child=next(iter(self._children), None),
            until=f"{self._until:%Y-%m-%dT%H:%M:%SZ}" if self._until is not None else None,
            nodes_done=self._done,
        )

    async def _renew_if_long(self, again: Again | None) -> None:
        """Go on in a new history when this one grew long, with ``again`` of the wave at hand still to do."""
        if not workflow.info().is_continue_as_new_suggested():
            return
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._held:
            # It would be forgotten; and nothing further is begun anyhow.
            return
        workflow.continue_as_new(
            self._request.model_copy(
                update={
                    "wave": self._wave,
                    "serial": self._serial,
                    "again": again,
                    "ensure": False,
                    "down": tuple(self._down),
                    "failures": bounded(tuple(self._tolerated)),
                    "done": self._done,
                    "steps": self._steps,
                    "replayed": self._replayed,
                    "quick": self._quick,
                }
            )
        )

    def _serials(self) -> int:
        first = self._serial
        self._serial += SERIALS_A_WAVE
        return first

    async def _stop(
        self,
        because: Literal["gate", "done", "failed", "held", "fenced"],
        *,
        gate: str | None = None,
        failures: tuple[Failure, ...] = (),
        remaining: tuple[int, ...] = (),
        where: Literal["", "wave", "bake", "serving"] = "",
        said: str = "",
    ) -> WideningStop:
        self._state = "stopping"
        await workflow.wait_condition(workflow.all_handlers_finished)
        return WideningStop(
            why=because,
            wave=self._wave,
            serial=self._serial,
            gate=gate,
            done=self._done,
            steps=self._steps,
            replayed=self._replayed,
            failures=bounded(failures or tuple(self._tolerated)),
            remaining=remaining,
            down=tuple(self._down),
            where=where,
            said=said,
        )

    # -- the legs of a wave --------------------------------------------------------------------------------------

    async def _upgrade(self, facts: PlanFacts, again: Again | None) -> WideningStop | None:
        """All nodes of the wave, or those of ``again``; none of them at all when it has none."""
        if again is not None and not again.nodes:
            return None
        self._state = "opening"
        self._redo = again.redo if again is not None else ()
        stop = await self._look(facts, again)
        if stop is not None:
            return stop
        opened = await survey(
            NodeActivities.open_wave,
            OpenRequest(
                run=self._request.run,
                wave=self._wave,
                only=again.nodes if again is not None else None,
                skip=(*self._down, *self._request.there),
                serial=self._serials(),
            ),
            f"open wave {facts.waves[self._wave].name}",
            600,
        )
        remaining = again.nodes if again is not None else ()
        if opened.failure is not None:
            because: Literal["fenced", "failed"] = (
                "fenced" if opened.failure.type == "Fenced" else "failed"
            )
            return await self._stop(
                because, failures=(opened.failure,), remaining=remaining, where="wave"
            )
        self._state = "upgrading"
        round_ = again.round if again is not None else 0
        for position, batch in enumerate(opened.batches):
            later = tuple(node for rest in opened.batches[position + 1 :] for node in rest)
            if self._held:
                return await self._stop("held", remaining=(*batch, *later), where="wave")
            if position > 0:
                ensure = again is not None and again.ensure
                await self._renew_if_long(
                    Again(nodes=(*batch, *later), redo=self._redo, round=round_, ensure=ensure)
                )
            stop = await self._batch(facts, batch, later, round_)
            if stop is not None:
                return stop
        return None

    async def _batch(
        self, facts: PlanFacts, batch: tuple[int, ...], later: tuple[int, ...], round_: int
    ) -> WideningStop | None:
        """One failure domain: chunks of nodes (``chunk_of``), as many at once as the wave's parallelism needs."""
        waiting, size = batch, chunk_of(facts.legs["forward"])
        while waiting:
            parallel = self._free(facts)
            if parallel < 1 or self._stuck:
                return await self._unavailable(facts, (*waiting, *later))
            budget = max(0, facts.failure_budget - len(self._down))
            lanes = min(-(-len(waiting) // size), max(1, -(-parallel // size)))
            share, odd = divmod(parallel, lanes)
            # Each lane may lose its part of the budget only: together no more than the whole.
            part, rest = divmod(budget, lanes)
            now, waiting = waiting[: lanes * size], waiting[lanes * size :]
            results = await asyncio.gather(
                *(
                    self._chunk(
                        now[lane * size : (lane + 1) * size],
                        share + (1 if lane < odd else 0),
                        part + (1 if lane < rest else 0),
                        round_,
                    )
                    for lane in range(lanes)
                )
            )
            # What somebody else made a chunk hold is taken up again: only our own hold counts. So is what a lane left
            # that lost its part of the budget, while the whole is not spent and places are free.
            waiting = (*(node for result in results for node in result.remaining), *waiting)
            if any(result.refused for result in results):
                await self._wait(ORDERED, "an order in the record holds this run")
                self._held = True
            stop = await self._judge(results, (*waiting, *later), budget)
            if stop is not None:
                return stop
        return None

    def _free(self, facts: PlanFacts) -> int:
        """How many nodes may be in flight: those that are out, or do not serve, keep their places among the unavailable.

        Without nodes that people said to go on without, one at a time is always possible.
        """
        out = {*self._down, *(failure.node for failure in self._absent)}
        return free_places(facts.waves[self._wave].parallel, out, self._accepted())

    def _accepted(self) -> tuple[int, ...]:
        """The nodes without which a person said to go on, moved ones too."""
        return (*self._request.accepted, *self._request.absent)

    def _others(self, failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
        """Nodes that do not serve, but for those that are out, and those that are about to be done again."""
        known = {*self._down, *self._redo}
        return tuple(failure for failure in failures if failure.node not in known)

    async def _unavailable(self, facts: PlanFacts, remaining: tuple[int, ...]) -> WideningStop:
        """No place is free: which nodes do not serve, and that no further one is stopped because of it."""
        limit = facts.waves[self._wave].parallel
        if not self._absent:
            said = f"{len(self._down)} node(s) are out, and no more may be"
            return await self._stop("failed", remaining=remaining, where="wave", said=said)
        return await self._stop(
            "failed",
            failures=self._absent,
            remaining=remaining,
            where="serving",
            said=unavailable_message(self._absent, limit),
        )

    async def _look(self, facts: PlanFacts, again: Again | None) -> WideningStop | None:
        """Before a wave is opened, every node is looked at: those that were moved now, others a moment ago at most."""
        serial, ensure = self._serials(), self._ensure
        remaining = again.nodes if again is not None else ()
        seen = await look_all(
            facts.nodes,
            lambda nodes: survey(
                ServingActivities.look_nodes,
                LookRequest(
                    run=self._request.run,
                    wave=self._wave,
                    nodes=nodes,
                    why="wave",
                    serial=serial,
                    down=tuple(self._down),
                    ensure=ensure,
                ),
                f"which nodes serve before wave {facts.waves[self._wave].name}",
                600,
            ),
        )
        self._ensure = False
        if seen.fenced:
            return await self._stop("fenced", remaining=remaining, where="wave")
        if seen.problem is not None:
            return await self._stop(
                "failed", failures=(seen.problem,), remaining=remaining, where="wave"
            )
        self._absent = self._others(seen.failures)
        if self._absent and self._free(facts) < 1:
            return await self._unavailable(facts, remaining)
        return None

    async def _judge(
        self, results: list[WaveResult], remaining: tuple[int, ...], budget: int
    ) -> WideningStop | None:
        failures = beside(tuple(failure for result in results for failure in result.failures))
        for result in results:
            self._done += result.done
            self._steps += result.steps
            self._replayed += result.replayed
        self._quick = all(result.quick for result in results)
        self._redo = tuple(node for node in self._redo if node in remaining)
        refused = [failure for failure in failures if failure.type == UNAVAILABLE]
        failures = tuple(failure for failure in failures if failure.type != UNAVAILABLE)
        if refused:
            down = {failure.node: failure for one in refused for failure in of_refusal(one)}
            self._absent = self._others(tuple(down.values()))
        self._stuck = bool(refused) and not failures and not any(r.done for r in results)
        every = (*self._tolerated, *failures)
        if any(result.fenced for result in results):
            return await self._stop("fenced", failures=failures, remaining=remaining, where="wave")
        lost = any(failure.node == THE_RUN for failure in failures)
        if lost or len(failures) > budget:
            return await self._stop("failed", failures=every, remaining=remaining, where="wave")
        self._tolerated += failures
        self._down += [failure.node for failure in failures]
        if self._held and remaining:
            return await self._stop("held", remaining=remaining, where="wave")
        return None

    async def _chunk(
        self, nodes: tuple[int, ...], parallel: int, budget: int, round_: int
    ) -> WaveResult:
        serial = self._serials()
        identity = f"{self._request.run.id}/wave-{self._wave}/{serial // SERIALS_A_WAVE}"
        request = WaveRequest(
            run=self._request.run,
            wave=self._wave,
            program="forward",
            legs=self._request.facts.legs["forward"],
            nodes=nodes,
            parallel=min(parallel, len(nodes)),
            budget=budget,
            serial=serial,
            round=round_,
            anew=round_,
            accepted=self._accepted(),
            redo=self._redo,
            quick=self._quick,
        )
        try:
            child = await workflow.start_child_workflow(
                Wave.run,
                request,
                id=identity,
                static_summary=f"wave {self._wave}: {len(nodes)} nodes, {parallel} at a time",
            )
            self._children[identity] = child
            if self._held:
                await tell(child, Wave.hold)
            return await child
        except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            lost = failure_of_the_run("Lost", f"{identity} did not come to its end: {why(error)}")
            return WaveResult(
                done=0, steps=0, replayed=0, failures=(lost,), remaining=nodes, held=True
            )
        finally:
            self._children.pop(identity, None)

    # -- the bake ------------------------------------------------------------------------------------------------

    async def _bake(self, facts: PlanFacts, *, ensure: bool) -> WideningStop | None:
        """Looks at the wave's nodes every interval until the bake is over. One look at the end is always taken."""
        wave = facts.waves[self._wave]
        if wave.bake <= 0:
            return None
        self._state = "baking"
        self._until = workflow.now() + timedelta(seconds=wave.bake)
        interval = max(wave.interval, wave.bake / 60)
        try:
            while True:
                left = (self._until - workflow.now()).total_seconds()
                # Where the looks in the record have a gap, it goes on until they cover the whole time.
                await self._wait(
                    min(interval, left) if left > 0 else interval, f"bake of wave {wave.name}"
                )
                if self._held:
                    return await self._stop("held", where="bake")
                checked = await survey(
                    NodeActivities.check_nodes,
                    CheckRequest(
                        run=self._request.run,
                        wave=self._wave,
                        skip=tuple(self._down),
                        serial=self._serials(),
                        ensure=ensure,
                    ),
                    f"look at wave {wave.name}",
                    600,
                )
                ensure = False
                if checked.fenced:
                    return await self._stop("fenced", failures=checked.failures, where="bake")
                if checked.failures:
                    return await self._stop("failed", failures=checked.failures, where="bake")
                if checked.passed and workflow.now() >= self._until:
                    return None
        finally:
            self._until = None

    async def _wait(self, seconds: float, summary: str) -> None:
        try:
            await workflow.wait_condition(
                lambda: self._held, timeout=timedelta(seconds=seconds), timeout_summary=summary
            )
        except TimeoutError:
            return
