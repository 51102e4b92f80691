"""Sigstore bundles (``application/vnd.dev.sigstore.bundle``), verified offline against a pinned trusted root.

The optional extra ``sigstore`` does the mathematics: the certificate's chain at the time of signing, its entry in the
certificate log, the signature, the entry in the transparency log with its proof, checkpoint and promise. Nothing is
fetched: the trusted root is a file whose digest the policy pins (``releases.provenance.trusted_root``), and a bundle brings
everything else along. What this module adds:

- the trusted root is exactly the pinned bytes;
- the certificate names one subject and one OIDC issuer, and both are handed on, to be matched with a builder's identity;
- the envelope is read by our own strict reader, and its payload is the one that was verified.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kedge.model.base import Digest, Json
from kedge.model.errors import OrderError
from kedge.model.provenance import BuilderIdentity
from kedge.trust.dsse import MOST_BYTES, take_apart
from kedge.trust.provenance import BundleVerifier, Proven
from kedge.trust.refusal import quoted
from kedge.trust.strict_json import read_json

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.verify import Verifier

MOST_ROOT_BYTES = 1 << 20
_ISSUER = "1.3.6.1.4.1.57264.1.8"
"""The OIDC issuer in a Fulcio certificate, as a UTF8String (fulcio/docs/oid-info.md)."""
_ISSUER_RAW = "1.3.6.1.4.1.57264.1.1"
"""The same as bare bytes, as older certificates have it."""


def bundle_verifier(trusted_root: bytes, pinned: Digest | None) -> BundleVerifier:
    """What verifies bundles by this trusted root.

    Raises ``OrderError``: the extra is not installed, the root is not the pinned one, or it is none.
    """
    if len(trusted_root) > MOST_ROOT_BYTES:
        raise OrderError(f"the sigstore trusted root is longer than {MOST_ROOT_BYTES} bytes")
    found = hashlib.sha256(trusted_root).hexdigest()
    if found != pinned:
        said = f"pins {pinned}" if pinned else "pins none"
        raise OrderError(
            f"the sigstore trusted root has sha256 {found}, the policy {said}",
            next_step="get the file that the policy means, or have the policy changed",
        )
    verifier = _verifier(trusted_root)
    return lambda content: _proven(verifier, content)


def _verifier(trusted_root: bytes) -> Verifier:
    try:
        # Heavy, and only here with the extra.
        from sigstore.models import TrustedRoot  # noqa: PLC0415
        from sigstore.verify import Verifier  # noqa: PLC0415
        from sigstore_models.trustroot.v1 import TrustedRoot as Written  # noqa: PLC0415
    except ImportError as error:
        raise OrderError(
            "sigstore bundles cannot be verified: kedge's extra sigstore is not installed",
            next_step="pip install 'kedge[sigstore]'",
        ) from error
    try:
        return Verifier(trusted_root=TrustedRoot(Written.from_json(trusted_root)))
    except Exception as error:
        raise OrderError(
            f"the sigstore trusted root cannot be read: {quoted(str(error), 120)}",
            next_step="write it anew: sigstore trusted roots are called trusted_root.json",
        ) from error


def _proven(verifier: Verifier, content: bytes) -> Proven:
    from sigstore.models import Bundle  # noqa: PLC0415

    identity = _Identity()
    try:
        value = read_json(content, most_bytes=MOST_BYTES)
        payload_type, payload = verifier.verify_dsse(Bundle.from_json(content), identity)
        envelope = take_apart(value["dsseEnvelope"] if isinstance(value, dict) else None)
    except OrderError as error:
        raise OrderError(f"the bundle's envelope {error.message}") from error
    except Exception as error:
        # Whatever the libraries trip over in bytes from outside: the bundle does not hold.
        raise OrderError(
            f"the bundle does not hold: {quoted(str(error) or type(error).__name__, 200)}"
        ) from error
    if (payload_type, payload) != (envelope.payload_type, envelope.payload):
        raise OrderError("the bundle's envelope can be read in two ways")
    if identity.found is None:
        raise OrderError("the bundle's certificate was not looked at")
    return Proven(envelope, identity.found, _logged(value))


class _Identity:
    """A policy of sigstore's that refuses certificates without a plain identity, and keeps what it saw."""

    def __init__(self) -> None:
        self.found: BuilderIdentity | None = None

    def verify(self, cert: Certificate) -> None:
        """Called after the chain was verified. Raises ``ValueError``."""
        try:
            self.found = BuilderIdentity(issuer=_issuer(cert), subject=_subject(cert))
        except ValidationError as error:
            raise ValueError("its certificate names no plain subject and issuer") from error


def _subject(cert: Certificate) -> str:
    from cryptography.x509 import (  # noqa: PLC0415
        RFC822Name,
        SubjectAlternativeName,
        UniformResourceIdentifier,
    )

    names = list(cert.extensions.get_extension_for_class(SubjectAlternativeName).value)
    if len(names) != 1 or not isinstance(names[0], (RFC822Name, UniformResourceIdentifier)):
        raise ValueError("its certificate does not name exactly one subject")
    return names[0].value


def _issuer(cert: Certificate) -> str:
    from cryptography.x509 import UnrecognizedExtension  # noqa: PLC0415

    said: dict[str, bytes] = {
        one.oid.dotted_string: one.value.value
        for one in cert.extensions
        if isinstance(one.value, UnrecognizedExtension)
    }
    found: set[str] = set()
    if _ISSUER in said:
        text = said[_ISSUER]
        # DER: a UTF8String (0x0c), its length in one octet or in two.
        head = 2 if text[1:2] < b"\x80" else 3
        if text[:1] != b"\x0c" or int.from_bytes(text[head - 1 : head], "big") != len(text) - head:
            raise ValueError("its certificate's issuer cannot be read")
        found.add(text[head:].decode())
    if _ISSUER_RAW in said:
        found.add(said[_ISSUER_RAW].decode())
    if len(found) != 1:
        raise ValueError("its certificate does not name exactly one issuer")
    return found.pop()


def _logged(value: Json) -> datetime | None:
    """When the transparency log promised to take the entry; None where it promised nothing that was verified."""
    entry = value["verificationMaterial"]["tlogEntries"][0] if isinstance(value, dict) else None  # type: ignore[index,call-overload]
    if not isinstance(entry, dict) or not entry.get("inclusionPromise"):
        return None
    try:
        return datetime.fromtimestamp(int(str(entry.get("integratedTime"))), UTC)
    except (ValueError, OverflowError):
        return None
