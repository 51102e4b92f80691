"""Everything a process says comes out as one stream of one shape, without secrets."""

from __future__ import annotations

import io
import json
import logging
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from temporalio.client import Client
from temporalio.worker import Worker

from tests.worker.speaking import Leg, Speaks, speaks
from worker import logs
from worker.telemetry import LoggingInterceptor


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    written = io.StringIO()
    logs.configure("json", "info", written)
    return written


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_structlog_and_the_standard_library_have_one_shape(stream: io.StringIO) -> None:
    log = logs.get_logger("kedge.test")
    with logs.bound(run="upgrade/etcd/1", wave=0, node="n1", step="switch", attempt=2):
        log.info("switched", digest="sha256:1")
        logging.getLogger("a.library").warning("slow: %s s", 3, extra={"peer": "n2"})
    log.debug("not shown")
    log.error("after")
    first, second, third = lines(stream)
    fields = {"run": "upgrade/etcd/1", "wave": 0, "node": "n1", "step": "switch", "attempt": 2}
    assert fields.items() <= first.items()
    assert fields.items() <= second.items()
    assert (first["event"], first["level"], first["logger"]) == ("switched", "info", "kedge.test")
    assert (second["event"], second["level"], second["peer"]) == ("slow: 3 s", "warning", "n2")
    assert third["event"] == "after"
    assert "run" not in third


def test_an_exception_is_one_line_without_local_variables(stream: io.StringIO) -> None:
    def fails(passphrase: str) -> None:
        raise ValueError(f"no {len(passphrase)}")

    secret = "OPEN SESAME".lower()
    try:
        fails(secret)
    except ValueError:
        logs.get_logger("x").exception("it failed")
        logging.getLogger("y").exception("it failed")
    for line in lines(stream):
        assert "ValueError: no 11" in line["exception"]
        assert "open sesame" not in json.dumps(line)


def test_warnings_come_in_the_same_stream(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(stream)
    assert line["logger"] == "py.warnings"


def test_what_looks_like_a_secret_is_not_written(stream: io.StringIO) -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1\n-----END OPENSSH PRIVATE KEY-----"
    log = logs.get_logger("x")
    log.info(
        "connecting to https://me:hunter2@host/x",
        api_key="hunter2",
        settings={"db": {"password": "hunter2"}, "list": [{"Authorization": "hunter2"}]},
        text=f"read {key}",
        header="Bearer hunter2hunter2",
        access_token="hunter2",
    )
    logging.getLogger("y").info("key %s", key)
    log.info("fenced", token=7, epoch=3)
    written = stream.getvalue()
    assert "hunter2" not in written
    assert "b3Blbn" not in written
    assert (lines(stream)[2]["token"], lines(stream)[2]["epoch"]) == (7, 3)


@pytest.mark.parametrize(
    "text",
    [
        "redis://:hunter2@cache/0",
        "postgresql://kedge:hun/ter2@db/kedge",
        "postgresql://kedge:hunter2@hunter2@db/kedge",
        "https://hunter2@example.org/x",
        "authorization: bearer hunter2hunter2",
        "Authorization: Basic aHVudGVyMjpodW50ZXIy",
        "connection failed: host=db password=hunter2 dbname=kedge",
        "connection failed: host=db password='it is hunter2' dbname=kedge",
        "PGPASSWORD=hunter2 psql",
        "VAULT_TOKEN='hunter2'",
        '{"client_secret": "hunter2", "x": 1}',
        "{'X-Api-Key': 'hunter2'}",
    ],
)
def test_what_has_the_form_of_a_secret_is_not_written(stream: io.StringIO, text: str) -> None:
    logs.get_logger("x").warning("failed", reason=text)
    logging.getLogger("y").warning("failed: %s", text)
    logs.get_logger("z").error("failed", exc_info=ValueError(text))
    written = stream.getvalue()
    assert len(lines(stream)) == 3
    for part in ("hunter2", "ter2", "aHVudGVy"):
        assert part not in written


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8234/a/b does not answer",
        "no key is given; next: --key FILE, or token by hand",
        "the passphrase: asked at the terminal",
        "next: put it into PGPASSWORD or the file that PGPASSFILE names",
        "etcd@3.5.1 from https://releases.internal:8443/x is signed by ada@example.org",
    ],
)
def test_what_only_speaks_of_secrets_is_written(stream: io.StringIO, text: str) -> None:
    logs.get_logger("x").warning("said", reason=text)
    assert lines(stream)[0]["reason"] == text


def test_fields_with_the_names_of_headers_and_secrets_as_bytes_are_not_written(
    stream: io.StringIO,
) -> None:
    logs.get_logger("x").info(
        "asked",
        headers={"X-Api-Key": "hunter2", "Set-Cookie": "a=hunter2", "X-Auth-Token": "hunter2"},
        raw=b"Bearer hunter2hunter2",
    )
    assert "hunter2" not in stream.getvalue()


def test_the_console_shows_the_same_and_no_colours_into_a_file() -> None:
    written = io.StringIO()
    logs.configure("console", "info", written)
    with logs.bound(run="r1"):
        logs.get_logger("x").info("switched", password="hunter2")
    try:
        int("boom")
    except ValueError:
        logs.get_logger("x").exception("failed")
    text = written.getvalue()
    assert "switched" in text
    assert "run=r1" in text
    assert "ValueError: invalid literal" in text
    assert "hunter2" not in text
    assert "\x1b[" not in text


@pytest.mark.temporal
async def test_temporals_loggers_come_with_their_fields(
    client: Client, stream: io.StringIO
) -> None:
    queue, run = f"logs-{uuid.uuid4()}", f"upgrade/logs/{uuid.uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Speaks],
        activities=[speaks],
        interceptors=[LoggingInterceptor()],
    ):
        await client.execute_workflow(
            Speaks.run, Leg(run="r1", wave=3, node="n1"), id=run, task_queue=queue
        )
    said = {line["event"]: line for line in lines(stream)}
    from_workflow = said["from the workflow"]
    assert (from_workflow["workflow"], from_workflow["wave"]) == (run, 3)
    assert "temporal_workflow" not in from_workflow
    for event in ("from the activity of n1", "from structlog"):
        expected = {"run": "r1", "wave": 3, "node": "n1", "attempt": 1, "workflow": run}
        assert expected.items() <= said[event].items()
