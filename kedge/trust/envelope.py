"""Orders as bytes: what is signed, and how it is read back. Nothing here knows keys or policies.

Only pydantic and rfc8785 are needed, so that faces and workflows may import it cheaply.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from pydantic import ValidationError

from kedge.model.base import Digest, Json, canonical
from kedge.model.order import Envelope, EvidenceSeen, Instant, Order
from kedge.model.plan import Choice, Verb
from kedge.trust.refusal import RefusalError, quoted

MAX_BYTES = 16_384


def make(  # noqa: PLR0913 - these are the fields of an order, and nothing else
    verb: Verb,
    target: str,
    *,
    plan: Digest,
    person: str,
    issued: Instant,
    expires: Instant,
    nonce: str,
    subject: str = "",
    choice: Choice | None = None,
    shown: Digest | None = None,
    evidence: EvidenceSeen | None = None,
    comment: str = "",
    ticket: str = "",
    break_glass: bool = False,
) -> Order:
    """An order; ``shown`` defaults to the plan's digest. Time and nonce (32 hex digits) are arguments.

    Raises ``RefusalError`` (``unreadable``) with a sentence for each field that no order may have.
    """
    try:
        order = Order(
            verb=verb,
            target=target,
            plan=plan,
            subject=subject,
            choice=choice,
            shown=plan if shown is None else shown,
            evidence=evidence,
            person=person,
            comment=comment,
            ticket=ticket,
            break_glass=break_glass,
            issued=issued,
            expires=expires,
            nonce=nonce,
        )
    except ValidationError as error:
        raise RefusalError("unreadable", f"no such order can be: {_problems(error)}") from error
    moment(order.issued)
    moment(order.expires)
    return order


def bytes_to_sign(order: Order) -> bytes:
    """The canonical JSON (RFC 8785) of the order, without a newline at the end."""
    return canonical(order)


def seal(order_bytes: bytes, signature: str) -> Envelope:
    """An envelope of exactly these bytes and this armored signature; raises ``RefusalError`` (``unreadable``)."""
    try:
        return Envelope(order=order_bytes.decode(), signature=signature)
    except (UnicodeDecodeError, ValidationError) as error:
        raise RefusalError(
            "unreadable", "the order or the signature is not text of at most 16384 characters"
        ) from error


def open_envelope(sent: Json) -> Envelope:
    """The envelope in a JSON value as a signal or update brought it; raises ``RefusalError`` (``unreadable``)."""
    try:
        return Envelope.model_validate(sent)
    except ValidationError as error:
        raise RefusalError(
            "unreadable",
            f"this is not an envelope: {_problems(error)}",
            next_step='send {"order": "...", "signature": "..."} with the exact bytes of both files',
        ) from error


def order_digest(envelope: Envelope) -> Digest:
    """The identity of an order: sha256 of the bytes that are signed. It never fails, whatever the text.

    The signature has no part in it. One signature has many forms (lines of another width, the other ``s`` of an ECDSA
    signature, RSA with or without leading zeros, another count of a hardware key), and a key may sign twice: all of
    these are the same order, which is spent once.
    """
    # Lone surrogates are no text, yet the refusal needs a name to be filed under.
    return hashlib.sha256(envelope.order.encode("utf-8", "surrogatepass")).hexdigest()


def order_key(digest: Digest, rule: str, signer: str) -> str:
    """The key under which the verdict about an order stands in the record; ``signer`` is its key's fingerprint.

    An order is accepted once, whoever signed it. Refusals of the same bytes differ by rule and by signing key, so that
    a bad signature under an order hides no other refusal of it.
    """
    if rule == "accepted":
        return f"order/{digest}/accepted"
    signed_by = hashlib.sha256(signer.encode("utf-8", "surrogatepass")).hexdigest()
    return f"order/{digest}/{rule}/{signed_by[:16]}"


def moment(instant: Instant) -> datetime:
    """The point in time; raises ``RefusalError`` (``unreadable``) for a day or hour that no calendar has."""
    try:
        return datetime.strptime(instant, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise RefusalError(
            "unreadable", f"{quoted(instant)} is not a time, such as 2025-01-31T12:00:00Z"
        ) from error


def read(envelope: Envelope) -> Order:
    """The order in an envelope. It is read, not believed: nothing is said about its signature.

    Rules: at most :data:`MAX_BYTES` bytes of UTF-8; JSON; the fields of an order and no others; times that
    exist; and the bytes are exactly the RFC 8785 form of what was read, so that one meaning has one form (no
    duplicate keys, no spaces, no second spelling of a number or character).
    Raises ``RefusalError``: ``unreadable`` or ``not-canonical``.
    """
    try:
        given = envelope.order.encode()
    except UnicodeEncodeError as error:
        raise RefusalError("unreadable", "the order is not text that UTF-8 can carry") from error
    if len(given) > MAX_BYTES:
        raise RefusalError("unreadable", f"the order is longer than {MAX_BYTES} bytes")
    try:
        order = Order.model_validate_json(given)
    except ValidationError as error:
        raise RefusalError(
            "unreadable",
            f"the order cannot be read: {_problems(error)}",
            next_step="write it anew with kedge order request",
        ) from error
    moment(order.issued)
    moment(order.expires)
    if canonical(order) != given:
        raise RefusalError(
            "not-canonical",
            _why_not_canonical(envelope.order),
            next_step="sign the file as kedge order request wrote it (no editor, no newline at the end)",
        )
    return order


def _why_not_canonical(text: str) -> str:
    """The likeliest reason, for a text that is an order but not in its canonical form."""
    doubled: list[str] = []

    def pairs(items: list[tuple[str, Json]]) -> None:
        keys = [key for key, _ in items]
        doubled.extend(key for at, key in enumerate(keys) if key in keys[:at])

    try:
        json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        # A value that a second one of the same key hid from the first parser.
        return "the order has a value that no order has"
    if doubled:
        return f"the key {quoted(doubled[0])} stands twice in the order"
    if text != text.strip():
        return "there are spaces or newlines around the order"
    return "the order is not in its canonical form (RFC 8785: keys sorted, no spaces, shortest spelling)"


def _problems(error: ValidationError) -> str:
    """The first few problems of a document from outside, as one clause."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [
        f"{quoted('.'.join(str(part) for part in problem['loc']) or 'document')}: {quoted(problem['msg'], 120)}"
        for problem in found[:3]
    ]
    return "; ".join(said) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
