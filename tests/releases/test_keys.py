"""Keys of a repository: SSH keys in TUF's form, one key never counted twice, agents, and what cannot sign."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Root

from desk.release_roles import signers_of
from desk.releases import _now
from kedge.model.errors import DriverError, OrderError
from kedge.model.trusted import ReleaseName
from kedge.trust.keys import parse_public_key
from kedge.trust.tufkeys import KeysError, distinct_keys, sound_delegations, ssh_key, tuf_key
from tests.releases.world import World, world_with_a_release

KINDS = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"]  # fmt: skip


def line(kind: str = "ssh-ed25519", **given: int) -> str:
    key = asyncssh.generate_private_key(
        kind, comment="ada", **({"key_size": 3072} if kind == "ssh-rsa" else {}), **given
    )
    return key.export_public_key().decode().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_has_the_same_fingerprint_in_metadata_as_for_ssh(kind: str) -> None:
    public = line(kind)
    found = ssh_key(tuf_key(public))
    assert found.fingerprint == parse_public_key(public).fingerprint
    assert found.comment == "ada"


def changed(key: SSlibKey, **change: str) -> SSlibKey:
    """The same key under another id, told in another way."""
    keyval = {"public": change.get("public", key.keyval["public"])}
    return SSlibKey("0" * 64, key.keytype, change.get("scheme", key.scheme), keyval)


@pytest.mark.parametrize("kind", KINDS)
def test_one_key_under_two_ids_is_found(kind: str) -> None:
    key = tuf_key(line(kind))
    twin = changed(key)
    with pytest.raises(KeysError, match="under two ids"):
        distinct_keys({key.keyid: key, twin.keyid: twin})


def test_one_key_in_another_spelling_is_found() -> None:
    key = tuf_key(line())
    upper = changed(key, public=key.keyval["public"].upper())
    with pytest.raises(KeysError, match="under two ids"):
        distinct_keys({key.keyid: key, upper.keyid: upper})
    pem = tuf_key(line("ecdsa-sha2-nistp256"))
    spaced = changed(pem, public=pem.keyval["public"].replace("\n", "\n\n", 1))
    with pytest.raises(KeysError):
        distinct_keys({pem.keyid: pem, spaced.keyid: spaced})


@pytest.mark.parametrize(
    ("public", "scheme", "said"),
    [
        (None, "rsassa-pss-sha256", "which is not used here"),
        ("zz" * 32, "ed25519", "cannot be used"),
        ("00" * 31, "ed25519", "cannot be used"),
        # The neutral element, written with y beyond the prime.
        ("ee" + "ff" * 30 + "7f", "ed25519", "in its one form"),
    ],
)
def test_keys_in_a_form_of_their_own_are_refused(
    public: str | None, scheme: str, said: str
) -> None:
    key = tuf_key(line())
    with pytest.raises(KeysError, match=said):
        ssh_key(changed(key, scheme=scheme, **({} if public is None else {"public": public})))


def test_a_threshold_that_cannot_be_met_is_refused() -> None:
    root = Root()
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(tuf_key(line()), role)
    sound_delegations(root)
    root.roles["targets"].threshold = 2
    with pytest.raises(KeysError, match="asks for 2 signatures and has 1 keys"):
        sound_delegations(root)


def test_a_hardware_key_says_why_it_cannot_sign_metadata() -> None:
    public = (
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIJKU8fTXDSCbSfwHcvYNqxYq"
        "7SrYpgvnqSBbDk6o0SUQAAAABHNzaDo= ada"
    )
    with pytest.raises(OrderError, match="sign no bare bytes"):
        tuf_key(public)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real ssh-agent."""
    socket = tmp_path / "agent"
    said = subprocess.run(
        ["ssh-agent", "-a", str(socket)], check=True, capture_output=True, text=True
    )
    pid = re.search(r"SSH_AGENT_PID=(\d+)", said.stdout)
    assert pid is not None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield str(socket)
    os.kill(int(pid[1]), signal.SIGTERM)


@pytest.mark.usefixtures("agent")
async def test_an_agent_signs_metadata_with_every_kind_of_key(tmp_path: Path) -> None:
    world = await world_with_a_release(tmp_path / "world")
    kinds = dict(zip(("one", "two", "three"), ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp521"), strict=True))  # fmt: skip
    for person, kind in kinds.items():
        world.person(person, kind)
        await asyncio.to_thread(
            subprocess.run, ["ssh-add", "-q", str(world.key_file(person))], check=True, capture_output=True
        )  # fmt: skip
    held = await signers_of([], [f"{world.key_file(person)}.pub" for person in kinds], None)
    new = world.release("1.0.0", "other")
    changed = await world.desk.add(
        world.folder, new, [*held, *world.signers("ada", "bob", "robot")],
        component=world.spec("other", 3, *kinds), publish=True,
    )  # fmt: skip
    assert "other" in changed.published
    assert len((await world.reader().trusted(new.name)).authors) == 4


async def test_repository_commands_refuse_metadata_in_which_a_key_counts_twice(
    tmp_path: Path,
) -> None:
    world: World = await world_with_a_release(tmp_path)
    root = world.repository.draft("root", _now())
    rita = world.keys["rita"].key
    root.signed.add_key(changed(rita), "root")
    world.repository.layout.keep_draft("root", root)
    for work in (
        world.desk.sign(world.folder, [], world.signers("rita")),
        world.desk.publish(world.folder, world.signers("robot")),
        world.desk.add(world.folder, world.release("1.1.0"), world.signers("ada")),
    ):
        with pytest.raises(DriverError, match="under two ids"):
            await work
    with pytest.raises(DriverError, match="under two ids"):
        world.desk.drafts(world.folder)
    # What is published is as it was.
    await world.reader().trusted(ReleaseName(component="daemon", version="1.0.0"))
