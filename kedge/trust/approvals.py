"""How far a gate is: which of the signatures count, who is missing."""

from __future__ import annotations

from collections.abc import Iterable

from kedge.model.order import OrderVerdict, Tally
from kedge.model.plan import Gate


def tally(gate: Gate, verdicts: Iterable[OrderVerdict]) -> Tally:
    """Count the approvals of a gate.

    A verdict counts when it is an accepted ``approve`` for this gate, by a person with one of the gate's roles,
    and neither the person nor the key's material was counted before. The gate is met when ``threshold`` people
    count and every role of ``each_of`` is among theirs (one person may bring several roles, but counts once).
    ``missing`` is the least number of people who must still sign.
    """
    counted: list[OrderVerdict] = []
    people: set[str] = set()
    keys: set[str] = set()
    for verdict in verdicts:
        key = verdict.material or verdict.key
        fits = verdict.accepted and verdict.verb == "approve" and verdict.subject == gate.name
        # A verdict without person or key is not one of judge(): it proves nothing.
        if not fits or not verdict.person or not key or not set(verdict.roles) & set(gate.roles):
            continue
        if verdict.person in people or key in keys:
            continue
        counted.append(verdict)
        people.add(verdict.person)
        keys.add(key)
    roles = {role for verdict in counted for role in verdict.roles}
    missing_roles = tuple(role for role in gate.each_of if role not in roles)
    missing = max(gate.threshold - len(counted), 1 if missing_roles else 0, 0)
    return Tally(
        gate=gate.name,
        threshold=gate.threshold,
        signed=tuple(counted),
        missing=missing,
        missing_roles=missing_roles,
        met=missing == 0,
    )
