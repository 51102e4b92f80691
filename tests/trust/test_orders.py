"""Each field changed, each rule broken: refused by that rule's name."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, get_args

import asyncssh
import pytest

from kedge.model.base import canonical
from kedge.model.order import Envelope, Expected, OrderVerdict, Rule
from kedge.model.policy import Person, Policy
from kedge.trust.keys import parse_public_key
from kedge.trust.orders import bytes_to_sign, judge, make, open_envelope, read, refused, seal
from kedge.trust.refusal import RefusalError
from kedge.trust.wire import string
from tests.trust import world


def verdict(
    envelope: Envelope, expected: Expected | None = None, policy: Policy | None = None, **how: Any
) -> OrderVerdict:
    gate = how.pop("gate", world.gate())
    return judge(envelope, expected or world.expected(), policy or world.policy(), gate=gate, **how)


def raw(envelope: Envelope, change: Callable[[str], str]) -> Envelope:
    """The envelope with its order's text changed, signed again by carol."""
    text = change(envelope.order)
    return Envelope(order=text, signature=world.sign(text.encode("utf-8"), world.private("carol")))


def test_a_valid_order_is_accepted_and_the_verdict_says_who() -> None:
    found = verdict(world.envelope())
    assert found.accepted
    assert found.rule == "accepted"
    assert (found.person, found.roles, found.verb, found.subject) == (
        "carol",
        ("sre",),
        "approve",
        "ship-it",
    )
    assert found.key == world.private("carol").get_fingerprint()
    assert found.nonce == world.NONCE
    assert found.comment == "looked at it"


# What an unsigned change of each field is refused as, and what a freshly signed one is.
FIELDS: list[tuple[str, Any, Rule, Rule]] = [
    ("kind", "OtherOrder", "unreadable", "unreadable"),
    ("format", 2, "unreadable", "unreadable"),
    ("verb", "pause", "signature", "verb"),
    ("target", "upgrade/db/2", "signature", "target"),
    ("plan", "f" * 64, "signature", "plan"),
    ("subject", "other-gate", "signature", "subject"),
    ("choice", "retry", "signature", "choice"),
    ("shown", "f" * 64, "signature", "shown"),
    ("person", "bob", "unknown-key", "unknown-key"),
    ("person", "mallory", "unknown-person", "unknown-person"),
    ("comment", "did not look", "signature", "accepted"),
    ("evidence", {"hash": "c" * 64, "seq": 7}, "signature", "accepted"),
    ("ticket", "CHG-1", "signature", "accepted"),
    ("break_glass", True, "signature", "break-glass"),
    ("issued", "2025-01-31T12:00:31Z", "signature", "not-yet-valid"),
    ("expires", "2025-01-31T11:59:59Z", "signature", "expired"),
    ("nonce", "f" * 32, "signature", "nonce-spent"),
]


def test_the_table_of_fields_is_complete() -> None:
    assert {field for field, *_ in FIELDS} == set(json.loads(world.envelope().order))


@pytest.mark.parametrize(
    ("field", "value", "unsigned", "signed"), FIELDS, ids=[f"{f} to {v}" for f, v, *_ in FIELDS]
)
def test_each_field_changed_is_refused_by_its_rule(
    field: str, value: Any, unsigned: Rule, signed: Rule
) -> None:
    good = world.envelope()
    changed = canonical({**json.loads(good.order), field: value}).decode()
    expected = world.expected(spent=("f" * 32,))
    assert verdict(good, expected).accepted
    assert verdict(Envelope(order=changed, signature=good.signature), expected).rule == unsigned
    again = Envelope(order=changed, signature=world.sign(changed.encode(), world.private("carol")))
    assert verdict(again, expected).rule == signed


TEXTS: list[tuple[str, Callable[[str], str], Rule]] = [
    ("an empty text", lambda _: "", "unreadable"),
    ("no JSON", lambda _: "approve!", "unreadable"),
    ("a JSON list", lambda text: f"[{text}]", "unreadable"),
    ("a hundred thousand brackets", lambda _: "[" * 16_000, "unreadable"),
    ("not a number", lambda text: text.replace('"format":1', '"format":NaN'), "unreadable"),
    ("a number of ten thousand digits", lambda text: text.replace('"format":1', '"format":' + "1" * 10_000), "unreadable"),
    ("a key too many", lambda text: text.replace("{", '{"admin":true,', 1), "unreadable"),
    ("a key missing", lambda text: text.replace('"comment":"looked at it",', ""), "not-canonical"),
    ("a key twice", lambda text: text.replace("{", '{"verb":"pause",', 1), "not-canonical"),
    ("a huge value hidden by a second key", lambda text: text.replace("{", '{"verb":' + "1" * 9000 + ",", 1), "unreadable"),
    ("nesting hidden by a second key", lambda text: text.replace("{", '{"verb":' + "[" * 150 + "]" * 150 + ",", 1), "not-canonical"),
    ("a newline behind", lambda text: text + "\n", "not-canonical"),
    ("a space inside", lambda text: text.replace(":", ": ", 1), "not-canonical"),
    ("a byte order mark", lambda text: "\ufeff" + text, "unreadable"),
    ("an escaped letter", lambda text: text.replace("approve", "\\u0061pprove"), "not-canonical"),
    ("one as a float", lambda text: text.replace('"format":1', '"format":1.0'), "not-canonical"),
    ("one as true", lambda text: text.replace('"format":1', '"format":true'), "not-canonical"),
    ("keys in another order", lambda text: json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")), "not-canonical"),
    ("a day that no calendar has", lambda text: text.replace("2025-01-31T12:30:00Z", "2025-02-31T12:30:00Z"), "unreadable"),
    ("digits of another script", lambda text: text.replace("2025-01-31T12:30", "2025-01-31T12:3\u0660"), "unreadable"),
    ("an escape sequence in the comment", lambda text: text.replace("looked", "\\u001b[2Jlooked"), "unreadable"),
    ("writing turned around in the comment", lambda text: text.replace("looked", "\u202elooked"), "unreadable"),
    ("a lone surrogate escaped", lambda text: text.replace("looked", "\\ud800looked"), "unreadable"),
    ("an upper-case digest", lambda text: text.replace("a" * 64, "A" * 64), "unreadable"),
    ("a short nonce", lambda text: text.replace(world.NONCE, world.NONCE[:-1]), "unreadable"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "rule"), [(c, r) for _, c, r in TEXTS], ids=[name for name, *_ in TEXTS]
)
def test_a_text_that_is_not_the_one_form_of_an_order_is_refused(
    change: Callable[[str], str], rule: Rule
) -> None:
    found = verdict(raw(world.envelope(), change))
    assert found.rule == rule, found.said
    assert not found.accepted
    assert "Traceback" not in found.said
    assert len(found.said) < 1000


def test_text_that_utf8_cannot_carry_is_refused_and_still_has_a_digest() -> None:
    for order, signature in (("\ud800", "x"), (world.envelope().order, "\ud800")):
        envelope = Envelope.model_construct(order=order, signature=signature)
        found = verdict(envelope)
        assert not found.accepted
        assert len(found.digest) == 64


def test_an_order_longer_than_its_bound_is_refused() -> None:
    envelope = Envelope(order="\u20ac" * 16_384, signature="x")
    assert verdict(envelope).rule == "unreadable"


# Each rule broken by an order that is signed well otherwise.
def _signed(**changes: Any) -> Envelope:
    return world.envelope(world.order(**changes))


def _shared() -> Policy:
    both = (
        Person(name="carol", roles=("sre",), keys=(world.public("carol"),)),
        Person(name="erin", roles=("sre",), keys=(world.public("carol") + " same",)),
    )
    return Policy.model_construct(**{**dict(world.policy()), "people": both})


def _rsa(size: int) -> tuple[Envelope, Policy]:
    key = asyncssh.generate_private_key("ssh-rsa", key_size=size)
    # As a document it would not stand: what judges does not rely on that.
    person = Person.model_construct(
        name="carol", roles=("sre",), keys=(key.export_public_key().decode().strip(),)
    )
    given = bytes_to_sign(world.order())
    people = (person, *(p for p in world.policy().people if p.name != "carol"))
    policy = Policy.model_construct(**{**dict(world.policy()), "people": people})
    return seal(given, world.sign(given, key)), policy


def test_a_key_under_two_names_is_refused_whoever_signs() -> None:
    for person in ("carol", "erin"):
        given = world.envelope(world.order(person=person), by="carol")
        assert verdict(given, policy=_shared()).rule == "duplicate-key"


def test_an_rsa_key_is_accepted_from_3072_bits_on() -> None:
    assert verdict(*_reordered(_rsa(3072))).accepted
    short = verdict(*_reordered(_rsa(2048)))
    assert short.rule == "algorithm"
    assert "2048 bits" in short.said


def _reordered(pair: tuple[Envelope, Policy]) -> tuple[Envelope, Expected, Policy]:
    return pair[0], world.expected(), pair[1]


@pytest.mark.parametrize("namespace", ["file", "git", "kedge-order2", "kedge", ""])
def test_a_signature_made_for_another_namespace_is_refused(namespace: str) -> None:
    assert verdict(world.envelope(namespace=namespace)).rule == "namespace"


SPOKEN: list[tuple[str, dict[str, Any], dict[str, Any], Rule]] = [
    ("no gate is open", {}, {"subjects": {}}, "not-open"),
    ("only a parked item is open", {}, {"subjects": {"wave-1": world.SHOWN}, "choices": {"wave-1": ("retry",)}}, "not-open"),
    ("approving a parked item beside the gate", {"subject": "wave-1"}, {"subjects": {"wave-1": world.SHOWN, "ship-it": world.SHOWN}, "choices": {"wave-1": ("retry",)}}, "subject"),
    ("approving nothing", {"subject": ""}, {"subjects": {"": world.SHOWN, "ship-it": world.SHOWN}}, "subject"),
    ("deciding where nothing is parked", {"verb": "decide", "choice": "retry"}, {"verbs": ("decide",)}, "not-open"),
    ("deciding what is not offered", {"verb": "decide", "subject": "wave-1", "choice": "skip"}, {"verbs": ("decide",), "subjects": {"wave-1": world.SHOWN}, "choices": {"wave-1": ("retry",)}}, "choice"),
    ("deciding without a choice", {"verb": "decide", "subject": "wave-1"}, {"verbs": ("decide",), "subjects": {"wave-1": world.SHOWN}, "choices": {"wave-1": ("retry",)}}, "choice"),
    ("deciding what is offered", {"verb": "decide", "subject": "wave-1", "choice": "retry"}, {"verbs": ("decide",), "subjects": {"wave-1": world.SHOWN}, "choices": {"wave-1": ("retry",)}}, "accepted"),
    ("pausing a gate", {"verb": "pause"}, {"verbs": ("pause",)}, "subject"),
    ("pausing with a choice", {"verb": "pause", "subject": "", "choice": "retry", "shown": world.PLAN}, {"verbs": ("pause",)}, "choice"),
    ("pausing without having seen the plan", {"verb": "pause", "subject": ""}, {"verbs": ("pause",)}, "shown"),
    ("pausing", {"verb": "pause", "subject": "", "shown": world.PLAN}, {"verbs": ("pause",)}, "accepted"),
    ("pausing what was shown last", {"verb": "pause", "subject": ""}, {"verbs": ("pause",), "subjects": {"": world.SHOWN}}, "accepted"),
    ("a role that may not say the verb", {"verb": "rollback", "subject": "", "shown": world.PLAN}, {"verbs": ("rollback",)}, "role"),
    ("rejecting", {"verb": "reject"}, {}, "accepted"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("say", "expect", "rule"), [row[1:] for row in SPOKEN], ids=[row[0] for row in SPOKEN]
)
def test_an_order_must_be_about_what_is_open(
    say: dict[str, Any], expect: dict[str, Any], rule: Rule
) -> None:
    found = verdict(_signed(**say), world.expected(**expect))
    assert found.rule == rule, found.said


TIMES: list[tuple[str, str, str, Rule]] = [
    ("issued now", world.NOW, "2025-01-31T12:10:00Z", "accepted"),
    (
        "issued as far ahead as clocks may differ",
        "2025-01-31T12:00:30Z",
        "2025-01-31T12:10:00Z",
        "accepted",
    ),
    (
        "issued one second further ahead",
        "2025-01-31T12:00:31Z",
        "2025-01-31T12:10:00Z",
        "not-yet-valid",
    ),
    ("expires in one second", "2025-01-31T11:30:00Z", "2025-01-31T12:00:01Z", "accepted"),
    ("expires now", "2025-01-31T11:30:00Z", world.NOW, "expired"),
    ("expired a second ago", "2025-01-31T11:30:00Z", "2025-01-31T11:59:59Z", "expired"),
    ("expires before it was issued", "2025-01-31T12:00:20Z", "2025-01-31T12:00:10Z", "expired"),
    (
        "lives exactly as long as allowed",
        "2025-01-31T11:30:00Z",
        "2025-01-31T12:30:00Z",
        "accepted",
    ),
    ("lives a second longer", "2025-01-31T11:30:00Z", "2025-01-31T12:30:01Z", "too-long-lived"),
    ("lives for ever", "2025-01-31T11:30:00Z", "9999-12-31T23:59:59Z", "too-long-lived"),
]


@pytest.mark.parametrize(
    ("issued", "expires", "rule"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES]
)
def test_the_edges_of_time(issued: str, expires: str, rule: Rule) -> None:
    assert verdict(_signed(issued=issued, expires=expires)).rule == rule


def test_approvals_live_as_long_as_the_policy_gives_them() -> None:
    policy = world.policy(approval_max_lifetime=86_400.0)
    day = {"issued": "2025-01-31T12:00:00Z", "expires": "2025-02-01T12:00:00Z"}
    assert verdict(_signed(**day), policy=policy).accepted
    pause = _signed(verb="pause", subject="", shown=world.PLAN, **day)
    assert verdict(pause, world.expected(verbs=("pause",)), policy).rule == "too-long-lived"


def test_a_nonce_is_spent_once() -> None:
    assert verdict(world.envelope(), world.expected(spent=("1" * 32,))).accepted
    assert (
        verdict(world.envelope(), world.expected(spent=("1" * 32, world.NONCE))).rule
        == "nonce-spent"
    )


def test_a_person_without_one_of_the_gates_roles_is_refused_there() -> None:
    found = verdict(_signed(), gate=world.gate(roles=("db-owner",)))
    assert found.rule == "role"
    assert "ship-it" in found.said


def test_a_gate_that_the_plan_does_not_have_is_not_approved() -> None:
    assert verdict(_signed(), gate=None).rule == "subject"
    assert verdict(_signed(), gate=world.gate(name="other")).rule == "subject"


@pytest.mark.parametrize(
    ("by_policy", "by_gate", "rule"),
    [
        (False, False, "requester"),
        (True, False, "requester"),
        (False, True, "requester"),
        (True, True, "accepted"),
    ],
)
def test_who_asked_approves_only_when_policy_and_gate_both_say_so(
    by_policy: bool,  # noqa: FBT001 - a table
    by_gate: bool,  # noqa: FBT001 - a table
    rule: Rule,
) -> None:
    policy = world.policy(requester_may_approve=by_policy)
    found = verdict(
        _signed(person="alice"), policy=policy, gate=world.gate(requester_counts=by_gate)
    )
    assert found.rule == rule


def test_who_asked_may_reject() -> None:
    assert verdict(_signed(person="alice", verb="reject")).accepted


def test_the_same_person_does_not_approve_twice() -> None:
    first = verdict(_signed())
    again = _signed(nonce="2" * 32)
    assert verdict(again, signed=(first,)).rule == "duplicate-person"
    assert verdict(_signed(person="bob"), signed=(first,)).accepted


def test_a_key_that_approved_under_another_name_does_not_approve_again() -> None:
    first = verdict(_signed())
    renamed = first.model_copy(update={"person": "erin"})
    assert verdict(_signed(nonce="2" * 32), signed=(renamed,)).rule == "duplicate-key"
    elsewhere = renamed.model_copy(update={"subject": "other-gate"})
    assert verdict(_signed(nonce="2" * 32), signed=(elsewhere,)).accepted


def test_one_point_as_a_hardware_key_and_as_a_plain_key_is_one_key() -> None:
    token = world.HardwareKey(curve=True)
    plain = string(b"ecdsa-sha2-nistp256") + token.blob[4 + len(token.kind) : -8]
    line = f"ecdsa-sha2-nistp256 {base64.b64encode(plain).decode()}"
    assert parse_public_key(line).material == parse_public_key(token.line).material


def test_the_rules_are_looked_at_in_the_documented_order() -> None:
    """An order that breaks many rules is refused by the first; mended one by one, by the next."""
    text = bytes_to_sign(
        world.order(person="mallory", verb="pause", expires="2025-01-31T11:59:59Z", nonce="f" * 32)
    )
    assert verdict(seal(text, "no signature")).rule == "unknown-person"
    order = world.order(
        person="carol", verb="pause", expires="2025-01-31T11:59:59Z", nonce="f" * 32
    )
    expected = world.expected(spent=("f" * 32,), target="upgrade/db/9")
    assert verdict(seal(bytes_to_sign(order), "no signature"), expected).rule == "signature"
    assert verdict(world.envelope(order, by="bob"), expected).rule == "unknown-key"
    assert verdict(world.envelope(order, namespace="git"), expected).rule == "namespace"
    assert verdict(world.envelope(order), expected).rule == "verb"
    assert (
        verdict(world.envelope(order), expected.model_copy(update={"verbs": ("pause",)})).rule
        == "target"
    )


def test_a_refused_order_still_says_what_it_claimed() -> None:
    found = refused(world.envelope(), "lease", "upgrade/db/0 has the fleet")
    assert (found.accepted, found.rule, found.person, found.said) == (
        False,
        "lease",
        "carol",
        "upgrade/db/0 has the fleet",
    )
    assert refused(Envelope(order="?", signature="?"), "unreadable", "no").person == ""


def test_every_rule_is_a_rule_that_some_test_here_breaks() -> None:
    elsewhere = {"touch", "pin", "lease", "policy", "release", "evidence"}
    elsewhere |= {"revoked", "hardware", "ticket", "author"}  # test_governance.py
    here = (
        {r for *_, a, b in FIELDS for r in (a, b)}
        | {r for *_, r in TEXTS}
        | {r for *_, r in SPOKEN}
    )
    here |= {r for *_, r in TIMES} | {
        "duplicate-key",
        "duplicate-person",
        "algorithm",
        "namespace",
        "requester",
    }
    assert here | elsewhere == set(get_args(Rule))


def test_an_order_is_made_from_arguments_and_reads_back_the_same() -> None:
    made = make(
        "start", "fleet/db", plan=world.PLAN, person="alice", issued=world.NOW, expires="2025-01-31T12:10:00Z", nonce=world.NONCE
    )  # fmt: skip
    assert made.shown == world.PLAN
    given = bytes_to_sign(made)
    assert read(seal(given, "x")) == made
    assert not given.endswith(b"\n")


def test_an_order_that_cannot_be_is_not_made() -> None:
    with pytest.raises(RefusalError, match="nonce"):
        make(
            "start",
            "fleet/db",
            plan=world.PLAN,
            person="alice",
            issued=world.NOW,
            expires=world.NOW,
            nonce="1",
        )
    with pytest.raises(RefusalError, match="not a time"):
        make("start", "fleet/db", plan=world.PLAN, person="alice", issued="2025-13-01T00:00:00Z", expires=world.NOW, nonce=world.NONCE)  # fmt: skip


@pytest.mark.parametrize(
    "sent",
    [
        None,
        [],
        "x",
        {"order": 1, "signature": ""},
        {"order": ""},
        {"order": "", "signature": "", "x": 1},
        {"order": "x" * 16_385, "signature": ""},
    ],
)
def test_what_is_not_an_envelope_is_refused_with_a_sentence(sent: Any) -> None:
    with pytest.raises(RefusalError, match="not an envelope"):
        open_envelope(sent)


def test_an_envelope_as_it_came_over_the_wire_is_opened() -> None:
    envelope = world.envelope()
    assert open_envelope(json.loads(envelope.model_dump_json())) == envelope


def test_an_order_that_names_nobody_is_its_keys_owners() -> None:
    accepted = verdict(world.envelope(world.order(person=""), by="bob"))
    assert accepted.accepted
    assert accepted.person == "bob"


def test_an_order_that_names_nobody_and_is_signed_by_a_stranger_is_refused() -> None:
    assert verdict(world.envelope(world.order(person=""), by="stranger")).rule == "unknown-key"


def test_leaving_the_name_out_does_not_make_a_second_person() -> None:
    first = verdict(world.envelope(world.order(person="bob"), by="bob"))
    assert first.accepted
    again = world.envelope(world.order(person="", nonce="3" * 32), by="bob")
    assert verdict(again, signed=(first,)).rule == "duplicate-person"
