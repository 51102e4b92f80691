"""What the record allows, rule by rule: the same functions decide online and verify offline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kedge.model.base import Json
from kedge.model.plan import Plan
from kedge.trust.admission import (
    Admitted,
    Ask,
    Looking,
    Refused,
    admit,
    may_bake,
    may_fence,
    not_ended,
    unbaked,
)
from kedge.trust.chain import EvidenceEntry, EvidenceHead, link, linked
from kedge.trust.run_history import FleetHistory
from tests.plan import samples

RUN, BACK, EPOCH, ORDER, PLAN = "upgrade/shop/1", "rollback/shop/1-auto", 7, "a" * 64, "b" * 64
WAVES = (
    "waves: {canary: {nodes: 1, bake: {duration: 60s, interval: 10s}}, widen: [50%, 100%], max_unavailable: 2}",
    "retry: {attempts: 2}",
    "failure_budget: 1",
    "on_failure: rollback",
)
NODES = tuple(f"node-{index}" for index in range(6))


def plan_of(*more: str) -> Plan:
    return samples.small(6, *(more or WAVES))


class Record:
    """A fleet's record as it grows, and what the rules say to it."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or plan_of()
        self.history = FleetHistory("shop", lambda _: True)
        self.ms = 1_000_000
        self.add("lease", order=ORDER, run=RUN, epoch=EPOCH)

    @property
    def seq(self) -> int:
        return self.history.head.seq

    def append(self, key: str, record: dict[str, Json]) -> None:
        head = self.history.head
        digest = link(head.hash, linked(key, record))
        entry = EvidenceEntry(head.seq + 1, key, record, head.hash, digest)
        assert self.history.take([entry])

    def add(self, what: str, **record: Any) -> None:
        self.append(f"k{self.seq}", {"what": what, **record})

    def look(
        self, *names: str, bad: Iterable[str] = (), run: str = RUN, why: str = "preflight"
    ) -> None:
        sight = {"release": self.plan.before.artifacts[0].digest, "running": True}
        nodes = dict.fromkeys(names or NODES, sight)
        failures = [f"{name}: ProbeFailed" for name in bad]
        self.add("looked", run=run, why=why, token=[EPOCH, 0, 1], nodes=nodes, failures=failures)

    def decide(self, choice: str, run: str = RUN, verb: str = "decide") -> None:
        subject = f"item-{self.seq}"
        self.add(
            "order", accepted=True, verb=verb, choice=choice, target=run, subject=subject,
            digest=f"{self.seq:064x}",
        )  # fmt: skip

    def ask(self, *names: str, **given: Any) -> Ask:
        ask: dict[str, Any] = {
            "run": RUN, "epoch": EPOCH, "plan": PLAN, "order": ORDER, "automatic": True,
            "program": "forward", "wave": 0, "leg": 0, "nodes": names,
        }  # fmt: skip
        return Ask(**{**ask, **given})

    def admitted(self, *names: str, **given: Any) -> dict[str, Admitted | Refused | None]:
        """Asks, and appends what is admitted, as a worker does."""
        verdict = admit(
            self.history, self.plan, self.ask(*names, **given), self.seq, {"ms": self.ms}
        )
        for key, record in verdict.records:
            self.append(key, record)
        return verdict.nodes

    def refused(self, *names: str, **given: Any) -> str:
        """Why none of them is admitted."""
        before = self.seq
        found = [one for one in self.admitted(*names, **given).values() if isinstance(one, Refused)]
        assert len(found) == len(names)
        assert self.seq == before
        return f"{found[0].kind}: {found[0].said}"

    def end(
        self, name: str, failed: str | None = None, *, heard: bool = True, **given: Any
    ) -> None:
        """An attempt of a leg ends."""
        run, program = given.get("run", RUN), given.get("program", "forward")
        track = self.history.run(run, EPOCH).track(program)
        node = track.nodes[name]
        self.add(
            "leg", run=run, node=name, program=program, leg=node.leg, wave=given.get("wave", 0),
            token=[EPOCH, node.serial, 1], heard=heard, steps=[], ms=self.ms,
            failed=None if failed is None else {"type": failed, "key": "", "message": ""},
        )  # fmt: skip

    def through(self, *names: str, wave: int) -> None:
        for name in names:
            assert isinstance(self.admitted(name, wave=wave)[name], Admitted)
            self.end(name, wave=wave)

    def bake(self, wave: int = 0, seconds: int = 60, bad: Iterable[str] = ()) -> None:
        """Looks at a wave, every ten seconds for so long."""
        for _ in range(0, seconds, 10):
            self.ms += 10_000
            failures = [f"{name}: NotHealthy" for name in bad]
            self.add(
                "looked", run=RUN, why="bake", wave=wave, token=[EPOCH, 0, 1], nodes=1, skipped=[],
                interval_ms=10_000, reported=bool(failures), failures=failures, ms=self.ms,
            )  # fmt: skip


@pytest.fixture
def record() -> Record:
    made = Record()
    made.look()
    return made


def test_a_node_is_admitted_once_and_its_serial_is_the_place_of_its_admission(
    record: Record,
) -> None:
    (canary,) = (record.plan.nodes[node].name for node in record.plan.waves[0].nodes)
    found = record.admitted(canary)[canary]
    assert found == Admitted(round=0, serial=record.seq, retries=0, snapshots=EPOCH)
    record.end(canary)
    before = record.seq
    assert record.admitted(canary) == {canary: None}
    assert record.seq == before


def test_nothing_is_admitted_before_everybody_was_looked_at() -> None:
    record = Record()
    record.look(*NODES[:5])
    assert "never looked at, such as node-5" in record.refused(NODES[0])


def test_a_node_that_was_not_well_before_the_start_needs_a_decision() -> None:
    record = Record()
    record.look(bad=["node-3"])
    assert "the look at node-3 was not good" in record.refused(NODES[0])
    record.decide("skip")
    assert isinstance(record.admitted(NODES[0])[NODES[0]], Admitted)


def test_a_later_wave_waits_for_the_whole_bake(record: Record) -> None:
    assert "wave canary is not complete" in record.refused("node-1", wave=1)
    record.through("node-0", wave=0)
    assert "the bake of wave canary is not passed" in record.refused("node-1", wave=1)
    record.bake(seconds=50)
    assert "baked for 50.0 of 60 seconds" in record.refused("node-1", wave=1)
    record.bake(seconds=10)
    assert isinstance(record.admitted("node-1", wave=1)["node-1"], Admitted)
    assert "wave wave-1 is not complete" in record.refused("node-4", wave=2)


def test_looks_with_a_gap_or_a_failure_between_them_begin_again(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=30)
    record.ms += 100_000
    record.bake(seconds=30)
    assert "baked for 20.0" in record.refused("node-1", wave=1)
    record.bake(seconds=10, bad=["node-0"])
    assert "node-0 did not pass" in record.refused("node-1", wave=1)
    record.bake(seconds=60)
    assert unbaked(record.history.run(RUN, EPOCH), record.plan, 0) is None


def test_a_node_is_of_its_own_wave(record: Record) -> None:
    for wave in (0, 2, 9, -1):
        assert "NotAdmitted" in record.refused("node-1", wave=wave)
    assert "is not in wave 0" in record.refused("somebody", wave=0)


def test_no_more_are_out_than_may_be(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake()
    found = record.admitted("node-1", "node-2", wave=1)
    assert all(isinstance(one, Admitted) for one in found.values())
    # Asked for again, they go on; a third finds no place before one of them is done.
    assert all(
        isinstance(one, Admitted) for one in record.admitted("node-1", "node-2", wave=1).values()
    )
    record = Record(plan_of(WAVES[0].replace("50%", "100%").replace(", 100%]", "]"), *WAVES[1:]))
    record.look()
    record.through("node-0", wave=0)
    record.bake()
    found = record.admitted(*NODES[1:], wave=1)
    assert [type(one).__name__ for one in found.values()] == ["Admitted"] * 2 + ["Refused"] * 3
    assert record.refused("node-3", wave=1).startswith("Full: 2 node(s) are in flight")
    record.end("node-2", wave=1)
    assert isinstance(record.admitted("node-3", wave=1)["node-3"], Admitted)


def test_tries_end_and_only_a_decision_begins_another_round(record: Record) -> None:
    record.admitted("node-0")
    record.end("node-0", "NotHealthy")
    found = record.admitted("node-0")["node-0"]
    assert isinstance(found, Admitted)
    assert found.round == 0
    record.end("node-0", "NotHealthy")
    assert "nobody decided to try it again" in record.refused("node-0")
    record.decide("retry")
    found = record.admitted("node-0")["node-0"]
    assert isinstance(found, Admitted)
    assert (found.round, found.retries) == (record.seq - 1, 1)


def test_who_asks_again_for_a_leg_that_failed_is_told_how_it_failed(record: Record) -> None:
    record.admitted("node-0")
    record.end("node-0", "NotHealthy")
    record.end("node-0", "DigestMismatch")
    refused = record.admitted("node-0", anew=False)["node-0"]
    assert isinstance(refused, Refused)
    assert refused.failed is not None
    assert refused.failed.failure is not None
    assert (refused.failed.failure["type"], refused.failed.reported) == ("DigestMismatch", True)
    # Of another leg nothing is told: that one did not fail.
    other = record.admitted("node-0", leg=1)["node-0"]
    assert isinstance(other, Refused)
    assert other.failed is None


def test_a_daemon_that_died_begins_a_round_of_its_own(record: Record) -> None:
    record.admitted("node-0")
    record.end("node-0", "ServiceDied")
    died = record.seq
    found = record.admitted("node-0")["node-0"]
    assert isinstance(found, Admitted)
    assert found.round == died


def test_a_lost_connection_and_a_late_word_change_nothing(record: Record) -> None:
    record.admitted("node-0")
    serial = record.seq
    record.end("node-0", "TransportLost", heard=False)
    same = record.admitted("node-0", anew=False)["node-0"]
    assert isinstance(same, Admitted)
    assert same.serial == serial
    anew = record.admitted("node-0")["node-0"]
    assert isinstance(anew, Admitted)
    assert anew.serial > serial
    record.add(
        "leg", run=RUN, node="node-0", program="forward", leg=0, wave=0, token=[EPOCH, serial, 1],
        heard=True, steps=[], ms=record.ms, failed=None,
    )  # fmt: skip
    assert record.history.run(RUN, EPOCH).forward.done == set()


def test_a_leg_that_does_not_follow_is_refused(record: Record) -> None:
    assert "the program forward has no leg 7" in record.refused("node-0", leg=7)
    assert "the program forward has no leg -1" in record.refused("node-0", leg=-1)
    assert "NotAdmitted" in record.refused("node-0", program="back")


@pytest.mark.parametrize(("verb", "said"), [("pause", "is paused"), ("abort", "was ended")])
def test_an_order_to_hold_is_kept_at_once(record: Record, verb: str, said: str) -> None:
    record.admitted("node-0")
    record.decide("", verb=verb)
    assert isinstance(record.admitted("node-0")["node-0"], Admitted), "what is in flight goes on"
    record.end("node-0")
    record.bake()
    assert record.refused("node-1", wave=1) == f"Held: {RUN} {said} by an order"
    record.decide("", verb="resume")
    found = record.admitted("node-1", wave=1)["node-1"]
    assert isinstance(found, Admitted if verb == "pause" else Refused)


@pytest.mark.parametrize("verb", ["pause", "abort"])
def test_an_order_that_does_not_verify_again_holds_a_run_and_does_not_end_it(
    record: Record, verb: str
) -> None:
    record.history.believes = lambda _: False
    record.decide("", verb=verb)
    assert record.refused("node-0").startswith("Held: ")
    why = not_ended(record.history, record.plan, RUN, EPOCH, "aborted")
    assert why == "the record has no order that ended it"
    record.history.believes = lambda _: True
    record.decide("", verb="resume")
    record.decide("", verb="abort")
    assert not_ended(record.history, record.plan, RUN, EPOCH, "aborted") is None


def test_the_budget_is_kept_and_a_decision_goes_beyond_it(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake()
    for name in ("node-1", "node-2"):
        record.admitted(name, wave=1)
        record.end(name, "BadRequest", wave=1)
    assert "2 node(s) failed, and 1 may" in record.refused("node-3", wave=2)
    record.decide("skip")
    found = record.admitted("node-3", "node-4", wave=2)
    assert [type(one).__name__ for one in found.values()] == ["Admitted", "Refused"]


def test_a_newer_lease_another_run_and_another_order_are_refused(record: Record) -> None:
    assert "no lease" in record.refused("node-0", order="c" * 64)
    assert "no lease" in record.refused("node-0", epoch=EPOCH + 1)
    assert "no lease" in record.refused("node-0", run="upgrade/shop/2")
    record.add("lease", order="c" * 64, run="rollback/shop/2", epoch=EPOCH + 1)
    assert record.refused("node-0").startswith("Fenced: rollback/shop/2 has the lease")


def test_what_workflows_say_changes_nothing(record: Record) -> None:
    record.append(
        "said/x",
        {
            "what": "leg",
            "run": RUN,
            "node": "node-0",
            "program": "forward",
            "leg": 0,
            "token": [EPOCH, 1, 1],
        },
    )
    record.append("said/y", {"what": "end", "run": RUN, "epoch": EPOCH, "outcome": "aborted"})
    assert isinstance(record.admitted("node-0")["node-0"], Admitted)


# -- the way back ------------------------------------------------------------------------------------------------


def cause(record: Record, *, automatic: bool = True) -> str | None:
    found = may_fence(record.history, record.plan, (BACK, EPOCH, ORDER), automatic=automatic)
    return None if found is None else found.said


def test_a_run_goes_back_automatically_only_for_what_a_host_reported(record: Record) -> None:
    assert "began no wave" in str(cause(record))
    record.through("node-0", wave=0)
    assert "no host reported a failure" in str(cause(record))
    record.bake()
    for name, heard in (("node-1", False), ("node-2", False)):
        record.admitted(name, wave=1)
        for _ in range(2):
            record.end(name, "Unreachable", heard=heard, wave=1)
            record.admitted(name, wave=1)
    assert "no host reported" in str(cause(record)), "silence is no cause"


def test_within_the_budget_and_after_a_decision_nothing_goes_back(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake()
    record.admitted("node-1", "node-2", wave=1)
    record.end("node-1", "BadRequest", wave=1)
    assert "no host reported" in str(cause(record))
    record.end("node-2", "BadRequest", wave=1)
    assert cause(record) is None
    record.decide("retry")
    assert "no host reported" in str(cause(record))


def test_a_bake_that_failed_is_a_cause_until_somebody_decides(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=10, bad=["node-0"])
    assert cause(record) is None
    record.decide("retry")
    assert cause(record) is not None


def test_a_run_that_ended_goes_back_by_an_order_alone(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=10, bad=["node-0"])
    record.add("end", run=RUN, epoch=EPOCH, outcome="aborted")
    assert f"{RUN} has ended: aborted" in str(cause(record))


def test_a_way_back_touches_the_nodes_that_were_decided_in_their_order(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=10, bad=["node-0"])
    back: dict[str, Any] = {"run": BACK, "program": "back", "wave": 1}
    assert "no decision about the way back" in record.refused("node-0", **back)
    record.add(
        "return", run=BACK, epoch=EPOCH, verdict="go", program="back", begun=1,
        waves=[["node-1", "node-2"], ["node-0"]], parallel=[1, 1],
    )  # fmt: skip
    decided = record.seq
    assert "does not touch node-5" in record.refused("node-5", **back)
    assert record.refused("node-0", **back).startswith("Full: node-1 goes back before node-0")
    found = record.admitted("node-1", "node-2", **back)
    assert [type(one).__name__ for one in found.values()] == ["Admitted", "Refused"]
    first = found["node-1"]
    assert isinstance(first, Admitted)
    assert first.round == decided
    record.end("node-1", run=BACK, program="back")
    record.admitted("node-2", **back)
    record.end("node-2", run=BACK, program="back")
    assert isinstance(record.admitted("node-0", **back)["node-0"], Admitted)
    assert "NotAdmitted" in record.refused("node-0", **{**back, "program": "restore"})


def serving(record: Record, *names: str, run: str, serves: bool) -> None:
    sight = {"release": "x", "running": serves, "serving": serves}
    record.add("looked", run=run, why="stop", epoch=EPOCH, nodes=dict.fromkeys(names, sight))


def test_nodes_that_do_not_serve_keep_their_places_whatever_brought_them_down(
    record: Record,
) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=60)
    serving(record, "node-0", "node-5", run=RUN, serves=False)
    assert record.refused("node-1", wave=1).startswith("Full")
    serving(record, "node-5", run=RUN, serves=True)
    assert isinstance(record.admitted("node-1", wave=1)["node-1"], Admitted)
    assert record.refused("node-2", wave=1).startswith("Full"), "one is out, one in flight"
    record.end("node-1", wave=1)
    serving(record, "node-1", run=RUN, serves=False)
    assert record.refused("node-2", wave=1).startswith("Full"), "it died after it was done"
    record.decide("skip")
    assert isinstance(record.admitted("node-2", wave=1)["node-2"], Admitted)


def test_nobody_that_serves_goes_back_while_too_many_do_not_serve(record: Record) -> None:
    record.through("node-0", wave=0)
    record.bake(seconds=10, bad=["node-0"])
    back: dict[str, Any] = {"run": BACK, "program": "back", "wave": 1}
    record.add(
        "return", run=BACK, epoch=EPOCH, verdict="go", program="back", begun=1,
        waves=[["node-0", "node-1", "node-2"]], parallel=[1],
    )  # fmt: skip
    serving(record, "node-1", "node-5", run=BACK, serves=False)
    assert record.refused("node-0", **back) == (
        "Full: node-1 does not serve, and 1 may be unavailable"
    )
    assert isinstance(record.admitted("node-1", **back)["node-1"], Admitted), "it costs nothing"
    record.end("node-1", run=BACK, program="back")
    assert "node-5 does not serve" in record.refused("node-0", **back)
    record.look("node-5", bad=["node-5"], run=BACK, why="fence")
    assert isinstance(record.admitted("node-0", **back)["node-0"], Admitted), "nobody answers there"


# -- bakes and ends ------------------------------------------------------------------------------------------------


def test_a_bake_looks_at_a_complete_wave_and_at_all_of_it(record: Record) -> None:
    of = (RUN, EPOCH, ORDER)
    assert isinstance(may_bake(record.history, record.plan, 0, of), Refused)
    record.through("node-0", wave=0)
    assert may_bake(record.history, record.plan, 0, of) == Looking(("node-0",), (), ensure=False)
    assert isinstance(may_bake(record.history, record.plan, 1, of), Refused)
    record.bake()
    record.admitted("node-1", wave=1)
    assert "was baked before" in str(may_bake(record.history, record.plan, 0, of))
    assert "is missing" in str(may_bake(record.history, record.plan, 1, of))


def test_a_run_is_done_when_the_record_has_every_leg_and_bake(record: Record) -> None:
    assert "6 node(s) have no leg" in str(
        not_ended(record.history, record.plan, RUN, EPOCH, "done")
    )
    record.through("node-0", wave=0)
    record.bake()
    record.through("node-1", "node-2", wave=1)
    record.through("node-3", "node-4", wave=2)
    said = not_ended(record.history, record.plan, RUN, EPOCH, "done")
    assert said == "1 node(s) have no leg in the record, such as node-5"
    record.through("node-5", wave=2)
    assert not_ended(record.history, record.plan, RUN, EPOCH, "done") is None


def test_a_run_is_ended_by_an_order_and_rolled_back_by_a_look(record: Record) -> None:
    assert not_ended(record.history, record.plan, RUN, EPOCH, "aborted") is not None
    record.decide("", verb="abort")
    assert not_ended(record.history, record.plan, RUN, EPOCH, "aborted") is None
    back = "rollback/shop/2"
    assert "node-0 was not seen" in str(
        not_ended(record.history, record.plan, back, EPOCH, "rolled-back")
    )
    record.look(run=back, why="fence")
    assert not_ended(record.history, record.plan, back, EPOCH, "rolled-back") is None


def test_another_chain_is_not_taken_up(record: Record) -> None:
    head = record.history.head
    strange = EvidenceEntry(head.seq + 1, "k", {}, "0" * 64, "1" * 64)
    assert not record.history.take([strange])
    assert not record.history.take([EvidenceEntry(head.seq, "k", {}, head.hash, "2" * 64)])
    assert record.history.head == EvidenceHead(head.seq, head.hash)
