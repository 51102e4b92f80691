"""Signing release metadata with people's SSH keys: from a private key file, or by an ssh-agent.

TUF signs the canonical bytes of metadata themselves, so what is asked of the key is a bare signature. It cannot be
taken for anything else the key is asked for: those bytes begin with ``{``, an SSHSIG's with ``SSHSIG`` and those of a
login with the length of a session id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import asyncssh
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signature, SSlibKey

from kedge.drivers.signers import open_key, sign_bare_with_agent
from kedge.model.errors import DriverError, OrderError
from kedge.trust.tufkeys import ssh_key, tuf_key
from kedge.trust.wire import Reader, WireError


class MetadataKey(Protocol):
    """A key that signs metadata; ``key`` is its public part in TUF's form."""

    key: SSlibKey

    async def sign(self, content: bytes) -> Signature:
        """The signature over these bytes. Raises ``DriverError`` as :mod:`kedge.drivers.signers`."""
        ...


class KeyFile:
    """An OpenSSH private key in a file, unlocked once."""

    def __init__(self, path: Path, passphrase: Callable[[], str] | None = None) -> None:
        """Raises ``DriverError``: ``NotFound``, ``KeyRefused``."""
        self._private: asyncssh.SSHKey = open_key(path, passphrase)
        line = self._private.export_public_key().decode().strip()
        self.key = usable(line, path.name)

    async def sign(self, content: bytes) -> Signature:
        """See :meth:`MetadataKey.sign`."""
        kind = self._private.get_algorithm()
        algorithm = "rsa-sha2-512" if kind == "ssh-rsa" else kind
        wire = await asyncio.to_thread(self._private.sign, content, algorithm.encode())
        return _signature(self.key, wire, content)


class AgentKey:
    """A key that an ssh-agent holds, named by its public key line."""

    def __init__(self, line: str, *, agent: str | None = None) -> None:
        """Raises ``DriverError`` kind ``KeyRefused`` for a key that cannot sign metadata."""
        self.key = usable(line, "the agent's key")
        self._line, self._agent = line, agent

    async def sign(self, content: bytes) -> Signature:
        """See :meth:`MetadataKey.sign`."""
        _, wire = await sign_bare_with_agent(self._line, content, agent=self._agent)
        return _signature(self.key, wire, content)


def usable(line: str, name: str) -> SSlibKey:
    """The TUF key of a public key line. Raises ``DriverError`` kind ``KeyRefused``, naming where it comes from."""
    try:
        return tuf_key(line)
    except OrderError as error:
        raise DriverError(
            "KeyRefused", f"{name}: {error.message}", retryable=False, next_step=error.next_step
        ) from error


def _signature(key: SSlibKey, wire: bytes, content: bytes) -> Signature:
    """The TUF form of an SSH signature, verified as every client will."""
    try:
        reader = Reader(wire)
        reader.string()
        raw = reader.string()
        reader.end()
        if key.keytype == "ecdsa":
            pair = Reader(raw)
            raw = encode_dss_signature(pair.positive(), pair.positive())
            pair.end()
        elif key.keytype == "rsa":
            verifier = ssh_key(key).verifier
            # OpenSSH may leave leading zeros out; others want the full length (RFC 8332, section 3).
            raw = raw.rjust((getattr(verifier, "key_size", 0) + 7) // 8, b"\0")
        made = Signature(key.keyid, raw.hex())
        key.verify_signature(made, content)
    except (WireError, UnverifiedSignatureError) as error:
        raise DriverError(
            "KeyRefused", f"what was signed does not verify: {error}", retryable=False,
            next_step="sign with the private key file",
        ) from error  # fmt: skip
    return made
