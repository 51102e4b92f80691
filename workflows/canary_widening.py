"""``CanaryWidening``: wave after wave, until a decision is needed; then it returns what it saw."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Literal

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.nodes import NodeActivities
    from activities.plans import PlanActivities
    from kedge.model.run import (
        CheckRequest,
        Failure,
        OpenRequest,
        PlanFacts,
        WaveRequest,
        WaveResult,
        WideningProgress,
        WideningRequest,
        WideningStop,
        bounded,
    )

from workflows.calls import SERIALS_A_WAVE, decide, survey
from workflows.wave import Wave

CHUNK = 100
"""Nodes of one ``Wave`` child: about 700 events."""


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
        self._tolerated: list[Failure] = []
        self._held = False
        self._state: Literal["opening", "upgrading", "baking", "stopping"] = "opening"
        self._children: dict[str, workflow.ChildWorkflowHandle[Wave, WaveResult]] = {}
        self._until: datetime | None = None

    @workflow.run
    async def run(self, request: WideningRequest) -> WideningStop:
        """Runs waves until a decision is needed."""
        facts = await decide(PlanActivities.plan_facts, request.run.plan, "read the plan")
        again = request.again
        while self._wave < len(facts.waves):
            missing = [gate for gate in facts.waves[self._wave].gates if gate not in request.passed]
            if missing:
                return await self._stop("gate", gate=missing[0])
            nodes = again.nodes if again is not None else None
            stop = await self._upgrade(facts, nodes, again.round if again is not None else 0)
            if stop is None:
                stop = await self._bake(facts, ensure=again is not None and again.round > 0)
            if stop is not None:
                return stop
            again = None
            self._wave += 1
            if self._wave < len(facts.waves) and workflow.info().is_continue_as_new_suggested():
                await self._renew()
        return await self._stop("done")

    @workflow.signal(
        description="Begin no further node and return; nodes in flight come to their end."
    )
    async def hold(self) -> None:
        """Begin no further node and return."""
        self._held = True
        for child in list(self._children.values()):
            await child.signal(Wave.hold)

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

    async def _renew(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        workflow.continue_as_new(
            self._request.model_copy(
                update={
                    "wave": self._wave,
                    "serial": self._serial,
                    "again": None,
                    "down": tuple(self._down),
                    "done": self._done,
                    "steps": self._steps,
                    "replayed": self._replayed,
                }
            )
        )

    def _serials(self) -> int:
        first = self._serial
        self._serial += SERIALS_A_WAVE
        return first

    async def _stop(
        self,
        why: Literal["gate", "done", "failed", "held", "fenced"],
        *,
        gate: str | None = None,
        failures: tuple[Failure, ...] = (),
        remaining: tuple[int, ...] = (),
        where: Literal["", "wave", "bake"] = "",
    ) -> WideningStop:
        self._state = "stopping"
        await workflow.wait_condition(workflow.all_handlers_finished)
        return WideningStop(
            why=why,
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
        )

    async def _upgrade(
        self, facts: PlanFacts, again: tuple[int, ...] | None, round_: int
    ) -> WideningStop | None:
        self._state = "opening"
        if again is None:
            opened = await survey(
                NodeActivities.open_wave,
                OpenRequest(
                    run=self._request.run,
                    wave=self._wave,
                    skip=(*self._down, *self._request.there),
                    serial=self._serials(),
                ),
                f"open wave {facts.waves[self._wave].name}",
                600,
            )
            batches = opened.batches
        else:
            batches = (again,) if again else ()
        self._state = "upgrading"
        for position, batch in enumerate(batches):
            later = tuple(node for rest in batches[position + 1 :] for node in rest)
            if self._held:
                return await self._stop("held", remaining=(*batch, *later), where="wave")
            stop = await self._batch(facts, batch, later, round_)
            if stop is not None:
                return stop
        return None

    async def _batch(
        self, facts: PlanFacts, batch: tuple[int, ...], later: tuple[int, ...], round_: int
    ) -> WideningStop | None:
        """One failure domain: chunks of at most ``CHUNK`` nodes, as many at once as the wave's parallelism needs."""
        chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
        while chunks:
            parallel = facts.waves[self._wave].parallel - len(self._tolerated)
            budget = facts.failure_budget - len(self._down)
            if parallel < 1:
                remaining = tuple(node for chunk in chunks for node in chunk) + later
                return await self._stop(
                    "failed", failures=tuple(self._tolerated), remaining=remaining, where="wave"
                )
            lanes = min(len(chunks), max(1, -(-parallel // CHUNK)))
            share, odd = divmod(parallel, lanes)
            now, chunks = chunks[:lanes], chunks[lanes:]
            results = await asyncio.gather(
                *(
                    self._chunk(chunk, share + (1 if lane < odd else 0), max(0, budget), round_)
                    for lane, chunk in enumerate(now)
                )
            )
            stop = await self._judge(results, chunks, later, budget)
            if stop is not None:
                return stop
        return None

    async def _judge(
        self,
        results: list[WaveResult],
        chunks: list[tuple[int, ...]],
        later: tuple[int, ...],
        budget: int,
    ) -> WideningStop | None:
        failures = tuple(failure for result in results for failure in result.failures)
        for result in results:
            self._done += result.done
            self._steps += result.steps
            self._replayed += result.replayed
        unbegun = tuple(node for result in results for node in result.remaining)
        remaining = (*unbegun, *(node for chunk in chunks for node in chunk), *later)
        if any(result.fenced for result in results):
            return await self._stop("fenced", failures=failures, remaining=remaining, where="wave")
        if len(failures) > budget or (unbegun and not self._held):
            every = (*self._tolerated, *failures)
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
        child = await workflow.start_child_workflow(
            Wave.run,
            WaveRequest(
                run=self._request.run,
                wave=self._wave,
                program="forward",
                nodes=nodes,
                parallel=min(parallel, len(nodes)),
                budget=budget,
                serial=serial,
                round=round_,
            ),
            id=identity,
            static_summary=f"wave {self._wave}: {len(nodes)} nodes, {parallel} at a time",
        )
        self._children[identity] = child
        if self._held:
            await child.signal(Wave.hold)
        try:
            return await child
        finally:
            del self._children[identity]

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
                if left > 0:
                    await self._wait(min(interval, left), f"bake of wave {wave.name}")
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
                if workflow.now() >= self._until:
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
