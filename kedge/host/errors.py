"""The errors of the host program: each has a stable type, and says whether trying again may help.

The table in `docs/host-protocol.md` (Errors) is the contract; `Fault.wire` is its line.
"""

from __future__ import annotations

import errno
from typing import Any, Dict, Optional

from kedge.host import outside

FULL = (errno.ENOSPC, errno.EDQUOT)
MESSAGE_MAX = 2000


class Fault(Exception):
    """An operation that did not reach its wanted state. `detail` is bounded, plain JSON."""

    kind = "HostError"
    retryable = True

    def __init__(self, message: str, detail: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail if detail is not None else {}

    def wire(self) -> Dict[str, Any]:
        """The `error` object of a `failed` line."""
        return {
            "type": self.kind,
            "message": outside.text(self.message, MESSAGE_MAX),
            "retryable": self.retryable,
            "detail": outside.value(self.detail),
        }


class Fenced(Fault):
    """A newer token has the node; nothing more is done here under the older one."""

    kind = "Fenced"
    retryable = False


class Busy(Fault):
    """Another session, or a command it started, held the node for longer than `lock_wait`."""

    kind = "Busy"


class BadRequest(Fault):
    """The input is not of this protocol; nothing was done."""

    kind = "BadRequest"
    retryable = False


class Conflict(Fault):
    """What is there contradicts what is asked, and doing it would lose or mix up something."""

    kind = "Conflict"
    retryable = False


class DigestMismatch(Fault):
    """Bytes are not what was promised."""

    kind = "DigestMismatch"
    retryable = False


class ArchiveRefused(Fault):
    """A hostile or broken archive; `detail` names the member and the rule it broke."""

    kind = "ArchiveRefused"
    retryable = False

    def __init__(self, rule: str, member: str = "") -> None:
        shown = member.encode("utf-8", "backslashreplace").decode("utf-8")[:200]
        where = f" (member {shown!r})" if member else ""
        super().__init__(f"archive refused: {rule}{where}", {"member": shown, "rule": rule})


class NoRelease(Fault):
    """The release asked for is not on this host."""

    kind = "NoRelease"
    retryable = False


class NoProgram(Fault):
    """What is to be executed is not there, or may not be executed."""

    kind = "NoProgram"
    retryable = False


class StepTimeout(Fault):
    """The operation ran longer than its limit: it had its time, and another try would take as long.

    What it had started is ended; what it had changed is looked at again.
    """

    kind = "StepTimeout"
    retryable = False


class NoSecret(Fault):
    """A secret that the configuration names cannot be had on this host now. Its value is never in the words."""

    kind = "NoSecret"


class EditedByHand(Fault):
    """The configuration is not what kedge wrote: a person changed it, and a person decides what becomes of that."""

    kind = "EditedByHand"
    retryable = False


class NoSnapshot(Fault):
    """The snapshot asked for is not on this host, or was never completed."""

    kind = "NoSnapshot"
    retryable = False


class StopTimeout(Fault):
    """The daemon is still alive after its grace. It was not killed."""

    kind = "StopTimeout"


class ServiceDied(Fault):
    """The daemon ended; `detail` has its exit status where known and the tail of its log."""

    kind = "ServiceDied"


class NotHealthy(Fault):
    """The probe did not hold for long enough within its time; `detail` has what was seen."""

    kind = "NotHealthy"


class ProbeFailed(Fault):
    """A condition does not hold now, or could not be looked at."""

    kind = "ProbeFailed"


class CommandFailed(Fault):
    """A command ended with a code that is not among the good ones, or ran out of time."""

    kind = "CommandFailed"


class Unresolved(Fault):
    """A command was begun and nobody knows how it ended. It is never guessed."""

    kind = "Unresolved"
    retryable = False


class NoSpace(Fault):
    """The disk is full; what was half done is taken away."""

    kind = "NoSpace"


class HostError(Fault):
    """Any other error of the operating system, with its text."""

    kind = "HostError"


class ReaderGone(Exception):
    """Nobody reads this session any more: it ends before its next operation."""


def unexpected(error: Exception) -> Fault:
    """The fault for what nobody thought of: it ends the session with a name, so that the failure is noticed."""
    kind = type(error).__name__
    said = f"the host program met something it was not made for: {kind}: {error}"
    return HostError(said[:500], {"error": kind})


def from_os(error: OSError) -> Fault:
    """The fault for an error of the operating system: a full disk has a type of its own."""
    where = f": {error.filename}" if error.filename is not None else ""
    text = f"{error.strerror or error}{where}"
    detail = {"errno": errno.errorcode.get(error.errno or 0, "")}
    if error.errno in FULL:
        return NoSpace(text, detail)
    return HostError(text, detail)
