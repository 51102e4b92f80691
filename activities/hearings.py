"""What an order was judged by, kept so that anyone can judge it again: it is evidence beside the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from kedge.model.base import Digest, Json
from kedge.model.errors import OrderError
from kedge.model.order import Envelope, Expected, OrderVerdict
from kedge.model.plan import Gate
from kedge.model.policy import Policy
from kedge.trust.envelope import read
from kedge.trust.orders import judge


@dataclass
class Hearing:
    """One order before the policies it is judged by. What counts in the end is the last judgement."""

    envelope: Envelope
    _case: dict[str, Json] = field(default_factory=dict)

    def judge(
        self,
        expected: Expected,
        policy: Policy,
        digest: Digest,
        *,
        signed: tuple[OrderVerdict, ...] = (),
        gate: Gate | None = None,
    ) -> OrderVerdict:
        """The verdict of :func:`kedge.trust.orders.judge`. ``digest`` is that of the policy as it is kept in the store."""
        verdict = judge(self.envelope, expected, policy, signed=signed, gate=gate)
        before = self._case.get("policies")
        policies = list(before) if isinstance(before, list) else []
        # Of the nonces spent before only this one is of interest: the record itself has all others.
        spent = tuple(one for one in expected.spent if one == verdict.nonce)
        told = expected.model_copy(update={"spent": spent}).model_dump(mode="json")
        self._case = {
            "envelope": self.envelope.model_dump(mode="json"),
            "expected": told,
            "gate": None if gate is None else gate.model_dump(mode="json"),
            "signed": [one.digest for one in signed if one.accepted],
            # Who refuses it decides alone; it is accepted by all.
            "policies": [
                *(policies if verdict.accepted else ()),
                *([] if verdict.accepted and digest in policies else [digest]),
            ],
        }
        return verdict

    def case(self) -> dict[str, Json]:
        """What stands in the record beside the verdict: empty when the order was not judged at all."""
        if not self._case:
            return {}
        found: dict[str, Json] = {"case": self._case}
        try:
            seen = read(self.envelope).evidence
        except OrderError:
            return found
        if seen is not None:
            found["evidence"] = seen.model_dump(mode="json")
        return found
