"""Whose key it is, and a signature by it: a key file or an agent.

Loaded only when something is signed; the libraries for it are heavy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import asyncssh

from desk.orders import Draft, Sent, Signer, owner_of
from kedge.drivers.files import read_key_line
from kedge.drivers.signers import look_at_key, sign_with_agent, sign_with_key
from kedge.model.errors import OrderError
from kedge.model.order import Envelope
from kedge.model.policy import Policy
from kedge.trust import envelope as envelopes
from kedge.trust.keys import parse_blob, parse_public_key
from kedge.trust.sshsig import check, parse


def person_of(policy: Policy | None, signer: Signer) -> str:
    """The person to whom the policy gives the signer's key; empty when that cannot be said."""
    if policy is None:
        return ""
    if signer.key is not None:
        return owner_of(policy, _public_line(signer.key))
    wanted = _agent_key(signer)
    if not wanted.startswith("SHA256:"):
        return owner_of(policy, wanted)
    for person in policy.people:
        for line in person.keys:
            with contextlib.suppress(OrderError):
                if parse_public_key(line).fingerprint == wanted:
                    return person.name
    return ""


def look_at(key: Path) -> None:
    """Whether a key file is a private key of one's own. Raises as :func:`kedge.drivers.signers.look_at_key`."""
    look_at_key(key)


async def sign(draft: Draft, signer: Signer, passphrase: Callable[[], str] | None) -> Envelope:
    """The draft with its signature. Raises ``DriverError`` as :mod:`kedge.drivers.signers` says."""
    if signer.key is not None:
        # In this thread and not in one of its own: it may ask for a passphrase, and Ctrl-C has to end that.
        signature = sign_with_key(signer.key, draft.bytes_to_sign, passphrase)
    else:
        signature = await sign_with_agent(_agent_key(signer), draft.bytes_to_sign)
    return envelopes.seal(draft.bytes_to_sign, signature)


def _agent_key(signer: Signer) -> str:
    return agent_key(signer.agent or "")


def agent_key(wanted: str) -> str:
    """The key to look for in the agent; a file's name stands for the public key in it. Raises ``OrderError``."""
    if wanted.startswith("SHA256:") or " " in wanted.strip():
        return wanted
    path = Path(wanted)
    public = path if path.suffix == ".pub" else path.with_name(path.name + ".pub")
    try:
        return read_key_line(public)
    except (OSError, UnicodeDecodeError) as error:
        raise OrderError(
            f"{wanted} is neither a fingerprint (SHA256:…), nor a public key, nor the file of one",
            next_step="`ssh-add -l` lists the fingerprints of the keys that the agent holds",
        ) from error


def _public_line(key: Path) -> str | None:
    """The public key beside a private one, or inside it where that needs no passphrase."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return read_key_line(key.with_name(key.name + ".pub"))
    with contextlib.suppress(OSError, ValueError, asyncssh.Error):
        exported: str = asyncssh.import_private_key(read_key_line(key)).export_public_key().decode()
        return exported.strip()
    return None


def signed_by(sent: Sent) -> str:
    """The fingerprint of the key that signed a sent order, after checking that the signature holds.

    Raises ``OrderError`` when it does not: it says nothing about who may sign.
    """
    signature = parse(sent.envelope.signature)
    blob = signature.key_blob
    kind = blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")
    key = parse_blob(blob, kind=kind)
    check(signature, key, sent.envelope.order.encode())
    return key.fingerprint
