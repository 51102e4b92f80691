"""Blobs, pins and fleets: whole or absent, verified, safe among many writers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from kedge.drivers.policy_pins import FilePolicyPins
from kedge.drivers.ports import MAX_BLOB
from kedge.drivers.stores import FileBlobs, FileFleets
from kedge.model.base import Frozen, canonical, digest_of
from kedge.model.errors import DriverError
from kedge.model.policy import Policy
from tests.trust.world import policy as example_policy


class Document(Frozen):
    name: str = Field(default="doc")
    nodes: tuple[str, ...] = ()


def path_of(root: Path, digest: str) -> Path:
    return root / digest[:2] / digest


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


def writer(root: Path) -> subprocess.Popen[bytes]:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from kedge.drivers.stores import FileBlobs\n"
        "async def main():\n"
        "    blobs = FileBlobs(Path(sys.argv[1]))\n"
        "    for number in range(40):\n"
        "        digest = await blobs.put(str(number).encode() * 1000)\n"
        "        assert await blobs.get(digest)\n"
        "asyncio.run(main())\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, root])


async def refused(awaited: object) -> DriverError:
    with pytest.raises(DriverError) as caught:
        await awaited  # type: ignore[misc]
    return caught.value


async def test_what_was_put_is_got_by_its_digest(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path)
    digest = await blobs.put(b"a plan")
    assert digest == hashlib.sha256(b"a plan").hexdigest()
    assert await blobs.has(digest)
    assert await blobs.get(digest) == b"a plan"
    assert await blobs.put(b"a plan") == digest
    assert files_in(tmp_path) == [digest]


async def test_nothing_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    error = await refused(FileBlobs(tmp_path).get("0" * 64))
    assert (error.kind, error.retryable) == ("NotFound", False)
    assert error.next_step
    assert not await FileBlobs(tmp_path).has("0" * 64)


@pytest.mark.parametrize("damage", [b"another plan", b"", b"a pla"])
async def test_damaged_bytes_are_never_given_out(tmp_path: Path, damage: bytes) -> None:
    blobs = FileBlobs(tmp_path)
    digest = await blobs.put(b"a plan")
    path_of(tmp_path, digest).write_bytes(damage)
    error = await refused(blobs.get(digest))
    assert (error.kind, error.retryable) == ("StoreError", False)
    await blobs.put(b"a plan")
    assert await blobs.get(digest) == b"a plan"


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
async def test_only_a_digest_becomes_a_path(tmp_path: Path, name: str) -> None:
    assert (await refused(FileBlobs(tmp_path).get(name))).kind == "NotFound"


async def test_what_is_too_large_is_refused_before_it_is_written(tmp_path: Path) -> None:
    error = await refused(FileBlobs(tmp_path).put(b"\0" * (MAX_BLOB + 1)))
    assert (error.kind, error.retryable) == ("StoreError", False)
    assert not files_in(tmp_path)


async def test_many_writers_of_the_same_bytes_do_not_disturb_readers(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    blobs = [FileBlobs(tmp_path) for _ in range(8)]
    digest = await blobs[0].put(content)

    async def both(one: FileBlobs) -> None:
        for _ in range(5):
            path_of(tmp_path, digest).write_bytes(b"damaged") if one is blobs[0] else None
            await one.put(content)
            assert await one.has(digest)

    await asyncio.gather(*(both(one) for one in blobs))
    assert await blobs[0].get(digest) == content
    assert files_in(tmp_path) == [digest]


async def test_writers_in_many_processes_agree(tmp_path: Path) -> None:
    writers = [writer(tmp_path) for _ in range(3)]
    assert [await asyncio.to_thread(one.wait, 60) for one in writers] == [0, 0, 0]
    assert len(files_in(tmp_path)) == 40


async def test_a_pinned_policy_is_read_back(tmp_path: Path) -> None:
    pins = FilePolicyPins(tmp_path / "trust")
    policy = example_policy()
    digest = await pins.pin("etcd", policy)
    assert digest == digest_of(policy)
    assert await pins.policy("etcd") == policy
    assert (tmp_path / "trust" / "etcd.json").stat().st_mode & 0o777 == 0o600


async def test_a_fleet_without_a_pin_has_no_policy(tmp_path: Path) -> None:
    error = await refused(FilePolicyPins(tmp_path).policy("etcd"))
    assert (error.kind, error.retryable) == ("NotFound", False)
    assert error.next_step


@pytest.mark.parametrize("name", ["../etcd", "", "a/b", ".hidden", "Etcd", "a" * 64, "a\0b"])
async def test_a_fleet_s_name_is_no_path(tmp_path: Path, name: str) -> None:
    pins = FilePolicyPins(tmp_path)
    assert (await refused(pins.policy(name))).kind == "StoreError"
    assert (await refused(pins.pin(name, example_policy()))).kind == "StoreError"
    assert not files_in(tmp_path)


async def test_a_pin_that_is_no_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etcd.json").write_text('{"kind": "Policy"}')
    error = await refused(FilePolicyPins(tmp_path).policy("etcd"))
    assert (error.kind, error.retryable) == ("StoreError", False)


async def test_a_pin_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    pins = FilePolicyPins(tmp_path)
    await pins.pin("etcd", example_policy())
    (tmp_path / "etcd.json").chmod(0o666)
    assert (await refused(pins.policy("etcd"))).kind == "StoreError"


async def test_a_pin_is_replaced_whole(tmp_path: Path) -> None:
    pins = FilePolicyPins(tmp_path)
    policy = example_policy()
    await pins.pin("etcd", policy)

    async def reads() -> None:
        for _ in range(50):
            assert isinstance(await pins.policy("etcd"), Policy)

    async def writes() -> None:
        for number in range(20):
            await pins.pin("etcd", policy.model_copy(update={"clock_skew": float(number % 2)}))

    await asyncio.gather(reads(), writes(), reads())
    kept = await pins.kept("etcd")
    assert [(one.seq, one.by) for one in kept] == [
        (1, "first"),
        *((number, "owner") for number in range(2, 22)),
    ]


async def test_a_pin_that_was_put_back_changed_or_taken_away_is_refused(tmp_path: Path) -> None:
    pins = FilePolicyPins(tmp_path)
    policy = example_policy()
    await pins.pin("etcd", policy)
    first = (tmp_path / "etcd.json").read_bytes()
    await pins.pin("etcd", policy.model_copy(update={"clock_skew": 1.0}))
    later = (tmp_path / "etcd.json").read_bytes()
    for content in (first, later + b"\n", b"{}", b"\xff", None):
        if content is None:
            (tmp_path / "etcd.json").unlink()
        else:
            (tmp_path / "etcd.json").write_bytes(content)
        assert (await refused(pins.policy("etcd"))).kind == "StoreError"
    (tmp_path / "etcd.json").write_bytes(later)
    assert (await pins.pinned("etcd")).seq == 2
    (tmp_path / "etcd" / "000002.json").write_text("{}")
    assert (await refused(pins.policy("etcd"))).kind == "StoreError"


async def test_a_policy_pinned_before_versions_were_kept_is_the_first(tmp_path: Path) -> None:
    pins = FilePolicyPins(tmp_path)
    policy = example_policy()
    (tmp_path / "etcd.json").write_bytes(canonical(policy))
    assert (await pins.pinned("etcd")).by == "first"
    await pins.pin("etcd", policy.model_copy(update={"clock_skew": 1.0}))
    assert [one.by for one in await pins.kept("etcd")] == ["first", "owner"]


async def test_a_fleet_is_remembered_with_its_documents(tmp_path: Path) -> None:
    blobs = FileBlobs(tmp_path / "store")
    fleets = FileFleets(tmp_path / "fleets", blobs)
    document, release = Document(nodes=("a", "b")), Document(name="release")
    record = await fleets.remember("etcd", document, release)
    assert await fleets.known("etcd") == record
    assert await blobs.get(record.document) == canonical(document)
    assert record.baseline is not None
    assert await blobs.get(record.baseline) == canonical(release)


async def test_a_baseline_stays_until_another_is_given(tmp_path: Path) -> None:
    fleets = FileFleets(tmp_path / "fleets", FileBlobs(tmp_path / "store"))
    first = await fleets.remember("etcd", Document(), Document(name="release"))
    second = await fleets.remember("etcd", Document(nodes=("a",)))
    assert second.baseline == first.baseline
    assert second.document != first.document


async def test_every_fleet_is_listed_and_forgotten(tmp_path: Path) -> None:
    fleets = FileFleets(tmp_path / "fleets", FileBlobs(tmp_path / "store"))
    assert await fleets.every() == ()
    for name in ("nats", "etcd"):
        await fleets.remember(name, Document())
    assert [record.fleet for record in await fleets.every()] == ["etcd", "nats"]
    await fleets.forget("nats")
    await fleets.forget("nats")
    assert [record.fleet for record in await fleets.every()] == ["etcd"]
    assert await fleets.known("nats") is None


async def test_a_broken_record_is_an_error_not_an_absence(tmp_path: Path) -> None:
    fleets = FileFleets(tmp_path, FileBlobs(tmp_path / "store"))
    (tmp_path / "etcd.json").write_text("{")
    assert (await refused(fleets.known("etcd"))).kind == "StoreError"
