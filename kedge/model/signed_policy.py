"""A policy with the signatures of who changed it, and how it is kept where it is pinned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Frozen

POLICY_NAMESPACE = "kedge-policy"
"""The SSHSIG namespace of signatures under policies; one made for an order or anything else does not count."""
MAX_POLICY = 1024 * 1024
"""The longest policy in its canonical form, in characters."""


class SignedPolicy(Frozen):
    """A version of a policy as it travels: the exact text that is signed (its canonical form), and armored SSHSIGs."""

    kind: Literal["SignedPolicy"] = "SignedPolicy"
    format: Literal[1] = 1
    policy: Annotated[str, Field(max_length=MAX_POLICY)]
    signatures: Annotated[
        tuple[Annotated[str, Field(max_length=16_384)], ...], Field(max_length=50)
    ] = ()


PinnedBy = Literal["first", "signed", "owner"]
"""How a version came to be pinned: on first use; by the signatures its predecessor asks for; by who has the machine,
against no signature at all."""


class KeptPolicy(Frozen):
    """A version as it is kept where it was pinned. ``seq`` counts what was ever pinned there, from 1; ``at`` is when."""

    seq: Annotated[int, Field(ge=1)]
    by: PinnedBy
    at: str
    document: SignedPolicy
