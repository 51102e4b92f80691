"""The way back from places that runs really come to: nodes that died by themselves, half moves, behind the line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activities.nodes import _observed  # pyright: ignore[reportPrivateUsage]
from kedge.drivers.ports import SessionEnd
from kedge.model.base import Json
from kedge.model.plan import Plan
from kedge.model.run import Observed
from kedge.plan.wayback import choose, choose_around
from kedge.trust.warrant import _gates_back  # pyright: ignore[reportPrivateUsage]
from tests.plan.samples import fleet, plan, release, small

GATES = "gates: {g: {approvals: {roles: [sre]}}, loss: {approvals: {roles: [sre]}}}"
WAVES = "waves: {canary: {nodes: 1}, last_node: {}}"
RESTORE = "rollback: {after_commit: {restore: snapshot, gate: loss}}"
FINAL = "finalize: {steps: [{run: {argv: [set], undo: none}}]}"
MIGRATE = "  - run: {argv: [migrate], undo: snapshot}"
FORBIDDEN = "rollback: {before_commit: forbidden}\nstart: {gate: g}\ngates: {g: {approvals: {roles: [sre]}}}"


def restorable(at: str = "last-node", *more: str, step: str = "") -> Plan:
    """Four nodes, a point of no return before ``at``, and snapshots to restore behind it."""
    lines = [
        "kind: Runbook",
        "name: small",
        "node:",
        "  - stage",
        "  - stop: {grace: 5s}",
        "  - snapshot: {paths: [data]}",
        step,
        "  - switch",
        "  - configure",
        "  - start",
        '  - healthy: {http: "http://{node.address}/health"}',
        *more,
        WAVES,
        GATES,
        f"commit: {{before: {at}, gate: g, lost: all}}",
        RESTORE,
    ]
    return plan(
        fleet=fleet(4),
        before=release("app", "1.0.0"),
        after=release("app", "1.1.0"),
        runbook="\n".join(line for line in lines if line) + "\n",
    )


def seen(plan: Plan, after: tuple[int, ...] = (), **given: Any) -> Observed:
    """The nodes of ``after`` run the new release, the others the old one."""
    before = tuple(node for node in range(len(plan.nodes)) if node not in after)
    return Observed(**{"before": before, "after": after, "started_after": after, **given})


def test_a_way_back_behind_the_finalize_steps_asks_for_the_gate_of_lost_data() -> None:
    made = restorable("finalize", FINAL)
    chosen = choose(made, seen(made, (0, 1, 2, 3), finalized=True), automatic=False)
    assert (chosen.verdict, chosen.program, chosen.gate) == ("ask", "restore", "loss")
    assert chosen.begun == len(made.waves) + 1


def test_what_is_chosen_asks_for_the_gates_that_the_warrant_asks_for() -> None:
    made = restorable("finalize", FINAL)
    chosen = choose(made, seen(made, (0, 1, 2, 3), finalized=True), automatic=False)
    gates = _gates_back(made, chosen.program, chosen.begun, (0,), automatic=False)
    assert gates == (chosen.gate,)


def test_a_node_that_stopped_before_its_snapshot_does_not_stand_in_the_way_of_a_restore() -> None:
    made = restorable()
    last = made.waves[-1].nodes[0]
    after = tuple(node for node in range(4) if node != 1)
    assert last in after
    chosen = choose(made, seen(made, after, stopped=(1,)), automatic=False)
    assert chosen.program == "restore"
    assert 1 not in {node for wave in chosen.waves for node in wave}


def test_a_node_that_merely_stopped_is_started_again_without_a_gate() -> None:
    made = restorable()
    last = made.waves[-1].nodes[0]
    chosen = choose(made, seen(made, stopped=(last,)), automatic=True)
    assert (chosen.verdict, chosen.program, chosen.gate, chosen.waves) == (
        "go",
        "back",
        None,
        ((last,),),
    )


def test_a_new_release_that_was_only_switched_to_has_not_crossed_the_line() -> None:
    made = restorable()
    last = made.waves[-1].nodes[0]
    after = (0, 1, 2, 3)
    started = tuple(node for node in after if node != last)
    looked = seen(made, after, started_after=started, stopped=(last,))
    chosen = choose(made, looked, automatic=True)
    assert (chosen.verdict, chosen.program) == ("go", "back")
    assert last in {node for wave in chosen.waves for node in wave}


def test_a_failed_start_of_the_last_node_has_crossed_the_line() -> None:
    made = restorable()
    last = made.waves[-1].nodes[0]
    looked = seen(made, (0, 1, 2), before=(last,), started_after=(0, 1, 2, last), stopped=(last,))
    if last != 3:
        pytest.skip("the last node is not the last written")
    chosen = choose(made, looked, automatic=False)
    assert (chosen.verdict, chosen.program, chosen.gate) == ("ask", "restore", "loss")
    assert choose(made, looked, automatic=True).verdict == "refuse"


def test_a_command_that_lasts_counts_as_done_on_a_node_that_is_stopped() -> None:
    made = restorable("canary", step=MIGRATE)
    chosen = choose(made, seen(made, stopped=(0,)), automatic=False)
    assert (chosen.verdict, chosen.program, chosen.gate) == ("ask", "restore", "loss")
    assert choose(made, seen(made, stopped=(0,)), automatic=True).verdict == "refuse"


@pytest.mark.parametrize("after", [(), (0,)], ids=["merely stopped", "moved"])
def test_a_runbook_without_a_way_back_says_so(after: tuple[int, ...]) -> None:
    made = small(4, FORBIDDEN)
    chosen = choose(made, seen(made, after, stopped=(0,)), automatic=False)
    assert chosen.verdict == "refuse"


def test_every_program_that_is_chosen_is_in_the_plan() -> None:
    plans = [restorable(), restorable("canary"), restorable("finalize", FINAL), small(4, FORBIDDEN)]
    states = [(), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)]
    for made in plans:
        has = {program.name for program in made.programs}
        for after in states:
            for stopped in states:
                for finalized in (False, True):
                    looked = seen(made, after, stopped=stopped, finalized=finalized)
                    for automatic in (False, True):
                        chosen = choose(made, looked, automatic=automatic)
                        if chosen.verdict in ("go", "ask"):
                            assert chosen.program in has
                            assert chosen.waves
                        if automatic:
                            assert chosen.gate is None


def test_a_way_back_that_began_to_restore_goes_on_restoring() -> None:
    made = restorable()
    looked = seen(made, (0, 1), started_after=(0, 1), restored=True)
    chosen = choose(made, looked, automatic=False)
    assert (chosen.verdict, chosen.program, chosen.gate) == ("ask", "restore", "loss")


def test_a_node_that_died_after_it_was_restored_is_started_and_not_restored_again() -> None:
    made = restorable()
    chosen = choose(made, seen(made, stopped=(1,), restored=True), automatic=False)
    assert (chosen.verdict, chosen.program, chosen.waves) == ("go", "back", ((1,),))


def test_who_is_down_already_goes_back_first_so_that_no_more_are_down_than_may_be() -> None:
    made = restorable()
    looked = seen(made, (0, 1, 2), stopped=(0,))
    chosen = choose(made, looked, automatic=False)
    assert chosen.program == "back"
    assert chosen.waves == ((0,), (2, 1))
    assert chosen.parallel == (1, 1)


def test_a_daemon_that_still_runs_the_new_release_is_taken_back_wherever_current_points() -> None:
    made = restorable()
    chosen = choose(made, seen(made, started_after=(1,), mixed=(1,)), automatic=True)
    assert (chosen.verdict, chosen.program, chosen.waves) == ("go", "back", ((1,),))


Looked = Callable[..., Observed]


@pytest.fixture
def looks() -> Looked:
    """What is made of one node's observation; digests by ``old``, ``new``, or any other word."""
    made = small(1, "")
    known = {
        "old": made.before.artifacts[0].digest,
        "new": made.after.artifacts[0].digest,
        "foreign": "f" * 64,
    }

    def look(**given: str) -> Observed:
        told: dict[str, Json] = {name: known[word] for name, word in given.items()}
        end = SessionEnd(ok=True, done=(), observed={"running": True, **told})
        return _observed(made, [(0, end)], probed=False)

    return look


def test_a_daemon_of_another_release_than_current_is_seen_as_mixed(looks: Looked) -> None:
    observed = looks(release="old", running_release="new")
    assert (observed.before, observed.mixed) == ((0,), (0,))
    observed = looks(release="new", running_release="old")
    assert (observed.after, observed.mixed) == ((0,), (0,))
    observed = looks(release="old", running_release="old")
    assert (observed.before, observed.mixed) == ((0,), ())
    assert looks(release="old", running_release="foreign").other == (0,)


def test_unseen_nodes_hold_nobody_up_where_it_makes_no_difference() -> None:
    made = small(4)
    looked = seen(made, (0, 1, 2))
    chosen = choose_around(made, looked, unseen=(3,), given_up=(), automatic=False)
    assert (chosen.verdict, chosen.program) == ("go", "back")
    assert sorted(node for wave in chosen.waves for node in wave) == [0, 1, 2]
    # Whatever was believed of it, a node that nobody sees is neither touched nor called back.
    looked = seen(made, ()).model_copy(update={"after": (3,)})
    chosen = choose_around(made, looked, unseen=(3,), given_up=(), automatic=False)
    assert (chosen.verdict, chosen.said) == (
        "nothing", f"3 of 4 nodes run their baseline; not seen: {made.nodes[3].name}"
    )  # fmt: skip
    chosen = choose_around(made, looked, unseen=(), given_up=(3,), automatic=False)
    assert chosen.said.startswith("3 of 4 nodes run their baseline; given up")


@pytest.mark.parametrize("automatic", [True, False])
def test_an_unseen_node_behind_the_line_is_a_persons_to_decide(automatic: object) -> None:
    made = restorable()
    last = made.waves[-1].nodes[0]
    others = tuple(node for node in range(4) if node != last)
    chosen = choose_around(
        made, seen(made, others), unseen=(last,), given_up=(), automatic=bool(automatic)
    )
    assert chosen.verdict == "unclear"
    assert made.nodes[last].name in chosen.said
    # Given up by a person, it does not hold the others any more.
    chosen = choose_around(
        made, seen(made, others), unseen=(), given_up=(last,), automatic=bool(automatic)
    )
    assert (chosen.verdict, chosen.program) == ("go", "back")
