"""``kedge init``: an empty folder becomes one in which one person can work, and nothing is ever written over."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.sk_eddsa import _SKEd25519Key

from demo.documents import free_members
from desk import init as desk_init
from desk.init import Made, Wanted
from kedge.model.errors import DriverError, PlanError
from kedge.model.policy import Policy
from kedge.plan.parse import parse
from tests.agents import ssh_agent
from tests.demo.test_walkthrough import CHECKOUT, _cache, typed
from worker.settings import Settings

KEDGE = Path(sys.executable).parent / "kedge"
PAGE = CHECKOUT / "docs" / "one-person.md"


class Laptop:
    """A folder to begin in, and a person's own home."""

    def __init__(self, base: Path) -> None:
        self.folder, self.own = base / "begun", base / "person"
        self.folder.mkdir()
        self.own.mkdir()

    def init(self, person: str = "", key: Path | None = None) -> Made:
        """What ``kedge init`` does, in this process."""
        settings = Settings.load(self.folder / ".kedge")
        wanted = Wanted(folder=self.folder, person=person, key=key)
        return asyncio.run(desk_init.init(settings, wanted))

    def kedge(self, *words: str) -> dict[str, Any]:
        """One call of the command line in the folder; what it says as JSON."""
        done = subprocess.run(
            [str(KEDGE), *words, "--json"], cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def ssh_key(self, name: str = "id_ed25519", passphrase: str | None = None) -> str:
        """A key of the person's; its public line."""
        folder = self.own / ".ssh"
        folder.mkdir(exist_ok=True, mode=0o700)
        key = asyncssh.generate_private_key("ssh-ed25519", comment="ada@laptop")
        key.write_private_key(str(folder / name), passphrase=passphrase)
        key.write_public_key(str(folder / f"{name}.pub"))
        (folder / name).chmod(0o600)
        return key.export_public_key().decode().split()[1]

    def policy(self) -> Policy:
        """The policy that is there."""
        file = self.folder / "policy.yaml"
        return parse(file.read_bytes(), str(file), Policy).value

    def everything(self) -> dict[str, tuple[int, bytes]]:
        """Every file with its mode and content."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_mode, path.read_bytes())
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
        }


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    """A person who has nothing yet: no key, no agent, no settings."""
    for name in list(os.environ):
        if name.startswith(("KEDGE_", "TEMPORAL_", "SSH_")):
            monkeypatch.delenv(name)
    made = Laptop(tmp_path)
    monkeypatch.setenv("HOME", str(made.own))
    return made


def states(made: Made) -> dict[str, str]:
    return {item.what: item.state for item in made.items}


def test_an_empty_folder_gets_everything_and_the_policy_names_it(laptop: Laptop) -> None:
    told = laptop.kedge("init", "--person", "ada")
    assert {item["state"] for item in told["items"]} == {"made"}
    policy = laptop.policy()
    assert [person.name for person in policy.people] == ["ada"]
    assert policy.releases is not None
    assert policy.releases.root == told["root"]
    witness = (laptop.folder / ".kedge/trust/checkpoint_key.pub").read_text().split()[1]
    assert policy.evidence is not None
    assert [line.split()[1] for line in policy.evidence.signers] == [witness]
    settings = tomllib.loads((laptop.folder / ".kedge/kedge.toml").read_text())
    assert settings == {"release_repository": str(laptop.folder / "releases")}
    assert laptop.kedge("policy", "lint", "policy.yaml")["problems"] == []
    laptop.kedge("release", "verify")


def test_nobody_else_can_read_what_was_made(laptop: Laptop) -> None:
    before = os.umask(0)
    try:
        laptop.init("ada")
    finally:
        os.umask(before)
    for top in (".kedge", "keys", "releases"):
        assert stat.S_IMODE((laptop.folder / top).stat().st_mode) == 0o700, top
    secret = ("keys/ada", ".kedge/trust/checkpoint_key", ".kedge/trust/codec.json")
    for name in (*secret, ".kedge/kedge.toml", "policy.yaml"):
        assert stat.S_IMODE((laptop.folder / name).stat().st_mode) == 0o600, name


def test_no_secret_gets_into_a_git_repository_by_an_add_of_everything(laptop: Laptop) -> None:
    git = ["git", "-C", str(laptop.folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    laptop.init("ada")
    subprocess.run([*git, "add", "--all"], check=True)
    listed = subprocess.run([*git, "ls-files"], check=True, capture_output=True, text=True).stdout
    assert {line.split("/")[0] for line in listed.splitlines()} == {"policy.yaml", "releases"}


def test_called_again_it_says_what_is_there_and_changes_nothing(laptop: Laptop) -> None:
    laptop.init("ada")
    before = laptop.everything()
    told = laptop.init()
    assert set(states(told).values()) == {"there"}
    assert told.person == "ada"
    assert laptop.everything() == before


def test_where_histories_may_be_in_the_open_it_makes_the_rest_and_says_how_to_seal(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    told = laptop.init("ada")
    assert states(told)["policy"] == "made"
    assert states(told)["payload keys"] == "open"
    assert "kedge codec init --grace" in next(
        item.use for item in told.items if item.what == "payload keys"
    )
    assert not (laptop.folder / ".kedge" / "trust" / "codec.json").exists()


@pytest.mark.parametrize(
    "missing",
    [
        ("policy.yaml",),
        ("policy.yaml", ".kedge/kedge.toml"),
        ("policy.yaml", ".kedge/kedge.toml", "releases", ".kedge/trust/releases"),
        ("policy.yaml", ".kedge/kedge.toml", "releases", ".kedge/trust", ".kedge/codec.required"),
    ],
    ids=["the policy", "and the settings", "and the repository", "and the worker's keys"],
)
def test_interrupted_it_goes_on_where_it_was(laptop: Laptop, missing: tuple[str, ...]) -> None:
    laptop.init("ada")
    for name in missing:
        path = laptop.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = laptop.init("ada")
    policy = laptop.policy()
    assert states(told)["policy"] == "made"
    assert states(told)["key"] == "there"
    assert policy.releases is not None
    assert policy.releases.root == told.root


@pytest.mark.parametrize("name", ["no", "2026", "1e3", "null", "0x1f", "A B", "ä"])
def test_a_folder_may_have_any_name(laptop: Laptop, name: str) -> None:
    laptop.folder = laptop.folder.with_name(name)
    laptop.folder.mkdir()
    laptop.init(name.lower() if name.isascii() and " " not in name else "")
    assert laptop.policy().version == 1


@pytest.mark.parametrize("name", ["A B", "../ada", "-ada", "ada\n", "ä", "x" * 64])
def test_what_is_no_name_is_refused_before_anything_is_made(laptop: Laptop, name: str) -> None:
    with pytest.raises(PlanError, match="is no name for a person"):
        laptop.init(name)
    wanted = Wanted(folder=laptop.folder, person="ada", environment=name)
    settings = Settings.load(laptop.folder / ".kedge")
    with pytest.raises(PlanError, match="is no name for an environment"):
        asyncio.run(desk_init.init(settings, wanted))
    assert laptop.everything() == {}
    assert not list(laptop.own.iterdir())


def test_interrupted_in_the_middle_of_the_repository_it_begins_that_anew(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # The drafts are there by then, and nothing is published.
    with monkeypatch.context() as patched:
        patched.setattr("kedge.drivers.tuf_publish.commit", full)
        with pytest.raises(DriverError, match="No space left"):
            laptop.init("ada")
    assert not (laptop.folder / "releases").exists()
    assert states(laptop.init("ada"))["releases"] == "made"
    assert {path.name for path in laptop.folder.iterdir()} == {
        ".kedge", "keys", "policy.yaml", "releases",
    }  # fmt: skip


def test_a_repository_that_waits_for_others_is_left_as_it_is(laptop: Laptop) -> None:
    drafts = laptop.folder / "releases" / "drafts"
    drafts.mkdir(parents=True)
    (drafts / "root.json").write_text("{}")
    with pytest.raises(PlanError, match="nothing was published"):
        laptop.init("ada")
    assert (drafts / "root.json").read_text() == "{}"


def another_root(text: str) -> str:
    return re.sub(r'root: "[0-9a-f]{64}"', f'root: "{"0" * 64}"', text)


def no_witness(text: str) -> str:
    return re.sub(r"^evidence:\n(  .*\n)+", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "lacks"),
    [(another_root, "releases: {root:"), (no_witness, "evidence: {signers:")],
    ids=["another root", "no witness"],
)
def test_a_policy_that_does_not_fit_is_left_alone_and_what_it_lacks_is_said(
    laptop: Laptop, change: Callable[[str], str], lacks: str
) -> None:
    laptop.init("ada")
    file = laptop.folder / "policy.yaml"
    file.write_text(change(file.read_text()))
    before = laptop.everything()
    with pytest.raises(PlanError, match=re.escape(lacks)) as raised:
        laptop.init()
    assert raised.value.next_step
    assert laptop.everything() == before


def test_a_repository_of_another_root_than_the_pinned_one_is_not_taken(laptop: Laptop) -> None:
    laptop.init("ada")
    shutil.rmtree(laptop.folder / "releases")
    (laptop.folder / "policy.yaml").unlink()
    with pytest.raises(PlanError, match="another root"):
        laptop.init("ada")
    assert not (laptop.folder / "policy.yaml").exists()


def test_somebody_elses_settings_are_not_written_over(laptop: Laptop) -> None:
    home = laptop.folder / ".kedge"
    home.mkdir()
    (home / "kedge.toml").write_text('log_level = "debug"\n')
    with pytest.raises(PlanError) as raised:
        laptop.init("ada")
    assert (raised.value.next_step or "").startswith("add the line: release_repository = ")
    assert (home / "kedge.toml").read_text() == 'log_level = "debug"\n'
    assert not (laptop.folder / "policy.yaml").exists()


def test_a_key_that_the_person_has_is_taken_and_none_is_made(laptop: Laptop) -> None:
    line = laptop.ssh_key()
    told = laptop.init("ada")
    assert states(told)["key"] == "there"
    assert line in laptop.policy().people[0].keys[0]
    assert not (laptop.folder / "keys").exists()
    assert f"--key {laptop.own}/.ssh/id_ed25519" in told.next[0]


def test_a_key_with_a_passphrase_is_not_asked_for_where_there_is_no_terminal(
    laptop: Laptop,
) -> None:
    laptop.ssh_key(passphrase="nobody types it")
    assert states(laptop.init("ada"))["key"] == "made"
    assert (laptop.folder / "keys" / "ada").exists()


def test_a_key_file_that_others_may_read_is_refused(laptop: Laptop) -> None:
    laptop.ssh_key()
    path = laptop.own / ".ssh" / "id_ed25519"
    path.chmod(0o644)
    with pytest.raises(DriverError, match="no private key that may sign"):
        laptop.init("ada", key=path)


def test_a_key_of_an_agent_is_taken_before_any_file(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_agent, in_file = laptop.ssh_key("other"), laptop.ssh_key()
    with ssh_agent(laptop.own / "agent") as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        subprocess.run(["ssh-add", "-q", str(laptop.own / ".ssh/other")], check=True)
        told = laptop.init("ada")
    assert in_agent in laptop.policy().people[0].keys[0]
    assert in_file not in laptop.policy().people[0].keys[0]
    assert f"--agent {told.fingerprint}" in told.next[0]


def test_a_hardware_key_signs_orders_and_a_key_of_its_own_the_releases(laptop: Laptop) -> None:
    bare = asyncssh.generate_private_key("ssh-ed25519").export_public_key().split()[1]
    point = base64.b64decode(bare)[-32:]
    handle = _SKEd25519Key(point, "ssh:", 1, b"handle of a token", b"")
    path = laptop.own / "id_ed25519_sk"
    handle.write_private_key(str(path))
    path.chmod(0o600)
    told = laptop.init("ada", key=path)
    assert (states(told)["key"], states(told)["release key"]) == ("there", "made")
    (line,) = laptop.policy().people[0].keys
    assert line.startswith("sk-ssh-ed25519@openssh.com ")
    add, _, start, renew = told.next
    assert "--key keys/releases" in add
    assert "--key keys/releases" in renew
    assert f"--agent {told.fingerprint}" in start
    assert set(states(laptop.init(key=path)).values()) == {"there"}


@pytest.mark.temporal
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_an_empty_folder_to_a_first_migration_as_it_is_written(own_home: Path) -> None:
    script = typed(PAGE.read_text())
    for number, member in enumerate(free_members(3), 1):
        script = script.replace(f"1808{number}", str(member.client_port))
    script = script.replace(
        'export PATH="$PWD/.venv/bin:$PATH"', f'export PATH="{KEDGE.parent}:$PATH"'
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    said = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=CHECKOUT,
        env={**kept, "HOME": str(own_home), "XDG_CACHE_HOME": _cache()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    whole = said.stdout + said.stderr
    assert said.returncode == 0, whole
    versions = re.findall(r'^\{"version": "(.*)"\}$', said.stdout, re.MULTILINE)
    assert versions == ["1.0.0", "1.1.0"], whole
    file = own_home / "own" / "policy.yaml"
    policy = parse(file.read_bytes(), str(file), Policy).value
    assert [person.name for person in policy.people] == ["ada", "ben"]
    assert (policy.requester_may_approve, policy.separation.author_may_approve) == (False, False)
    assert policy.change is not None
    assert policy.change.threshold == 2
    pinned = (own_home / "own" / ".kedge" / "policies" / "hello.json").read_text()
    assert '"version":2' in pinned
