"""What an exported file is beside its chain: one form for one record, nothing in it that no record names, and a beginning.

A chain that holds does not say that the file is the one that was written: a run's beginning may have been cut off at a
checkpoint, a document laid beside those that records name, a checkpoint moved behind another record. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import TypeAdapter, ValidationError

from kedge.model.base import Digest, Json, RunId
from kedge.model.evidence import Document, DocumentKind, ExportHeader, Finding
from kedge.model.signed_policy import SignedPolicy
from kedge.trust.chain import EvidenceEntry
from kedge.trust.evidence_file import Parts
from kedge.trust.policies import PolicyRefusedError, read_policy

_RUN: TypeAdapter[str] = TypeAdapter(RunId)
_AUTO = "-auto"


def named_documents(entries: Iterable[EvidenceEntry]) -> dict[Digest, DocumentKind]:
    """The documents that records name by digest, and what they are."""
    found: dict[Digest, DocumentKind] = {}
    for entry in entries:
        record = entry.record
        if not isinstance(record, dict):
            continue
        _name(found, record.get("plan"), "plan")
        _name(found, record.get("warrant"), "warrant")
        case = record.get("case")
        for holder in (record, case if isinstance(case, dict) else {}):
            policies = holder.get("policies")
            for digest in policies if isinstance(policies, list) else ():
                _name(found, digest, "policy")
        _name(found, record.get("text"), "policy")
        attested = record.get("attestations")
        for digest in attested if isinstance(attested, list) else ():
            _name(found, digest, "attestation")
        custody = record.get("custody")
        for held in custody.values() if isinstance(custody, dict) else ():
            for digest in held if isinstance(held, list) else (held,):
                _name(found, digest, "metadata")
    return found


def _name(found: dict[Digest, DocumentKind], digest: Json, what: DocumentKind) -> None:
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        return
    if what == "policy":
        # Whoever sends an order that is refused may call any digest its plan: a policy stays one.
        found[digest] = what
    else:
        found.setdefault(digest, what)


def acts_as(run: str) -> frozenset[str]:
    """The runs under whose lease a run may act: its own, and of a way back that began by itself the upgrade's too."""
    kind, _, rest = run.partition("/")
    if kind == "rollback" and rest.endswith(_AUTO):
        return frozenset({run, f"upgrade/{rest.removesuffix(_AUTO)}"})
    return frozenset({run})


def is_automatic(run: str) -> bool:
    """Whether a run is a rollback that an upgrade begins, under its own lease."""
    return len(acts_as(run)) > 1


def begins(entries: Iterable[EvidenceEntry], run: str) -> bool:
    """Whether the order that a run acts on, and the lease it was spent under, stand among these records."""
    accepted: set[str] = set()
    names = acts_as(run)
    for entry in entries:
        record = entry.record
        if not isinstance(record, dict):
            continue
        if record.get("what") == "order" and record.get("accepted") is True:
            accepted.add(str(record.get("digest")))
        order, leased = str(record.get("order")), record.get("what") == "lease"
        if leased and order in accepted and record.get("run") in names:
            return True
    return False


def flaws(header: ExportHeader, parts: Parts) -> list[Finding]:
    """What does not belong into the file, or lacks there. Its chain holds; of what a store has at this moment
    (no ``run``, no lines) only the keys are looked at.
    """
    found = list(_twice(parts.entries, parts.lines))
    if header.run or parts.lines[:1] != [0]:
        found += _about(header, parts)
        found += _strange(parts)
        found += _misplaced(header, parts)
    return found


def _twice(entries: Sequence[EvidenceEntry], lines: Sequence[int]) -> Iterator[Finding]:
    """A key stands in a record once."""
    known: dict[str, int] = {}
    for entry, line in zip(entries, lines, strict=True):
        before = known.setdefault(entry.key, entry.seq)
        if before != entry.seq:
            said = f"record {before} stands under the same key: a key stands there once"
            yield Finding(kind="inserted", said=said, seq=entry.seq, line=line or None)


def _about(header: ExportHeader, parts: Parts) -> Iterator[Finding]:
    """The file is about a run of its fleet, and that run begins in it."""
    run = header.run
    try:
        _RUN.validate_python(run)
    except ValidationError:
        yield Finding(kind="unreadable", said="the file does not say which run it is of", line=1)
        return
    if run.split("/")[1] != header.fleet:
        said = f"{run} is no run of the fleet {header.fleet}"
        yield Finding(kind="unreadable", said=said, line=1)
    elif not any(is_about(entry.record, run) for entry in parts.entries):
        yield Finding(kind="unreadable", said=f"no record in here is about {run}", line=1)
    elif header.after.seq and not begins(parts.entries, run):
        said = f"{run} does not begin in here: what came before this record was left out"
        first = header.after.seq + 1
        yield Finding(kind="truncated", said=said, seq=first, line=next(iter(parts.lines), None))


def is_about(record: Json, run: str) -> bool:
    """Whether a record is of a run. A review is an order to the fleet; its subject is the run."""
    return isinstance(record, dict) and run in (
        record.get("run"), record.get("target"), record.get("subject")
    )  # fmt: skip


def _strange(parts: Parts) -> Iterator[Finding]:
    """Documents that no record names as what they are said to be. Policies of before the part, and their changes, may
    stand beside them: what later versions follow from.
    """
    named = named_documents(parts.entries)
    for digest, document in parts.documents.items():
        what = named.get(digest)
        if what == document.what or (what is None and _is_policy(document)):
            continue
        said = f"no record names {digest[:12]} as {document.what}"
        yield Finding(kind="document", said=said, line=parts.papers.get(digest))


def _is_policy(document: Document) -> bool:
    try:
        if document.what == "policy-change":
            SignedPolicy.model_validate_json(document.content)
        elif document.what == "policy":
            read_policy(document.content)
        else:
            return False
    except (ValidationError, PolicyRefusedError):
        return False
    return True


def _misplaced(header: ExportHeader, parts: Parts) -> Iterator[Finding]:
    """A checkpoint stands behind the record it is over, and those over one record in the order of their keys."""
    lines = {entry.seq: line for entry, line in zip(parts.entries, parts.lines, strict=True)}
    end = parts.checkpoints[-1][1] + 1 if parts.checkpoints else 0
    before: tuple[int, str, str] | None = None
    for checkpoint, line in parts.checkpoints:
        seq = checkpoint.seq
        here = (seq, checkpoint.key, checkpoint.hash)
        behind = 0 if seq == header.after.seq else lines.get(seq)
        if behind is None or not behind < line < lines.get(seq + 1, end):
            said = f"the checkpoint at {seq} does not stand behind that record"
        elif before is not None and here <= before:
            said = f"the checkpoint at {seq} stands there twice, or out of order"
        else:
            before = here
            continue
        yield Finding(kind="checkpoint", said=said, seq=seq, line=line)
