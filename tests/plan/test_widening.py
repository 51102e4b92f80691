"""How exposure widens: order, failure domains, shares."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.plans import facts_of
from kedge.plan.compile import ConflictsError
from kedge.plan.explain import explain, lines
from kedge.plan.guards import gates_before, idle
from kedge.plan.widen import at_once, closest
from tests.plan.samples import small

SHARES = [
    ("half of five: both are as close, so the larger", "50%", 5, 3),
    ("a third of ten", "30%", 10, 3),
    ("a quarter of ten is as close to two as to three", "25%", 10, 3),
    ("one percent of five is never nobody", "1%", 5, 1),
    ("ninety-nine percent of five is never everybody", "99%", 5, 4),
    ("half of one is that one", "50%", 1, 1),
    ("everybody", "100%", 7, 7),
    ("a tenth of twelve is closer to one", "10%", 12, 1),
    ("a number is that number", 3, 12, 3),
]


@pytest.mark.parametrize("case", SHARES, ids=[case[0] for case in SHARES])
def test_a_share_is_the_closest_number_of_nodes(case: tuple[str, int | str, int, int]) -> None:
    _, share, total, wanted = case
    assert closest(share, total) == wanted


@given(percent=st.integers(1, 99), total=st.integers(2, 20_000))
def test_a_part_is_never_nobody_and_never_everybody(percent: int, total: int) -> None:
    count = closest(f"{percent}%", total)
    assert 1 <= count <= total - 1
    assert abs(count - percent * total / 100) <= max(
        0.5, 1 - percent * total / 100, percent * total / 100 - total + 1
    )


@given(percent=st.integers(1, 100), total=st.integers(1, 20_000))
def test_max_unavailable_is_never_more_than_its_part_but_something_moves(
    percent: int, total: int
) -> None:
    assert at_once(f"{percent}%", total) == max(1, percent * total // 100)


labels = st.fixed_dictionaries(
    {
        "zone": st.lists(st.sampled_from("abcd"), min_size=1, max_size=7),
        "role": st.lists(st.sampled_from(["follower", "leader"]), min_size=1, max_size=7),
    }
)


@given(
    count=st.integers(2, 60),
    said=labels,
    canary=st.integers(1, 3),
    widen=st.lists(st.integers(1, 99), min_size=0, max_size=4, unique=True),
    domain=st.booleans(),
    order=st.booleans(),
    last=st.booleans(),
    at_most=st.sampled_from(["1", "10%", "25%"]),
)
@settings(max_examples=150, deadline=None)
def test_every_node_is_in_exactly_one_batch_and_no_batch_crosses_a_domain_or_a_group(
    *,
    count: int,
    said: dict[str, list[str]],
    canary: int,
    widen: list[int],
    domain: bool,
    order: bool,
    last: bool,
    at_most: str,
) -> None:
    canary = min(canary, count)
    parts = ", ".join(f"{part}%" for part in sorted(widen) if closest(f"{part}%", count) >= canary)
    lines = [
        "waves:",
        f"  canary: {{nodes: {canary}}}",
        f"  widen: [{parts + ', ' if parts else ''}100%]",
    ]
    lines += ["  domain: zone"] if domain else []
    lines += ["  order: [{role: follower}, {role: leader}]"] if order else []
    lines += ["  last_node: {}"] if last else []
    made = small(count, *lines, f"  max_unavailable: {at_most}", labels=said)
    nodes = [node for wave in made.waves for node in wave.nodes]
    assert sorted(nodes) == list(range(count))
    assert len(made.waves[0].nodes) >= 1
    assert [wave.index for wave in made.waves] == list(range(len(made.waves)))
    for wave in made.waves:
        assert wave.max_unavailable == at_once(
            int(at_most) if at_most.isdecimal() else at_most, count
        )
        for batch in wave.batches:
            assert batch
            assert not domain or len({made.nodes[node].labels["zone"] for node in batch}) == 1
            assert not order or len({made.nodes[node].labels["role"] for node in batch}) == 1
    if order:
        roles = [made.nodes[node].labels["role"] for node in nodes]
        assert roles == sorted(roles)
    if last:
        assert (made.waves[-1].name, len(made.waves[-1].nodes)) == ("last-node", 1)


def test_waves_of_a_small_fleet_that_would_be_empty_are_left_out() -> None:
    made = small(3, "waves: {canary: {nodes: 1}, widen: [10%, 30%, 100%]}")
    assert [(wave.name, wave.nodes) for wave in made.waves] == [
        ("canary", (0,)),
        ("wave-3", (1, 2)),
    ]


def test_the_gate_of_a_wave_that_is_left_out_moves_on_to_the_next() -> None:
    gates = "gates: {look: {approvals: {roles: [sre]}}}"
    made = small(3, "waves: {canary: {nodes: 1}, widen: [{to: 10%, gate: look}, 100%]}", gates)
    assert [(wave.name, wave.gate) for wave in made.waves] == [("canary", None), ("wave-2", "look")]


def test_one_node_alone_is_the_last_node() -> None:
    made = small(1, "waves: {canary: {nodes: 1}, last_node: true}")
    assert [(wave.name, wave.nodes) for wave in made.waves] == [("last-node", (0,))]


def test_the_gate_behind_the_canary_stands_before_the_next_wave() -> None:
    made = small(
        4, "waves: {canary: {nodes: 1, gate: look}}", "gates: {look: {approvals: {roles: [sre]}}}"
    )
    assert [wave.gate for wave in made.waves] == [None, "look"]


IMPOSSIBLE = [
    ("a canary larger than the fleet", "waves: {canary: {nodes: 9}}", "waves.canary.nodes: asks for 9 of 4 nodes"),
    ("a wave larger than the fleet", "waves: {widen: [9, 100%]}", "waves.widen.0.to: asks for 9 of 4 nodes"),
    ("a widening that stops half way", "waves: {widen: [50%]}", "waves.widen: ends at 50%: 2 of 4 nodes would never move"),
    ("a widening that goes back", "waves: {widen: [75%, 50%, 100%]}", "waves.widen.1: goes back"),
    ("everybody at once", "waves: {max_unavailable: 4}", "waves.max_unavailable: 4 of 4 nodes is all of them at once"),
    ("everybody at once, as a part", "waves: {max_unavailable: 100%}", "100% of 4 nodes is all of them at once"),
    ("a budget that nothing exceeds", "failure_budget: 4", "failure_budget: 4 failed nodes of 4 would be no reason to stop"),
    ("a label nobody has", "waves: {domain: rack}", "waves.domain: node node-0 has no label rack"),
    ("a node in no group", "waves: {order: [{zone: a}]}", "waves.order: node node-1 (zone=b) is in none of the groups"),
    ("two waves of one name", "waves: {widen: [{to: 1, name: x}, {to: 4, name: x}]}", "a second wave named x"),
]  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE, ids=[case[0] for case in IMPOSSIBLE])
def test_impossible_waves_are_refused(case: tuple[str, str, str]) -> None:
    _, lines, said = case
    with pytest.raises(ConflictsError) as caught:
        small(4, lines, labels={"zone": ["a", "b"]})
    assert said in str(caught.value)


GATED = "gates: {widen: {approvals: {roles: [sre]}}, ship: {approvals: {roles: [sre]}}}"


def test_a_gate_with_no_wave_after_it_is_asked_before_the_first_stop() -> None:
    made = small(
        1,
        "waves: {canary: {nodes: 1}, widen: [{to: 50%}, {to: 100%, gate: widen}]}",
        "gates: {widen: {approvals: {roles: [sre]}}}",
    )
    assert [(wave.name, wave.nodes, wave.gate) for wave in made.waves] == [("canary", (0,), None)]
    assert made.moved_gates == ("widen",)
    assert gates_before(made, 0) == ()
    assert gates_before(made, 1) == ("widen",)
    assert facts_of(made).waves[0].gates == ("widen",)
    told = "\n".join(lines(explain(made)))
    assert "gate widen (before the first stop: this fleet has no wave after it)" in told
    assert "1 of sre" in told


def test_several_gates_with_no_wave_after_them_are_asked_in_their_order() -> None:
    waves = "waves: {canary: {nodes: 1, gate: widen}, widen: [{to: 50%}, {to: 100%, gate: ship}]}"
    made = small(1, waves, GATED)
    assert gates_before(made, 1) == ("widen", "ship")
    assert facts_of(made).waves[0].gates == ("widen", "ship")


def test_a_gate_that_stands_before_a_wave_anyway_is_not_moved() -> None:
    waves = "waves: {widen: [{to: 1, gate: widen}, 100%, {to: 100%, gate: widen}]}"
    made = small(3, waves, "gates: {widen: {approvals: {roles: [sre]}}}")
    assert (made.moved_gates, [wave.gate for wave in made.waves]) == ((), ["widen", None])


shares = st.one_of(st.integers(1, 6), st.integers(1, 100).map(lambda part: f"{part}%"))
gates = st.sampled_from([None, "widen", "ship"])


@given(
    count=st.integers(1, 12),
    canary=st.none() | st.tuples(st.integers(1, 3), gates),
    widen=st.lists(st.tuples(shares, gates), max_size=4),
    last=st.none() | gates.map(lambda gate: {"gate": gate} if gate else {}),
    start=gates,
)
@settings(max_examples=200, deadline=None)
def test_no_gate_of_a_runbook_is_missing_from_a_plan_whatever_the_size_of_the_fleet(
    *,
    count: int,
    canary: tuple[int, str | None] | None,
    widen: list[tuple[int | str, str | None]],
    last: dict[str, str] | None,
    start: str | None,
) -> None:
    def gated(of: dict[str, object], gate: str | None) -> dict[str, object]:
        return {**of, "gate": gate} if gate else of

    waves: dict[str, object] = {
        "widen": [*(gated({"to": to}, gate) for to, gate in widen), {"to": "100%"}]
    }
    if canary is not None:
        waves["canary"] = gated({"nodes": canary[0]}, canary[1])
    if last is not None:
        waves["last_node"] = last
    named = {gate for _, gate in widen} | {canary[1] if canary else None, start}
    named |= {(last or {}).get("gate")}
    wanted = {gate for gate in named if gate is not None}
    more = [f"gates: {json.dumps({name: {'approvals': {'roles': ['sre']}} for name in wanted})}"]
    more += [f"start: {{gate: {start}}}"] if start else []
    try:
        made = small(count, f"waves: {json.dumps(waves)}", *more)
    except ConflictsError:
        return  # refused in words: nothing is run, and so no gate is passed by
    every = gates_before(made, len(made.waves) + 1)
    assert set(every) == wanted == {gate.name for gate in made.gates}
    # What a workflow asks is what the warrant and the offline verification ask.
    facts = facts_of(made)
    for at in range(len(made.waves)):
        asked = [facts.start_gate, *(gate for wave in facts.waves[: at + 1] for gate in wave.gates)]
        assert {gate for gate in asked if gate} == set(gates_before(made, at + 1))


def test_a_plan_whose_gate_stands_before_nothing_is_named() -> None:
    made = small(1, "waves: {canary: {nodes: 1}, widen: [{to: 50%}, {to: 100%, gate: widen}]}",
        "gates: {widen: {approvals: {roles: [sre]}}}")  # fmt: skip
    assert idle(made) == ()
    forged = made.model_copy(update={"moved_gates": ()})
    assert idle(forged) == ("the plan lists the gate widen, and it stands before nothing",)
