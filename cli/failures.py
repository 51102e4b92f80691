"""Errors as words and exit codes: the one map from the error tree to what a script sees."""

from __future__ import annotations

from dataclasses import dataclass

from cli.exits import Exit
from kedge.model.errors import (
    CodecError,
    DocumentError,
    DriverError,
    EngineError,
    KedgeError,
    OrderError,
    PlanError,
    SettingsError,
)

_NEXT: dict[type[KedgeError], str] = {
    DocumentError: "mend what is said above; `kedge runbook lint FILE…` checks documents by themselves",
    PlanError: "change the document that is named, then `kedge plan` again",
    OrderError: "`kedge order show FILE` shows what is in an order",
    EngineError: "`kedge up` starts the engine and a worker, `kedge doctor` looks closer",
    CodecError: "`kedge codec show` tells about the ring of keys here",
    SettingsError: "mend the setting; `kedge doctor` shows those in force",
    DriverError: "`kedge doctor` looks closer",
}
_KINDS: dict[str, Exit] = {
    "NotFound": Exit.NOT_FOUND,
    "NoRelease": Exit.NOT_FOUND,
    "NoSnapshot": Exit.NOT_FOUND,
    "ReleaseUnknown": Exit.NOT_FOUND,
    "ReleaseRevoked": Exit.REFUSED,
    "ReleaseNotTrusted": Exit.REFUSED,
    "RepositoryRefused": Exit.REFUSED,
    "RepositoryStale": Exit.REFUSED,
    "Busy": Exit.UNREACHABLE,
    "Unreachable": Exit.UNREACHABLE,
    "TransportLost": Exit.UNREACHABLE,
    "DigestMismatch": Exit.BAD_INPUT,
    "ArchiveRefused": Exit.BAD_INPUT,
    "KeyRefused": Exit.BAD_INPUT,
}


@dataclass(frozen=True, slots=True)
class Explained:
    """An error as it is told: what happened, what to do next, and the exit code."""

    code: Exit
    type: str
    message: str
    next_step: str
    problems: tuple[str, ...] = ()


def explain(error: BaseException) -> Explained | None:
    """The words for an error of ours, or for a file that cannot be used; None: unexpected."""
    if isinstance(error, KedgeError):
        return _of_ours(error)
    if (
        isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
        and error.filename
    ):
        code = Exit.NOT_FOUND if isinstance(error, FileNotFoundError) else Exit.BAD_INPUT
        said = f"{error.filename}: {(error.strerror or 'cannot be used').lower()}"
        return Explained(code, "File", said, "check the name and who may read or write it")
    return None


def _of_ours(error: KedgeError) -> Explained:
    step = error.next_step
    if step is None:
        step = next((said for kind, said in _NEXT.items() if isinstance(error, kind)), "")
    kind = error.kind if isinstance(error, (DriverError, CodecError)) else error.type
    problems = error.problems if isinstance(error, DocumentError) else ()
    return Explained(
        _code(error), kind, error.message, step or "`kedge doctor` looks closer", problems
    )


def _code(error: KedgeError) -> Exit:
    if isinstance(error, (DocumentError, PlanError, OrderError, SettingsError, CodecError)):
        return Exit.BAD_INPUT
    if isinstance(error, EngineError):
        return Exit.UNREACHABLE
    if isinstance(error, DriverError):
        return _KINDS.get(error.kind, Exit.UNEXPECTED)
    return Exit.UNEXPECTED
