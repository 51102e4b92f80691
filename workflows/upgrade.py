"""``Upgrade``: one migration. It interprets ``kedge.plan.progress``: state → command → event → state."""

from __future__ import annotations

from typing import Literal

from temporalio import workflow
from temporalio.exceptions import (
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.nodes import NodeActivities
    from activities.orders import OrderActivities
    from activities.serving import ServingActivities
    from kedge.model.base import Frozen, Json, digest_of
    from kedge.model.plan import Verb
    from kedge.model.run import (
        Failure,
        Looked,
        LookRequest,
        ObserveRequest,
        Phase,
        PlanFacts,
        RollbackRequest,
        RunEnd,
        UpgradeRequest,
        WarrantUpdate,
        WaveRequest,
        WideningRequest,
        WideningStop,
        failure_of_the_run,
    )
    from kedge.model.status import RunStatus, Showing
    from kedge.plan import progress
    from kedge.plan.progress import Act, Event, UpgradeState
    from kedge.plan.progress import Ordered as OrderEvent
    from kedge.plan.showing import showing_of

from workflows.calls import (
    SERIALS_A_WAVE,
    SERIALS_OF_A_LOST_CHILD,
    attributes,
    decide,
    end_run,
    survey,
    tell,
    why,
)
from workflows.canary_widening import CanaryWidening
from workflows.fanout import look_all, observe_all
from workflows.ordered import MOST_GLASS, Open, Ordered, OrderMemory, instant
from workflows.rollback import Rollback
from workflows.wave import Wave

PHASES: dict[str, Phase] = {
    "preflight": "preflight",
    "ask": "gate",
    "widen": "widening",
    "wait": "parked",
    "look": "finalizing",
    "finalize": "finalizing",
    "go-back": "going-back",
}
LOOK_AGAIN, LOOK_AGAIN_AT_MOST = 30.0, 600.0
"""Seconds after which the nodes are looked at again while a gate waits: more, the longer it waits."""
OUTCOMES: dict[str, Phase] = {
    "done": "done",
    "aborted": "aborted",
    "rejected": "rejected",
    "preempted": "preempted",
    "rolled-back": "rolled-back",
    "going-back-failed": "aborted",
}


class UpgradeMemory(Frozen):
    """What an Upgrade carries over continue-as-new."""

    state: UpgradeState
    memory: OrderMemory
    waves: int = 0
    """Widening children that were started: the next one's number."""


@workflow.defn(name="Upgrade")
class Upgrade(Ordered):
    """One migration, from preflight to its end. Orders that come while a command is carried out wait in the inbox;
    pause, abort and pre-emption also make the running child hold, so that it comes back soon.
    """

    @workflow.init
    def __init__(self, request: UpgradeRequest) -> None:
        carried = (
            UpgradeMemory.model_validate_json(request.state)
            if isinstance(request.state, str)
            else None
        )
        super().__init__(request.run, request.requester, carried.memory if carried else None)
        if carried is not None:
            self._run = request.run.model_copy(update={"warrant": carried.memory.warrant})
        self._request = request
        self._state = carried.state if carried else UpgradeState()
        self._children = carried.waves if carried else 0
        self._seen: Looked | None = None
        """What the last look for a gate saw."""
        self._widening: workflow.ChildWorkflowHandle[CanaryWidening, object] | None = None
        self._going_back: workflow.ChildWorkflowHandle[Rollback, RunEnd] | None = None
        self._child_id: str | None = None
        self._successor: str | None = None
        self._ended: str | None = None
        self._left: tuple[str | None, str | None] = (None, None)
        """The release that a way back left on every node, with its document."""

    @workflow.run
    async def run(self, request: UpgradeRequest) -> RunEnd:  # noqa: ARG002 - read at init
        """State, command, event, state, until the end."""
        facts = self._facts = await self._read_plan()
        if facts is None:
            said = f"pre-empted by {self._successor_said()}"
            self._state = progress.preempted(self._state, said)
            return await self._end(None)
        while not await self._ended_well(facts):
            act = progress.command(self._state)
            event = await self._do(act, facts)
            if event is not None:
                await self._advance(event, facts)
            await self._take_orders(facts)
            if self._long() and self._state.stage != "ended":
                await self._renew()
        return await self._end(facts)

    async def _ended_well(self, facts: PlanFacts) -> bool:
        """Whether it ended, and the record bears out how; where it does not, people decide."""
        state = self._state
        if progress.command(state).what != "end":
            return False
        verdict = await end_run(self._run, OUTCOMES.get(state.outcome, "aborted"), state.said)
        if not verdict.ok:
            event = progress.NotRecorded(said=verdict.said, missing=verdict.missing)
            self._state = progress.reopened(state, event, facts)
            await self._note("NotRecorded")
        return verdict.ok

    @workflow.query(description="Where the run is, what it waits for, and for whom.")
    def status(self) -> RunStatus:
        """Where the run is, what it waits for, and for whom."""
        facts, state = self._facts, self._state
        return RunStatus(
            run=self._run.id,
            fleet=self._run.fleet,
            kind="upgrade",
            plan=self._run.plan,
            epoch=self._run.epoch,
            phase=self._phase,
            held=state.held,
            said=self._said,
            requester=self._requester,
            before=facts.before if facts else "",
            after=facts.after if facts else "",
            waves=len(facts.waves) if facts else 0,
            wave=state.wave,
            nodes=facts.nodes if facts else 0,
            nodes_done=state.done,
            failures=self._failures(),
            waiting=self._waiting(),
            child=self._child_id,
            started=self._memory.started,
            ended=self._ended,
            outcome=state.outcome,
            successor=self._successor,
            orders=self._memory.verdicts,
            evidence=self._memory.head,
            steps=state.steps,
            replayed=state.replayed,
            seconds=self._spent_seconds(),
            policy=facts.policy if facts else None,
        )

    def _failures(self) -> tuple[Failure, ...]:
        """What people are told of nodes: of a parked run why it is, at a gate also who was seen not to serve."""
        state = self._state
        if state.parked is not None:
            return state.parked.failures
        at_gate = self._seen is not None and state.stage == "gate"
        return (*(self._seen.failures if self._seen and at_gate else ()), *state.failures)

    # -- the interpreter -----------------------------------------------------------------------------------------

    async def _do(self, act: Act, facts: PlanFacts) -> Event | None:
        """Carry out one command; None when an order interrupted it."""
        if act.what == "preflight":
            return await self._preflight(facts)
        if act.what == "ask" and act.gate is not None:
            return await self._gate(act.gate, facts)
        if act.what == "widen":
            return await self._widen(facts)
        if act.what == "look":
            return await self._look_at_all(facts)
        if act.what == "finalize":
            return await self._finalize(facts)
        if act.what == "go-back":
            return await self._go_back(facts)
        await self._wait(facts)
        return None

    async def _advance(self, event: Event, facts: PlanFacts) -> None:
        before, after = self._state, progress.advance(self._state, event, facts)
        self._state = after
        if _place(before) != _place(after):
            await self._note(type(event).__name__)

    async def _note(self, event: str) -> None:
        """Every decision is evidence: the event, and where it led."""
        state = self._state
        record: dict[str, Json] = {
            "what": "decision",
            "event": event,
            "stage": state.stage,
            "wave": state.wave,
            "gate": state.gate,
            "passed": list(state.passed),
            "outcome": state.outcome,
            "said": state.parked.said if state.parked else state.said,
            "refused": self._memory.refused,
        }
        await self._write(
            "-".join(str(part) for part in (event, *_place(state), state.serial)), record
        )

    async def _take_orders(self, facts: PlanFacts) -> None:
        if self._preempted is not None:
            said = f"pre-empted by {self._successor_said()}"
            await self._advance(OrderEvent(verb="preempt", person="", said=said), facts)
        while self._inbox:
            verdict = self._inbox.popleft()
            if verdict.verb in ("pause", "resume", "abort", "decide"):
                await self._advance(
                    OrderEvent(verb=verdict.verb, person=verdict.person, choice=verdict.choice),
                    facts,
                )
            elif verdict.verb == "reject":
                self._forget_signatures()
                await self._advance(
                    progress.GateEnded(
                        gate=verdict.subject,
                        how="rejected",
                        person=verdict.person,
                        comment=verdict.comment,
                    ),
                    facts,
                )
        if self._open is not None and self._state.stage not in ("gate", "parked"):
            self._close()

    async def _woken(self) -> None:
        stopping = (self._preempted is not None or self._full()) or any(
            v.verb in ("pause", "abort") for v in self._inbox
        )
        if stopping and self._widening is not None:
            await tell(self._widening, CanaryWidening.hold)
        if self._preempted is not None and self._going_back is not None:
            # Parked, it would wait for a decision for ever. It believes the order, not this run.
            await tell(self._going_back, Rollback.preempted, self._preempted)

    def _verbs(self) -> tuple[Verb, ...]:
        """Once the way back has begun, orders go to the run that goes it."""
        return () if self._state.stage in ("go-back", "ended") else super()._verbs()

    def _successor_said(self) -> str:
        if self._preempted is not None:
            self._successor = self._preempted.successor
        return self._successor or "a newer run"

    async def _preflight(self, facts: PlanFacts) -> Event:
        self._say("preflight", f"looks at {facts.nodes} nodes")
        serial = self._state.serial
        seen = await observe_all(
            facts.nodes,
            lambda nodes: survey(
                NodeActivities.observe_nodes,
                ObserveRequest(run=self._run, nodes=nodes, serial=serial, probes=True),
                f"preflight of nodes {nodes[0]} to {nodes[-1]}",
                900,
            ),
        )
        astray = {*seen.stopped, *seen.mixed}
        return progress.PreflightSeen(
            failures=seen.problems,
            there=tuple(node for node in seen.after if node not in astray),
            serial=serial + 1,
            unknown_fence=seen.unknown_fence,
        )

    async def _gate(self, name: str, facts: PlanFacts) -> Event | None:
        gate = next(gate for gate in facts.gates if gate.name == name)
        seen = self._seen = await self._see("gate", facts)
        age = self._age().total_seconds() if self._memory.gate.startswith(f"{name}:") else 0.0
        ended = await self._ask(
            gate,
            showing_of(self._run, self._state, facts, name, seen),
            again=min(max(age / 2, LOOK_AGAIN), LOOK_AGAIN_AT_MOST),
        )
        if ended == "passed":
            return progress.GateEnded(gate=name, how="passed")
        return progress.GateEnded(gate=name, how="expired") if ended == "expired" else None

    async def _still(self, showing: Showing) -> bool:
        """The nodes are looked at once more: who signed saw them as they are."""
        facts = self._facts
        if facts is None:
            return True
        self._say("gate", f"looks at {facts.nodes} nodes before gate {showing.subject} passes")
        seen = await self._see("gate", facts)
        if seen.problem is not None and seen.problem.type == "NotAuthorised":
            # No signature helps: the wave's own look meets the same refusal before it stops a node, and parks.
            return True
        return showing_of(self._run, self._state, facts, showing.subject, seen) == showing

    async def _see(self, why: Literal["gate", "end"], facts: PlanFacts) -> Looked:
        """A look at every node. The serials are used up: one is never used for two looks."""
        state = self._state
        serial = state.serial
        self._state = state.model_copy(update={"serial": serial + 1})
        seen = await look_all(
            facts.nodes,
            lambda nodes: survey(
                ServingActivities.look_nodes,
                LookRequest(
                    run=self._run,
                    wave=state.wave,
                    nodes=nodes,
                    why=why,
                    serial=serial,
                    down=state.down,
                    ensure=state.ensure,
                ),
                f"which of nodes {nodes[0]} to {nodes[-1]} serve",
                600,
            ),
        )
        self._looked_at = instant()
        return seen

    async def _look_at_all(self, facts: PlanFacts) -> Event:
        self._say("finalizing", f"looks at {facts.nodes} nodes")
        seen = await self._see("end", facts)
        return progress.LookedAtAll(
            nodes=seen.nodes,
            failures=seen.failures,
            problem=seen.problem,
            fenced=seen.fenced,
            serial=self._state.serial,
        )

    async def _widen(self, facts: PlanFacts) -> Event:
        state = self._state
        wave = facts.waves[state.wave]
        self._say("widening", f"wave {wave.name}: {wave.size} nodes, {wave.parallel} at a time")
        self._children += 1
        identity = f"{self._run.id}/widening/{self._children}"
        request = WideningRequest(
            run=self._run,
            facts=facts,
            wave=state.wave,
            serial=state.serial,
            passed=state.passed,
            again=state.again,
            down=state.down,
            accepted=state.accepted,
            there=state.there,
            absent=state.absent,
            ensure=state.ensure,
        )
        try:
            child = await workflow.start_child_workflow(
                CanaryWidening.run,
                request,
                id=identity,
                search_attributes=attributes(self._run.fleet, "widening", facts.after),
                static_summary=f"from wave {wave.name} until a decision is needed",
            )
            self._widening, self._child_id = child, identity
            if self._inbox or self._preempted is not None:
                await self._woken()
            return progress.Widened(stop=await child)
        except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            lost = failure_of_the_run("Lost", f"{identity} did not come to its end: {why(error)}")
            return progress.Widened(
                stop=WideningStop(
                    why="failed",
                    wave=state.wave,
                    serial=state.serial + SERIALS_OF_A_LOST_CHILD,
                    failures=(lost,),
                    remaining=state.again.nodes if state.again is not None else (),
                    down=state.down,
                    where="wave",
                )
            )
        finally:
            self._widening = None
            self._child_id = None

    async def _finalize(self, facts: PlanFacts) -> Event | None:
        self._say("finalizing", "runs the finalize steps")
        node, serial = facts.finalize_node, self._state.serial
        if node is None:
            return progress.Finalized(serial=serial)
        if node in self._state.down:
            node = next((n for n in range(facts.nodes) if n not in self._state.down), node)
        self._children += 1
        identity = self._child_id = f"{self._run.id}/finalize/{self._children}"
        request = WaveRequest(
            run=self._run,
            wave=None,
            program="finalize",
            legs=facts.legs["finalize"],
            nodes=(node,),
            parallel=1,
            budget=0,
            serial=serial,
            round=self._state.round,
            anew=self._state.round,
        )
        steps, replayed, used = 0, 0, SERIALS_A_WAVE
        try:
            result = await workflow.execute_child_workflow(
                Wave.run, request, id=identity, static_summary="finalize"
            )
            steps, replayed = result.steps, result.replayed
            failure = result.failures[0] if result.failures else None
            if result.fenced:
                failure = failure_of_the_run("Fenced", progress.FENCED, "finalize")
            elif failure is None and result.remaining:
                # Somebody told the child to hold before it began; nobody here did, so it begins again.
                return None
        except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            said = f"{identity} did not come to its end: {why(error)}"
            failure, used = failure_of_the_run("Lost", said, "finalize"), SERIALS_OF_A_LOST_CHILD
        finally:
            self._child_id = None
        return progress.Finalized(
            failure=failure, serial=serial + used, steps=steps, replayed=replayed
        )

    async def _go_back(self, facts: PlanFacts) -> Event:
        self._say("going-back", self._state.said)
        number = self._run.id.rsplit("/", 1)[1]
        identity = f"rollback/{self._run.fleet}/{number}-auto"
        self._successor = self._child_id = identity
        warrant, decided = self._run.warrant, self._memory.decided
        if self._state.chosen and decided is not None:
            warrant = await decide(
                OrderActivities.write_warrant,
                WarrantUpdate(start=decided),
                "the way back acts on the decision",
            )
        request = RollbackRequest(
            run=self._run.model_copy(update={"id": identity, "warrant": warrant}),
            requester=self._requester,
            of=self._run.id,
            automatic=True,
            serial=self._state.serial,
        )
        try:
            child = await workflow.start_child_workflow(
                Rollback.run,
                request,
                id=identity,
                search_attributes=attributes(self._run.fleet, "fencing", facts.before),
                static_summary=f"the way back of {self._run.id}",
            )
            self._going_back = child
            if self._preempted is not None:
                await self._woken()
            end = await child
        except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            said = f"{identity} did not come to its end: {why(error)}"
            return progress.WentBack(
                ok=False, said=said, serial=request.serial + SERIALS_OF_A_LOST_CHILD
            )
        finally:
            self._going_back = None
            self._child_id = None
        self._left = (end.release, end.release_document)
        self._memory = self._memory.model_copy(
            update={"glass": (*self._memory.glass, *end.glass)[:MOST_GLASS]}
        )
        return progress.WentBack(
            ok=end.phase == "rolled-back",
            by=end.phase if end.phase in ("aborted", "preempted") else None,
            said=end.said,
            serial=request.serial + SERIALS_OF_A_LOST_CHILD,
        )

    async def _wait(self, facts: PlanFacts) -> None:
        """Parked or paused: nothing moves until an order comes."""
        parked = self._state.parked
        if parked is not None:
            showing = showing_of(self._run, self._state, facts, parked.subject)
            shown = digest_of(showing)
            if self._open is None or self._open.subject != parked.subject:
                self._memory = self._memory.model_copy(update={"since": instant()})
                await self._asked(showing, shown)
            self._open = Open(
                subject=parked.subject,
                showing=showing,
                shown=shown,
                choices=parked.choices,
            )
            self._say("parked", parked.said)
            self._advertise(f"decision {parked.subject}")
        else:
            self._say("paused", "paused: waits for a resume or an abort")
            self._advertise("resume")
        await workflow.wait_condition(self._disturbed)

    async def _renew(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._inbox or self._preempted is not None:
            return
        memory = UpgradeMemory(state=self._state, memory=self._remembered(), waves=self._children)
        workflow.continue_as_new(
            self._request.model_copy(update={"run": self._run, "state": memory.model_dump_json()})
        )

    def _left_on(self, facts: PlanFacts) -> tuple[str | None, str | None]:
        """Which release, with its document, every node of the fleet is left on; none when they are mixed."""
        state = self._state
        if state.outcome == "done" and not state.down:
            return facts.after, facts.after_document
        if self._children == 0 and state.whole and state.outcome in ("rejected", "aborted"):
            return facts.before, facts.before_document
        return self._left if state.outcome == "rolled-back" else (None, None)

    async def _end(self, facts: PlanFacts | None) -> RunEnd:
        state = self._state
        phase: Phase = OUTCOMES.get(state.outcome, "aborted")
        self._close()
        self._ended = instant()
        self._say(phase, state.said)
        release = self._left_on(facts) if facts is not None else (None, None)
        fleet = workflow.get_external_workflow_handle(f"fleet/{self._run.fleet}")
        try:
            await fleet.signal("run_ended", self._run.id)
        except Exception as error:  # noqa: BLE001 - the fleet may be gone; the run's end does not depend on it
            workflow.logger.warning("the fleet could not be told: %s", error)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return RunEnd(
            run=self._run.id,
            phase=phase,
            said=state.said,
            release=release[0],
            release_document=release[1],
            nodes_done=state.done,
            steps=state.steps,
            replayed=state.replayed,
            successor=self._successor,
            glass=self._memory.glass,
        )


def _place(state: UpgradeState) -> tuple[str, int, str | None, int]:
    """What makes a state another one to who reads the record."""
    return state.stage, state.wave, state.gate, state.parks
