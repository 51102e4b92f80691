"""The error tree: three families (world, programmer, transport) under one root.

Every error is one sentence for a person and, where there is one, what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping

from kedge.model.base import Json


class KedgeError(Exception):
    """Root. ``type`` is stable and may be relied on; ``next_step`` says what the reader can do."""

    type = "KedgeError"

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step


class DocumentError(KedgeError):
    """One or more problems in documents from outside, each ``file:line:column: path: message``."""

    type = "DocumentError"

    def __init__(self, problems: tuple[str, ...], *, next_step: str | None = None) -> None:
        super().__init__("\n".join(problems), next_step=next_step)
        self.problems = problems


class PlanError(KedgeError):
    """The documents are sound each by itself, but no plan follows from them together."""

    type = "PlanError"


class OrderError(KedgeError):
    """An order or signature cannot be read at all (a readable one that breaks a rule is a verdict, not an error)."""

    type = "OrderError"


class DriverError(KedgeError):
    """The world failed under a driver. ``kind`` is the host program's error type or one of
    ``Unreachable``, ``TransportLost``, ``ProtocolError`` (a host program that says what is not its protocol),
    ``Unexpected``, ``HostKeyRefused``, ``NotFound``, ``StoreError``, or one of those in
    :mod:`kedge.model.trusted`.
    """

    type = "DriverError"

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retryable: bool,
        detail: Mapping[str, Json] | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.kind = kind
        self.retryable = retryable
        self.detail: Mapping[str, Json] = dict(detail or {})


FORGED = "Forged"
"""The type of a failure that stands for an answer which nobody with the workers' keys gave: it is asked for again."""


class CodecError(KedgeError):
    """A payload cannot be sealed or opened. ``kind`` is ``NoRing``, ``RingRefused``, ``UnknownKey``, ``Tampered``,
    ``Plaintext``, ``WrongWorkflow``, ``WrongKind`` or ``TooLarge``. No message repeats anything of a key or a payload.
    """

    type = "CodecError"

    def __init__(self, kind: str, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.kind = kind


class EngineError(KedgeError):
    """The Temporal server cannot be had, started or reached."""

    type = "EngineError"


class SettingsError(KedgeError):
    """A setting is missing or wrong."""

    type = "SettingsError"
