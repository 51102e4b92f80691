"""What a vendor published for a release, as it was found: signatures, sums and archives, and whether it was taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Name
from kedge.model.notation import Version
from kedge.model.order import Instant
from kedge.model.release import Platform

SignatureKind = Literal["openpgp", "ssh", "minisign", "minisign-legacy", "unknown"]

RANK: dict[SignatureKind, int] = {
    "unknown": 0, "minisign-legacy": 1, "minisign": 2, "ssh": 2, "openpgp": 3,
}  # fmt: skip
"""Kinds of signature, weaker ones lower.

Keys and signatures of OpenPGP run out and can be revoked in the vendor's own words; SSH and minisign keys cannot.
Minisign's legacy form (``Ed``) was given up by its own tool, which signs a hash since.
"""

SignatureState = Literal[
    "good",
    "wrong",
    "revoked",
    "expired",
    "early",
    "weak",
    "unknown-key",
    "unreadable",
]
"""What one signature is: ``good``; ``wrong``: by a pinned key, over other bytes; ``revoked``, ``expired``: the key or
signature was taken back or has run out; ``early``: made in the future; ``weak``: of an algorithm that proves nothing any
more; ``unknown-key``: by no pinned key; ``unreadable``: no signature.
"""

ImportRule = Literal[
    "accepted",
    "unsigned",
    "wrong",
    "revoked",
    "expired",
    "early",
    "weak",
    "unknown-key",
    "unreadable",
    "multiple",
    "sums",
    "partial",
    "altered",
    "downgraded",
]
"""Why what a vendor published is taken, or not; ``docs/provenance.md`` says what each means."""


MOST_REASON = 500
"""The longest reason for which a downgrade is taken, in characters."""


class VendorSignature(Frozen):
    """One signature over the sums. ``key`` is the pinned key's fingerprint, ``made`` the time it claims."""

    file: str
    kind: SignatureKind
    state: SignatureState
    said: str
    key: str = ""
    made: str = ""


class VendorArchive(Frozen):
    """An archive as it lies here. ``digest`` and ``length`` are None where there is no such file."""

    platform: Platform
    name: str
    digest: Digest | None
    length: Annotated[int, Field(ge=0)] | None


class VendorImport(Frozen):
    """The verdict over what a vendor published; of an accepted one the target ``vendor-import.json`` of its release.

    ``signed_by`` are the fingerprints of the distinct pinned keys whose signatures are good, ``best`` the strongest kind
    among them. ``not_imported`` counts files of the sums that are not part of this release. ``in_spite`` is the reason
    a person gave for taking it although it is a downgrade.
    """

    kind: Literal["VendorImport"] = "VendorImport"
    component: Name
    version: Version
    rule: ImportRule
    said: str
    needed: int
    signatures: tuple[VendorSignature, ...] = ()
    signed_by: tuple[str, ...] = ()
    best: SignatureKind = "unknown"
    sums_name: Annotated[str, Field(max_length=255)]
    sums: Digest
    archives: tuple[VendorArchive, ...] = ()
    not_imported: int = 0
    in_spite: Annotated[str, Field(max_length=MOST_REASON)] = ""
    at: Instant

    @property
    def ok(self) -> bool:
        """Whether it was taken."""
        return self.rule == "accepted"
