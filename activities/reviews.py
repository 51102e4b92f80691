"""The reviews that a fleet owes, as its record has them: whoever begins the Fleet anew in the engine does not lose them."""

from __future__ import annotations

from activities.ground import Ground
from activities.spent import SpentOrders
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.order import OrderVerdict
from kedge.model.review import Review
from kedge.plan.lease import glass_of, owed

BROKEN, REVIEWED = "glass/", "reviewed/"
MOST = 10_000
"""Orders that break the glass which are looked at in one fleet's record."""


class OwedReviews:
    """Two keys for each order that broke the glass: one with the order, one with the review that closed it."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._spent = SpentOrders(ground)

    async def noted(
        self, fleet: str, verdict: OrderVerdict, reviews: tuple[Review, ...], by: str
    ) -> None:
        """Write down what an accepted order opens or closes. ``by`` is the workflow that it was judged for.

        Closed is what the reviewer was shown, and of that only what the record has in the same words: where a Fleet was
        made to show something else, the review stays open.
        """
        if not verdict.accepted:
            return
        if verdict.break_glass:
            record: dict[str, Json] = {"what": "glass", "order": verdict.digest, "by": by}
            await self._ground.note(fleet, BROKEN + verdict.digest, record)
        if verdict.verb != "review" or not verdict.closes:
            return
        for review in reviews:
            if (review.run, review.shown) != (verdict.subject, verdict.shown):
                continue
            for order in review.orders:
                found = await self._spent.accepted(fleet, order.digest)
                if found is not None and glass_of(found) == order:
                    record = {"what": "reviewed", "order": order.digest, "review": verdict.digest}
                    await self._ground.note(fleet, REVIEWED + order.digest, record)

    async def open(self, fleet: str) -> tuple[Review, ...]:
        """The reviews that the record has no signatures for. Raises ``DriverError`` where that cannot be said."""
        broken = await self._ground.evidence.under(fleet, BROKEN, MOST)
        if not broken:
            return ()
        closed = await self._ground.evidence.under(fleet, REVIEWED, MOST)
        if len(broken) == MOST:
            raise DriverError("StoreError", "more orders broke the glass than can be looked at", retryable=False)  # fmt: skip
        done = {one.key.removeprefix(REVIEWED) for one in closed}
        reviews: tuple[Review, ...] = ()
        for entry in broken:
            digest = entry.key.removeprefix(BROKEN)
            verdict = None if digest in done else await self._spent.accepted(fleet, digest)
            if verdict is not None:
                run = await self._run(fleet, verdict)
                reviews = owed(reviews, run, verdict, verdict.issued)
        return reviews

    async def _run(self, fleet: str, verdict: OrderVerdict) -> str:
        """The run an order was for: the one it was said to, or the one that began by it."""
        if verdict.target != f"fleet/{fleet}":
            return verdict.target
        lease = await self._ground.evidence.find(fleet, f"lease/{verdict.digest}")
        began = (
            lease.record.get("run")
            if lease is not None and isinstance(lease.record, dict)
            else None
        )
        return began if isinstance(began, str) else verdict.target
