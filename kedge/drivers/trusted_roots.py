"""Sigstore trusted roots, kept by their digest: the policy names one, and only the file of that digest is ever read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from kedge.drivers.files import read_bounded, store_error, write_atomic
from kedge.model.base import Digest
from kedge.model.errors import OrderError
from kedge.model.provenance import ProvenanceRules

if TYPE_CHECKING:
    from kedge.trust.provenance import BundleVerifier, Proven

MOST_BYTES = 1 << 20


class TrustedRoots:
    """The files ``<sha256>.json`` in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, content: bytes) -> Digest:
        """Keeps a trusted root that is one. Raises ``OrderError`` (none, or no extra), ``DriverError`` ``StoreError``."""
        from kedge.trust.bundles import bundle_verifier  # noqa: PLC0415 - sigstore is heavy

        digest = hashlib.sha256(content).hexdigest()
        bundle_verifier(content, digest)
        try:
            write_atomic(self._folder / f"{digest}.json", content, 0o644)
        except OSError as error:
            raise store_error("keep the sigstore trusted root", error) from error
        return digest

    def verifier(self, rules: ProvenanceRules | None) -> BundleVerifier | None:
        """What verifies bundles under these rules; None where they pin no trusted root.

        Where that root is not kept here, or cannot be used, it refuses every bundle and says why: builders with keys may
        be enough without it.
        """
        if rules is None or rules.trusted_root is None:
            return None
        pinned = rules.trusted_root
        path = self._folder / f"{pinned}.json"
        try:
            content = read_bounded(path, MOST_BYTES)
        except OSError as error:
            raise store_error(f"read {path}", error) from error
        if content is None:
            return _refusing(
                f"the policy pins the sigstore trusted root {pinned[:12]}…, which is not kept here: "
                "kedge release provenance … --trusted-root FILE keeps it"
            )
        from kedge.trust.bundles import bundle_verifier  # noqa: PLC0415 - sigstore is heavy

        try:
            return bundle_verifier(content, pinned)
        except OrderError as error:
            return _refusing(error.message)


def _refusing(said: str) -> BundleVerifier:
    def refuse(_: bytes) -> Proven:
        raise OrderError(said)

    return refuse
