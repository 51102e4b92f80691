"""The order in which the Temporal server is found, with tiny real programs on fake paths."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from worker import provision
from worker.provision import SERVER, Pinned, Program, ProvisionError, provide

GOOD = "temporal version 1.31.3"
STOCK = "temporal version 1.8.2 (Server 1.31.2, UI 2.50.1)"


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def says(path: Path, line: str = GOOD) -> Path:
    return program(path, f'echo "{line}"')


class World:
    """A PATH and a cache of their own, and everything that was said."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.cached = root / "cache" / "kedge" / "temporal-server" / "1.31.3" / "temporal-server"
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "XDG_CACHE_HOME": str(root / "cache"),
            "HOME": str(root),
        }
        self.said: list[str] = []
        self.wanted: Pinned = SERVER

    def provide(self, configured: Path | None = None) -> Program:
        return provide(self.wanted, configured, say=self.said.append, environment=self.environment)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # Without a network: nothing comes.
    monkeypatch.setattr(provision, "_DOWNLOADER", "import sys; sys.exit('no way out of here')")
    monkeypatch.setattr(provision, "_GO_PLACES", ())
    return World(tmp_path)


def test_a_setting_comes_before_path_and_path_before_the_cache(
    world: World, tmp_path: Path
) -> None:
    named = says(tmp_path / "named" / "any-name")
    on_path = says(world.bin / "temporal-server")
    says(world.cached)
    assert (world.provide(named).path, world.provide(named).source) == (named, "setting")
    assert (world.provide().path, world.provide().source) == (on_path, "PATH")
    on_path.unlink()
    assert (world.provide().path, world.provide().source) == (world.cached, "cache")
    assert world.said == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "is not what the Temporal server says"),
        ('echo "temporal version 1.30.4"', "holds server 1.30, and kedge needs"),
        ("echo something else", "is not what the Temporal server says"),
        # The stock command line holds a dev server, which anybody on the machine could reach.
        (f'echo "{STOCK}"', "is not what the Temporal server says"),
    ],
)
def test_one_that_does_not_fit_is_passed_over_with_a_sentence(
    script: str, reason: str, world: World
) -> None:
    program(world.bin / "temporal-server", script)
    says(world.cached)
    assert world.provide().source == "cache"
    assert len(world.said) == 1
    assert reason in world.said[0]


def test_a_setting_that_names_nothing_is_said_and_passed_over(world: World, tmp_path: Path) -> None:
    says(world.bin / "temporal-server")
    assert world.provide(tmp_path / "absent").source == "PATH"
    assert "KEDGE_TEMPORAL_BINARY" in world.said[0]
    assert "No such file" in world.said[0]


def test_one_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "EXAMINE_SECONDS", 0.2)
    program(world.bin / "temporal-server", "exec sleep 30")
    says(world.cached)
    started = time.monotonic()
    assert world.provide().source == "cache"
    assert time.monotonic() - started < 5
    assert "did not print its version" in world.said[0]


class Site(BaseHTTPRequestHandler):
    """Where an archive is to be had."""

    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(type(self).content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def archive(*members: tarfile.TarInfo | tuple[str, str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as made:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                made.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            made.addfile(info, io.BytesIO(content.encode()))
    return held.getvalue()


@pytest.fixture
def site(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Serves bytes as the archive of this platform, and pins their digest."""
    monkeypatch.undo()
    monkeypatch.setattr(provision, "_GO_PLACES", ())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def publish(content: bytes) -> None:
        monkeypatch.setattr(Site, "content", content)
        digests = {provision._platform(): hashlib.sha256(content).hexdigest()}
        address = f"http://127.0.0.1:{server.server_address[1]}/{{platform}}.tar.gz"
        world.wanted = dataclasses.replace(SERVER, archive=address, digests=digests)

    yield publish
    server.shutdown()
    server.server_close()


PROGRAM = f'#!/bin/sh\necho "{GOOD}"\n'


def test_the_download_is_kept_in_the_cache(world: World, site: Callable[[bytes], None]) -> None:
    site(archive(("LICENSE", "free"), ("temporal-server", PROGRAM), ("tdbg", "another")))
    assert world.provide().source == "download"
    assert world.provide() == Program(path=world.cached, version=GOOD, source="cache")
    leftovers = [entry.name for entry in world.cached.parent.iterdir()]
    assert sorted(leftovers) == [".lock", "temporal-server"]


def test_an_archive_with_another_digest_is_not_even_opened(
    world: World, site: Callable[[bytes], None]
) -> None:
    good = archive(("temporal-server", PROGRAM))
    site(good)
    Site.content = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(ProvisionError):
        world.provide()
    assert any("another digest than the one pinned" in sentence for sentence in world.said)
    assert not world.cached.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, None])
def test_what_is_no_plain_file_in_the_archive_is_no_program(
    world: World, site: Callable[[bytes], None], kind: bytes | None
) -> None:
    member = tarfile.TarInfo("temporal-server")
    if kind is not None:
        member.type, member.linkname = kind, "/bin/true"
    site(archive(member) if kind is not None else archive(("elsewhere/temporal-server", PROGRAM)))
    with pytest.raises(ProvisionError):
        world.provide()
    assert any("holds no program temporal-server" in sentence for sentence in world.said)
    assert not world.cached.exists()


def test_an_archive_that_has_no_end_is_given_up(
    world: World, site: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    site(archive(("temporal-server", PROGRAM)))
    monkeypatch.setattr(provision, "MAX_ARCHIVE", 20)
    with pytest.raises(ProvisionError):
        world.provide()
    assert any("larger than it may be" in sentence for sentence in world.said)


def test_where_no_digest_is_pinned_nothing_is_downloaded(world: World) -> None:
    world.wanted = dataclasses.replace(SERVER, digests={})
    with pytest.raises(ProvisionError):
        world.provide()
    assert any("no digest of an archive" in sentence for sentence in world.said)


@pytest.mark.parametrize("wanted", provision.PINNED.values(), ids=list(provision.PINNED))
def test_what_is_built_is_what_the_module_pins(wanted: Pinned) -> None:
    """The version of each program is that of go.mod, except where an archive is of its own release."""
    module = Path(provision.__file__).parents[1] / "tools" / "temporal" / "go.mod"
    pins = dict(re.findall(r"^\s*(\S+) v(\S+)", module.read_text(), re.MULTILINE))
    of = {
        "temporal-server": "go.temporal.io/server",
        "temporal": "github.com/temporalio/cli",
        "kedge-temporal-ui": "github.com/temporalio/ui-server/v2",
    }
    assert pins[of[wanted.name]] == wanted.version
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in wanted.digests.values())
    assert wanted.version in wanted.archive or not wanted.archive


FAKE_GO = f"""
if [ "$1" = env ]; then echo go1.26.8; echo local; exit 0; fi
echo "$@" >> "$HOME/go-calls"
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho "{GOOD}"\\n' > "$2"; chmod 755 "$2"
"""


def test_when_the_download_is_refused_it_is_built_and_each_step_down_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "_platform", lambda: "linux_amd64")
    program(world.bin / "go", FAKE_GO)
    assert world.provide().source == "build"
    calls = Path(world.environment["HOME"], "go-calls").read_text()
    assert "-mod=readonly -trimpath -ldflags=-s -w" in calls
    assert [sentence.split(":")[0].split(",")[0] for sentence in world.said] == [
        "the Temporal server is not here yet (looked in KEDGE_TEMPORAL_BINARY",
        "downloading the official release 1.31.3 for linux_amd64",
        "the official download does not work here",
        "building it from its Go module instead",
    ]
    assert "no way out of here" in world.said[2]
    assert "File " not in world.said[2], "a reason, not a stack trace"
    assert world.provide().source == "cache"


@pytest.mark.parametrize(
    ("go", "sentence"),
    [
        (None, "Go is not installed; install Go 1.26.8 or newer"),
        ("echo go1.19.8; echo auto", "go1.19.8; install Go 1.26.8 or newer"),
        ("echo go1.24.1; echo local", "go1.24.1; install Go 1.26.8 or newer"),
        (
            'if [ "$1" = env ]; then echo go1.24.1; echo auto; else echo boom; exit 1; fi',
            "could not be built either: boom",
        ),
    ],
)
def test_without_a_go_that_fits_the_end_is_a_sentence_that_says_what_to_install(
    go: str | None, sentence: str, world: World
) -> None:
    if go is not None:
        program(world.bin / "go", go)
    with pytest.raises(ProvisionError) as caught:
        world.provide()
    assert sentence in str(caught.value)
    assert "next: install the Temporal server (named `temporal-server`)" in str(caught.value)
    assert not world.cached.exists()


def test_a_build_that_takes_too_long_is_ended_with_all_it_started(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provision, "BUILD_SECONDS", 0.5)
    child = tmp_path / "child"
    program(
        world.bin / "go",
        f'if [ "$1" = env ]; then echo go1.26.8; exit 0; fi\nsleep 60 & echo $! > {child}; wait',
    )
    with pytest.raises(ProvisionError, match="it took longer than"):
        world.provide()
    stat = Path(f"/proc/{child.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_set_ups_at_once_fetch_once(world: World) -> None:
    program(world.bin / "go", "sleep 0.3\n" + FAKE_GO)
    found: list[Program] = []
    threads = [threading.Thread(target=lambda: found.append(world.provide())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(binary.source for binary in found) == ["build", "cache"]


def test_a_relative_cache_folder_is_ignored_as_the_specification_says() -> None:
    assert provision.cache_dir(SERVER, {"XDG_CACHE_HOME": "here"}).is_relative_to(Path.home())


def test_from_the_makefile_it_says_nothing_when_all_is_there(tmp_path: Path) -> None:
    binary = says(tmp_path / "temporal-server")
    shown = subprocess.run(
        [sys.executable, "-m", "worker.provision"],
        env={**os.environ, "KEDGE_TEMPORAL_BINARY": str(binary)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (shown.stdout, shown.stderr) == ("", "")
