"""What a host program says is read strictly: typed, bounded and clean, or a failure with a name."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kedge.drivers import protocol
from kedge.drivers.ports import HostEvent, SessionEnd, SessionRequest
from kedge.drivers.protocol import Conversation, ProtocolError
from kedge.model.base import Json, canonical
from kedge.model.errors import DriverError
from kedge.model.outside import is_line
from kedge.model.plan import PlannedNode
from tests.drivers.lying import CHANGES, SEEN, VALUES, Lying, changed, lines, raw

OPS: tuple[dict[str, Json], ...] = ({"key": "a", "op": "stop"}, {"key": "b", "op": "start"})
ASKED: dict[str, Any] = {"ops": list(OPS)}


def node() -> PlannedNode:
    return PlannedNode(
        name="n1",
        address="127.0.0.1",
        platform="linux/amd64",
        root="/n1",
        transport="local",
        service="process",
    )


@pytest.fixture
async def lying(tmp_path: Path) -> AsyncIterator[Lying]:
    one = Lying(tmp_path)
    yield one
    await one.close()


def clean(value: HostEvent | SessionEnd) -> None:
    """Everything of it can be written down, and what is a sentence is one line."""
    if isinstance(value, SessionEnd):
        canonical(dict(value.observed))
        for event in (*value.done, *([value.failed] if value.failed else [])):
            clean(event)
        return
    for part in (
        value.result,
        value.before,
        value.after,
        value.error.detail if value.error else {},
    ):
        canonical(dict(part))
    assert is_line(value.said)
    assert len(value.said) <= protocol.MAX_SAID
    if value.error is not None:
        assert value.error.type in protocol.KINDS
        assert is_line(value.error.message)
        assert len(json.dumps(dict(value.error.detail))) <= protocol.MAX_DETAIL + 2000


@pytest.mark.parametrize(
    "told",
    [
        {},
        [],
        {"ev": "shout", "key": "k"},
        {"ev": "failed", "key": "k", "op": "stop"},
        {"ev": "failed", "key": "k", "op": "stop", "error": {"type": "X"}},
        {"ev": "failed", "key": "k", "op": "stop", "error": "text"},
        {"ev": "done", "key": 1},
        {"ev": "done", "key": "k", "replayed": "yes"},
        {"ev": "done", "key": "k", "result": [1]},
        {"ev": "done", "key": "k", "before": {"release": ["x"]}},
        {"ev": "done", "key": "k", "after": {"running": 1}},
        {"ev": "done", "key": "k", "after": {"generation": "a\nb"}},
        {"ev": "end", "ok": 1},
        {"ev": "end", "ok": True, "observed": {"journal": [True, "x"]}},
        {"ev": "end", "ok": True, "observed": {"token": [1, 2]}},
        {"ev": "end", "ok": True, "observed": "nothing"},
    ],
)
def test_a_line_that_is_not_of_the_protocol_is_refused(told: Any) -> None:
    with pytest.raises(ProtocolError):
        protocol.read(json.dumps(told).encode())


@pytest.mark.parametrize(
    "told",
    [
        b'{"ev":"end","ok":false,"ok":true}',
        b'{"ev":"end","ok":true,"observed":{"pid":NaN}}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff",
        b'{"ev":"end","ok":true}{"ev":"end"}',
        b'{"ev":"done","key":"k","result":{"x":' + b"9" * 5000 + b"}}",
    ],
    ids=lambda told: repr(told[:20]),
)
def test_bytes_that_are_not_clearly_one_object_are_refused(told: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.read(told)


@given(st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_line_or_no_line(told: bytes) -> None:
    refused = ""
    try:
        clean(protocol.read(told))
    except ProtocolError as error:
        refused = str(error)
    assert is_line(refused)


@given(CHANGES)
@example([(0, "fail", "\ud800")])
@example([(1, "result", {"waited": 1e308, "saw": "\ud800"})])
@example([(4, "observed", {"release": [1]})])
@settings(max_examples=200)
def test_a_session_that_is_changed_is_none_or_stays_true_to_what_was_asked(changes: Any) -> None:
    told, refused = Conversation(OPS), ""
    try:
        for one in changed(changes)(ASKED).split(b"\n")[:-1]:
            event = told.read(one)
            if event is not None:
                clean(event)
    except ProtocolError as error:
        refused = str(error)
    assert is_line(refused)
    if refused or told.end is None:
        return
    clean(told.end)
    assert [event.key for event in told.end.done] == ["a", "b"][: len(told.end.done)]
    assert told.end.ok == (len(told.end.done) == 2 and told.end.failed is None)


def test_a_session_that_says_it_is_well_has_done_everything() -> None:
    told = Conversation(OPS)
    for one in lines(ASKED)[:2]:
        told.read(raw([one]))
    with pytest.raises(ProtocolError, match="not everything"):
        told.read(raw([{"ev": "end", "ok": True, "observed": SEEN}]))


@pytest.mark.parametrize(
    "kind", ["TransportLost", "Unreachable", "NotAuthorised", "ReleaseRevoked", "Unseen", "x\ny"]
)
def test_an_error_of_kedges_own_is_not_a_nodes_to_say(kind: str) -> None:
    """By its name a lost connection would be tried again without a word, and a release would be everybody's fault."""
    error = {"type": kind, "message": "so it says", "retryable": True}
    found = protocol.read(
        json.dumps({"ev": "failed", "key": "k", "op": "stop", "error": error}).encode()
    )
    assert isinstance(found, HostEvent)
    assert found.error is not None
    assert found.error.type == "HostError"
    assert is_line(found.error.message)


def test_an_observation_of_a_later_host_program_is_read() -> None:
    told = {"ev": "end", "ok": True, "observed": {**SEEN, "user": "etcd", "more": {"deep": 1}}}
    found = protocol.read(json.dumps(told).encode())
    assert isinstance(found, SessionEnd)
    assert found.observed == {**SEEN, "user": "etcd"}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES)
async def test_whatever_a_host_program_says_a_session_has_an_end_or_an_error(
    lying: Lying, changes: Any
) -> None:
    lying.says = changed(changes)
    request = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=OPS)
    begun = time.monotonic()
    refused: DriverError | None = None
    try:
        clean(await lying.transport.session(node(), request, clean))
    except DriverError as error:
        refused = error
    assert refused is None or refused.kind in {"ProtocolError", "TransportLost"}
    assert refused is None or is_line(refused.message)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (b"", "TransportLost"),
        (b'{"ev": "begin"', "TransportLost"),
        (b"Connection refused by policy\n", "ProtocolError"),
        (b"x" * (protocol.MAX_LINE + 1), "ProtocolError"),
        (raw([{"ev": "end", "ok": True}]), "ProtocolError"),
        (raw([{"ev": "done", "key": "other", "op": "stop", "result": {}}]), "ProtocolError"),
    ],
    ids=[
        "nothing",
        "half a line",
        "a banner",
        "no end of a line",
        "done without anything",
        "another key",
    ],
)
async def test_what_is_no_answer_is_told_from_a_connection_that_was_lost(
    lying: Lying, says: bytes, kind: str
) -> None:
    lying.says = lambda _: says
    request = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=OPS)
    with pytest.raises(DriverError) as caught:
        await lying.transport.session(node(), request, lambda _: None)
    assert (caught.value.kind, caught.value.retryable) == (kind, kind == "TransportLost")


async def test_a_failure_that_was_said_counts_without_a_last_line(lying: Lying) -> None:
    error = {"type": "StopTimeout", "message": "still alive", "retryable": True}
    failed = {"ev": "failed", "key": "a", "op": "stop", "error": error}
    lying.says = lambda _: raw([{"ev": "begin", "key": "a", "op": "stop"}, failed])
    request = SessionRequest(run="upgrade/f/1", token=(1, 1, 1), ops=OPS)
    end = await lying.transport.session(node(), request, lambda _: None)
    assert end.failed is not None
    assert end.failed.error is not None
    assert end.failed.error.type == "StopTimeout"
