"""Evidence for a face: read from the store, exported to a file, verified from a file or as it stands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from kedge.drivers.ports import Blobs, Evidence, PolicyPins
from kedge.model.base import Digest, Frozen, digest_of
from kedge.model.errors import DocumentError, DriverError, OrderError
from kedge.model.evidence import (
    Checkpoint,
    Document,
    DocumentKind,
    EvidenceReport,
    ExportHeader,
    Happening,
)
from kedge.model.order import EvidenceSeen
from kedge.model.policy import Policy
from kedge.trust import evidence_file
from kedge.trust.chain import EvidenceEntry, genesis
from kedge.trust.checkpoints import materials, verify_checkpoint
from kedge.trust.effects import MAX_JOURNAL
from kedge.trust.evidence import Asked, ends, policy_changes, verify_parts
from kedge.trust.evidence_file import Parts
from kedge.trust.policies import read_policy
from kedge.trust.story import happening
from kedge.trust.wholeness import acts_as, begins, is_about, named_documents

PAGE = 2000
MAX_POLICY = 4 * 1024 * 1024


class Exported(Frozen):
    """A file that was written: what is in it, and whether the run it is for ended."""

    file: Path
    bytes: int
    fleet: str
    run: str
    first: int
    last: int
    documents: int
    checkpoints: int
    ended: bool


class Held(Frozen):
    """What a file is held against, as people name it."""

    policies: tuple[Path, ...] = ()
    roots: tuple[Digest, ...] = ()
    journals: tuple[tuple[str, Path], ...] = ()
    heads: tuple[EvidenceSeen, ...] = ()


def fleet_of(name: str) -> str:
    """The fleet of a run's id, or of a fleet's name. Raises ``DriverError`` kind ``NotFound`` for anything else."""
    parts = name.split("/")
    if len(parts) == 1:
        return name
    if len(parts) == 2 and parts[0] == "fleet":
        return parts[1]
    if len(parts) == 3:
        return parts[1]
    raise DriverError("NotFound", f"{name!r} is neither a run nor a fleet", retryable=False)


async def everything(
    evidence: Evidence, fleet: str, until: int | None = None
) -> list[EvidenceEntry]:
    """All records of a fleet, in order; with ``until`` none behind the record of that number."""
    found: list[EvidenceEntry] = []
    # By the number of the last one: where somebody put a row far behind the end, there is nothing behind that.
    while page := await evidence.read(fleet, found[-1].seq if found else 0, PAGE):
        found += page
        if until is not None and found[-1].seq >= until:
            return [one for one in found if one.seq <= until]
    return found


async def every_checkpoint(evidence: Evidence, fleet: str) -> list[Checkpoint]:
    """All checkpoints of a fleet, in order."""
    found: list[Checkpoint] = []
    while page := await evidence.checkpoints(fleet, found[-1].seq if found else 0, PAGE):
        found += page
    return found


def span(entries: list[EvidenceEntry], run: str) -> tuple[int, int, bool]:
    """First and last record of a run (from 1), the order it acts on and reviews of it included, and whether it ended.

    Of a way back that began by itself the upgrade is part, whose order it acts on.

    Raises ``DriverError`` kind ``NotFound`` when no record is about it.
    """
    orders: dict[str, int] = {}
    leased = acts_as(run)
    first = last = 0
    ended = False
    for entry in entries:
        record = entry.record
        if not isinstance(record, dict):
            continue
        if record.get("what") == "order" and record.get("accepted") is True:
            orders.setdefault(str(record.get("digest")), entry.seq)
        if record.get("what") == "lease" and record.get("run") in leased:
            first = min(first or entry.seq, orders.get(str(record.get("order")), entry.seq))
        if not is_about(record, run):
            continue
        first, last = first or entry.seq, entry.seq
        ended = ended or ends(record, run)
    if not last:
        raise DriverError(
            "NotFound",
            f"there is no evidence of {run} here",
            retryable=False,
            next_step="`kedge list` shows the runs; KEDGE_EVIDENCE_URL names another store",
        )
    return first, last, ended


async def export(
    evidence: Evidence, blobs: Blobs, run: str, output: Path, *, whole: bool = False
) -> Exported:
    """Writes what concerns a run, from the last checkpoint before it (or the fleet's first record) to the first behind it.

    ``whole``: from the fleet's first record on. The file is there whole or not at all. Raises ``DriverError``.
    """
    fleet = fleet_of(run)
    entries = await everything(evidence, fleet)
    checkpoints = await every_checkpoint(evidence, fleet)
    first, last, ended = span(entries, run)
    policies = await _documents(blobs, entries, only="policy")
    places = _sound(checkpoints, entries, policies)
    # Without the order it acts on nobody could tell that the beginning of a run was not left out.
    whole = whole or not begins(entries[first - 1 :], run)
    begin = 0 if whole else max((seq for seq in places if seq < first), default=0)
    end = min((seq for seq in places if seq >= last), default=len(entries))
    if not ended:
        # Everything there is: the run goes on, and so does its record.
        end = max((seq for seq in places if seq >= last), default=len(entries))
    part = entries[begin:end]
    documents = await _documents(blobs, part)
    # However long ago a policy was changed: what its versions follow from is in every file.
    changes = policy_changes(entries[:end], {one.digest: one.content for one in policies})
    known = {one.digest: one for one in (*policies, *changes, *documents)}
    documents = list(known.values())
    kept = [one for one in checkpoints if begin <= one.seq <= end and one.seq > 0]
    header = ExportHeader(
        fleet=fleet,
        run=run,
        after=EvidenceSeen(seq=begin, hash=entries[begin - 1].hash if begin else genesis(fleet)),
        end=EvidenceSeen(seq=end, hash=entries[end - 1].hash),
        documents=len(documents),
        checkpoints=len(kept),
    )
    size = await asyncio.to_thread(
        _write, output, evidence_file.write(header, documents, part, kept)
    )
    return Exported(
        file=output, bytes=size, fleet=fleet, run=run, first=begin + 1, last=end,
        documents=len(documents), checkpoints=len(kept), ended=ended,
    )  # fmt: skip


def _sound(
    checkpoints: list[Checkpoint], entries: list[EvidenceEntry], documents: list[Document]
) -> set[int]:
    """Places with a checkpoint that fits the record and is by a key that one of the policies names."""
    lines: list[str] = []
    for document in documents:
        try:
            policy = Policy.model_validate_json(document.content)
        except ValidationError:
            continue
        lines += policy.evidence.signers if policy.evidence is not None else ()
    witnesses = materials(lines)
    found: set[int] = set()
    for one in checkpoints:
        if one.seq <= len(entries) and entries[one.seq - 1].hash == one.hash:
            with contextlib.suppress(OrderError, ValueError):
                if verify_checkpoint(one).material in witnesses:
                    found.add(one.seq)
    return found


async def _documents(
    blobs: Blobs, entries: list[EvidenceEntry], *, only: str | None = None
) -> list[Document]:
    """The documents that records name, those of them that are in the store. What is missing shows when it is verified."""
    found: list[Document] = []
    for digest, what in named_documents(entries).items():
        if only is not None and what != only:
            continue
        try:
            content = (await blobs.get(digest)).decode()
        except (DriverError, UnicodeDecodeError):
            continue
        kind: DocumentKind = what
        found.append(Document(digest=digest, what=kind, content=content))
    return found


def _write(output: Path, lines: Iterator[bytes]) -> int:
    size = 0
    try:
        descriptor, name = tempfile.mkstemp(prefix=".evidence-", dir=output.parent)
    except OSError as error:
        error.filename = str(output)  # the file that was named, not the one that becomes it
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                size += file.write(line)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return size


def read_file(path: Path) -> Parts:
    """What stands in an exported file, read line by line with bounds. Raises ``OSError``."""
    with path.open("rb") as file:
        return evidence_file.read(evidence_file.lines_of(file))


async def pinned_here(pins: PolicyPins, fleet: str) -> tuple[Policy, ...]:
    """The policies that this home trusts without a signature: the one it pinned first, and those its owner put there."""
    try:
        kept = await pins.kept(fleet)
    except DriverError as error:
        if error.kind == "NotFound":
            return ()
        raise
    return tuple(read_policy(one.document.policy) for one in kept if one.by != "signed")


def asked_of(held: Held, pinned: tuple[Policy, ...]) -> Asked:
    """The policies, journals and heads by which a record is verified."""
    policies = tuple(_policy(path) for path in held.policies)
    if not policies and not held.roots:
        policies = pinned
    if not policies and not held.roots:
        raise DriverError(
            "NotFound",
            "no policy is pinned here for this fleet, and none was named: there is nothing to judge by",
            retryable=False,
            next_step="name the policy you trust with --policy FILE, or its digest with --root DIGEST",
        )
    return Asked(
        pinned={digest_of(policy): policy for policy in policies},
        roots=frozenset(held.roots),
        known={head.seq: head.hash for head in held.heads},
        journals={name: _bounded(path, MAX_JOURNAL) for name, path in held.journals},
    )


def _policy(path: Path) -> Policy:
    """A policy: the document as people write it, or its canonical form as it is pinned."""
    from desk import documents  # noqa: PLC0415 - the compiler's own modules, for who needs them

    content = _bounded(path, MAX_POLICY)
    if content.lstrip().startswith(b"{"):
        try:
            return Policy.model_validate_json(content)
        except ValidationError as error:
            raise DocumentError((f"{path}:1:1: {error.errors()[0]['msg']}",)) from error
    return documents.read_policy(path).value


def _bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DocumentError((f"{path}:1:1: is larger than {limit} bytes",))
    return content


async def check(
    evidence: Evidence, blobs: Blobs, fleet: str, pinned: tuple[Policy, ...]
) -> EvidenceReport:
    """What comes of verifying the record of a fleet as it stands in the store. Raises ``DriverError``."""
    # First what is signed and then the records: it goes on being written, and no checkpoint is over what is not there.
    checkpoints = await every_checkpoint(evidence, fleet)
    head = await evidence.head(fleet)
    if head.seq == 0:
        raise DriverError(
            "NotFound", f"there is no evidence of the fleet {fleet} here", retryable=False
        )
    entries = await everything(evidence, fleet, head.seq)
    documents = await _documents(blobs, entries)
    texts = {one.digest: one.content for one in documents if one.what == "policy"}
    documents += policy_changes(entries, texts)
    parts = Parts(
        header=ExportHeader.model_construct(
            fleet=fleet,
            run="",
            after=EvidenceSeen(seq=0, hash=genesis(fleet)),
            # Unchecked: what somebody wrote into the store is for the verification to find.
            end=EvidenceSeen.model_construct(seq=head.seq, hash=head.hash),
            documents=len(documents),
            checkpoints=len(checkpoints),
        ),
        documents={one.digest: one for one in documents},
        entries=entries,
        lines=[0] * len(entries),
        checkpoints=[(one, 0) for one in checkpoints],
        sealed=True,
    )
    held = asked_of(Held(), pinned)
    return verify_parts(parts, Asked(pinned=held.pinned, live=True))


async def told(evidence: Evidence, name: str) -> tuple[Happening, ...]:
    """What happened in a run, or in a whole fleet, in words. Nothing of it is verified."""
    entries = await everything(evidence, fleet_of(name))
    if "/" in name and not name.startswith("fleet/"):
        first, last, _ = span(entries, name)
        entries = entries[first - 1 : last]
    return tuple(happening(entry.seq, entry.key, entry.record) for entry in entries)
