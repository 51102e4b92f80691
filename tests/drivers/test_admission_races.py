"""Workers that race for the last free place of a wave: they never both get it, on either store."""

from __future__ import annotations

import asyncio

from activities.recorded import Recorded
from kedge.drivers.evidence_writer import WrittenEvidence
from kedge.model.base import Json
from kedge.model.plan import Plan
from kedge.trust.admission import Admitted, Ask, admit
from kedge.trust.chain import EvidenceHead
from kedge.trust.run_history import FleetHistory
from tests.drivers.conftest import Place
from tests.plan import samples

RUN, EPOCH, ORDER = "upgrade/shop/1", 7, "a" * 64
NODES, PLACES = 24, 3


async def begun(evidence: WrittenEvidence) -> None:
    """A run whose nodes were all looked at: every one of them may begin."""
    lease: Json = {"what": "lease", "order": ORDER, "run": RUN, "epoch": EPOCH}
    await evidence.append("shop", "lease", lease)
    nodes: dict[str, Json] = {f"node-{index}": {} for index in range(NODES)}
    looked: Json = {
        "what": "looked", "why": "preflight", "run": RUN, "token": [EPOCH, 0, 1], "nodes": nodes,
    }  # fmt: skip
    await evidence.append("shop", "looked", looked)


async def asked(recorded: Recorded, plan: Plan, *names: str) -> list[str]:
    """Which of these nodes are admitted."""
    ask = Ask(RUN, EPOCH, "b" * 64, ORDER, True, "forward", 0, 0, names)  # noqa: FBT003 - automatic

    def decide(
        history: FleetHistory, head: EvidenceHead
    ) -> tuple[list[str], list[tuple[str, Json]]]:
        verdict = admit(history, plan, ask, head.seq, {"ms": 0})
        found = [name for name, one in verdict.nodes.items() if isinstance(one, Admitted)]
        return found, [(key, record) for key, record in verdict.records]

    return await recorded.ask("shop", decide)


async def test_no_two_workers_get_the_last_place_of_a_wave(place: Place) -> None:
    waves = f"waves: {{widen: [100%], max_unavailable: {PLACES}}}"
    plan = samples.small(NODES, waves)
    stores: list[WrittenEvidence] = [place() for _ in range(3)]
    await begun(stores[0])
    workers = [Recorded(store, lambda _: None) for store in stores]
    names = [f"node-{index}" for index in range(NODES)]
    found = await asyncio.gather(
        *(asked(workers[index % 3], plan, name) for index, name in enumerate(names))
    )
    taken = [name for one in found for name in one]
    assert len(taken) == PLACES
    # One that is done frees one place, and one alone.
    admitted = {one.key: one for one in await stores[0].under("shop", "admitted/")}
    assert len(admitted) == PLACES
    first = min(admitted.values(), key=lambda one: one.seq)
    assert isinstance(first.record, dict)
    done: Json = {
        "what": "leg", "run": RUN, "program": "forward", "leg": 0, "wave": 0, "heard": True,
        "node": first.record["nodes"][0],  # type: ignore[index]
        "token": [EPOCH, first.seq, 1], "failed": None, "ms": 0, "steps": [],
    }  # fmt: skip
    await stores[1].append("shop", "leg", done)
    rest = [name for name in names if name not in taken]
    found = await asyncio.gather(
        *(asked(workers[index % 3], plan, name) for index, name in enumerate(rest))
    )
    assert sum(map(len, found)) == 1
    for store in stores:
        await store.aclose()


async def test_a_fold_of_what_was_never_written_is_thrown_away(place: Place) -> None:
    store, other = place(), place()
    await begun(store)
    recorded = Recorded(store, lambda _: None)
    plan = samples.small(NODES, f"waves: {{widen: [100%], max_unavailable: {PLACES}}}")
    assert await asked(recorded, plan, "node-1") == ["node-1"]
    # As after a transaction that failed behind the decision: the fold has what the chain has not.
    history = recorded._known["shop"]
    history.head = EvidenceHead(history.head.seq, "0" * 64)
    await other.append("shop", "k", {"what": "x"})
    assert await asked(recorded, plan, "node-2") == ["node-2"]
    assert recorded._known["shop"] is not history
    await store.aclose()
    await other.aclose()
