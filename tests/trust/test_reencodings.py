"""An order is the bytes that were signed: whatever its signature looks like, it is the same order, and spent once."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.model.order import Envelope
from kedge.model.policy import Person, Policy
from kedge.model.run import Warrant
from kedge.trust.acts import Acts
from kedge.trust.docket import Accepted, Docket, Papers
from kedge.trust.envelope import open_envelope, order_digest
from kedge.trust.keys import CURVES
from kedge.trust.orders import bytes_to_sign, judge, seal
from kedge.trust.sshsig import BEGIN, END, compose, unarmor
from kedge.trust.wire import Reader, mpint, string
from tests.trust import world

ORDERS_OF_CURVES = {
    "nistp256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "nistp384": 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
    "nistp521": int(
        "1" + "F" * 65 + "A51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409", 16
    ),
}
"""n of SEC 2: with ``s`` also ``n - s`` is a signature."""
MAY = {"start": ("operator", "sre"), "approve": ("sre",)}
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")  # fmt: skip


def wrapped(signature: str, width: int, *, newline: bool = True) -> str:
    """The same signature in lines of another width."""
    text = base64.b64encode(unarmor(signature)).decode()
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return "\n".join([BEGIN, *lines, END]) + ("\n" if newline else "")


def mirrored(signature: str) -> str:
    """The other of the two signatures that an ECDSA signature is always one of."""
    reader = Reader(unarmor(signature))
    reader.take(len(b"SSHSIG"))
    reader.uint32()
    blob, namespace = reader.string(), reader.string().decode()
    reader.string()
    hash_name, inner = reader.string().decode(), Reader(reader.string())
    kind = inner.string()
    numbers = Reader(inner.string())
    r, s = numbers.positive(), numbers.positive()
    other = mpint(r) + mpint(ORDERS_OF_CURVES[kind.decode().removeprefix("ecdsa-sha2-")] - s)
    made = string(kind) + string(other)
    return compose(blob, made, namespace=namespace, hash_name=hash_name)


@lru_cache
def policy_of(kind: str) -> Policy:
    """Carol signs with a key of this kind; dora may do what carol may."""
    people = (
        Person(name="alice", roles=("operator",), keys=(world.public("alice"),)),
        Person(name="carol", roles=("sre",), keys=(world.public("carol", kind),)),
        Person(name="dora", roles=("sre",), keys=(world.public("dora"),)),
    )
    return world.policy(people=people, may=MAY)


@lru_cache
def signed(kind: str, hash_name: str = "sha512") -> Envelope:
    """One approval, as ``ssh-keygen`` writes it."""
    text = bytes_to_sign(world.order())
    return seal(text, world.sign(text, world.private("carol", kind), hash_name=hash_name))


def forms(kind: str) -> list[Callable[[str], str]]:
    """What can be done to a signature without its key."""
    return [lambda one: one, mirrored] if kind.startswith("ecdsa") else [lambda one: one]


def test_each_curve_has_its_own_order_here() -> None:
    assert set(ORDERS_OF_CURVES) == set(CURVES)


@given(
    kind=st.sampled_from(KINDS),
    form=st.integers(0, 1),
    width=st.integers(1, 600),
    newline=st.booleans(),
    again=st.sampled_from(["sha512", "sha256"]),
)
@settings(max_examples=150, deadline=None)
def test_every_reencoding_of_an_accepted_order_is_that_order_and_spent(
    *, kind: str, form: int, width: int, newline: bool, again: str
) -> None:
    first = judge(signed(kind), world.expected(), policy_of(kind), gate=world.gate())
    assert first.accepted, first.said
    changes = forms(kind)
    changed = changes[form % len(changes)](signed(kind, again).signature)
    other = Envelope(order=signed(kind).order, signature=wrapped(changed, width, newline=newline))
    known = judge(other, world.expected(), policy_of(kind), gate=world.gate())
    assert known.accepted, "the mathematics hold: it is the same order, by the same key"
    assert (known.digest, order_digest(other)) == (first.digest, first.digest)
    spent = judge(other, world.expected(spent=(first.nonce,)), policy_of(kind), gate=world.gate())
    assert (spent.accepted, spent.rule, spent.digest) == (False, "nonce-spent", first.digest)


def test_rsa_without_its_leading_zeros_is_the_same_order() -> None:
    for at in range(3000):
        text = bytes_to_sign(world.order(nonce=f"{at:032x}"))
        signature = world.sign(text, world.private("carol", "ssh-rsa"))
        reader = Reader(unarmor(signature))
        reader.take(6), reader.uint32()
        blob, _, _, _ = (reader.string() for _ in range(4))
        inner = Reader(reader.string())
        algorithm, raw = inner.string(), inner.string()
        if raw[0] == 0:
            break
    else:
        pytest.fail("no RSA signature began with a zero")
    short = compose(blob, string(algorithm) + string(raw.lstrip(b"\x00")))
    verdicts = [
        judge(seal(text, one), world.expected(), policy_of("ssh-rsa"), gate=world.gate())
        for one in (signature, short)
    ]
    assert [one.accepted for one in verdicts] == [True, True]
    assert len({one.digest for one in verdicts}) == 1


@pytest.mark.parametrize("kind", ["sk-ssh-ed25519", "sk-ecdsa"])
def test_another_touch_of_a_hardware_key_is_the_same_order(kind: str) -> None:
    token = world.HardwareKey(curve=kind == "sk-ecdsa")
    people = (Person(name="carol", roles=("sre",), keys=(token.line,)),)
    text = bytes_to_sign(world.order())
    verdicts = [
        judge(
            seal(text, token.sign(text, counter=counter, flags=flags)),
            world.expected(),
            world.policy(people=people, may={"approve": ("sre",)}),
            gate=world.gate(),
        )
        for counter, flags in ((7, 0x01), (8, 0x01), (9, 0x05))
    ]
    assert [one.accepted for one in verdicts] == [True, True, True]
    assert len({one.digest for one in verdicts}) == 1


def test_json_around_an_envelope_is_no_part_of_the_order() -> None:
    one = signed("ssh-ed25519")
    plain = {"order": one.order, "signature": one.signature}
    texts = [
        json.dumps(plain),
        json.dumps(plain, indent=3),
        json.dumps(dict(reversed(plain.items()))),
        json.dumps(plain).replace("approve", "\\u0061pprove"),
    ]
    assert {order_digest(open_envelope(json.loads(text))) for text in texts} == {order_digest(one)}


def test_an_order_of_other_bytes_is_another_order() -> None:
    digests = {
        order_digest(world.envelope(world.order(**change), by="carol"))
        for change in ({}, {"nonce": "f" * 32}, {"comment": "other"}, {"person": ""})
    }
    assert len(digests) == 4


def test_whoever_else_signs_the_same_bytes_did_not_give_the_order_of_a_warrant() -> None:
    order = world.order(verb="start", target="fleet/db", subject="", shown=world.PLAN, person="")
    text = bytes_to_sign(order)
    by_alice, by_dora = (
        seal(text, world.sign(text, world.private(name))) for name in ("alice", "dora")
    )
    given_order = judge(
        by_alice,
        world.expected(verbs=("start",), target="fleet/db", subjects={}),
        policy_of("ssh-ed25519"),
    )
    assert given_order.accepted, given_order.said
    docket = Docket("db", Papers({}, {}), {}, 1)
    docket.accepted[given_order.digest] = Accepted(given_order, 1)
    acts = Acts(docket)
    rewrapped = by_alice.model_copy(update={"signature": wrapped(by_alice.signature, 64)})
    assert acts._missing(Warrant(start=by_alice)) is None
    assert acts._missing(Warrant(start=rewrapped)) is None
    assert acts._missing(Warrant(start=by_dora)) is not None
