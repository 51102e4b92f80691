"""Nothing that is swapped below a root leads kedge out of it: links are met where directories were, at any instant."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.host import files, places
from kedge.host.errors import Conflict, Fault
from kedge.host.places import Directory, Place

MARK = b"outside, and nobody else's"
EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
AT_FDCWD = -100

SWAPPER = """
import ctypes, os, sys
data, user = sys.argv[1], int(sys.argv[2])
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
rename = ctypes.CDLL(None, use_errno=True).renameat2
print("ready", flush=True)
while True:
    try:
        # Inside it, so that a rename of the directory itself does not keep it out.
        os.chdir(data)
        inside = os.stat(".").st_ino
        for _ in range(200):
            rename(-100, b"db", -100, b"link", 2)
    except OSError:
        pass
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return make_outside(tmp_path / "outside")


def make_outside(top: Path) -> Path:
    """A folder with what a careless program would change: files, modes, times."""
    for name in ("wal", "deep/er"):
        (top / name).mkdir(parents=True)
        (top / name / "1").write_bytes(MARK)
    (top / "wal").chmod(0o750)
    return top


def picture(top: Path) -> list[Any]:
    """Everything about a folder that must not change."""
    found = []
    for path in sorted([top, *top.rglob("*")]):
        told = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.append((str(path), told.st_mode, told.st_uid, told.st_ino, told.st_mtime_ns, content))
    return found


def exchange(one: Path, other: Path) -> None:
    """Two names change what they stand for, in one act."""
    library = ctypes.CDLL(None, use_errno=True)
    done = library.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), EXCHANGE)
    assert done == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def swapped_all_the_time(one: Path, other: Path) -> Iterator[None]:
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            exchange(one, other)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def swapping(data: Path, user: int = 0) -> Iterator[None]:
    """Another process, of another user where one is given, that swaps `db` and `link` in a folder without end."""
    argv = [sys.executable, "-I", "-S", "-c", SWAPPER, str(data), str(user)]
    one = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        yield
    finally:
        one.kill()
        one.communicate()


# -- one act -------------------------------------------------------------------------------------------------------


def write_new(top: Directory) -> None:
    files.write_new(top / "db/wal/1", b"x")


def write_atomic(top: Directory) -> None:
    files.write_atomic(top / "db/wal/1", b"x")


def note(top: Directory) -> None:
    files.note(top / "db/wal/1", {"a": 1})


def drop(top: Directory) -> None:
    files.drop(top / "db/wal/1")


def relink(top: Directory) -> None:
    files.relink(top / "db/wal/2", "x")


def make_above(top: Directory) -> None:
    places.make_above(top / "db/a/b/c", 0o755)


def change_mode(top: Directory) -> None:
    places.change_mode(top / "db/wal", 0o777)


def rename_to(top: Directory) -> None:
    (Path(top.path) / "made").mkdir(exist_ok=True)
    places.rename(top / "made", top / "db/made")
    places.rename(top / "db/made", top / "made")


def rename_from(top: Directory) -> None:
    places.rename(top / "db/wal", top / "taken")
    places.rename(top / "taken", top / "db/wal")


def remove_tree(top: Directory) -> None:
    places.remove_tree(top / "db/deep")


def read(top: Directory) -> None:
    for one in (files.read_bytes(top / "db/wal/1"), files.tail(top / "db/wal/1").encode()):
        assert one is None or MARK not in one


def walk(top: Directory) -> None:
    for path, told, place in places.walk(top / "db"):
        if stat.S_ISREG(told.st_mode):
            assert MARK not in (files.read_bytes(place) or b""), path


ACTS: list[Callable[[Directory], None]] = [
    write_new, write_atomic, note, drop, relink, make_above, change_mode, rename_to, rename_from, remove_tree, read, walk,
]  # fmt: skip


@pytest.fixture
def below(tmp_path: Path, outside: Path) -> Path:
    """A folder with a directory `db`, and beside it a link that leads out."""
    top = tmp_path / "top"
    (top / "db/wal").mkdir(parents=True)
    (top / "db/deep/er").mkdir(parents=True)
    (top / "db/wal/1").write_bytes(b"inside")
    (top / "link").symlink_to(outside)
    return top


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_link_in_the_middle_of_a_path_is_not_gone_through(
    below: Path, outside: Path, act: Callable[[Directory], None]
) -> None:
    before = picture(outside)
    exchange(below / "db", below / "link")
    with Directory(str(below)) as top:
        if act == read:
            with pytest.raises(Conflict):
                files.read_bytes(top / "db/wal/1")
        else:
            with pytest.raises(Conflict, match="not a directory"):
                act(top)
    assert picture(outside) == before


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_nothing_outside_changes_while_a_directory_is_swapped_for_a_link_all_the_time(
    below: Path, outside: Path, act: Callable[[Directory], None]
) -> None:
    before = picture(outside)
    until = time.monotonic() + 0.15
    with swapped_all_the_time(below / "db", below / "link"), Directory(str(below)) as top:
        while time.monotonic() < until:
            with contextlib.suppress(OSError, Fault):
                act(top)
    assert picture(outside) == before


@pytest.mark.parametrize("path", ["", "..", "a/..", "a//b", "./a", "a/", "/a", "a\0b"])
def test_no_name_leads_up(below: Path, path: str) -> None:
    with Directory(str(below)) as top, pytest.raises(Conflict):
        top / path


def test_a_link_that_a_document_names_is_followed_and_no_other(below: Path, outside: Path) -> None:
    (outside / "wal/back").symlink_to(below)
    with Directory(str(below)) as top, places.followed(top / "link") as there:
        assert there.path == str(outside)
        assert files.read_bytes(there / "wal/1") == MARK
        with pytest.raises(Conflict):
            files.read_bytes(there / "wal/back/db/wal/1")


def test_a_tree_that_is_deeper_than_descriptors_reach_is_removed(tmp_path: Path) -> None:
    top = str(tmp_path)
    nested(top, "deep", places.DEPTH_MAX * 2 + 100)
    with Directory(top) as directory:
        with pytest.raises(Fault, match="nested deeper"):
            list(places.walk(directory / "deep"))
        places.remove_tree(directory / "deep")
    assert os.listdir(top) == []


def nested(top: str, name: str, depth: int) -> None:
    """So many directories in each other, with something in each."""
    fd = os.open(top, os.O_RDONLY)
    for number in range(depth):
        one = name if number == 0 else "d"
        os.mkdir(one, 0o500, dir_fd=fd)
        deeper = os.open(one, os.O_RDONLY, dir_fd=fd)
        os.chmod(deeper, 0o700)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=deeper))
        os.close(fd)
        fd = deeper
    os.close(fd)


def test_no_descriptor_is_left_open(below: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for act in ACTS:
        with contextlib.suppress(OSError, Fault), Directory(str(below)) as top:
            act(top)
    assert len(os.listdir("/proc/self/fd")) == before


# -- whole operations -----------------------------------------------------------------------------------------------


def take(number: int = 0, path: str = "data/db/wal") -> dict[str, Any]:
    asked = {"id": f"s{number}", "paths": [path], "empty": True}
    return {"key": f"take-{number}", "op": "snapshot", **asked}


def back(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"key": f"back-{number}", "op": "restore", "id": f"s{number}", **more}


@pytest.fixture
def node(host: Any, outside: Path) -> Path:
    """A node whose data have a directory `db`, and beside it a link that leads out."""
    host.good()
    fill(host.root, outside)
    root: Path = host.root
    return root


def fill(root: Path, outside: Path) -> None:
    (root / "data/db/wal").mkdir(parents=True)
    (root / "data/db/wal/1").write_bytes(b"inside")
    (root / "data/link").symlink_to(outside)


def test_a_restore_does_not_replace_a_folder_outside(host: Any, node: Path, outside: Path) -> None:
    host.good(take())
    before = picture(outside)
    exchange(node / "data/db", node / "data/link")
    said = host.call(back())
    assert said.error["type"] == "Conflict"
    assert "data/db is not a directory" in said.error["message"]
    assert picture(outside) == before
    assert not (node / ".kedge/restore.new").exists(), "nothing was begun"
    exchange(node / "data/db", node / "data/link")
    assert host.good(back()).result("back-0")["files"] == 1


def test_a_restore_that_meets_a_link_at_its_renames_goes_on_when_the_directory_is_back(
    host: Any, node: Path, outside: Path
) -> None:
    host.good(take())
    before = picture(outside)
    reached = host.order("restore.before-renames", "wait")
    call = host.begin(back())
    until = time.monotonic() + 10
    while not reached.exists():
        assert time.monotonic() < until
        time.sleep(0.005)
    exchange(node / "data/db", node / "data/link")
    reached.unlink()
    assert call.said().error["type"] == "Conflict"
    assert picture(outside) == before
    exchange(node / "data/db", node / "data/link")
    (node / "data/db/wal/1").write_bytes(b"newer")
    assert host.good(back()).result("back-0")["files"] == 1
    assert (node / "data/db/wal/1").read_bytes() == b"inside"
    assert picture(outside) == before


def race(host: Any, root: Path, outside: Path, user: int) -> int:
    """Snapshots and restores while a directory is swapped; gives how many of them were done."""
    before = picture(outside)
    done = 0
    for number in range(12):
        ops = [
            take(number, "data/db" if number % 2 else "data/db/wal"),
            back(number, drop_replaced=True),
        ]
        with swapping(root / "data", user):
            for op in ops:
                done += host.call(op).ok
        assert picture(outside) == before
        if (root / "data/db").is_symlink():
            exchange(root / "data/db", root / "data/link")
    for path in (root / "snapshots").rglob("*"):
        assert path.is_symlink() or not path.is_file() or MARK not in path.read_bytes(), path
    return done


def test_snapshots_and_restores_race_with_a_swap(host: Any, node: Path, outside: Path) -> None:
    assert race(host, node, outside, 0) > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_snapshots_and_restores_race_with_a_daemon_of_another_user(served: Any) -> None:
    from tests.host.conftest import Host

    user = 65534
    # Not below pytest's folder: the other user has to get in.
    top = Path(tempfile.mkdtemp(prefix="kedge-race-"))
    top.chmod(0o711)
    try:
        outside = make_outside(top / "outside")
        host = Host(served, top)
        host.good()
        fill(host.root, outside)
        for path in [host.root / "data", *(host.root / "data").rglob("*")]:
            os.chown(path, user, user, follow_symlinks=False)
        assert race(host, host.root, outside, user) > 0
    finally:
        shutil.rmtree(top)


@pytest.mark.parametrize("folder", ["releases", "config", "snapshots", ".kedge"])
def test_no_operation_goes_through_a_link_in_the_place_of_kedges_own_folder(
    host: Any, tmp_path: Path, folder: str
) -> None:
    first, second = host.release("1"), host.release("2")
    host.good(host.stage(first), host.configure("g1"), take(0, "data"))
    elsewhere = tmp_path / "elsewhere"
    (host.root / folder).rename(elsewhere)
    (host.root / folder).symlink_to(elsewhere)
    before = picture(elsewhere)
    refused = 0
    for op in (
        host.stage(second, "stage-2"),
        host.configure("g2", "configure-2"),
        take(1, "data"),
        {"key": "prune", "op": "prune", "releases": [], "snapshots": []},
    ):
        said = host.call(op)
        if said.ok:
            # It had nothing to do with that folder.
            continue
        assert said.error["type"] == "Conflict", said.lines
        assert f"{folder} is not a directory" in said.error["message"]
        refused += 1
    assert refused
    assert picture(elsewhere) == before


def test_the_log_of_a_daemon_is_not_read_through_a_link(host: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for the record")
    release = host.release("1")
    host.good(*host.leg(release, "g1"))
    (host.root / "logs/service.log").unlink()
    (host.root / "logs/service.log").symlink_to(secret)
    host.kill_daemon()
    probe = {"service": {"running": True}}
    said = host.call({"key": "h", "op": "healthy", "probe": probe, "within": 1})
    assert said.error["type"] == "ServiceDied"
    assert "not for the record" not in str(said.lines)


def test_every_place_is_named_by_a_place() -> None:
    """No call of the host program takes the text of a path below a root."""
    assert not hasattr(Place, "__fspath__")
    with pytest.raises(TypeError):
        open(Directory("/") / "etc")  # type: ignore[call-overload]  # noqa: SIM115
