"""OpenSSH public keys as they stand in a policy: which kinds may sign, and when two are the same key.

Accepted: ``ssh-ed25519``, ``ecdsa-sha2-nistp256/384/521``, ``ssh-rsa`` with at least 3072 bits, and
the two hardware kinds ``sk-ssh-ed25519@openssh.com`` and ``sk-ecdsa-sha2-nistp256@openssh.com``
(OpenSSH, PROTOCOL.u2f). DSA, certificates and short RSA keys are refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from kedge.model import keyline
from kedge.model.errors import OrderError
from kedge.model.keyline import KEY_LINE
from kedge.trust.wire import Reader, WireError

RSA_BITS = (keyline.RSA_BITS, keyline.LONGEST_RSA_BITS)
SK_ED25519 = "sk-ssh-ed25519@openssh.com"
SK_ECDSA = "sk-ecdsa-sha2-nistp256@openssh.com"
CURVES: dict[str, EllipticCurve] = {
    "nistp256": SECP256R1(),
    "nistp384": SECP384R1(),
    "nistp521": SECP521R1(),
}

Verifier = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey


@dataclass(frozen=True)
class PublicKey:
    """One public key.

    ``blob`` is its wire form and its identity in a signature. ``material`` is the sha256 over the bare
    numbers: two entries with the same material are one key, whatever kind, application or comment
    they carry. ``application`` is set for hardware keys.
    """

    kind: str
    blob: bytes
    verifier: Verifier
    material: str
    comment: str = ""
    application: bytes | None = None

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ``ssh-keygen -l`` prints it."""
        return fingerprint(self.blob)

    @property
    def line(self) -> str:
        """The OpenSSH public key line, without the comment."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"


def fingerprint(blob: bytes) -> str:
    """``SHA256:...`` of a key's wire form, as ``ssh-keygen -l`` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


@lru_cache(maxsize=4096)
def parse_public_key(line: str) -> PublicKey:
    """One OpenSSH public key line: ``kind base64 [comment]``.

    Raises ``OrderError`` when the line is anything else (options included), when the kind named
    outside differs from the one inside, or when keys of that kind or size may not sign.
    """
    matched = KEY_LINE.fullmatch(line.strip())
    if matched is None:
        raise OrderError(
            "not an OpenSSH public key line of the form 'kind base64 comment'",
            next_step="copy the line from the .pub file as it is",
        )
    kind, encoded, comment = matched[1], matched[2], matched[3] or ""
    try:
        return parse_blob(_decoded(encoded), kind=kind, comment=comment)
    except (binascii.Error, WireError) as error:
        raise OrderError(f"the {kind} key cannot be read: {error}") from error


def _decoded(encoded: str) -> bytes:
    blob = base64.b64decode(encoded, validate=True)
    if base64.b64encode(blob).decode() != encoded:
        raise WireError("the base64 text is not in its one canonical form")
    return blob


def parse_blob(blob: bytes, *, kind: str, comment: str = "") -> PublicKey:
    """The key in a wire blob that must be of ``kind``.

    Raises ``WireError`` for bytes that are not such a key, ``OrderError`` for a key that may not sign.
    """
    reader = Reader(blob)
    named = reader.string()
    if named != kind.encode():
        raise WireError(f"it says {kind} outside and {named!r} inside")
    application: bytes | None = None
    verifier: Verifier
    try:
        if kind in {"ssh-ed25519", SK_ED25519}:
            verifier, numbers = _ed25519(reader)
        elif kind == SK_ECDSA or (kind.startswith("ecdsa-sha2-") and kind[11:] in CURVES):
            verifier, numbers = _ecdsa(reader, "nistp256" if kind == SK_ECDSA else kind[11:])
        elif kind == "ssh-rsa":
            verifier, numbers = _rsa(reader)
        else:
            raise OrderError(
                f"keys of kind {kind} may not sign orders",
                next_step="use an Ed25519 key: ssh-keygen -t ed25519",
            )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WireError(str(error) or "not a key") from error
    if kind.startswith("sk-"):
        application = reader.string()
        if not application.startswith(b"ssh:"):
            # Other applications are web origins: a page could have asked for such a signature.
            raise OrderError(
                "the hardware key was not made for SSH (its application must begin with 'ssh:')"
            )
    reader.end()
    material = hashlib.sha256(numbers).hexdigest()
    return PublicKey(kind, blob, verifier, material, comment, application)


def _ed25519(reader: Reader) -> tuple[Ed25519PublicKey, bytes]:
    raw = reader.string()
    return Ed25519PublicKey.from_public_bytes(raw), b"ed25519" + raw


def _ecdsa(reader: Reader, curve: str) -> tuple[EllipticCurvePublicKey, bytes]:
    named, point = reader.string(), reader.string()
    if named != curve.encode() or point[:1] != b"\x04":
        raise WireError(f"not an uncompressed point on {curve}")
    key = EllipticCurvePublicKey.from_encoded_point(CURVES[curve], point)
    return key, named + point


def _rsa(reader: Reader) -> tuple[RSAPublicKey, bytes]:
    exponent, modulus = reader.positive(), reader.positive()
    bits = modulus.bit_length()
    if not RSA_BITS[0] <= bits <= RSA_BITS[1]:
        raise OrderError(
            f"an RSA key of {bits} bits may not sign orders; it needs {RSA_BITS[0]} to {RSA_BITS[1]}",
            next_step="make a new key: ssh-keygen -t ed25519",
        )
    if exponent < 3 or exponent >= 1 << 33 or exponent % 2 == 0:
        raise WireError("the RSA exponent is not an odd number between 3 and 2^33")
    return RSAPublicNumbers(exponent, modulus).public_key(), b"rsa" + modulus.to_bytes(
        (bits + 7) // 8, "big"
    )
