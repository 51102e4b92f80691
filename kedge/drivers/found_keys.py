"""SSH keys that a person has already: in an agent, or in the usual files. Nothing is signed here, nothing asked."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from pathlib import Path

import asyncssh
from asyncssh.agent import SSHAgentKeyPair

from kedge.drivers.files import read_key_line, write_atomic
from kedge.drivers.owners import make_folder
from kedge.model.base import Frozen
from kedge.model.errors import OrderError
from kedge.trust.keys import PublicKey, parse_public_key

USUAL = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
"""Files of ``~/.ssh``, in the order in which they are looked for."""
AGENT_SECONDS = 5.0
_MAX_KEY = 65_536


class FoundKey(Frozen):
    """A key that may sign orders. ``file`` is its private file; None: an agent holds it.

    ``locked``: its file has a passphrase.
    """

    line: str
    fingerprint: str
    comment: str = ""
    file: Path | None = None
    hardware: bool = False
    locked: bool = False

    @property
    def option(self) -> tuple[str, str]:
        """How the command line names it. A hardware key signs by way of an agent, wherever its handle lies."""
        in_agent = self.file is None or self.hardware
        return ("--agent", self.fingerprint) if in_agent else ("--key", str(self.file))


async def held_by_agent(agent: str | None = None) -> tuple[FoundKey, ...]:
    """The keys of the ssh-agent that may sign orders; none where there is no agent."""
    if not (agent or os.environ.get("SSH_AUTH_SOCK")):
        return ()
    try:
        async with asyncio.timeout(AGENT_SECONDS):
            async with await asyncssh.connect_agent(agent or "") as client:
                pairs = list(await client.get_keys())
    except (OSError, asyncssh.Error, ValueError, TimeoutError):
        return ()
    found: list[FoundKey] = []
    for pair in pairs:
        if not isinstance(pair, SSHAgentKeyPair) or pair.has_cert:
            continue
        kind = pair.algorithm.decode("ascii", "replace")
        comment = pair.get_comment() or ""
        known = _may_sign(f"{kind} {base64.b64encode(pair.public_data).decode()}")
        if known is not None:
            found.append(_found(known, comment))
    return tuple(found)


def in_files(folder: Path) -> tuple[FoundKey, ...]:
    """The usual key files of a folder (``~/.ssh``) that only their owner can read."""
    found = (in_file(folder / name) for name in USUAL)
    return tuple(one for one in found if one is not None)


def in_file(path: Path) -> FoundKey | None:
    """The key of a private file; its public half may have to be read from the file beside it. None: none that signs."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
            return None
        with path.open("rb") as file:
            text = file.read(_MAX_KEY)
    except OSError:
        return None
    locked = False
    try:
        line = asyncssh.import_private_key(text).export_public_key().decode().strip()
    except asyncssh.KeyImportError:
        locked = True
        try:
            line = read_key_line(path.with_name(f"{path.name}.pub"))
        except (OSError, UnicodeDecodeError):
            return None
    known = _may_sign(line)
    if known is None:
        return None
    return _found(known, known.comment).model_copy(update={"file": path, "locked": locked})


def make(path: Path, comment: str) -> FoundKey:
    """A new Ed25519 key in a file of mode 0600, its public half beside it. Raises ``OSError``."""
    make_folder(path.parent)
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    write_atomic(path, key.export_private_key(), 0o600)
    write_atomic(path.with_name(f"{path.name}.pub"), key.export_public_key(), 0o644)
    known = parse_public_key(key.export_public_key().decode().strip())
    return _found(known, comment).model_copy(update={"file": path})


def _may_sign(line: str) -> PublicKey | None:
    try:
        return parse_public_key(line)
    except OrderError:
        return None


def _found(known: PublicKey, comment: str) -> FoundKey:
    return FoundKey(
        line=known.line,
        fingerprint=known.fingerprint,
        comment=comment,
        hardware=known.application is not None,
    )
