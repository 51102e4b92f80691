"""Vendors' keys as they are pinned: OpenPGP certificates, minisign public keys, SSH public keys or allowed signers.

A pin is one holder. OpenPGP holders have several keys (a primary key and subkeys); where any of them stands in another
pin too, under whatever format, both are the same holder, and the pins are refused: *distinct key material*.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import minisign
import pysequoia
from pysequoia.packet import Packet, PacketPile, SignatureType, Tag

from kedge.model.errors import OrderError
from kedge.trust.keys import PublicKey, parse_public_key
from kedge.trust.refusal import quoted

MOST_PINS = 32
MOST_PIN_BYTES = 1 << 20
SSH_NAMESPACE = "file"
"""The namespace of signatures over files, as ``ssh-keygen(1)`` proposes it."""

_ALLOWED = re.compile(
    r'(?P<who>[^\s"]+)[ \t]+(?:(?P<options>[a-zA-Z-]+(?:="[^"]*")?(?:,[a-zA-Z-]+(?:="[^"]*")?)*)[ \t]+)?'
    r"(?P<key>(?:ssh|ecdsa|sk)-\S+[ \t]+\S+.*)"
)
_PGP = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----.*?-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_OPTION = re.compile(r'([a-zA-Z-]+)(?:="([^"]*)")?')
_SSH_TIME = re.compile(r"([0-9]{8})([0-9]{4}(?:[0-9]{2})?)?Z?")


@dataclass(frozen=True)
class OpenPgpKey:
    """A primary key or subkey: when it runs out, and whether the certificate takes it back."""

    fingerprint: str
    expires: datetime | None
    revoked: bool


@dataclass(frozen=True)
class Pin:
    """One holder. Exactly one of ``cert`` (with its ``keys``), ``minisign`` and ``ssh`` is there.

    ``fingerprint`` is what people compare: of an OpenPGP primary key in hexadecimal, ``SHA256:…`` of an SSH key, the key
    id of a minisign key. The last two of ``namespaces``, ``after`` and ``before`` bound an SSH key as allowed signers do.
    """

    kind: Literal["openpgp", "minisign", "ssh"]
    file: str
    fingerprint: str
    materials: frozenset[str]
    cert: pysequoia.Cert | None = None
    keys: tuple[OpenPgpKey, ...] = ()
    minisign: minisign.PublicKey | None = None
    ssh: PublicKey | None = None
    namespaces: tuple[str, ...] = (SSH_NAMESPACE,)
    after: datetime | None = None
    before: datetime | None = None


def read_pins(files: Mapping[str, bytes]) -> tuple[Pin, ...]:
    """The pins in some files. Raises ``OrderError``: a file that is no public key, one key in two pins, none at all."""
    pins = tuple(pin for name, content in files.items() for pin in _in_file(name, content))
    if not pins:
        raise OrderError("no vendor's key is pinned", next_step="--pin FILE names a public key")
    if len(pins) > MOST_PINS:
        raise OrderError(f"{len(pins)} keys are pinned; {MOST_PINS} are the most")
    seen: dict[str, Pin] = {}
    for pin in pins:
        for material in pin.materials:
            if material in seen:
                raise OrderError(
                    f"{pin.file} and {seen[material].file} hold the same key: one holder cannot count twice",
                    next_step="name each key once",
                )
        seen.update(dict.fromkeys(pin.materials, pin))
    return pins


def _in_file(name: str, content: bytes) -> list[Pin]:
    if len(content) > MOST_PIN_BYTES:
        raise OrderError(f"{name} is longer than {MOST_PIN_BYTES} bytes, which no public key is")
    if b"PRIVATE KEY" in content or b"secret key" in content.partition(b"\n")[0]:
        raise OrderError(f"{name} holds a private key", next_step="pin the public key")
    try:
        if content.startswith(b"untrusted comment:"):
            return [_minisign(name, content)]
        if content[:1] >= b"\x80" or b"-----BEGIN PGP PUBLIC KEY BLOCK-----" in content:
            return _openpgp(name, content)
        return _ssh(name, content.decode())
    except (OrderError, minisign.Error, ValueError, RuntimeError, OSError) as error:
        said = error.message if isinstance(error, OrderError) else str(error).partition("\n")[0]
        raise OrderError(
            f"{name} cannot be read as a vendor's public key: {said}",
            next_step="an OpenPGP certificate, a minisign public key, an SSH public key or allowed signers",
        ) from error


def _minisign(name: str, content: bytes) -> Pin:
    if len(content.splitlines()) != 2:
        raise ValueError("a minisign public key is two lines")
    key = minisign.PublicKey.from_bytes(content)
    # The library keeps them private; the file has them in this order: algorithm, key id, key.
    numbers = key._keynum_pk  # noqa: SLF001
    return Pin(
        kind="minisign",
        file=name,
        fingerprint=minisign_id(numbers.key_id),
        materials=frozenset({_ed25519(numbers.public_key)}),
        minisign=key,
    )


def minisign_id(key_id: bytes) -> str:
    """A minisign key id as its tool prints it: as a little-endian number."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def _ed25519(raw: bytes) -> str:
    return hashlib.sha256(b"ed25519" + raw).hexdigest()


def _ssh(name: str, text: str) -> list[Pin]:
    pins: list[Pin] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        pins.append(_ssh_line(name, stripped))
    if not pins:
        raise ValueError("there is no key in it")
    return pins


def _ssh_line(name: str, line: str) -> Pin:
    if line.startswith(("ssh-", "ecdsa-", "sk-")):
        key, options = parse_public_key(line), ""
    else:
        found = _ALLOWED.fullmatch(line)
        if found is None:
            raise ValueError("a line is neither a public key nor one of allowed signers")
        key, options = parse_public_key(found["key"]), found["options"] or ""
    given = {option.lower(): value for option, value in _OPTION.findall(options)}
    if set(given) - {"namespaces", "valid-after", "valid-before"}:
        raise ValueError(f"the options {quoted(options)} cannot be kept")
    namespaces = tuple(given.get("namespaces", SSH_NAMESPACE).split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9@._-]+", one) for one in namespaces):
        raise ValueError(f"the namespaces {quoted(options)} are not all plain names")
    return Pin(
        kind="ssh",
        file=name,
        fingerprint=key.fingerprint,
        materials=frozenset({key.material}),
        ssh=key,
        namespaces=namespaces,
        after=_ssh_time(given["valid-after"]) if "valid-after" in given else None,
        before=_ssh_time(given["valid-before"]) if "valid-before" in given else None,
    )


def _ssh_time(text: str) -> datetime:
    """``YYYYMMDD[HHMM[SS]][Z]``; always taken as UTC, so that no machine's time zone decides."""
    found = _SSH_TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{quoted(text)} is no time of allowed signers")
    digits = found[1] + (found[2] or "").ljust(6, "0")
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _openpgp(name: str, content: bytes) -> list[Pin]:
    pins: list[Pin] = []
    # The library reads the first armored block of a file and no more.
    for block in _PGP.findall(content) or [content]:
        pins += _openpgp_block(name, block)
    return pins


def _openpgp_block(name: str, block: bytes) -> list[Pin]:
    if any(one.tag in (Tag.SecretKey, Tag.SecretSubkey) for one in PacketPile.from_bytes(block)):
        raise ValueError("it holds a private key")
    pins: list[Pin] = []
    for cert in pysequoia.Cert.split_bytes(block):
        packets = list(PacketPile.from_bytes(bytes(cert)))
        keys = [one for one in packets if one.tag in (Tag.PublicKey, Tag.PublicSubkey)]
        pins.append(
            Pin(
                kind="openpgp",
                file=name,
                fingerprint=cert.fingerprint,
                materials=frozenset(_openpgp_material(one.body) for one in keys),
                cert=cert,
                keys=_openpgp_keys(cert, packets),
            )
        )
    return pins


def _openpgp_keys(cert: pysequoia.Cert, packets: list[Packet]) -> tuple[OpenPgpKey, ...]:
    """Each key of a certificate; a subkey runs out with its newest binding, or with the primary key."""
    found: list[OpenPgpKey] = []
    for place, packet in enumerate(packets):
        if packet.tag == Tag.PublicKey:
            found.append(OpenPgpKey(cert.fingerprint, cert.expiration, cert.is_revoked))
        if packet.tag != Tag.PublicSubkey:
            continue
        behind: list[Packet] = []
        for one in packets[place + 1 :]:
            if one.tag != Tag.Signature:
                break
            behind.append(one)
        bindings = [one for one in behind if one.signature_type == SignatureType.SubkeyBinding]
        newest = max(bindings, key=_made, default=None)
        lasts = newest.key_validity_period if newest is not None else None
        created = packet.key_created
        expires = created + lasts if created is not None and lasts else None
        ends = [one for one in (expires, cert.expiration) if one is not None]
        revoked = cert.is_revoked or any(
            one.signature_type == SignatureType.SubkeyRevocation for one in behind
        )
        found.append(OpenPgpKey(str(packet.fingerprint), min(ends, default=None), revoked))
    return tuple(found)


def _made(packet: Packet) -> datetime:
    return packet.signature_created or datetime.min.replace(tzinfo=UTC) + timedelta(days=1)


def _openpgp_material(body: bytes) -> str:
    """Of a key packet (RFC 9580, 5.5.2): the numbers alone, so that another creation time is the same key."""
    version, algorithm = body[0], body[5]
    numbers = body[10:] if version == 6 else body[6:]
    if algorithm in {1, 2, 3}:
        length = (int.from_bytes(numbers[:2], "big") + 7) // 8
        return hashlib.sha256(b"rsa" + numbers[2 : 2 + length]).hexdigest()
    if algorithm == 27:
        return _ed25519(numbers[:32])
    if algorithm == 22 and numbers[-33:-32] == b"\x40":
        return _ed25519(numbers[-32:])
    return hashlib.sha256(bytes([algorithm]) + numbers).hexdigest()
