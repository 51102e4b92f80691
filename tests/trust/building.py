"""Builders with real keys of every kind, what they say, and the envelopes around it."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from kedge.model.provenance import Builder, ProvenanceRules
from kedge.model.trusted import Attestation
from kedge.trust.dsse import pae
from kedge.trust.statement import PAYLOAD_TYPE

NOW = "2025-01-31T12:00:00Z"
SUBJECT = "5" * 64
OTHER = "6" * 64
SOURCE = "git+https://git.example.org/db/db@refs/tags/v1.1"
BUILD_TYPE = "https://slsa.example.org/make/v1"
Private = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def builder_id(name: str) -> str:
    return f"https://{name}.example.org/builder"


def private(name: str, kind: str = "ed25519") -> Private:
    """One key for each name and kind, for as long as the tests run."""
    return _private(name, kind)


@lru_cache(maxsize=64)
def _private(name: str, kind: str) -> Private:
    assert name
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:] or 3072))
    curve = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind]
    return ec.generate_private_key(curve)


def openssh(key: Private) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def pem(key: Private) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def sign(key: Private, content: bytes, how: str = "") -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(content)
    hashes = {"sha256": SHA256(), "sha384": SHA384(), "sha512": SHA512()}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        own = {256: "sha256", 384: "sha384", 521: "sha512"}[key.curve.key_size]
        return key.sign(content, ec.ECDSA(hashes[how or own]))
    padding, _, name = (how or "pss-sha256").partition("-")
    if padding == "pss":
        return key.sign(content, PSS(MGF1(hashes[name]), 32), hashes[name])
    return key.sign(content, PKCS1v15(), hashes[name])


def statement(name: str = "a", changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """What the builder of that name says about :data:`SUBJECT`; ``changes`` by path, ``None`` takes out."""
    made: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "db-linux-amd64.tar.gz", "digest": {"sha256": SUBJECT}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"source": {"uri": SOURCE}},
                "resolvedDependencies": [{"uri": SOURCE, "digest": {"gitCommit": "1" * 40}}],
            },
            "runDetails": {
                "builder": {"id": builder_id(name)},
                "metadata": {
                    "invocationId": "7",
                    "startedOn": "2025-01-30T10:00:00Z",
                    "finishedOn": "2025-01-30T10:05:00.123456789Z",
                },
            },
        },
    }
    for path, value in changes.items():
        put(made, path, value)
    return made


def put(made: dict[str, Any], path: str, value: Any) -> None:
    """Sets what stands at a path such as ``predicate/runDetails/builder/id``; ``None`` takes it out."""
    *way, last = path.split("/")
    place = made
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = copy.deepcopy(value)


def wrap(
    payload: bytes,
    *keys: Private,
    payload_type: str = PAYLOAD_TYPE,
    keyid: str | None = None,
) -> bytes:
    """An envelope around the payload, signed by each of the keys; without keyids unless one is given."""
    content = pae(payload_type, payload)
    listed: list[dict[str, str]] = []
    for key in keys:
        one = {"sig": base64.b64encode(sign(key, content)).decode()}
        listed.append(one if keyid is None else {**one, "keyid": keyid})
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": listed,
        }
    ).encode()


def envelope(
    name: str = "a",
    changes: Mapping[str, Any] = {},
    *,
    by: str = "",
    kind: str = "ed25519",
) -> bytes:
    """What the builder says, signed by it or by another."""
    return wrap(json.dumps(statement(name, changes)).encode(), private(by or name, kind))


def attested(*contents: bytes) -> tuple[Attestation, ...]:
    return tuple(
        Attestation(
            name=f"provenance-{place}.json",
            digest=hashlib.sha256(content).hexdigest(),
            content=content.decode("utf-8", "surrogateescape"),
        )
        for place, content in enumerate(contents)
    )


def builder(name: str, *kinds: str) -> Builder:
    return Builder(
        id=builder_id(name),
        keys=tuple(openssh(private(name, kind)) for kind in kinds or ("ed25519",)),
    )


def rules(**changes: Any) -> ProvenanceRules:
    fields: dict[str, Any] = {
        "builders": (builder("a"), builder("b"), builder("c")),
        "sources": ("git+https://git.example.org/db/db@refs/tags/*",),
        "build_types": (BUILD_TYPE,),
        "builders_agree": 2,
        "max_age": "90d",
    }
    return ProvenanceRules(**{**fields, **changes})
