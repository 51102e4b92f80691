"""Without a terminal, a watch prints what changed, once."""

from __future__ import annotations

from cli import words
from cli.changes import changes
from desk.views import Pieces, RunView, StepNow, view_of
from kedge.model.status import WaveProgress, WideningProgress
from tests.cli import worlds


def wave(running: dict[int, str], done: tuple[int, ...] = ()) -> RunView:
    waiting = tuple(node for node in (1, 2, 3) if node not in running and node not in done)
    pieces = Pieces(
        status=worlds.status(),
        widening=WideningProgress(wave=1, state="upgrading", child="x", nodes_done=0),
        wave=WaveProgress(
            wave=1, program="forward", waiting=waiting, running=tuple(running), done=done, failed=()
        ),
        steps={node: StepNow(step=step) for node, step in running.items()},
    )
    return view_of(pieces, worlds.plan(), worlds.NOW)


def test_the_first_line_says_what_it_is_about() -> None:
    first = changes(None, wave({1: "stop"}))
    assert first[0] == "upgrade/etcd/1 3.5.0 → 3.5.1: 5 nodes"
    assert "  etcd-2: stop" in first


def test_a_step_is_said_when_it_changes_and_not_again() -> None:
    assert changes(wave({1: "stop"}), wave({1: "switch"})) == ["  etcd-2: switch"]
    assert changes(wave({1: "switch"}), wave({1: "switch"})) == []
    assert changes(wave({1: "switch"}), wave({2: "stop"}, done=(1,))) == [
        "  etcd-2: done",
        "  etcd-3: stop",
    ]


def test_a_gate_says_the_command_that_answers_it_and_each_signature() -> None:
    at_gate = view_of(Pieces(status=worlds.at_gate()), worlds.plan(), worlds.NOW)
    lines = changes(wave({1: "stop"}), at_gate)
    assert "waits for gate ship-it" in lines
    assert any("kedge approve upgrade/etcd/1 --gate ship-it --key" in line for line in lines)
    assert "  1 of 2 signatures (alice)" in lines
    assert changes(at_gate, at_gate) == []


def test_silence_and_its_end_are_said_once() -> None:
    view = wave({1: "stop"})
    gone = view.model_copy(update={"gone": 2.0, "gone_why": "engine unreachable"})
    longer = view.model_copy(update={"gone": 4.0, "gone_why": "engine unreachable"})
    assert changes(view, gone) == [
        "engine unreachable; nothing is lost, the run goes on from there"
    ]
    assert changes(gone, longer) == []
    assert changes(longer, view) == ["answers again, after 4 s"]


def test_of_a_large_wave_only_every_twentieth_node_is_a_line() -> None:
    def at(done: int) -> RunView:
        pieces = Pieces(
            status=worlds.status(nodes=500),
            widening=WideningProgress(wave=1, state="upgrading", child="x", nodes_done=done),
        )
        return view_of(pieces, worlds.plan(500), worlds.NOW)

    assert changes(at(0), at(3)) == []
    assert changes(at(3), at(30)) == ["  30 of 498 done, 0 running, 0 failed"]


def test_lengths_of_time_are_said_as_people_say_them() -> None:
    told = {
        0: "0 s",
        59.9: "59 s",
        60: "1 min",
        190: "3 min 10 s",
        7500: "2 h 5 min",
        100_800: "1 d 4 h",
    }
    assert {seconds: words.duration(seconds) for seconds in told} == told
