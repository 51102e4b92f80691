"""The judgement of one order: bytes and policy in, verdict out.

:func:`judge` looks in this order and stops at the first rule that is broken, which names the verdict:

1. ``unreadable``, ``not-canonical``: the envelope holds the one form of an order (:mod:`kedge.trust.envelope`);
2. ``unknown-person``, ``revoked``: the policy knows the person the order names and has not revoked that name (one
   that names nobody is its key's owner's);
3. ``signature`` (its form), ``revoked``, ``unknown-key``, ``duplicate-key``, ``algorithm``: the key that signed was
   not revoked, is that person's and no one else's, and of a kind that may sign;
4. ``namespace``, ``algorithm``, ``signature``, ``touch``, ``pin``: the signature holds (:mod:`kedge.trust.sshsig`);
   ``hardware``: it is a hardware key's where the policy wants that for this verb;
5. ``verb``, ``target``, ``plan``, ``not-open``, ``subject``, ``choice``, ``shown``: it is about this run, now;
6. ``not-yet-valid``, ``expired``, ``too-long-lived``: it is of this time;
7. ``nonce-spent``: it was not seen before;
8. ``break-glass``, ``role``: this person may say this verb about a plan of this class, or may break the glass for it
   and gives a reason; for approve and reject the person has one of the gate's roles;
9. ``ticket``: it names a change ticket where the policy wants one;
10. ``requester``, ``author``: who asked for the run does not approve it, unless the policy *and* the gate let him
    count; who made the release does what the policy leaves to him; who broke the glass, by name or by key, does not review that;
11. ``duplicate-person``, ``duplicate-key``: neither person nor key has approved at this gate, or reviewed this.

From step 5 on the verdict's person, key and content are proven, before that they are claims.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from kedge.model.governance import matches
from kedge.model.keyline import fingerprints
from kedge.model.order import Envelope, Expected, Order, OrderVerdict, Rule
from kedge.model.plan import Gate, Risk, Verb
from kedge.model.policy import Person, Policy
from kedge.trust.envelope import (
    bytes_to_sign,
    make,
    moment,
    open_envelope,
    order_digest,
    read,
    seal,
)
from kedge.trust.keyring import keyring
from kedge.trust.keys import PublicKey, fingerprint
from kedge.trust.refusal import RefusalError, quoted
from kedge.trust.sshsig import Signature, check, parse

__all__ = [
    "bytes_to_sign",
    "judge",
    "make",
    "open_envelope",
    "read",
    "refused",
    "seal",
    "signer_of",
]

_GATE_VERBS = ("approve", "reject")
_LOOK = "kedge status says what is waited for"
_ANEW = "make the order anew with kedge order request"
_BY_ROLE = "have someone sign whose role it is (kedge policy who-can)"
_ECHOED = {
    "verb", "target", "subject", "choice", "nonce", "comment", "plan", "shown", "issued",
    "ticket", "break_glass",
}  # fmt: skip


def judge(
    envelope: Envelope,
    expected: Expected,
    policy: Policy,
    *,
    signed: tuple[OrderVerdict, ...] = (),
    gate: Gate | None = None,
) -> OrderVerdict:
    """The verdict about an order. Pure, and total: whatever the envelope holds, it is a verdict.

    ``gate`` is the gate of the plan that approve and reject are about (without it they are refused);
    ``signed`` are the accepted verdicts of this gate so far. Raises ``RefusalError`` only when
    ``expected.now`` is no time, which is the caller's mistake.
    """
    moment(expected.now)
    known = _Known(envelope)
    try:
        order = known.order = read(envelope)
        if order.person:
            known.person = _person(order.person, policy)
        signature = known.signature = parse(envelope.signature)
        _not_revoked(signature, policy)
        owner = order.person or keyring(policy.people).owner(signature.key_blob)
        person = known.person = _person(owner, policy)
        key = known.key = keyring(policy.people).key_of(signature.key_blob, person.name)
        _signed(order, signature, key, envelope, policy)
        _about(order, expected, gate)
        _in_time(order, expected, policy)
        _unspent(order, expected)
        _may(order, person, expected, policy, gate)
        _ticket(order, policy)
        _requester(order, person, expected, policy, gate)
        _broke(order, person, key, expected)
        _author(order, person, expected, policy)
        _distinct(order, person, key, signed)
    except RefusalError as refusal:
        return known.verdict(refusal.rule, refusal.said)
    words = [person.name, "says", order.verb, order.choice, order.target, order.subject]
    return known.verdict("accepted", " ".join(word for word in words if word))


def refused(envelope: Envelope, rule: Rule, said: str) -> OrderVerdict:
    """A refusal that the caller decides (``lease``, ``policy``, ``not-open`` ...), with what the order claims."""
    known = _Known(envelope)
    with suppress(RefusalError):
        known.order = read(envelope)
    return known.verdict(rule, said)


def signer_of(envelope: Envelope) -> str:
    """The fingerprint of the key that an envelope names, empty where that cannot be read. Nothing is verified."""
    try:
        return fingerprint(parse(envelope.signature).key_blob)
    except RefusalError:
        return ""


@dataclass
class _Known:
    """What is known of an envelope so far, to say it in the verdict whenever that falls."""

    envelope: Envelope
    order: Order | None = None
    person: Person | None = None
    signature: Signature | None = None
    key: PublicKey | None = None

    def verdict(self, rule: Rule, said: str) -> OrderVerdict:
        """The verdict by this rule, with what is known."""
        order = self.order
        signature = self.signature
        claimed = order.person if order is not None else ""
        hardware = self.key is not None and self.key.application is not None
        return OrderVerdict(
            accepted=rule == "accepted",
            rule=rule,
            said=said,
            digest=order_digest(self.envelope),
            person=self.person.name if self.person is not None else claimed,
            roles=self.person.roles if self.person is not None else (),
            key=fingerprint(signature.key_blob) if signature is not None else "",
            material=self.key.material if self.key is not None else "",
            touched=hardware and signature is not None and signature.touched,
            pin_given=hardware and signature is not None and signature.pin_given,
            **(order.model_dump(include=_ECHOED) if order is not None else {}),
        )


def _person(name: str, policy: Policy) -> Person:
    person = policy.person(name)
    if person is None:
        raise RefusalError(
            "unknown-person",
            f"the policy {policy.name} knows no {quoted(name)}",
            next_step="use the name under which your key stands in the policy",
        )
    if name in policy.revoked.people:
        raise RefusalError(
            "revoked",
            f"{name} was revoked in the policy {policy.name}: nothing that name signs counts",
            next_step="have someone else sign",
        )
    return person


def _not_revoked(signature: Signature, policy: Policy) -> None:
    if policy.revoked.has_blob(signature.key_blob):
        raise RefusalError(
            "revoked",
            f"the key {fingerprint(signature.key_blob)} was revoked in the policy {policy.name}",
            next_step="sign with a key that stands under your name, or have a new one added to the policy",
        )


def _signed(
    order: Order, signature: Signature, key: PublicKey, envelope: Envelope, policy: Policy
) -> None:
    """Step 4: the mathematics, and what the policy asks of hardware keys."""
    rule = policy.hardware
    check(
        signature,
        key,
        envelope.order.encode(),
        require_touch=rule.touch,
        require_pin=rule.pin,
    )
    if order.verb in rule.only_for and key.application is None:
        raise RefusalError(
            "hardware",
            f"the policy {policy.name} wants a hardware key for {order.verb}, and {key.fingerprint} is none",
            next_step="sign with a hardware key: ssh-keygen -t ed25519-sk makes one",
        )


def _about(order: Order, expected: Expected, gate: Gate | None) -> None:
    """Step 5: the order is about this run, this plan, something that is open, and what was shown."""
    if order.verb not in expected.verbs:
        raise RefusalError(
            "verb",
            f"{order.verb} is not possible now; possible: {', '.join(expected.verbs) or 'nothing'}",
            next_step=_LOOK,
        )
    if order.target != expected.target:
        raise RefusalError(
            "target",
            f"the order is for {quoted(order.target)}, not for {expected.target}",
            next_step="make and sign one for this, or send it to what it is for",
        )
    if order.plan != expected.plan:
        raise RefusalError(
            "plan",
            f"the order is about the plan {order.plan[:12]}, not about {expected.plan[:12]}",
            next_step="look at this plan and sign again",
        )
    _subject(order, expected, gate)
    shown = expected.subjects.get(order.subject, expected.plan if order.subject == "" else None)
    if order.shown != shown:
        raise RefusalError(
            "shown",
            "what was shown when this was signed is not what stands now: something happened since",
            next_step="look at it again (kedge status) and sign what it says now",
        )


def _subject(order: Order, expected: Expected, gate: Gate | None) -> None:
    """Gate verbs name an open gate, decide an open parked item and a choice it offers, review a run, others nothing."""
    if order.verb == "review":
        _reviewed(order, expected)
        return
    if order.verb not in {*_GATE_VERBS, "decide"}:
        if order.subject != "":
            raise RefusalError(
                "subject",
                f"{order.verb} is about the whole run; its subject must be empty",
                next_step=_ANEW,
            )
        if order.choice is not None:
            said = f"{order.verb} has no choice; only decide has"
            raise RefusalError("choice", said, next_step=_ANEW)
        return
    parked = {subject for subject in expected.subjects if subject in expected.choices}
    candidates = parked if order.verb == "decide" else set(expected.subjects) - parked - {""}
    what = "parked item" if order.verb == "decide" else "gate"
    if not candidates:
        raise RefusalError("not-open", f"no {what} is open now", next_step=_LOOK)
    if order.subject not in candidates:
        raise RefusalError(
            "subject",
            f"{quoted(order.subject)} is not an open {what}; open: {', '.join(sorted(candidates))}",
            next_step=_LOOK,
        )
    if order.verb == "decide":
        offered = expected.choices[order.subject]
        if order.choice not in offered:
            raise RefusalError(
                "choice",
                f"the choices are {', '.join(offered)}, not {order.choice or 'nothing'}",
                next_step="sign one of those",
            )
    elif order.choice is not None:
        said = f"{order.verb} has no choice; only decide has"
        raise RefusalError("choice", said, next_step=_ANEW)
    elif gate is None or gate.name != order.subject:
        said = f"the plan has no gate {quoted(order.subject)}"
        raise RefusalError("subject", said, next_step=_LOOK)


def _reviewed(order: Order, expected: Expected) -> None:
    """A review names a run that waits for one."""
    if order.choice is not None:
        raise RefusalError("choice", "review has no choice; only decide has", next_step=_ANEW)
    if not expected.reviews:
        raise RefusalError(
            "not-open", "no review is owed", next_step="kedge status FLEET says what is"
        )
    if order.subject not in expected.reviews:
        raise RefusalError(
            "subject",
            f"{quoted(order.subject)} waits for no review; those that do: {', '.join(sorted(expected.reviews))}",
            next_step=_LOOK,
        )


def _in_time(order: Order, expected: Expected, policy: Policy) -> None:
    """Step 6: issued <= now + skew; now < expires; expires - issued <= the policy's longest life."""
    now, issued, expires = moment(expected.now), moment(order.issued), moment(order.expires)
    if issued > now + timedelta(seconds=policy.clock_skew_seconds):
        raise RefusalError(
            "not-yet-valid",
            f"the order was issued at {order.issued}, and here it is {expected.now}",
            next_step="set the clock of the signing machine right",
        )
    if now >= expires or expires <= issued:
        raise RefusalError(
            "expired",
            f"the order was good until {order.expires}, and it is {expected.now}",
            next_step="make and sign a new one",
        )
    longest = policy.lifetime(order.verb, expected.risk)
    if (expires - issued).total_seconds() > longest:
        raise RefusalError(
            "too-long-lived",
            f"the order is good from {order.issued} to {order.expires}; the policy allows {longest:g} seconds",
            next_step="make one that expires sooner",
        )


def _unspent(order: Order, expected: Expected) -> None:
    """Step 7."""
    if order.nonce in expected.spent:
        raise RefusalError(
            "nonce-spent",
            "this order was sent before, and each is spent once",
            next_step="make and sign a new one",
        )


def _may(
    order: Order, person: Person, expected: Expected, policy: Policy, gate: Gate | None
) -> None:
    """Step 8: one of the person's roles may say the verb; at a gate, one of them is the gate's."""
    if order.break_glass:
        _breaks_glass(order, person, policy)
        return
    if not policy.allows(person, order.verb, expected.risk):
        raise RefusalError(
            "role",
            f"{person.name} ({', '.join(person.roles)}) may not {order.verb}; the policy allows it to "
            + _allowed(order.verb, policy, expected.risk),
            next_step="have one of those sign",
        )
    if order.verb in _GATE_VERBS and gate is not None and not set(gate.roles) & set(person.roles):
        raise RefusalError(
            "role",
            f"{person.name} ({', '.join(person.roles)}) has none of the roles of the gate {gate.name}: "
            + ", ".join(gate.roles),
            next_step="have one of those sign",
        )


def _breaks_glass(order: Order, person: Person, policy: Policy) -> None:
    """Step 8 for an order that breaks the glass: its person, its verb, its reason."""
    rule = policy.break_glass
    if rule is None:
        said = f"the policy {policy.name} lets nobody break the glass"
        raise RefusalError("break-glass", said, next_step=_BY_ROLE)
    if not set(rule.roles) & set(person.roles):
        raise RefusalError(
            "break-glass",
            f"{person.name} ({', '.join(person.roles)}) may not break the glass; the policy {policy.name} leaves it to "
            + ", ".join(rule.roles),
            next_step=_BY_ROLE,
        )
    if order.verb not in rule.verbs:
        raise RefusalError(
            "break-glass",
            f"the glass is not broken to {order.verb}; the policy {policy.name} leaves it to: {', '.join(rule.verbs)}",
            next_step=_BY_ROLE,
        )
    if _seen(order.comment) < rule.reason_min:
        raise RefusalError(
            "break-glass",
            f"who breaks the glass says why, in {rule.reason_min} characters at least",
            next_step="say it with --comment",
        )


_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols by their class that show nothing."""


def _seen(text: str) -> int:
    """How many characters of a text its reader sees: neither spaces, nor marks, nor what has no width."""
    return sum(unicodedata.category(one)[0] in "LNPS" and one not in _BLANK for one in text)


def _allowed(verb: Verb, policy: Policy, risk: Risk | None) -> str:
    """To whom a verb is allowed, in words."""
    general = policy.may.get(verb, ())
    if verb == "review" and policy.break_glass is not None:
        general = policy.break_glass.review.roles
    said = ", ".join(general) or "nobody"
    for rule in policy.of_class(risk):
        if verb in rule.may:
            about = f"a plan that is {risk}" if risk is not None else "a plan of any class"
            said += f", and about {about} to those of them who are {', '.join(rule.may[verb])}"
    return said


def _requester(
    order: Order, person: Person, expected: Expected, policy: Policy, gate: Gate | None
) -> None:
    """Step 10. A plan is compiled by who asks for the run, so its word alone does not let him count."""
    counts = policy.requester_may_approve and gate is not None and gate.requester_counts
    if order.verb == "approve" and person.name == expected.requester and not counts:
        raise RefusalError(
            "requester",
            f"{person.name} asked for this run, and who asks does not approve",
            next_step="have someone else sign",
        )


def _broke(order: Order, person: Person, key: PublicKey, expected: Expected) -> None:
    """Step 10: who broke the glass, by name or by any key that stands under the reviewer's name, does not review it."""
    if order.verb != "review":
        return
    by_name = person.name in expected.reviews.get(order.subject, ())
    hands = _fingerprints(person) | {key.fingerprint, key.material}
    if by_name or hands & set(expected.broken_with.get(order.subject, ())):
        who = person.name if by_name else f"somebody with a key of {person.name}"
        raise RefusalError(
            "requester",
            f"{who} broke the glass there, and somebody else reviews that",
            next_step="have someone else sign",
        )


def _fingerprints(person: Person) -> set[str]:
    return {found for line in person.keys for found in fingerprints(line)}


def _author(order: Order, person: Person, expected: Expected, policy: Policy) -> None:
    """Step 10: who made the release, by name or by a key, does with it what the policy leaves to him."""
    if order.verb not in {"approve", "start"}:
        return
    rule = policy.separation
    if rule.author_may_approve if order.verb == "approve" else rule.author_may_start:
        return
    if not ({person.name} | _fingerprints(person)) & set(expected.authors):
        return
    raise RefusalError(
        "author",
        f"{person.name} made the release of this plan, and the policy {policy.name} does not let its author {order.verb} it",
        next_step="have someone else sign",
    )


def _ticket(order: Order, policy: Policy) -> None:
    """Step 9: a change ticket for the verbs that need one; what breaks the glass needs none."""
    rule = policy.ticket
    if rule is None or order.verb not in rule.verbs or order.break_glass:
        return
    if not matches(rule.pattern, order.ticket):
        what = f"names the ticket {quoted(order.ticket)}" if order.ticket else "names no ticket"
        raise RefusalError(
            "ticket",
            f"the order {what}, and the policy {policy.name} wants one that fits {rule.pattern} to {order.verb}",
            next_step="name it with --ticket",
        )


def _distinct(
    order: Order, person: Person, key: PublicKey, signed: tuple[OrderVerdict, ...]
) -> None:
    """Step 11: a second approval or review by the same person, or with the same key under another name."""
    if order.verb not in {"approve", "review"}:
        return
    done = "approved" if order.verb == "approve" else "reviewed"
    before = [
        one
        for one in signed
        if one.accepted and one.verb == order.verb and one.subject == order.subject
    ]
    if any(one.person == person.name for one in before):
        raise RefusalError(
            "duplicate-person",
            f"{person.name} has already {done} {quoted(order.subject)}",
            next_step="have someone else sign",
        )
    own = _fingerprints(person)
    for one in before:
        if one.material == key.material or one.key in own:
            raise RefusalError(
                "duplicate-key",
                f"the key {one.key} has already {done} {quoted(order.subject)}, as {one.person}",
                next_step="give each person a key of their own",
            )
