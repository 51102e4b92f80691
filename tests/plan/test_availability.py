"""``max_unavailable`` as a table: whether another node may be stopped, by what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.base import Json
from kedge.plan.availability import (
    END,
    OBSERVE,
    end_seconds,
    free_places,
    may_stop,
    near_seconds,
    not_serving,
    serving_message,
    stale,
    unavailable_message,
)
from kedge.plan.explain import explain, lines
from kedge.plan.render import probes
from tests.plan.samples import small

CASES = [
    ("everybody serves", 1, [5], {}, True),
    ("one that was changed died", 1, [5], {"not_serving": [0]}, False),
    ("one that was changed died, and two may be out", 2, [5], {"not_serving": [0]}, True),
    ("one died and one is in flight, and two may be out", 2, [5], {"not_serving": [0], "in_flight": [4]}, False),
    ("one in flight is seen as not serving: it counts once", 2, [5], {"not_serving": [4], "in_flight": [4]}, True),
    ("one that does not serve may be worked on", 1, [0], {"not_serving": [0]}, True),
    ("one that does not serve, whoever else does not either", 1, [0], {"not_serving": [0, 1, 2]}, True),
    ("never more in flight than may be, whatever they are like", 1, [0], {"not_serving": [0], "in_flight": [1]}, False),
    ("a person went on without it: one at a time", 1, [5], {"not_serving": [0], "accepted": [0]}, True),
    ("a person went on without it: not two at a time", 1, [5], {"not_serving": [0], "accepted": [0], "in_flight": [4]}, False),
    ("another died since a person went on without one", 1, [5], {"not_serving": [0, 1], "accepted": [0]}, False),
    ("two at once where one died", 2, [4, 5], {"not_serving": [0]}, False),
    ("two at once of which one does not serve", 2, [4, 5], {"not_serving": [4]}, True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "batch", "known", "wanted"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_whether_another_node_may_be_stopped(
    limit: int, batch: list[int], known: dict[str, list[int]], *, wanted: bool
) -> None:
    everybody: dict[str, list[int]] = {"not_serving": [], **known}
    assert may_stop(limit, batch, **everybody) is wanted


nodes = st.sets(st.integers(0, 9), max_size=6)


@given(limit=st.integers(1, 4), node=st.integers(0, 9), down=nodes, flying=nodes)
def test_no_node_that_serves_is_stopped_when_that_makes_more_than_may_be(
    limit: int, node: int, down: set[int], flying: set[int]
) -> None:
    if may_stop(limit, [node], not_serving=down, in_flight=flying):
        assert node in down or len(down | flying | {node}) <= limit
        assert len(flying | {node}) <= limit


def test_places_that_are_free_beside_nodes_that_do_not_serve() -> None:
    assert free_places(3, [1, 2]) == 1
    assert free_places(1, [1]) == 0
    assert free_places(1, [1], accepted=[1]) == 1
    assert free_places(1, [1, 2], accepted=[1]) == -1


def test_a_small_wave_is_looked_at_before_each_stop_and_a_large_one_takes_turns() -> None:
    assert near_seconds(3) == near_seconds(50) == 0.0
    assert near_seconds(500) == 10.0
    assert near_seconds(100_000) == OBSERVE


def test_the_end_of_a_small_fleet_is_said_after_a_look_at_all_and_of_a_large_one_soon_after() -> (
    None
):
    assert end_seconds(50) == 0.0
    assert end_seconds(10_000) == END


def test_old_looks_and_those_of_nodes_changed_in_the_wave_are_repeated() -> None:
    ages = [(4, 2 * OBSERVE), (1, 5.0), (2, 4.0), (3, 0.5)]
    assert list(stale(ages, near=[1], near_age=0.0)) == [4, 1]
    assert list(stale(ages, near=[1, 2, 3], near_age=4.5)) == [4, 1]
    assert list(stale([], near=[1], near_age=0.0)) == []


def test_the_sentence_names_the_nodes_and_what_was_seen() -> None:
    failures = [not_serving(0, "n0", "its daemon does not run", changed=True)]
    assert unavailable_message(failures, 1) == (
        "1 node does not serve: n0 (its daemon does not run); max_unavailable is 1, "
        "so no further node is stopped"
    )
    assert serving_message(3, failures) == ("2 of 3 nodes serve; not n0 (its daemon does not run)")
    assert serving_message(3, []) == "3 of 3 nodes serve"


RUNS = {"service": {"running": True}}
HEALTHY = 'healthy: {http: "http://{node.address}/health", expect: {version: "{release.version}"}}'


def test_a_runbook_without_preflight_gets_one_from_its_healthy() -> None:
    made = small(2)
    (asked,) = probes(made, 1, "preflight")
    assert isinstance(asked, dict)
    parts = asked["all"]
    assert isinstance(parts, list)
    assert parts[0] == RUNS
    assert "http://127.0.0.1/health" in str(parts[1])
    told = "\n".join(lines(explain(made)))
    assert "the daemon runs and GET http://{node.address}/health answers" in told


def test_a_preflight_that_is_written_is_taken_as_it_is() -> None:
    made = small(2, 'preflight: [{tcp: "127.0.0.1:1"}]')
    assert len(made.preflight) == 1
    assert "tcp" in str(probes(made, 0, "preflight"))


def test_a_node_on_the_old_release_may_answer_as_either() -> None:
    # Which one runs is known by its digest; what it answers may be the version of the cluster, or of shared data.
    made = small(2, f"rollback: {{{HEALTHY}}}")
    (old,) = probes(made, 1, "before")
    assert isinstance(old, dict)
    assert old["expect"] == {"version": {"in": ["1.0.0", "1.1.0"]}}
    assert str(old) in str(probes(made, 1, "preflight"))


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (
            'text: {matches: "^App/{release.version}$"}',
            [{"text": {"matches": f"^App/{old}$"}} for old in (r"1\.0\.0", r"1\.1\.0")],
        ),
        (
            'text: {starts_with: "{{release.version}} {release.version} "}',
            [
                {"text": {"starts_with": f"{{release.version}} {old} "}}
                for old in ("1.0.0", "1.1.0")
            ],
        ),
    ],
)
def test_a_pattern_that_has_the_version_is_asked_once_with_each(
    asked: str, parts: list[Json]
) -> None:
    made = small(
        2, f'rollback: {{healthy: {{http: "http://{{node.address}}/old", expect: {{{asked}}}}}}}'
    )
    (old,) = probes(made, 0, "before")
    assert isinstance(old, dict)
    any_of = old["any"]
    assert isinstance(any_of, list)
    assert [one["expect"] for one in any_of if isinstance(one, dict)] == parts
    told = "\n".join(lines(explain(made)))
    assert "the daemon runs and GET http://{node.address}/old answers (text)\n" in told


def test_what_is_known_of_the_new_release_alone_is_not_asked_of_the_old_one() -> None:
    made = small(2, 'rollback: {healthy: {http: "http://{node.address}/old"}}')
    assert "/old" in str(probes(made, 0, "before"))
    assert "/health" in str(probes(made, 0, "after"))
    assert "/old" in str(probes(made, 0, "preflight"))
