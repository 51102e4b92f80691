"""Whose checkpoints count, and where: a key that the policy names, until a version that names it no more is pinned.

The record itself says when a version was pinned (``what: policy``). A key that a later version left out signs up to that
record and not behind it; one that stands under ``revoked.keys`` of any trusted version signs nothing anywhere. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kedge.model.base import Digest
from kedge.model.policy import Policy
from kedge.trust.chain import EvidenceEntry
from kedge.trust.checkpoints import materials
from kedge.trust.keys import PublicKey


class Witnesses:
    """The checkpoint keys of all trusted versions, each for the records that it may vouch for."""

    def __init__(
        self, trusted: Mapping[Digest, Policy], entries: Sequence[EvidenceEntry], after: int
    ) -> None:
        """``entries`` are the records behind the ``after``-th."""
        self._policies = tuple(trusted.values())
        named = [(one, one.evidence.signers if one.evidence else ()) for one in self._policies]
        self._last: dict[str, int] = {}
        """By key material: the newest version that names it."""
        for policy, lines in named:
            for material in materials(lines):
                self._last[material] = max(policy.version, self._last.get(material, 0))
        self._pinned: list[tuple[int, int]] = []
        """Where each version was pinned, and which: only ever newer ones."""
        for seq, entry in enumerate(entries, start=after + 1):
            version = _pinned(entry, trusted)
            if version is not None and (not self._pinned or version > self._pinned[-1][1]):
                self._pinned.append((seq, version))
        self._strangers: set[str] = set()
        self._revoked: set[str] = set()
        self._dropped: dict[str, tuple[int, int]] = {}
        self._undated: set[str] = set()

    def counts(self, key: PublicKey, seq: int) -> bool:
        """Whether a checkpoint by this key over the record ``seq`` proves anything. What does not is remembered."""
        last = self._last.get(key.material)
        if any(policy.revoked.has_line(key.line) for policy in self._policies):
            self._revoked.add(key.fingerprint)
            return False
        if last is None:
            self._strangers.add(key.fingerprint)
            return False
        # The checkpoint right over the change was taken before its worker knew of it.
        dropped = next((one for one in self._pinned if one[1] > last), None)
        if dropped is not None and dropped[0] < seq:
            self._dropped[key.fingerprint] = dropped
            return False
        if dropped is None and last < max(policy.version for policy in self._policies):
            self._undated.add(key.fingerprint)
        return True

    def unproven(self) -> list[str]:
        """What the checkpoints do not prove, in words."""
        found: list[str] = []
        if not self._last:
            found.append(
                "no policy names a checkpoint key: whoever can write the record could have written all of it anew"
            )
        elif self._strangers:
            found.append(
                f"checkpoints by {_some(self._strangers)} prove nothing: the policy does not name that key"
            )
        if self._revoked:
            found.append(
                f"checkpoints by {_some(self._revoked)} prove nothing: that key was revoked"
            )
        for key, (seq, version) in sorted(self._dropped.items())[:5]:
            found.append(
                f"checkpoints by {key} behind record {seq} prove nothing: version {version} of the policy, pinned there, "
                "names that key no more"
            )
        if self._undated:
            found.append(
                f"the newest version of the policy does not name {_some(self._undated)} any more, and no record here says when "
                "it was pinned: those checkpoints count as of before; export the record with --whole to see"
            )
        return found


def _pinned(entry: EvidenceEntry, trusted: Mapping[Digest, Policy]) -> int | None:
    """The version whose pinning a record tells of."""
    record = entry.record
    if not isinstance(record, dict) or record.get("what") != "policy":
        return None
    named = record.get("policies")
    digest = named[0] if isinstance(named, list) and named else None
    policy = trusted.get(digest) if isinstance(digest, str) else None
    return None if policy is None else policy.version


def _some(keys: set[str]) -> str:
    return ", ".join(sorted(keys)[:5])
