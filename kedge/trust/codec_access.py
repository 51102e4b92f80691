"""Who may read sealed payloads through the codec server: a challenge that is signed with an SSH key, judged by policies.

The signature is an SSHSIG with a namespace of its own, so it is never an order, and an order never a sign-in. The
challenge names the server it was made by: another one that hands it on cannot use the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Frozen
from kedge.model.errors import OrderError
from kedge.model.policy import Policy
from kedge.trust.keyring import keyring
from kedge.trust.refusal import RefusalError
from kedge.trust.sshsig import check, parse

LOGIN = "kedge-codec-login"
"""The SSHSIG namespace of a sign-in."""


class Challenge(Frozen):
    """What is signed to sign in: the canonical JSON of this. ``server`` is the address the person meant to reach."""

    kind: Literal["CodecLogin"] = "CodecLogin"
    server: Annotated[str, Field(min_length=1, max_length=300)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    expires: Annotated[str, Field(max_length=32)]


class Reader(Frozen):
    """Somebody who signed in: the key by its fingerprint, and by fleet the name of the person it is under its policy."""

    key: str
    fleets: dict[str, str]

    @property
    def person(self) -> str:
        """The person's name, or names."""
        return " / ".join(sorted(set(self.fleets.values())))


def signed_in(
    policies: Mapping[str, Policy], challenge: bytes, signature: str
) -> tuple[bytes, Reader]:
    """The key's blob and what it may read, by the policies of all fleets.

    Raises ``RefusalError`` when the signature does not hold, or when no policy lets the key's owner read anything: the
    refusal of the last policy that was asked.
    """
    blob = parse(signature).key_blob
    return blob, reader(policies, blob, challenge, signature)


def reader(
    policies: Mapping[str, Policy], blob: bytes, challenge: bytes | None = None, signature: str = ""
) -> Reader:
    """What a key may read now; with a challenge its signature is judged too. Raises as :func:`signed_in`."""
    found: dict[str, str] = {}
    refusal = RefusalError("unknown-key", "no policy is pinned here, so nobody may read", next_step="kedge up --fleet FILE --policy FILE")  # fmt: skip
    key = ""
    for fleet, policy in sorted(policies.items()):
        try:
            person = _owner(policy, blob)
            if challenge is not None:
                held = keyring(policy.people).key_of(blob, person)
                rule = policy.hardware
                check(
                    parse(signature), held, challenge, namespace=LOGIN,
                    require_touch=rule.touch, require_pin=rule.pin,
                )  # fmt: skip
            _may_read(policy, person)
        except RefusalError as error:
            refusal = error
            continue
        except OrderError as error:
            refusal = RefusalError("signature", error.message, next_step=error.next_step)
            continue
        found[fleet] = person
        key = keyring(policy.people).keys[blob].fingerprint
    if not found:
        raise refusal
    return Reader(key=key, fleets=found)


def _owner(policy: Policy, blob: bytes) -> str:
    if policy.revoked.has_blob(blob):
        raise RefusalError("revoked", f"the key was revoked in the policy {policy.name}")
    person = keyring(policy.people).owner(blob)
    if person in policy.revoked.people:
        raise RefusalError("revoked", f"{person} was revoked in the policy {policy.name}")
    return person


def _may_read(policy: Policy, person: str) -> None:
    roles = next(one.roles for one in policy.people if one.name == person)
    readers = policy.codec.readers if policy.codec is not None else ()
    if not set(roles) & set(readers):
        asked = ", ".join(readers) or "nobody"
        raise RefusalError(
            "role",
            f"{person} may not read sealed payloads: the policy {policy.name} lets {asked} read",
            next_step="add a role to codec.readers in the policy",
        )


def fleet_of(bound: str) -> str:
    """The fleet whose workflow a payload is bound to (``<namespace>/<kind>/<fleet>/…``); empty when to none."""
    parts = bound.split("/")
    return parts[2] if len(parts) > 2 else ""
