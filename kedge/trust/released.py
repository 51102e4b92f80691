"""What the record says of the release of a run, held against the policy's rules and the plan once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kedge.model.base import Digest
from kedge.model.evidence import Document
from kedge.model.plan import Plan
from kedge.model.policy import ReleaseRules
from kedge.model.trusted import Attestation
from kedge.trust.effects import KnownPlan
from kedge.trust.provenance import judge_artifacts
from kedge.trust.refusal import RefusalError


def unproven(
    rules: ReleaseRules,
    seen: Sequence[Mapping[str, Any]],
    plan: KnownPlan | None,
    documents: Mapping[Digest, Document],
) -> str | None:
    """Why none of the records ``seen`` says that the release of the plan is one by these rules; None when one does.

    Pure and total. Without the plan, which is a fault of its own, it is asked for the root alone.
    """
    why = "before its release was verified"
    for record in seen:
        if record.get("root") != rules.root:
            continue
        if plan is None:
            return None
        if record.get("document") != plan.plan.after.document:
            why = "on another release than the one that was verified"
            continue
        wrong = _built(rules, record, plan.plan, documents)
        if wrong is None:
            return None
        why = wrong
    return why


def _built(
    rules: ReleaseRules,
    record: Mapping[str, Any],
    plan: Plan,
    documents: Mapping[Digest, Document],
) -> str | None:
    """Judges again how the archives were built, from the attestations in the file.

    What is in sigstore's form takes a trusted root that is not in the file: where there is such a one, the worker's own
    verdict stands.
    """
    if rules.provenance is None:
        return None
    names = record.get("attestations")
    digests = [str(one) for one in names] if isinstance(names, list) else []
    found = [documents[one] for one in digests if one in documents]
    if any('"mediaType"' in one.content for one in found):
        return None
    given = [Attestation(name=one.digest, digest=one.digest, content=one.content) for one in found]
    platforms = {node.platform for node in plan.nodes}
    wanted = {one.platform: one.digest for one in plan.after.artifacts if one.platform in platforms}
    try:
        verdicts = judge_artifacts(wanted, given, rules.provenance, str(record.get("at")))
    except RefusalError:
        return "on a release of which nobody says when it was verified"
    if platforms - set(verdicts):
        return "on a release without an archive for all of its nodes"
    bad = next((one for _, one in sorted(verdicts.items()) if not one.ok), None)
    return None if bad is None else f"on a release that is not proven: {bad.said}"
