"""SSH keys as the keys of a TUF repository, and whether two of its keys are one.

A repository's keys are people's SSH keys: Ed25519, ECDSA (NIST P-256, P-384, P-521) and RSA from 3072 bits. In metadata they
stand in TUF's own form, so that every TUF client verifies what they sign. Hardware keys (``sk-…``) sign a hash of what
they are given together with a counter, which no TUF client knows: they sign orders and policies, not metadata.

TUF counts *key ids* towards a threshold, and one key may stand under as many ids as somebody likes to write. So every
metadata that gives keys is held to :func:`distinct_keys` before anything is counted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key, SSlibKey
from tuf.api.metadata import Root, Signed, Targets

from kedge.model.errors import OrderError
from kedge.trust.keys import PublicKey, parse_blob, parse_public_key
from kedge.trust.wire import WireError, string

RSA_SCHEME = "rsa-pkcs1v15-sha512"
"""What a key file and an ssh-agent can both sign with (agents know no PSS)."""
_ECDSA_SCHEMES = {
    256: "ecdsa-sha2-nistp256",
    384: "ecdsa-sha2-nistp384",
    521: "ecdsa-sha2-nistp521",
}
_SCHEMES = {
    ("ed25519", "ed25519"),
    ("rsa", RSA_SCHEME),
    *(("ecdsa", one) for one in _ECDSA_SCHEMES.values()),
}
_P25519 = 2**255 - 19
OWNER = "x-kedge-comment"
"""The field of a key in metadata that carries the comment of the SSH key, for people only."""


class KeysError(Exception):
    """Keys in metadata that may not stand there; one sentence."""


def tuf_key(line: str) -> SSlibKey:
    """The TUF key of an OpenSSH public key line. Raises ``OrderError`` for a key that cannot sign metadata."""
    key = parse_public_key(line)
    if key.application is not None:
        raise OrderError(
            f"{key.kind} keys cannot sign release metadata: they sign no bare bytes",
            next_step="use a key that is not on hardware: ssh-keygen -t ed25519 (a passphrase or an agent guards it)",
        )
    verifier = key.verifier
    if isinstance(verifier, Ed25519PublicKey):
        scheme = "ed25519"
    elif isinstance(verifier, RSAPublicKey):
        scheme = RSA_SCHEME
    else:
        scheme = _ECDSA_SCHEMES[verifier.curve.key_size]
    made = SSlibKey.from_crypto(verifier, scheme=scheme)
    if key.comment:
        made.unrecognized_fields[OWNER] = key.comment[:200]
    return made


def ssh_key(key: Key) -> PublicKey:
    """The SSH key that a TUF key is. Raises :class:`KeysError` for one that is none, or written in another way."""
    if (key.keytype, key.scheme) not in _SCHEMES:
        raise KeysError(
            f"key {key.keyid[:12]} is of kind {key.keytype}/{key.scheme}, which is not used here"
        )
    public = key.keyval.get("public")
    if not isinstance(public, str) or len(public) > 16_384:
        raise KeysError(f"key {key.keyid[:12]} has no public part")
    try:
        kind, blob = _wire(key, public)
        return parse_blob(
            blob, kind=kind, comment=str(key.unrecognized_fields.get(OWNER, ""))[:200]
        )
    except (OrderError, WireError, ValueError, binascii.Error) as error:
        raise KeysError(f"key {key.keyid[:12]} cannot be used: {error}") from error


def _wire(key: Key, public: str) -> tuple[str, bytes]:
    if key.keytype == "ed25519":
        raw = bytes.fromhex(public)
        # One point has one encoding here: with y beyond the field's prime the same key could be written anew.
        if len(raw) != 32 or int.from_bytes(raw, "little") & (2**255 - 1) >= _P25519:
            raise ValueError("is not an Ed25519 key in its one form")
        return "ssh-ed25519", string(b"ssh-ed25519") + string(raw)
    loaded = load_pem_public_key(public.encode("ascii"))
    if key.keytype == "ecdsa" and isinstance(loaded, EllipticCurvePublicKey):
        if _ECDSA_SCHEMES.get(loaded.curve.key_size) != key.scheme:
            raise ValueError("is of another curve than its scheme")
    elif key.keytype != "rsa" or not isinstance(loaded, RSAPublicKey):
        raise ValueError(f"is not of kind {key.keytype}")
    kind, encoded, *_ = loaded.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()
    return kind.decode(), base64.b64decode(encoded)


def distinct_keys(keys: Mapping[str, Key]) -> dict[str, PublicKey]:
    """The SSH keys by key id. Raises :class:`KeysError` when two ids are one key.

    The same material is the same key, whatever its id, scheme or encoding.
    """
    found: dict[str, PublicKey] = {}
    seen: dict[str, str] = {}
    for keyid, key in keys.items():
        one = ssh_key(key)
        if one.material in seen:
            raise KeysError(
                f"the key {one.fingerprint} stands there under two ids ({seen[one.material][:12]}, {keyid[:12]}): "
                "one key would count twice towards a threshold"
            )
        seen[one.material] = keyid
        found[keyid] = one
    return found


def sound_delegations(signed: Signed) -> None:
    """Raises :class:`KeysError` unless every threshold in this metadata can only be met by as many distinct keys.

    For root metadata and for targets metadata that delegate; others give no keys.
    """
    if isinstance(signed, Root):
        distinct_keys(signed.keys)
        roles = {name: (role.keyids, role.threshold) for name, role in signed.roles.items()}
        known = signed.keys
    elif isinstance(signed, Targets) and signed.delegations is not None:
        distinct_keys(signed.delegations.keys)
        if signed.delegations.roles is None:
            raise KeysError("delegations by hash prefixes are not used here")
        roles = {
            name: (role.keyids, role.threshold) for name, role in signed.delegations.roles.items()
        }
        known = signed.delegations.keys
    else:
        return
    for name, (keyids, threshold) in roles.items():
        have = {keyid for keyid in keyids if keyid in known}
        if threshold < 1 or threshold > len(have):
            raise KeysError(f"role {name} asks for {threshold} signatures and has {len(have)} keys")


def fingerprints(keys: Iterable[Key]) -> tuple[str, ...]:
    """``SHA256:…`` of keys that were found sound, as ``ssh-keygen -l`` prints it."""
    return tuple(sorted({ssh_key(key).fingerprint for key in keys}))


def content_digest(content: bytes) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(content).hexdigest()
