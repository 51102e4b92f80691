"""How fast orders are judged: the whole judgement, by kind of key, and what of it is the signature alone."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kedge.model.base import Frozen
from kedge.model.order import Envelope, Expected
from kedge.model.plan import Gate
from kedge.model.policy import Person, Policy
from kedge.trust.keys import parse_public_key
from kedge.trust.orders import bytes_to_sign, judge, make, seal
from kedge.trust.sshsig import check, compose, parse, signed_bytes
from kedge.trust.wire import string, uint32

KINDS = (
    "ssh-ed25519", "sk-ssh-ed25519@openssh.com", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa",
)  # fmt: skip
PEOPLE = 200
"""In the policy, of whom one signs."""
SECONDS = 1.0
PLAN, SHOWN, RUN, NOW = "a" * 64, "b" * 64, "upgrade/db/1", "2025-01-31T12:00:00Z"


class Judged(Frozen):
    """One kind of key: judgements a second, and bare verifications of the same signature a second."""

    kind: str
    judgements: float
    verifications: float


@dataclass(frozen=True)
class _Signer:
    line: str
    sign: Callable[[bytes], str]


def measure(say: Callable[[str], None]) -> tuple[Judged, ...]:
    """Every kind, on one core."""
    found = []
    for kind in KINDS:
        say(f"judges orders signed with {kind}")
        found.append(_measured(kind))
    return tuple(found)


def _measured(kind: str) -> Judged:
    signer = _token() if kind.startswith("sk-") else _file(kind)
    others = [_file("ssh-ed25519").line for _ in range(PEOPLE - 1)]
    people = [Person(name="signer", roles=("sre",), keys=(signer.line,))]
    people += [
        Person(name=f"p{number}", roles=("sre",), keys=(line,))
        for number, line in enumerate(others)
    ]
    policy = Policy(
        name="prod", environment="prod", people=tuple(people), may={"approve": ("sre",)}
    )
    order = make(
        "approve",
        RUN,
        plan=PLAN,
        person="signer",
        issued="2025-01-31T11:59:00Z",
        expires="2025-01-31T12:30:00Z",
        nonce="0" * 32,
        subject="ship-it",
        shown=SHOWN,
    )
    text = bytes_to_sign(order)
    envelope = seal(text, signer.sign(text))
    expected = Expected(
        verbs=("approve",), target=RUN, plan=PLAN, subjects={"ship-it": SHOWN}, now=NOW
    )
    gate = Gate(name="ship-it", threshold=2, roles=("sre",), expires=3600.0)
    _sound(envelope, expected, policy, gate)
    signature, key = parse(envelope.signature), parse_public_key(signer.line)
    return Judged(
        kind=kind,
        judgements=_rate(lambda: judge(envelope, expected, policy, gate=gate)),
        verifications=_rate(lambda: check(signature, key, text)),
    )


def _sound(envelope: Envelope, expected: Expected, policy: Policy, gate: Gate) -> None:
    verdict = judge(envelope, expected, policy, gate=gate)
    if not verdict.accepted:
        raise RuntimeError(f"what is measured is refused: {verdict.said}")


def _rate(work: Callable[[], object]) -> float:
    """How often a second, over at least ``SECONDS``."""
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        for _ in range(20):
            work()
        done += 20
    return done / spent


def _file(kind: str) -> _Signer:
    key = (
        asyncssh.generate_private_key(kind, key_size=3072)
        if kind == "ssh-rsa"
        else asyncssh.generate_private_key(kind)
    )
    algorithm = b"rsa-sha2-512" if kind == "ssh-rsa" else key.algorithm

    def sign(text: bytes) -> str:
        return compose(key.public_data, key.sign(signed_bytes(text), algorithm))

    return _Signer(key.export_public_key().decode().strip(), sign)


def _token() -> _Signer:
    """A hardware key made of software (OpenSSH, PROTOCOL.u2f)."""
    key, application, kind = Ed25519PrivateKey.generate(), b"ssh:", b"sk-ssh-ed25519@openssh.com"
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    blob = string(kind) + string(raw) + string(application)

    def sign(text: bytes) -> str:
        content = hashlib.sha256(signed_bytes(text)).digest()
        flags = bytes([1]) + uint32(7)
        made = key.sign(hashlib.sha256(application).digest() + flags + content)
        return compose(blob, string(kind) + string(made) + flags)

    return _Signer(f"{kind.decode()} {base64.b64encode(blob).decode()}", sign)


def report(found: tuple[Judged, ...]) -> list[str]:
    """The figures as lines of a table."""
    lines = [
        "",
        f"Orders judged on one core, by a policy of {PEOPLE} people",
        "",
        "| key | orders a second | signature alone, a second |",
        "|---|---:|---:|",
    ]
    lines += [f"| {one.kind} | {one.judgements:,.0f} | {one.verifications:,.0f} |" for one in found]
    return lines
