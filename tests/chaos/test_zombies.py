"""Workers and sessions that were stopped, replaced, and continued: nothing they still want to do happens.

Killing is the easy death. A worker stopped by SIGSTOP comes back with everything it had in mind: a leg it is about to
begin, a session it talks to. Meanwhile a newer token has the hosts.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Literal

import pytest

from kedge.model.base import Json
from tests.chaos import truth
from tests.chaos.conftest import Cast
from tests.chaos.ground import STAYED, Went, assert_ground, assert_leg
from tests.chaos.theatre import NEW, OLD, Theatre, Troupe, go_on, persist
from worker import processes
from worker.processes import ProcessIdentity

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

THROUGH = Went((OLD, NEW, OLD))
"""Moved, and taken back."""
AGAIN = Went((OLD, OLD), 0, 0, (NEW,), (), tidy=False)
"""Stopped, and started again by the way back."""

POSTS: dict[str, Went] = {
    "session.before": STAYED,
    "fence.before": STAYED,
    "fence.raised": STAYED,
    "stage.told": Went((OLD,), staged=(NEW,)),
    "stop.before": Went((OLD,), staged=(NEW,)),
    "stop.after-signal": AGAIN,
    "snapshot.before-rename": AGAIN,
    "switch.before-rename": AGAIN,
    "switch.told": AGAIN._replace(switches=2),
    "configure.acted": AGAIN._replace(switches=2, configured=2),
    "start.between-fork-and-exec": AGAIN._replace(switches=2, configured=2, tallied=(NEW,)),
    "start.told": THROUGH,
    "healthy.before": THROUGH,
}
"""Where a session of the loser stands when its worker is stopped, and what is really done on its node in the end."""

ANY = list(POSTS.values())
"""Each of them: a leg whose worker stands still is begun again by another one soon, and may come further before the
way back has the lease. Never is half of it undone, or any of it done twice."""


async def on_their_posts(
    theatre: Theatre, troupe: Troupe, order: Literal["wait", "stop"]
) -> tuple[str, list[int]]:
    """An upgrade of all nodes but one, each of whose sessions stands at another post; its run and the sessions."""
    posts = [f"{point}@{node}" for node, point in zip(troupe.names, POSTS, strict=False)]
    waves: Json = {"widen": ["100%"], "max_unavailable": len(posts)}
    retry: Json = {"attempts": 1, "backoff": "50ms"}
    for post in posts:
        theatre.points.arm(post, order)
    run = await troupe.start(troupe.plan_to(NEW, waves=waves, gates={}, retry=retry))
    for post in posts:
        await theatre.points.reached(post)
    return run, theatre.hosts()


async def about_to(theatre: Theatre) -> int:
    """Stop the worker when it is about to begin a leg, with nothing to keep it when it wakes up."""
    point = "activity.run_leg.before"
    theatre.points.arm(point, "wait")
    await theatre.points.reached(point)
    zombie = theatre.freeze_worker()
    theatre.points.release(point)
    return zombie


async def lives(troupe: Troupe, zombie: int, second: ProcessIdentity) -> None:
    """The zombie wakes up, is the only worker there is, and does new work: what it had in mind before is behind it."""
    theatre = troupe.theatre
    theatre.points.clear()
    go_on(zombie)
    processes.send(second, signal.SIGKILL)
    handle = await troupe.client.start_workflow(
        "Ensure",
        troupe.name,
        id=f"ensure/{troupe.name}",
        task_queue=troupe.settings.task_queue,
    )
    result = await persist(handle.result)
    assert result["running"] == len(troupe.names), result
    assert result["started"] == 0, result


def prints(troupe: Troupe) -> dict[str, object]:
    """What nodes look like, by file, and what happened to them."""
    told: dict[str, object] = {"told": truth.lines(troupe.folder)}
    for node in troupe.names:
        found = truth.fingerprint(troupe.root(node))
        told |= {f"{node}/{name}": digest for name, digest in found.items()}
    return told


def assert_nothing_was_done(troupe: Troupe, before: dict[str, object]) -> None:
    """Every byte is as it was, and no daemon said anything."""
    now = prints(troupe)
    changed = {name: now.get(name) for name in now | before if now.get(name) != before.get(name)}
    assert not changed


async def test_a_leg_of_the_loser_is_not_begun_when_its_worker_wakes_up(
    theatre: Theatre, cast: Cast
) -> None:
    troupe = await cast(theatre)
    async with asyncio.TaskGroup() as both:
        stopping = both.create_task(about_to(theatre))
        await asyncio.sleep(0)
        run = await troupe.start(troupe.plan_to(NEW))
    with theatre.understudy() as second:
        # The second attempt, by another worker, does not come through before the way back has the lease.
        async with theatre.points.barred([f"stage.before@{troupe.names[0]}"]):
            back = await troupe.ended(await troupe.rollback())
        assert back.phase == "rolled-back", back
        assert (await troupe.ended(run)).phase == "preempted"
        before = prints(troupe)
        await lives(troupe, stopping.result(), second)
        assert_nothing_was_done(troupe, before)
        await assert_ground(troupe, {})


async def test_sessions_of_the_loser_do_nothing_when_they_wake_up(
    theatre: Theatre, cast: Cast
) -> None:
    troupe = await cast(theatre, nodes=len(POSTS) + 1)
    run, sessions = await on_their_posts(theatre, troupe, "wait")
    zombie = theatre.freeze_worker()
    with theatre.understudy() as second:
        # The last node waits before it is staged, so that the run cannot come to its end meanwhile.
        async with theatre.points.barred([f"stage.before@{troupe.names[-1]}"]):
            back = await troupe.ended(await troupe.rollback(), 180)
        assert back.phase == "rolled-back", back
        before = prints(troupe)
        await lives(troupe, zombie, second)
        assert (await troupe.ended(run)).phase == "preempted"
        theatre.kill("worker")
        truth.wait_gone(sessions)
        assert_nothing_was_done(troupe, before)
        went = dict.fromkeys(troupe.names[:-1], ANY)
        await assert_ground(troupe, went)


@pytest.mark.parametrize("what", ["healthy", "stop"])
async def test_a_long_wait_of_the_loser_ends_with_the_lease(
    theatre: Theatre, cast: Cast, what: str
) -> None:
    troupe = await cast(theatre, linger=4.0 if what == "stop" else 0.2)
    steps, given = troupe.steps()["node"], dict[str, Json]()
    first = troupe.names[0]
    assert isinstance(steps, list)
    if what == "healthy":
        patient: Json = {"service": {"running": True}, "for": "5m", "within": "10m"}
        soon: Json = {"service": {"running": True}, "for": "0s", "within": "5s"}
        given["rollback"] = {"healthy": soon}
        steps = [*steps[:-1], {"healthy": patient}]
    else:
        stop: Json = {"stop": {"signal": "TERM", "grace": "60s"}}
        steps = [*steps[:2], stop, *steps[3:]]
    wanted = ("start", NEW) if what == "healthy" else ("signal", OLD)
    async with theatre.points.barred([f"snapshot.before@{first}"] if what == "stop" else []):
        run = await troupe.start(troupe.plan_to(NEW, node=steps, **given))
        ends = asyncio.get_running_loop().time() + 30
        while wanted not in truth.told(troupe.folder, first):
            assert asyncio.get_running_loop().time() < ends
            await asyncio.sleep(0.01)
        zombie = theatre.freeze_worker()
        with theatre.understudy() as second:
            back = await troupe.ended(await troupe.rollback(), 180)
            assert back.phase == "rolled-back", back
            before = prints(troupe)
            await lives(troupe, zombie, second)
            assert (await troupe.ended(run)).phase == "preempted"
            assert_nothing_was_done(troupe, before)
            await assert_ground(troupe, {first: THROUGH if what == "healthy" else AGAIN})


async def test_a_leg_of_an_older_attempt_is_not_begun_when_its_worker_wakes_up(
    theatre: Theatre, cast: Cast
) -> None:
    troupe = await cast(theatre)
    async with asyncio.TaskGroup() as both:
        stopping = both.create_task(about_to(theatre))
        await asyncio.sleep(0)
        run = await troupe.start(troupe.plan_to(NEW, waves={"widen": ["100%"]}, gates={}))
    with theatre.understudy() as second:
        assert (await troupe.ended(run, 180)).phase == "done"
        before = prints(troupe)
        await lives(troupe, stopping.result(), second)
        assert_nothing_was_done(troupe, before)
        await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))


async def test_sessions_of_an_older_attempt_do_nothing_when_they_wake_up(
    theatre: Theatre, cast: Cast
) -> None:
    troupe = await cast(theatre, nodes=len(POSTS) + 1)
    run, sessions = await on_their_posts(theatre, troupe, "wait")
    zombie = theatre.freeze_worker()
    with theatre.understudy() as second:
        end = await troupe.ended(run, 180)
        assert end.phase == "done", end
        assert end.replayed > 0
        before = prints(troupe)
        await lives(troupe, zombie, second)
        theatre.kill("worker")
        truth.wait_gone(sessions)
        assert_nothing_was_done(troupe, before)
        await assert_ground(troupe, dict.fromkeys(troupe.names, (OLD, NEW)))
        for node in troupe.names:
            assert_leg(troupe, node)


async def test_a_way_back_that_another_one_took_over_does_nothing_when_it_wakes_up(
    theatre: Theatre, cast: Cast
) -> None:
    troupe = await cast(theatre)
    run = await troupe.start(troupe.plan_to(NEW))
    await troupe.waits_for(run, "ship")
    async with asyncio.TaskGroup() as both:
        stopping = both.create_task(about_to(theatre))
        await asyncio.sleep(0)
        first = await troupe.rollback()
    with theatre.understudy() as second:
        end = await troupe.ended(await troupe.rollback(), 180)
        assert end.phase == "rolled-back", end
        before = prints(troupe)
        await lives(troupe, stopping.result(), second)
        assert (await troupe.ended(first)).phase in ("preempted", "rolled-back")
        assert_nothing_was_done(troupe, before)
        await assert_ground(troupe, {troupe.names[0]: THROUGH})


@pytest.mark.parametrize("preempted", [False, True])
async def test_sessions_that_were_stopped_go_on_or_are_taken_out_of_the_way(
    theatre: Theatre,
    cast: Cast,
    preempted: bool,  # noqa: FBT001 - a row of the table
) -> None:
    troupe = await cast(theatre, nodes=len(POSTS) + 1)
    run, sessions = await on_their_posts(theatre, troupe, "stop")
    went = {node: [Went((OLD, NEW))] for node in troupe.names}
    if preempted:
        back = await troupe.ended(await troupe.rollback())
        assert back.phase == "rolled-back", back
        went = dict.fromkeys(troupe.names, ANY)
        await assert_ground(troupe, went)
    for pid in sessions:
        if truth.argv_of(pid):
            go_on(pid)
    end = await troupe.ended(run)
    assert end.phase == ("preempted" if preempted else "done"), end
    await assert_ground(troupe, went)
