"""Vendors with the tools that vendors have: gpg, minisign (as py-minisign makes it), ssh-keygen."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import minisign
import pytest

from kedge.model.trusted import ReleaseName
from kedge.model.upstream import VendorArchive, VendorImport
from kedge.trust.upstream import ImportRules, Published, judge_import
from kedge.trust.vendor_pins import read_pins

AMD, ARM = b"the program for amd64", b"the program for arm64"
SUMS_NAME = "SHA256SUMS"


def sums(**changes: bytes) -> bytes:
    """The list of two archives; ``changes`` by platform word."""
    files = {"amd64": AMD, "arm64": ARM, **changes}
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  db-1.1-linux-{name}.tar.gz\n"
        for name, content in files.items()
    ).encode()


def archive(word: str = "amd64", content: bytes | None = AMD, **changes: Any) -> VendorArchive:
    fields: dict[str, Any] = {
        "platform": f"linux/{word}",
        "name": f"db-1.1-linux-{word}.tar.gz",
        "digest": None if content is None else hashlib.sha256(content).hexdigest(),
        "length": None if content is None else len(content),
    }
    return VendorArchive(**{**fields, **changes})


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def judge(
    signatures: dict[str, bytes],
    pins: dict[str, bytes],
    *,
    version: str = "1.1",
    content: bytes | None = None,
    archives: tuple[VendorArchive, ...] = (archive(), archive("arm64", ARM)),
    at: str = "",
    **rules: Any,
) -> VendorImport:
    published = Published(
        ReleaseName(component="db", version=version),
        SUMS_NAME,
        sums() if content is None else content,
        signatures,
        archives,
    )
    return judge_import(published, ImportRules(read_pins(pins), **rules), at or now())


class Gpg:
    """Stock GnuPG with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.kept = b""
        """A signature that was made before its key was revoked."""

    def run(self, *arguments: str, given: bytes = b"") -> bytes:
        done = subprocess.run(
            ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes", "--no-auto-check-trustdb",
             "--trust-model", "always", "--pinentry-mode", "loopback", "--passphrase", "", *arguments],
            input=given, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def key(self, name: str, kind: str = "ed25519", *, lasts: str = "2y", at: str = "") -> None:
        """A new key; ``at`` is when it was made (``20200101T000000``)."""
        back = ["--faked-system-time", f"{at}!"] if at else []
        self.run(*back, "--quick-gen-key", f"{name} <{name}@vendor.example>", kind, "sign", lasts)

    def subkey(self, name: str, kind: str, *, lasts: str, at: str = "") -> None:
        listed = self.run("--list-keys", "--with-colons", f"{name}@vendor.example").decode()
        whole = next(row.split(":")[9] for row in listed.splitlines() if row.startswith("fpr"))
        back = ["--faked-system-time", f"{at}!"] if at else []
        self.run(*back, "--quick-add-key", whole, kind, "sign", lasts)

    def public(self, name: str) -> bytes:
        return self.run("--armor", "--export", f"{name}@vendor.example")

    def sign(
        self, content: bytes, *names: str, at: str = "", options: tuple[str, ...] = ()
    ) -> bytes:
        by = [word for name in names for word in ("--local-user", f"{name}@vendor.example")]
        back = ["--faked-system-time", f"{at}!"] if at else []
        return self.run(*back, *by, "--armor", *options, "--detach-sign", given=content)

    def revoke(self, name: str) -> None:
        """Imports the revocation that gpg made with the key."""
        (certificate,) = (self.home / "openpgp-revocs.d").glob(f"{self.fingerprint(name)}.rev")
        text = certificate.read_text().replace(":-----BEGIN", "-----BEGIN")
        self.run("--import", given=text.encode())

    def fingerprint(self, name: str) -> str:
        listed = self.run("--list-keys", "--with-colons", f"{name}@vendor.example").decode()
        return next(row.split(":")[9] for row in listed.splitlines() if row.startswith("fpr"))


@contextmanager
def gpg_home() -> Iterator[Gpg]:
    """GnuPG in a new home; its agent ends with the block. The path is short: sockets lie in it."""
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    home = Path(tempfile.mkdtemp(prefix="kedge-gpg-"))
    try:
        yield Gpg(home)
    finally:
        subprocess.run(
            ["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, timeout=30
        )
        shutil.rmtree(home, ignore_errors=True)


@lru_cache(maxsize=16)
def minisign_pair(name: str) -> minisign.KeyPair:
    assert name
    return minisign.KeyPair.generate()


def minisign_public(name: str) -> bytes:
    return bytes(minisign_pair(name).public_key)


def minisigned(name: str, content: bytes, comment: str = "", **how: Any) -> bytes:
    stamp = int(datetime.now(UTC).timestamp())
    said = comment or f"timestamp:{stamp}\tfile:{SUMS_NAME}\thashed"
    made: Any = minisign_pair(name).secret_key.sign(content, trusted_comment=said, **how)
    return bytes(made)


def ssh_key(folder: Path, name: str, *kind: str) -> Path:
    path = folder / name
    if not path.exists():
        made = [
            "ssh-keygen",
            "-q",
            *(kind or ("-t", "ed25519")),
            "-N",
            "",
            "-C",
            name,
            "-f",
            str(path),
        ]
        subprocess.run(made, check=True, timeout=60)
    return path


def ssh_signed(key: Path, content: bytes, namespace: str = "file") -> bytes:
    return subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key)],
        input=content, capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
