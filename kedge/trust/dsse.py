"""DSSE v1 envelopes (secure-systems-lab/dsse: protocol.md, envelope.md): reading, verifying, and the bytes to sign.

An envelope carries a payload, its type, and signatures over both (the pre-authentication encoding, :func:`pae`).
Nothing of the payload is believed, or even parsed, before a signature by a known key was found good. The rules:

- strict JSON (:mod:`kedge.trust.strict_json`) of at most :data:`MOST_BYTES`, with ``payload``, ``payloadType``,
  ``signatures`` and nothing else; at most :data:`MOST_SIGNATURES` of them, each ``sig`` and perhaps ``keyid``;
- base64 in the standard or the URL-safe alphabet, padded, in its one canonical form;
- ``keyid`` is not under the signature, so it is read and never believed: every signature is tried with every key;
- a key counts once, whatever number of signatures it made and however it is written: *distinct key material*.

An envelope names no algorithm; the key decides: Ed25519 as in RFC 8032; ECDSA in DER with the hash of the curve's size, or
SHA-256 as cosign does on every curve; RSA as PSS or PKCS#1 v1.5 with SHA-256 or SHA-512.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kedge.model.base import Json
from kedge.model.errors import OrderError
from kedge.trust.keys import PublicKey, Verifier
from kedge.trust.refusal import quoted
from kedge.trust.strict_json import read_json
from kedge.trust.wire import Reader, WireError

MOST_BYTES = 1 << 20
MOST_SIGNATURES = 8
MOST_SIGNATURE_BYTES = 4096

_EC_HASHES: dict[str, tuple[HashAlgorithm, ...]] = {
    "secp256r1": (SHA256(),),
    "secp384r1": (SHA384(), SHA256()),
    "secp521r1": (SHA512(), SHA256()),
}
_RSA_HASHES: tuple[HashAlgorithm, ...] = (SHA256(), SHA512())
_FIELDS = {"payload", "payloadType", "signatures"}


class EnvelopeError(OrderError):
    """The bytes are no DSSE envelope; the message is a clause behind "the envelope"."""

    type = "EnvelopeError"


@dataclass(frozen=True)
class Dsse:
    """An envelope, taken apart. Nothing of it is believed before :func:`signers` named a key."""

    payload_type: str
    payload: bytes
    signatures: tuple[bytes, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is really signed (protocol.md, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_envelope(content: bytes) -> Dsse:
    """The envelope in a file; raises :class:`EnvelopeError`."""
    try:
        return take_apart(read_json(content, most_bytes=MOST_BYTES))
    except ValueError as error:
        raise EnvelopeError(str(error)) from error


def take_apart(value: Json) -> Dsse:
    """The envelope in a JSON value; raises :class:`EnvelopeError`."""
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise EnvelopeError(f"must have {', '.join(sorted(_FIELDS))} and nothing else")
    payload_type, listed = value["payloadType"], value["signatures"]
    if not isinstance(payload_type, str) or not 0 < len(payload_type) <= 200:
        raise EnvelopeError("has no payloadType of 1 to 200 characters")
    if not payload_type.isascii() or not payload_type.isprintable():
        raise EnvelopeError("has a payloadType that is not plain text")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_SIGNATURES:
        raise EnvelopeError(f"must have 1 to {MOST_SIGNATURES} signatures")
    signatures = tuple(_signature(one) for one in listed)
    return Dsse(payload_type, _base64(value["payload"], "payload", MOST_BYTES), signatures)


def _signature(value: Json) -> bytes:
    if not isinstance(value, dict) or "sig" not in value or set(value) - {"sig", "keyid"}:
        raise EnvelopeError("has a signature that is not {sig, keyid}")
    keyid = value.get("keyid")
    if keyid is not None and (not isinstance(keyid, str) or len(keyid) > 1024):
        raise EnvelopeError("has a keyid that is not text of at most 1024 characters")
    found = _base64(value["sig"], "sig", MOST_SIGNATURE_BYTES)
    if not found:
        raise EnvelopeError("has an empty signature")
    return found


def _base64(value: Json, field: str, most: int) -> bytes:
    """The bytes of a text in one of the two alphabets (RFC 4648, sections 4 and 5), not a mixture."""
    if not isinstance(value, str) or len(value) > (most + 2) // 3 * 4:
        raise EnvelopeError(f"has a {field} that is not base64 of at most {most} bytes")
    urlsafe = "-" in value or "_" in value
    try:
        given = value.encode("ascii")
        found = base64.b64decode(given, altchars=b"-_" if urlsafe else None, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise EnvelopeError(f"has a {field} that is not base64") from error
    again = base64.urlsafe_b64encode(found) if urlsafe else base64.b64encode(found)
    if again != given:
        raise EnvelopeError(f"has a {field} whose base64 is not in its one canonical form")
    return found


def signers(envelope: Dsse, keys: Iterable[PublicKey]) -> tuple[PublicKey, ...]:
    """Those of the keys that signed this payload under this type; each material once, in the order of ``keys``.

    Hardware keys sign something else (PROTOCOL.u2f) and are passed over.
    """
    content = pae(envelope.payload_type, envelope.payload)
    found: dict[str, PublicKey] = {}
    for key in keys:
        if key.material in found or key.application is not None:
            continue
        if any(_holds(key.verifier, signature, content) for signature in envelope.signatures):
            found[key.material] = key
    return tuple(found.values())


def _holds(verifier: Verifier, signature: bytes, content: bytes) -> bool:
    # An RSA signature is as long as its key: leading zeros left out would be a second form of it.
    if isinstance(verifier, RSAPublicKey) and len(signature) != (verifier.key_size + 7) // 8:
        return False
    check: Any = verifier.verify
    for how in _ways(verifier):
        with contextlib.suppress(InvalidSignature, ValueError):
            check(signature, content, *how)
            return True
    return False


def _ways(verifier: Verifier) -> tuple[tuple[object, ...], ...]:
    """What ``verify`` takes behind signature and content, for each way in which such a key signs envelopes."""
    if isinstance(verifier, Ed25519PublicKey):
        return ((),)
    if isinstance(verifier, EllipticCurvePublicKey):
        return tuple((ECDSA(one),) for one in _EC_HASHES[verifier.curve.name])
    return tuple(
        (padding, one) for one in _RSA_HASHES for padding in (PSS(MGF1(one), PSS.AUTO), PKCS1v15())
    )


def raw_signature(wire: bytes) -> bytes:
    """The signature as envelopes carry it, from the wire form that an SSH key or agent made (RFC 4253, 5656, 8332).

    Raises ``OrderError`` for one that no envelope can carry (hardware keys, SHA-1).
    """
    try:
        reader = Reader(wire)
        algorithm, blob = reader.string().decode("ascii"), reader.string()
        reader.end()
        if algorithm in {"ssh-ed25519", "rsa-sha2-256", "rsa-sha2-512"}:
            return blob
        if algorithm.startswith("ecdsa-sha2-"):
            numbers = Reader(blob)
            pair = numbers.positive(), numbers.positive()
            numbers.end()
            return encode_dss_signature(*pair)
    except (WireError, UnicodeDecodeError) as error:
        raise OrderError(f"the key's signature cannot be read: {error}") from error
    raise OrderError(
        f"a signature of kind {quoted(algorithm)} cannot stand in an envelope",
        next_step="sign with an Ed25519, ECDSA or RSA key; hardware keys sign orders and policies",
    )


def compose(payload_type: str, payload: bytes, signatures: Iterable[tuple[str, bytes]]) -> bytes:
    """The envelope as the text of a file: signatures with their key ids, in the standard alphabet."""
    value = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": keyid, "sig": base64.b64encode(signature).decode()}
            for keyid, signature in signatures
        ],
    }
    return json.dumps(value, indent=1).encode() + b"\n"
