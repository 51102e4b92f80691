"""Orders as people make them: drafted from what the run shows, signed, read back from files.

A draft holds both the order and what its signer is shown, and the order names exactly the digest of
that: nobody signs what they did not see.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kedge.model.base import Digest, Frozen
from kedge.model.errors import DriverError, OrderError
from kedge.model.order import Envelope, EvidenceSeen, Order
from kedge.model.plan import Choice, Verb
from kedge.model.policy import Policy, key_material
from kedge.model.review import Review
from kedge.model.status import FleetStatus, RunStatus, Showing, Waiting
from kedge.trust import envelope as envelopes

FLEET_VERBS: frozenset[Verb] = frozenset({"start", "rollback", "review"})
GATE_VERBS: frozenset[Verb] = frozenset({"approve", "reject"})
QUICK_LIFE = 15 * 60.0
"""How long an order is valid, in seconds, when it is signed and sent at once."""
CARRIED_LIFE = 3600.0
"""The same for one that is carried to its signer, where no policy says how long it may live."""


class Asked(Frozen):
    """What a person wants to say. ``subject`` may stay empty where only one thing can be meant."""

    verb: Verb
    target: str
    subject: str = ""
    choice: Choice | None = None
    person: str = ""
    comment: str = ""
    ticket: str = ""
    break_glass: bool = False
    life: float | None = None
    """Seconds the order is valid; None: as long as the policy lets it, at most an hour."""


class Draft(Frozen):
    """An order ready to be signed: its exact bytes as text, and what its signer has to be shown.

    ``showing`` is what the run shows at a gate or a parked item; ``about`` says for other verbs what the order
    is about, for people only.
    """

    order: Order
    text: str
    showing: Showing | None = None
    about: tuple[str, ...] = ()

    @property
    def bytes_to_sign(self) -> bytes:
        """What a signature is made over."""
        return self.text.encode()


class Signer(Frozen):
    """With what an order is signed. Exactly one of both is set.

    ``key`` is a private key file; ``agent`` names a key that an agent holds: its fingerprint, its public key
    line, or the path of its ``.pub`` file.
    """

    key: Path | None = None
    agent: str | None = None


class Sent(Frozen):
    """An order as it stands in a file, before anyone judged it."""

    order: Order
    envelope: Envelope


def draft(  # noqa: PLR0913 - an order's parts, each from somewhere else
    asked: Asked,
    *,
    plan: Digest,
    shown: Digest,
    subject: str,
    showing: Showing | None = None,
    about: tuple[str, ...] = (),
    life: float,
    evidence: EvidenceSeen | None = None,
) -> Draft:
    """The order for what was asked. Raises ``OrderError`` for a field no order may have."""
    now = datetime.now(UTC).replace(microsecond=0)
    order = envelopes.make(
        asked.verb,
        asked.target,
        plan=plan,
        person=asked.person,
        issued=_stamp(now),
        expires=_stamp(now + timedelta(seconds=int(life))),
        nonce=secrets.token_hex(16),
        subject=subject,
        choice=asked.choice,
        shown=shown,
        evidence=evidence,
        comment=asked.comment,
        ticket=asked.ticket,
        break_glass=asked.break_glass,
    )
    text = envelopes.bytes_to_sign(order).decode()
    return Draft(order=order, text=text, showing=showing, about=about)


def life_of(asked: Asked, policy: Policy | None, *, carried: bool) -> float:
    """How long the order will be valid: what was asked, else a safe length that the policy allows."""
    if asked.life is not None:
        return asked.life
    allowed = policy.lifetime(asked.verb) if policy is not None else CARRIED_LIFE
    return allowed if carried else min(allowed, QUICK_LIFE)


def about_run(asked: Asked, status: RunStatus) -> tuple[str, Digest, Showing | None]:
    """Subject, digest of what is shown, and what is shown, for an order to a run.

    Approve and reject are about the gate the run waits at, decide about the item it is parked
    on. Raises ``DriverError`` kind ``NotFound`` when it waits for something else, ``OrderError`` for a
    choice that is not offered.
    """
    if asked.verb in GATE_VERBS:
        waiting = _open(asked, status, "gate")
        return waiting.subject, waiting.shown, waiting.showing
    if asked.verb == "decide":
        waiting = _open(asked, status, "parked")
        _check_choice(asked, waiting.showing)
        return waiting.subject, waiting.shown, waiting.showing
    return "", status.plan, None


def _open(asked: Asked, status: RunStatus, kind: str) -> Waiting:
    waiting = status.waiting
    wanted = asked.subject or "anything"
    if waiting is not None and waiting.kind == kind and asked.subject in {"", waiting.subject}:
        return waiting
    what = "a gate" if kind == "gate" else "a decision"
    if waiting is None or waiting.kind == "bake":
        state = f"it is in phase {status.phase}"
    elif waiting.kind == "gate":
        state = f"it waits at gate {waiting.subject}"
    elif waiting.kind == "parked":
        state = f"it is parked on {waiting.subject}"
    else:
        state = "it is paused"
    named = f" named {wanted}" if asked.subject else ""
    raise DriverError(
        "NotFound",
        f"{status.run} does not wait for {what}{named} now: {state}",
        retryable=False,
        next_step=f"`kedge status {status.run}` says what it waits for",
    )


def _check_choice(asked: Asked, showing: Showing) -> None:
    offered = " | ".join(showing.choices)
    if asked.choice is None:
        raise OrderError(
            "a decision needs a choice", next_step=f"add --choice with one of: {offered}"
        )
    if asked.choice not in showing.choices:
        raise OrderError(
            f"{asked.choice} is not open for {showing.subject}",
            next_step=f"add --choice with one of: {offered}",
        )


def in_words(status: RunStatus) -> tuple[str, ...]:
    """A run in two lines, for who is about to order something about it."""
    moved = f"{status.before} → {status.after}, {status.nodes_done} of {status.nodes} nodes done"
    said = status.said or status.phase
    return (moved, said if said.startswith(status.phase) else f"{status.phase}: {said}")


def fleet_target(name: str) -> str:
    """The target of a start or rollback: a fleet by its name, or by the id of one of its runs."""
    parts = name.split("/")
    if len(parts) == 3 and parts[0] in {"upgrade", "rollback"}:
        return f"fleet/{parts[1]}"
    return f"fleet/{name.removeprefix('fleet/')}"


def plan_to_undo(fleet: FleetStatus) -> Digest:
    """The plan that a rollback names: that of the run that has the lease, else of the last one.

    Raises ``DriverError`` kind ``NotFound`` when the fleet never had a run.
    """
    if fleet.plan is None:
        raise DriverError(
            "NotFound",
            f"fleet {fleet.fleet} has had no run yet, so there is nothing to take back",
            retryable=False,
            next_step="`kedge list` shows the runs there are",
        )
    return fleet.plan


def about_review(fleet: FleetStatus, run: str) -> Review:
    """The open review of a run; with an empty name the one that is open.

    Raises ``DriverError`` kind ``NotFound`` when there is none of that name, or not just one.
    """
    found = [review for review in fleet.reviews if run in {"", review.run}]
    if len(found) == 1:
        return found[0]
    owed = ", ".join(review.run for review in fleet.reviews)
    raise DriverError(
        "NotFound",
        f"fleet {fleet.fleet} owes no review{f' for {run}' if run else ''}"
        if not found
        else f"fleet {fleet.fleet} owes more than one review",
        retryable=False,
        next_step=f"`kedge review RUN` with one of: {owed}"
        if owed
        else f"`kedge status {fleet.fleet}` shows what a fleet owes",
    )


def review_words(review: Review) -> tuple[str, ...]:
    """What a reviewer is shown: who broke the glass, for what, why."""
    return tuple(
        f"{order.person} broke the glass to {order.verb}{f' ({order.choice})' if order.choice else ''} at {order.at}"
        f"{f', ticket {order.ticket}' if order.ticket else ''}: {order.reason}"
        for order in review.orders
    )


def owner_of(policy: Policy | None, public_key: str | None) -> str:
    """The person to whom the policy gives this public key line; empty when nobody or nothing is known."""
    if policy is None or public_key is None:
        return ""
    try:
        wanted = key_material(public_key.strip())
    except ValueError:
        return ""
    for person in policy.people:
        if any(key_material(line) == wanted for line in person.keys):
            return person.name
    return ""


def read_sent(order_file: Path, signature_file: Path | None) -> Sent:
    """An order and its signature from files. Without a signature file the envelope's is empty.

    Raises ``OrderError`` when either is not what it should be, ``OSError`` when it cannot be read.
    """
    content = _bounded(order_file)
    signature = "" if signature_file is None else _text(signature_file)
    envelope = envelopes.seal(content, signature)
    return Sent(order=envelopes.read(envelope), envelope=envelope)


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(envelopes.MAX_BYTES + 1)
    if len(content) > envelopes.MAX_BYTES:
        raise OrderError(
            f"{path} is larger than any order or signature ({envelopes.MAX_BYTES} bytes)",
            next_step="name the file that `kedge order request` wrote, and the .sig beside it",
        )
    return content


def _text(path: Path) -> str:
    try:
        return _bounded(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise OrderError(
            f"{path} is not an armored SSH signature",
            next_step="make it with `ssh-keygen -Y sign -n kedge-order -f KEY ORDER_FILE`",
        ) from error


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
