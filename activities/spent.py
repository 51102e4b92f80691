"""Orders spent once, by the record: what a workflow remembers of them may be lost, or made up."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from temporalio import activity

from activities.ground import Ground, now
from kedge.model.base import Digest, Json
from kedge.model.errors import DriverError
from kedge.model.order import OrderVerdict
from kedge.trust.envelope import order_key

SPENT = "spent/"
_VERDICT = frozenset(OrderVerdict.model_fields)


class SpentOrders:
    """An accepted order and its nonce stand in the record together, appended at once or not at all."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def spend(
        self, fleet: str, verdict: OrderVerdict, case: Mapping[str, Json]
    ) -> OrderVerdict | None:
        """The verdict as it stands in the record from now on; None when the order or its nonce was spent before.

        An activity that is tried again finds its own record, and the verdict that it gave. Raises ``DriverError``.
        """
        info = activity.info()
        task = f"{info.workflow_run_id}/{info.activity_id}"
        spent: dict[str, Json] = {"what": "spent", "order": verdict.digest, "task": task}
        order: dict[str, Json] = {"what": "order", **verdict.model_dump(mode="json"), **case}
        at = now()
        pairs: list[tuple[str, Json]] = [
            (SPENT + verdict.nonce, {"at": at, **spent}),
            (order_key(verdict.digest, "accepted", verdict.key), {"at": at, **order}),
        ]
        end = await self._ground.evidence.head(fleet)
        try:
            await self._ground.evidence.append_decided(fleet, end.seq, lambda *_: pairs)
        except DriverError as error:
            if error.kind != "KeyTaken":
                raise
        else:
            return verdict
        entry = await self._ground.evidence.find(fleet, SPENT + verdict.nonce)
        before = entry.record if entry is not None and isinstance(entry.record, dict) else {}
        if {name: before.get(name) for name in spent} != spent:
            return None
        return await self.accepted(fleet, verdict.digest)

    async def accepted(self, fleet: str, digest: Digest) -> OrderVerdict | None:
        """The verdict by which this very order was accepted, as the record has it; None: it has none.

        It was judged by all policies that counted then: a person who is revoked since, or a policy that cannot be read
        now, takes nothing back. Only the judgement of an order writes such a record. Raises ``DriverError``.
        """
        entry = await self._ground.evidence.find(fleet, order_key(digest, "accepted", ""))
        if entry is None or not isinstance(entry.record, dict):
            return None
        told = {name: value for name, value in entry.record.items() if name in _VERDICT}
        try:
            verdict = OrderVerdict.model_validate(told, strict=False)
        except ValidationError:
            return None
        return verdict if verdict.accepted and verdict.digest == digest else None
