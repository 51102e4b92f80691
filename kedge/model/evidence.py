"""What the record of a fleet consists of, beside the links of its chain: checkpoints, and what is read from a file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Name
from kedge.model.order import EvidenceSeen, Instant

CHECKPOINT_NAMESPACE = "kedge-checkpoint"
"""The SSHSIG namespace of checkpoints: no signature over an order is one over a checkpoint, nor the other way round."""

Seq = Annotated[int, Field(ge=0, le=2**53 - 1)]


class CheckpointStatement(Frozen):
    """What a worker signs, as canonical JSON: at this time the record of this fleet ended so."""

    kind: Literal["KedgeCheckpoint"] = "KedgeCheckpoint"
    format: Literal[1] = 1
    fleet: Name
    seq: Seq
    hash: Digest
    at: Instant


class Checkpoint(Frozen):
    """A signed statement about the end of a record. ``key`` is the public key line, ``signature`` an armored SSHSIG."""

    fleet: Name
    seq: Seq
    hash: Digest
    at: Instant
    key: Annotated[str, Field(max_length=4096)]
    signature: Annotated[str, Field(max_length=16_384)]

    @property
    def statement(self) -> CheckpointStatement:
        """What the signature is over."""
        return CheckpointStatement(fleet=self.fleet, seq=self.seq, hash=self.hash, at=self.at)


DocumentKind = Literal[
    "plan", "policy", "policy-change", "release", "warrant", "attestation", "metadata", "other"
]


class Document(Frozen):
    """A document that records name by digest, as it stands in an exported file: ``content`` are its bytes as text."""

    digest: Digest
    what: DocumentKind
    content: str


class ExportHeader(Frozen):
    """The first line of an exported file. ``after`` is where the part of the chain in it begins, ``end`` where it ends.

    ``run`` is what it was exported for. Nothing of it is believed: all of it is compared with what follows.
    """

    kind: Literal["KedgeEvidence"] = "KedgeEvidence"
    format: Literal[1] = 1
    fleet: Name
    run: Annotated[str, Field(max_length=200)]
    after: EvidenceSeen
    end: EvidenceSeen
    documents: Annotated[int, Field(ge=0, le=100_000)]
    checkpoints: Annotated[int, Field(ge=0, le=10_000_000)]


class ExportSeal(Frozen):
    """The last line: how many lines stand before it, and the sha256 of their bytes (newlines included)."""

    lines: Annotated[int, Field(ge=1)]
    digest: Digest


FindingKind = Literal[
    # the file
    "unreadable", "document",
    # the chain
    "edited", "inserted", "reordered", "deleted", "truncated", "rewritten", "forked", "checkpoint", "unsigned",
    # what it says
    "policy", "order", "gate", "lease", "warrant", "admission", "effect", "release", "journal",
]  # fmt: skip


class Finding(Frozen):
    """Something that does not hold. ``seq`` is the record it is about (counted from 1 over the fleet's whole chain),
    ``line`` the line of the file, where there is one.
    """

    kind: FindingKind
    said: str
    seq: int | None = None
    line: int | None = None


class Happening(Frozen):
    """One record in words. ``who`` is a person or node, ``signed`` the fingerprint of the key that signed it."""

    seq: int
    at: str
    what: str
    said: str
    run: str = ""
    who: str = ""
    signed: str = ""
    details: tuple[str, ...] = ()


class EvidenceReport(Frozen):
    """What came of verifying a record.

    ``ok``: nothing was found against it. ``ended``: the run it is about ends in it. ``signed`` is how far checkpoints of
    keys that the policy names reach (0: nowhere), by the keys in ``witnesses``. ``unproven`` says in sentences what is not
    proven by it.
    """

    ok: bool
    ended: bool
    fleet: str
    run: str
    first: int
    last: int
    head: str
    records: int
    checkpoints: int
    signed: int
    witnesses: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    orders: int = 0
    refused: int = 0
    steps: int = 0
    nodes: int = 0
    findings: tuple[Finding, ...] = ()
    unproven: tuple[str, ...] = ()
    story: tuple[Happening, ...] = ()
