"""Thousands of damaged envelopes: none accepted, none raises, each refusal has a sentence."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.model.order import Envelope, OrderVerdict
from kedge.model.policy import Person
from kedge.trust.orders import bytes_to_sign, judge, seal
from kedge.trust.sshsig import armor, unarmor
from tests.trust import world

TOKEN = world.HardwareKey(curve=True)
POLICY = world.policy(
    people=(
        *world.policy().people,
        Person(name="erin", roles=("sre",), keys=(world.public("erin", "ecdsa-sha2-nistp384"),)),
        Person(name="fred", roles=("sre",), keys=(world.public("fred", "ssh-rsa"),)),
        Person(name="gina", roles=("sre",), keys=(TOKEN.line,)),
    )
)


def _good(person: str) -> Envelope:
    given = bytes_to_sign(world.order(person=person))
    if person == "gina":
        return seal(given, TOKEN.sign(given))
    kind = {"erin": "ecdsa-sha2-nistp384", "fred": "ssh-rsa"}.get(person, "ssh-ed25519")
    return seal(given, world.sign(given, world.private(person, kind)))


def _judge(envelope: Envelope) -> OrderVerdict:
    return judge(envelope, world.expected(), POLICY, gate=world.gate())


def _damaged(chance: random.Random, text: str) -> str:
    raw = bytearray(text.encode())
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(raw))
        kind = chance.randrange(5)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at] = chance.randrange(256)
        elif kind == 2:
            del raw[at : at + chance.choice((1, 1, 3, 40))]
        elif kind == 3:
            raw[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 20))))
        else:
            other = chance.randrange(len(raw))
            raw[at], raw[other] = raw[other], raw[at]
        if not raw:
            break
    return raw.decode("utf-8", chance.choice(("replace", "surrogateescape", "ignore")))


@pytest.mark.parametrize("person", ["carol", "erin", "fred", "gina"])
def test_none_of_a_thousand_damaged_envelopes_is_accepted(person: str) -> None:
    chance = random.Random(f"kedge {person}")
    good = _good(person)
    assert _judge(good).accepted
    tried = 0
    rules: set[str] = set()
    while tried < 1000:
        parts: dict[str, Any] = {"order": good.order, "signature": good.signature}
        part = chance.choice(("order", "signature"))
        parts[part] = _damaged(chance, parts[part])
        # Without the newline at its end a signature is still the same signature.
        if parts["order"] == good.order and parts["signature"].rstrip(
            "\n"
        ) == good.signature.rstrip("\n"):
            continue
        tried += 1
        found = _judge(Envelope.model_construct(**parts))
        assert not found.accepted, parts
        assert found.said
        rules.add(found.rule)
    assert {"unreadable", "signature"} <= rules


@pytest.mark.parametrize("person", ["carol", "erin", "fred", "gina"])
def test_no_changed_byte_inside_the_signature_is_accepted(person: str) -> None:
    """The armor is mended, so that the change gets past base64 to the binary reader and the mathematics."""
    chance = random.Random(f"inside {person}")
    good = _good(person)
    blob = unarmor(good.signature)
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= chance.randrange(1, 256)
        # The flags of a hardware key are under its signature as well, so no byte is left out.
        found = _judge(Envelope(order=good.order, signature=armor(bytes(changed))))
        assert not found.accepted, at
    for end in range(len(blob)):
        assert not _judge(Envelope(order=good.order, signature=armor(blob[:end]))).accepted


@given(order=st.text(max_size=300), signature=st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_at_all_gets_a_verdict(order: str, signature: str) -> None:
    assert not _judge(Envelope.model_construct(order=order, signature=signature)).accepted
