"""What is owed after somebody broke the glass."""

from __future__ import annotations

from kedge.model.base import Digest, Frozen, digest_of
from kedge.model.order import OrderVerdict
from kedge.model.plan import Choice, Verb


class GlassBroken(Frozen):
    """One order that broke the glass: ``digest`` is its identity, ``at`` when it was issued."""

    digest: Digest
    verb: Verb
    choice: Choice | None = None
    person: str
    key: str = ""
    material: str = ""
    """The signing key, as in the verdict: a person keeps it under any name."""
    reason: str
    ticket: str = ""
    at: str


class Review(Frozen):
    """What a run owes because the glass was broken for it. ``signed`` are the accepted reviews so far."""

    run: str
    plan: Digest
    since: str
    orders: tuple[GlassBroken, ...]
    signed: tuple[OrderVerdict, ...] = ()

    @property
    def shown(self) -> Digest:
        """The digest of what a reviewer is shown, and signs."""
        return digest_of(self.model_copy(update={"signed": ()}))

    @property
    def people(self) -> tuple[str, ...]:
        """Who broke the glass."""
        return tuple(dict.fromkeys(order.person for order in self.orders))

    @property
    def keys(self) -> tuple[str, ...]:
        """With which keys it was broken: their fingerprints, and the digests of their bare numbers."""
        found = (one for order in self.orders for one in (order.key, order.material))
        return tuple(dict.fromkeys(one for one in found if one))
