"""The leases of a fleet, as its record has them: who has the fleet, and the epoch that the next run gets.

An epoch is computed where the order that begins a run is spent, in the same append; nobody chooses one. It is one above
every lease in the record and every fence that was found on a host, and no lower than the seconds since 1970, so that it
keeps growing where the record was lost. Numbers are bounded: a fence that no kedge can have granted is not followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from kedge.model.base import Digest, Frozen, Json
from kedge.model.run import MAX_EPOCH
from kedge.trust.chain import EvidenceEntry

LEASE = "lease/"
FENCE = "fence-found/"
MAX_STEP = 2**32
"""The furthest that a fence found on a host raises the next epoch: what lies beyond it no lease ever had."""


class Leased(Frozen):
    """One lease: the order that was spent for it, and the run that got it."""

    order: Digest
    run: str
    epoch: int
    verb: Literal["start", "rollback"]
    plan: Digest
    snapshots: int = 0


class Leases(Frozen):
    """Every lease of a fleet, in order, and the fences that were found on its hosts."""

    granted: tuple[Leased, ...] = ()
    fences: tuple[int, ...] = ()

    @property
    def last(self) -> Leased | None:
        """The newest: its run has the fleet, or had it last."""
        return self.granted[-1] if self.granted else None

    @property
    def epoch(self) -> int:
        """The highest epoch that was granted; 0 before the first."""
        return max((one.epoch for one in self.granted), default=0)

    @property
    def count(self) -> int:
        """The highest number that a run has."""
        return max((_number(one.run) for one in self.granted), default=0)

    @property
    def snapshots(self) -> int:
        """The epoch of the last upgrade: its snapshots are what a rollback restores."""
        starts = [one.epoch for one in self.granted if one.verb == "start"]
        return starts[-1] if starts else 0

    def of(self, order: Digest) -> Leased | None:
        """The lease that an order was spent for."""
        return next((one for one in self.granted if one.order == order), None)

    def earlier_than(self, order: Digest) -> Leases:
        """The leases that were granted before the one of an order; all of them where it has none."""
        granted = self.granted
        place = next((at for at, one in enumerate(granted) if one.order == order), len(granted))
        return self.model_copy(update={"granted": granted[:place]})

    def highest(self, seconds: int) -> int:
        """What the next epoch is above. Fences that lie too far beyond what was ever granted do not count."""
        highest = max(self.epoch, seconds - 1)
        return max([highest, *(one for one in self.fences if one - highest <= MAX_STEP)])


def leases_of(entries: Iterable[EvidenceEntry]) -> Leases:
    """The leases in these entries. What is no lease of a run of its own (a decision to go back) is left out."""
    granted: dict[Digest, Leased] = {}
    fences: list[int] = []
    for entry in entries:
        record: Any = entry.record
        if not isinstance(record, dict):
            continue
        if entry.key.startswith(LEASE) and record.get("verb") in ("start", "rollback"):
            one = Leased.model_validate(
                {name: record.get(name) for name in Leased.model_fields}, strict=False
            )
            granted.setdefault(one.order, one)
        elif entry.key.startswith(FENCE) and isinstance(record.get("epoch"), int):
            fences.append(record["epoch"])
    return Leases(granted=tuple(granted.values()), fences=tuple(fences))


class Order(Frozen):
    """The accepted order that a lease is granted for."""

    digest: Digest
    verb: Literal["start", "rollback"]
    plan: Digest


def grant(
    leases: Leases, order: Order, fleet: str, *, policy: Digest, seconds: int, taken: int = 0
) -> tuple[Leased, dict[str, Json]]:
    """The lease for an order and its record. An order that has one keeps it, whoever asks how often.

    ``seconds`` are those since 1970, ``taken`` is the highest number of a run that is known elsewhere.
    Raises ``ValueError`` where no number is left.
    """
    known = leases.of(order.digest)
    if known is None:
        upgrade = order.verb == "start"
        kind = "upgrade" if upgrade else "rollback"
        epoch = leases.highest(seconds) + 1
        known = Leased(
            order=order.digest,
            run=f"{kind}/{fleet}/{max(leases.count, taken) + 1}",
            epoch=epoch,
            verb=order.verb,
            plan=order.plan,
            snapshots=0 if upgrade else leases.snapshots,
        )
    if known.epoch > MAX_EPOCH:
        raise ValueError(f"epoch {known.epoch} is higher than any that a host takes ({MAX_EPOCH})")
    record: dict[str, Json] = {"what": "lease", **known.model_dump(mode="json")}
    return known, {**record, "policies": [policy]}


def _number(run: str) -> int:
    last = run.rpartition("/")[2]
    return int(last) if last.isdigit() and len(last) < 16 else 0
