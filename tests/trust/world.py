"""A small world for the tests of trust: people with real keys, a policy, a plan, and orders in it."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import Any

import asyncssh
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kedge.model.order import Envelope, Expected, Order
from kedge.model.plan import (
    Artifact,
    Configuration,
    DocumentRef,
    Gate,
    Plan,
    PlannedNode,
    PlannedRelease,
    PointOfNoReturn,
    ServiceTemplate,
    Wave,
    WayBack,
)
from kedge.model.policy import Person, Policy
from kedge.trust.orders import bytes_to_sign, seal
from kedge.trust.sshsig import compose, signed_bytes
from kedge.trust.wire import mpint, string, uint32

NOW = "2025-01-31T12:00:00Z"
PLAN = "a" * 64
SHOWN = "b" * 64
RUN = "upgrade/db/1"
NONCE = "0123456789abcdef0123456789abcdef"
APPLICATION = b"ssh:"


def private(name: str, kind: str = "ssh-ed25519") -> asyncssh.SSHKey:
    """One key for each name and kind, for as long as the tests run."""
    return _private(name, kind)


@lru_cache(maxsize=64)
def _private(name: str, kind: str) -> asyncssh.SSHKey:
    assert name
    if kind == "ssh-rsa":
        return asyncssh.generate_private_key(kind, key_size=3072)
    return asyncssh.generate_private_key(kind)


def public(name: str, kind: str = "ssh-ed25519") -> str:
    return private(name, kind).export_public_key().decode().strip()


def sign(
    order_bytes: bytes,
    key: asyncssh.SSHKey,
    *,
    namespace: str = "kedge-order",
    hash_name: str = "sha512",
) -> str:
    algorithm = b"rsa-sha2-512" if key.algorithm == b"ssh-rsa" else key.algorithm
    raw = key.sign(signed_bytes(order_bytes, namespace=namespace, hash_name=hash_name), algorithm)
    return compose(key.public_data, raw, namespace=namespace, hash_name=hash_name)


class HardwareKey:
    """A FIDO key as OpenSSH's PROTOCOL.u2f describes it, whose owner may forget to touch it."""

    def __init__(self, *, curve: bool, application: bytes = APPLICATION) -> None:
        self.application = application
        self.ec = ec.generate_private_key(ec.SECP256R1()) if curve else None
        self.ed = None if curve else ed25519.Ed25519PrivateKey.generate()

    @property
    def kind(self) -> str:
        return "sk-ecdsa-sha2-nistp256@openssh.com" if self.ec else "sk-ssh-ed25519@openssh.com"

    @property
    def blob(self) -> bytes:
        if self.ec:
            point = self.ec.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            body = string(b"nistp256") + string(point)
        else:
            assert self.ed is not None
            body = string(self.ed.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
        return string(self.kind.encode()) + body + string(self.application)

    @property
    def line(self) -> str:
        return f"{self.kind} {base64.b64encode(self.blob).decode()} token"

    def sign(
        self,
        order_bytes: bytes,
        *,
        flags: int = 0x01,
        counter: int = 7,
        namespace: str = "kedge-order",
    ) -> str:
        content = signed_bytes(order_bytes, namespace=namespace)
        message = (
            hashlib.sha256(self.application).digest()
            + bytes([flags])
            + uint32(counter)
            + hashlib.sha256(content).digest()
        )
        if self.ec:
            r, s = decode_dss_signature(self.ec.sign(message, ec.ECDSA(SHA256())))
            raw = mpint(r) + mpint(s)
        else:
            assert self.ed is not None
            raw = self.ed.sign(message)
        signature = string(self.kind.encode()) + string(raw) + bytes([flags]) + uint32(counter)
        return compose(self.blob, signature, namespace=namespace)


def policy(**changes: Any) -> Policy:
    fields: dict[str, Any] = {
        "name": "prod",
        "environment": "prod",
        "people": (
            Person(name="alice", roles=("operator", "sre"), keys=(public("alice"),)),
            Person(name="bob", roles=("db-owner",), keys=(public("bob"),)),
            Person(name="carol", roles=("sre",), keys=(public("carol"),)),
            Person(name="dora", roles=("on-call",), keys=(public("dora"),)),
        ),
        "may": {
            "start": ("operator",),
            "approve": ("sre", "db-owner"),
            "reject": ("sre", "db-owner"),
            "pause": ("sre", "on-call"),
            "resume": ("sre",),
            "abort": ("sre", "on-call"),
            "decide": ("sre", "on-call"),
            "rollback": ("on-call",),
        },
        "max_lifetime": 3600.0,
        "clock_skew": 30.0,
    }
    return Policy(**{**fields, **changes})


def gate(**changes: Any) -> Gate:
    fields: dict[str, Any] = {
        "name": "ship-it",
        "threshold": 2,
        "roles": ("sre", "db-owner"),
        "expires": 3600.0,
    }
    return Gate(**{**fields, **changes})


def expected(**changes: Any) -> Expected:
    fields: dict[str, Any] = {
        "verbs": ("approve", "reject"),
        "target": RUN,
        "plan": PLAN,
        "subjects": {"ship-it": SHOWN},
        "requester": "alice",
        "now": NOW,
    }
    return Expected(**{**fields, **changes})


def order(**changes: Any) -> Order:
    fields: dict[str, Any] = {
        "verb": "approve",
        "target": RUN,
        "plan": PLAN,
        "subject": "ship-it",
        "shown": SHOWN,
        "person": "carol",
        "comment": "looked at it",
        "issued": "2025-01-31T11:59:00Z",
        "expires": "2025-01-31T12:30:00Z",
        "nonce": NONCE,
    }
    return Order(**{**fields, **changes})


def envelope(one: Order | None = None, *, by: str | None = None, **how: str) -> Envelope:
    """The order, signed by its person (or by another) with the key of that name."""
    one = one or order()
    given = bytes_to_sign(one)
    return seal(given, sign(given, private(by or one.person), **how))


def plan(**changes: Any) -> Plan:
    """Four nodes in three waves: canary, then a gated wave, then one behind the point of no return."""
    release = PlannedRelease(
        component="db",
        version="1.0",
        reports="1.0",
        document="c" * 64,
        artifacts=(Artifact(platform="linux", digest="d" * 64, length=1, source="x"),),
        configuration=Configuration(service=ServiceTemplate(argv=("db",))),
    )
    nodes = tuple(
        PlannedNode(
            name=f"n{at}", address="h", platform="linux", root="r", transport="sim", service="sim"
        )
        for at in range(4)
    )
    fields: dict[str, Any] = {
        "fleet": DocumentRef(name="db", digest="1" * 64),
        "environment": "prod",
        "runbook": DocumentRef(name="rb", digest="2" * 64),
        "policy": DocumentRef(name="prod", digest="3" * 64),
        "before": release,
        "after": release.model_copy(update={"version": "1.1"}),
        "nodes": nodes,
        "programs": (),
        "waves": (
            Wave(index=0, name="canary", batches=((0,),), max_unavailable=1),
            Wave(index=1, name="half", batches=((1,),), max_unavailable=1, gate="ship-it"),
            Wave(index=2, name="all", batches=((2, 3),), max_unavailable=1),
        ),
        "gates": (
            gate(),
            gate(name="no-return", threshold=1, roles=("db-owner",)),
            gate(name="data-loss", threshold=1, roles=("db-owner",)),
            gate(name="begin", threshold=1, roles=("sre",)),
        ),
        "start_gate": "begin",
        "commit": PointOfNoReturn(wave=2, gate="no-return", lost="the old format"),
        "way_back": (
            WayBack(from_wave=0, kind="switch-back"),
            WayBack(from_wave=3, kind="restore", gate="data-loss", lost="writes since then"),
        ),
        "after_commit": "restore",
    }
    return Plan(**{**fields, **changes})
