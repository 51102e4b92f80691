"""What can be known before the stop is found before the stop, while the daemon serves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import AS_US, Host, Release, tar

HIDDEN = "correct-horse-battery-staple"


def check(host: Host, release: Release, key: str = "check", **more: Any) -> dict[str, Any]:
    service = {"argv": ["bin/daemon"], "env": {"LEDGER": str(host.ledger)}, **AS_US}
    asked = {"release": release.digest, "generation": "g2", "service": service}
    return {"key": key, "op": "check", **asked, **more}


@pytest.fixture
def served_by_1(host: Host) -> tuple[Host, Release, Release]:
    """A node on release 1, with release 2 staged."""
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"))
    host.until_events(1)
    host.good(host.stage(two, "stage-2"))
    return host, one, two


def untouched(host: Host) -> None:
    assert host.events() == ["start 1"]
    assert [record["op"] for record in host.journal()].count("stop") == 1


def remove(host: Host, release: Release) -> None:
    shutil.move(host.root / "releases" / release.digest, host.top / "moved")


# -- releases ---------------------------------------------------------------------------------------------------


def test_a_release_that_a_rollback_needs_is_missed_before_the_stop(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    host.good(check(host, two, "good", back=one.digest))
    file = host.root / "releases" / one.digest / "share/version"
    file.chmod(0o644)
    file.write_text("changed")
    said = host.call(check(host, two, "changed", back=one.digest)).error
    assert (said["type"], said["detail"]["needed"]) == ("DigestMismatch", one.digest)
    assert "a rollback needs" in said["message"]
    remove(host, one)
    said = host.call(check(host, two, "gone", back=one.digest)).error
    assert said["type"] == "NoRelease"
    assert "the daemon was not stopped" in said["message"]
    assert host.call(check(host, one, "target")).error["type"] == "NoRelease"
    untouched(host)


def test_a_stage_without_an_archive_takes_only_what_is_there_and_whole(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, _, two = served_by_1
    assert host.good(host.stage(two, "there", source=None)).result("there")["files"] == 2
    remove(host, two)
    said = host.call(host.stage(two, "bare", source=None)).error
    assert said["type"] == "NoRelease"
    assert "was not brought" in said["message"]
    host.good(host.stage(two, "brought"))


# -- programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "argv", "said"),
    [
        ({"bin/daemon": (b"x", 0o644)}, ["bin/daemon"], "is not executable"),
        ({"bin/other": (b"x", 0o755)}, ["CURRENT/bin/daemon"], "is not there"),
        ({"bin/other": (b"x", 0o755)}, ["bin/daemon"], "is not there"),
        ({"a": (b"x", 0o755)}, ["no-such-program-of-this-machine"], "is not on the daemon's PATH"),
        ({"a": (b"x", 0o755)}, ["sh", "CURRENT/app.sh"], "named in the daemon's argv"),
        ({"d": (b"#!/no/such/shell -x\n", 0o755)}, ["CURRENT/d"], "wants /no/such/shell"),
    ],
)
def test_a_program_that_cannot_be_executed_is_found_before_the_stop(
    served_by_1: tuple[Host, Release, Release], files: Any, argv: list[str], said: str
) -> None:
    host, one, _ = served_by_1
    bad = host.archive(tar(files))
    host.good(host.stage(bad, "stage-bad"))
    line = [part.replace("CURRENT", str(host.root / "current")) for part in argv]
    fault = host.call(check(host, bad, service={"argv": line, **AS_US}, back=one.digest)).error
    assert fault["type"] == "NoProgram"
    assert said in fault["message"]
    untouched(host)


def test_a_program_that_a_later_command_executes_is_looked_for_in_the_new_release(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, _, two = served_by_1
    for name, good in (("bin/daemon", True), ("bin/migrate", False)):
        later = {"program": f"{host.root}/current/{name}", "release": two.digest}
        assert host.call(check(host, two, name, programs=[later])).ok is good


# -- the disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(host: Host) -> Iterator[Path]:
    """A disk of 12 MiB under the node's root."""
    host.root.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(host.root)]
    if os.geteuid() != 0 or subprocess.run(made, check=False, capture_output=True).returncode:
        pytest.skip("a small disk takes a mount, and a mount takes root")
    yield host.root
    host.end_daemon()
    subprocess.run(["umount", "-l", str(host.root)], check=True)


def test_room_for_the_snapshot_is_measured_as_the_copy_will_take_it(
    host: Host, small: Path
) -> None:
    one, two = host.release("1"), host.release("2")
    host.good(*host.leg(one, "g1", "a/"), host.stage(two, "stage-2"))
    snapshot = {"id": "s", "paths": ["data"]}
    with (small / "data/sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.write(b"x" * 5000)
    said = host.good(check(host, two, "sparse", snapshot=snapshot))
    assert said.result("sparse")["bytes"] < 1 << 16
    (small / "data/db").write_bytes(os.urandom(5 << 20))
    fault = host.call(check(host, two, "full", snapshot=snapshot)).error
    assert fault["type"] == "NoSpace"
    assert fault["detail"]["needed"] > 5 << 20
    assert "the daemon was not stopped" in fault["message"]
    untouched(host)
    (small / "data/db").write_bytes(os.urandom(1 << 20))
    host.good(check(host, two, "fits", snapshot=snapshot))


def test_a_snapshot_that_is_gone_or_cut_is_missed_before_the_rollback_stops_anything(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, _ = served_by_1
    (host.root / "data/ledger").write_text("1")
    host.good({"key": "take", "op": "snapshot", "id": "s", "paths": ["data"]})
    restore = {"id": "s"}
    host.good(check(host, one, "whole", restore=restore))
    (host.root / "snapshots/s/files/data/ledger").write_text("longer")
    fault = host.call(check(host, one, "cut", restore=restore)).error
    assert fault["type"] == "DigestMismatch"
    fault = host.call(check(host, one, "none", restore={"id": "other"})).error
    assert fault["type"] == "NoSnapshot"
    untouched(host)


# -- when it is asked again -------------------------------------------------------------------------------------


def test_a_check_is_looked_at_again_until_the_stop_and_stands_after_it(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    asked = check(host, two, back=one.digest)
    host.good(asked)
    away = host.top / "moved"
    shutil.move(host.root / "releases" / one.digest, away)
    assert host.call(asked).error["type"] == "NoRelease"
    shutil.move(away, host.root / "releases" / one.digest)
    again = host.good(asked, {"key": "stop", "op": "stop", "grace": 5})
    assert again.done("check")["replayed"] is True
    shutil.move(host.root / "releases" / one.digest, away)
    assert host.good(asked).done("check")["replayed"] is True
    keys = [record["key"] for record in host.journal()]
    assert keys.count("check") == 1


# -- edits by hand ----------------------------------------------------------------------------------------------


def test_an_edit_by_hand_is_shown_and_overwritten_only_when_a_person_said_so(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, _, two = served_by_1
    conf = host.root / "config/current/app.conf"
    conf.write_text("generation = g1\nlevel = debug\npassword = hunter22\n")
    fault = host.call(check(host, two)).error
    assert (fault["type"], fault["retryable"]) == ("EditedByHand", False)
    assert fault["detail"]["files"] == ["app.conf"]
    assert "+level = debug" in fault["detail"]["diff"]
    assert "hunter22" not in json.dumps(fault)
    # The same again is the same; a person's retry is another.
    assert host.call(check(host, two)).error["type"] == "EditedByHand"
    conf.write_text("generation = g1\nlevel = trace\n")
    assert host.call(check(host, two, anew=1)).error["type"] == "EditedByHand"
    assert host.call(check(host, two, anew=2), run="r/2").error["type"] == "EditedByHand"
    host.call(check(host, two, anew=2))
    said = host.good(check(host, two, anew=3))
    assert conf.read_text() == "generation = g1\n"
    kept = Path(said.result("check")["kept"])
    assert "level = trace" in next(kept.glob("g1-*")).joinpath("app.conf").read_text()
    untouched(host)


def test_an_edited_service_a_new_file_and_a_moved_link_are_edits_too(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, _, two = served_by_1
    top = host.root / "config/g1"
    service = (top / "service.json").read_text()
    (top / "service.json").write_text(service.replace("bin/daemon", "bin/other"))
    assert '+  "bin/other"' in host.call(check(host, two)).error["detail"]["diff"]
    (top / "service.json").write_text(service)
    host.good(check(host, two, "as-written"))
    (top / "more.conf").write_text("more")
    assert host.call(check(host, two, "more")).error["detail"]["files"] == ["more.conf"]
    (top / "more.conf").unlink()
    shutil.copytree(top, host.root / "config/mine")
    link = host.root / "config/current"
    link.unlink()
    link.symlink_to("mine")
    assert (
        "config/current was changed by hand"
        in host.call(check(host, two, "moved")).error["message"]
    )
    untouched(host)


def test_a_diff_is_bounded_and_shows_nothing_that_a_terminal_acts_on(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, _, two = served_by_1
    lines = [f"line {number} \x1b[2J\u202e\r" + "x" * 500 for number in range(300)]
    (host.root / "config/current/app.conf").write_text("\n".join(lines))
    diff = host.call(check(host, two)).error["detail"]["diff"]
    assert len(diff) <= 62
    assert sum(map(len, diff)) <= 3200
    assert all(line.isprintable() for line in diff)
    assert "more lines" in diff[-1]


@pytest.mark.parametrize("where", ["file", "place"])
def test_an_edit_of_a_file_with_secrets_shows_none_of_them(
    host: Host, tmp_path: Path, where: str
) -> None:
    source = tmp_path / "secret"
    source.write_text(HIDDEN)
    source.chmod(0o600)
    one, two = host.release("1"), host.release("2")
    configure = host.configure("g1", "a/configure")
    configure["files"] = {"app.conf": ["user = me\npass = ", {"secret": "db"}, "\nlevel = info\n"]}
    configure["secrets"] = {"db": {"file": str(source)}}
    leg = [configure if op["op"] == "configure" else op for op in host.leg(one, "g1", "a/")]
    host.good(*leg, host.stage(two, "stage-2"))
    host.good(check(host, two, "as-written"))
    conf = host.root / "config/current/app.conf"
    text = f"user = me\npass = {HIDDEN}2\nlevel = debug\n"
    if where == "place":
        conf.unlink()
    conf.write_text(text)
    fault = host.call(check(host, two)).error
    assert fault["type"] == "EditedByHand"
    assert HIDDEN not in json.dumps(fault)
    assert any("debug" in line or "not shown" in line for line in fault["detail"]["diff"])
    host.good(check(host, two, anew=1))
    assert HIDDEN + "2" not in (host.root / "config/current/app.conf").read_text()
    # A source that was changed is no edit.
    source.write_text("another-secret-value")
    host.good(check(host, two, "changed"))


def test_what_is_looked_at_is_told_by_observe(served_by_1: tuple[Host, Release, Release]) -> None:
    host, *_ = served_by_1
    assert host.good({"key": "o", "op": "observe"}).result("o")["edited"] == []
    (host.root / "config/current/app.conf").write_text("mine")
    assert host.good({"key": "o", "op": "observe"}).result("o")["edited"] == ["app.conf"]


# -- the configuration that ran before --------------------------------------------------------------------------


def back(host: Host, one: Release, **more: Any) -> list[dict[str, Any]]:
    """What a rollback to release 1 does, with a configuration rendered from documents that were changed since."""
    configure = host.configure("g9", "b/configure", CHANGED="yes")
    return [
        check(host, one, "b/check", earlier=one.digest, **more),
        {"key": "b/stop", "op": "stop", "grace": 5},
        {"key": "b/switch", "op": "switch", "digest": one.digest},
        {**configure, "earlier": one.digest},
        {"key": "b/start", "op": "start"},
    ]


def moved(host: Host, two: Release) -> None:
    leg = host.leg(two, "g2", "u/", MORE="x")[1:]
    host.good(check(host, two, "u/check"), *leg)


def test_a_rollback_puts_back_the_configuration_that_ran(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    moved(host, two)
    said = host.good(*back(host, one))
    assert said.result("b/configure") == {"from": "g2", "to": "g1", "known": True}
    assert said.observed["running_generation"] == "g1"
    assert said.observed["ran"] == {one.digest: "g1"}
    assert "CHANGED" not in Path(f"/proc/{host.pid()}/environ").read_bytes().decode()


def test_a_generation_that_was_removed_is_written_again_for_a_rollback(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    moved(host, two)
    shutil.rmtree(host.root / "config/g1")
    said = host.good(*back(host, one))
    assert said.observed["running_generation"] == "g1"
    assert (host.root / "config/g1/app.conf").read_text() == "generation = g1\n"


def test_an_edit_of_the_configuration_to_go_back_to_is_found_before_the_stop(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    moved(host, two)
    (host.root / "config/g1/app.conf").write_text("edited while it did not run")
    fault = host.call(*back(host, one)).error
    assert fault["type"] == "EditedByHand"
    assert host.events()[-1] == "start 2"
    # What the release that is left runs with is not lost, and closes no way back.
    (host.root / "config/g1/app.conf").write_text("generation = g1\n")
    (host.root / "config/g2/app.conf").write_text("edited in an emergency")
    assert host.good(*back(host, one)).observed["running_generation"] == "g1"


def test_where_nobody_knows_what_ran_it_is_said(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    # A node that an older kedge moved: there was no check.
    host.good(*host.leg(two, "g2", "u/")[1:])
    said = host.good(*back(host, one))
    assert said.result("b/check")["known"] is False
    assert said.result("b/configure") == {"from": "g2", "to": "g9", "known": False}
    assert said.observed["ran"] == {one.digest: None}


def test_a_node_that_never_left_its_release_has_its_configuration_still(
    served_by_1: tuple[Host, Release, Release],
) -> None:
    host, one, two = served_by_1
    host.good({"key": "stop", "op": "stop", "grace": 5})
    host.good({"key": "switch", "op": "switch", "digest": two.digest}, host.configure("g2", "c2"))
    assert host.good(*back(host, one)).observed["running_generation"] == "g1"


def test_what_ran_is_kept_for_the_last_releases_only(host: Host) -> None:
    releases = [host.release(str(number)) for number in range(10)]
    for number, release in enumerate(releases):
        host.good(
            host.stage(release, f"s{number}"),
            check(host, release, f"c{number}", generation=f"g{number}"),
            *host.leg(release, f"g{number}", f"{number}/")[1:],
        )
    ran = host.good().observed["ran"]
    assert ran == {one.digest: f"g{at}" for at, one in list(enumerate(releases))[1:9]}
