"""An upgrade as an automaton: a state that says everything, one command that follows from it, and events.

``command(state)`` says what to do next; the interpreter does it, and tells what happened by an event;
``advance(state, event, facts)`` gives the next state. Orders of people are events too. States are frozen and
JSON-able, so an interpreter may die between any two steps and go on from the state it kept.
"""

from __future__ import annotations

from typing import Literal

from kedge.model.base import Frozen, Name
from kedge.model.outside import quoted
from kedge.model.plan import Choice
from kedge.model.run import THE_RUN, Again, Failure, PlanFacts, WideningStop
from kedge.plan.availability import serving_message
from kedge.plan.wayback import automatic_way_back

Stage = Literal["preflight", "gate", "widen", "parked", "look", "finalize", "go-back", "ended"]
Outcome = Literal[
    "", "done", "aborted", "rejected", "preempted", "rolled-back", "going-back-failed"
]

EDITED = "EditedByHand"
FENCED = "a newer run has the hosts: this one may not act on them any more"


ParkedAt = Literal["preflight", "wave", "bake", "serving", "finalize", "gate", "end", "go-back"]


def fenced_out(unknown: int) -> str:
    """Why a run may not act on the hosts that it looked at; ``unknown`` is the epoch of a fence that no lease has."""
    if not unknown:
        return FENCED
    return (
        f"a host holds the fence of epoch {unknown}, which no lease in this record has: look who raised it, "
        "then order again: the next lease is above it"
    )


class Parked(Frozen):
    """A run that cannot go on by itself. ``subject`` names the item in orders; ``where`` says which command failed, or
    that too many nodes are not ``serving``.
    """

    subject: str
    where: ParkedAt
    said: str
    failures: tuple[Failure, ...] = ()
    remaining: tuple[int, ...] = ()
    choices: tuple[Choice, ...]


class UpgradeState(Frozen):
    """Where an upgrade is. ``wave`` is the next wave to begin or to take up ``again``; ``passed`` the gates that were
    passed; ``down`` the nodes that are out; ``committed`` holds once anything behind the point of no return was begun.
    """

    stage: Stage = "preflight"
    wave: int = 0
    begun: int = 0
    """Number of waves that were begun."""
    serial: int = 1
    again: Again | None = None
    round: int = 0
    passed: tuple[Name, ...] = ()
    lacking: tuple[Name, ...] = ()
    """Gates whose signatures did not count any more when they were needed: they are asked again before what comes next."""
    gate: Name | None = None
    down: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    """The nodes of ``down`` without which a person said to go on."""
    absent: tuple[int, ...] = ()
    """Nodes that were moved and do not serve, without which a person said to go on."""
    ensure: bool = False
    """A person said to try again because nodes do not serve: the next look first starts what should run."""
    looked: bool = False
    """Every node was looked at since the last thing that was done: what comes next may rely on it."""
    finalized: bool = False
    saw: str = ""
    """What that look saw."""
    there: tuple[int, ...] = ()
    whole: bool = False
    """Preflight found every node on the old release, and nothing wrong with any."""
    failures: tuple[Failure, ...] = ()
    done: int = 0
    steps: int = 0
    replayed: int = 0
    held: bool = False
    committed: bool = False
    parked: Parked | None = None
    parks: int = 0
    chosen: bool = False
    """The way back was decided by a person, not by the runbook."""
    outcome: Outcome = ""
    said: str = ""


class Act(Frozen):
    """A command: what the interpreter does next. ``wait``: nothing until an order comes."""

    what: Literal["preflight", "ask", "widen", "wait", "look", "finalize", "go-back", "end"]
    gate: Name | None = None


class PreflightSeen(Frozen):
    """Preflight ended; ``failures`` empty is a pass."""

    failures: tuple[Failure, ...] = ()
    there: tuple[int, ...] = ()
    """Nodes that run the new release already."""
    serial: int
    unknown_fence: int = 0
    """See :class:`kedge.model.run.Observed`."""


class GateEnded(Frozen):
    """A gate was passed, rejected by ``person``, or nobody came before it expired."""

    gate: Name
    how: Literal["passed", "rejected", "expired"]
    person: str = ""
    comment: str = ""


class Widened(Frozen):
    """Widening returned."""

    stop: WideningStop


class LookedAtAll(Frozen):
    """Every node was looked at; ``failures`` are those that do not serve on the new release, ``problem`` why that could
    not be said at all.
    """

    nodes: int
    failures: tuple[Failure, ...] = ()
    problem: Failure | None = None
    fenced: bool = False
    serial: int


class Finalized(Frozen):
    """The finalize steps ended; ``failure`` None is success."""

    failure: Failure | None = None
    serial: int
    steps: int = 0
    replayed: int = 0


class WentBack(Frozen):
    """The way back that a run began by itself ended; ``by`` a person's abort or a newer run, if not by itself."""

    ok: bool
    said: str
    by: Literal["aborted", "preempted"] | None = None
    serial: int = 1


class NotRecorded(Frozen):
    """The record does not bear out how the run says that it ended: ``missing`` nodes have no leg in it."""

    said: str
    missing: tuple[int, ...] = ()


class Ordered(Frozen):
    """An accepted order of a person. ``choice`` for decide."""

    verb: Literal["pause", "resume", "abort", "decide", "preempt"]
    person: str
    choice: Choice | None = None
    said: str = ""


Event = PreflightSeen | GateEnded | Widened | LookedAtAll | Finalized | WentBack | Ordered


def gates_before(state: UpgradeState, facts: PlanFacts) -> tuple[str, ...]:
    """The gates that stand before what comes next and were not passed yet, in order."""
    wanted: list[str] = [*state.lacking, *([facts.start_gate] if facts.start_gate else [])]
    if state.wave < len(facts.waves):
        wanted += facts.waves[state.wave].gates
    elif facts.commit is not None and facts.commit.wave is None and facts.finalize_node is not None:
        wanted.append(facts.commit.gate)
    return tuple(gate for gate in dict.fromkeys(wanted) if gate not in state.passed)


def command(state: UpgradeState) -> Act:
    """What follows from a state."""
    if state.stage == "ended":
        return Act(what="end")
    if state.stage == "parked" or (state.held and state.stage != "gate"):
        return Act(what="wait")
    if state.stage == "gate":
        return Act(what="ask", gate=state.gate)
    return Act(what=state.stage)


def advance(state: UpgradeState, event: Event, facts: PlanFacts) -> UpgradeState:
    """The state after an event. Events that do not fit the state change nothing: they came too late."""
    if state.stage == "ended":
        return state
    if isinstance(event, Ordered):
        return _ordered(state, event, facts)
    if isinstance(event, PreflightSeen):
        return _preflight(state, event, facts)
    if isinstance(event, GateEnded):
        return _gate(state, event, facts)
    if isinstance(event, Widened):
        return _widened(state, event.stop, facts)
    if isinstance(event, LookedAtAll):
        return _looked_at_all(state, event, facts)
    if isinstance(event, Finalized):
        return _finalized(state, event, facts)
    return _went_back(state, event, facts)


def preempted(state: UpgradeState, said: str) -> UpgradeState:
    """The state after a newer run took the lease."""
    return _end(state, "preempted", said)


def reopened(state: UpgradeState, event: NotRecorded, facts: PlanFacts) -> UpgradeState:
    """The state after an end that the record does not bear out: what is missing is out, and people decide."""
    state = state.model_copy(
        update={
            "outcome": "",
            "down": tuple(sorted({*state.down, *event.missing})),
            "accepted": tuple(node for node in state.accepted if node not in event.missing),
        }
    )
    where: Literal["end", "go-back"] = "end" if state.wave >= len(facts.waves) else "go-back"
    said = f"the record does not bear out that the run ended: {event.said}"
    return _park(state, where, (), (), facts, said=said)


def _end(state: UpgradeState, outcome: Outcome, said: str) -> UpgradeState:
    return state.model_copy(
        update={"stage": "ended", "outcome": outcome, "said": said, "parked": None, "gate": None}
    )


def _onward(state: UpgradeState, facts: PlanFacts) -> UpgradeState:
    """Whatever comes next at this wave: a gate, the wave, the finalize steps, nodes still down, or the end."""
    missing = gates_before(state, facts)
    if missing:
        return state.model_copy(update={"stage": "gate", "gate": missing[0], "parked": None})
    if state.wave < len(facts.waves):
        behind = (
            facts.commit is not None
            and facts.commit.wave is not None
            and state.wave >= facts.commit.wave
        )
        return state.model_copy(
            update={
                "stage": "widen",
                "gate": None,
                "parked": None,
                "committed": state.committed or behind,
                "begun": max(state.begun, state.wave + 1),
            }
        )
    if not state.looked:
        return state.model_copy(update={"stage": "look", "gate": None, "parked": None})
    if facts.finalize_node is not None and not state.finalized:
        behind = facts.commit is not None and facts.commit.wave is None
        return state.model_copy(
            update={
                "stage": "finalize",
                "gate": None,
                "parked": None,
                "committed": state.committed or behind,
            }
        )
    return _end(state, "done", _done_said(state))


def _done_said(state: UpgradeState) -> str:
    """The end, said right after a look at every node (``saw``)."""
    seen = f"; {state.saw}" if state.saw else ""
    if state.down:
        return (
            f"done, but {len(state.down)} node(s) were skipped and are not on the new release{seen}"
        )
    if state.absent:
        return f"done, but without {len(state.absent)} node(s) that do not serve{seen}"
    return f"done: every node is on the new release{seen}"


def _looked_at_all(state: UpgradeState, event: LookedAtAll, facts: PlanFacts) -> UpgradeState:
    state = state.model_copy(update={"serial": event.serial, "ensure": False})
    if event.fenced:
        return _end(state, "preempted", FENCED)
    if event.problem is not None:
        return _park(state, "end", (event.problem,), (), facts)
    left_out = {*state.down, *state.absent}
    new = tuple(failure for failure in event.failures if failure.node not in left_out)
    saw = serving_message(event.nodes, event.failures)
    # A node that came back serves again: nobody goes on without it any more.
    missing = {failure.node for failure in event.failures}
    absent = tuple(node for node in state.absent if node in missing)
    # That nodes were left out says more than that all serve.
    told = "" if state.down and not event.failures else saw
    state = state.model_copy(update={"saw": told, "absent": absent})
    if new:
        said = f"not every node serves {facts.after}: {saw}"
        return _park(state, "serving", new, (), facts, said=said)
    return _onward(state.model_copy(update={"looked": True}), facts)


def _preflight(state: UpgradeState, event: PreflightSeen, facts: PlanFacts) -> UpgradeState:
    state = state.model_copy(
        update={
            "serial": event.serial,
            "there": event.there,
            "whole": not event.there and not event.failures,
            "done": len(event.there),
        }
    )
    if any(failure.type == "Fenced" for failure in event.failures):
        return _end(state, "preempted", fenced_out(event.unknown_fence))
    if event.failures:
        return _park(state, "preflight", event.failures, (), facts)
    return _onward(state, facts)


def _gate(state: UpgradeState, event: GateEnded, facts: PlanFacts) -> UpgradeState:
    if state.stage != "gate" or state.gate != event.gate:
        return state
    if event.how == "passed":
        return _onward(
            state.model_copy(update={"passed": (*state.passed, event.gate), "gate": None}), facts
        )
    if event.how == "expired":
        return _park(
            state,
            "gate",
            (),
            (),
            facts,
            said=f"gate {event.gate} expired: too few people signed in time",
        )
    said = f"gate {event.gate} was rejected by {event.person}" + (
        f": {quoted(event.comment)}" if event.comment else ""
    )
    if state.begun == 0:
        return _end(state, "rejected", said)
    return _park(state, "gate", (), (), facts, said=said)


def _widened(state: UpgradeState, stop: WideningStop, facts: PlanFacts) -> UpgradeState:
    begun = (
        state.begun
        if stop.why == "gate" and stop.wave >= state.begun
        else max(state.begun, stop.wave + 1)
    )
    state = state.model_copy(
        update={
            "wave": stop.wave,
            "begun": min(begun, len(facts.waves)),
            "serial": stop.serial,
            "done": state.done + stop.done,
            "steps": state.steps + stop.steps,
            "replayed": state.replayed + stop.replayed,
            "down": tuple(sorted({*state.down, *stop.down})),
            "again": None,
            "ensure": False,
            "looked": False,
            "failures": _known(state, stop),
            "committed": state.committed or _behind(stop, facts),
        }
    )
    if stop.why == "fenced":
        return _end(state, "preempted", FENCED)
    if stop.why == "failed":
        return _failed(state, stop, facts)
    if stop.why == "held":
        # Nobody's hold counts but an order's: without one the wave is taken up again at once.
        return state.model_copy(
            update={"again": Again(nodes=stop.remaining, round=state.round), "stage": "widen"}
        )
    if stop.why == "done":
        state = state.model_copy(update={"wave": len(facts.waves)})
        if state.down:
            named = tuple(f for f in state.failures if f.node in state.down)
            said = (
                f"all waves are through, but {len(state.down)} node(s) are not on the new release"
            )
            return _park(state, "end", named, state.down, facts, said=said)
    return _onward(state, facts)


def _known(state: UpgradeState, stop: WideningStop) -> tuple[Failure, ...]:
    """What is known of the nodes that failed: what was just said, and of those out since earlier what was said then."""
    new = {failure.node for failure in stop.failures}
    old = [one for one in state.failures if one.node in stop.down and one.node not in new]
    return (*old, *stop.failures)


def _behind(stop: WideningStop, facts: PlanFacts) -> bool:
    """Whether widening began a wave behind the point of no return."""
    if facts.commit is None or facts.commit.wave is None:
        return False
    return stop.wave > facts.commit.wave or (stop.wave == facts.commit.wave and stop.why != "gate")


def _failed(state: UpgradeState, stop: WideningStop, facts: PlanFacts) -> UpgradeState:
    if stop.where == "serving":
        return _park(state, "serving", stop.failures, stop.remaining, facts, said=stop.said)
    where: Literal["wave", "bake"] = "bake" if stop.where == "bake" else "wave"
    way = automatic_way_back(facts, begun=state.begun, committed=state.committed)
    nodes_failed = all(failure.node != THE_RUN for failure in stop.failures)
    # Silence is no cause: what timed out, was refused or was not reached is for people.
    reported = any(failure.reported for failure in stop.failures)
    # What a person changed by hand is for a person to decide about: the nodes still serve.
    edited = any(failure.type == EDITED for failure in stop.failures)
    for_people = edited or not (nodes_failed and reported)
    if facts.on_failure == "rollback" and way is not None and not for_people:
        first = stop.failures[0] if stop.failures else None
        because = f"{first.name}: {quoted(first.said)}" if first else stop.said or "the wave failed"
        return state.model_copy(
            update={"stage": "go-back", "said": f"going back by itself: {because}", "parked": None}
        )
    said = "" if stop.failures else stop.said
    return _park(state, where, stop.failures, stop.remaining, facts, said=said)


def _went_back(state: UpgradeState, event: WentBack, facts: PlanFacts) -> UpgradeState:
    if state.stage != "go-back":
        return state
    state = state.model_copy(update={"serial": max(state.serial, event.serial)})
    if event.ok:
        return _end(state, "rolled-back", event.said)
    if event.by == "preempted":
        return _end(state, "preempted", event.said)
    if event.by == "aborted":
        return _end(state, "going-back-failed", event.said)
    said = f"the way back was not gone to its end: {event.said}"
    return _park(state, "go-back", (), (), facts, said=said)


def _finalized(state: UpgradeState, event: Finalized, facts: PlanFacts) -> UpgradeState:
    state = state.model_copy(
        update={
            "serial": event.serial,
            "steps": state.steps + event.steps,
            "replayed": state.replayed + event.replayed,
        }
    )
    if event.failure is not None:
        if event.failure.type == "Fenced":
            return _end(state, "preempted", FENCED)
        return _park(state, "finalize", (event.failure,), (), facts)
    return _onward(state.model_copy(update={"finalized": True, "looked": False}), facts)


def _park(
    state: UpgradeState,
    where: ParkedAt,
    failures: tuple[Failure, ...],
    remaining: tuple[int, ...],
    facts: PlanFacts,
    *,
    said: str = "",
) -> UpgradeState:
    """Nothing fails into the void: the run says what happened and which decisions are open."""
    # The word for the way back is a rollback, also when it is said again: the signature on it carries it.
    choices: list[Choice] = [] if where == "go-back" else ["retry"]
    # What is wrong with the whole run is not mended by leaving nodes out.
    of_nodes = all(failure.node != THE_RUN for failure in failures)
    if where in ("preflight", "wave", "bake", "serving", "end") and of_nodes:
        choices.append("skip")
    if (
        state.begun > 0
        and automatic_way_back(facts, begun=state.begun, committed=state.committed) is not None
    ):
        choices.append("rollback")
    choices.append("abort")
    number = state.parks + 1
    again = ""
    if "retry" in choices:
        again = executed_again(failures) + overwritten(failures) + asked_again(failures)
    parked = Parked(
        subject=f"{where}-{number}",
        where=where,
        said=(said or _failures_said(where, failures)) + again,
        failures=failures,
        remaining=remaining,
        choices=tuple(choices),
    )
    return state.model_copy(
        update={"stage": "parked", "parked": parked, "parks": number, "gate": None}
    )


def executed_again(failures: tuple[Failure, ...]) -> str:
    """What people must know before they say to try again: a command that may have had its effect has it twice then."""
    unknown = [failure for failure in failures if failure.type == "Unresolved"]
    if not unknown:
        return ""
    first = unknown[0]
    more = f" (and on {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return f"; retry executes it again: {first.step or 'the command'} on {first.name}{more}"


def overwritten(failures: tuple[Failure, ...]) -> str:
    """What people must know before they say to try again: what was changed by hand is overwritten then."""
    edited = [failure for failure in failures if failure.type == EDITED]
    if not edited:
        return ""
    more = f" (and on {len(edited) - 1} more)" if len(edited) > 1 else ""
    return (
        f"; retry overwrites the edit on {edited[0].name}{more}, a copy stays in .kedge/edits; to keep"
        " it, abort and write it into the documents"
    )


def lacking(failures: tuple[Failure, ...]) -> tuple[str, ...]:
    """The gates that lack signatures by what failed: who signed was taken out of the policy since."""
    found: dict[str, None] = {}
    for failure in failures:
        gates = failure.saw.get("gates") if failure.type == "NotAuthorised" else None
        found.update(
            dict.fromkeys(gate for gate in gates if isinstance(gate, str))
            if isinstance(gates, list)
            else {}
        )
    return tuple(found)


def asked_again(failures: tuple[Failure, ...]) -> str:
    """What people must know before they say to try again: signatures that do not count any more are asked for anew."""
    gates = lacking(failures)
    return f"; retry asks {' and '.join(gates)} again" if gates else ""


def _failures_said(where: str, failures: tuple[Failure, ...]) -> str:
    if not failures:
        return f"{where} did not pass"
    first = failures[0]
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return f"{where}: {first.name} at {first.step or 'no step'}: {first.type}: {quoted(first.said)}{more}"


def _ordered(state: UpgradeState, event: Ordered, facts: PlanFacts) -> UpgradeState:
    if event.verb == "preempt":
        return _end(state, "preempted", event.said)
    if event.verb == "pause":
        return state.model_copy(update={"held": True})
    if event.verb == "resume":
        return state.model_copy(update={"held": False})
    if event.verb == "abort":
        return _end(
            state,
            "aborted",
            f"aborted by {event.person}: nodes stay as they are, nothing further is done",
        )
    if state.stage != "parked" or state.parked is None or event.choice not in state.parked.choices:
        return state
    return _decided(state, state.parked, event, facts)


def _decided(state: UpgradeState, parked: Parked, event: Ordered, facts: PlanFacts) -> UpgradeState:
    if event.choice == "abort":
        return _end(
            state,
            "aborted",
            f"aborted by {event.person}: nodes stay as they are, nothing further is done",
        )
    if event.choice == "rollback":
        return state.model_copy(
            update={
                "stage": "go-back",
                "parked": None,
                "chosen": True,
                "said": f"going back: decided by {event.person}",
            }
        )
    state = state.model_copy(update={"looked": False})
    if parked.where == "serving":
        return _serving_again(state, parked, event, facts)
    failed = tuple(failure.node for failure in parked.failures if failure.node != THE_RUN)
    if event.choice == "skip":
        return _skipped(state, parked, failed, facts)
    missing = lacking(parked.failures)
    if missing:
        passed = tuple(gate for gate in state.passed if gate not in missing)
        state = state.model_copy(update={"lacking": missing, "passed": passed})
    if parked.where == "preflight":
        return state.model_copy(update={"stage": "preflight", "parked": None})
    if parked.where == "finalize":
        round_ = state.round + 1 if failed else state.round
        return _onward(state.model_copy(update={"parked": None, "round": round_}), facts)
    if parked.where == "gate":
        return _onward(state.model_copy(update={"parked": None}), facts)
    return _onward(_again(state, parked, failed, facts), facts)


def _again(
    state: UpgradeState, parked: Parked, failed: tuple[int, ...], facts: PlanFacts
) -> UpgradeState:
    """The state in which a wave is taken up again: what failed in a new round, what was never begun for the first time.

    When it was no node that failed, what the nodes did stands: no new round, and where nobody knows which of them
    were begun, the whole wave.
    """
    nodes = {"wave": (*failed, *parked.remaining), "end": state.down}.get(parked.where, ())
    whole = parked.where == "wave" and not nodes
    lost = any(failure.node == THE_RUN for failure in parked.failures)
    round_ = state.round if lost and not failed else state.round + 1
    down = tuple(node for node in state.down if node not in nodes)
    redo = state.down if parked.where == "end" else failed
    again = Again(
        nodes=tuple(dict.fromkeys(nodes)),
        redo=tuple(node for node in dict.fromkeys(redo) if node in nodes),
        round=round_,
        ensure=True,
    )
    return state.model_copy(
        update={
            "wave": len(facts.waves) - 1 if parked.where == "end" else state.wave,
            "round": round_,
            "again": None if whole else again,
            "down": down,
            "accepted": tuple(node for node in state.accepted if node in down),
        }
    )


def _serving_again(
    state: UpgradeState, parked: Parked, event: Ordered, facts: PlanFacts
) -> UpgradeState:
    """Too many nodes did not serve. Retry: what should run is started, and all are looked at again. Skip: a person goes
    on without them; those that were not moved yet are left out.
    """
    skip = event.choice == "skip"
    state = state.model_copy(update={"parked": None, "ensure": not skip})
    remaining = parked.remaining
    if skip:
        moved = {failure.node for failure in parked.failures if failure.changed}
        others = {failure.node for failure in parked.failures} - moved
        remaining = tuple(node for node in remaining if node not in others)
        state = state.model_copy(
            update={
                "absent": tuple(sorted({*state.absent, *moved})),
                "down": tuple(sorted({*state.down, *others})),
                "accepted": tuple(sorted({*state.accepted, *others})),
                "failures": (*state.failures, *parked.failures),
            }
        )
    if parked.remaining:
        again = Again(nodes=remaining, round=state.round)
        state = state.model_copy(update={"again": again})
    return _onward(state, facts)


def _skipped(
    state: UpgradeState, parked: Parked, failed: tuple[int, ...], facts: PlanFacts
) -> UpgradeState:
    down = tuple(sorted({*state.down, *failed}))
    state = state.model_copy(update={"down": down, "accepted": down, "parked": None})
    if parked.where == "bake":
        # The others of the wave still bake; who failed in it had been counted as done.
        done = max(0, state.done - len(failed))
        again = Again(round=state.round)
        return _onward(state.model_copy(update={"again": again, "done": done}), facts)
    if parked.where == "wave":
        again = Again(nodes=parked.remaining, round=state.round)
        return _onward(state.model_copy(update={"again": again}), facts)
    return _onward(state, facts)
