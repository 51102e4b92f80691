"""One stream of structured logs for everything that a kedge process says.

structlog's own loggers, the standard library's, the Temporal SDK's, ``workflow.logger`` and
``activity.logger`` all end in one handler and one shape: JSON lines or a coloured console. The
fields ``run``, ``wave``, ``node``, ``step`` and ``attempt`` are bound where they are known
(``bound``), and appear on every line that is written meanwhile.

What looks like a secret, by its name or by its form, is not written.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
import temporalio.activity
import temporalio.workflow
from structlog.typing import EventDict, Processor, WrappedLogger

from kedge.model.outside import line
from worker.settings import LogFormat, LogLevel

REDACTED = "[not logged]"
MAX_SAID = 4000
_STACKS = frozenset({"exception", "stack"})
NOT_SHOWN = "[a message of Temporal's, not logged]"

_NAMES = (
    r"pass(?:word|wd|phrase)|secret|api[_-]?key|private[_-]?key|credential|authorization|cookie|"
    r"(?:access|auth|bearer|refresh|session|id|vault)[_-]?token"
)
_SECRET_NAME = re.compile(rf"{_NAMES}|^token$", re.IGNORECASE)
_SECRET_FORMS = (
    re.compile(
        r"(?s)()-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    ),
    # A name alone may be a token, too. Up to the last "@" where a ":" is before it: passwords have slashes in them.
    re.compile(r"(://)(?:[^/\s:@\"']*:[^\s\"'\[\]]*|[^/\s@\"']+)(?=@)"),
    re.compile(r"(?i)(\bBearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(\bBasic )[A-Za-z0-9+/]{8,}=*"),
    # name=value and "name": "value", as programs show their settings. A sentence about one has a blank there.
    re.compile(
        rf"(?i)(?<![\w-])([\w-]{{0,40}}(?:{_NAMES})[\w-]{{0,40}}(?:=|:(?=\S)|[\"']:\s*))"
        r"(?:\"[^\"]*\"?|'[^']*'?|[^\s,;\"']+)"
    ),
)
"""What is not written has no name to be known by: all that each finds but its first group."""
# Deep enough for any event of ours; deeper values are shown by their text, which is redacted too.
_REDACT_DEPTH = 6
# What the Temporal SDK puts on a record, and what it is called on our lines.
_TEMPORAL_FIELDS = {
    "workflow_id": "workflow",
    "workflow_type": "workflow_type",
    "run_id": "workflow_run",
    "activity_type": "activity",
    "attempt": "attempt",
    "task_queue": "task_queue",
}


def configure(
    log_format: LogFormat = "json", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Sets up logging for this process, once more if need be; ``stream`` is standard error.

    Everything below ``level`` is dropped where it is written, before it costs anything.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    foreign: list[Processor] = [*shared, structlog.stdlib.ExtraAdder(), _lift_temporal]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=foreign,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(log_format, handler.stream),
            ],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Tests configure more than once; what a module bound before must follow.
        cache_logger_on_first_use=False,
    )
    # The SDK repeats its fields inside each message; here they are fields of their own.
    for adapter in (temporalio.activity.logger, temporalio.workflow.logger):
        for name in ("activity_info_on_message", "workflow_info_on_message"):
            if hasattr(adapter, name):
                setattr(adapter, name, False)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; ``log.info("switched", digest=…)`` writes an event with fields."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bound(
    *,
    run: str | None = None,
    wave: int | str | None = None,
    node: str | None = None,
    step: str | None = None,
    attempt: int | None = None,
) -> AbstractContextManager[None]:
    """Puts what is given on every line that this task, and tasks it starts, write inside."""
    fields = {"run": run, "wave": wave, "node": node, "step": step, "attempt": attempt}
    given = {name: value for name, value in fields.items() if value is not None}
    return structlog.contextvars.bound_contextvars(**given)


def _rendering(log_format: LogFormat, stream: Any) -> list[Processor]:
    if log_format == "json":
        return [
            # Never with local variables: that is where keys are.
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(),
        ]
    return [
        structlog.processors.format_exc_info,
        _redact,
        _one_line,
        structlog.dev.ConsoleRenderer(
            colors=bool(getattr(stream, "isatty", lambda: False)()),
            timestamp_key="at",
            # Plain: the pretty one shows local variables, and that is where keys are.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _lift_temporal(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Makes fields of what the SDK's loggers carry in one dictionary."""
    for key in ("temporal_workflow", "temporal_activity"):
        info = event.pop(key, None)
        if isinstance(info, Mapping):
            for theirs, ours in _TEMPORAL_FIELDS.items():
                if theirs in info:
                    event.setdefault(ours, info[theirs])
    return event


def _one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What others said begins no line of its own on a console; in JSON it cannot."""
    return {
        key: line(value, MAX_SAID) if isinstance(value, str) and key not in _STACKS else value
        for key, value in event.items()
    }


def _redact(_: WrappedLogger, __: str, event: EventDict) -> MutableMapping[str, Any]:
    return {key: _clean(key, value, _REDACT_DEPTH) for key, value in event.items()}


def _clean(key: str, value: Any, depth: int) -> Any:
    if isinstance(value, (int, float, type(None))):
        # A number is no secret: a fence's token, for one, has to be seen.
        return value
    if _SECRET_NAME.search(key):
        return REDACTED
    if type(value).__module__.startswith("temporalio.api."):
        # Payloads, failures, histories: what is in them is not for logs, sealed or not.
        return NOT_SHOWN
    if depth > 0 and isinstance(value, Mapping):
        return {name: _clean(str(name), inner, depth - 1) for name, inner in value.items()}
    if depth > 0 and isinstance(value, (list, tuple)):
        return [_clean("", inner, depth - 1) for inner in value]
    text = value if isinstance(value, str) else str(value)
    for form in _SECRET_FORMS:
        text = form.sub(rf"\g<1>{REDACTED}", text)
    return text
