"""Epochs are computed from the record: they grow, are bounded, and an order has one lease."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.run import MAX_EPOCH, Run
from kedge.trust.chain import EvidenceEntry
from kedge.trust.leases import FENCE, MAX_STEP, Leases, Order, grant, leases_of

SECONDS = 1_800_000_000
POLICY = "c" * 64


def order(number: int, verb: str = "start") -> Order:
    return Order.model_validate(
        {"digest": f"{number:064x}", "verb": verb, "plan": "b" * 64}, strict=False
    )


def entry(key: str, record: object) -> EvidenceEntry:
    return EvidenceEntry(1, key, record, "0" * 64, "0" * 64)  # type: ignore[arg-type]


def granted(*orders: Order, fences: tuple[int, ...] = (), seconds: int = SECONDS) -> Leases:
    """The leases that these orders get, one after the other, read back from their records."""
    entries = [entry(f"{FENCE}{one}/n", {"what": "fence-found", "epoch": one}) for one in fences]
    for one in orders:
        _, record = grant(leases_of(entries), one, "db", policy=POLICY, seconds=seconds)
        entries.append(entry(f"lease/{one.digest}", record))
    return leases_of(entries)


@given(
    verbs=st.lists(st.sampled_from(["start", "rollback"]), min_size=1, max_size=8),
    fences=st.lists(st.integers(-(2**70), 2**70), max_size=4),
    seconds=st.integers(0, 2**33),
)
def test_epochs_grow_above_every_lease_and_every_fence_that_can_be_one(
    verbs: list[str], fences: list[int], seconds: int
) -> None:
    orders = [order(number, verb) for number, verb in enumerate(verbs)]
    leases = granted(*orders, fences=tuple(fences), seconds=seconds)
    epochs = [one.epoch for one in leases.granted]
    assert epochs == sorted(set(epochs))
    assert all(0 < epoch <= MAX_EPOCH for epoch in epochs)
    near = [one for one in fences if one - max(0, seconds - 1) <= MAX_STEP]
    assert all(epochs[0] > one for one in near)
    assert [one.run.rpartition("/")[2] for one in leases.granted] == [
        str(number + 1) for number in range(len(verbs))
    ]


def test_a_fence_that_no_kedge_can_have_granted_shuts_nobody_out() -> None:
    (leased,) = granted(order(1), fences=(2**53 - 2, MAX_EPOCH, SECONDS + 2 * MAX_STEP)).granted
    assert leased.epoch == SECONDS
    (leased,) = granted(order(1), fences=(SECONDS + 1_000,)).granted
    assert leased.epoch == SECONDS + 1_001


def test_an_order_has_the_lease_that_it_got_however_often_it_is_asked_for() -> None:
    leases = granted(order(1), order(2, "rollback"))
    again, _ = grant(leases, order(1), "db", policy=POLICY, seconds=2 * SECONDS, taken=40)
    assert again == leases.granted[0]
    assert (leases.granted[1].snapshots, leases.snapshots) == (again.epoch, again.epoch)


def test_a_fleet_is_found_as_it_was_before_an_order_got_its_lease() -> None:
    first, second = order(1), order(2, "rollback")
    leases = granted(first, second)
    before = leases.earlier_than(second.digest)
    assert [one.order for one in before.granted] == [first.digest]
    assert before.last is not None
    assert before.last.run == "upgrade/db/1"
    assert leases.earlier_than(order(3).digest) == leases


def test_a_number_that_is_taken_is_not_given_again() -> None:
    leased, _ = grant(Leases(), order(1), "db", policy=POLICY, seconds=SECONDS, taken=4)
    assert leased.run == "upgrade/db/5"


def test_no_run_has_an_epoch_that_hosts_do_not_take() -> None:
    with pytest.raises(ValueError, match="less than or equal to"):
        Run(id="upgrade/db/1", fleet="db", plan="b" * 64, epoch=2**53 - 1, warrant="c" * 64)
