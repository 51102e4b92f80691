"""``Rollback``: the fence first, then the way back from what the hosts show."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Literal

from temporalio import workflow
from temporalio.exceptions import (
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from activities.errors import AWAY
    from activities.nodes import NodeActivities
    from activities.plans import PlanActivities
    from activities.serving import ServingActivities
    from kedge.model.base import Frozen, Json, digest_of
    from kedge.model.outside import quoted
    from kedge.model.plan import Choice
    from kedge.model.run import (
        THE_RUN,
        WHOLE_FAILURES,
        Failure,
        LookRequest,
        Observed,
        ObserveRequest,
        Phase,
        PlanFacts,
        ReturnRequest,
        RollbackRequest,
        RunEnd,
        WaveRequest,
        WaveResult,
        bounded,
        failure_of_the_run,
    )
    from kedge.model.status import RunStatus, Showing
    from kedge.plan.availability import UNAVAILABLE, of_refusal, serving_message
    from kedge.plan.progress import (
        FENCED,
        asked_again,
        executed_again,
        fenced_out,
        lacking,
        overwritten,
    )
    from kedge.plan.wayback import Return

from workflows.calls import SERIALS_A_WAVE, decide, end_run, survey, tell, why
from workflows.fanout import look_all, observe_all
from workflows.ordered import Open, Ordered, OrderMemory, instant
from workflows.wave import Wave, chunk_of


class RollbackState(Frozen):
    """Where a rollback is: which wave of the way back is next, which nodes people gave up, what is parked."""

    serial: int
    given_up: tuple[int, ...] = ()
    aside: tuple[Failure, ...] = ()
    """Of nodes whose connection broke off on their way back: they are left alone until a person says to try again."""
    done: int = 0
    steps: int = 0
    replayed: int = 0
    children: int = 0
    parks: int = 0
    held: bool = False
    retries: int = 0
    """How often people said to try again."""
    first: tuple[int, ...] = ()
    """Nodes that do not serve, found when another was to be stopped: they go back before those that serve."""
    consented: tuple[str, ...] = ()
    """Gates that were passed."""


class RollbackMemory(Frozen):
    """What a Rollback carries over continue-as-new."""

    state: RollbackState
    memory: OrderMemory


class Ended(Frozen):
    """How it ended."""

    phase: Literal["rolled-back", "rejected", "aborted", "preempted"]
    said: str


@workflow.defn(name="Rollback")
class Rollback(Ordered):
    """Fences every host, observes, decides, goes back wave by wave, and observes again until every node that was not
    given up runs its baseline. Each turn starts from an observation, so an interrupted way back needs no memory.

    Hosts that cannot be reached hold nobody up: the others go back first, then the run parks for these.
    """

    @workflow.init
    def __init__(self, request: RollbackRequest) -> None:
        carried = (
            RollbackMemory.model_validate_json(request.state)
            if isinstance(request.state, str)
            else None
        )
        super().__init__(request.run, request.requester, carried.memory if carried else None)
        if carried is None and request.ordered is not None:
            self._memory = self._memory.model_copy(update={"verdicts": (request.ordered,)})
        if carried is not None:
            self._run = request.run.model_copy(update={"warrant": carried.memory.warrant})
        self._request = request
        self._phase = "fencing"
        self._state = carried.state if carried else RollbackState(serial=request.serial)
        self._failures: tuple[Failure, ...] = ()
        self._child_id: str | None = None
        self._quick = False
        """The last legs were quick."""
        self._wave_child: workflow.ChildWorkflowHandle[Wave, WaveResult] | None = None
        self._wave = 0
        self._waves = 0
        self._ended: Ended | None = None
        self._ended_at: str | None = None

    @workflow.run
    async def run(self, request: RollbackRequest) -> RunEnd:  # noqa: ARG002 - read at init
        """Turns until every node that was not given up runs its baseline, or somebody ends it."""
        facts = self._facts = await self._read_plan()
        if facts is None:
            self._take_orders()
        while facts is not None:
            while self._ended is None:
                await self._turn(facts)
                if self._long() and self._ended is None:
                    await self._renew()
            ended = self._ended
            verdict = await end_run(self._run, ended.phase, ended.said)
            if verdict.ok:
                break
            # Whatever some worker answered: the record does not bear it out, and people decide.
            self._ended = None
            await self._park("end", (failure_of_the_run("NotRecorded", verdict.said),), facts)
        return await self._end(facts)

    @workflow.query(description="Where the way back is, what it waits for, and for whom.")
    def status(self) -> RunStatus:
        """Where the way back is, what it waits for, and for whom."""
        facts = self._facts
        return RunStatus(
            run=self._run.id,
            fleet=self._run.fleet,
            kind="rollback",
            plan=self._run.plan,
            epoch=self._run.epoch,
            phase=self._phase,
            held=self._state.held,
            said=self._said,
            requester=self._requester,
            before=facts.after if facts else "",
            after=facts.before if facts else "",
            waves=self._waves,
            wave=self._wave,
            nodes=facts.nodes if facts else 0,
            nodes_done=self._state.done,
            failures=self._failures,
            waiting=self._waiting(),
            child=self._child_id,
            started=self._memory.started,
            ended=self._ended_at,
            outcome=self._ended.phase if self._ended else "",
            orders=self._memory.verdicts,
            evidence=self._memory.head,
            steps=self._state.steps,
            replayed=self._state.replayed,
            seconds=self._spent_seconds(),
        )

    def _change(self, **update: object) -> None:
        self._state = self._state.model_copy(update=update)

    async def _note(self, key: str, record: dict[str, Json]) -> None:
        """Every decision is evidence. The serial is in the key: under one epoch an upgrade may go back twice."""
        await self._write(f"{key}-{self._state.serial}", {**record, "plan": self._run.plan})

    def _serials(self) -> int:
        first = self._state.serial
        self._change(serial=first + SERIALS_A_WAVE)
        return first

    # -- one turn: fence and look, decide, ask, go ---------------------------------------------------------------

    async def _turn(self, facts: PlanFacts) -> None:
        self._say("fencing", f"raises the fence on {facts.nodes} hosts and looks at them")
        serial = self._serials()
        seen = await observe_all(
            facts.nodes,
            lambda nodes: survey(
                NodeActivities.observe_nodes,
                ObserveRequest(run=self._run, nodes=nodes, serial=serial),
                f"fence and look at nodes {nodes[0]} to {nodes[-1]}",
                900,
            ),
        )
        if seen.fenced:
            self._ended = Ended(phase="preempted", said=FENCED)
            return
        missing = self._missing(seen)
        if any(failure.node == THE_RUN for failure in missing):
            await self._park("fence", missing, facts)
            return
        unseen = tuple(sorted(failure.node for failure in missing))
        moved = {*seen.after, *seen.mixed}
        first = tuple(node for node in self._state.first if node in moved)
        seen = seen.model_copy(update={"stopped": (*seen.stopped, *first)})
        choice = await decide(
            PlanActivities.choose_way_back,
            ReturnRequest(
                run=self._run,
                seen=seen,
                automatic=self._request.automatic,
                unseen=unseen,
                given_up=self._state.given_up,
            ),
            "decide the way back",
        )
        record = choice.model_dump(mode="json", exclude={"waves", "parallel"})
        nodes = [node for wave in choice.waves for node in wave]
        await self._note(
            "way-back",
            {
                "what": "way-back",
                **record,
                "nodes": list[Json](nodes),
                "unseen": list[Json](unseen),
                "given_up": list[Json](self._state.given_up),
            },
        )
        if missing and choice.verdict in ("nothing", "unclear"):
            strange = f"; {fenced_out(seen.unknown_fence)}" if seen.unknown_fence else ""
            await self._park("fence", missing, facts, f"{choice.said}{strange}")
        else:
            await self._follow(choice, facts, unseen)

    def _missing(self, seen: Observed) -> tuple[Failure, ...]:
        """Why nodes cannot go back now: what the look found, and those whose connection broke off on their way back."""
        found = tuple(
            failure for failure in seen.problems if failure.node not in self._state.given_up
        )
        known = {failure.node for failure in found}
        return found + tuple(one for one in self._state.aside if one.node not in known)

    async def _follow(self, choice: Return, facts: PlanFacts, missing: tuple[int, ...]) -> None:
        if choice.verdict == "nothing":
            await self._finish(choice, facts)
        elif choice.verdict in ("refuse", "unclear"):
            self._ended = Ended(phase="rejected", said=choice.said)
        elif (
            choice.verdict == "ask"
            and choice.gate is not None
            and choice.gate not in self._state.consented
        ):
            await self._consent(choice.gate, choice, facts)
        else:
            await self._go(choice, facts, missing)

    async def _finish(self, choice: Return, facts: PlanFacts) -> None:
        """Nothing is left to go back: the end is said after a look at every node, with what it saw."""
        serial = self._serials()
        seen = await look_all(
            facts.nodes,
            lambda nodes: survey(
                ServingActivities.look_nodes,
                LookRequest(
                    run=self._run,
                    wave=len(facts.waves),
                    nodes=nodes,
                    why="baseline",
                    serial=serial,
                    down=self._state.given_up,
                ),
                f"which of nodes {nodes[0]} to {nodes[-1]} serve",
                600,
            ),
        )
        if seen.fenced:
            return  # the next turn meets the fence, and says so
        if seen.problem is not None:
            await self._park("fence", (seen.problem,), facts)
            return
        new = tuple(f for f in seen.failures if f.node not in self._state.given_up)
        if new:
            saw = serving_message(seen.nodes, seen.failures)
            await self._park("serving", new, facts, f"{choice.said}, but {saw}")
            return
        self._ended = Ended(phase="rolled-back", said=choice.said)

    async def _consent(self, name: str, choice: Return, facts: PlanFacts) -> None:
        gate = next(gate for gate in facts.gates if gate.name == name)
        showing = Showing(
            run=self._run.id,
            plan=self._run.plan,
            subject=name,
            title=choice.said,
            said=(choice.said,),
            nodes=facts.nodes,
            nodes_done=self._state.done,
            reversible="no: data is lost",
            lost=choice.lost,
        )
        ended = await self._ask(gate, showing)
        if ended == "passed":
            self._change(consented=(*self._state.consented, name))
        elif ended == "expired":
            self._ended = Ended(
                phase="rejected", said=f"gate {name} expired: too few people signed in time"
            )
        else:
            self._take_orders()

    async def _go(self, choice: Return, facts: PlanFacts, missing: tuple[int, ...]) -> None:
        """Goes back part by part until all is done, or something else is to be done first."""
        self._waves = len(choice.waves)
        size = chunk_of(facts.legs[choice.program]) if choice.waves else 1
        for index, (nodes, parallel) in enumerate(zip(choice.waves, choice.parallel, strict=True)):
            self._wave = index
            for start in range(0, len(nodes), size):
                self._take_orders()
                if self._ended is not None:
                    return
                if self._state.held:
                    await self._pause()
                    return
                self._say("going-back", f"{choice.said}: part {index + 1} of {len(choice.waves)}")
                # Nodes that stay out keep their places among the unavailable.
                out = (*self._state.given_up, *missing)
                room = max(1, parallel - len(out))
                chunk = nodes[start : start + size]
                result = await self._chunk(choice, facts, chunk, room, out)
                self._quick = result.quick
                self._change(
                    done=self._state.done + result.done,
                    steps=self._state.steps + result.steps,
                    replayed=self._state.replayed + result.replayed,
                )
                if result.fenced:
                    said = "a newer run has the hosts: this one may not act on them any more"
                    self._ended = Ended(phase="preempted", said=said)
                    return
                if result.failures and all(one.type in AWAY for one in result.failures):
                    self._set_aside(result.failures)
                    return
                if result.failures:
                    await self._not_back(result.failures, facts)
                    return
                if result.refused:
                    await self._until_ordered()
                if self._full():
                    return
            if self._long():
                return

    async def _not_back(self, failures: tuple[Failure, ...], facts: PlanFacts) -> None:
        """Nodes that did not go back park the run. Where too many do not serve for another to be stopped, the next turn
        takes these first, once; when they still do not serve, people decide.
        """
        refused = [failure for failure in failures if failure.type == UNAVAILABLE]
        others = tuple(failure for failure in failures if failure.type != UNAVAILABLE)
        if others or not refused:
            await self._park("back", others or failures, facts)
            return
        missing = tuple(
            failure
            for failure in of_refusal(refused[0])
            if failure.node not in self._state.given_up
        )
        nodes = {failure.node for failure in missing}
        if nodes <= set(self._state.first):
            await self._park("serving", missing or tuple(refused), facts, refused[0].said)
        else:
            self._change(first=tuple(sorted({*self._state.first, *nodes})))

    async def _until_ordered(self) -> None:
        """The record has an order that holds this run; it is on its way to here."""
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                self._disturbed, timeout=timedelta(seconds=10), timeout_summary="an order comes"
            )

    async def _chunk(
        self,
        choice: Return,
        facts: PlanFacts,
        nodes: tuple[int, ...],
        parallel: int,
        out: tuple[int, ...],
    ) -> WaveResult:
        """So many nodes at a time; without those that are ``out``, one at a time is always possible."""
        self._change(children=self._state.children + 1)
        identity = f"{self._run.id}/wave/{self._state.children}"
        serial = self._serials()
        request = WaveRequest(
            run=self._run,
            wave=choice.begun,
            program=choice.program,
            legs=facts.legs[choice.program],
            nodes=nodes,
            parallel=min(parallel, len(nodes)),
            budget=0,
            serial=serial,
            # What the hosts showed counts, not what an earlier turn did: a node that went back and died since has all
            # its steps in the journal, and still must be started. Serials grow in all runs under one epoch.
            round=serial // SERIALS_A_WAVE,
            anew=self._state.retries,
            accepted=out,
            quick=self._quick,
        )
        try:
            child = await workflow.start_child_workflow(
                Wave.run,
                request,
                id=identity,
                static_summary=f"{len(nodes)} nodes go back, {parallel} at a time",
            )
            self._wave_child, self._child_id = child, identity
            await self._woken()
            return await child
        except (ChildWorkflowError, WorkflowAlreadyStartedError) as error:
            if is_cancelled_exception(error):
                raise
            said = f"{identity} did not come to its end: {why(error)}"
            lost = failure_of_the_run("Lost", said, choice.program)
            return WaveResult(done=0, steps=0, replayed=0, failures=(lost,), remaining=nodes)
        finally:
            self._wave_child = None
            self._child_id = None

    def _set_aside(self, failures: tuple[Failure, ...]) -> None:
        """Nobody answered on these nodes, or not to the end: the next turn goes on with the others."""
        nodes = {failure.node for failure in failures}
        kept = tuple(one for one in self._state.aside if one.node not in nodes)
        self._change(aside=bounded(kept + failures))

    # -- orders --------------------------------------------------------------------------------------------------

    async def _woken(self) -> None:
        stopping = (self._preempted is not None or self._full()) or any(
            v.verb in ("pause", "abort") for v in self._inbox
        )
        if stopping and self._wave_child is not None:
            await tell(self._wave_child, Wave.hold)

    def _take_orders(self) -> str:
        """Apply what came; returns the choice of a decision, if one was among them."""
        chosen = ""
        if self._preempted is not None:
            self._ended = Ended(
                phase="preempted", said=f"pre-empted by {self._preempted.successor}"
            )
        while self._inbox:
            verdict = self._inbox.popleft()
            if verdict.verb == "pause":
                self._change(held=True)
            elif verdict.verb == "resume":
                self._change(held=False)
            elif verdict.verb == "abort" or verdict.choice == "abort":
                self._ended = Ended(
                    phase="aborted", said=f"aborted by {verdict.person}: nodes stay as they are"
                )
            elif verdict.verb == "reject":
                self._ended = Ended(
                    phase="rejected",
                    said=f"gate {verdict.subject} was rejected by {verdict.person}",
                )
            elif verdict.verb == "decide" and verdict.choice is not None:
                chosen = verdict.choice
        if self._ended is not None:
            self._close()
        return chosen

    async def _pause(self) -> None:
        self._say("paused", "paused: waits for a resume or an abort")
        self._advertise("resume")
        while self._state.held and self._ended is None and not self._crowded():
            await workflow.wait_condition(self._disturbed)
            self._take_orders()
        self._advertise("")

    async def _park(
        self, where: str, failures: tuple[Failure, ...], facts: PlanFacts, stands: str = ""
    ) -> None:
        """Says what happened and waits for a decision: retry, skip (give these nodes up), or abort."""
        self._failures = failures
        number = self._state.parks + 1
        first = failures[0]
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        said = (
            f"{where}: {first.name} at {first.step or 'no step'}: {first.type}: {quoted(first.said)}{more}"
            f"{executed_again(failures)}{overwritten(failures)}{asked_again(failures)}{f'; {stands}' if stands else ''}"
        )
        if where == "serving":
            said = stands  # it names the nodes and what was seen
        # What is wrong with the whole run is not mended by giving nodes up.
        of_nodes = all(failure.node != THE_RUN for failure in failures)
        choices: tuple[Choice, ...] = ("retry", "skip", "abort") if of_nodes else ("retry", "abort")
        showing = Showing(
            run=self._run.id,
            plan=self._run.plan,
            subject=f"{where}-{number}",
            title=said,
            nodes=facts.nodes,
            nodes_done=self._state.done,
            failures=failures[:WHOLE_FAILURES],
            choices=choices,
        )
        self._change(parks=number)
        self._memory = self._memory.model_copy(update={"since": instant()})
        shown = digest_of(showing)
        await self._note(
            showing.subject, {"what": "parked", "said": said, "choices": list[Json](choices)}
        )
        await self._asked(showing, shown)
        self._open = Open(subject=showing.subject, showing=showing, shown=shown, choices=choices)
        self._say("parked", said)
        self._advertise(f"decision {showing.subject}")
        chosen = ""
        while not chosen and self._ended is None and not self._crowded():
            await workflow.wait_condition(self._disturbed)
            chosen = self._take_orders()
        self._close()
        self._failures = ()
        if chosen == "retry":
            missing = lacking(failures)
            consented = tuple(gate for gate in self._state.consented if gate not in missing)
            self._change(retries=self._state.retries + 1, consented=consented, aside=(), first=())
        if chosen == "skip":
            nodes = {failure.node for failure in failures}
            self._change(given_up=tuple(sorted({*self._state.given_up, *nodes})))

    async def _renew(self) -> None:
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self._inbox or self._preempted is not None:
            return
        memory = RollbackMemory(state=self._state, memory=self._remembered())
        workflow.continue_as_new(
            self._request.model_copy(update={"run": self._run, "state": memory.model_dump_json()})
        )

    async def _end(self, facts: PlanFacts | None) -> RunEnd:
        ended = self._ended or Ended(phase="preempted", said="a newer run took the lease")
        self._close()
        self._ended_at = instant()
        self._say(phase_of(ended), ended.said)
        await self._note(
            "ended",
            {
                "what": "ended",
                "outcome": ended.phase,
                "said": ended.said,
                "refused": self._memory.refused,
            },
        )
        if not self._request.automatic:
            fleet = workflow.get_external_workflow_handle(f"fleet/{self._run.fleet}")
            try:
                await fleet.signal("run_ended", self._run.id)
            except Exception as error:  # noqa: BLE001 - the fleet may be gone; the end does not depend on it
                workflow.logger.warning("the fleet could not be told: %s", error)
        await workflow.wait_condition(workflow.all_handlers_finished)
        whole = facts is not None and ended.phase == "rolled-back" and not self._state.given_up
        return RunEnd(
            run=self._run.id,
            phase=ended.phase,
            said=ended.said,
            release=facts.before if facts is not None and whole else None,
            release_document=facts.before_document if facts is not None and whole else None,
            nodes_done=self._state.done,
            steps=self._state.steps,
            replayed=self._state.replayed,
            glass=self._memory.glass,
        )


def phase_of(ended: Ended) -> Phase:
    """The phase people see at the end."""
    return ended.phase
