"""Orders: every word that moves a migration, as signed documents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Name
from kedge.model.plan import Choice, Risk, Verb

NAMESPACE = "kedge-order"
"""The SSHSIG namespace; a signature made for anything else is refused."""

# [0-9] and not \d: the engine behind pydantic takes \d for any digit of any script.
Instant = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        description="UTC, whole seconds, RFC 3339",
    ),
]

# People read orders in terminals and web pages before they trust them: one line, no escape sequences, no marks that turn
# the direction of writing around (Unicode TR 36), nothing that has no width, no tags.
_HIDDEN = (
    r"\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb" + "\U000e0000-\U000e0fff"
)
Line = Annotated[str, Field(pattern=rf"^[^\x00-\x1f{_HIDDEN}]*$")]


class EvidenceSeen(Frozen):
    """The end of a fleet's evidence as a person saw it: ``seq`` records, and the ``hash`` of the last of them.

    Of an empty record ``hash`` is :func:`kedge.trust.chain.genesis` of the fleet's name.
    """

    seq: Annotated[int, Field(ge=0, le=2**53 - 1)]
    hash: Digest


class Order(Frozen):
    """What is signed, as canonical JSON (RFC 8785).

    ``target`` is a run id, or ``fleet/<name>`` for start, rollback and review. ``plan`` is the plan's digest. ``subject``
    is the gate (approve, reject), the parked item (decide) or the run that was broken into (review), else empty. ``shown`` is the digest of what the person was
    shown (:class:`kedge.model.status.Showing`); where a verb has no subject it is the plan's digest again, unless the
    run says otherwise. ``evidence`` is the end of the fleet's evidence that the person saw: who signs it bears witness
    that everything up to there had happened so. ``nonce`` makes it spendable once.
    """

    kind: Literal["KedgeOrder"] = "KedgeOrder"
    format: Literal[1] = 1
    verb: Verb
    target: Annotated[Line, Field(max_length=200)]
    plan: Digest
    subject: Annotated[Line, Field(max_length=300)] = ""
    choice: Choice | None = None
    shown: Digest
    evidence: EvidenceSeen | None = None
    person: Name | Literal[""] = ""
    """Who signs. Empty: the owner of the signing key; a name that is given must be that owner's."""
    comment: Annotated[Line, Field(max_length=2000)] = ""
    ticket: Annotated[Line, Field(max_length=100)] = ""
    """The change ticket it is said under, where the policy asks for one."""
    break_glass: bool = False
    """Said alone in an emergency, beyond one's roles: the policy says who may, and that it is reviewed afterwards."""
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
    "unknown-person",
    "revoked",
    "unknown-key",
    "duplicate-key",
    "namespace",
    "algorithm",
    "signature",
    "touch",
    "pin",
    "hardware",
    "verb",
    "target",
    "plan",
    "not-open",
    "subject",
    "choice",
    "shown",
    "not-yet-valid",
    "expired",
    "too-long-lived",
    "nonce-spent",
    "break-glass",
    "role",
    "ticket",
    "requester",
    "author",
    "duplicate-person",
    "lease",
    "policy",
    "release",
    "evidence",
]
"""In the order in which :func:`kedge.trust.orders.judge` looks; those from ``lease`` on are for its callers."""


class Expected(Frozen):
    """What an order must say to be about this run, now.

    ``requester`` None: nobody asked for this run (it began by itself). ``spent`` are nonces seen before.
    """

    verbs: tuple[Verb, ...]
    target: str
    plan: Digest
    subjects: dict[str, Digest] = {}
    """Open subjects (gates or parked items) and the digest of what each shows. Under ``""`` stands what is shown
    for verbs without a subject; when it is not there, they must name the plan's digest."""
    reviews: dict[str, tuple[str, ...]] = {}
    """Of a fleet: the runs into which the glass was broken and that nobody reviewed yet, and by whom it was."""
    broken_with: dict[str, tuple[str, ...]] = {}
    """Of the same runs the keys with which it was: fingerprints, and digests of their material."""
    choices: dict[str, tuple[Choice, ...]] = {}
    """Per parked item the choices it offers. What is not in here is a gate."""
    requester: str | None = None
    authors: tuple[str, ...] = ()
    """Who made the release that the plan brings: names of people, or fingerprints of keys."""
    risk: Risk | None = None
    """The class of the plan; None: not known, and then what any class asks for is asked for."""
    spent: tuple[str, ...] = ()
    now: Instant


class OrderVerdict(Frozen):
    """The decision about one order, fit to be evidence: which rule decided, in words, and who.

    Of a refused order the fields say what it claims, as far as it was readable; of an accepted one they are so.
    """

    accepted: bool
    rule: Rule
    said: str
    digest: Digest
    """The identity of the order: sha256 of the bytes that are signed, whatever the signature looks like."""
    verb: Verb | None = None
    target: str = ""
    subject: str = ""
    choice: Choice | None = None
    person: str = ""
    roles: tuple[str, ...] = ()
    key: str = ""
    """SHA256 fingerprint of the signing key, as ``ssh-keygen -l`` prints it."""
    material: str = ""
    """sha256 over the bare numbers of that key: equal for one key under two names, kinds or comments."""
    touched: bool = False
    pin_given: bool = False
    """What a hardware key said about its person; false for other keys."""
    nonce: str = ""
    comment: str = ""
    ticket: str = ""
    break_glass: bool = False
    pin: int = 0
    """The number of the policy that was pinned where it was judged."""
    closes: bool = False
    """Of a review: with it the policy has the signatures it asks for."""
    plan: str = ""
    shown: str = ""
    issued: str = ""


class Tally(Frozen):
    """How far a gate is: who signed with which key, how many are missing, whether it is met."""

    gate: Name
    threshold: int
    signed: tuple[OrderVerdict, ...] = ()
    missing: int
    missing_roles: tuple[Name, ...] = ()
    met: bool
