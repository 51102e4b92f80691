"""Orders: every word that moves a migration, as signed documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Name
from kedge.model.plan import Choice, Verb

NAMESPACE = "kedge-order"
"""The SSHSIG namespace; a signature made for anything else is refused."""

Instant = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC, whole seconds, RFC 3339")]


class Order(Frozen):
    """What is signed, as canonical JSON (RFC 8785).

    ``target`` is a run id, or ``fleet/<name>`` for start and rollback. ``plan`` is the plan's digest. ``subject`` is the
    gate (approve, reject) or the parked item (decide), else empty. ``shown`` is the digest of what the person was
    shown (:class:`kedge.model.run.Showing`); for a start it is the plan's digest again. ``nonce`` makes it spendable once.
    """

    kind: Literal["KedgeOrder"] = "KedgeOrder"
    format: Literal[1] = 1
    verb: Verb
    target: Annotated[str, Field(max_length=200)]
    plan: Digest
    subject: Annotated[str, Field(max_length=300)] = ""
    choice: Choice | None = None
    shown: Digest
    person: Name
    comment: Annotated[str, Field(max_length=2000)] = ""
    issued: Instant
    expires: Instant
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Envelope(Frozen):
    """An order as it travels: the exact bytes that were signed (UTF-8) and the armored SSHSIG over them."""

    order: Annotated[str, Field(max_length=16_384)]
    signature: Annotated[str, Field(max_length=16_384)]


Rule = Literal[
    "accepted",
    "unreadable",
    "not-canonical",
    "verb",
    "target",
    "plan",
    "subject",
    "choice",
    "shown",
    "unknown-person",
    "unknown-key",
    "signature",
    "namespace",
    "role",
    "requester",
    "duplicate-person",
    "duplicate-key",
    "not-yet-valid",
    "expired",
    "too-long-lived",
    "nonce-spent",
    "not-open",
    "lease",
    "policy",
]


class Expected(Frozen):
    """What an order must say to be about this run, now. ``shown`` None: the verb shows nothing that changes."""

    verbs: tuple[Verb, ...]
    target: str
    plan: Digest
    subjects: dict[str, Digest] = {}
    """Open subjects (gates or parked items) and the digest of what each shows."""
    choices: dict[str, tuple[Choice, ...]] = {}
    """Per parked item the choices it offers."""
    requester: str | None = None
    spent: tuple[str, ...] = ()
    now: Instant


class OrderVerdict(Frozen):
    """The decision about one order, fit to be evidence: which rule decided, in words, and who."""

    accepted: bool
    rule: Rule
    said: str
    digest: Digest
    """sha256 of the envelope's canonical form."""
    verb: Verb | None = None
    target: str = ""
    subject: str = ""
    choice: Choice | None = None
    person: str = ""
    roles: tuple[str, ...] = ()
    key: str = ""
    """SHA256 fingerprint of the signing key, as ``ssh-keygen -l`` prints it."""
    nonce: str = ""
    comment: str = ""
    plan: str = ""


class Tally(Frozen):
    """How far a gate is: who signed with which key, how many are missing, whether it is met."""

    gate: Name
    threshold: int
    signed: tuple[OrderVerdict, ...] = ()
    missing: int
    missing_roles: tuple[Name, ...] = ()
    met: bool
