"""Signing with key files and with a real ssh-agent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.drivers.signers import sign_with_agent, sign_with_key
from kedge.model.errors import DriverError
from kedge.trust.keys import parse_public_key
from kedge.trust.orders import bytes_to_sign
from kedge.trust.sshsig import check, parse
from tests.trust import world

MESSAGE = bytes_to_sign(world.order())
KINDS = [
    ("ed25519", []),
    ("ecdsa", ["-b", "256"]),
    ("ecdsa", ["-b", "384"]),
    ("rsa", ["-b", "3072"]),
]


def make_key(path: Path, kind: str = "ed25519", *size: str, passphrase: str = "") -> str:
    """A key made by stock ssh-keygen; its public line."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-f", path],
        check=True,
        timeout=30,
    )
    return Path(f"{path}.pub").read_text().strip()


def add_key(agent: Path, key: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run(["ssh-add", "-q", key], check=True, env=environment, timeout=30)


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=[f"{k} {' '.join(s)}" for k, s in KINDS])
def test_a_key_file_signs(tmp_path: Path, kind: str, size: list[str]) -> None:
    line = make_key(tmp_path / "key", kind, *size)
    check(parse(sign_with_key(tmp_path / "key", MESSAGE)), parse_public_key(line), MESSAGE)


def test_without_bcrypt_an_encrypted_key_is_sent_to_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "key", passphrase="open sesame")
    monkeypatch.setattr("asyncssh.public_key._bcrypt_available", False)
    with pytest.raises(DriverError, match="lacks the package bcrypt") as error:
        sign_with_key(tmp_path / "key", MESSAGE, lambda: "open sesame")
    assert error.value.next_step is not None
    assert "ssh-add" in error.value.next_step


def test_an_encrypted_key_asks_for_its_passphrase_once(tmp_path: Path) -> None:
    pytest.importorskip("bcrypt")
    line = make_key(tmp_path / "key", passphrase="open sesame")
    asked: list[str] = []

    def ask() -> str:
        asked.append("asked")
        return "open sesame"

    check(parse(sign_with_key(tmp_path / "key", MESSAGE, ask)), parse_public_key(line), MESSAGE)
    assert asked == ["asked"]
    with pytest.raises(DriverError, match="does not open"):
        sign_with_key(tmp_path / "key", MESSAGE, lambda: "wrong")
    with pytest.raises(DriverError, match="no one to ask"):
        sign_with_key(tmp_path / "key", MESSAGE)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(DriverError, match=f"{mode:04o}") as error:
        sign_with_key(tmp_path / "key", MESSAGE)
    assert error.value.next_step is not None
    assert "chmod 600" in error.value.next_step


def test_what_is_no_private_key_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    # The public half is everybody's to read: that is not what is wrong with it.
    for mode in (0o600, 0o644):
        (tmp_path / "key.pub").chmod(mode)
        with pytest.raises(DriverError, match="not an OpenSSH private key") as error:
            sign_with_key(tmp_path / "key.pub", MESSAGE)
        assert error.value.next_step == f"name {tmp_path / 'key'}, which belongs to it"
    with pytest.raises(DriverError, match="cannot be read") as error:
        sign_with_key(tmp_path / "absent", MESSAGE)
    assert error.value.kind == "NotFound"
    with pytest.raises(DriverError, match="is not a file"):
        sign_with_key(tmp_path, MESSAGE)
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(DriverError, match="not an OpenSSH private key"):
        sign_with_key(tmp_path / "empty", MESSAGE)


def test_a_short_rsa_key_is_refused_before_it_signs(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "rsa", "-b", "2048")
    with pytest.raises(DriverError, match="2048 bits may not sign"):
        sign_with_key(tmp_path / "key", MESSAGE)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real ssh-agent with a socket of its own, ended by its number."""
    socket = tmp_path_factory.mktemp("agent") / "socket"
    said = subprocess.run(
        ["ssh-agent", "-s", "-a", socket], check=True, capture_output=True, text=True, timeout=30
    )
    found = re.search(r"SSH_AGENT_PID=(\d+)", said.stdout)
    assert found is not None
    yield socket
    os.kill(int(found[1]), signal.SIGTERM)


@pytest.mark.parametrize(("kind", "size"), KINDS, ids=[f"{k} {' '.join(s)}" for k, s in KINDS])
async def test_an_agent_signs_with_the_key_that_is_named(
    agent: Path, tmp_path: Path, kind: str, size: list[str]
) -> None:
    line = make_key(tmp_path / "key", kind, *size)
    add_key(agent, tmp_path / "key")
    key = parse_public_key(line)
    for named in (line, key.fingerprint):
        check(parse(await sign_with_agent(named, MESSAGE, agent=str(agent))), key, MESSAGE)


async def test_an_agent_is_found_by_its_usual_variable(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = make_key(tmp_path / "key")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    add_key(agent, tmp_path / "key")
    check(parse(await sign_with_agent(line, MESSAGE)), parse_public_key(line), MESSAGE)


async def test_a_key_that_the_agent_does_not_hold_is_not_found(agent: Path) -> None:
    with pytest.raises(DriverError, match="does not hold SHA256:") as error:
        await sign_with_agent(world.public("mallory"), MESSAGE, agent=str(agent))
    assert error.value.kind == "NotFound"


async def test_without_an_agent_the_error_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DriverError, match="no ssh-agent") as error:
        await sign_with_agent(world.public("carol"), MESSAGE, agent=str(tmp_path / "absent"))
    assert error.value.kind == "Unreachable"
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(DriverError, match="no ssh-agent"):
        await sign_with_agent(world.public("carol"), MESSAGE)
