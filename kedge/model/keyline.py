"""OpenSSH public key lines as they stand in documents, and when two of them are one key.

What cannot be parsed, certificates, DSA, RSA below 3072 bits, points that are on no curve and hardware keys that were not
made for SSH are refused: a key that may not sign (:mod:`kedge.trust.keys`) does not stand in a document either, so nobody
stands there who could say nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
)
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

_ED25519 = {"ssh-ed25519", "sk-ssh-ed25519@openssh.com"}
_ECDSA = {
    "ecdsa-sha2-nistp256": ("nistp256", 65),
    "ecdsa-sha2-nistp384": ("nistp384", 97),
    "ecdsa-sha2-nistp521": ("nistp521", 133),
    "sk-ecdsa-sha2-nistp256@openssh.com": ("nistp256", 65),
}
RSA_BITS = 3072
LONGEST_RSA_BITS = 16_384
"""The shortest and the longest RSA key that may sign."""
KEY_LINE = re.compile(
    r"([a-z0-9@.-]{1,64})[ \t]+([A-Za-z0-9+/]{1,8192}={0,2})(?:[ \t]+([^\x00-\x1f\x7f]{0,500}))?"
)
"""Kind, base64, comment."""
_CURVES = {"nistp256": SECP256R1(), "nistp384": SECP384R1(), "nistp521": SECP521R1()}

_KINDS = ("ssh-ed25519", "sk-ssh-ed25519@openssh.com", *_ECDSA, "ssh-rsa")


def _fields(blob: bytes) -> list[bytes]:
    """The length-prefixed strings of an SSH wire blob; ``ValueError`` unless they fill it exactly."""
    found: list[bytes] = []
    offset = 0
    while offset < len(blob):
        if offset + 4 > len(blob):
            raise ValueError("its base64 part is cut off")
        (length,) = struct.unpack_from(">I", blob, offset)
        offset += 4
        if offset + length > len(blob):
            raise ValueError("its base64 part is cut off")
        found.append(blob[offset : offset + length])
        offset += length
    return found


def _check_curve(kind: str, fields: list[bytes]) -> bytes:
    curve, size = _ECDSA[kind]
    hardware = kind.startswith("sk-")
    if len(fields) != (4 if hardware else 3) or fields[1] != curve.encode():
        raise ValueError(f"its base64 part is not an {kind} key")
    point = fields[2]
    if len(point) != size or point[0] != 4 or not _on_curve(curve, point):
        raise ValueError(f"its public point is not one of {curve}")
    return point


def _on_curve(curve: str, point: bytes) -> bool:
    try:
        EllipticCurvePublicKey.from_encoded_point(_CURVES[curve], point)
    except ValueError:
        return False
    return True


def _check_rsa(fields: list[bytes]) -> bytes:
    if len(fields) != 3:
        raise ValueError("its base64 part is not an ssh-rsa key")
    exponent, modulus = _positive(fields[1]), _positive(fields[2])
    bits = modulus.bit_length()
    if bits < RSA_BITS:
        raise ValueError(f"is an RSA key of less than {RSA_BITS} bits")
    if bits > LONGEST_RSA_BITS:
        raise ValueError(f"is an RSA key of more than {LONGEST_RSA_BITS} bits")
    if not 3 <= exponent < 1 << 33 or exponent % 2 == 0:
        raise ValueError("has an RSA exponent that is not an odd number between 3 and 2^33")
    return fields[2].lstrip(b"\0")


def _positive(number: bytes) -> int:
    """A number above zero in its shortest form: two spellings would be two keys."""
    short = number[:1] != b"\0" or number[1:2] >= b"\x80"
    if not number or number[0] & 0x80 or not short:
        raise ValueError("its base64 part has a number that is not in its shortest form")
    return int.from_bytes(number, "big")


def key_material(line: str) -> bytes:
    """The public key itself (point or modulus) of an OpenSSH public key line, without type and comment.

    Two lines with the same material are the same key. ``ValueError`` says what is wrong with the line.
    """
    parts = line.split(None, 2)
    if len(parts) < 2 or "\n" in line.strip() or "\r" in line:
        raise ValueError("must be one line: key type, base64, comment")
    kind = parts[0]
    if kind.endswith("-cert-v01@openssh.com") or "-cert-v0" in kind:
        raise ValueError("is a certificate; write the public key itself")
    if kind.startswith("-----BEGIN"):
        raise ValueError(
            "is the beginning of a key file, perhaps a private one; write the line of the .pub file"
        )
    if kind not in _KINDS:
        raise ValueError(
            f"begins with {kind[:40]!r}; a key line begins with one of {', '.join(_KINDS)}"
        )
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its second word is not base64") from None
    if base64.b64encode(blob).decode() != parts[1]:
        raise ValueError("its base64 part is not in its one canonical form")
    if KEY_LINE.fullmatch(line.strip()) is None:
        raise ValueError("has a comment that is too long, or characters that no key line has")
    return _numbers(kind, blob)


def _numbers(kind: str, blob: bytes) -> bytes:
    fields = _fields(blob)
    if not fields or fields[0] != kind.encode():
        raise ValueError(f"says {kind} but its base64 part says otherwise")
    if kind.startswith("sk-") and not fields[-1].startswith(b"ssh:"):
        # Other applications are web origins: a page could have asked for such a signature.
        raise ValueError(
            "is a hardware key that was not made for SSH (its application must begin with ssh:)"
        )
    if kind in _ED25519:
        if len(fields) != (3 if kind.startswith("sk-") else 2) or len(fields[1]) != 32:
            raise ValueError(f"its base64 part is not an {kind} key")
        return fields[1]
    return _check_curve(kind, fields) if kind in _ECDSA else _check_rsa(fields)


def _key_line(line: str) -> str:
    try:
        key_material(line)
    except ValueError as error:
        raise PydanticCustomError(
            "kedge_key", "{said}", {"said": f"not usable: {error}"}
        ) from error
    return line


PublicKey = Annotated[
    str,
    Field(max_length=4096, description="an OpenSSH public key line: type, base64, comment"),
    AfterValidator(_key_line),
]


def _wire(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def fingerprint_of(blob: bytes) -> str:
    """``SHA256:...`` of a key's wire form, as ``ssh-keygen -l`` prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def own_fingerprint(line: str) -> str:
    """The fingerprint of the key of a sound line, as ``ssh-keygen -l`` prints it."""
    return fingerprint_of(base64.b64decode(line.split(None, 2)[1]))


def named(line: str) -> str:
    """Kind and fingerprint of a key line, for people to read."""
    return f"{line.split(None, 1)[0]} {own_fingerprint(line)}"


def fingerprints(line: str) -> frozenset[str]:
    """The fingerprints of a key line that is sound: its own, and those the same numbers have as another kind of key.

    So a key that was revoked by its fingerprint does not come back as a hardware key, or the other way round.
    """
    kind, encoded = line.split(None, 2)[:2]
    blob = base64.b64decode(encoded)
    found = {fingerprint_of(blob)}
    material = key_material(line)
    if kind in _ED25519:
        found.add(fingerprint_of(_wire(b"ssh-ed25519", material)))
        found.add(fingerprint_of(_wire(b"sk-ssh-ed25519@openssh.com", material, b"ssh:")))
    elif kind in _ECDSA and _ECDSA[kind][0] == "nistp256":
        found.add(fingerprint_of(_wire(b"ecdsa-sha2-nistp256", b"nistp256", material)))
        hardware = b"sk-ecdsa-sha2-nistp256@openssh.com"
        found.add(fingerprint_of(_wire(hardware, b"nistp256", material, b"ssh:")))
    return frozenset(found)
