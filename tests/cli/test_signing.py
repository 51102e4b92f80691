"""Whose key it is, and signatures by files and agents as the desk makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from desk.orders import Asked, Draft, Sent, Signer, draft
from desk.signing import person_of, sign, signed_by
from kedge.model.errors import DriverError, OrderError
from kedge.model.policy import Person, Policy


def key(folder: Path, name: str, passphrase: str = "") -> Path:
    path = folder / name
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
    subprocess.run(words, check=True)
    return path


def public(path: Path) -> str:
    return path.with_name(path.name + ".pub").read_text(encoding="utf-8").strip()


def fingerprint(path: Path) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True
    )
    return shown.stdout.split()[1]


def policy(**keys: Path) -> Policy:
    return Policy(
        name="house",
        environment="test",
        people=tuple(
            Person(name=name, roles=("sre",), keys=(public(path),)) for name, path in keys.items()
        ),
        may={"approve": ("sre",)},
    )


def drafted() -> Draft:
    asked = Asked(verb="pause", target="upgrade/etcd/1")
    return draft(asked, plan="a" * 64, shown="a" * 64, subject="", life=900.0)


def test_a_key_in_a_file_or_an_agent_says_whose_it_is(tmp_path: Path) -> None:
    alice, bob = key(tmp_path, "alice"), key(tmp_path, "bob")
    house = policy(alice=alice)
    for signer in (
        Signer(key=alice),
        Signer(agent=fingerprint(alice)),
        Signer(agent=public(alice)),
        Signer(agent=str(alice)),
        Signer(agent=f"{alice}.pub"),
    ):
        assert person_of(house, signer) == "alice", signer
    assert person_of(house, Signer(key=bob)) == ""
    assert person_of(None, Signer(key=alice)) == ""


def test_without_a_public_file_the_private_one_is_asked(tmp_path: Path) -> None:
    alice, locked = key(tmp_path, "alice"), key(tmp_path, "locked", "secret words")
    house = policy(alice=alice, locked=locked)
    for path in (alice, locked):
        path.with_name(path.name + ".pub").unlink()
    assert person_of(house, Signer(key=alice)) == "alice"
    assert person_of(house, Signer(key=tmp_path / "nowhere")) == ""


async def test_a_signature_is_over_exactly_the_drafted_bytes(tmp_path: Path) -> None:
    alice = key(tmp_path, "alice")
    one, two = drafted(), drafted()
    envelope = await sign(one, Signer(key=alice), None)
    assert envelope.order.encode() == one.bytes_to_sign
    assert signed_by(Sent(order=one.order, envelope=envelope)) == fingerprint(alice)
    swapped = envelope.model_copy(update={"order": two.text})
    with pytest.raises(OrderError, match="does not fit these bytes"):
        signed_by(Sent(order=two.order, envelope=swapped))


async def test_a_locked_key_asks_for_its_passphrase_or_says_that_it_cannot(tmp_path: Path) -> None:
    locked = key(tmp_path, "locked", "secret words")
    envelope = await sign(drafted(), Signer(key=locked), lambda: "secret words")
    assert envelope.signature.startswith("-----BEGIN SSH SIGNATURE-----")
    with pytest.raises(DriverError, match="no one to ask"):
        await sign(drafted(), Signer(key=locked), None)
    with pytest.raises(DriverError, match="does not open"):
        await sign(drafted(), Signer(key=locked), lambda: "guess")


async def test_what_names_no_key_of_an_agent_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(OrderError, match="neither a fingerprint"):
        await sign(drafted(), Signer(agent=str(tmp_path / "nowhere")), None)
