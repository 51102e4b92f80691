"""Digests of documents and plans: over the canonical form of what they mean, never over their bytes."""

from __future__ import annotations

from typing import Any

from kedge.model.base import Digest, digest_of
from kedge.model.fleet import Fleet
from kedge.model.plan import DocumentRef, Plan
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.runbook import Runbook

# Where a document lies and where bytes are fetched from say nothing about what happens: the release a fleet
# runs is in the plan by its own digest, and bytes are held to digest and length whatever their source.
_PLACES: dict[str, set[str]] = {"Fleet": {"release"}}


def document_digest(document: Fleet | Release | Runbook | Policy) -> Digest:
    """sha256 (hex) over a document's canonical form."""
    value: dict[str, Any] = document.model_dump(mode="json", by_alias=True)
    for key in _PLACES.get(document.kind, ()):
        value.pop(key, None)
    if isinstance(document, Release):
        for artifact in value["artifacts"].values():
            artifact.pop("source", None)
            artifact.pop("mirrors", None)
    return digest_of(value)


def reference(document: Fleet | Runbook | Policy) -> DocumentRef:
    """A document as a plan names it."""
    return DocumentRef(name=document.name, digest=document_digest(document))


def plan_digest(plan: Plan) -> Digest:
    """sha256 (hex) over the plan's canonical form: the bytes it is stored under."""
    return digest_of(plan)
