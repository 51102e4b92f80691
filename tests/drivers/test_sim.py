"""The simulator's own: faults to order, memory on disk, and the price of ten thousand nodes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest, Token
from kedge.drivers.sim import SimTransport
from kedge.drivers.sim_faults import Fault
from kedge.drivers.sim_host import Counts
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import PlannedNode

ONE, TWO = "1" * 64, "2" * 64
HTTP: dict[str, Json] = {"http": {"url": "http://127.0.0.1:1/health"}}


def node(name: str = "n1", /, **options: Json) -> PlannedNode:
    return PlannedNode(
        name=name,
        address="sim",
        platform="linux/amd64",
        root=f"/sim/{name}",
        transport="sim",
        service="process",
        options=options,
    )


def leg(name: str, digest: str, run: str = "upgrade/f/1") -> tuple[dict[str, Json], ...]:
    """The steps of a node as a runbook has them."""

    def op(what: str, **params: Json) -> dict[str, Json]:
        return {"key": f"{run}/{name}/{what}", "op": what, **params}

    return (
        op("stage", digest=digest, length=1, source="/archive"),
        op("probe", probe={"all": [{"tcp": {"host": "h", "port": 1}}, HTTP]})
        if digest == TWO
        else op("verify", digest=digest),
        op("stop"),
        op("snapshot", id=f"before-{digest[:8]}", paths=["data"]),
        op("switch", digest=digest),
        op("configure", generation=f"g-{digest[:8]}", service={"argv": ["d"]}),
        op("start"),
        op("healthy", probe=HTTP, **{"for": 5, "within": 60}),
    )


async def run(
    sim: SimTransport,
    where: PlannedNode,
    *ops: dict[str, Json],
    token: Token = (1, 1, 1),
    run: str = "upgrade/f/1",
    heard: list[HostEvent] | None = None,
    lock_wait: float = 5.0,
) -> SessionEnd:
    request = SessionRequest(run=run, token=token, ops=ops, lock_wait=lock_wait)
    return await sim.session(where, request, (heard if heard is not None else []).append)


async def installed(sim: SimTransport, where: PlannedNode) -> None:
    end = await run(sim, where, *leg(where.name, ONE, "install/f/0"), run="install/f/0")
    assert end.ok, end.failed


def fault_type(end: SessionEnd) -> str:
    assert end.failed is not None
    assert end.failed.error is not None
    return end.failed.error.type


@pytest.fixture
async def sim() -> AsyncIterator[SimTransport]:
    made = SimTransport()
    yield made
    await made.aclose()


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [("NoSpace", True), ("HostError", True), ("DigestMismatch", False), ("ArchiveRefused", False)],
)
async def test_an_operation_fails_with_the_type_it_was_told(
    sim: SimTransport, kind: str, *, retryable: bool
) -> None:
    sim.program(Fault(do="fail", op="stage", type=kind, message="told so", detail={"a": 1}))
    end = await run(sim, node(), *leg("n1", ONE))
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == kind
    assert end.failed.error.retryable is retryable
    assert end.failed.error.message == "told so"
    assert end.failed.error.detail == {"a": 1}


async def test_a_fault_may_happen_the_nth_time_only(sim: SimTransport) -> None:
    sim.program(Fault(do="fail", op="stage", nth=(1, 3)))
    ends = [
        await run(sim, node(), {"key": f"k{number}", "op": "stage", "digest": ONE, "length": 1,
                                "source": "/a"})
        for number in range(4)
    ]  # fmt: skip
    assert [end.ok for end in ends] == [False, True, False, True]


async def test_the_nth_time_is_counted_in_each_run_anew(sim: SimTransport) -> None:
    sim.program(Fault(do="fail", op="stage", nth=(1,)))
    for name in ("upgrade/f/1", "upgrade/f/2"):
        assert not (await run(sim, node(), *leg("n1", ONE, name), run=name)).ok
        assert (await run(sim, node(), *leg("n1", ONE, name), run=name)).ok


@pytest.mark.parametrize(
    "only",
    [{"node": "n2"}, {"op": "switch"}, {"run": "rollback/*"}, {"key": "*/other"}, {"release": TWO}],
    ids=["node", "op", "run", "key", "release"],
)
async def test_a_fault_speaks_only_of_what_it_names(
    sim: SimTransport, only: dict[str, str]
) -> None:
    rule: dict[str, Any] = {"op": "stage", **only}
    sim.program(Fault(do="fail", **rule))
    stage = leg("n1", ONE)[0]
    assert (await run(sim, node(), stage)).ok


async def test_an_unreachable_node_does_nothing(sim: SimTransport) -> None:
    sim.program(Fault(do="unreachable", nth=(1,)))
    with pytest.raises(DriverError) as caught:
        await run(sim, node(), *leg("n1", ONE))
    assert (caught.value.kind, caught.value.retryable) == ("Unreachable", True)
    assert sim.host(node()).token is None
    assert (await run(sim, node(), *leg("n1", ONE))).ok


async def test_a_bad_release_is_unhealthy_and_the_good_one_is_not(sim: SimTransport) -> None:
    where = node()
    sim.program(Fault(do="unhealthy", release=TWO[:8]))
    await installed(sim, where)
    assert fault_type(await run(sim, where, *leg("n1", TWO))) == "NotHealthy"
    back = await run(
        sim, where, *leg("n1", ONE, "rollback/f/2"), run="rollback/f/2", token=(2, 1, 1)
    )
    assert back.ok


async def test_a_crash_happens_later(sim: SimTransport) -> None:
    where = node()
    sim.program(Fault(do="crash", op="start", run="upgrade/*", seconds=0.3))
    await installed(sim, where)
    assert (await run(sim, where, *leg("n1", TWO))).ok
    look: dict[str, Json] = {"key": "bake", "op": "healthy", "probe": HTTP}
    await asyncio.sleep(0.35)
    assert fault_type(await run(sim, where, look)) == "ServiceDied"


async def test_a_hang_is_told_and_ends_with_its_time(sim: SimTransport) -> None:
    heard: list[HostEvent] = []
    sim.program(Fault(do="hang", op="switch", seconds=1.3))
    begun = time.perf_counter()
    assert (await run(sim, node(), *leg("n1", ONE), heard=heard)).ok
    assert time.perf_counter() - begun >= 1.3
    assert [event.op for event in heard if event.ev == "progress"] == ["switch"]


async def test_a_hang_for_ever_ends_by_cancellation_or_by_the_fence(sim: SimTransport) -> None:
    where = node()
    sim.program(Fault(do="hang", op="stop", nth=(1, 2)))
    cancelled = asyncio.create_task(run(sim, where, *leg("n1", ONE)))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    fenced = asyncio.create_task(run(sim, where, *leg("n1", ONE)))
    await asyncio.sleep(0.1)
    assert (await run(sim, where, {"key": "f", "op": "fence"}, token=(2, 0, 0))).ok
    assert fault_type(await fenced) == "Fenced"
    assert sim.host(where).counts == Counts()


async def test_faults_are_taken_back(sim: SimTransport) -> None:
    sim.program(Fault(do="fail", op="*"))
    assert not (await run(sim, node(), *leg("n1", ONE))).ok
    sim.clear()
    assert (await run(sim, node(), *leg("n1", ONE))).ok


# -- options in the Fleet document -----------------------------------------------------------------


async def test_a_fleet_document_programs_its_nodes(sim: SimTransport) -> None:
    fault: dict[str, Json] = {"do": "fail", "op": "start", "type": "ServiceDied", "nth": [1]}
    broken, well = node("n1", faults=[fault], unrelated=1), node("n2")
    assert fault_type(await run(sim, broken, *leg("n1", ONE))) == "ServiceDied"
    assert (await run(sim, well, *leg("n2", ONE))).ok
    assert (await run(sim, broken, *leg("n1", ONE))).ok


async def test_a_file_of_faults_may_change_at_any_time(sim: SimTransport, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    where = node(faults_file=str(path))
    stage = leg("n1", ONE)[0]
    assert (await run(sim, where, {**stage, "key": "k1"})).ok
    path.write_text(json.dumps([{"do": "fail", "op": "stage", "node": "n1"}]))
    assert not (await run(sim, where, {**stage, "key": "k2"})).ok
    path.write_text("[]")
    assert (await run(sim, where, {**stage, "key": "k2"})).ok
    path.unlink()
    assert (await run(sim, where, {**stage, "key": "k3"})).ok


async def test_answers_are_judged_as_on_a_real_host(sim: SimTransport) -> None:
    where = node(
        answers={"*": {"height": "0x10", "ok": False}, TWO[:6]: {"height": 20, "ok": True}}
    )
    await run(sim, where, *leg("n1", ONE, "install/f/0")[:-1], run="install/f/0")

    def probe(key: str, expect: Json, **more: Json) -> dict[str, Json]:
        return {"key": key, "op": "probe", "probe": {**HTTP, "expect": expect, **more}}

    assert fault_type(await run(sim, where, probe("p1", {"ok": True}))) == "ProbeFailed"
    assert fault_type(await run(sim, where, probe("p2", {"absent": 1}))) == "ProbeFailed"
    end = await run(sim, where, probe("p3", {"height": {"ge": 16}}, capture={"h": "height"}))
    assert end.done[0].result == {"saw": {"height": "0x10"}, "captured": {"h": "0x10"}}
    later: Json = {"height": {"gt": {"captured": "h"}}}
    assert fault_type(await run(sim, where, probe("p4", later))) == "ProbeFailed"
    ops = [op for op in leg("n1", TWO) if op["op"] not in ("probe", "healthy")]
    assert (await run(sim, where, *ops)).ok
    assert (await run(sim, where, probe("p5", {**later, "ok": True}))).ok  # type: ignore[dict-item]


async def test_operations_take_the_time_they_are_given(sim: SimTransport) -> None:
    where = node(seconds={"start": 0.3, "*": 0.01}, pace=1.0)
    begun = time.perf_counter()
    end = await run(sim, where, *leg("n1", ONE)[:-1])
    assert end.ok
    assert 0.36 <= time.perf_counter() - begun < 3


@pytest.mark.parametrize(
    "options",
    [
        {"faults": [{"do": "explode"}]},
        {"faults": [{"do": "fail", "opp": "start"}]},
        {"faults": {"do": "fail"}},
        {"pace": -1},
        {"seconds": {"start": "long"}},
        {"faults": [{"do": "fail", "nth": [0]}]},
    ],
)
async def test_options_that_are_wrong_say_where(
    sim: SimTransport, options: dict[str, Json]
) -> None:
    with pytest.raises(DriverError) as caught:
        await run(sim, node(**options), *leg("n1", ONE))
    assert (caught.value.kind, caught.value.retryable) == ("BadRequest", False)
    assert "n1" in caught.value.message


async def test_a_file_of_faults_that_is_wrong_says_so(sim: SimTransport, tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text('[{"do": "fail", "at": "noon"}]')
    with pytest.raises(DriverError) as caught:
        await run(sim, node(faults_file=str(path)), *leg("n1", ONE))
    assert caught.value.kind == "BadRequest"
    assert str(path) in caught.value.message


# -- memory ----------------------------------------------------------------------------------------


async def test_hosts_outlive_their_worker(tmp_path: Path) -> None:
    state, where = tmp_path / "sim" / "hosts.jsonl", node()
    first = SimTransport(state=state)
    await installed(first, where)
    before = first.host(where)
    await first.aclose()
    second = SimTransport(state=state)
    end = await run(second, where, *leg("n1", ONE, "install/f/0"), run="install/f/0")
    assert [event.replayed for event in end.done] == [True] * 8
    assert second.counts() == Counts(starts=1, stops=0, switches=1)
    after = second.host(where)
    for name in ("state", "token", "run", "releases", "generations", "snapshots", "journal"):
        assert getattr(after, name) == getattr(before, name), name
    await second.aclose()


async def test_workers_share_their_hosts_at_every_moment(tmp_path: Path) -> None:
    one, two = (SimTransport(state=tmp_path / "hosts.jsonl") for _ in range(2))
    await installed(one, node())
    assert (await run(two, node(), *leg("n1", TWO), token=(2, 1, 1))).ok
    assert fault_type(await run(one, node(), *leg("n1", ONE))) == "Fenced"
    assert one.counts() == two.counts() == Counts(starts=2, stops=1, switches=2)
    await one.aclose()
    await two.aclose()


ZOMBIE = """
import asyncio, sys
from pathlib import Path
from kedge.drivers.sim import SimTransport
from tests.drivers.test_sim import ONE, leg, node, run

async def main():
    sim = SimTransport(state=Path(sys.argv[1]))
    where = node(seconds={"stop": 1.0}, pace=1.0)
    print("begun", flush=True)
    end = await run(sim, where, *leg("n1", ONE))
    print(end.failed.error.type if end.failed else "done", flush=True)

asyncio.run(main())
"""


def zombie(state: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", ZOMBIE, str(state)],
        stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


async def test_a_worker_that_was_stopped_and_goes_on_changes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "hosts.jsonl"
    other = zombie(state)
    assert other.stdout is not None
    assert (await asyncio.to_thread(other.stdout.readline)).strip() == "begun"
    sim = SimTransport(state=state)
    async with asyncio.timeout(10):
        while len(sim.host(node()).journal) < 2:  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(0.01)
    other.send_signal(signal.SIGSTOP)
    assert (await run(sim, node(), {"key": "f", "op": "fence"}, token=(2, 0, 0))).ok
    await asyncio.sleep(1.1)
    other.send_signal(signal.SIGCONT)
    assert (await asyncio.to_thread(other.stdout.readline)).strip() == "Fenced"
    await asyncio.to_thread(other.communicate)
    assert sim.counts() == Counts()
    assert [record.op for record in sim.host(node()).journal.values()] == ["stage", "verify"]
    await sim.aclose()


async def test_a_line_that_was_torn_never_happened(tmp_path: Path) -> None:
    state, where = tmp_path / "hosts.jsonl", node()
    first = SimTransport(state=state)
    await installed(first, where)
    await first.aclose()
    whole = state.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    state.write_bytes(whole[: last + 20])
    second = SimTransport(state=state)
    end = await run(second, where, *leg("n1", ONE, "install/f/0"), run="install/f/0")
    assert end.ok
    assert second.counts().starts == 1
    third = SimTransport(state=state)
    assert third.host(where).journal == second.host(where).journal


# -- the price -------------------------------------------------------------------------------------


async def test_a_leg_of_a_large_fleet_costs_a_fraction_of_a_millisecond(sim: SimTransport) -> None:
    nodes = [node(f"n{number}") for number in range(2000)]
    ops = [(where, leg(where.name, ONE, "install/f/0")) for where in nodes]
    begun = time.process_time()
    for start in range(0, len(nodes), 100):
        ends = await asyncio.gather(
            *(
                run(sim, where, *steps, run="install/f/0")
                for where, steps in ops[start : start + 100]
            )
        )
        assert all(end.ok for end in ends)
    # Aimed at 0.3 ms on an idle core; this machine may be busy.
    assert (time.process_time() - begun) / len(nodes) < 0.0012
