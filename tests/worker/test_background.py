"""The worker as a background process, with a stand-in for the worker's own code."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from worker import background
from worker.background import BackgroundWorker, WorkerError
from worker.settings import Settings

Stand = Callable[[str], BackgroundWorker]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    made: list[BackgroundWorker] = []

    def make(body: str) -> BackgroundWorker:
        script = tmp_path / "stand_in.py"
        script.write_text(textwrap.dedent(body))
        monkeypatch.setattr(background, "WORKER_ARGV", (sys.executable, str(script)))
        made.append(BackgroundWorker(Settings.load(tmp_path / "home", graceful_shutdown_seconds=0)))
        return made[-1]

    yield make
    for worker in made:
        worker.stop(grace=1)


GOOD = """
    import time
    from worker.background import announce_ready
    from worker.settings import Settings
    announce_ready(Settings.load())
    time.sleep(60)
"""


def test_it_starts_once_and_is_ready_when_it_says_so(stand_in: Stand) -> None:
    worker = stand_in(GOOD)
    assert worker.state() is None
    first = worker.start("127.0.0.1:1")
    assert worker.is_ready()
    assert worker.start("127.0.0.1:1") == first
    assert worker.stop() == "terminated"
    assert not worker.is_ready()
    assert worker.stop() == "already gone"


def test_one_started_for_another_engine_is_replaced(stand_in: Stand) -> None:
    worker = stand_in(GOOD)
    first = worker.start("127.0.0.1:1")
    second = worker.start("127.0.0.1:2")
    assert second.process != first.process
    assert second.engine_address == "127.0.0.1:2"


def test_killed_it_is_gone_and_the_next_is_another_process(stand_in: Stand) -> None:
    worker = stand_in(GOOD)
    first = worker.start(None)
    assert worker.kill()
    assert worker.state() is None
    assert not worker.kill()
    assert worker.start(None).process != first.process


def test_one_that_ends_at_its_start_shows_the_end_of_its_log(stand_in: Stand) -> None:
    worker = stand_in("import time, sys; time.sleep(0.2); sys.exit('no such policy')")
    with pytest.raises(WorkerError, match=r"(?s)no such policy.*next: mend"):
        worker.start(None)


def test_one_that_takes_no_work_is_told_within_the_wait(stand_in: Stand) -> None:
    worker = stand_in("import time; print('thinking', flush=True); time.sleep(60)")
    with pytest.raises(WorkerError, match=r"(?s)took no work within 1 s.*thinking"):
        worker.start(None, wait=1)
    assert worker.start(None, wait=0).process.pid > 0
