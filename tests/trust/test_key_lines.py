"""A key stands in a policy exactly when it may sign: documents and signatures read key lines alike."""

from __future__ import annotations

import base64
import random
import string as letters

import pytest
from pydantic import ValidationError

from kedge.model.errors import OrderError
from kedge.model.governance import Revoked
from kedge.model.keyline import key_material
from kedge.model.policy import Person
from kedge.trust.keys import parse_public_key
from kedge.trust.wire import mpint, string
from tests.trust import world

MODULUS = (1 << 3100) + 1
GOOD = world.public("carol")
POINT = b"\x04" + b"\x01" * 64
SK_ED, SK_EC = "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"


def line(kind: str, *fields: bytes, comment: str = "x") -> str:
    blob = b"".join((string(kind.encode()), *fields))
    return f"{kind} {base64.b64encode(blob).decode()} {comment}"


def spelled_otherwise(text: str) -> str:
    """The same bytes, by a base64 text that has a bit set behind their end."""
    kind, encoded, *rest = text.split()
    body = encoded.rstrip("=")
    assert body != encoded
    alphabet = letters.ascii_uppercase + letters.ascii_lowercase + letters.digits + "+/"
    last = alphabet[alphabet.index(body[-1]) + 1]
    return " ".join((kind, body[:-1] + last + encoded[len(body) :], *rest))


UNUSABLE: list[tuple[str, str, str]] = [
    ("a hardware key that a web page asked for", line(SK_ED, string(bytes(32)), string(b"https://evil.example")), "not made for SSH"),
    ("the same on a curve", world.HardwareKey(curve=True, application=b"webauthn").line, "not made for SSH"),
    ("a point that is on no curve", line("ecdsa-sha2-nistp256", string(b"nistp256"), string(POINT)), "not one of nistp256"),
    ("the same as a hardware key", line(SK_EC, string(b"nistp256"), string(POINT), string(b"ssh:")), "not one of nistp256"),
    ("a point of another curve", line("ecdsa-sha2-nistp384", string(b"nistp384"), string(b"\x04" + b"\x02" * 96)), "not one of nistp384"),
    ("an RSA key that takes minutes", line("ssh-rsa", mpint(65537), mpint((1 << 16_400) + 1)), "more than 16384"),
    ("an RSA key that signs nothing", line("ssh-rsa", mpint(1), mpint(MODULUS)), "exponent"),
    ("an RSA key with an even exponent", line("ssh-rsa", mpint(4), mpint(MODULUS)), "exponent"),
    ("an RSA key with zeros before it", line("ssh-rsa", mpint(65537), string(b"\0\0" + MODULUS.to_bytes(400, "big"))), "shortest form"),
    ("an RSA key below zero", line("ssh-rsa", mpint(65537), string(b"\xff" * 400)), "shortest form"),
    ("another spelling of its base64", spelled_otherwise(line(SK_ED, string(bytes(32)), string(b"ssh:"))), "canonical"),
    ("a tab in its comment", f"{GOOD}\tof\tcarol", "characters"),
    ("a comment without end", f"{GOOD} {'x' * 600}", "too long"),
    ("a space that is none", GOOD.replace(" ", "\u00a0", 1), "characters"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "said"), [row[1:] for row in UNUSABLE], ids=[row[0] for row in UNUSABLE]
)
def test_a_key_that_could_sign_nothing_stands_in_no_policy(key: str, said: str) -> None:
    with pytest.raises(OrderError):
        parse_public_key(key)
    with pytest.raises(ValidationError, match=said):
        Person(name="carol", roles=("sre",), keys=(key,))


SOUND = (
    GOOD,
    world.public("carol", "ssh-rsa"),
    *(world.public("carol", f"ecdsa-sha2-nistp{size}") for size in (256, 384, 521)),
    world.HardwareKey(curve=True).line,
    world.HardwareKey(curve=False, application=b"ssh:work").line,
)


def may_stand(key: str) -> bool:
    try:
        key_material(key)
    except ValueError:
        return False
    return True


def may_sign(key: str) -> bool:
    try:
        parse_public_key(key)
    except OrderError:
        return False
    return True


@pytest.mark.parametrize("sound", SOUND, ids=[key.split()[0] for key in SOUND])
def test_a_damaged_key_line_is_read_alike_by_documents_and_by_signatures(sound: str) -> None:
    assert may_stand(sound)
    assert may_sign(sound)
    chance = random.Random(sound.split(maxsplit=1)[0])
    for _ in range(300):
        kind, encoded, *comment = sound.split()
        if chance.random() < 0.7:
            blob = bytearray(base64.b64decode(encoded))
            at = chance.randrange(len(blob))
            how = chance.randrange(3)
            if how == 0:
                blob[at] ^= 1 << chance.randrange(8)
            elif how == 1:
                del blob[at]
            else:
                blob[at:at] = bytes([chance.choice((0, 4, 255))])
            damaged = " ".join((kind, base64.b64encode(bytes(blob)).decode(), *comment))
        else:
            at = chance.randrange(len(sound))
            damaged = sound[:at] + chance.choice(" \t=A\u00a0\x00,-") + sound[at + 1 :]
        assert may_stand(damaged) is may_sign(damaged), damaged


def test_a_modulus_that_was_revoked_does_not_come_back_with_another_exponent() -> None:
    gone = line("ssh-rsa", mpint(65537), mpint(MODULUS))
    again = line("ssh-rsa", mpint(3), mpint(MODULUS))
    assert Revoked(keys=(gone,)).has_line(again)
    people = tuple(
        Person(name="carol", roles=("sre",), keys=(again,)) if one.name == "carol" else one
        for one in world.policy().people
    )
    with pytest.raises(ValidationError, match="was revoked"):
        world.policy(people=people, revoked=Revoked(keys=(gone,)))
