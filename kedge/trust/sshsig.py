"""SSH signatures over orders (OpenSSH, PROTOCOL.sshsig), read strictly and checked by us.

asyncssh's ``validate_sshsig`` is not used for verification: it reads the wall clock, accepts
certificates and SHA-1 RSA, enforces the namespace only if a signers line happens to name one, and
ignores the touch flag of hardware keys. The mathematics are those of ``cryptography``.

The rules, each with the name it is refused under:

- ``signature``: the armor is the header, base64 lines of equal width (the last may be shorter), the
  footer, at most one newline behind it; inside are magic, version 1, key, namespace, an empty reserved
  field, hash, signature, and nothing after; and the mathematics hold.
- ``namespace``: exactly :data:`kedge.model.order.NAMESPACE`.
- ``algorithm``: hash sha256 or sha512; RSA only as rsa-sha2-256 or rsa-sha2-512; otherwise the
  algorithm that belongs to the key's kind.
- ``touch``, ``pin``: what the hardware key says about the person's presence.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kedge.model.order import NAMESPACE
from kedge.trust.keys import PublicKey
from kedge.trust.refusal import RefusalError
from kedge.trust.wire import Reader, WireError, string, uint32

MAGIC = b"SSHSIG"
BEGIN = "-----BEGIN SSH SIGNATURE-----"
END = "-----END SSH SIGNATURE-----"
MAX_ARMORED = 16_384
TOUCH, PIN = 0x01, 0x04

_HASHES = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}
_RSA_HASHES: dict[str, HashAlgorithm] = {"rsa-sha2-256": SHA256(), "rsa-sha2-512": SHA512()}
_EC_HASHES: dict[str, HashAlgorithm] = {
    "secp256r1": SHA256(),
    "secp384r1": SHA384(),
    "secp521r1": SHA512(),
}


@dataclass(frozen=True)
class Signature:
    """What stands in an SSHSIG; nothing of it is believed before :func:`check`.

    ``flags`` and ``counter`` are a hardware key's, zero for others.
    """

    key_blob: bytes
    namespace: str
    hash_name: str
    algorithm: str
    raw: bytes
    flags: int = 0
    counter: int = 0

    @property
    def touched(self) -> bool:
        """Whether the hardware key says that a person touched it."""
        return bool(self.flags & TOUCH)

    @property
    def pin_given(self) -> bool:
        """Whether the hardware key says that it verified its person (PIN or fingerprint)."""
        return bool(self.flags & PIN)


def armor(blob: bytes) -> str:
    """The text form, in lines of 70 as ``ssh-keygen`` writes it."""
    text = base64.b64encode(blob).decode()
    lines = [text[at : at + 70] for at in range(0, len(text), 70)]
    return "\n".join([BEGIN, *lines, END, ""])


def unarmor(text: str) -> bytes:
    """The bytes in an armored signature; raises :class:`RefusalError` (``signature``)."""
    if len(text) > MAX_ARMORED:
        raise RefusalError("signature", f"the signature is longer than {MAX_ARMORED} characters")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or lines[0] != BEGIN or lines[-1] != END:
        raise RefusalError(
            "signature",
            f"the signature does not begin with {BEGIN} and end with {END}",
            next_step="send the .sig file that ssh-keygen -Y sign wrote, unchanged and with plain newlines",
        )
    body = lines[1:-1]
    width = len(body[0])
    if any(len(line) != width for line in body[:-1]) or not 0 < len(body[-1]) <= width:
        raise RefusalError(
            "signature", "the signature's lines were broken up; send the .sig file unchanged"
        )
    joined = "".join(body)
    try:
        blob = base64.b64decode(joined.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise RefusalError(
            "signature", "the signature is not base64 between its first and last line"
        ) from error
    if base64.b64encode(blob).decode() != joined:
        raise RefusalError(
            "signature", "the signature's base64 text is not in its one canonical form"
        )
    return blob


def parse(text: str) -> Signature:
    """An armored SSHSIG, taken apart; raises :class:`RefusalError` (``signature``)."""
    try:
        return _read(Reader(unarmor(text)))
    except (WireError, UnicodeDecodeError) as error:
        raise RefusalError("signature", f"the signature cannot be read: {error}") from error


def _read(reader: Reader) -> Signature:
    if reader.take(len(MAGIC)) != MAGIC:
        raise WireError("it does not begin with SSHSIG")
    version = reader.uint32()
    if version != 1:
        raise WireError(f"it is of version {version}; only version 1 is known")
    key_blob, namespace = reader.string(), reader.string().decode()
    if reader.string():
        raise WireError("its reserved field is not empty")
    hash_name, signature = reader.string().decode("ascii"), Reader(reader.string())
    reader.end()
    algorithm, raw = signature.string().decode("ascii"), signature.string()
    hardware = algorithm.startswith("sk-")
    flags = signature.byte() if hardware else 0
    counter = signature.uint32() if hardware else 0
    signature.end()
    return Signature(key_blob, namespace, hash_name, algorithm, raw, flags, counter)


def signed_bytes(message: bytes, *, namespace: str = NAMESPACE, hash_name: str = "sha512") -> bytes:
    """What the key really signs: magic, namespace, reserved, hash name, hash of the message."""
    digest = _HASHES[hash_name](message).digest()
    return (
        MAGIC
        + string(namespace.encode())
        + string(b"")
        + string(hash_name.encode())
        + string(digest)
    )


def compose(
    key_blob: bytes, signature: bytes, *, namespace: str = NAMESPACE, hash_name: str = "sha512"
) -> str:
    """An armored SSHSIG around ``signature``, the wire form that a key or agent made over :func:`signed_bytes`."""
    return armor(
        MAGIC
        + uint32(1)
        + string(key_blob)
        + string(namespace.encode())
        + string(b"")
        + string(hash_name.encode())
        + string(signature)
    )


def check(
    signature: Signature,
    key: PublicKey,
    message: bytes,
    *,
    namespace: str = NAMESPACE,
    require_touch: bool = True,
    require_pin: bool = False,
) -> None:
    """Nothing, when ``key`` made ``signature`` over ``message`` in ``namespace``; else :class:`RefusalError`.

    ``require_touch`` and ``require_pin`` bind hardware keys only: what they claim about presence is
    under the signature, so it is judged after the signature was found good.
    """
    if signature.key_blob != key.blob:
        raise RefusalError("unknown-key", "the signature was made with another key")
    if signature.namespace != namespace:
        raise RefusalError(
            "namespace",
            f"the signature was made for the namespace {signature.namespace[:80]!r}, not for {namespace!r}",
            next_step=f"sign again with ssh-keygen -Y sign -n {namespace}",
        )
    if signature.hash_name not in _HASHES:
        raise RefusalError(
            "algorithm", f"the hash must be sha512 or sha256, not {signature.hash_name[:40]!r}"
        )  # fmt: skip
    allowed = tuple(_RSA_HASHES) if key.kind == "ssh-rsa" else (key.kind,)
    if signature.algorithm not in allowed:
        raise RefusalError(
            "algorithm",
            f"a {key.kind} key must sign with {' or '.join(allowed)}, not with {signature.algorithm[:80]!r}",
        )
    content = signed_bytes(message, namespace=namespace, hash_name=signature.hash_name)
    if not _holds(signature, key, content):
        raise RefusalError(
            "signature",
            "the signature does not fit these bytes: the order was changed after it was signed, or another was signed",
            next_step="sign exactly the bytes of the order and send both unchanged",
        )
    if key.application is not None and require_touch and not signature.touched:
        raise RefusalError(
            "touch",
            "the hardware key was not touched when it signed, and a touch is required",
            next_step="use a key that was not made with ssh-keygen -O no-touch-required",
        )
    if key.application is not None and require_pin and not signature.pin_given:
        raise RefusalError(
            "pin",
            "the hardware key did not verify its person when it signed, and that is required",
            next_step="use a key that was made with ssh-keygen -O verify-required",
        )


def _holds(signature: Signature, key: PublicKey, content: bytes) -> bool:
    """Whether the mathematics hold; hardware keys sign a hash of the content together with their flags."""
    if key.application is not None:
        content = (
            hashlib.sha256(key.application).digest()
            + bytes([signature.flags])
            + uint32(signature.counter)
            + hashlib.sha256(content).digest()
        )
    verifier = key.verifier
    try:
        if isinstance(verifier, Ed25519PublicKey):
            verifier.verify(signature.raw, content)
        elif isinstance(verifier, EllipticCurvePublicKey):
            reader = Reader(signature.raw)
            pair = encode_dss_signature(reader.positive(), reader.positive())
            reader.end()
            verifier.verify(pair, content, ECDSA(_EC_HASHES[verifier.curve.name]))
        else:
            verifier.verify(
                _padded(signature.raw, verifier.key_size),
                content,
                PKCS1v15(),
                _RSA_HASHES[signature.algorithm],
            )
    except (InvalidSignature, WireError):
        return False
    return True


def _padded(raw: bytes, bits: int) -> bytes:
    """An RSA signature at full length: RFC 8332, section 3, has it without padding, OpenSSH writes it with."""
    length = (bits + 7) // 8
    return raw if len(raw) >= length or raw[:1] == b"\x00" else raw.rjust(length, b"\x00")
