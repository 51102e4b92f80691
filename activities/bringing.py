"""Archives of releases that a host misses: brought when it says so, and not before.

The old release lies on the host. A rollback does not depend on where its archive came from, and an upgrade needs it
only where a rollback would miss it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kedge.drivers.ports import SessionEnd
from kedge.model.base import Json
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact

RETURNING = frozenset({"back", "restore"})
"""Programs that return a node to the release it had."""


def with_missing(
    end: SessionEnd, sent: tuple[dict[str, Json], ...], artifacts: Iterable[Artifact]
) -> tuple[dict[str, Json], ...] | None:
    """The operations with the archive of the release that the host misses, or has no longer as it was unpacked.

    None: it is not that which ended the session. On the way back the release is the one to stage; on the way forward it
    is the one that a rollback would need, which its check missed.
    """
    failed = end.failed
    if failed is None or failed.error is None:
        return None
    if failed.error.type not in ("NoRelease", "DigestMismatch"):
        return None
    op = next((op for op in sent if op["key"] == failed.key), None)
    if op is None or op["op"] not in ("stage", "check"):
        return None
    if op["op"] == "stage":
        return sent if op.get("source") is None else None
    needed = next(
        (one for one in artifacts if one.digest == failed.error.detail.get("needed")), None
    )
    if needed is None:
        return None
    bring: dict[str, Json] = {
        "key": f"{op['key']}-brings", "op": "stage", "digest": needed.digest, "length": needed.length,
        "limit": op.get("limit"),
    }  # fmt: skip
    if needed.strip:
        bring["strip"] = needed.strip
    if needed.program is not None:
        bring["program"] = needed.program
    at = sent.index(op)
    return (*sent[:at], bring, *sent[at:])


def not_brought(end: SessionEnd, error: DriverError) -> SessionEnd:
    """The same end, with the reason why the archive could not be brought to the host."""
    if end.failed is None or end.failed.error is None:
        return end
    fault = end.failed.error
    said = f"{fault.message}: {error.message}; the daemon was not stopped"
    return replace(end, failed=replace(end.failed, error=replace(fault, message=said)))
