"""What a home trusts is its owner's, whatever the umask: made private, and refused where another user could have put it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from desk import codec as desk_codec
from kedge.drivers.checkpoints import ensure_key
from kedge.drivers.owners import check_owners, make_folder
from kedge.drivers.policy_pins import FilePolicyPins
from kedge.drivers.registry import DriverSettings, open_drivers
from kedge.model.errors import CodecError, DriverError
from tests.spine.scene import make_keys, make_policy
from worker.rings import rings_of
from worker.settings import Settings

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as a second user")
KEDGE = Path(sys.executable).parent / "kedge"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that was made with an umask that takes nothing away, with all that a worker makes in it."""
    before = os.umask(0)
    path = tmp_path / "project" / "home"
    try:
        make_everything(path)
        yield path
    finally:
        os.umask(before)


def make_everything(path: Path) -> None:
    import asyncio

    from kedge.model.base import canonical
    from worker import processes

    settings = Settings.load(path)
    ensure_key(settings.checkpoint_key)
    desk_codec.ensure(settings)
    policy = make_policy(make_keys(path.parent / "keys"))
    drivers = open_drivers(DriverSettings(home=path, policies=settings.policy_dir))

    async def write() -> None:
        await drivers.pins.pin("etcd", policy)
        await drivers.blobs.put(canonical(policy))
        await drivers.fleets.remember("etcd", policy)
        await drivers.evidence.append("etcd", "key", {"what": "test"})
        await drivers.aclose()

    asyncio.run(write())
    processes.write_state(settings.run_dir / "engine.json", policy)
    with processes.exclusive(settings.run_dir / "some.lock", seconds=1, what="a test"):
        pass
    done = processes.start_detached(["/bin/sleep", "0.3"], log=settings.log_dir / "some.log")
    processes.wait_gone(done, 10)


def loose(top: Path) -> list[str]:
    """Everything below, itself included, that somebody else may write, and folders that he may enter."""
    found = []
    for path in (top, *top.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        if mode & (0o077 if stat.S_ISDIR(mode) else 0o022):
            found.append(f"{path.relative_to(top.parent)} {stat.S_IMODE(mode):04o}")
    return found


def test_whatever_the_umask_a_home_is_its_owners_alone(home: Path) -> None:
    assert {one.name for one in home.iterdir()} >= {"trust", "policies", "store", "fleets", "evidence.db", "run", "logs", "codec.required"}  # fmt: skip
    assert loose(home) == []
    for name in ("evidence.db", "logs/some.log", "run/engine.json", "run/some.lock"):
        assert stat.S_IMODE((home / name).stat().st_mode) & 0o077 == 0, name


@pytest.mark.temporal
@pytest.mark.timeout(180)
def test_a_home_that_is_brought_up_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "home"
    env = {**os.environ, "KEDGE_HOME": str(home)}
    try:
        done = subprocess.run(
            [KEDGE, "up"], env=env, capture_output=True, text=True, timeout=150, umask=0, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert loose(home) == []
        for log in (home / "logs").iterdir():
            assert stat.S_IMODE(log.stat().st_mode) & 0o077 == 0
    finally:
        subprocess.run([KEDGE, "down"], env=env, capture_output=True, timeout=60, check=False)


STRANGER = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
home, said = sys.argv[1], []
for act in (
    lambda: os.replace(__file__ if False else "/tmp/kedge-none", home + "/policies/etcd.json"),
    lambda: open(home + "/policies/etcd.json", "w"),
    lambda: open(home + "/policies/.probe", "w"),
    lambda: os.rename(home + "/policies", home + "/policies.old"),
    lambda: os.rename(home, home + ".old"),
    lambda: open(home + "/trust/codec.json").read(),
    lambda: open(home + "/evidence.db", "r+b"),
    lambda: open(home + "/run/.probe", "w"),
    lambda: open(home + "/logs/some.log").read(),
    lambda: os.listdir(home),
):
    try:
        act(); said.append("did it")
    except PermissionError:
        said.append("no")
    except OSError as error:
        said.append(type(error).__name__)
print(*said)
"""


@as_root
def test_another_user_changes_and_reads_nothing_of_it(home: Path) -> None:
    for folder in home.parents[: len(home.parents) - 2]:
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):  # noqa: S108 - pytest's own folders
            folder.chmod(folder.stat().st_mode | 0o055)
    open_to_all = home.parent / "open"
    open_to_all.mkdir(0o777)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(home)], capture_output=True, text=True, timeout=30, check=True
    )  # fmt: skip
    said = done.stdout.split()
    assert "did" not in said
    assert set(said[1:]) == {"no"}, said


LOOSE: dict[str, Callable[[Path], None]] = {
    "the folder of the pins": lambda home: (home / "policies").chmod(0o777),
    "the pin": lambda home: (home / "policies" / "etcd.json").chmod(0o666),
    "the fleet's versions": lambda home: (home / "policies" / "etcd").chmod(0o707),
    "the home": lambda home: home.chmod(0o703),
    "the folder above the home": lambda home: home.parent.chmod(0o777),
}


@pytest.mark.parametrize("what", LOOSE)
async def test_a_pin_that_another_user_could_have_replaced_is_refused(
    home: Path, what: str
) -> None:
    pins = FilePolicyPins(home / "policies")
    assert (await pins.policy("etcd")).name == "test"
    LOOSE[what](home)
    with pytest.raises(DriverError, match="can be written by everyone") as caught:
        await pins.policy("etcd")
    assert "chmod go-w" in (caught.value.next_step or "")


async def test_every_piece_of_trust_is_refused_in_a_folder_that_others_may_write(
    home: Path,
) -> None:
    settings = Settings.load(home)
    (home / "trust").chmod(0o777)
    with pytest.raises(DriverError, match="can be written by everyone"):
        ensure_key(settings.checkpoint_key)
    with pytest.raises(CodecError, match="can be written by everyone"):
        rings_of(settings)
    with pytest.raises(DriverError, match="can be written by everyone"):
        open_drivers(DriverSettings(home=home))
    (home / "trust").chmod(0o700)
    for name in ("run", "fleets"):
        (home / name).chmod(0o777)
        with pytest.raises(DriverError, match="can be written by everyone"):
            open_drivers(DriverSettings(home=home))
        (home / name).chmod(0o700)
    open_drivers(DriverSettings(home=home))


def test_a_folder_with_the_sticky_bit_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    make_folder(tmp_path / "shared" / "home")
    check_owners(tmp_path / "shared" / "home" / "file")


@as_root
@pytest.mark.parametrize("what", ["file", "folder", "link", "folder behind a link"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, what: str) -> None:
    folder, file = tmp_path / "real", tmp_path / "real" / "file"
    folder.mkdir()
    file.touch()
    link = tmp_path / "link"
    link.symlink_to(folder)
    check_owners(link / "file")
    chosen = {"file": file, "folder": folder, "link": link, "folder behind a link": folder}[what]
    os.chown(chosen, NOBODY, -1, follow_symlinks=False)
    with pytest.raises(DriverError, match="belongs to nobody"):
        check_owners(link / "file" if "link" in what else file)


@as_root
def test_a_group_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o660)
    check_owners(tmp_path / "file")
    os.chown(tmp_path / "file", -1, NOBODY)
    with pytest.raises(DriverError, match="can be written by the group"):
        check_owners(tmp_path / "file")
