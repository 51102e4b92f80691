"""Admissions decided again, from the record alone: every leg stands on one, and each is one that the rules allow.

The same functions that workers decide with (:mod:`kedge.trust.admission`), on the same fold, record by record: what a worker
that lied, or a workflow that somebody forged, let through is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kedge.model.base import Json
from kedge.model.plan import Plan
from kedge.trust.admission import (
    Ask,
    Refused,
    admit,
    left_on,
    may_bake,
    may_fence,
    not_ended,
)
from kedge.trust.chain import EvidenceEntry, EvidenceHead, genesis
from kedge.trust.docket import Docket
from kedge.trust.run_history import SAID, FleetHistory
from kedge.trust.wholeness import acts_as

_PROGRAMS = ("forward", "back", "restore", "finalize")


class AdmissionChecker:
    """Walks over the records of one fleet in their order, behind the judgement of its orders."""

    def __init__(self, docket: Docket) -> None:
        self._docket = docket
        self._history = FleetHistory(docket.fleet, self._believes)
        before = docket.first - 1
        start = docket.hashes.get(before, genesis(docket.fleet))
        self._history.head = EvidenceHead(before, start)
        self._admitted: dict[int, Mapping[str, Any]] = {}
        self._judges: dict[str, Callable[[EvidenceEntry, Mapping[str, Any]], str | None]] = {
            "admitted": self._admission,
            "leg": self._leg,
            "looked": self._look,
            "fence": self._fence,
            "end": self._end,
        }

    def _believes(self, record: Mapping[str, Any]) -> bool:
        return str(record.get("digest")) in self._docket.accepted

    def take(self, entry: EvidenceEntry) -> None:
        """Judges a record by everything before it, and takes it up."""
        record = entry.record
        if isinstance(record, dict) and not entry.key.startswith(SAID):
            judge = self._judges.get(str(record.get("what")))
            why = judge(entry, record) if judge is not None and self._begins(record) else None
            if why is not None:
                self._docket.wrong("admission", entry.seq, why)
        self._history.fold(entry)

    def _begins(self, record: Mapping[str, Any]) -> bool:
        """Whether the run of a record has its lease in here: of others the part of the record says too little."""
        leased = {run for run, _ in self._history.leases.values()}
        return self._docket.first == 1 or bool(acts_as(str(record.get("run"))) & leased)

    # -- by kind -----------------------------------------------------------------------------------------------------

    def _admission(self, entry: EvidenceEntry, record: Mapping[str, Any]) -> str | None:
        plan, of, program = self._plan(record), _of(record), record.get("program")
        nodes, wave, leg = record.get("nodes"), record.get("wave"), record.get("leg")
        if (
            of is None
            or program not in _PROGRAMS
            or not (wave is None or type(wave) is int)
            or type(leg) is not int
            or not isinstance(nodes, list)
            or not nodes
        ):
            return "this is no record of an admission"
        self._admitted[entry.seq] = record
        if plan is None:
            return f"the plan of {of[0]} is not in the file"
        ask = Ask(
            run=of[0],
            epoch=of[1],
            plan=str(record.get("plan")),
            order=of[2],
            automatic=self._automatic(of[2]),
            program=program,
            wave=wave,
            leg=leg,
            nodes=tuple(str(one) for one in nodes),
        )
        time: dict[str, Json] = {name: record.get(name) for name in ("at", "ms")}
        verdict = admit(self._history, plan, ask, entry.seq - 1, time)
        for name, found in verdict.nodes.items():
            if found is None:
                return f"{name} of {of[0]} was let through again, and had done that"
            if isinstance(found, Refused):
                return f"{name} of {of[0]} was let through, and must not be: {found.said}"
        if verdict.records != [(entry.key, dict(record))]:
            return f"the admission says another round, or other legs, than {of[0]} was at"
        return None

    def _leg(self, _: EvidenceEntry, record: Mapping[str, Any]) -> str | None:
        given = record.get("token")
        token = given if isinstance(given, list) and len(given) == 3 else [None, None, None]
        admitted = self._admitted.get(token[1]) if type(token[1]) is int else None
        where = f"{record.get('node')} of {record.get('run')}"
        if admitted is None:
            return f"{where} acted, and nothing in the record let it through"
        names = ("run", "program", "leg", "wave")
        other = [name for name in names if admitted.get(name) != record.get(name)]
        if other or record.get("node") not in admitted["nodes"] or token[0] != admitted["epoch"]:
            return f"{where} acted otherwise than it was let through: {', '.join(other) or 'node'}"
        steps = record.get("steps")
        for step in steps if isinstance(steps, list) else ():
            round_ = str(step.get("key")).partition("#")[2] if isinstance(step, dict) else ""
            if round_ and round_ != str(admitted.get("round")):
                return f"{where} acted in round {round_}, and was let through for {admitted.get('round')}"
        return None

    def _look(self, _: EvidenceEntry, record: Mapping[str, Any]) -> str | None:
        if record.get("why") != "bake":
            return None
        run, wave, token = str(record.get("run")), record.get("wave"), record.get("token")
        if type(wave) is not int or not isinstance(token, list) or type(token[0]) is not int:
            return "this is no record of a look of a bake"
        order = next(
            (o for o, lease in self._history.leases.items() if lease == (run, token[0])), ""
        )
        verdict = self._docket.accepted.get(order)
        known = None if verdict is None else self._docket.papers.plan(verdict.verdict.plan)
        if known is None:
            return f"the plan of {run} is not in the file"
        plan = known.plan
        looking = may_bake(self._history, plan, wave, (run, token[0], order))
        if isinstance(looking, Refused):
            return f"a bake of {run} was looked at, and must not be: {looking.said}"
        bake = plan.waves[wave].bake
        interval = max(bake.interval, bake.duration / 60) if bake is not None else 0.0
        told = (record.get("nodes"), record.get("skipped"), record.get("interval_ms"))
        if told != (len(looking.nodes), list(looking.skipped), round(interval * 1000)):
            return (
                f"the look of the bake of wave {plan.waves[wave].name} was not at all of its nodes"
            )
        return None

    def _fence(self, _: EvidenceEntry, record: Mapping[str, Any]) -> str | None:
        plan, of = self._plan(record), _of(record)
        if plan is None or of is None:
            return "this is no record of a rollback that begins"
        refused = may_fence(self._history, plan, of, automatic=self._automatic(of[2]))
        return None if refused is None else f"{of[0]} must not go back: {refused.said}"

    def _end(self, _: EvidenceEntry, record: Mapping[str, Any]) -> str | None:
        plan, run, epoch = self._plan(record), str(record.get("run")), record.get("epoch")
        outcome = str(record.get("outcome"))
        if plan is None or type(epoch) is not int:
            return "this is no record of the end of a run"
        why = not_ended(self._history, plan, run, epoch, outcome)
        if why is not None:
            return f"{run} did not end {outcome}: {why}"
        if record.get("left") != left_on(self._history, plan, run, epoch, outcome):
            return f"{run} left the fleet otherwise than its end says"
        return None

    def _plan(self, record: Mapping[str, Any]) -> Plan | None:
        known = self._docket.papers.plan(str(record.get("plan")))
        return None if known is None else known.plan

    def _automatic(self, order: str) -> bool:
        known = self._docket.accepted.get(order)
        return known is not None and known.verdict.verb == "start"


def _of(record: Mapping[str, Any]) -> tuple[str, int, str] | None:
    run, epoch, order = record.get("run"), record.get("epoch"), record.get("order")
    if isinstance(run, str) and type(epoch) is int and isinstance(order, str):
        return run, epoch, order
    return None
