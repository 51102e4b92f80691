"""Is this a proper successor? A change of a policy, judged by the version before; and the chain of all versions.

A version follows the one that is pinned when all of this holds, looked at in this order; the first that does not names
the verdict:

- ``unreadable``, ``not-canonical``: it is a policy, and its text is the one form of that policy (RFC 8785);
- ``name``: name and environment stay;
- ``version``: it is exactly one higher, so none is left out and none comes back;
- ``previous``: it names the digest of the version before, so it was made from that one;
- ``no-change``: the version before says who signs changes;
- ``signatures``: so many distinct people with distinct keys signed exactly this text as the version before asks, each
  with one of its roles, every role of ``each_of`` among them. A revoked key or person does not count, nor does a
  signature made for anything but policies, nor an untouched hardware key where touch is asked.

Pure: bytes and the version before go in, a verdict comes out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import ValidationError

from kedge.model.base import Digest, Frozen, canonical
from kedge.model.errors import OrderError
from kedge.model.policy import Policy
from kedge.model.signed_policy import MAX_POLICY, POLICY_NAMESPACE, KeptPolicy, SignedPolicy
from kedge.trust.keyring import keyring
from kedge.trust.keys import fingerprint
from kedge.trust.refusal import RefusalError, quoted
from kedge.trust.sshsig import check, parse

ChangeFault = Literal[
    "unreadable", "not-canonical", "name", "version", "previous", "no-change", "signatures"
]


class ChangeSignature(Frozen):
    """One signature under a change: whose it is, and whether it counts, in words."""

    counts: bool
    said: str
    person: str = ""
    roles: tuple[str, ...] = ()
    key: str = ""
    material: str = ""


class ChangeVerdict(Frozen):
    """Whether a version follows the one before. ``missing`` people (and roles) would have to sign it too."""

    ok: bool
    said: str
    fault: ChangeFault | None = None
    version: int = 0
    digest: Digest | None = None
    signatures: tuple[ChangeSignature, ...] = ()
    missing: int = 0
    missing_roles: tuple[str, ...] = ()


class PolicyRefusedError(OrderError):
    """A text that is no policy in its canonical form; ``fault`` names why."""

    type = "PolicyRefused"

    def __init__(self, fault: ChangeFault, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.fault = fault


def policy_text(policy: Policy) -> str:
    """The canonical form: what is signed, and what digests are taken over."""
    return canonical(policy).decode()


def text_digest(text: str) -> Digest:
    """The digest of a policy's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_policy(text: str) -> Policy:
    """The policy in a text. Raises :class:`PolicyRefusedError`: ``unreadable`` or ``not-canonical``."""
    if len(text) > MAX_POLICY:
        raise PolicyRefusedError("unreadable", f"longer than {MAX_POLICY} characters")
    try:
        policy = Policy.model_validate_json(text)
        plain = json.loads(text)
        form = canonical(plain)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "document"
        said = f"it is no policy: {quoted(where)}: {quoted(problem['msg'], 200)}"
        raise PolicyRefusedError("unreadable", said) from error
    except (ValueError, RecursionError) as error:
        raise PolicyRefusedError("unreadable", "it is no JSON with a canonical form") from error
    if form != text.encode("utf-8", "surrogatepass"):
        raise PolicyRefusedError(
            "not-canonical",
            "the text is not in its canonical form (RFC 8785: keys sorted, no spaces, no newline at the end)",
            next_step="sign the file as `kedge policy sign` or `kedge policy show --canonical` wrote it",
        )
    return policy


def judge_change(before: SignedPolicy, document: SignedPolicy) -> ChangeVerdict:
    """Whether ``document`` follows ``before``, which is pinned. Pure and total."""
    try:
        old = read_policy(before.policy)
        new = read_policy(document.policy)
        _follows(before, old, new)
    except PolicyRefusedError as refusal:
        said = f"{refusal.message}; {refusal.next_step}" if refusal.next_step else refusal.message
        return ChangeVerdict(ok=False, said=said, fault=refusal.fault)
    return _counted(old, new, document)


def _follows(before: SignedPolicy, old: Policy, new: Policy) -> None:
    for what in ("name", "environment"):
        was, now = getattr(old, what), getattr(new, what)
        if was != now:
            raise PolicyRefusedError("name", f"its {what} is {now}, and {was} is pinned")
    if new.version != old.version + 1:
        raise PolicyRefusedError(
            "version",
            f"it is version {new.version}, and version {old.version} is pinned: the next one is {old.version + 1}",
        )
    digest = text_digest(before.policy)
    if new.previous != digest:
        raise PolicyRefusedError(
            "previous",
            f"it was made from {str(new.previous)[:12]}, and {digest[:12]} is pinned",
            next_step=f"write previous: {digest}, and look at `kedge policy diff`",
        )
    if old.change is None:
        raise PolicyRefusedError(
            "no-change",
            f"version {old.version} does not say who may change it, so nobody can by signature",
            next_step="who has the machine pins another with --as-owner, and that is evidence",
        )


def _counted(old: Policy, new: Policy, document: SignedPolicy) -> ChangeVerdict:
    rule = old.change
    assert rule is not None  # noqa: S101 - _follows saw it
    found: list[ChangeSignature] = []
    people: set[str] = set()
    keys: set[str] = set()
    for signature in document.signatures:
        one = _signature(old, document.policy, signature)
        if one.counts and (one.person in people or one.material in keys):
            one = one.model_copy(update={"counts": False, "said": f"{one.person} signed already"})
        if one.counts:
            people.add(one.person)
            keys.add(one.material)
        found.append(one)
    roles = {role for one in found if one.counts for role in one.roles}
    missing_roles = tuple(role for role in rule.each_of if role not in roles)
    missing = max(rule.threshold - len(people), 1 if missing_roles else 0, 0)
    digest = text_digest(document.policy)
    if missing:
        asked = f" ({', '.join(missing_roles)} among them)" if missing_roles else ""
        wrong = [one.said for one in found if not one.counts]
        because = f"; {'; '.join(wrong[:3])}" if wrong else ""
        said = f"version {new.version} lacks {missing} signature(s) of {', '.join(rule.roles)}{asked}{because}"
    else:
        said = f"version {new.version} is signed by {', '.join(sorted(people))}"
    return ChangeVerdict(
        ok=not missing,
        said=said,
        fault="signatures" if missing else None,
        version=new.version,
        digest=digest,
        signatures=tuple(found),
        missing=missing,
        missing_roles=missing_roles,
    )


def _signature(old: Policy, text: str, armored: str) -> ChangeSignature:
    """One signature, by the rules of the version before."""
    rule = old.change
    key = ""
    try:
        signature = parse(armored)
        key = fingerprint(signature.key_blob)
        if old.revoked.has_blob(signature.key_blob):
            return ChangeSignature(counts=False, said=f"the key {key} was revoked", key=key)
        ring = keyring(old.people)
        name = ring.owner(signature.key_blob)
        public = ring.key_of(signature.key_blob, name)
        check(
            signature,
            public,
            text.encode(),
            namespace=POLICY_NAMESPACE,
            require_touch=old.hardware.touch,
            require_pin=old.hardware.pin,
        )
    except RefusalError as refusal:
        return ChangeSignature(counts=False, said=refusal.message, key=key)
    person = old.person(name)
    roles = person.roles if person is not None else ()
    if name in old.revoked.people:
        said = f"{name} was revoked"
    elif rule is None or not set(rule.roles) & set(roles):
        said = f"{name} ({', '.join(roles)}) does not sign changes"
    else:
        return ChangeSignature(
            counts=True, said=f"{name} signs", person=name, roles=roles, key=key, material=public.material
        )  # fmt: skip
    return ChangeSignature(counts=False, said=said, person=name, roles=roles, key=key)


class PolicyChain(Frozen):
    """What the versions kept in one place say. ``place`` is the number of the first that does not follow."""

    ok: bool
    said: str
    place: int | None = None
    owners: tuple[int, ...] = ()
    """Those that who has the machine pinned, against no signature: a chain of trust begins anew there."""


def verify_kept(kept: Iterable[KeptPolicy]) -> PolicyChain:
    """Whether each version that is said to be signed follows the one before it. Pure and total."""
    before: SignedPolicy | None = None
    owners: list[int] = []
    count = 0
    for count, one in enumerate(kept, start=1):
        if one.seq != count:
            return PolicyChain(ok=False, said=f"number {count} is missing", place=count)
        if one.by == "signed":
            if before is None:
                said = "the first is said to follow another, and there is none"
                return PolicyChain(ok=False, said=said, place=count)
            verdict = judge_change(before, one.document)
            if not verdict.ok:
                said = f"number {count} does not follow the one before: {verdict.said}"
                return PolicyChain(ok=False, said=said, place=count)
        elif one.by == "owner":
            owners.append(count)
        elif count > 1:
            said = f"number {count} is said to be the first"
            return PolicyChain(ok=False, said=said, place=count)
        before = one.document
    return PolicyChain(ok=True, said=f"{count} version(s) pinned here", owners=tuple(owners))


def follow(
    trusted: Mapping[Digest, SignedPolicy], changes: Iterable[SignedPolicy]
) -> dict[Digest, SignedPolicy]:
    """All versions that follow, one by one, from those that are trusted. For who has nothing but a pinned root."""
    found = dict(trusted)
    waiting = list(changes)
    grown = True
    while grown:
        grown = False
        for document in list(waiting):
            try:
                previous = read_policy(document.policy).previous
            except PolicyRefusedError:
                waiting.remove(document)
                continue
            before = found.get(previous or "")
            if before is not None and judge_change(before, document).ok:
                found[text_digest(document.policy)] = document
                waiting.remove(document)
                grown = True
    return found
