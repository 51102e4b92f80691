"""The session is killed at each point; the same session again comes to the same end, nothing twice.

Ground truth: the daemon's own ledger, and the link as seen by somebody who looks all the time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host import journal

STEPS = ("stage", "stop", "switch", "configure", "start", "healthy")
EVERYWHERE = [
    f"{op}.{point}" for op in STEPS for point in ("before", "acting", "acted", "recorded", "told")
]
FINER = [
    "session.before",
    "fence.before",
    "fence.raising",
    "fence.raised",
    "stage.unpacking",
    "stage.before-rename",
    "stage.after-rename",
    "stop.before-signal",
    "stop.between-signal-and-note",
    "stop.after-signal",
    "switch.before-rename",
    "switch.after-rename",
    "configure.before-rename",
    "configure.between-renames",
    "configure.after-rename",
    "start.before-record",
    "start.between-fork-and-exec",
    "start.forked",
    "start.after-exec",
]


class Watcher:
    """Every target a link ever had, looked at all the time."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.seen: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                target = os.readlink(self.link)
            except OSError:
                target = ""
            if not self.seen or self.seen[-1] != target:
                self.seen.append(target)
            time.sleep(0.0005)

    def close(self) -> list[str]:
        time.sleep(0.01)
        self._over.set()
        self._thread.join()
        return self.seen


@pytest.fixture
def watched(host: Any) -> Iterator[Watcher]:
    one = Watcher(host.root / "current")
    yield one
    one.close()


def again_until_done(host: Any, ops: list[dict[str, Any]]) -> Any:
    """As a caller does: the same operations under the next attempt's token, until they are done."""
    for _ in range(4):
        said = host.call(*ops)
        if said.ok:
            return said
        # What a killed child leaves is an error that may be tried again; nothing else may come.
        assert not said.whole or said.error["retryable"], said.lines
    raise AssertionError(said.lines)


@pytest.mark.parametrize("point", EVERYWHERE + FINER)
def test_killed_at(host: Any, watched: Watcher, point: str) -> None:
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"))
    host.until_events(1)
    reached = host.order(point)
    leg = host.leg(two, "g2", "b/")
    first = host.call(*leg)
    assert reached.exists(), "the point was not reached"
    # The start's child may be killed too: then the session lives on, and says so.
    assert not first.ok
    said = again_until_done(host, leg)
    assert host.until_events(3) == ["start 1", "term 1", "start 2"]
    assert said.result("b/switch") == {"from": one.digest, "to": two.digest}
    assert said.result("b/configure") == {"from": "g1", "to": "g2"}
    assert said.result("b/stop")["was_running"] is True
    assert said.result("b/start") == {"pid": host.pid()}
    assert said.observed["running_release"] == two.digest
    links = ["", f"releases/{one.digest}", f"releases/{two.digest}"]
    assert watched.close() == links
    records = [record["key"] for record in host.journal()]
    assert records == [op["key"] for op in [*host.leg(one, "g1", "a/"), *leg]]
    journal.check_chain((host.root / ".kedge/journal").read_bytes())
    leftovers = [
        name for top in ("releases", "config", "snapshots") for name in os.listdir(host.root / top)
    ]
    assert not [name for name in leftovers if name.startswith(".new")], leftovers


@pytest.mark.parametrize("point", ["stop.before-signal", "stop.between-signal-and-note"])
def test_a_signal_of_which_nobody_knows_is_not_sent_again_within_its_grace(
    host: Any, point: str
) -> None:
    host.good(*host.leg(host.release("1"), "g1", DEAF="1"))
    host.until_events(1)
    host.order(point)
    stop = {"key": "s", "op": "stop", "grace": 0.4}
    assert not host.call(stop).whole
    sent = 1 if point == "stop.between-signal-and-note" else 0
    time.sleep(0.1)
    assert host.events().count("term 1") == sent
    # A whole grace says that it was not sent: only then it is sent, once more at most, and for good.
    assert host.call(stop).error["type"] == "StopTimeout"
    assert host.until_events(2 + sent).count("term 1") == 1 + sent
    assert host.call(stop).error["type"] == "StopTimeout"
    assert host.events().count("term 1") == 1 + sent


SNAPSHOT = ["before", "acting", "copying", "before-rename", "after-rename", "acted", "recorded"]
RESTORE = [
    "before",
    "acting",
    "copying",
    "before-intent",
    "after-intent",
    "before-renames",
    "between-renames",
    "between-paths",
    "after-renames",
    "acted",
    "recorded",
]


@pytest.mark.parametrize(
    "point", [f"snapshot.{one}" for one in SNAPSHOT] + [f"restore.{one}" for one in RESTORE]
)
def test_snapshot_and_restore_killed_at(host: Any, point: str) -> None:
    data = host.root / "data"
    host.good()
    (data / "db").mkdir()
    (data / "db/rows").write_text("old")
    (data / "state.json").write_text("height 5")
    (host.root / "extra").mkdir()
    (host.root / "extra/x").write_text("x")
    take = {"key": "s", "op": "snapshot", "id": "a", "paths": ["data", "extra"]}
    back = {"key": "r", "op": "restore", "id": "a", "keep": ["state.json"]}
    host.order(point)
    if point.startswith("snapshot"):
        assert not host.call(take).whole
    host.good(take)
    (data / "db/rows").write_text("new")
    (data / "db/more").write_text("new")
    (data / "state.json").write_text("height 9")
    if point.startswith("restore"):
        assert not host.call(back).whole
    said = host.good(back)
    assert said.result("r") == {"id": "a", "files": 3, "replaced": "replaced-1"}
    assert (data / "db/rows").read_text() == "old"
    assert not (data / "db/more").exists()
    assert (data / "state.json").read_text() == "height 9"
    replaced = host.root / "snapshots/replaced-1"
    assert (replaced / "data/db/more").read_text() == "new"
    assert (replaced / "extra/x").read_text() == "x"
    assert said.observed["replaced"] == ["replaced-1"]
    assert said.observed["snapshots"] == ["a"]
    assert not (host.root / ".kedge/restore.new").exists()


@pytest.mark.parametrize("point", ["restore.between-renames", "restore.between-paths"])
def test_a_half_swap_is_completed_by_any_next_session(host: Any, point: str) -> None:
    host.good()
    (host.root / "data/rows").write_text("old")
    host.good({"key": "s", "op": "snapshot", "id": "a", "paths": ["data"]})
    (host.root / "data/rows").write_text("new")
    host.order(point)
    assert not host.call({"key": "r", "op": "restore", "id": "a"}).whole
    host.good({"key": "o", "op": "observe"}, token=[9, 1, 1], run="rollback/2")
    assert (host.root / "data/rows").read_text() == "old"
