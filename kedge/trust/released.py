"""What the record says of the release of a run, held against the policy's rules and the plan once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedge.model.base import Digest
from kedge.model.evidence import Document
from kedge.model.plan import Plan
from kedge.model.policy import ReleaseRules
from kedge.model.trusted import Attestation
from kedge.trust.effects import KnownPlan
from kedge.trust.provenance import judge_artifacts
from kedge.trust.refusal import RefusalError


@dataclass(frozen=True)
class Retried:
    """What came of it. ``why`` says what is wrong, None: nothing. ``rests`` are attestations in sigstore's form that the
    release rests on and that were not judged again: that takes a trusted root, which is not in the file.
    """

    why: str | None = None
    rests: tuple[Digest, ...] = ()


def retry(
    rules: ReleaseRules,
    seen: Sequence[Mapping[str, Any]],
    plan: KnownPlan | None,
    documents: Mapping[Digest, Document],
) -> Retried:
    """Whether one of the records ``seen`` says that the release of the plan is one by these rules.

    Pure and total. Without the plan, which is a fault of its own, it is asked for the root alone.
    """
    why = "before its release was verified"
    rests: tuple[Digest, ...] | None = None
    for record in seen:
        if record.get("root") != rules.root:
            continue
        if plan is None:
            return Retried()
        if record.get("document") != plan.plan.after.document:
            why = "on another release than the one that was verified"
            continue
        if record.get("custody") is not None and not _same(record, plan.plan):
            why = "on other archives than those of the release that was verified"
            continue
        found = _built(rules, record, plan.plan, documents)
        if found.why is None and not found.rests:
            return found
        if found.why is None:
            rests = rests or found.rests
        else:
            why = found.why
    return Retried(why) if rests is None else Retried(rests=rests)


def _same(record: Mapping[str, Any], plan: Plan) -> bool:
    """Whether the archives of the record, which its metadata list, are those of the plan."""
    artifacts = record.get("artifacts")
    said = [
        (one.get("platform"), one.get("digest"), one.get("length"))
        for one in (artifacts if isinstance(artifacts, list) else ())
        if isinstance(one, dict)
    ]
    wanted = [(one.platform, one.digest, one.length) for one in plan.after.artifacts]
    return sorted(map(str, said)) == sorted(map(str, wanted))


def _built(
    rules: ReleaseRules,
    record: Mapping[str, Any],
    plan: Plan,
    documents: Mapping[Digest, Document],
) -> Retried:
    """Judges again how the archives were built, from the attestations in the file.

    What is in sigstore's form counts for nothing here. Only where the others do not suffice, and the rules let such ones
    count, does the worker's own verdict stand.
    """
    if rules.provenance is None:
        return Retried()
    names = record.get("attestations")
    digests = [str(one) for one in names] if isinstance(names, list) else []
    found = [documents[one] for one in digests if one in documents]
    given = [Attestation(name=one.digest, digest=one.digest, content=one.content) for one in found]
    platforms = {node.platform for node in plan.nodes}
    wanted = {one.platform: one.digest for one in plan.after.artifacts if one.platform in platforms}
    try:
        verdicts = judge_artifacts(wanted, given, rules.provenance, str(record.get("at")))
    except RefusalError:
        return Retried("on a release of which nobody says when it was verified")
    if platforms - set(verdicts):
        return Retried("on a release without an archive for all of its nodes")
    bad = next((one for _, one in sorted(verdicts.items()) if not one.ok), None)
    if bad is None:
        return Retried()
    bundles = tuple(one.digest for one in found if '"mediaType"' in one.content)
    if bundles and any(one.identity is not None for one in rules.provenance.builders):
        return Retried(rests=bundles)
    return Retried(f"on a release that is not proven: {bad.said}")
