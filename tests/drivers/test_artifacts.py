"""Artifacts: nobody gets a path whose bytes were not verified."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from kedge.drivers import artifacts as artifacts_module
from kedge.drivers.artifacts import FileSource, VerifiedArtifacts
from kedge.model.errors import DriverError
from kedge.model.plan import Artifact

CONTENT = b"an archive" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def asked(source: str, content: bytes = CONTENT) -> Artifact:
    digest = hashlib.sha256(content).hexdigest()
    return Artifact(platform="linux/amd64", digest=digest, length=len(content), source=source)


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    (tmp_path / "releases" / "etcd").mkdir(parents=True)
    (tmp_path / "releases" / "etcd" / "a.tgz").write_bytes(CONTENT)
    return tmp_path / "releases"


@pytest.fixture
def artifacts(tmp_path: Path, releases: Path) -> VerifiedArtifacts:
    sources = {"file": FileSource([tmp_path / "elsewhere", releases])}
    return VerifiedArtifacts(tmp_path / "cache", sources)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was read to be verified."""
    found: list[Path] = []
    real = artifacts_module._check

    def check(path: Path, artifact: Artifact) -> str | None:
        found.append(path)
        return real(path, artifact)

    monkeypatch.setattr(artifacts_module, "_check", check)
    return found


@pytest.mark.parametrize("form", ["etcd/a.tgz", "{0}/etcd/a.tgz", "file:{0}/etcd/a.tgz", "file://{0}/etcd/a.tgz"])  # fmt: skip
async def test_an_archive_is_found_however_it_is_named(
    artifacts: VerifiedArtifacts, releases: Path, form: str
) -> None:
    path = await artifacts.fetch(asked(form.format(releases)))
    assert path == releases / "etcd" / "a.tgz"


async def test_the_cache_is_asked_first(artifacts: VerifiedArtifacts, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / DIGEST).write_bytes(CONTENT)
    assert await artifacts.fetch(asked("not/there.tgz")) == tmp_path / "cache" / DIGEST


async def test_a_broken_file_in_the_cache_does_not_hide_the_good_one(
    artifacts: VerifiedArtifacts, tmp_path: Path, releases: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / DIGEST).write_bytes(CONTENT[:-1] + b"X")
    assert await artifacts.fetch(asked("etcd/a.tgz")) == releases / "etcd" / "a.tgz"


@pytest.mark.parametrize("damage", [CONTENT[:-1] + b"X", CONTENT + b"X", CONTENT[:-1], b""])
async def test_other_bytes_are_refused(
    artifacts: VerifiedArtifacts, releases: Path, damage: bytes
) -> None:
    (releases / "etcd" / "a.tgz").write_bytes(damage)
    with pytest.raises(DriverError) as caught:
        await artifacts.fetch(asked("etcd/a.tgz"))
    assert (caught.value.kind, caught.value.retryable) == ("DigestMismatch", False)


async def test_what_is_nowhere_is_said_with_where_it_was_looked_for(
    artifacts: VerifiedArtifacts, releases: Path
) -> None:
    with pytest.raises(DriverError) as caught:
        await artifacts.fetch(asked("etcd/b.tgz"))
    assert (caught.value.kind, caught.value.retryable) == ("NotFound", False)
    assert str(releases / "etcd" / "b.tgz") in caught.value.message


@pytest.mark.parametrize(
    "source", ["../a.tgz", "etcd/../../a", "file:///../a", "file://host/a", "https://example.org/a"]
)
async def test_sources_that_lead_elsewhere_are_refused(
    artifacts: VerifiedArtifacts, source: str
) -> None:
    with pytest.raises(DriverError) as caught:
        await artifacts.fetch(asked(source))
    assert caught.value.kind == "NotFound"


async def test_a_file_is_verified_once_however_many_ask(
    artifacts: VerifiedArtifacts, checks: list[Path]
) -> None:
    await asyncio.gather(*(artifacts.fetch(asked("etcd/a.tgz")) for _ in range(50)))
    await artifacts.fetch(asked("etcd/a.tgz"))
    assert len(checks) == 1


async def test_a_file_that_changed_is_verified_again(
    artifacts: VerifiedArtifacts, releases: Path, checks: list[Path]
) -> None:
    path = releases / "etcd" / "a.tgz"
    await artifacts.fetch(asked("etcd/a.tgz"))
    before = path.stat()
    path.write_bytes(CONTENT[:-1] + b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DriverError):
        await artifacts.fetch(asked("etcd/a.tgz"))
    path.write_bytes(CONTENT)
    await artifacts.fetch(asked("etcd/a.tgz"))
    assert len(checks) == 3


async def test_a_verified_file_is_not_taken_for_another_digest(
    artifacts: VerifiedArtifacts,
) -> None:
    await artifacts.fetch(asked("etcd/a.tgz"))
    with pytest.raises(DriverError) as caught:
        await artifacts.fetch(asked("etcd/a.tgz", CONTENT[:-1] + b"X"))
    assert caught.value.kind == "DigestMismatch"


async def test_a_source_joins_by_its_scheme(tmp_path: Path, releases: Path) -> None:
    class Shelf:
        async def candidates(self, artifact: Artifact) -> Sequence[Path]:
            return (releases / artifact.source.removeprefix("shelf:"),)

    artifacts = VerifiedArtifacts(tmp_path / "cache", {"shelf": Shelf()})
    assert await artifacts.fetch(asked("shelf:etcd/a.tgz")) == releases / "etcd" / "a.tgz"


def packed(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


async def test_what_no_host_takes_is_refused_before_it_is_kept(
    artifacts: VerifiedArtifacts, releases: Path
) -> None:
    content = b"<html>404</html>" * 100
    (releases / "page").write_bytes(content)
    with pytest.raises(DriverError, match="an HTML page, not an archive") as caught:
        await artifacts.keep(asked("page", content))
    assert (caught.value.kind, caught.value.retryable) == ("ArchiveRefused", False)
    assert caught.value.next_step
    assert not (artifacts._cache / hashlib.sha256(content).hexdigest()).exists()


async def test_an_archive_is_looked_through_once(
    artifacts: VerifiedArtifacts, releases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = packed(("top/bin/app", b"app"))
    (releases / "a.tgz").write_bytes(content)
    seen: list[Path] = []
    real = artifacts_module.check_packing

    def check(path: Path, artifact: Artifact) -> None:
        seen.append(path)
        real(path, artifact)

    monkeypatch.setattr(artifacts_module, "check_packing", check)
    one = asked("a.tgz", content).model_copy(update={"strip": 1})
    await artifacts.keep(one)
    await artifacts.keep(one)
    assert len(seen) == 1
