"""OpenSSH public key lines as they stand in documents, and when two of them are one key.

What cannot be parsed, certificates, DSA and RSA below 3072 bits are refused: a key that may not sign does not stand
in a document either.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from typing import Annotated

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
"""The shortest RSA key that may sign."""

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
    if len(fields[2]) != size or fields[2][0] != 4:
        raise ValueError(f"its public point is not one of {curve}")
    return fields[2]


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
    if kind not in _KINDS:
        raise ValueError(
            f"begins with {kind[:40]!r}; a key line begins with one of {', '.join(_KINDS)}"
        )
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its second word is not base64") from None
    fields = _fields(blob)
    if not fields or fields[0] != kind.encode():
        raise ValueError(f"says {kind} but its base64 part says otherwise")
    if kind in _ED25519:
        if len(fields) != (3 if kind.startswith("sk-") else 2) or len(fields[1]) != 32:
            raise ValueError(f"its base64 part is not an {kind} key")
        return fields[1]
    if kind in _ECDSA:
        return _check_curve(kind, fields)
    if len(fields) != 3:
        raise ValueError("its base64 part is not an ssh-rsa key")
    modulus = fields[2].lstrip(b"\0")
    if int.from_bytes(modulus, "big").bit_length() < RSA_BITS:
        raise ValueError(f"is an RSA key of less than {RSA_BITS} bits")
    return modulus


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


def named(line: str) -> str:
    """Kind and fingerprint of a key line, for people to read."""
    kind, encoded = line.split(None, 2)[:2]
    return f"{kind} {fingerprint_of(base64.b64decode(encoded))}"


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
