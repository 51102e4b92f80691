"""Signing orders: with a private key file, or with what an ssh-agent holds (hardware keys too).

kedge has no key format of its own and keeps no key: the file is read for one signature, and an agent gives its
signature without the key. What was signed is checked against its public key before it is handed out, so a key
that no policy will accept is refused here, where its owner can still choose another.
"""

from __future__ import annotations

import asyncio
import base64
import stat
from collections.abc import Callable
from pathlib import Path

import asyncssh
from asyncssh.agent import SSHAgentClient, SSHAgentKeyPair

from kedge.model.errors import DriverError, OrderError
from kedge.model.order import NAMESPACE
from kedge.trust.keys import PublicKey, fingerprint, parse_public_key
from kedge.trust.sshsig import check, compose, parse, signed_bytes

AGENT_SECONDS = 60.0
"""How long an agent may take: someone may have to touch a key or confirm in a window."""
_MAX_KEY_BYTES = 65_536
_PRIVATE = (b"-----BEGIN ", b"\x30")
"""How private keys begin: PEM, which OpenSSH's own are, and DER."""
_SIGN_ANEW = "or sign with: ssh-keygen -Y sign -n kedge-order -f KEY order.json"


def sign_with_key(
    path: Path,
    order_bytes: bytes,
    passphrase: Callable[[], str] | None = None,
    *,
    namespace: str = NAMESPACE,
) -> str:
    """The armored signature over exactly these bytes, by the OpenSSH private key in a file.

    ``passphrase`` is asked once, and only when the key is encrypted. Raises ``DriverError``: ``NotFound``,
    ``KeyRefused`` (readable by others, not a private key, a kind that may not sign, no or a wrong passphrase).
    """
    text = _private_text(path)
    key = _unlock(path, text, passphrase)
    public = _may_sign(key.export_public_key().decode(), path.name)
    if public.application is not None:
        raise _refused(
            f"{path.name} is the handle of a hardware key",
            f"load it into an ssh-agent (ssh-add {path.name}), {_SIGN_ANEW}",
        )
    algorithm = "rsa-sha2-512" if public.kind == "ssh-rsa" else public.kind
    raw = key.sign(signed_bytes(order_bytes, namespace=namespace), algorithm.encode())
    signature = compose(public.blob, raw, namespace=namespace)
    return _checked(signature, public, order_bytes, namespace)


async def sign_with_agent(
    key: str, order_bytes: bytes, *, agent: str | None = None, namespace: str = NAMESPACE
) -> str:
    """The armored signature by a key that an ssh-agent holds.

    ``key`` is its fingerprint (``SHA256:...``) or its public key line; ``agent`` the socket, else ``SSH_AUTH_SOCK``.
    Raises ``DriverError``: ``Unreachable`` (no agent), ``NotFound`` (it does not hold the key), ``KeyRefused`` (a
    kind that may not sign, not confirmed, not touched).
    """
    public, raw = await _by_agent(key, signed_bytes(order_bytes, namespace=namespace), agent)
    return _checked(compose(public.blob, raw, namespace=namespace), public, order_bytes, namespace)


async def _connected(agent: str | None) -> SSHAgentClient:
    try:
        return await asyncssh.connect_agent(agent or "")
    except (OSError, asyncssh.Error) as error:
        raise DriverError(
            "Unreachable",
            f"there is no ssh-agent to talk to: {(getattr(error, 'strerror', None) or str(error)).lower()}",
            retryable=False,
            next_step="start one (eval $(ssh-agent); ssh-add KEY) or name a key file with --key",
        ) from error


async def _by_agent(key: str, content: bytes, agent: str | None) -> tuple[PublicKey, bytes]:
    async with await _connected(agent) as client:
        try:
            async with asyncio.timeout(AGENT_SECONDS):
                pair, public = await _held(client, key)
                if public.kind == "ssh-rsa":
                    pair.set_sig_algorithm(b"rsa-sha2-512")
                raw = await pair.sign_async(content)
        except (TimeoutError, ValueError, OSError, asyncssh.Error) as error:
            said = str(error) or f"no answer in {AGENT_SECONDS:g} seconds"
            raise _refused(
                f"the ssh-agent did not sign: {said}", "confirm or touch the key when it asks"
            ) from error
    return public, raw


async def held_line(key: str, *, agent: str | None = None) -> str:
    """The public key line of a key that the agent holds. Raises as :func:`sign_with_agent`."""
    async with await _connected(agent) as client:
        _, public = await _held(client, key)
    return f"{public.line} {public.comment}".strip()


def look_at_key(path: Path) -> None:
    """Whether there is a private key that only its owner can read: before anybody is asked to sign with it.

    Raises as :func:`sign_with_key`; an encrypted one is not opened.
    """
    _private_text(path)


def open_key(path: Path, passphrase: Callable[[], str] | None = None) -> asyncssh.SSHKey:
    """The private key in a file that only its owner can read. Raises as :func:`sign_with_key`."""
    return _unlock(path, _private_text(path), passphrase)


async def sign_bare_with_agent(
    key: str, content: bytes, *, agent: str | None = None
) -> tuple[PublicKey, bytes]:
    """The agent's signature (SSH wire form) over bare bytes, without the frame of an SSHSIG. Raises as
    :func:`sign_with_agent`.
    """
    return await _by_agent(key, content, agent)


def _private_text(path: Path) -> bytes:
    """What is in the key file, when no one but its owner can read it."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise _refused(f"{path} is not a file", "name the private key itself")
        with path.open("rb") as file:
            text = file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise DriverError(
            "NotFound",
            f"{path} cannot be read: {error.strerror}",
            retryable=False,
            next_step="name a private key with --key",
        ) from error
    if not text.lstrip().startswith(_PRIVATE):
        raise _refused(f"{path} is not an OpenSSH private key", _private_beside(path))
    if stat.S_IMODE(mode) & 0o077:
        raise _refused(
            f"{path} can be read or written by others than its owner (mode {stat.S_IMODE(mode):04o})",
            f"chmod 600 {path}, and replace the key if others may have read it",
        )
    return text


def _private_beside(path: Path) -> str:
    beside = path.with_suffix("")
    named = path.suffix == ".pub" and beside.is_file()
    return f"name {beside}, which belongs to it" if named else "name the private key, not its .pub"


def _unlock(path: Path, text: bytes, passphrase: Callable[[], str] | None) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(text)
    except asyncssh.KeyImportError as error:
        if "assphrase" not in str(error):
            raise _refused(
                f"{path} is not an OpenSSH private key: {error}",
                "name the private key, not its .pub",
            ) from error
    if passphrase is None:
        raise _refused(
            f"{path} is encrypted, and there is no one to ask for its passphrase",
            "load it into an ssh-agent",
        )
    try:
        return asyncssh.import_private_key(text, passphrase())
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        if "requires bcrypt" in str(error):
            raise _refused(
                f"{path} is encrypted, and this installation lacks the package bcrypt to open it",
                f"load it into an ssh-agent (ssh-add {path}), {_SIGN_ANEW}",
            ) from error
        raise _refused(f"the passphrase does not open {path}", "try again") from error


async def _held(client: SSHAgentClient, key: str) -> tuple[SSHAgentKeyPair, PublicKey]:
    """The pair in the agent that is the wanted key; certificates over it are not it."""
    wanted = key.strip()
    if not wanted.startswith("SHA256:"):
        wanted = _may_sign(wanted, "the key").fingerprint
    held: list[str] = []
    for pair in await client.get_keys():
        if not isinstance(pair, SSHAgentKeyPair) or pair.has_cert:
            continue
        found = fingerprint(pair.public_data)
        if found == wanted:
            kind = pair.algorithm.decode("ascii", "replace")
            line = f"{kind} {base64.b64encode(pair.public_data).decode()}"
            return pair, _may_sign(line, wanted)
        held.append(found)
    raise DriverError(
        "NotFound",
        f"the ssh-agent does not hold {wanted}; it holds {', '.join(held[:8]) or 'no key'}",
        retryable=False,
        next_step="add it with ssh-add KEY",
    )


def _may_sign(line: str, name: str) -> PublicKey:
    try:
        return parse_public_key(line)
    except OrderError as error:
        raise _refused(f"{name} may not sign orders: {error.message}", error.next_step) from error


def _checked(armored: str, public: PublicKey, order_bytes: bytes, namespace: str) -> str:
    """The signature, after it was verified as a worker will verify it."""
    try:
        check(parse(armored), public, order_bytes, namespace=namespace)
    except OrderError as error:
        raise _refused(f"the signature is of no use: {error.message}", error.next_step) from error
    return armored


def _refused(message: str, next_step: str | None) -> DriverError:
    return DriverError("KeyRefused", message, retryable=False, next_step=next_step)
