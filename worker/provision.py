"""Finds the Temporal command line, which holds the server, or gets it.

In this order, and each step down is a sentence:

1. the binary that a setting names, or ``temporal`` on PATH,
2. the one that an earlier set-up left in the cache (``$XDG_CACHE_HOME/kedge/temporal/<version>``),
3. the official download, through the Temporal SDK,
4. a build of the pinned Go module in ``tools/temporal``.

Everything has a bound in time. ``python -m worker.provision`` does it from a Makefile.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker import processes
from worker.settings import Settings, SettingsError

TEMPORAL_VERSION = "1.8.2"
"""The release of the Temporal command line that is downloaded or built (server 1.31.2)."""
OLDEST_SERVER = (1, 29)
"""Older servers lack what kedge is tested with."""
GO_VERSION = (1, 26, 4)
"""What tools/temporal/go.mod asks for; Go 1.21 and newer fetches it by itself."""

EXAMINE_SECONDS = 10.0
DOWNLOAD_SECONDS = 60.0
BUILD_SECONDS = 900.0

Say = Callable[[str], None]
Source = Literal["setting", "PATH", "cache", "download", "build"]

_GO_PACKAGE = "github.com/temporalio/cli/cmd/temporal"
# How many packages that is, for the progress: those of the standard library with it.
_GO_PACKAGES = 1700
# Where Go's own installer puts it, which not every PATH knows.
_GO_PLACES = ("/usr/local/go/bin",)
_GO_VERSION_VARIABLE = "github.com/temporalio/cli/internal/temporalcli.Version"
# Run in a process of its own: the SDK has no way to give up a download, a process has.
_DOWNLOADER = """
import asyncio, sys
from temporalio.testing import WorkflowEnvironment

async def main() -> None:
    server = await WorkflowEnvironment.start_local(
        download_dest_dir=sys.argv[1], dev_server_download_version=sys.argv[2]
    )
    await server.shutdown()

try:
    asyncio.run(main())
except RuntimeError as error:
    print(error, file=sys.stderr, flush=True)
    import os
    os._exit(1)
"""


class ProvisionError(Exception):
    """No Temporal server was to be had; the message says what to install."""


class TemporalBinary(BaseModel):
    """A Temporal command line that was seen to run."""

    model_config = ConfigDict(frozen=True)

    path: Path
    version: str
    """The first line it prints about itself."""
    source: Source


class _Unusable(Exception):  # noqa: N818 - a step down, not a failure
    """This way of getting the server does not work here; the message says why."""


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where downloads and builds are kept for every checkout of this user."""
    root = environment.get("XDG_CACHE_HOME")
    # The specification: a relative value is to be ignored.
    base = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return base / "kedge" / "temporal" / TEMPORAL_VERSION


def find_temporal(
    configured: Path | None = None,
    *,
    say: Say = lambda _: None,
    environment: Mapping[str, str] = os.environ,
) -> TemporalBinary | None:
    """The first Temporal command line that is already here; None when there is none.

    One that does not run or is too old is passed over, and ``say`` is told why.
    """
    on_path = shutil.which("temporal", path=environment.get("PATH"))
    candidates: list[tuple[Source, Path | None]] = [
        ("setting", configured),
        ("PATH", None if on_path is None else Path(on_path)),
        ("cache", cache_dir(environment) / "temporal"),
    ]
    for source, path in candidates:
        if path is None or (source == "cache" and not path.exists()):
            continue
        try:
            return _examine(path, source)
        except _Unusable as reason:
            named = "KEDGE_TEMPORAL_BINARY" if source == "setting" else f"the one from {source}"
            say(f"{path} ({named}) cannot be used: {reason}; looking on")
    return None


def provide_temporal(
    configured: Path | None = None,
    *,
    say: Say = lambda _: None,
    environment: Mapping[str, str] = os.environ,
) -> TemporalBinary:
    """Finds the Temporal command line, or downloads or builds it into the cache.

    Two of these at once do the work once. Raises ``ProvisionError`` when no way is left.
    """
    found = find_temporal(configured, say=say, environment=environment)
    if found is not None:
        return found
    cache = cache_dir(environment)
    try:
        with processes.exclusive(
            cache / ".lock",
            seconds=DOWNLOAD_SECONDS + BUILD_SECONDS,
            what="fetching the Temporal server",
        ):
            # Another set-up may have put it there while this one waited.
            target = cache / "temporal"
            if target.exists():
                return _examine(target, "cache")
            return _fetch(target, say, environment)
    except (processes.ProcessError, OSError, _Unusable) as error:
        raise ProvisionError(f"no Temporal server: {error}") from error


def _fetch(target: Path, say: Say, environment: Mapping[str, str]) -> TemporalBinary:
    say(
        f"no Temporal server here (KEDGE_TEMPORAL_BINARY, PATH, {target.parent}); "
        f"downloading the official one, version {TEMPORAL_VERSION}, "
        f"for at most {DOWNLOAD_SECONDS:.0f} s"
    )
    try:
        _download(target, say, environment)
        return _examine(target, "download")
    except _Unusable as reason:
        say(f"the official download does not work here: {reason}")
    say(
        f"building it from its Go module instead, version {TEMPORAL_VERSION}: "
        "4 to 8 minutes on two cores, once for this user"
    )
    try:
        _build(target, say, environment)
        return _examine(target, "build")
    except _Unusable as reason:
        raise ProvisionError(
            f"the Temporal server could not be built either: {reason}\n"
            "next: install the Temporal command line (named `temporal`) on PATH, or name it with "
            "KEDGE_TEMPORAL_BINARY"
        ) from reason


def _examine(path: Path, source: Source) -> TemporalBinary:
    """Runs ``temporal --version`` within ``EXAMINE_SECONDS``; refuses what is not a recent Temporal."""
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
    server = re.search(r"\(Server (\d+)\.(\d+)", version)
    if shown.returncode != 0 or server is None:
        raise _Unusable("it does not say which Temporal server it holds")
    if (int(server[1]), int(server[2])) < OLDEST_SERVER:
        oldest = ".".join(str(part) for part in OLDEST_SERVER)
        raise _Unusable(f"it holds server {server[1]}.{server[2]}, and kedge needs {oldest}")
    return TemporalBinary(path=path, version=version, source=source)


def _download(target: Path, say: Say, environment: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
        _run_bounded(
            [sys.executable, "-c", _DOWNLOADER, folder, f"v{TEMPORAL_VERSION}"],
            seconds=DOWNLOAD_SECONDS,
            environment=environment,
            progress=lambda _, elapsed: say(f"downloading ({elapsed:.0f} s)"),
        )
        arrived = [path for path in Path(folder).iterdir() if os.access(path, os.X_OK)]
        if len(arrived) != 1:
            raise _Unusable("the SDK's downloader left no program behind")
        arrived[0].replace(target)


def _build(target: Path, say: Say, environment: Mapping[str, str]) -> None:
    go = _find_go(environment)
    module = _module_dir()
    fetched: set[str] = set()
    compiled: set[str] = set()

    def progress(lines: Sequence[str], elapsed: float) -> None:
        for line in lines:
            (fetched if line.startswith("go: downloading") else compiled).add(line)
        say(
            f"building: {len(fetched)} modules fetched, {len(compiled)} of about "
            f"{_GO_PACKAGES} packages compiled ({elapsed:.0f} s)"
        )

    # Built aside and moved: a build that was interrupted never looks like a finished one.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        draft = Path(folder) / "temporal"
        _run_bounded(
            [
                *(str(go), "-C", str(module), "build", "-v", "-mod=readonly", "-trimpath"),
                f"-ldflags=-s -w -X {_GO_VERSION_VARIABLE}={TEMPORAL_VERSION}",
                *("-o", str(draft), _GO_PACKAGE),
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


def main() -> int:
    """Puts the Temporal server in place, saying what it does; 1 when there is no way."""

    def say(sentence: str) -> None:
        print(f"set-up: {sentence}", file=sys.stderr, flush=True)

    try:
        binary = provide_temporal(Settings.load().temporal_binary, say=say)
    except (ProvisionError, SettingsError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left behind")
        return 130
    if binary.source in {"download", "build"}:
        say(f"Temporal server ready: {binary.path} ({binary.version})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
