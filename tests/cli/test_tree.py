"""What a watcher sees: views from statuses, drawn as text and compared with pictures that were looked at."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from cli.changes import changes
from cli.tree import diff_lines, render
from cli.watching import _is_enough
from desk.views import Pieces, RunView, StepNow, view_of
from kedge.model.base import Json
from kedge.model.order import OrderVerdict
from kedge.model.run import Failure, Phase, failure_of_the_run
from kedge.model.status import RunStatus, WaveProgress, WideningProgress
from tests.cli import worlds


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of day are shown as the viewer's clock has them."""
    import time

    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()


def drawn(view: RunView, rows: int = 200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=110, legacy_windows=False).print(render(view, rows=rows))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def upgrading() -> Pieces:
    """Wave followers: one done, one healthy in a moment, one stopping for the second time."""
    return Pieces(
        status=worlds.status(child="upgrade/etcd/1/widening/1"),
        widening=WideningProgress(
            wave=1, state="upgrading", child="upgrade/etcd/1/wave-1/3", nodes_done=0
        ),
        wave=WaveProgress(
            wave=1, program="forward", waiting=(), running=(2, 3), done=(1,), failed=()
        ),
        steps={
            2: StepNow(step="healthy", said="healthy for 2 of 5 s"),
            3: StepNow(step="stop", said="waits for the end", attempt=2),
        },
    )


def baking() -> Pieces:
    return Pieces(
        status=worlds.status(nodes_done=0, wave=0, said="wave canary: 1 node"),
        widening=WideningProgress(
            wave=0, state="baking", child=None, until="2026-03-01T12:14:10Z", nodes_done=1
        ),
    )


def going_back() -> Pieces:
    back = worlds.status(
        run="rollback/etcd/1-auto",
        kind="rollback",
        phase="going-back",
        before="3.5.1",
        after="3.5.0",
        nodes_done=0,
        waves=1,
        wave=0,
    )
    return Pieces(
        status=worlds.status(
            phase="going-back",
            said="going back by itself: etcd-1: not healthy",
            wave=0,
            nodes_done=0,
            failures=(worlds.failure(0),),
            successor="rollback/etcd/1-auto",
        ),
        back=Pieces(
            status=back,
            wave=WaveProgress(
                wave=None, program="back", waiting=(), running=(0,), done=(), failed=()
            ),
            steps={0: StepNow(step="switch", said="")},
        ),
    )


def parked_rollback(phase: Phase, *failures: Failure, outcome: str = "") -> Pieces:
    """An upgrade whose rollback is parked."""
    waiting = worlds.parked().waiting
    assert waiting is not None
    back = worlds.status(
        run="rollback/etcd/1-auto",
        kind="rollback",
        phase="parked",
        said="back: the run at no step: Lost: its wave did not come to its end",
        before="3.5.1",
        after="3.5.0",
        nodes_done=1,
        failures=failures,
        waiting=waiting.model_copy(update={"subject": "back-1"}),
    )
    status = worlds.status(
        phase=phase, said="going back by itself", failures=(worlds.failure(0),), outcome=outcome,
        successor=back.run, child=None if outcome else back.run,
    )  # fmt: skip
    return Pieces(status=status, back=Pieces(status=back))


def preflight() -> Pieces:
    return Pieces(
        status=worlds.status(phase="preflight", said="looks at 5 nodes", wave=0, nodes_done=0)
    )


SCENES = {
    "preflight looks at every node": preflight(),
    "a wave runs": upgrading(),
    "the canary bakes": baking(),
    "a gate waits for one more signature": Pieces(status=worlds.at_gate()),
    "a node failed and the run is parked": Pieces(status=worlds.parked()),
    "paused": Pieces(status=worlds.status(phase="paused", said="paused: waits for a resume or an abort")),
    "the canary goes back by itself": going_back(),
    "the rollback of a run is parked": parked_rollback("going-back", worlds.failure(0)),
    "a rollback failed as a whole run": parked_rollback("going-back", failure_of_the_run("Lost", "its wave did not come to its end", "back")),
    "a run was pre-empted and the rollback in its place is parked": parked_rollback("preempted", worlds.failure(0), outcome="preempted"),
    "its workflow was terminated": Pieces(
        status=worlds.status(
            phase="terminated", said="its workflow was terminated in Temporal, so nothing goes on here", nodes_done=2,
            ended="2026-03-01T12:09:00Z", outcome="terminated",
        )
    ),
    "done": Pieces(
        status=worlds.status(
            phase="done", said="done: every node is on the new release", wave=3, nodes_done=5,
            ended="2026-03-01T12:09:00Z", outcome="done",
        )
    ),
    "pre-empted half way": Pieces(
        status=worlds.status(
            phase="preempted", said="pre-empted by rollback/etcd/2", nodes_done=2,
            successor="rollback/etcd/2", ended="2026-03-01T12:09:00Z", outcome="preempted",
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_a_run_is_drawn_as_a_tree(name: str, snapshot: SnapshotAssertion) -> None:
    view = view_of(SCENES[name], worlds.plan(), worlds.NOW)
    assert drawn(view) == snapshot


def test_an_engine_that_is_gone_is_said_first_and_the_rest_stays(
    snapshot: SnapshotAssertion,
) -> None:
    view = view_of(upgrading(), worlds.plan(), worlds.NOW)
    gone = view.model_copy(update={"gone": 4.2, "gone_why": "engine unreachable"})
    assert "engine unreachable for 4 s" in drawn(gone)
    assert drawn(gone) == snapshot


def test_a_wave_of_hundreds_shows_counts_and_only_the_nodes_that_run_or_failed(
    snapshot: SnapshotAssertion,
) -> None:
    pieces = Pieces(
        status=worlds.status(nodes=500, failures=(worlds.failure(7),)),
        widening=WideningProgress(wave=1, state="upgrading", child="x", nodes_done=200),
        wave=WaveProgress(
            wave=1,
            program="forward",
            waiting=tuple(range(206, 300)),
            running=(203, 204, 205),
            done=(201, 202),
            failed=(7,),
        ),
        steps={203: StepNow(step="switch"), 204: StepNow(step="start")},
    )
    text = drawn(view_of(pieces, worlds.plan(500), worlds.NOW))
    assert "of 498 nodes done" in text
    assert text.count("etcd-") < 12
    assert text == snapshot


def test_what_does_not_fit_the_screen_is_counted() -> None:
    pieces = upgrading()
    pieces = pieces.model_copy(
        update={
            "wave": WaveProgress(
                wave=1,
                program="forward",
                waiting=(),
                running=tuple(range(1, 40)),
                done=(),
                failed=(),
            )
        }
    )
    text = drawn(view_of(pieces, worlds.plan(50), worlds.NOW), rows=5)
    assert "and 34 more" in text


def test_without_the_plan_a_run_is_still_shown() -> None:
    view = view_of(upgrading(), None, worlds.NOW)
    assert "wave 2 of 3, 1 of 5 nodes done" in drawn(view)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (worlds.at_gate(), "kedge approve upgrade/etcd/1 --gate ship-it --key <your key>"),
        (
            worlds.parked(),
            "kedge decide upgrade/etcd/1 --item wave-1 --choice retry --key <your key>",
        ),
        (worlds.status(phase="paused"), "kedge resume upgrade/etcd/1 --key <your key>"),
    ],
)
def test_the_very_command_that_answers_is_shown(status: RunStatus, words: str) -> None:
    assert words in drawn(view_of(Pieces(status=status), worlds.plan(), worlds.NOW))


def test_who_broke_the_glass_is_shown_with_the_run() -> None:
    verdict = OrderVerdict(
        accepted=True,
        rule="accepted",
        said="",
        digest="a" * 64,
        verb="pause",
        person="olga",
        comment="writes are lost",
        break_glass=True,
    )
    pieces = upgrading()
    status = pieces.status.model_copy(update={"orders": (verdict,)})
    text = drawn(view_of(pieces.model_copy(update={"status": status}), worlds.plan(), worlds.NOW))
    assert "olga broke the glass to pause: “writes are lost”" in text
    assert f"kedge review {status.run}" in text


@pytest.mark.parametrize("kind", ["rollback", "upgrade"])
def test_a_failure_of_the_whole_run_is_no_nodes(kind: str) -> None:
    pieces = parked_rollback("going-back", failure_of_the_run("Lost", "it was terminated", "back"))
    assert pieces.back is not None
    view = view_of(pieces if kind == "upgrade" else pieces.back, worlds.plan(), worlds.NOW)
    shown = view.back if kind == "upgrade" else view.waves[0]
    assert shown is not None
    assert [node.index for node in shown.nodes] == []
    assert "etcd-5: Lost" not in drawn(view)


def test_watching_until_somebody_is_asked_ends_when_the_rollback_in_its_place_is_parked() -> None:
    parked = view_of(parked_rollback("going-back", worlds.failure(0)), worlds.plan(), worlds.NOW)
    assert parked.status.waiting is None
    assert _is_enough(parked, until_waiting=True)
    assert not _is_enough(parked, until_waiting=False)
    assert not _is_enough(view_of(going_back(), worlds.plan(), worlds.NOW), until_waiting=True)
    lines = changes(view_of(going_back(), worlds.plan(), worlds.NOW), parked)
    assert any(line.startswith("rollback/etcd/1-auto waits for parked back-1") for line in lines)
    assert any("decide rollback/etcd/1-auto --item back-1 --choice retry" in line for line in lines)


def test_an_edit_by_hand_is_shown_as_lines_that_nothing_in_them_can_break() -> None:
    diff: list[Json] = ["--- app.conf", "-level = info", "+level = \x1b[2Jdebug", *["+x"] * 40]
    failure = failure_of_the_run("EditedByHand", "changed by hand", saw={"diff": diff})
    lines = [line.plain for line in diff_lines(failure)]
    assert lines[:3] == [
        "      --- app.conf",
        "      -level = info",
        "      +level = \\x1b[2Jdebug",
    ]
    assert lines[-1] == "      and 19 more lines: `kedge status RUN --json` has them"
    assert diff_lines(failure_of_the_run("Other", "no diff")) == []
