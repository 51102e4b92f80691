"""The certificates of a home's embedded engine: who holds the client's reaches the engine, nobody else does.

``<home>/engine/tls`` (mode 0700) holds an authority that is this home's alone and what it issued, each with its key in
one file of mode 0600, so that a certificate and its key are always replaced together:

- ``authority.pem``: the authority, with its key. It signs nothing but the two below.
- ``ca.pem``: its certificate alone, for whoever verifies.
- ``server.pem``: the engine's, for the name ``SERVER_NAME``.
- ``client.pem``: the one that clients of the engine present: the command line, the worker, the web UI.

The two are renewed long before they expire. Files are written aside and renamed; the engine looks at its own again
every minute, and the worker takes a new one up (:mod:`worker.main`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kedge.drivers.files import write_atomic
from kedge.drivers.owners import make_folder
from worker import processes

SERVER_NAME = "kedge-engine"
"""The name in the engine's certificate: clients compare with it, not with an address."""
LIFE = timedelta(days=730)
"""How long a certificate is good."""
RENEW_BEFORE = timedelta(days=365)
"""One that is good for less than this is issued anew."""
AUTHORITY_LIFE = timedelta(days=7300)
_SLACK = timedelta(days=1)
"""Certificates begin so long ago: a clock may have been set back."""
_LOCK_SECONDS = 30.0


class CertificateError(Exception):
    """The certificates cannot be used; the message ends in what to do next."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the files are."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The certificate that verifies all others."""
        return self.folder / "ca.pem"

    @property
    def server(self) -> Path:
        """The engine's certificate and key."""
        return self.folder / "server.pem"

    @property
    def client(self) -> Path:
        """The clients' certificate and key."""
        return self.folder / "client.pem"

    @property
    def issuer(self) -> Path:
        """The authority's certificate and key."""
        return self.folder / "authority.pem"


def ensure(folder: Path, now: datetime | None = None) -> Certificates:
    """The certificates in a folder, made where there are none, renewed where they end soon.

    Any number of processes may call it at once. Raises ``CertificateError`` for a folder or a key that others may read,
    and for files that are no certificates.
    """
    at = now or datetime.now(UTC)
    files = Certificates(folder)
    try:
        make_folder(folder)
        _check_private(folder)
        if not _fit(files, at):
            with processes.exclusive(
                folder / ".lock", seconds=_LOCK_SECONDS, what="issuing the engine's certificates"
            ):
                _issue(files, at)
    except (OSError, processes.ProcessError) as error:
        raise CertificateError(
            f"the certificates in {folder} cannot be used: {error}; next: make room or give the right to write there"
        ) from error
    return files


def _check_private(path: Path) -> None:
    """Refuses what others may read or replace: whoever has a key is this user, as far as the engine can tell."""
    found = path.lstat()
    kind = stat.S_ISDIR if path.suffix != ".pem" else stat.S_ISREG
    if not kind(found.st_mode):
        raise _refused(path, "is not what it should be (a link, or something of another kind)")
    if found.st_uid != os.geteuid():
        raise _refused(path, f"belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o077:
        raise _refused(
            path, f"can be used by others than its owner (mode {stat.S_IMODE(found.st_mode):04o})"
        )


def _refused(path: Path, why: str) -> CertificateError:
    folder = path.parent if path.suffix == ".pem" else path
    return CertificateError(
        f"{path} {why}, so the engine's keys may be known to others; "
        f"next: `kedge down`, remove {folder}, then `kedge up`: it makes new ones, and runs stay"
    )


def _fit(files: Certificates, now: datetime) -> bool:
    """Whether all are there, belong together and are good for long enough."""
    if not all(
        path.exists() for path in (files.issuer, files.authority, files.server, files.client)
    ):
        return False
    for path in (files.issuer, files.server, files.client):
        _check_private(path)
    authority = _certificate(files.authority)
    return all(
        _issued_by(_certificate(path), authority) and _lasts(_certificate(path), now)
        for path in (files.server, files.client)
    )


def _issue(files: Certificates, now: datetime) -> None:
    """Makes what is missing or ends soon, in an order in which a kill between two files leaves all of use."""
    if _fit(files, now):
        return
    issuer = files.issuer
    if not issuer.exists() or _certificate(issuer).not_valid_after_utc < now + LIFE:
        certificate, key = _authority(now)
        _write(issuer, certificate, key)
    authority, signer = _certificate(issuer), _key(issuer)
    if not files.authority.exists() or _certificate(files.authority) != authority:
        _write(files.authority, authority, None)
    for path, name in ((files.server, SERVER_NAME), (files.client, "kedge")):
        if path.exists():
            held = _certificate(path)
            if _issued_by(held, authority) and _lasts(held, now):
                continue
        certificate, key = _leaf(name, authority, signer, now)
        _write(path, certificate, key)


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    return (
        certificate.not_valid_before_utc <= now
        and certificate.not_valid_after_utc - RENEW_BEFORE > now
    )


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _authority(now: datetime) -> tuple[x509.Certificate, PrivateKeyTypes]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kedge embedded engine")])
    builder = _builder(name, name, now, AUTHORITY_LIFE).public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    return builder.sign(key, SHA256()), key


def _leaf(
    name: str, authority: x509.Certificate, signer: PrivateKeyTypes, now: datetime
) -> tuple[x509.Certificate, PrivateKeyTypes]:
    key = generate_private_key(SECP256R1())
    # The engine is a client of its own services as well.
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if name == SERVER_NAME:
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(subject, authority.subject, now, LIFE).public_key(key.public_key())
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
    )
    return builder.sign(signer, SHA256()), key  # type: ignore[arg-type]


def _builder(
    subject: x509.Name, issuer: x509.Name, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=False, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise _refused(path, "holds no certificate") from error


def _key(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise _refused(path, "holds no key") from error


def _write(path: Path, certificate: x509.Certificate, key: PrivateKeyTypes | None) -> None:
    parts: Sequence[bytes] = (certificate.public_bytes(Encoding.PEM),)
    if key is not None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        parts = (*parts, private)
    write_atomic(path, b"".join(parts))
