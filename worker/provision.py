"""Finds the programs of Temporal that kedge starts, or gets them.

There are three: ``temporal-server``, which is the embedded engine; ``temporal``, the stock command line, which kedge
itself never needs; and ``kedge-temporal-ui``, Temporal's web UI (``kedge ui``), which is got when somebody asks for it.

In this order, and each step down is a sentence:

1. the program that a setting names, or the one of that name on PATH,
2. the one that an earlier set-up left in the cache (``$XDG_CACHE_HOME/kedge/<name>/<version>``),
3. the official release archive, checked by the digest pinned here,
4. a build of the pinned Go module in ``tools/temporal``.

Everything has a bound in time. ``python -m worker.provision [server|cli|ui …]`` does it from a Makefile.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker import processes
from worker.settings import Settings, SettingsError

OLDEST_SERVER = (1, 31)
"""Older servers lack what kedge is tested with."""
GO_VERSION = (1, 26, 8)
"""What tools/temporal/go.mod asks for; Go 1.21 and newer fetches it by itself."""

EXAMINE_SECONDS = 10.0
DOWNLOAD_SECONDS = 180.0
BUILD_SECONDS = 1800.0
MAX_ARCHIVE = 300_000_000
"""An archive is no larger, in bytes."""

Say = Callable[[str], None]
Source = Literal["setting", "PATH", "cache", "download", "build"]


@dataclass(frozen=True, slots=True)
class Pinned:
    """One program: which release of it, where that is, and how it is built."""

    name: str
    version: str
    what: str
    """In sentences."""
    variable: str
    """The setting that names one, as a variable; empty where there is none."""
    shows: str
    """What ``--version`` prints of it, as a pattern; its groups are the server's version, where that matters."""
    package: str
    packages: int
    """About how many that is to compile, for the progress: those of the standard library with it."""
    flags: str = ""
    archive: str = ""
    """The address of the official archive, with ``{platform}`` in it; empty where there is none to be had."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the archives, by platform."""


SERVER = Pinned(
    name="temporal-server",
    version="1.31.3",
    what="the Temporal server",
    variable="KEDGE_TEMPORAL_BINARY",
    # The stock command line holds a dev server, and says so in parentheses.
    shows=r"version (\d+)\.(\d+)[^(]*$",
    package="go.temporal.io/server/cmd/server",
    packages=1700,
    archive="https://github.com/temporalio/temporal/releases/download/v1.31.3/temporal_1.31.3_{platform}.tar.gz",
    digests={
        "linux_amd64": "f2c3bf9f1115b506259e5972a62c38257296c043e15798358c3fb758625b96b8",
        "linux_arm64": "9771a7930e2503e77510714d83b5e20f589ee846d270d4b352e1ee3fd487ed08",
    },
)
CLI = Pinned(
    name="temporal",
    version="1.8.2",
    what="the Temporal command line",
    variable="",
    shows=r"\(Server (\d+)\.(\d+)",
    package="github.com/temporalio/cli/cmd/temporal",
    packages=1700,
    flags="-X github.com/temporalio/cli/internal/temporalcli.Version=1.8.2",
    archive="https://github.com/temporalio/cli/releases/download/v1.8.2/temporal_cli_1.8.2_{platform}.tar.gz",
    digests={
        "linux_amd64": "d8421bda989e6514b4bdb4d63a9012a8a05a806892e881a5aad8510496349a94",
        "linux_arm64": "83600a8fac6e3da54093e5da6918d399f501532b9f1172235603f9606f4ac6e4",
        "darwin_amd64": "489d7f5420cae02b559774ac23df035141954c33a51dba96f5759a0ddccdf1b6",
        "darwin_arm64": "dacdc3587682c04cf27e67c8878ca2d755230b6ad63c0c6ebddd7348ae90ed94",
    },
)
UI = Pinned(
    name="kedge-temporal-ui",
    version="2.50.1",
    what="Temporal's web UI",
    variable="",
    shows=r"kedge-temporal-ui 2\.50\.1",
    package="kedge.dev/tools/temporal/ui",
    packages=800,
)
PINNED = {"server": SERVER, "cli": CLI, "ui": UI}

# Where Go's own installer puts it, which not every PATH knows.
_GO_PLACES = ("/usr/local/go/bin",)
# Run in a process of its own: a download that hangs is given up with it.
_DOWNLOADER = """
import http.client, sys, urllib.request

try:
    with urllib.request.urlopen(sys.argv[1], timeout=20) as answer, open(sys.argv[2], "xb") as file:
        left = int(sys.argv[3])
        while part := answer.read(1 << 20):
            left -= len(part)
            if left < 0:
                sys.exit("the archive is larger than it may be")
            file.write(part)
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"{sys.argv[1]}: {getattr(error, 'reason', None) or error}")
"""


class ProvisionError(Exception):
    """A program was not to be had; the message says what to install."""


class Program(BaseModel):
    """A program of Temporal that was seen to run."""

    model_config = ConfigDict(frozen=True)

    path: Path
    version: str
    """The first line it prints about itself."""
    source: Source


class _Unusable(Exception):  # noqa: N818 - a step down, not a failure
    """This way of getting the program does not work here; the message says why."""


def cache_dir(wanted: Pinned, environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloads and builds are kept for every checkout of this user."""
    root = environment.get("XDG_CACHE_HOME")
    # The specification: a relative value is to be ignored.
    base = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return base / "kedge" / wanted.name / wanted.version


def find(
    wanted: Pinned,
    configured: Path | None = None,
    *,
    say: Say = lambda _: None,
    environment: Mapping[str, str] = os.environ,
) -> Program | None:
    """The first such program that is already here; None when there is none.

    One that does not run or is too old is passed over, and ``say`` is told why.
    """
    on_path = shutil.which(wanted.name, path=environment.get("PATH"))
    candidates: list[tuple[Source, Path | None]] = [
        ("setting", configured),
        ("PATH", None if on_path is None else Path(on_path)),
        ("cache", cache_dir(wanted, environment) / wanted.name),
    ]
    for source, path in candidates:
        if path is None or (source == "cache" and not path.exists()):
            continue
        try:
            return _examine(wanted, path, source)
        except _Unusable as reason:
            named = wanted.variable if source == "setting" else f"the one from {source}"
            say(f"{path} ({named}) cannot be used: {reason}; looking on")
    return None


def provide(
    wanted: Pinned,
    configured: Path | None = None,
    *,
    say: Say = lambda _: None,
    environment: Mapping[str, str] = os.environ,
) -> Program:
    """Finds the program, or downloads or builds it into the cache.

    Two of these at once do the work once. Raises ``ProvisionError`` when no way is left.
    """
    found = find(wanted, configured, say=say, environment=environment)
    if found is not None:
        return found
    cache = cache_dir(wanted, environment)
    try:
        with processes.exclusive(
            cache / ".lock",
            seconds=DOWNLOAD_SECONDS + BUILD_SECONDS,
            what=f"fetching {wanted.what}",
        ):
            # Another set-up may have put it there while this one waited.
            target = cache / wanted.name
            if target.exists():
                return _examine(wanted, target, "cache")
            return _fetch(wanted, target, say, environment)
    except (processes.ProcessError, OSError, _Unusable) as error:
        raise ProvisionError(f"{wanted.what} is unavailable: {error}") from error


def provide_server(configured: Path | None = None, *, say: Say = lambda _: None) -> Program:
    """The server that the embedded engine is; see :func:`provide`."""
    return provide(SERVER, configured, say=say)


def _fetch(wanted: Pinned, target: Path, say: Say, environment: Mapping[str, str]) -> Program:
    looked = ", ".join(part for part in (wanted.variable, "PATH", str(target.parent)) if part)
    say(f"{wanted.what} is not here yet (looked in {looked})")
    try:
        _download(wanted, target, say, environment)
        return _examine(wanted, target, "download")
    except _Unusable as reason:
        say(f"the official download does not work here: {reason}")
    say(
        f"building it from its Go module instead, version {wanted.version}: "
        "up to 8 minutes on two cores, once for this user"
    )
    try:
        _build(wanted, target, say, environment)
        return _examine(wanted, target, "build")
    except _Unusable as reason:
        named = f", or name one with {wanted.variable}" if wanted.variable else ""
        raise ProvisionError(
            f"{wanted.what} could not be built either: {reason}\n"
            f"next: install {wanted.what} (named `{wanted.name}`) on PATH{named}"
        ) from reason


def _examine(wanted: Pinned, path: Path, source: Source) -> Program:
    """Runs it with ``--version`` within ``EXAMINE_SECONDS``; refuses what is another program, or an old one."""
    try:
        shown = subprocess.run(
            [str(path), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=EXAMINE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _Unusable(f"it did not print its version within {EXAMINE_SECONDS:.0f} s") from error
    except OSError as error:
        raise _Unusable(f"it does not start ({error.strerror or error})") from error
    version = shown.stdout.strip().partition("\n")[0]
    match = re.search(wanted.shows, version)
    if shown.returncode != 0 or match is None:
        raise _Unusable(f"what it says of itself is not what {wanted.what} says: {version[:80]!r}")
    server = tuple(int(part) for part in match.groups())
    if server and server < OLDEST_SERVER:
        oldest = ".".join(str(part) for part in OLDEST_SERVER)
        raise _Unusable(f"it holds server {match[1]}.{match[2]}, and kedge needs {oldest}")
    return Program(path=path, version=version, source=source)


def _platform() -> str:
    """This machine, as Temporal's releases name it."""
    machine = platform.machine().lower()
    known = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    return f"{platform.system().lower()}_{known.get(machine, machine)}"


def _download(wanted: Pinned, target: Path, say: Say, environment: Mapping[str, str]) -> None:
    here = _platform()
    digest = wanted.digests.get(here)
    if digest is None:
        raise _Unusable(f"no digest of an archive for {here} is pinned")
    say(
        f"downloading the official release {wanted.version} for {here}, for at most {DOWNLOAD_SECONDS:.0f} s"
    )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        archive = Path(folder) / "archive"
        address = wanted.archive.format(platform=here)
        _run_bounded(
            [sys.executable, "-c", _DOWNLOADER, address, str(archive), str(MAX_ARCHIVE)],
            seconds=DOWNLOAD_SECONDS,
            environment=environment,
            progress=lambda _, elapsed: say(f"downloading ({elapsed:.0f} s)"),
        )
        with archive.open("rb") as file:
            have = hashlib.file_digest(file, "sha256").hexdigest()
        if have != digest:
            raise _Unusable(f"what came from {address} has another digest than the one pinned")
        draft = Path(folder) / wanted.name
        _extract(archive, wanted.name, draft)
        draft.replace(target)


def _extract(archive: Path, name: str, target: Path) -> None:
    """The one program of an archive whose digest was checked; everything else in it is left there."""
    try:
        with tarfile.open(archive, "r:gz") as opened:
            for member in opened:
                if member.name.removeprefix("./") == name and member.isreg():
                    source = opened.extractfile(member)
                    assert source is not None  # noqa: S101 - it is a regular file
                    with source, target.open("xb") as file:
                        shutil.copyfileobj(source, file)
                    target.chmod(0o755)
                    return
    except (tarfile.TarError, EOFError) as error:
        raise _Unusable(f"the archive cannot be read: {error}") from error
    raise _Unusable(f"the archive holds no program {name}")


def _build(wanted: Pinned, target: Path, say: Say, environment: Mapping[str, str]) -> None:
    go = _find_go(environment)
    module = _module_dir()
    fetched: set[str] = set()
    compiled: set[str] = set()

    def progress(lines: Sequence[str], elapsed: float) -> None:
        for line in lines:
            (fetched if line.startswith("go: downloading") else compiled).add(line)
        say(
            f"building: {len(fetched)} modules fetched, {len(compiled)} of about "
            f"{wanted.packages} packages compiled ({elapsed:.0f} s)"
        )

    # Built aside and moved: a build that was interrupted never looks like a finished one.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        draft = Path(folder) / wanted.name
        _run_bounded(
            [
                *(str(go), "-C", str(module), "build", "-v", "-mod=readonly", "-trimpath"),
                f"-ldflags=-s -w {wanted.flags}".rstrip(),
                *("-o", str(draft), wanted.package),
            ],
            seconds=BUILD_SECONDS,
            environment=environment,
            progress=progress,
        )
        draft.replace(target)


def _module_dir() -> Path:
    """The pinned Go module: beside this package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "tools" / "temporal", here / "temporal_module"):
        if (folder / "go.sum").is_file():
            return folder
    raise _Unusable("tools/temporal, with its go.mod and go.sum, is not part of this installation")


def _find_go(environment: Mapping[str, str]) -> Path:
    wanted = ".".join(str(part) for part in GO_VERSION)
    path = os.pathsep.join([environment.get("PATH", ""), *_GO_PLACES])
    found = shutil.which("go", path=path)
    if found is None:
        raise _Unusable(f"Go is not installed; install Go {wanted} or newer")
    try:
        shown = subprocess.run(
            [found, "env", "GOVERSION", "GOTOOLCHAIN"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=dict(environment),
        ).stdout.split()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unusable(f"{found} does not run; install Go {wanted} or newer") from error
    version = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", shown[0] if shown else "")
    have = tuple(int(part or 0) for part in version.groups()) if version else (0, 0, 0)
    fetches_newer = have >= (1, 21, 0) and not (len(shown) > 1 and shown[1].startswith("local"))
    if have < GO_VERSION and not fetches_newer:
        shown_as = shown[0] if shown else "of no known version"
        raise _Unusable(f"{found} is {shown_as}; install Go {wanted} or newer")
    return Path(found)


def _run_bounded(
    argv: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str],
    progress: Callable[[Sequence[str], float], None],
    every: float = 10.0,
) -> None:
    """Runs a program to its end, telling ``progress`` the new lines of its output now and then.

    After ``seconds``, or when interrupted, the program and all it started are ended. Raises
    ``_Unusable`` with the last lines of the output when it fails.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kedge-") as folder:
        log = Path(folder) / "output"
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        seen = 0
        try:
            while not _ends_within(child, min(every, started + seconds - time.monotonic())):
                elapsed = time.monotonic() - started
                if elapsed >= seconds:
                    raise _Unusable(f"it took longer than {seconds:.0f} s")
                lines = _lines(log)
                progress(lines[seen:], elapsed)
                seen = len(lines)
        finally:
            if child.poll() is None:
                # Its own session, so its own group: compilers it started end with it.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if child.returncode != 0:
            last = [line for line in _lines(log) if not line.startswith("go: downloading")]
            raise _Unusable(" / ".join(last[-3:]) or f"it ended with {child.returncode}")


def _ends_within(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(timeout=max(0.01, seconds))
    except subprocess.TimeoutExpired:
        return False
    return True


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def main(names: Sequence[str] = ("server",)) -> int:
    """Puts programs in place, by their names in ``PINNED``, saying what it does; 1 when there is no way."""

    def say(sentence: str) -> None:
        print(f"set-up: {sentence}", file=sys.stderr, flush=True)

    try:
        for name in names:
            configured = Settings.load().temporal_binary if name == "server" else None
            program = provide(PINNED[name], configured, say=say)
            if program.source in {"download", "build"}:
                say(f"{PINNED[name].what} is ready: {program.path} ({program.version})")
    except (ProvisionError, SettingsError) as error:
        say(str(error))
        return 1
    except KeyError as error:
        say(f"{error} is none of {', '.join(PINNED)}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left behind")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ("server",)))
