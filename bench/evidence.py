"""The evidence of a real run over simulated nodes: how fast it is verified from its file, and how fast it is written."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from bench.home import Home, opened
from desk import evidence as desk_evidence
from kedge.drivers.checkpoints import ensure_key
from kedge.drivers.evidence import SqliteEvidence
from kedge.drivers.evidence_postgres import PostgresEvidence
from kedge.drivers.evidence_writer import WrittenEvidence
from kedge.drivers.ports import Evidence
from kedge.model.base import Frozen, Json, digest_of
from kedge.model.policy import EvidenceRules
from kedge.model.runbook import Runbook
from kedge.trust.evidence import Asked, verify_parts

NODES = 5_000
"""Each is installed and moved, which is two records."""
AT_ONCE = 100
APPENDED = 10_000


class Appended(Frozen):
    """How fast a store takes records of the size that legs have."""

    store: str
    records: int
    seconds: float
    alone: float
    """Milliseconds of one record that nobody else waits with."""


class Verified(Frozen):
    """One run's evidence, verified from its file."""

    records: int
    orders: int
    checkpoints: int
    megabytes: float
    read_seconds: float
    verify_seconds: float
    ten_thousand_seconds: float
    """Reading and verifying, for ten thousand of these records."""
    processor_seconds: float
    """What of that the processor was busy with it: the same on a machine that does something else besides."""
    peak_mib: float
    appended: tuple[Appended, ...]


def runbook() -> Runbook:
    """A canary, a gate of two, and the rest in one wave."""
    said: dict[str, Json] = {
        "kind": "Runbook",
        "name": "bench-evidence",
        "node": [
            "stage",
            {"stop": {"signal": "TERM", "grace": "5s"}},
            "switch",
            "configure",
            {"start": {"settle": "0s"}},
            {"healthy": {"service": {"running": True}, "for": "0s", "within": "5s"}},
        ],
        "waves": {
            "canary": {"nodes": 10, "gate": "ship"},
            "widen": ["100%"],
            "max_unavailable": AT_ONCE,
        },
        "gates": {"ship": {"approvals": {"threshold": 2, "roles": ["sre"]}}},
    }
    return Runbook.model_validate(said, strict=False)


async def measure(say: Callable[[str], None], nodes: int = NODES) -> Verified:
    """Moves the nodes, exports the evidence of it, verifies that; then appends as much to empty stores."""
    async with opened(nodes, "sim", sim_in_memory=True) as home:
        key = ensure_key(home.settings.checkpoint_key)
        rules = EvidenceRules(signers=(key.public.line,))
        home.policy = home.policy.model_copy(update={"evidence": rules})
        await home.drivers.pins.pin(home.name, home.policy)
        say(f"evidence: {nodes} simulated nodes are brought up and moved")
        await home.ensure()
        run = await home.start(await home.plan(runbook(), "1.0.0", "1.1.0"))
        await home.approve(run.id, "ship")
        end = await run.result()
        if end.phase != "done":
            raise RuntimeError(f"the run ended otherwise: {end}")
        file = home.folder / "run.evidence"
        await desk_evidence.export(
            home.drivers.evidence, home.drivers.blobs, run.id, file, whole=True
        )
        say("evidence: it is verified, then appended")
        found = await _verified(home, file)
        sample = await _leg(home)
        appended = [await _appended("SQLite", SqliteEvidence(home.folder / "a.db"), sample)]
        address = os.environ.get("KEDGE_EVIDENCE_URL")
        if address:
            appended.append(await _appended("PostgreSQL", PostgresEvidence(address), sample))
        return found.model_copy(update={"appended": tuple(appended)})


async def _verified(home: Home, file: Path) -> Verified:
    begun, used = time.perf_counter(), time.process_time()
    parts = desk_evidence.read_file(file)
    read = time.perf_counter() - begun
    report = verify_parts(parts, Asked(pinned={digest_of(home.policy): home.policy}))
    took = time.perf_counter() - begun - read
    if not report.ok or not report.ended:
        raise RuntimeError(f"the evidence does not hold: {report.findings[:3]}, {report.unproven}")
    return Verified(
        records=report.records,
        orders=report.orders,
        checkpoints=report.checkpoints,
        megabytes=round(file.stat().st_size / 1e6, 1),
        read_seconds=round(read, 3),
        verify_seconds=round(took, 3),
        ten_thousand_seconds=round((read + took) * 10_000 / report.records, 3),
        processor_seconds=round((time.process_time() - used) * 10_000 / report.records, 3),
        peak_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        appended=(),
    )


async def _leg(home: Home) -> Json:
    """The record of a leg, as the run wrote it."""
    page = await home.drivers.evidence.read(
        home.name, (await _end(home.drivers.evidence, home.name)) - 200
    )
    return next(
        one.record
        for one in page
        if isinstance(one.record, dict) and one.record.get("what") == "leg"
    )


async def _end(evidence: Evidence, fleet: str) -> int:
    return (await evidence.head(fleet)).seq


async def _appended(store: str, evidence: WrittenEvidence, record: Json) -> Appended:
    """Many at once, as a wave appends them, then one after the other."""
    fleet = f"bench-{time.time_ns()}"
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            await evidence.append(fleet, f"k{number}", record)

    begun = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(APPENDED)))
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    for number in range(100):
        await evidence.append(fleet, f"alone{number}", record)
    alone = (time.perf_counter() - begun) * 10
    await evidence.aclose()
    return Appended(store=store, records=APPENDED, seconds=round(seconds, 3), alone=round(alone, 2))


def report(found: Verified) -> list[str]:
    """What was measured, in lines."""
    what = f"{found.records} records, {found.orders} orders, {found.checkpoints} checkpoints"
    took = f"read in {found.read_seconds:.2f} s and verified in {found.verify_seconds:.2f} s"
    whole = (
        f"{found.ten_thousand_seconds:.2f} s for 10,000 records,"
        f" {found.processor_seconds:.2f} s of the processor"
    )
    lines = [
        f"evidence of a run over {NODES} simulated nodes: {what}, {found.megabytes} MB",
        f"  {took}: {whole} (peak {found.peak_mib:.0f} MiB)",
    ]
    lines += [
        f"  {one.store}: {one.records / one.seconds:,.0f} appends a second, {AT_ONCE} at a time;"
        f" {one.alone:.1f} ms for one alone"
        for one in found.appended
    ]
    return lines
