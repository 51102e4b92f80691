"""Certificates made for a test: a CA, and what it signs."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey


@dataclass
class Pair:
    """A certificate and its key in files."""

    certificate: Path
    key: Path

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    @property
    def key_pem(self) -> str:
        return self.key.read_text()


class Authority:
    """A CA of its own."""

    def __init__(self, top: Path, name: str) -> None:
        self.top = top
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pair = self._written(name, self._made(self.name, self.key, None, NOW + DAY), self.key)

    def signed(self, name: str, *names: str, days: float = 1) -> Pair:
        """A certificate for these names and addresses; with negative days it has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return self._written(name, self._made(subject, key, names, NOW + days * DAY), key)

    def _made(
        self, subject: x509.Name, key: Key, names: tuple[str, ...] | None, until: dt.datetime
    ) -> x509.Certificate:
        made = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(min(NOW, until) - DAY).not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        )  # fmt: skip
        if names:
            made = made.add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
            )
        return made.sign(self.key, hashes.SHA256())

    def _written(self, name: str, certificate: x509.Certificate, key: Key) -> Pair:
        pair = Pair(self.top / f"{name}.pem", self.top / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pair.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        return pair

    def server(self, pair: Pair, *, clients: bool = False) -> ssl.SSLContext:
        """What a server needs to show a pair, and with ``clients`` to ask for certificates of this CA."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(pair.certificate, pair.key)
        if clients:
            made.load_verify_locations(self.pair.certificate)
            made.verify_mode = ssl.CERT_REQUIRED
        return made


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
