"""Older tokens: refused at once, ended in the middle of a wait, and nothing of theirs lands afterwards."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

FOREVER = {"not": {"service": {"running": True}}}


def waiting(key: str = "h", within: float = 30) -> dict[str, Any]:
    return {"key": key, "op": "healthy", "probe": {"tcp": {"host": "127.0.0.1", "port": 1}},
            "within": within, "service": False}  # fmt: skip


def test_an_older_token_is_refused_before_anything(host: Any) -> None:
    host.good({"key": "f", "op": "fence"}, token=[3, 1, 1])
    for token in ([2, 9, 9], [3, 0, 9], [3, 1, 0]):
        said = host.call(*host.leg(host.release("1"), "g1"), token=token)
        assert said.error["type"] == "Fenced"
        assert said.error["retryable"] is False
        assert said.error["detail"]["fence"] == [3, 1, 1]
        assert [line["ev"] for line in said.lines] == ["failed", "end"]
    assert host.good({"key": "o", "op": "observe"}, token=[3, 1, 1]).observed["releases"] == []


def test_the_fence_survives_and_tells_whose_it_is(host: Any) -> None:
    host.good(token=[7, 2, 1], run="upgrade/x/7")
    kept = json.loads((host.root / ".kedge/fence").read_text())
    assert kept["token"] == [7, 2, 1]
    assert kept["run"] == "upgrade/x/7"
    said = host.call(token=[7, 2, 0])
    assert "upgrade/x/7" in said.error["message"]


def test_a_fence_that_cannot_be_read_stops_everything(host: Any) -> None:
    host.good()
    (host.root / ".kedge/fence").write_text("{")
    assert host.call({"key": "o", "op": "observe"}).error["type"] == "HostError"


def test_a_healthy_wait_ends_within_a_second_of_a_newer_token(host: Any) -> None:
    zombie = host.begin(waiting(), token=[1, 1, 1])
    time.sleep(0.3)
    begun = time.monotonic()
    host.good({"key": "f", "op": "fence"}, token=[2, 1, 1])
    assert zombie.said().error["type"] == "Fenced"
    assert time.monotonic() - begun < 2


def test_the_grace_of_a_stop_ends_too_and_the_newer_one_does_not_signal_again(host: Any) -> None:
    host.good(*host.leg(host.release("1"), "g1", DEAF="1"))
    host.until_events(1)
    stop = {"key": "s", "op": "stop", "grace": 30}
    zombie = host.begin(stop, token=[1, 1, 1])
    host.until_events(2)
    begun = time.monotonic()
    said = host.call({"key": "t", "op": "stop", "grace": 0.5}, token=[2, 1, 1], run="rollback/1")
    assert said.error["type"] == "StopTimeout"
    assert zombie.said().error["type"] == "Fenced"
    assert time.monotonic() - begun < 3
    assert host.events() == ["start 1", "term 1"]


def test_a_slow_probe_ends_too(host: Any) -> None:
    probe = {"command": {"argv": ["sleep", "20"], "timeout": 30}}
    zombie = host.begin({"key": "p", "op": "probe", "probe": probe}, token=[1, 1, 1])
    time.sleep(0.3)
    begun = time.monotonic()
    host.good({"key": "f", "op": "observe"}, token=[2, 1, 1])
    assert zombie.said().error["type"] == "Fenced"
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("point", ["switch.acting", "configure.acting", "start.acting", "stop.acting",
                                   "switch.before", "healthy.before", "switch.acted"])  # fmt: skip
def test_a_session_that_was_stopped_and_goes_on_after_a_newer_one_changes_nothing(
    host: Any, soon: Any, point: str
) -> None:
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"), token=[1, 1, 1])
    reached = host.order(point, "wait")
    zombie = host.begin(*host.leg(two, "g2", "b/"), token=[1, 2, 1])
    soon(reached.exists)
    # The newer one does not wait for it for ever: it takes it out of the way.
    said = host.good(
        {"key": "r/stop", "op": "stop", "grace": 5},
        {"key": "r/switch", "op": "switch", "digest": one.digest},
        host.configure("g1", "r/configure"),
        {"key": "r/start", "op": "start"},
        token=[2, 1, 1],
        run="rollback/1",
    )
    pid = host.pid()
    soon(lambda: f"start {pid} 1" in host.ledger.read_text())
    events = host.events()
    reached.unlink()
    assert not zombie.said().ok
    time.sleep(0.2)
    assert host.pid() == pid
    assert host.events() == events
    assert os.readlink(host.root / "current") == f"releases/{one.digest}"
    assert said.observed["running_release"] == one.digest


@pytest.mark.parametrize("point", ["switch.before-rename", "stop.before-signal", "start.before-record",
                                   "configure.between-renames"])  # fmt: skip
def test_a_session_frozen_in_the_middle_of_an_act_does_not_freeze_the_node(
    host: Any, soon: Any, point: str
) -> None:
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"), token=[1, 1, 1])
    reached = host.order(point, "stop")
    zombie = host.begin(*host.leg(two, "g2", "b/"), token=[1, 2, 1])
    soon(reached.exists)
    begun = time.monotonic()
    host.good(
        {"key": "r/stop", "op": "stop", "grace": 5},
        {"key": "r/switch", "op": "switch", "digest": one.digest},
        host.configure("g1", "r/configure"),
        {"key": "r/start", "op": "start"},
        token=[2, 1, 1],
        run="rollback/1",
    )
    # A start that was frozen counts as not made; it must not be made later either.
    assert time.monotonic() - begun < 15
    zombie.said()
    time.sleep(0.2)
    starts = [event for event in host.until_events(3) if event.startswith("start")]
    assert starts == ["start 1", "start 1"]
    assert host.events().count("term 1") == 1


def test_a_session_frozen_while_it_raises_the_fence_is_taken_out_of_the_way(
    host: Any, soon: Any
) -> None:
    host.good(token=[1, 1, 1])
    reached = host.order("fence.raising", "stop")
    zombie = host.begin({"key": "o", "op": "observe"}, token=[2, 1, 1])
    soon(reached.exists)
    said = host.good({"key": "p", "op": "observe"}, token=[3, 1, 1])
    assert said.observed["token"] == [3, 1, 1]
    assert not zombie.said().whole


def test_another_session_of_the_same_token_waits_and_then_says_busy(host: Any) -> None:
    first = host.begin(waiting(within=3), token=[1, 1, 1])
    time.sleep(0.3)
    said = host.call({"key": "o", "op": "observe"}, token=[1, 1, 1], lock_wait=0.5)
    assert said.error["type"] == "Busy"
    assert said.error["retryable"] is True
    assert said.error["detail"]["key"] == "h"
    assert first.said().error["type"] == "NotHealthy"


def test_a_session_whose_reader_is_gone_ends_in_its_wait_and_does_nothing_more(host: Any) -> None:
    release = host.release("1")
    call = host.begin(waiting(within=2), host.stage(release), token=[1, 1, 1])
    time.sleep(0.2)
    call.socket.close()
    begun = time.monotonic()
    said = host.good({"key": "o", "op": "observe"}, token=[1, 1, 1])
    assert time.monotonic() - begun < 1.5
    assert said.observed["releases"] == []
