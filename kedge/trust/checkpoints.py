"""Checkpoints: a worker's signed word that the record of a fleet ended so at a time.

A chain proves itself only up to a hash that came from elsewhere. A checkpoint is one: an SSHSIG in the namespace
:data:`kedge.model.evidence.CHECKPOINT_NAMESPACE` over the canonical form of a
:class:`kedge.model.evidence.CheckpointStatement`, by a key that the policy names (``evidence.signers``).
"""

from __future__ import annotations

from collections.abc import Iterable

from kedge.model.base import Json, canonical
from kedge.model.errors import OrderError
from kedge.model.evidence import CHECKPOINT_NAMESPACE, Checkpoint, CheckpointStatement
from kedge.trust.keys import PublicKey, parse_public_key
from kedge.trust.refusal import RefusalError
from kedge.trust.sshsig import check, compose, parse, signed_bytes

_SEALED = frozenset({"asked", "end", "ended", "reviewed"})


def bytes_to_sign(statement: CheckpointStatement) -> bytes:
    """The canonical JSON (RFC 8785) of the statement, without a newline at the end."""
    return canonical(statement)


def to_be_signed(statement: CheckpointStatement) -> bytes:
    """What the key itself signs: the SSHSIG frame around the hash of :func:`bytes_to_sign`."""
    return signed_bytes(bytes_to_sign(statement), namespace=CHECKPOINT_NAMESPACE)


def enclose(statement: CheckpointStatement, key: PublicKey, raw: bytes) -> Checkpoint:
    """The checkpoint of a statement and what the key made of :func:`to_be_signed` (in its wire form)."""
    return Checkpoint(
        fleet=statement.fleet,
        seq=statement.seq,
        hash=statement.hash,
        at=statement.at,
        key=key.line,
        signature=compose(key.blob, raw, namespace=CHECKPOINT_NAMESPACE),
    )


def verify_checkpoint(checkpoint: Checkpoint) -> PublicKey:
    """The key that signed it. Whether that key's word counts is for the policy to say.

    Raises ``OrderError`` when the key or the signature does not hold.
    """
    key = parse_public_key(checkpoint.key)
    if key.line != checkpoint.key:
        raise OrderError(
            "its key is not written in its one form: type and key, nothing beside them"
        )
    signature = parse(checkpoint.signature)
    try:
        check(signature, key, bytes_to_sign(checkpoint.statement), namespace=CHECKPOINT_NAMESPACE)
    except RefusalError as refusal:
        raise OrderError(refusal.message.replace("the order", "the checkpoint")) from refusal
    return key


def materials(lines: Iterable[str]) -> frozenset[str]:
    """The key material of public key lines; a line that is no usable key lets nobody sign."""
    found: set[str] = set()
    for line in lines:
        try:
            found.add(parse_public_key(line).material)
        except OrderError:
            continue
    return frozenset(found)


def worth_sealing(record: Json) -> bool:
    """Whether a record is one after which a checkpoint is signed at once: people are asked, a gate is over, a run ends or
    is reviewed.
    """
    if not isinstance(record, dict):
        return False
    if record.get("what") == "decision":
        return record.get("event") == "GateEnded" or record.get("stage") == "ended"
    if record.get("what") == "order":
        return record.get("verb") == "review" and record.get("accepted") is True
    return record.get("what") in _SEALED
