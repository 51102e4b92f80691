"""People and their keys, made anew for each show. Plain OpenSSH keys, as ``ssh-keygen -t ed25519`` makes them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Person:
    """Someone in the show: name, roles, and who that is in words."""

    name: str
    roles: tuple[str, ...]
    what: str


KEEPER = Person("rita", ("maintainer",), "who builds the releases")
OPERATOR = Person("olga", ("operator", "sre"), "an operator, who may also sign as sre")
APPROVER = Person("anna", ("sre",), "an sre")
OTHER_APPROVER = Person("ben", ("db-owner",), "the owner of the database")
ROBBED = Person("dana", ("sre",), "an sre, too")
ON_CALL = Person("omar", ("on-call",), "on call tonight")
PEOPLE = (KEEPER, OPERATOR, APPROVER, OTHER_APPROVER, ROBBED, ON_CALL)
"""Who stands in the policy."""

OTHER_KEEPER = Person("sven", (), "who builds them, too, and has no say in migrations")


def make_key(folder: Path, name: str) -> str:
    """Writes a new key pair ``name`` and ``name.pub``; returns the public line. Only its owner can read the private one."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    line = f"{public.decode('ascii')} {name}@demo"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    (folder / f"{name}.pub").write_text(line + "\n", encoding="ascii")
    return line
