"""``kedge release …`` as its users type it, from an empty folder to a release that is revoked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from cli.exits import Exit
from cli.main import app
from tests.cli import scene as scenes
from tests.releases.serving import served

KEDGE = str(Path(sys.executable).parent / "kedge")


class Said(NamedTuple):
    """What a call said."""

    code: int
    stdout: str
    stderr: str


@dataclass
class User:
    """Somebody with a home and a folder to work in."""

    folder: Path
    home: Path
    real: bool = False

    def run(self, *words: str, code: int = 0) -> Said:
        """Calls kedge in the folder: as a process where that is ``real``, else as the same words in this one."""
        if self.real:
            done = subprocess.run(
                [KEDGE, *words], cwd=self.folder, capture_output=True, text=True, timeout=200,
                stdin=subprocess.DEVNULL, check=False,
                env={**os.environ, "KEDGE_HOME": str(self.home), "COLUMNS": "200"},
            )  # fmt: skip
            said = Said(done.returncode, done.stdout, done.stderr)
        else:
            with contextlib.chdir(self.folder):
                result = CliRunner().invoke(
                    app, [*words], env={"KEDGE_HOME": str(self.home), "COLUMNS": "200"}
                )
            said = Said(result.exit_code, result.stdout, result.stderr)
        assert said.code == code, f"{words}\n{said.stdout}\n{said.stderr}"
        assert "Traceback" not in said.stdout + said.stderr
        return said

    def json(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The one document of a call."""
        parsed: dict[str, Any] = json.loads(self.run(*words, "--json", code=code).stdout)
        return parsed

    def setting(self, **given: str) -> None:
        """Writes settings into the home."""
        self.home.mkdir(parents=True, exist_ok=True)
        lines = "".join(f'{name} = "{value}"\n' for name, value in given.items())
        (self.home / "kedge.toml").write_text(lines, encoding="utf-8")


@pytest.fixture
def user(tmp_path: Path) -> User:
    folder = tmp_path / "work"
    folder.mkdir()
    for person in ("ada", "bob", "robot", "carol"):
        scenes._key(folder / "keys" / person)
    scenes._release(folder / "sim-1.0.0.yaml", "1.0.0")
    scenes._release(folder / "sim-1.0.1.yaml", "1.0.1")
    return User(folder, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_person_on_a_laptop_needs_one_key_and_two_commands(user: User) -> None:
    user.real = True
    made = user.json("release", "init", "--repository", "rel", "--key", "keys/ada")
    assert made["published"] == ["root", "targets", "snapshot", "timestamp"]
    user.setting(release_repository=str(user.folder / "rel"))
    added = user.json("release", "add", "sim-1.0.0.yaml", "--key", "keys/ada", "--publish")
    assert added["published"] == ["targets", "sim", "snapshot", "timestamp"]
    listed = user.json("release", "list")["releases"]
    assert [one["name"] for one in listed] == [{"component": "sim", "version": "1.0.0"}]
    assert listed[0]["author"].startswith("SHA256:")
    shown = user.json("release", "show", "sim@1.0.0")
    assert shown["root"] == made["root"]
    assert user.json("release", "verify")["files"] == 2
    # An old file in the place of the new one is a rollback, and is called so.
    before = (user.folder / "rel/metadata/timestamp.json").read_bytes()
    user.run("release", "publish", "--renew", "--key", "keys/ada")
    user.run("release", "list")
    (user.folder / "rel/metadata/timestamp.json").write_bytes(before)
    refused = user.json("release", "verify", code=Exit.REFUSED)
    assert refused["error"]["type"] == "RepositoryRefused"
    assert "(rollback)" in refused["error"]["message"]


def test_people_with_a_key_each_sign_what_one_of_them_made(user: User) -> None:
    team = ["--role", "root=2:keys/ada.pub,keys/bob.pub,keys/carol.pub",
            "--role", "targets=2:keys/ada.pub,keys/bob.pub",
            "--role", "snapshot=1:keys/robot.pub", "--role", "timestamp=1:keys/robot.pub"]  # fmt: skip
    made = user.json("release", "init", "--repository", "rel", *team, "--expires", "timestamp=3",
                     "--key", "keys/ada")  # fmt: skip
    assert made["published"] == []
    assert [(one["role"], one["missing"]) for one in made["drafts"]] == [
        ("root", 1),
        ("targets", 1),
    ]
    at = ("--repository", "rel")
    said = user.run("release", "sign", *at, "--key", "keys/bob").stderr
    assert "signed: root, targets" in said
    published = user.run("release", "publish", *at, "--key", "keys/robot").stdout
    assert user.json("release", "publish", *at, "--key", "keys/robot")["root"] in published
    user.run(
        "release", "add", "sim-1.0.0.yaml", *at, "--author", "ada", "--key", "keys/ada",
        "--component", "2:keys/ada.pub,keys/bob.pub,keys/carol.pub",
    )  # fmt: skip
    waits = user.run("release", "publish", *at, "--key", "keys/robot", code=Exit.WAITING)
    assert "draft of targets: waits for 1 signature of: bob" in waits.stdout
    user.run("release", "sign", "targets", "sim", *at, "--key", "keys/bob")
    user.run("release", "publish", *at, "--key", "keys/robot")
    roles = user.run("release", "list", *at, "--drafts").stdout
    assert "carol" in roles
    user.run("release", "rotate", "sim", *at, "--remove", "keys/carol.pub", "--key", "keys/ada",
             "--key", "keys/bob", "--key", "keys/robot", "--publish")  # fmt: skip
    digest = user.json("release", "list", *at, "--drafts")["roles"]
    assert {one["role"]: one["threshold"] for one in digest}["sim"] == 2
    gone = ["release", "revoke", "sim@1.0.0", *at, "--key", "keys/ada", "--key", "keys/bob",
            "--key", "keys/robot", "--publish"]  # fmt: skip
    user.run(*gone, code=Exit.BAD_INPUT)
    user.run(*gone, "--reason", "loses data", "--person", "ada")
    # Somebody else reads it over HTTP; the digest of the root came by another way.
    other = User(user.folder, user.home.parent / "other")
    root = user.json("release", "publish", *at, "--renew", "--key", "keys/robot")["root"]
    with served(user.folder / "rel") as address:
        other.setting(release_repository=address)
        none = other.json("release", "list", code=Exit.NOT_FOUND)
        assert "trust" in none["error"]["next"]
        other.run("release", "trust", root)
        refused = other.json("release", "show", "sim@1.0.0", code=Exit.REFUSED)
        assert refused["error"]["message"] == "sim@1.0.0 was revoked by ada: loses data"
        # Whoever asks whether that very release is good is not told that nothing is wrong.
        verified = other.json("release", "verify", "sim@1.0.0", code=Exit.REFUSED)
        assert verified["error"]["type"] == "ReleaseRevoked"
        assert "verified: 0 releases, 0 files" in other.run("release", "verify").stdout
        user.run(*gone, "--undo")
        assert other.json("release", "verify", "sim@1.0.0")["files"] == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("list",), Exit.NOT_FOUND, "no release repository is named"),
        (("init",), Exit.BAD_INPUT, "a repository needs keys"),
        (("init", "--role", "owner=1:x"), Exit.BAD_INPUT, "names no role"),
        (("init", "--role", "root=ada.pub"), Exit.BAD_INPUT, "how many of which keys"),
        (("init", "--key", "keys/ada", "--expires", "root=never"), Exit.BAD_INPUT, "cannot be used"),
        (("show", "etcd"), Exit.BAD_INPUT, "no name of a release"),
        (("add", "sim-1.0.0.yaml", "--repository", "rel"), Exit.BAD_INPUT, "nobody is said"),
        (("add", "no.yaml", "--repository", "rel", "--author", "a"), Exit.BAD_INPUT, "cannot be read"),
        (("publish",), Exit.BAD_INPUT, "keepers' folder"),
        (("revoke", "sim@1.0.0", "--reason", "x" * 501, "--repository", "rel"), Exit.BAD_INPUT, "at most 500"),
        (("revoke", "sim@1.0.0", "--reason", "  ", "--repository", "rel"), Exit.BAD_INPUT, "needs a reason"),
        (("rotate", "root", "--repository", "rel"), Exit.BAD_INPUT, "nothing is said to change"),
        (("publish", "--repository", "nowhere"), Exit.NOT_FOUND, "no release repository in"),
        (("trust", "0" * 64), Exit.NOT_FOUND, "no release repository is named"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_with_what_to_do(
    user: User, words: tuple[str, ...], code: int, said: str
) -> None:
    done = user.run("release", *words, code=code)
    assert said in done.stderr
    assert "next: " in done.stderr


@pytest.fixture
def up(user: User) -> Iterator[User]:
    user.json("release", "init", "--repository", "rel", "--key", "keys/ada")
    user.setting(release_repository=str(user.folder / "rel"))
    yield user
    user.run("down")


@pytest.mark.temporal
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signed_release_is_brought_up_planned_and_started_by_its_name(up: User) -> None:
    scene = scenes.build(up.folder, name="signed")
    root = up.json("release", "list", "--drafts")
    assert root["roles"]
    digest = up.json("release", "publish", "--renew", "--key", "keys/ada")["root"]
    text = scene.policy.read_text(encoding="utf-8")
    scene.policy.write_text(f"{text}releases: {{root: {digest}}}\n", encoding="utf-8")
    fleet = scene.fleet.read_text(encoding="utf-8").replace("sim-1.0.0.yaml", "sim@1.0.0")
    scene.fleet.write_text(fleet, encoding="utf-8")
    known = ("up", "--fleet", "fleet.yaml", "--policy", "policy.yaml")
    missing = up.json(*known, code=Exit.NOT_FOUND)
    assert missing["error"]["type"] == "ReleaseUnknown"
    up.run("release", "add", "sim-1.0.0.yaml", "--key", "keys/ada", "--publish")
    assert up.json(*known)["fleets"][0]["installed"] == 5
    documents = ["--fleet", "fleet.yaml", "--runbook", "runbook.yaml", "--policy", "policy.yaml"]
    refused = up.json("start", *documents, "--release", "sim-1.0.1.yaml", "--key", "keys/olga",
                      code=Exit.REFUSED)  # fmt: skip
    assert refused["error"]["rule"] == "release"
    assert "lists no release sim@1.0.1" in refused["error"]["message"]
    up.run("release", "add", "sim-1.0.1.yaml", "--key", "keys/ada", "--publish")
    plan = up.json("plan", *documents, "--release", "sim@1.0.1")
    again = up.json("plan", *documents, "--release", "tuf:sim/1.0.1")
    assert plan["digest"] == again["digest"]
    run = up.json("start", *documents, "--release", "sim@1.0.1", "--key", "keys/olga")["run"]
    up.run("watch", run, "--until-waiting", code=Exit.WAITING)
    for person in ("alice", "bob"):
        up.run("approve", run, "--key", f"keys/{person}")
    assert up.json("watch", run)["phase"] == "done"
