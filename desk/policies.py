"""Policies seen from a face: read, signed, pinned, compared. What may be pinned is judged here as a worker judges it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from desk import documents
from desk.orders import Signer
from kedge.drivers.files import write_atomic
from kedge.drivers.ports import PolicyPins
from kedge.model.base import Digest, Frozen
from kedge.model.errors import DriverError, OrderError, PlanError
from kedge.model.policy import Policy
from kedge.model.signed_policy import POLICY_NAMESPACE, KeptPolicy, SignedPolicy
from kedge.trust.policies import (
    ChangeVerdict,
    PolicyChain,
    judge_change,
    policy_text,
    read_policy,
    text_digest,
    verify_kept,
)


class PinDone(Frozen):
    """What a pin did: ``how`` in words; ``kept`` what is pinned now."""

    fleet: str
    how: str
    kept: KeptPolicy
    version: int
    digest: Digest


class Versions(Frozen):
    """Every version that was ever pinned for a fleet, and whether each follows the one before."""

    fleet: str
    kept: tuple[KeptPolicy, ...]
    chain: PolicyChain


def read_document(path: Path) -> SignedPolicy:
    """A policy from a file: the document as people write it, its canonical text, or one with signatures.

    Raises ``DocumentError`` with every problem.
    """
    content = documents.read_bytes(path)
    if content.lstrip().startswith(b"{"):
        return documents.read_signed(path, content)
    return SignedPolicy(policy=policy_text(documents.read_policy(path).value))


def write_document(path: Path, document: SignedPolicy) -> None:
    """Writes a policy with its signatures, whole."""
    plain = document.model_dump(mode="json")
    write_atomic(path, (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode(), 0o644)


async def pinned(pins: PolicyPins, fleet: str) -> KeptPolicy | None:
    """What is pinned for a fleet, if anything is. Raises ``DriverError`` for a pin that cannot be gone by."""
    try:
        return await pins.pinned(fleet)
    except DriverError as error:
        if error.kind == "NotFound":
            return None
        raise


async def versions(pins: PolicyPins, fleet: str) -> Versions:
    """Every version kept for a fleet. Raises ``DriverError``."""
    kept = await pins.kept(fleet)
    return Versions(fleet=fleet, kept=kept, chain=verify_kept(kept))


def successor(before: KeptPolicy, policy: Policy) -> Policy:
    """The policy as the next version of what is pinned: its version and its ``previous`` are filled in.

    A document that says the pinned version is meant to follow it; any other must say both itself. Raises ``OrderError``.
    """
    old = read_policy(before.document.policy)
    if policy.version not in {old.version, old.version + 1}:
        raise OrderError(
            f"it is version {policy.version}, and version {old.version} is pinned",
            next_step=f"write version: {old.version + 1}, or leave version and previous as they are pinned",
        )
    update = {"version": old.version + 1, "previous": text_digest(before.document.policy)}
    return policy.model_copy(update=update)


async def signed(
    document: SignedPolicy, signer: Signer, passphrase: Callable[[], str] | None
) -> SignedPolicy:
    """The document with one signature more. Raises ``DriverError`` as :mod:`kedge.drivers.signers`."""
    from desk.signing import agent_key  # noqa: PLC0415 - as above
    from kedge.drivers.signers import sign_with_agent, sign_with_key  # noqa: PLC0415 - heavy

    text = document.policy.encode()
    if signer.key is not None:
        # In this thread and not in one of its own: it may ask for a passphrase, and Ctrl-C has to end that.
        made = sign_with_key(signer.key, text, passphrase, namespace=POLICY_NAMESPACE)
    else:
        made = await sign_with_agent(
            agent_key(signer.agent or ""), text, namespace=POLICY_NAMESPACE
        )
    return with_signatures(document, (made,))


def with_signatures(document: SignedPolicy, more: tuple[str, ...]) -> SignedPolicy:
    """The document with these signatures too, each once. Raises ``OrderError`` for more than there may be."""
    try:
        return SignedPolicy(
            policy=document.policy,
            signatures=tuple(dict.fromkeys((*document.signatures, *more))),
        )
    except ValidationError as error:
        raise OrderError("a policy has at most 50 signatures of 16384 characters") from error


async def pin(
    pins: PolicyPins, fleet: str, document: SignedPolicy, *, as_owner: bool = False
) -> PinDone:
    """Pins a policy: the first by trust on first use, another when it follows properly from the one that is pinned.

    ``as_owner``: who has the machine puts it there against all that; the workers write that down. Raises ``PlanError``
    with what to do when it is refused.
    """
    policy = read_policy(document.policy)
    try:
        before = await pinned(pins, fleet)
    except DriverError:
        if not as_owner:
            raise
        before = (await pins.kept(fleet))[-1]
    how = "pinned: the first one here"
    signatures: tuple[str, ...] | None = None
    if before is not None and before.document.policy == document.policy:
        how = f"is pinned already, as number {before.seq}"
    elif before is not None:
        verdict = judge_change(before.document, document)
        if verdict.ok:
            how, signatures = f"pinned: {verdict.said}", document.signatures
        elif as_owner:
            how = "pinned by who has this machine, against no signature; that is written down as evidence"
        else:
            raise PlanError(
                f"fleet {fleet} has another policy pinned (version {read_policy(before.document.policy).version}), "
                f"and this one does not follow from it: {verdict.said}",
                next_step=_next(verdict, fleet),
            )
    await pins.pin(fleet, policy, signatures=signatures)
    kept = await pins.pinned(fleet)
    return PinDone(
        fleet=fleet,
        how=how,
        kept=kept,
        version=policy.version,
        digest=text_digest(kept.document.policy),
    )


def _next(verdict: ChangeVerdict, fleet: str) -> str:
    owner = "or, as who has this machine, --as-owner: that is written down as evidence"
    if verdict.fault in {"version", "previous", "signatures"}:
        return (
            f"`kedge policy sign FILE --for {fleet} --key KEY -o SIGNED` makes and signs the next version, "
            f"`kedge policy pin {fleet} SIGNED` pins it once enough signed; {owner}"
        )
    if verdict.fault == "no-change":
        return "pin it as who has this machine with --as-owner (that is written down as evidence), and put change: in it"
    return f"mend the document; {owner}"
