"""Which errors of a leg are tried again, and how: one table for the workflow that tries and for the record that counts."""

from __future__ import annotations

LOST = frozenset({"TransportLost"})
"""The connection broke while a session ran: the journal on the host knows what was done, and the same attempt goes on."""

RESTARTING = frozenset({"ServiceDied"})
"""Errors after which a leg is done again from its start: looking once more at a daemon that died helps nobody."""

FINAL = frozenset(
    {
        "NotAuthorised", "DigestMismatch", "ArchiveRefused", "BadRequest", "Unresolved", "NoRelease",
        "NoProgram", "EditedByHand", "StepTimeout",
    }
)  # fmt: skip
"""Errors that no repetition mends."""

OVERTAKEN = "Overtaken"
"""A higher fence of the same run has the host: somebody else was let through for this leg, and it comes to its end."""
OVERTAKEN_TRIES = 20
"""How often such a leg is asked for again before people are."""
