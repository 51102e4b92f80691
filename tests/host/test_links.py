"""Data behind links: copied and put back where the runbook says so, refused with their name where it does not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import AS_US, Host


@pytest.fixture
def disk(host: Host) -> Path:
    """Another disk, and a node whose data folder is a link to a folder of it."""
    host.good()
    top: Path = host.top / "disk"
    (top / "n1").mkdir(parents=True)
    (host.root / "data").rmdir()
    (host.root / "data").symlink_to(top / "n1")
    (top / "n1/ledger").write_text("written by 1")
    return top / "n1"


def take(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"key": f"take-{name}", "op": "snapshot", "id": name, "paths": ["data"], **more}


def back(key: str = "r", **more: Any) -> dict[str, Any]:
    return {"key": key, "op": "restore", "id": "a", **more}


def test_data_that_is_a_link_to_another_disk_is_copied_and_put_back_there(
    host: Host, disk: Path
) -> None:
    disk.chmod(0o750)
    assert host.good(take()).result("take-a")["files"] == 1
    (disk / "ledger").write_text("rewritten by 2")
    (disk / "new").write_text("made by 2")
    said = host.good(back())
    assert os.readlink(host.root / "data") == str(disk)
    assert (disk / "ledger").read_text() == "written by 1"
    assert os.listdir(disk) == ["ledger"]
    assert disk.stat().st_mode & 0o777 == 0o750
    (aside,) = (one for one in os.listdir(disk.parent) if one != "n1")
    assert aside.endswith(said.result("r")["replaced"])
    assert (disk.parent / aside / "ledger").read_text() == "rewritten by 2"
    # The way back again, and what was replaced is dropped everywhere.
    host.good(back("r2", drop_replaced=True))
    assert sorted(os.listdir(disk.parent)) == sorted([aside, "n1"])
    host.good({"key": "p", "op": "prune", "releases": [], "snapshots": []})
    assert os.listdir(disk.parent) == ["n1"]


def nest(host: Host, disk: Path) -> Path:
    """A write-ahead log on a third disk, below a data folder that is a link already."""
    wal = host.top / "disk3" / "wal"
    wal.mkdir(parents=True)
    (wal / "0001").write_text("wal of 1")
    (disk / "wal").symlink_to(wal)
    return wal


@pytest.mark.parametrize("follow", [True, ["data/wal"], ["wal"]])
def test_a_linked_folder_in_a_linked_folder_is_followed_where_the_runbook_says_so(
    host: Host, disk: Path, follow: Any
) -> None:
    wal = nest(host, disk)
    host.good(take(follow=follow))
    (wal / "0001").write_text("wal of 2")
    (disk / "ledger").write_text("rewritten by 2")
    host.good(back())
    assert (wal / "0001").read_text() == "wal of 1"
    assert (disk / "ledger").read_text() == "written by 1"
    assert os.readlink(disk / "wal") == str(wal)


def test_a_link_that_nobody_decided_about_is_refused_with_its_name(host: Host, disk: Path) -> None:
    nest(host, disk)
    fault = host.call(take()).error
    assert (fault["type"], fault["detail"]["link"]) == ("Conflict", "data/wal")
    assert "follow: [data/wal]" in fault["message"]
    assert os.listdir(host.root / "snapshots") == []


def asked_check(snapshot: dict[str, Any], release: str = "0" * 64, **more: Any) -> dict[str, Any]:
    inner = {name: one for name, one in snapshot.items() if name not in ("key", "op")}
    service = {"argv": ["bin/daemon"], **AS_US}
    asked = {"release": release, "generation": "g2", "service": service, "snapshot": inner}
    return {"op": "check", **asked, **more}


def test_the_check_before_the_stop_says_it_first(host: Host) -> None:
    one = host.release("1")
    host.good(*host.leg(one, "g1"))
    outside = host.top / "elsewhere"
    outside.mkdir()
    (host.root / "data/wal").symlink_to(outside)
    (host.root / "data/x").write_text("x")
    fault = host.call({"key": "c", **asked_check(take(), one.digest)}).error
    assert (fault["type"], fault["detail"]["link"]) == ("Conflict", "data/wal")
    host.good({"key": "c", **asked_check(take(keep_links=["wal"]), one.digest)})
    host.good({"key": "d", **asked_check(take(keep_out=["wal"]), one.digest)})
    assert host.events() == ["start 1"]


def test_links_to_what_is_copied_too_and_to_kedges_own_stay_links(host: Host, disk: Path) -> None:
    (disk / "segments").mkdir()
    (disk / "segments/1").write_text("one")
    (disk / "newest").symlink_to("segments/1")
    (disk / "absolute").symlink_to(disk / "segments")
    (disk / "lock").symlink_to("nothing-here")
    (disk / "plugins").symlink_to(host.root / "current/plugins")
    host.good(take())
    shutil.rmtree(disk / "segments")
    (disk / "newest").unlink()
    host.good(back())
    assert (disk / "newest").read_text() == "one"
    assert os.readlink(disk / "absolute") == str(disk / "segments")
    assert os.readlink(disk / "lock") == "nothing-here"
    assert os.readlink(disk / "plugins") == str(host.root / "current/plugins")


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("/no/such/disk", "is its disk mounted?"),
        ("/", "cannot be followed"),
        ("ROOT/snapshots", "cannot be followed"),
        ("ROOT/.kedge", "cannot be followed"),
    ],
)
def test_a_link_that_cannot_be_followed_is_refused(
    host: Host, disk: Path, to: str, said: str
) -> None:
    (disk / "x").symlink_to(to.replace("ROOT", str(host.root)))
    fault = host.call(take(follow=True)).error
    assert (fault["type"], fault["detail"]["link"]) == ("Conflict", "data/x")
    assert said in fault["message"]


def test_followed_links_into_each_other_are_refused(host: Host, disk: Path) -> None:
    (host.top / "big/inner").mkdir(parents=True)
    (disk / "a").symlink_to(host.top / "big/inner")
    (disk / "b").symlink_to(host.top / "big")
    fault = host.call(take(follow=True)).error
    assert "one lies in the other" in fault["message"]


def test_a_file_on_another_disk_is_put_back_there(host: Host, disk: Path) -> None:
    elsewhere = host.top / "keys"
    elsewhere.mkdir()
    (elsewhere / "state").write_text("height 5")
    (disk / "state").symlink_to(elsewhere / "state")
    host.good(take(follow=["state"]))
    (elsewhere / "state").write_text("height 9")
    host.good(back())
    assert (elsewhere / "state").read_text() == "height 5"
    assert (disk / "state").is_symlink()


def test_what_is_to_be_the_newest_is_kept_behind_links_too(host: Host, disk: Path) -> None:
    wal = nest(host, disk)
    host.good(take(follow=True))
    (wal / "0001").write_text("newest")
    (disk / "ledger").write_text("rewritten by 2")
    host.good(back(keep=["0001"]))
    assert (wal / "0001").read_text() == "newest"
    assert (disk / "ledger").read_text() == "written by 1"


def test_a_link_that_leads_elsewhere_since_gets_the_data_where_it_leads_now(
    host: Host, disk: Path
) -> None:
    host.good(take())
    other = host.top / "disk2"
    shutil.copytree(disk, other)
    (host.root / "data").unlink()
    (host.root / "data").symlink_to(other)
    (other / "ledger").write_text("rewritten by 2")
    host.good(back())
    assert (other / "ledger").read_text() == "written by 1"
    (host.root / "data").unlink()
    assert "is its disk mounted?" in host.call(back("r2")).error["message"]


@pytest.mark.parametrize(
    "point",
    [
        "restore.copying", "restore.before-intent", "restore.after-intent", "restore.before-renames",
        "restore.between-renames", "restore.between-paths", "restore.after-renames",
    ],
)  # fmt: skip
def test_a_restore_through_links_that_is_killed_is_completed(
    host: Host, disk: Path, point: str
) -> None:
    wal = nest(host, disk)
    host.good(take(follow=True))
    (wal / "0001").write_text("wal of 2")
    (disk / "ledger").write_text("rewritten by 2")
    reached = host.order(point)
    assert not host.call(back()).whole
    assert reached.exists()
    host.good(back())
    assert (disk / "ledger").read_text() == "written by 1"
    assert (wal / "0001").read_text() == "wal of 1"
    left = [name for top in (disk.parent, wal.parent) for name in os.listdir(top)]
    assert not [name for name in left if name.endswith(".new")], left


def test_a_snapshot_of_nothing_is_none(host: Host) -> None:
    host.good()
    (host.root / "data/empty/folders").mkdir(parents=True)
    fault = host.call(take()).error
    assert fault["type"] == "Conflict"
    assert "a snapshot of nothing is no way back" in fault["message"]
    assert os.listdir(host.root / "snapshots") == []
    assert host.good(take(empty=True)).result("take-a")["files"] == 0


def test_paths_in_each_other_are_copied_once(host: Host, disk: Path) -> None:
    (disk / "sub").mkdir()
    (disk / "sub/file").write_text("x")
    host.good(take(paths=["data", "data/sub"]))
    listed = json.loads((host.root / "snapshots/a/manifest.json").read_text())["entries"]
    assert [one["path"] for one in listed].count("data/sub/file") == 1
    (disk / "sub/file").write_text("y")
    host.good(back())
    assert (disk / "sub/file").read_text() == "x"


def test_holes_stay_holes_in_the_copy_and_when_it_is_put_back(host: Host, disk: Path) -> None:
    with (disk / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.truncate(64 << 20)
        sparse.seek(32 << 20)
        sparse.write(b"middle")
    content = (disk / "sparse").read_bytes()
    assert (disk / "sparse").stat().st_blocks * 512 < 1 << 20
    host.good(take())
    copy = host.root / "snapshots/a/files/data/sparse"
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert copy.read_bytes() == content
    (disk / "sparse").write_bytes(b"short")
    host.good(back())
    assert (disk / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (disk / "sparse").read_bytes() == content


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user and a mount take root")


@needs_root
def test_a_daemon_leads_kedge_with_its_links_only_to_what_is_its_own(host: Host) -> None:
    host.good()
    data, secret = host.root / "data", host.top / "secret"
    secret.mkdir()
    (secret / "key").write_text("not the daemon's")
    os.chown(data, 65534, 65534)
    (data / "ledger").write_text("x")
    (data / "wal").symlink_to(secret)
    fault = host.call(take(follow=True)).error
    assert fault["type"] == "Conflict"
    assert "what is not theirs" in fault["message"]
    os.chown(secret, 65534, 65534)
    host.good(take(follow=True))
    # Led elsewhere before the restore: to a folder that is not the daemon's.
    precious = host.top / "precious"
    precious.mkdir()
    (precious / "kept").write_text("kept")
    (data / "wal").unlink()
    (data / "wal").symlink_to(precious)
    assert host.call(back()).error["type"] == "Conflict"
    assert (precious / "kept").read_text() == "kept"


@needs_root
@pytest.mark.parametrize("place", ["data", "disk"])
def test_the_top_of_a_mounted_disk_is_refused_before_the_stop_when_it_would_be_restored(
    host: Host, place: str
) -> None:
    one = host.release("1")
    host.good(*host.leg(one, "g1"))
    mounted = host.root / "data"
    if place == "disk":
        mounted = host.top / "mnt"
        mounted.mkdir()
        (host.root / "data").rmdir()
        (host.root / "data").symlink_to(mounted)
    made = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(mounted)]
    if subprocess.run(made, check=False, capture_output=True).returncode:
        pytest.skip("no mount here")
    with contextlib.ExitStack() as stack:
        stack.callback(subprocess.run, ["umount", "-l", str(mounted)], check=True)
        (mounted / "ledger").write_text("x")
        host.good({"key": "copied", **asked_check(take(), one.digest)})
        asked = asked_check(take(), one.digest, restores=True)
        fault = host.call({"key": "restored", **asked}).error
        assert fault["type"] == "Conflict"
        assert "top of a mounted disk" in fault["message"]
    assert host.events() == ["start 1"]
