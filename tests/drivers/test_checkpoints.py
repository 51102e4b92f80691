"""The worker's checkpoint key, and evidence that is signed as it grows; ssh-keygen says the same of a checkpoint."""

from __future__ import annotations

import asyncio
import shutil
import stat
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kedge.drivers.checkpoints import CheckpointKey, SignedEvidence, ensure_key
from kedge.drivers.evidence import SqliteEvidence
from kedge.model.base import Json
from kedge.model.errors import DriverError, OrderError
from kedge.model.evidence import CHECKPOINT_NAMESPACE, Checkpoint, CheckpointStatement
from kedge.trust.checkpoints import bytes_to_sign, materials, verify_checkpoint, worth_sealing
from kedge.trust.sshsig import compose, signed_bytes
from kedge.trust.wire import string

STATEMENT = CheckpointStatement(fleet="etcd", seq=7, hash="a" * 64, at="2025-01-31T12:00:00Z")


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "trust" / "checkpoint_key"
    key = ensure_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_key(path).public == key.public
    line = path.with_name("checkpoint_key.pub").read_text()
    assert line.startswith(key.public.line)
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_many_at_a_time_make_one_key(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> None:
        made.append(ensure_key(tmp_path / "key").public.line)

    threads = [threading.Thread(target=make) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(made) == 16
    assert len(set(made)) == 1


def test_a_public_line_that_went_is_written_again(tmp_path: Path) -> None:
    key = ensure_key(tmp_path / "key")
    (tmp_path / "key.pub").unlink()
    ensure_key(tmp_path / "key")
    assert (tmp_path / "key.pub").read_text().startswith(key.public.line)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    ensure_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(DriverError) as caught:
        CheckpointKey.load(tmp_path / "key")
    assert (caught.value.kind, caught.value.retryable) == ("KeyRefused", False)


@pytest.mark.parametrize("text", ["", "not a key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(DriverError) as caught:
        CheckpointKey.load(tmp_path / "key")
    assert caught.value.kind == "KeyRefused"


def test_a_checkpoint_holds_for_what_it_says_and_for_nothing_else(tmp_path: Path) -> None:
    key = ensure_key(tmp_path / "key")
    good = key.sign(STATEMENT)
    assert verify_checkpoint(good).material in materials([key.public.line])
    for change in (
        {"fleet": "nats"}, {"seq": 8}, {"hash": "b" * 64}, {"at": "2025-01-31T12:00:01Z"},
        {"key": ensure_key(tmp_path / "other").public.line}, {"signature": "-----"},
    ):  # fmt: skip
        with pytest.raises(OrderError):
            verify_checkpoint(good.model_copy(update=change))


def test_a_signature_over_an_order_is_none_over_a_checkpoint(tmp_path: Path) -> None:
    key = ensure_key(tmp_path / "key")
    content = bytes_to_sign(STATEMENT)
    raw = string(b"ssh-ed25519") + string(key._private.sign(signed_bytes(content)))
    forged = key.sign(STATEMENT).model_copy(update={"signature": compose(key.public.blob, raw)})
    with pytest.raises(OrderError, match="namespace"):
        verify_checkpoint(forged)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_verifies_a_checkpoint(tmp_path: Path) -> None:
    key = ensure_key(tmp_path / "key")
    checkpoint = key.sign(STATEMENT)
    (tmp_path / "signers").write_text(
        f'worker namespaces="{CHECKPOINT_NAMESPACE}" {key.public.line}\n'
    )
    (tmp_path / "sig").write_text(checkpoint.signature)
    call = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "worker", "-n", CHECKPOINT_NAMESPACE, "-s", "sig"]  # fmt: skip
    found = subprocess.run(
        call, input=bytes_to_sign(STATEMENT), cwd=tmp_path, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
    other = bytes_to_sign(STATEMENT.model_copy(update={"seq": 8}))
    assert subprocess.run(
        call, input=other, cwd=tmp_path, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize(
    ("sentence", "record", "when"),
    [
        ("people are asked", {"what": "asked"}, "at once"),
        ("a gate is over", {"what": "decision", "event": "GateEnded", "stage": "widen"}, "at once"),
        ("a run ends", {"what": "decision", "event": "Widened", "stage": "ended"}, "at once"),
        ("a way back ends", {"what": "ended"}, "at once"),
        ("a wave goes on", {"what": "decision", "event": "Widened", "stage": "gate"}, "later"),
        ("a leg", {"what": "leg"}, "later"),
        ("no object", ["decision"], "later"),
    ],
)
def test_what_is_signed_at_once(sentence: str, record: Json, when: str) -> None:
    assert worth_sealing(record) == (when == "at once"), sentence


@pytest.fixture
async def signed(tmp_path: Path) -> AsyncIterator[SignedEvidence]:
    made = SignedEvidence(
        SqliteEvidence(tmp_path / "evidence.db"), tmp_path / "key", records=10, seconds=0.2
    )
    yield made
    await made.aclose()


async def checkpoints(evidence: SignedEvidence, count: int) -> tuple[Checkpoint, ...]:
    for _ in range(500):
        found = await evidence.checkpoints("etcd")
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {count} checkpoints: {await evidence.checkpoints('etcd')}")


async def test_what_seals_is_signed_when_it_is_written(signed: SignedEvidence) -> None:
    await signed.append("etcd", "k1", {"what": "leg"})
    head = await signed.append("etcd", "k2", {"what": "ended"})
    (found,) = await signed.checkpoints("etcd")
    assert (found.seq, found.hash) == (2, head.hash)
    verify_checkpoint(found)
    # A repeated append answers with the same, and signs nothing else.
    await signed.append("etcd", "k2", {"what": "ended"})
    assert len(await signed.checkpoints("etcd")) == 1


async def test_many_records_are_signed_together(signed: SignedEvidence) -> None:
    for number in range(25):
        await signed.append("etcd", f"k{number}", number)
    found = await checkpoints(signed, 2)
    assert len(found) <= 4
    entries = {entry.seq: entry.hash for entry in await signed.read("etcd")}
    for one in found:
        verify_checkpoint(one)
        assert entries[one.seq] == one.hash


async def test_a_record_does_not_wait_long(signed: SignedEvidence) -> None:
    head = await signed.append("etcd", "k", 1)
    (found,) = await checkpoints(signed, 1)
    assert (found.seq, found.hash) == (1, head.hash)


async def test_what_waits_is_signed_at_the_end(tmp_path: Path) -> None:
    made = SignedEvidence(SqliteEvidence(tmp_path / "evidence.db"), tmp_path / "key", seconds=3600)
    await made.append("etcd", "k", 1)
    await made.append("nats", "k", 1)
    await made.aclose()
    assert [len(await made.checkpoints(fleet)) for fleet in ("etcd", "nats")] == [1, 1]
    await made.aclose()


async def test_a_key_that_cannot_be_used_stops_what_must_be_signed(
    signed: SignedEvidence, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(DriverError) as caught:
        await signed.append("etcd", "k", {"what": "ended"})
    assert caught.value.kind == "KeyRefused"
    (tmp_path / "key").unlink()
    # The record stands, and the same append signs it as soon as it can.
    await signed.append("etcd", "k", {"what": "ended"})
    assert len(await signed.checkpoints("etcd")) == 1
