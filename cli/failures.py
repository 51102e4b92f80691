"""Errors as words and exit codes: the one map from the error tree to what a script sees."""

from __future__ import annotations

import errno
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
    DocumentError: "fix what is said above; `kedge runbook lint FILE…` checks documents by themselves",
    PlanError: "change the document that is named, then `kedge plan` again",
    OrderError: "`kedge order show FILE` shows what is in an order",
    EngineError: "`kedge up` starts the engine and a worker, `kedge doctor` looks closer",
    CodecError: "`kedge codec show` lists the rings of keys here",
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
    if isinstance(error, OSError) and (
        error.errno in _FULL or (error.filename and error.errno in _OF_FILES)
    ):
        return _of_a_file(error)
    return None


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_OF_FILES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO,
}  # fmt: skip
"""What a person can mend: the place that was named, or its disk."""


def _of_a_file(error: OSError) -> Explained:
    said = (error.strerror or "cannot be used").lower()
    if error.filename:
        said = f"{error.filename}: {said}"
    if error.errno in _FULL:
        return Explained(Exit.UNEXPECTED, "File", said, "make room there, then call it again")
    code = Exit.NOT_FOUND if error.errno == errno.ENOENT else Exit.BAD_INPUT
    return Explained(code, "File", said, "check the name and who may read or write it")


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
