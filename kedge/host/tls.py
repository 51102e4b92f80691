"""TLS of probes: whom to trust, what to show, and every refusal in words that say what to do next.

Keys and certificates never lie on a disk because of a probe: what comes from a secret goes by an anonymous file in
memory. Certificates are always verified.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from typing import Any, Dict, Iterator, Optional

from kedge.host.dial import Broken

PEM = "-----BEGIN "
LARGEST = 1 << 20
# OpenSSL's numbers for why a certificate is refused.
UNTRUSTED = (2, 18, 19, 20, 21)
WRONG_NAME = (62, 64)
NEXT = {
    9: "it is not valid yet: check this host's clock",
    10: "it has expired: renew it",
    23: "it is revoked",
}
# Parts of OpenSSL's names for errors, and what they mean for who asks.
MEANINGS = (
    ("WRONG_VERSION_NUMBER", "does not speak TLS: use a plain address, or another port"),
    ("PACKET_LENGTH_TOO_LONG", "does not speak TLS: use a plain address, or another port"),
    ("HTTP_REQUEST", "does not speak TLS: use a plain address, or another port"),
    ("RECORD_LAYER_FAILURE", "does not speak TLS: use a plain address, or another port"),
    ("CERTIFICATE_REQUIRED", "wants a client certificate: write `certificate` and `key`"),
    ("ALERT_UNKNOWN_CA", "does not trust the CA of our client certificate"),
    ("ALERT_BAD_CERTIFICATE", "refuses our client certificate, or wants one: check `certificate` and `key`"),
    ("CERTIFICATE_EXPIRED", "refuses our client certificate: it has expired"),
    ("CERTIFICATE_UNKNOWN", "refuses our client certificate: check `certificate` and `key`"),
    ("ACCESS_DENIED", "refuses our client certificate: access denied"),
    ("UNRECOGNIZED_NAME", "has no certificate for this name: check `server_name`"),
    ("NO_APPLICATION_PROTOCOL", "does not speak this protocol over TLS"),
    ("PROTOCOL_VERSION", "offers no version of TLS that this host accepts"),
    ("HANDSHAKE_FAILURE", "refuses the handshake: it may want a client certificate (`certificate`, `key`)"),
)  # fmt: skip


def context(options: Dict[str, Any], protocol: str) -> ssl.SSLContext:
    """What a connection trusts and shows. With `ca`, nothing but that is trusted; Broken for what cannot be used."""
    made = ssl.create_default_context() if options["ca"] is None else _of_ca(options["ca"])
    with contextlib.suppress(NotImplementedError):
        made.set_alpn_protocols([protocol])
    if options["certificate"] is not None:
        _show(made, options["certificate"], options["key"])
    return made


def _of_ca(ca: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # Whoever names an intermediate trusts that one.
    made.verify_flags |= getattr(ssl, "VERIFY_X509_PARTIAL_CHAIN", 0x80000)
    with _in_memory(_pem("ca", ca)) as path:
        try:
            made.load_verify_locations(cafile=path)
        except (ssl.SSLError, OSError) as error:
            raise Broken(f"`ca` has no certificate in PEM{_place(ca)}") from error
    return made


def _show(made: ssl.SSLContext, certificate: str, key: Optional[str]) -> None:
    shown = _pem("certificate", certificate)
    private = b"" if key is None else _pem("key", key)
    if b"ENCRYPTED" in shown + private:
        raise Broken(
            "the key of the client certificate is encrypted: kedge uses keys without a passphrase"
        )
    with _in_memory(shown + b"\n" + private) as path:
        try:
            made.load_cert_chain(path, password=_nothing)
        except (ssl.SSLError, OSError, ValueError) as error:
            # Without the error itself: what OpenSSL says of a key stays here.
            why = (
                "they do not belong together"
                if "MISMATCH" in str(error)
                else "they are not a pair in PEM"
            )
            raise Broken(
                f"`certificate` and `key` cannot be used: {why}{_place(certificate)}"
            ) from None


def _nothing() -> bytes:
    return b"-"


def _place(value: str) -> str:
    return "" if value.startswith(PEM) or "\n" in value else f": {value}"


def _pem(what: str, value: str) -> bytes:
    """The bytes of a file, or the text itself where it is PEM."""
    if PEM in value:
        return value.encode()
    if not value.startswith("/"):
        raise Broken(f"`{what}` is neither PEM nor the absolute path of a file")
    try:
        fd = os.open(value, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise Broken(f"`{what}` cannot be read: {value}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Broken(f"`{what}` cannot be read: {value} is not a file")
        content = os.read(fd, LARGEST + 1)
    finally:
        os.close(fd)
    if len(content) > LARGEST:
        raise Broken(f"`{what}` cannot be read: {value} has more than {LARGEST} bytes")
    return content


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path for the library that takes nothing else; what is there is on no disk."""
    fd = os.memfd_create("kedge-tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def sentence(error: OSError, where: str, name: str, *, own_ca: bool) -> str:
    """A failure of TLS in words. `own_ca`: a CA was named."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {where} is refused: {_refusal(error, name, own_ca=own_ca)}"
    reason = getattr(error, "reason", None) or ""
    for part, meaning in MEANINGS:
        if part in reason:
            return f"{where} {meaning}"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return f"{where} closed the connection during TLS: it may want a client certificate, or speak no TLS"
    return f"TLS with {where} failed: {reason.lower().replace('_', ' ') or type(error).__name__}"


def _refusal(error: ssl.SSLCertVerificationError, name: str, *, own_ca: bool) -> str:
    code, message = error.verify_code, error.verify_message
    if code in WRONG_NAME:
        return f"it is not for {name}: write the name that it is for as `server_name`"
    if code in UNTRUSTED and own_ca:
        return f"no CA that `ca` names has signed it ({message}): look who did"
    if code in UNTRUSTED:
        return f"this host does not trust its CA ({message}): name that CA with `ca`"
    return NEXT.get(code, message)
