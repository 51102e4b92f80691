"""The upgrade's automaton: tables of what follows from what, and random walks that must keep the promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.model.plan import Gate, PointOfNoReturn, WayBack
from kedge.model.run import Failure, LegFacts, PlanFacts, WaveFacts, WideningStop
from kedge.plan.availability import not_serving
from kedge.plan.progress import (
    Event,
    Finalized,
    GateEnded,
    LookedAtAll,
    NotRecorded,
    Ordered,
    PreflightSeen,
    UpgradeState,
    WentBack,
    Widened,
    advance,
    command,
    reopened,
)

LEG = LegFacts(timeout=60.0, attempts=3, backoff=1.0)


def gate(name: str) -> Gate:
    return Gate(name=name, threshold=2, roles=("sre",), expires=3600.0)


def facts(**given: object) -> PlanFacts:
    """Three waves of one, two and two nodes; ``ship`` before the second, ``commit`` before the last."""
    base = PlanFacts(
        nodes=5,
        before="3.5.0",
        after="3.5.1",
        before_document="0" * 64,
        after_document="1" * 64,
        start_gate=None,
        waves=(
            WaveFacts(name="canary", size=1, parallel=1),
            WaveFacts(name="wave-1", size=2, parallel=1, gates=("ship",)),
            WaveFacts(name="last", size=2, parallel=1, gates=("commit",)),
        ),
        gates=(gate("ship"), gate("commit"), gate("start")),
        legs={"forward": (LEG,), "back": (LEG,)},
        commit=PointOfNoReturn(wave=2, gate="commit", lost="the cluster version rises"),
        failure_budget=0,
        on_failure="park",
        way_back=(
            WayBack(from_wave=0, kind="none"),
            WayBack(from_wave=1, kind="switch-back"),
            WayBack(from_wave=3, kind="forbidden", lost="the cluster version rose"),
        ),
    )
    return base.model_copy(update=given)


def failure(node: int = 1, kind: str = "NotHealthy", *, reported: bool = True) -> Failure:
    return Failure(
        node=node, name=f"n{node}", program="forward", leg=0, step="healthy", type=kind, said="503",
        reported=reported,
    )  # fmt: skip


def stop(why: str, wave: int, **given: object) -> Widened:
    said = {"why": why, "wave": wave, "serial": 5000, **given}
    return Widened(stop=WideningStop.model_validate(said))


def walk(known: PlanFacts, *events: Event) -> UpgradeState:
    """The state after these events, each state once put into JSON and taken out again."""
    state = UpgradeState()
    for event in events:
        state = UpgradeState.model_validate_json(advance(state, event, known).model_dump_json())
    return state


SEEN = PreflightSeen(serial=2)
ALL_SERVE = LookedAtAll(nodes=5, serial=6000)
SHIPPED = GateEnded(gate="ship", how="passed")
COMMITTED = GateEnded(gate="commit", how="passed")
AT_SHIP = stop("gate", 1, gate="ship", done=1)
AT_COMMIT = stop("gate", 2, gate="commit", done=2)
FAILED = stop("failed", 1, failures=(failure(),), remaining=(2,), where="wave")
RETRY = Ordered(verb="decide", person="bob", choice="retry")
ROLLBACK = Ordered(verb="decide", person="bob", choice="rollback")
THROUGH = (SEEN, AT_SHIP, SHIPPED, AT_COMMIT, COMMITTED)
LATE = stop("failed", 2, failures=(failure(4),), where="wave")


@pytest.mark.parametrize(
    ("sentence", "events", "what", "detail"),
    [
        ("an upgrade begins with preflight", (), "preflight", {}),
        ("a clean preflight is followed by the canary", (SEEN,), "widen", {"wave": 0}),
        (
            "a preflight that failed parks",
            (PreflightSeen(failures=(failure(),), serial=2),),
            "wait",
            {"stage": "parked"},
        ),
        (
            "a fenced preflight ends the run",
            (PreflightSeen(failures=(failure(kind="Fenced"),), serial=2),),
            "end",
            {"outcome": "preempted"},
        ),
        ("a gate before a wave is asked", (SEEN, AT_SHIP), "ask", {"gate": "ship"}),
        ("a passed gate opens its wave", (SEEN, AT_SHIP, SHIPPED), "widen", {"wave": 1}),
        (
            "a gate that is rejected after the canary parks",
            (SEEN, AT_SHIP, GateEnded(gate="ship", how="rejected", person="ada")),
            "wait",
            {"stage": "parked"},
        ),
        (
            "a gate that expired parks and does not pass",
            (SEEN, AT_SHIP, GateEnded(gate="ship", how="expired")),
            "wait",
            {"passed": ()},
        ),
        (
            "a retry after an expired gate asks again",
            (SEEN, AT_SHIP, GateEnded(gate="ship", how="expired"), RETRY),
            "ask",
            {"gate": "ship"},
        ),
        ("a failed wave parks", (SEEN, AT_SHIP, SHIPPED, FAILED), "wait", {"stage": "parked"}),
        (
            "a retry takes up the failed and the unbegun nodes",
            (SEEN, AT_SHIP, SHIPPED, FAILED, RETRY),
            "widen",
            {"wave": 1, "round": 1},
        ),
        (
            "a choice that is not offered changes nothing",
            (*THROUGH, LATE, ROLLBACK),
            "wait",
            {"stage": "parked"},
        ),
        (
            "going back is decided by a person",
            (SEEN, AT_SHIP, SHIPPED, FAILED, ROLLBACK),
            "go-back",
            {"chosen": True},
        ),
        ("behind the point of no return the run knows it", THROUGH, "widen", {"committed": True}),
        (
            "before the point of no return it is not behind us",
            (SEEN, AT_SHIP, SHIPPED, AT_COMMIT),
            "ask",
            {"committed": False},
        ),
        (
            "all waves done is the end",
            (*THROUGH, stop("done", 3, done=2), ALL_SERVE),
            "end",
            {"outcome": "done", "done": 5},
        ),
        (
            "a pause holds what comes next",
            (SEEN, Ordered(verb="pause", person="eve"), AT_SHIP, SHIPPED),
            "wait",
            {"held": True},
        ),
        (
            "a resume goes on",
            (
                SEEN,
                Ordered(verb="pause", person="eve"),
                AT_SHIP,
                SHIPPED,
                Ordered(verb="resume", person="eve"),
            ),
            "widen",
            {"wave": 1},
        ),
        (
            "held nodes are taken up where they were left",
            (SEEN, AT_SHIP, SHIPPED, stop("held", 1, remaining=(2,), where="wave")),
            "widen",
            {"wave": 1},
        ),
        (
            "an abort ends",
            (SEEN, Ordered(verb="abort", person="eve")),
            "end",
            {"outcome": "aborted"},
        ),
        (
            "a newer token on the hosts ends the run",
            (SEEN, stop("fenced", 0)),
            "end",
            {"outcome": "preempted"},
        ),
        (
            "nothing happens after the end",
            (SEEN, Ordered(verb="abort", person="eve"), AT_SHIP),
            "end",
            {"outcome": "aborted"},
        ),
        (
            "nodes that failed within the budget are not forgotten at the end",
            (*THROUGH, stop("done", 3, down=(1,))),
            "wait",
            {"stage": "parked"},
        ),
    ],
)
def test_what_follows(
    sentence: str, events: tuple[Event, ...], what: str, detail: dict[str, object]
) -> None:
    state = walk(facts(), *events)
    assert command(state).what == what, sentence
    for name, value in detail.items():
        assert getattr(state, name) == value, sentence


def test_a_failure_goes_back_by_itself_where_the_runbook_says_so() -> None:
    known = facts(on_failure="rollback")
    state = walk(known, SEEN, AT_SHIP, SHIPPED, FAILED)
    assert command(state).what == "go-back"
    assert not state.chosen
    ended = advance(state, WentBack(ok=True, said="back"), known)
    assert ended.outcome == "rolled-back"


@pytest.mark.parametrize("kind", ["Timeout", "Unreachable", "NotAuthorised", "Unknown"])
def test_what_no_host_reported_parks_and_rolls_nothing_back(kind: str) -> None:
    silent = stop("failed", 1, failures=(failure(kind=kind, reported=False),), where="wave")
    state = walk(facts(on_failure="rollback"), SEEN, AT_SHIP, SHIPPED, silent)
    assert state.parked is not None
    assert "rollback" in state.parked.choices


def test_an_end_that_the_record_does_not_bear_out_is_for_people() -> None:
    known = facts(commit=None, on_failure="rollback")
    waves = tuple(wave.model_copy(update={"gates": ()}) for wave in known.waves)
    known = known.model_copy(update={"waves": waves})
    done = walk(known, SEEN, stop("done", 3, done=5), LookedAtAll(serial=9, nodes=5))
    assert done.outcome == "done"
    state = reopened(done, NotRecorded(said="2 node(s) have no leg", missing=(3, 4)), known)
    assert (command(state).what, state.outcome, state.down) == ("wait", "", (3, 4))
    assert state.parked is not None
    assert "2 node(s) have no leg" in state.parked.said
    again = advance(state, Ordered(verb="decide", person="olga", choice="retry"), known)
    assert again.again is not None
    assert again.again.nodes == (3, 4)


def test_no_automatic_way_back_crosses_the_point_of_no_return() -> None:
    known = facts(on_failure="rollback")
    state = walk(known, *THROUGH, LATE)
    assert command(state).what == "wait"
    assert state.parked is not None
    assert "rollback" not in state.parked.choices


def test_the_finalize_steps_stand_behind_the_commit_gate() -> None:
    known = facts(commit=PointOfNoReturn(wave=None, gate="commit", lost="x"), finalize_node=4)
    waves = tuple(wave.model_copy(update={"gates": ()}) for wave in known.waves)
    known = known.model_copy(update={"waves": waves})
    state = walk(known, SEEN, stop("done", 3, done=5))
    assert command(state).what == "ask"
    state = advance(state, COMMITTED, known)
    assert command(state).what == "look", (
        "nothing that cannot be undone begins on nodes that died meanwhile"
    )
    state = advance(state, ALL_SERVE, known)
    assert command(state).what == "finalize"
    assert state.committed
    state = advance(state, Finalized(serial=9), known)
    assert command(state).what == "look"
    assert advance(state, ALL_SERVE, known).outcome == "done"


def gone(node: int, *, changed: bool) -> Failure:
    return not_serving(node, f"n{node}", "its daemon does not run", changed=changed)


SKIP = Ordered(verb="decide", person="bob", choice="skip")
DEAD_CANARY = stop(
    "failed", 1, failures=(gone(0, changed=True),), where="serving", said="1 node does not serve"
)
DEAD_IN_WAVE = stop(
    "failed", 1, failures=(gone(1, changed=True),), remaining=(2,), where="serving", done=1
)


def test_the_end_is_not_declared_about_nodes_that_do_not_serve() -> None:
    known = facts()
    state = walk(known, *THROUGH, stop("done", 3, done=2))
    assert command(state).what == "look"
    state = advance(state, LookedAtAll(nodes=5, failures=(gone(0, changed=True),), serial=1), known)
    assert state.parked is not None
    assert (state.parked.where, state.outcome) == ("serving", "")
    assert "n0 (its daemon does not run)" in state.parked.said
    assert state.parked.choices == ("retry", "skip", "abort")


@pytest.mark.parametrize("committed", [False, True])
def test_too_many_nodes_that_do_not_serve_park_the_run_and_it_is_not_taken_back_by_itself(
    committed: bool,  # noqa: FBT001 - a table of two
) -> None:
    known = facts(on_failure="rollback")
    events = (*THROUGH, stop("failed", 2, failures=(gone(0, changed=True),), where="serving"))
    state = walk(known, *(events if committed else (SEEN, AT_SHIP, SHIPPED, DEAD_CANARY)))
    assert state.parked is not None
    assert state.parked.where == "serving"
    rollback = () if committed else ("rollback",)
    assert state.parked.choices == ("retry", "skip", *rollback, "abort")


def test_who_says_retry_has_what_should_run_started_and_the_wave_begun_where_it_was() -> None:
    state = walk(facts(), SEEN, AT_SHIP, SHIPPED, DEAD_CANARY, RETRY)
    assert (command(state).what, state.ensure, state.again) == ("widen", True, None)
    state = walk(facts(), SEEN, AT_SHIP, SHIPPED, DEAD_IN_WAVE, RETRY)
    assert state.again is not None
    assert (state.again.nodes, state.again.round, state.ensure) == ((2,), 0, True)


def test_who_says_skip_goes_on_without_moved_nodes_and_leaves_others_out() -> None:
    state = walk(facts(), SEEN, AT_SHIP, SHIPPED, DEAD_CANARY, SKIP)
    assert (command(state).what, state.absent, state.down) == ("widen", (0,), ())
    both = stop(
        "failed", 1, failures=(gone(0, changed=True), gone(2, changed=False)), remaining=(1, 2),
        where="serving",
    )  # fmt: skip
    state = walk(facts(), SEEN, AT_SHIP, SHIPPED, both, SKIP)
    assert (state.absent, state.down, state.accepted) == ((0,), (2,), (2,))
    assert state.again is not None
    assert state.again.nodes == (1,)


def test_the_end_names_nodes_that_were_gone_on_without_and_forgets_those_that_serve_again() -> None:
    known = facts()
    events = (SEEN, AT_SHIP, SHIPPED, DEAD_CANARY, SKIP, stop("done", 3, done=4))
    without = walk(
        known, *events, LookedAtAll(nodes=5, failures=(gone(0, changed=True),), serial=1)
    )
    assert without.outcome == "done"
    assert "without 1 node" in without.said
    assert "n0 (its daemon does not run)" in without.said
    back = walk(known, *events, ALL_SERVE)
    assert back.said == "done: every node is on the new release; 5 of 5 nodes serve"


ORDERS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Ordered, verb=st.sampled_from(["pause", "resume"]), person=st.just("eve")),
    st.builds(
        Ordered,
        verb=st.just("decide"),
        person=st.just("eve"),
        choice=st.sampled_from(["retry", "skip", "rollback", "abort"]),
    ),
    st.just(Ordered(verb="abort", person="eve")),
)
ANSWERS: dict[str, st.SearchStrategy[Event]] = {
    "preflight": st.builds(
        PreflightSeen, serial=st.integers(1, 99), failures=st.sampled_from([(), (failure(),)])
    ),
    "ask": st.builds(
        GateEnded,
        gate=st.sampled_from(["ship", "commit", "start"]),
        how=st.sampled_from(["passed", "passed", "rejected", "expired"]),
    ),
    "look": st.builds(
        LookedAtAll,
        nodes=st.just(5),
        serial=st.integers(1, 99),
        failures=st.sampled_from([(), (gone(0, changed=True),), (gone(3, changed=False),)]),
    ),
    "finalize": st.builds(
        Finalized, serial=st.integers(1, 99), failure=st.sampled_from([None, failure(4)])
    ),
    "go-back": st.builds(WentBack, ok=st.booleans(), said=st.just("")),
    "wait": ORDERS,
}


def fitting(state: UpgradeState, known: PlanFacts) -> st.SearchStrategy[Event]:
    """What may truthfully happen in a state: mostly what its command answers, sometimes an order."""
    what = command(state).what
    answers = widened(state, known) if what == "widen" else ANSWERS[what]
    return st.one_of(answers, answers, answers, ORDERS)


def widened(state: UpgradeState, known: PlanFacts) -> st.SearchStrategy[Event]:
    """What a widening may truthfully answer from this state: it never passes a closed gate."""
    last = state.wave
    while last + 1 < len(known.waves) and set(known.waves[last + 1].gates) <= set(state.passed):
        last += 1
    stops = [
        stop("failed", wave, failures=(failure(),), remaining=(2,), where=where)
        for wave in range(state.wave, last + 1)
        for where in ("wave", "bake")
    ]
    stops += [stop("held", wave, remaining=(2,)) for wave in range(state.wave, last + 1)]
    stops += [
        stop("failed", wave, failures=(gone(0, changed=True),), remaining=(2,), where="serving")
        for wave in range(state.wave, last + 1)
    ]
    stops += [stop("fenced", state.wave)]
    if last + 1 < len(known.waves):
        stops.append(stop("gate", last + 1, gate=known.waves[last + 1].gates[0]))
    else:
        stops.append(stop("done", len(known.waves)))
    return st.sampled_from(stops)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_random_walks_keep_the_promises(data: st.DataObject) -> None:
    known = facts(
        on_failure=data.draw(st.sampled_from(["park", "rollback"])),
        start_gate=data.draw(st.sampled_from([None, "start"])),
        failure_budget=data.draw(st.integers(0, 1)),
    )
    state = UpgradeState()
    for _ in range(data.draw(st.integers(1, 40))):
        after = advance(state, data.draw(fitting(state, known)), known)
        keep_promises(state, after, known)
        state = UpgradeState.model_validate_json(after.model_dump_json())
        if state.stage == "ended":
            return


def keep_promises(before: UpgradeState, after: UpgradeState, known: PlanFacts) -> None:
    act = command(after)
    if act.what == "widen":
        assert set(known.waves[after.wave].gates) <= set(after.passed)
        assert known.start_gate is None or known.start_gate in after.passed
    if act.what == "go-back":
        assert not after.committed
    if before.committed:
        assert after.committed
    if after.stage == "parked":
        assert after.parked is not None
        assert "abort" in after.parked.choices
    if after.outcome == "done":
        assert after.looked, "the end is declared right after a look at every node"
    assert set(before.passed) <= set(after.passed)
