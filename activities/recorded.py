"""The record asked before anything is done: one conditional append per request, decided by ``kedge.trust.admission``.

The fold over the record is kept between requests, with the place up to which it goes; decisions are not. The fold is only
touched in the store's writing thread, inside the lock of the fleet, so that no two requests of this worker meet in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from kedge.drivers.ports import MAX_BEHIND, Evidence
from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.model.order import Envelope, Expected
from kedge.model.policy import Policy
from kedge.trust.chain import EvidenceEntry, EvidenceHead
from kedge.trust.envelope import order_digest
from kedge.trust.orders import judge, signer_of
from kedge.trust.run_history import FleetHistory

T = TypeVar("T")
Pairs = Sequence[tuple[str, Json]]
TRIES = 5
"""How often a question is put again after the record was found to be another than the one that was folded."""


class Recorded:
    """What one worker knows of the records of its fleets."""

    def __init__(self, evidence: Evidence, policy: Callable[[str], Policy | None]) -> None:
        """``policy`` is the one that is pinned for a fleet: by it signatures are verified again."""
        self._evidence = evidence
        self._policy = policy
        self._known: dict[str, FleetHistory] = {}
        self._reading = asyncio.Lock()

    async def ask(
        self, fleet: str, decide: Callable[[FleetHistory, EvidenceHead], tuple[T, Pairs]]
    ) -> T:
        """The answer of a pure decision about everything in the record; what it appends is there when this returns.

        Raises ``DriverError`` as :meth:`kedge.drivers.ports.Evidence.append_decided`.
        """
        for _ in range(TRIES):
            history = self._known.get(fleet) or await self._read(fleet)
            answer: list[T] = []

            def judged(
                entries: tuple[EvidenceEntry, ...],
                head: EvidenceHead,
                history: FleetHistory = history,
                answer: list[T] = answer,
            ) -> Pairs:
                answer.clear()
                if not history.take(entries) or history.head != head:
                    return ()
                found, pairs = decide(history, head)
                answer.append(found)
                return pairs

            try:
                await asyncio.shield(self._evidence.append_decided(fleet, history.cursor, judged))
            except BaseException as error:
                # What was read in a transaction that failed may never have been written.
                if self._known.get(fleet) is history:
                    del self._known[fleet]
                if isinstance(error, DriverError) and error.kind == "Behind":
                    continue
                raise
            if answer:
                return answer[0]
            if self._known.get(fleet) is history:
                del self._known[fleet]
        raise DriverError(
            "StoreError",
            f"the record of {fleet} became another while it was read",
            retryable=True,
            next_step="`kedge evidence check FLEET` says whether it holds",
        )

    async def _read(self, fleet: str) -> FleetHistory:
        """The record from its beginning, nearly to its end: the rest is read under the lock."""
        async with self._reading:
            known = self._known.get(fleet)
            if known is not None:
                return known
            history = FleetHistory(fleet, lambda record: self._believes(fleet, record))
            while entries := await self._evidence.read(fleet, history.head.seq):
                if not history.take(entries):
                    raise DriverError(
                        "StoreError",
                        f"the record of {fleet} does not hold behind {history.head.seq}",
                        retryable=False,
                        next_step="`kedge evidence check FLEET` says where it breaks",
                    )
                if len(entries) < MAX_BEHIND // 5:
                    break
            self._known[fleet] = history
            return history

    def _believes(self, fleet: str, record: Mapping[str, Any]) -> bool:
        """Whether the order of a record is signed as it says."""
        policy, case = self._policy(fleet), record.get("case")
        if policy is None or not isinstance(case, dict):
            return False
        try:
            envelope = Envelope.model_validate_json(canonical(case.get("envelope")))
            expected = Expected.model_validate_json(canonical(case.get("expected")))
        except (ValidationError, ValueError):
            return False
        if order_digest(envelope) != record.get("digest"):
            return False
        if record.get("verb") == "approve":
            return signer_of(envelope) == record.get("key")
        verdict = judge(envelope, expected, policy)
        told = verdict.model_dump(mode="json")
        same = all(
            told[name] == record.get(name) for name in ("verb", "target", "subject", "choice")
        )
        return verdict.accepted and same


def moment() -> dict[str, Json]:
    """When something was decided or seen, as records of activities have it: in seconds, and in milliseconds."""
    at = time.time()
    return {"at": f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))}", "ms": int(at * 1000)}
