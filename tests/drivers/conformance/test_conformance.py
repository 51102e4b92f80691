"""What every transport must keep, stated once: the rules of docs/host-protocol.md as a caller sees them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from kedge.drivers.ports import HostEvent
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode
from tests.drivers.conformance.rigs import (
    WELL,
    Instant,
    LocalRig,
    Op,
    Rig,
    checked,
    commanded,
    configure,
    healthy,
    start,
    stop,
)

# -- the ordinary way ------------------------------------------------------------------------------


async def test_a_node_is_installed_and_moved_on(rig: Rig) -> None:
    node = rig.node()
    first = await rig.good(node, *rig.install("one"), healthy())
    second = await rig.good(node, *rig.install("two"), healthy("h2"), token=(1, 2, 1))
    assert [event.op for event in first.done] == [
        "stage", "stop", "switch", "configure", "start", "healthy",
    ]  # fmt: skip
    assert second.observed["release"] == rig.releases["two"].digest
    assert second.observed["running_release"] == rig.releases["two"].digest
    assert second.observed["running"] is True
    assert second.observed["should_run"] is True
    assert second.observed["token"] == [1, 2, 1]
    assert set(_list(second.observed["releases"])) == {
        rig.releases["one"].digest,
        rig.releases["two"].digest,
    }
    await rig.saw(node, starts=2, stops=1)


def _list(value: Json) -> list[str]:
    assert isinstance(value, list)
    return [str(one) for one in value]


async def test_observation_of_a_new_node_is_empty_and_complete(rig: Rig) -> None:
    end = await rig.good(rig.node(), {"key": "o", "op": "observe"})
    empty: dict[str, Json] = {
        "release": None, "generation": None, "running": False, "pid": None,
        "running_release": None, "running_generation": None, "should_run": False,
    }  # fmt: skip
    assert {name: end.observed[name] for name in empty} == empty
    for name in ("releases", "generations", "snapshots", "replaced"):
        assert end.observed[name] == []
    assert end.observed["token"] == [1, 1, 1]
    assert end.observed["run"] == "upgrade/f/1"


async def test_each_operation_begins_and_then_is_done(rig: Rig) -> None:
    await rig.good(rig.node(), *rig.install("one"))
    told = [(event.ev, event.op) for event in rig.heard if event.ev != "progress"]
    ops = ["stage", "stop", "switch", "configure", "start"]
    assert told == [(ev, op) for op in ops for ev in ("begin", "done")]


async def test_what_was_there_before_and_after_is_told(rig: Rig) -> None:
    end = await rig.good(rig.node(), *rig.install("one"))
    switched = end.done[2]
    assert switched.before["release"] is None
    assert switched.after["release"] == rig.releases["one"].digest
    assert switched.result == {"from": None, "to": rig.releases["one"].digest}
    assert end.done[4].before["running"] is False
    assert end.done[4].after["running"] is True


# -- the journal -----------------------------------------------------------------------------------


async def test_a_key_that_is_done_is_answered_from_the_record(rig: Rig) -> None:
    node = rig.node()
    first = await rig.good(node, *rig.install("one"))
    mark = rig.switch_mark(node)
    again = await rig.good(node, *rig.install("one"), token=(1, 1, 2))
    assert [event.replayed for event in first.done] == [False] * 5
    assert [event.replayed for event in again.done] == [True] * 5
    assert [event.result for event in again.done] == [event.result for event in first.done]
    assert [event.after for event in again.done] == [event.after for event in first.done]
    await rig.saw(node, starts=1, stops=0)
    assert rig.switch_mark(node) == mark


async def test_a_record_answers_even_when_the_world_moved_on(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    await rig.good(node, stop("stop-later"))
    again = await rig.good(node, *rig.install("one")[-1:])
    assert again.done[0].replayed
    assert again.observed["running"] is False
    await rig.saw(node, starts=1, stops=1)


async def test_a_key_stands_for_one_operation(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"))
    assert await rig.bad(node, {"key": "start-one", "op": "stop"}) == "BadRequest"


async def test_a_look_is_never_answered_from_the_record(rig: Rig) -> None:
    node = rig.node()
    look: Op = {"key": "same", "op": "observe"}
    before = await rig.good(node, look)
    await rig.good(node, *rig.install("one"))
    after = await rig.good(node, look)
    assert not after.done[0].replayed
    assert before.done[0].result["release"] is None
    assert after.done[0].result["release"] == rig.releases["one"].digest


# -- observe, act, observe -------------------------------------------------------------------------


async def test_what_is_there_already_is_not_done_again(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"))
    mark = rig.switch_mark(node)
    other_keys = (rig.stage("one", "s2"), rig.switch("one", "w2"), configure("c2"), start("t2"))
    end = await rig.good(node, *other_keys, token=(2, 1, 1))
    assert [event.replayed for event in end.done] == [False] * 4
    await rig.saw(node, starts=1, stops=0)
    assert rig.switch_mark(node) == mark


async def test_stopping_what_does_not_run_is_done_at_once(rig: Rig) -> None:
    node = rig.node()
    end = await rig.good(node, stop())
    assert end.done[0].result["was_running"] is False
    await rig.saw(node, starts=0, stops=0)


async def test_starting_what_runs_otherwise_is_refused(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), rig.stage("two"), rig.switch("two"))
    assert await rig.bad(node, start("again")) == "Conflict"
    await rig.saw(node, starts=1, stops=0)


# -- the fence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("newer", "older"),
    [((2, 0, 0), (1, 9, 9)), ((1, 3, 1), (1, 2, 7)), ((1, 3, 2), (1, 3, 1))],
    ids=["an older lease", "an older leg", "an older attempt"],
)
async def test_an_older_token_is_refused_and_does_nothing(
    rig: Rig, newer: tuple[int, int, int], older: tuple[int, int, int]
) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"))
    await rig.good(node, {"key": "f", "op": "fence"}, token=newer, run="rollback/f/2")
    end = await rig.run(node, stop(), token=older)
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "Fenced"
    assert not end.failed.error.retryable
    assert end.done == ()
    assert end.observed["run"] == "rollback/f/2"
    await rig.saw(node, starts=1, stops=0)


async def test_even_a_record_is_not_told_to_an_older_token(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"))
    await rig.good(node, {"key": "f", "op": "fence"}, token=(2, 0, 0))
    assert await rig.bad(node, *rig.install("one")) == "Fenced"


async def test_the_same_token_may_come_again(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), token=(3, 1, 1))
    await rig.good(node, stop(), token=(3, 1, 1))


async def test_a_waiting_operation_ends_when_a_newer_token_comes(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("sick"))
    waiting = asyncio.create_task(rig.run(node, healthy(within=60), token=(1, 2, 1)))
    await asyncio.sleep(0.4)
    await rig.good(node, {"key": "f", "op": "fence"}, token=(2, 0, 0), on_event=lambda _event: None)
    async with asyncio.timeout(3):
        end = await waiting
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "Fenced"


async def test_two_sessions_of_one_node_take_turns(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("sick"))
    waiting = asyncio.create_task(rig.run(node, healthy(within=60)))
    await asyncio.sleep(0.3)
    assert await rig.bad(node, stop(), lock_wait=0.3) == "Busy"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# -- interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["before", "acted", "recorded"])
@pytest.mark.parametrize("op", ["stage", "stop", "switch", "configure", "start"])
async def test_a_step_that_was_interrupted_is_done_once(rig: Rig, op: str, at: Instant) -> None:
    node = rig.node()
    await rig.installed(node)
    rig.die(node, op, at)
    end = await rig.survive(node, *rig.install("two"), healthy("h2"))
    assert end.ok, end.failed
    assert end.observed["running_release"] == rig.releases["two"].digest
    await rig.saw(node, starts=2, stops=1)
    results = {event.op: event.result for event in end.done}
    assert results["stop"]["was_running"] is True
    assert results["switch"]["from"] == rig.releases["one"].digest


async def test_a_retry_goes_on_at_the_step_that_was_not_done(rig: Rig) -> None:
    node = rig.node()
    rig.die(node, "configure", "before")
    end = await rig.survive(node, *rig.install("one"))
    assert [event.replayed for event in end.done] == [True, True, True, False, False]


async def test_a_failure_tells_what_was_done_before_it(rig: Rig) -> None:
    node = rig.node()
    missing: Op = {"key": "w", "op": "switch", "digest": "0" * 64}
    end = await rig.run(node, rig.stage("one"), missing, stop())
    assert not end.ok
    assert [event.op for event in end.done] == ["stage"]
    assert end.failed is not None
    assert (end.failed.key, end.failed.op) == ("w", "switch")
    fault = end.fault("n1")
    assert isinstance(fault, DriverError)
    assert (fault.kind, fault.retryable) == ("NoRelease", False)
    assert rig.heard[-1] == end.failed


async def test_cancelling_ends_the_session_before_its_next_operation(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("sick"))
    begun = asyncio.Event()

    def heard(event: HostEvent) -> None:
        if event.ev == "begin" and event.op == "healthy":
            begun.set()

    task = asyncio.create_task(
        rig.run(node, healthy(within=60), stop("never"), token=(1, 2, 1), on_event=heard)
    )
    async with asyncio.timeout(5):
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        end = await rig.good(node, {"key": "o", "op": "observe"}, token=(1, 2, 2), lock_wait=5)
    assert end.observed["running"] is True
    await rig.saw(node, starts=1, stops=0)


# -- conditions ------------------------------------------------------------------------------------


async def test_a_step_whose_condition_is_false_is_skipped_for_good(rig: Rig) -> None:
    node = rig.node()
    when: Json = {"service": {"running": True}}
    end = await rig.good(node, stop(when=when))
    assert end.done[0].skipped
    assert end.done[0].result == {}
    await rig.good(node, *rig.install("one"))
    again = await rig.good(node, stop(when=when))
    assert again.done[0].skipped
    assert again.done[0].replayed
    assert again.observed["running"] is True


async def test_a_step_whose_condition_holds_is_done(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    end = await rig.good(node, stop(when={"service": {"running": True}}))
    assert not end.done[0].skipped
    await rig.saw(node, starts=1, stops=1)


async def test_a_condition_that_cannot_be_looked_at_skips_nothing(rig: Rig) -> None:
    node = rig.node()
    nobody: Json = {"http": {"url": "http://127.0.0.1:9/", "timeout": 0.5}}
    assert await rig.bad(node, stop(when=nobody)) == "ProbeFailed"


# -- health ----------------------------------------------------------------------------------------


async def test_healthy_waits_for_as_long_as_it_must_hold(rig: Rig) -> None:
    node = rig.node()
    end = await rig.good(node, *rig.install("one"), {**healthy(), "for": 0.4})
    waited = end.done[-1].result["waited"]
    assert isinstance(waited, float)
    assert 0.4 <= waited < 5


async def test_a_node_that_never_gets_healthy_is_said_to_be_so(rig: Rig) -> None:
    node = rig.node()
    end = await rig.run(node, *rig.install("sick"), healthy(within=0.5))
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "NotHealthy"
    assert end.failed.error.retryable
    assert "saw" in end.failed.error.detail
    assert end.observed["running"] is True


async def test_a_dead_daemon_is_not_healthy_whatever_else_answers(rig: Rig) -> None:
    node = rig.node()
    end = await rig.installed(node)
    pid = end.observed["pid"]
    assert isinstance(pid, int)
    rig.kill_daemon(node, pid)
    always: Json = {"not": {"service": {"running": True}}}
    assert await rig.bad(node, healthy("h2", probe=always)) == "ServiceDied"


async def test_a_daemon_that_ends_at_once_does_not_settle(rig: Rig) -> None:
    node = rig.node()
    end = await rig.run(node, *rig.install("dead")[:-1], start(settle=1.0))
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "ServiceDied"
    assert end.failed.error.retryable
    assert {"exit", "log"} <= set(end.failed.error.detail)
    assert end.observed["running"] is False


async def test_a_daemon_behind_a_start_script_is_gone_before_the_next_one_starts(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node, "wrapped")
    await rig.good(node, *rig.install("two"), token=(1, 2, 1))
    await rig.saw(node, starts=2, stops=1)


async def test_a_daemon_in_the_background_fails_its_start_and_leaves_nothing(rig: Rig) -> None:
    node = rig.node()
    end = await rig.run(node, *rig.install("forks")[:-1], start("s-forks", settle=1.0))
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "ServiceDied"
    assert "went into the background" in end.failed.error.message
    assert end.observed["running"] is False
    # The way back finds nothing in its way: not the port, and not the data.
    end = await rig.good(node, *rig.install("one"), healthy(), token=(1, 2, 1))
    assert end.observed["running"] is True
    assert end.observed["running_release"] == rig.releases["one"].digest


async def test_a_probe_looks_once(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    end = await rig.good(node, {"key": "p", "op": "probe", "probe": WELL})
    assert "saw" in end.done[0].result
    await rig.good(node, stop())
    assert await rig.bad(node, {"key": "p2", "op": "probe", "probe": WELL}) == "ProbeFailed"


# -- start, stop, ensure ---------------------------------------------------------------------------


async def test_a_daemon_that_should_run_is_brought_back(rig: Rig) -> None:
    node = rig.node()
    end = await rig.installed(node)
    pid = end.observed["pid"]
    assert isinstance(pid, int)
    rig.kill_daemon(node, pid)
    back = await rig.good(node, {"key": "e", "op": "ensure"})
    assert back.done[0].result["started"] is True
    assert back.observed["running"] is True
    once_more = await rig.good(node, {"key": "e", "op": "ensure"})
    assert once_more.done[0].result["started"] is False
    await rig.saw(node, starts=2, stops=0)


async def test_a_daemon_that_was_stopped_stays_stopped(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), healthy(), stop())
    end = await rig.good(node, {"key": "e", "op": "ensure"})
    assert end.done[0].result == {"should_run": False, "started": False, "pid": None}
    assert end.observed["should_run"] is False
    await rig.saw(node, starts=1, stops=1)


async def test_daemons_outlive_the_transport(rig: Rig) -> None:
    if not isinstance(rig, LocalRig):
        pytest.skip("simulated daemons are this transport's own")
    node = rig.node()
    before = await rig.installed(node)
    await rig.transport.aclose()
    after = await rig.good(node, {"key": "o", "op": "observe"})
    assert after.observed["pid"] == before.observed["pid"]
    await rig.saw(node, starts=1, stops=0)


# -- configuration, snapshots, the way back ---------------------------------------------------------


async def test_a_generation_is_one_content(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, configure("c1", "g1", conf="a"), configure("c2", "g2", conf="b"))
    end = await rig.good(node, configure("c3", "g1", conf="a"))
    assert end.done[0].result == {"from": "g2", "to": "g1"}
    assert await rig.bad(node, configure("c4", "g1", conf="other")) == "DigestMismatch"


async def test_a_snapshot_is_what_a_restore_gives_back(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), stop())
    rig.write(node, "before")
    snapshot: Op = {"key": "s", "op": "snapshot", "id": "s1", "paths": ["data"]}
    taken = await rig.good(node, snapshot)
    assert taken.observed["snapshots"] == ["s1"]
    rig.write(node, "after")
    restore: Op = {"key": "r", "op": "restore", "id": "s1"}
    end = await rig.good(node, restore)
    assert rig.read(node) == "before"
    assert end.observed["replaced"] == ["replaced-1"]
    rig.write(node, "newer")
    again = await rig.good(node, restore)
    assert again.done[0].replayed
    assert rig.read(node) == "newer"


@pytest.mark.parametrize("at", ["before", "acted", "recorded"])
async def test_a_restore_that_was_interrupted_is_done_once(rig: Rig, at: Instant) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), stop())
    rig.write(node, "before")
    await rig.good(node, {"key": "s", "op": "snapshot", "id": "s1", "paths": ["data"]})
    rig.write(node, "after")
    rig.die(node, "restore", at)
    end = await rig.survive(node, {"key": "r", "op": "restore", "id": "s1"})
    assert end.ok, end.failed
    assert rig.read(node) == "before"
    assert end.observed["replaced"] == ["replaced-1"]


async def test_nothing_is_restored_under_a_running_daemon(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), healthy(), stop("stop-first"))
    await rig.good(node, {"key": "s", "op": "snapshot", "id": "s1", "paths": ["data"]})
    await rig.good(node, start("start-again"), healthy("h2"))
    assert await rig.bad(node, {"key": "r", "op": "restore", "id": "s1"}) == "Conflict"


async def moved(rig: Rig) -> tuple[PlannedNode, Op, Op]:
    """A node whose snapshot of run 1 was taken, and that started the new release and stopped; what run 2 asks for."""
    node = rig.node()
    await rig.good(node, *rig.install("one"), stop())
    rig.write(node, "before")
    aim: dict[str, Json] = {"step": "snapshot", "before": rig.releases["two"].digest}
    take: Op = {"op": "snapshot", "paths": ["data"], **aim}
    await rig.good(node, {"key": "s1", "id": "e1-snapshot", **take})
    await rig.good(node, *rig.install("two"), stop("stop-new"))
    rig.write(node, "migrated")
    back: Op = {"key": "r2", "op": "restore", "id": "e2-snapshot", **aim}
    return node, {"key": "s2", "id": "e2-snapshot", **take}, back


@pytest.mark.parametrize("at", ["before", "acted", "recorded"])
async def test_what_a_new_release_had_is_not_copied_where_an_older_snapshot_stands(
    rig: Rig, at: Instant
) -> None:
    node, take, back = await moved(rig)
    rig.die(node, "snapshot", at)
    end = await rig.survive(node, take)
    assert end.done[0].result["id"] == "e1-snapshot"
    assert end.observed["snapshots"] == ["e1-snapshot"]
    end = await rig.good(node, back, token=(2, 1, 1))
    assert end.done[0].result["id"] == "e1-snapshot"
    assert rig.read(node) == "before"


@pytest.mark.parametrize("at", ["before", "acted", "recorded"])
async def test_a_node_that_no_later_run_touched_is_restored_from_what_stands_there(
    rig: Rig, at: Instant
) -> None:
    node, _, back = await moved(rig)
    rig.die(node, "restore", at)
    end = await rig.survive(node, back)
    assert end.done[0].result["id"] == "e1-snapshot"
    assert rig.read(node) == "before"
    assert end.observed["replaced"] == ["replaced-1"]


async def test_once_the_old_release_was_started_again_its_older_snapshot_stands_no_more(
    rig: Rig,
) -> None:
    node, take, back = await moved(rig)
    again = (rig.switch("one", "back"), start("start-again"), stop("stop-again"))
    await rig.good(node, *again)
    rig.write(node, "later")
    assert await rig.bad(node, back) == "NoSnapshot"
    end = await rig.good(node, take)
    assert end.done[0].result["id"] == "e2-snapshot"
    assert end.observed["snapshots"] == ["e1-snapshot", "e2-snapshot"]


async def test_a_snapshot_of_another_step_or_release_does_not_stand(rig: Rig) -> None:
    node, _, back = await moved(rig)
    assert await rig.bad(node, {**back, "step": "another"}) == "NoSnapshot"
    assert await rig.bad(node, {**back, "before": rig.releases["sick"].digest}) == "NoSnapshot"
    assert await rig.bad(node, {**back, "before": None}) == "NoSnapshot"


async def test_a_snapshot_that_was_not_the_last_before_the_new_release_does_not_stand(
    rig: Rig,
) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), stop())
    aim: dict[str, Json] = {"step": "snapshot", "before": rig.releases["two"].digest}
    take: Op = {"key": "s1", "op": "snapshot", "id": "e1-snapshot", "paths": ["data"], **aim}
    await rig.good(node, take, start("start-again"), stop("stop-again"))
    await rig.good(node, *rig.install("two"), stop("stop-new"))
    back: Op = {"key": "r", "op": "restore", "id": "e2-snapshot", **aim}
    assert await rig.bad(node, back) == "NoSnapshot"


async def test_a_snapshot_that_is_not_there_is_not_guessed(rig: Rig) -> None:
    assert await rig.bad(rig.node(), {"key": "r", "op": "restore", "id": "s9"}) == "NoSnapshot"


async def test_what_a_node_stands_on_is_not_pruned(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"), rig.stage("two"), stop())
    prune: Op = {"key": "p", "op": "prune", "releases": [], "snapshots": []}
    end = await rig.good(node, prune)
    assert end.done[0].result == {"removed": [rig.releases["two"].digest]}
    assert end.observed["releases"] == [rig.releases["one"].digest]


# -- commands --------------------------------------------------------------------------------------


async def test_a_command_runs_once(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, configure("whose"))
    first = await rig.good(node, commanded())
    again = await rig.good(node, commanded())
    assert first.done[0].result["exit"] == 0
    assert again.done[0].replayed
    assert rig.commands(node) == 1


async def test_a_command_whose_end_nobody_saw_is_never_guessed(rig: Rig) -> None:
    node = rig.node()
    rig.lose_command(node)
    end = await rig.survive(node, commanded())
    for _attempt in range(2):
        assert end.failed is not None
        assert end.failed.error is not None
        assert end.failed.error.type == "Unresolved"
        assert not end.failed.error.retryable
        end = await rig.run(node, commanded(), token=(1, 1, 9))
    assert rig.commands(node) <= 1


async def test_a_command_is_executed_again_once_for_each_time_somebody_says_so(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, configure("whose"))
    rig.lose_command(node)
    await rig.survive(node, commanded())
    ran = rig.commands(node)
    rig.lose_command(node)
    with suppress(DriverError):
        await rig.run(node, commanded(anew=1), token=(1, 2, 1))
    assert await rig.bad(node, commanded(anew=1), token=(1, 2, 2)) == "Unresolved"
    assert rig.commands(node) <= ran + 1
    ran = rig.commands(node)
    end = await rig.good(node, commanded(anew=2), token=(1, 3, 1))
    assert end.done[0].result["exit"] == 0
    assert rig.commands(node) == ran + 1
    again = await rig.good(node, commanded(anew=3), token=(1, 4, 1))
    assert again.done[0].replayed, "a command that is recorded done stays done"
    assert rig.commands(node) == ran + 1


async def test_a_check_resolves_a_command_whose_end_nobody_saw(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    rig.lose_command(node)
    checked = commanded(check={"service": {"running": True}})
    end = await rig.survive(node, checked)
    if not end.ok:
        end = await rig.good(node, checked, token=(1, 1, 9))
    assert "resolved" in end.done[0].result
    assert rig.commands(node) <= 1


async def test_a_command_done_again_on_purpose_has_another_key(rig: Rig) -> None:
    node = rig.node()
    await rig.good(node, configure("whose"))
    await rig.good(node, commanded("run/1"), commanded("run/2"))
    assert rig.commands(node) == 2


# -- input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        {"key": "k", "op": "explode"},
        {"key": "k", "op": "stop", "sginal": "TERM"},
        {"key": "k", "op": "stage", "digest": "short", "length": 1, "source": "/x"},
        {"key": "k", "op": "switch"},
        {"key": "k", "op": "stop", "grace": -1},
        {"key": "k", "op": "probe", "probe": {}},
        {"key": "k", "op": "restore", "id": "../../etc"},
        {"op": "observe"},
    ],
    ids=["operation", "parameter", "digest", "missing", "negative", "probe", "path", "key"],
)
async def test_input_that_is_not_of_the_protocol_does_nothing(rig: Rig, op: Op) -> None:
    node = rig.node()
    await rig.good(node, *rig.install("one"))
    end = await rig.run(node, stop("good"), op, token=(1, 5, 1))
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "BadRequest"
    assert not end.failed.error.retryable
    assert end.done == ()
    await rig.saw(node, starts=1, stops=0)


async def test_two_operations_with_one_key_are_refused(rig: Rig) -> None:
    assert await rig.bad(rig.node(), stop("k"), stop("k")) == "BadRequest"


async def test_an_artifact_is_put_where_stage_reads_it(rig: Rig) -> None:
    node, one = rig.node(), rig.releases["one"]
    source = await rig.transport.put(node, one.path, one.digest, one.length)
    assert Path(source).is_absolute()
    await rig.good(
        node,
        {"key": "s", "op": "stage", "digest": one.digest, "length": one.length, "source": source},
    )


# -- side by side ----------------------------------------------------------------------------------


async def test_many_nodes_at_once_do_not_disturb_each_other(rig: Rig) -> None:
    nodes = [rig.node(f"n{number}") for number in range(12)]
    ends = await asyncio.gather(*(rig.run(node, *rig.install("one")) for node in nodes))
    assert all(end.ok for end in ends), [end.failed for end in ends if not end.ok]
    for node in nodes:
        await rig.saw(node, starts=1, stops=0)


# -- before the stop -------------------------------------------------------------------------------


async def test_releases_that_are_missing_are_found_before_the_stop(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    one, two = rig.releases["one"].digest, rig.releases["two"].digest
    assert await rig.bad(node, checked(rig, "two")) == "NoRelease"
    bare: dict[str, Json] = {**rig.stage("two", "bare"), "source": None}
    assert await rig.bad(node, bare) == "NoRelease"
    await rig.good(node, rig.stage("two"))
    assert await rig.bad(node, checked(rig, "two", back="0" * 64)) == "NoRelease"
    restore: dict[str, Json] = {"id": "none"}
    assert await rig.bad(node, checked(rig, "two", restore=restore)) == "NoSnapshot"
    end = await rig.good(node, {**bare, "key": "there"}, checked(rig, "two", back=one))
    assert end.done[1].result == {"bytes": None, "kept": None}
    assert end.observed["ran"] == {one: "g1"}
    assert two in _list(end.observed["releases"])
    await rig.saw(node, starts=1, stops=0)


@pytest.mark.parametrize("at", ["before", "acted", "recorded"])
async def test_a_check_that_was_interrupted_is_done_once(rig: Rig, at: Instant) -> None:
    node = rig.node()
    await rig.installed(node)
    rig.die(node, "check", at)
    leg = [rig.stage("two"), checked(rig, "two"), *rig.install("two")[1:]]
    end = await rig.survive(node, *leg)
    assert end.ok, end.failed
    assert [event.op for event in end.done].count("check") == 1
    await rig.saw(node, starts=2, stops=1)


async def test_a_check_stands_once_its_daemon_is_stopped_and_not_before(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    await rig.good(node, rig.stage("two"))
    one = rig.releases["one"].digest
    asked = checked(rig, "two", back=one)
    await rig.good(node, asked)
    prune: dict[str, Json] = {"op": "prune", "releases": [], "snapshots": []}
    # The release that is to come is taken away again; the current one always stays.
    await rig.good(node, {"key": "p", **prune})
    assert await rig.bad(node, asked) == "NoRelease"
    await rig.good(node, stop("s"))
    end = await rig.good(node, asked)
    assert end.done[0].replayed


async def test_a_rollback_goes_back_to_the_configuration_that_ran(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    one = rig.releases["one"].digest
    await rig.good(
        node, rig.stage("two"), checked(rig, "two"), stop("s2"), rig.switch("two"),
        configure("c2", generation="g2"), start("t2"),
    )  # fmt: skip
    back = {**configure("c3", generation="g3"), "earlier": one}
    end = await rig.good(
        node, checked(rig, "one", "k3", earlier=one), stop("s3"), rig.switch("one", "back"), back,
        start("t3"),
    )  # fmt: skip
    results = {event.key: event.result for event in end.done}
    assert results["k3"] == {"bytes": None, "kept": None, "known": True}
    assert results["c3"] == {"from": "g2", "to": "g1", "known": True}
    assert end.observed["running_generation"] == "g1"
    assert end.observed["ran"] == {one: "g1"}


async def test_a_host_that_does_not_know_what_ran_says_so(rig: Rig) -> None:
    node = rig.node()
    await rig.installed(node)
    one = rig.releases["one"].digest
    await rig.good(
        node, rig.stage("two"), stop("s2"), rig.switch("two"), configure("c2", generation="g2"),
        start("t2"),
    )  # fmt: skip
    back = {**configure("c3", generation="g3"), "earlier": one}
    end = await rig.good(node, stop("s3"), rig.switch("one", "back"), back, start("t3"))
    assert end.done[2].result == {"from": "g2", "to": "g3", "known": False}
    assert end.observed["ran"] == {one: None}
