"""Marked secrets in every place where a user may put one, a whole run by the real commands, and a search everywhere.

What is searched: everything in the home (Temporal's database, logs, evidence, stores, state), everything in the nodes'
roots (journals, configurations, snapshots, archives), everything the commands said, and the command lines of all
processes of this machine, sampled all the time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml

from cli.exits import Exit
from kedge.trust import codec
from tests.agents import ssh_agent
from tests.cli import scene as scenes
from tests.conftest import Tell
from tests.daemons import AS_US
from tests.secrets.conftest import found
from tests.spine.scene import archive
from worker.rings import ring_file
from worker.settings import Settings

pytestmark = [pytest.mark.temporal, pytest.mark.slow, pytest.mark.timeout(500)]

KEDGE = str(Path(sys.executable).parent / "kedge")
NODES = ("n1", "n2", "n3")
WORD = "crownvariable-4411"
"""Stands in the open in the fleet's document: what the search must find where documents are, and not in Temporal."""
MARKS = {
    "the fleet's secret in a file": "crownfile-9135-{node}",
    "the fleet's secret in the environment": "crownenvironment-2207",
    "the fleet's secret from a command": "crowncommand-6611",
    "the passphrase of a person's key": "crownpassphrase-7150",
    "the API key of a Temporal cloud": "crownapikey-3071",
    "the password of the evidence's database": "crownpostgres-8842",
    "an API key in a profile with a mistake in it": "crownprofile-5540",
    "a password in an address": "crownaddress-1093",
}
DAEMON = """#!/bin/sh
# Says its password aloud and dies where it is a release that does that.
trap 'kill $!; exit 0' TERM INT
[ "{version}" = 1.0.2 ] && echo "cannot log in with $PASSWORD and $TOKEN" && exit 4
while :; do sleep 60 & wait $!; done
"""
RUNBOOK = """kind: Runbook
name: talk
node:
  - stage
  - stop: {signal: TERM, grace: 5s}
  - snapshot: {paths: [config, data]}
  - switch
  - configure
  - start: {settle: 300ms}
  - healthy: {service: {running: true}, for: 0s, within: 5s}
  - run: {argv: [/bin/sh, -c, "cat {node.config}/app.conf"], undo: none, name: shows-its-configuration}
waves:
  canary: {nodes: 1, gate: ship-it}
  widen: [100%]
gates:
  ship-it: {approvals: {threshold: 2, roles: [sre]}}
on_failure: park
rollback: {before_commit: switch-back, after_commit: forbidden}
retry: {attempts: 1, backoff: 0s}
"""


def every_mark() -> dict[str, list[str]]:
    """Each kind of secret and the values it has."""
    return {
        kind: [mark.format(node=node) for node in NODES] if "{node}" in mark else [mark]
        for kind, mark in MARKS.items()
    }


@dataclass
class Sampler:
    """Looks at the command lines of all processes, again and again."""

    words: list[str]
    seen: set[str] = field(default_factory=set)
    looks: int = 0

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event) -> None:
        while not over.wait(0.04):
            self.looks += 1
            for name in os.listdir("/proc"):  # noqa: PTH208 - thousands of times: names are enough
                if name.isdecimal():
                    with contextlib.suppress(OSError):
                        line = Path(f"/proc/{name}/cmdline").read_bytes().decode("utf-8", "replace")
                        self.seen |= {word for word in self.words if word in line}


@dataclass
class World:
    """A home with a ring, a fleet on this machine, people with keys, and everything that was said."""

    top: Path
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.top / "home"

    @property
    def searched(self) -> tuple[Path, ...]:
        return (self.home, self.nodes, self.top / "exports")

    @property
    def nodes(self) -> Path:
        return self.top / "nodes"

    def run(self, *words: str, code: int | None = 0) -> str:
        done = subprocess.run(
            [KEDGE, "--home", str(self.home), *words], env=self.environment, capture_output=True,
            text=True, timeout=200, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        self.said += [done.stdout, done.stderr]
        assert code is None or done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def documents(self, version: str) -> list[str]:
        named = {"fleet": "fleet", "release": f"daemon-{version}", "runbook": "runbook", "policy": "policy"}  # fmt: skip
        return [word for kind, name in named.items() for word in (f"--{kind}", str(self.top / f"{name}.yaml"))]  # fmt: skip


def plant(top: Path) -> World:
    """Writes documents, keys and secrets; an agent holds the key that is under a passphrase."""
    kept = top / "kept"
    kept.mkdir(mode=0o700)
    for node in NODES:
        (kept / f"{node}.password").write_text(every_mark()["the fleet's secret in a file"][NODES.index(node)] + "\n")  # fmt: skip
        (kept / f"{node}.password").chmod(0o600)
    (kept / "vault").write_text(f"#!/bin/sh\necho '{MARKS['the fleet' + chr(39) + 's secret from a command']}'\n")  # fmt: skip
    (kept / "vault").chmod(0o700)
    keys = {name: scenes._key(top / "keys" / name) for name in ("olga", "alice", "bob", "dave")}
    phrase = MARKS["the passphrase of a person's key"]
    # By the library: ssh-keygen would want the passphrase on its command line.
    locked = asyncssh.read_private_key(str(top / "keys" / "alice"))
    locked.write_private_key(str(top / "keys" / "alice"), passphrase=phrase)
    ask = kept / "ask"
    ask.write_text('#!/bin/sh\nprintf %s "$KEY_PASSPHRASE"\n')
    ask.chmod(0o700)
    write_documents(top, kept, keys)
    environment = {
        **os.environ,
        "COLUMNS": "120",
        "KEDGE_SECRET_TOKEN": MARKS["the fleet's secret in the environment"],
        "KEY_PASSPHRASE": phrase,
        "SSH_ASKPASS": str(ask),
        "SSH_ASKPASS_REQUIRE": "force",
        "TEMPORAL_API_KEY": MARKS["the API key of a Temporal cloud"],
        "PGPASSWORD": MARKS["the password of the evidence's database"],
    }
    return World(top, environment)


def write_documents(top: Path, kept: Path, keys: dict[str, str]) -> None:
    roles = {"olga": "operator", "alice": "sre", "bob": "sre", "dave": "on-call"}
    people: list[Any] = [{"name": who, "roles": [roles[who]], "keys": [keys[who]]} for who in keys]
    may = {
        "start": ["operator"], "approve": ["sre"], "reject": ["sre"], "decide": ["operator"],
        "rollback": ["on-call"],
    }  # fmt: skip
    policy = {
        "kind": "Policy",
        "name": "house",
        "environment": "test",
        "people": people,
        "may": may,
    }
    fleet = {
        "kind": "Fleet", "name": "talkers", "environment": "test", "release": "daemon-1.0.0.yaml",
        "root": f"{top}/nodes/{{node.name}}", "vars": {"word": WORD},
        "run": {
            "argv": ["{node.current}/daemon"],
            "env": {"PASSWORD": "{settings.password}", "TOKEN": "{secret.token}", "WORD": "{vars.word}"},
            **AS_US,
        },
        "settings": {"password": "{secret.password}"},
        "files": {"app.conf": "password = {settings.password}\ntoken = {secret.token}\nvault = {secret.vault}\n"},
        "secrets": {
            "password": {"file": f"{kept}/{{node.name}}.password"},
            "token": {"env": "KEDGE_SECRET_TOKEN"},
            "vault": {"command": [str(kept / "vault")]},
        },
        "nodes": [{"name": node} for node in NODES],
    }  # fmt: skip
    for name, document in (("policy", policy), ("fleet", fleet)):
        (top / f"{name}.yaml").write_text(yaml.safe_dump(document))
    (top / "runbook.yaml").write_text(RUNBOOK)
    write_releases(top, DAEMON)


def write_releases(top: Path, daemon: str) -> None:
    """Three releases of a daemon, each with its archive; ``{version}`` in its text is that of the release."""
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        content = archive({"daemon": daemon.replace("{version}", version).encode()})
        (top / f"daemon-{version}.tar").write_bytes(content)
        artifact = {
            "digest": hashlib.sha256(content).hexdigest(), "length": len(content),
            "source": f"daemon-{version}.tar",
        }  # fmt: skip
        release = {
            "kind": "Release", "component": "daemon", "version": version,
            "artifacts": {"linux/amd64": artifact}, "upgrade_from": ">=1.0.0", "downgrade_to": ">=1.0.0",
        }  # fmt: skip
        (top / f"daemon-{version}.yaml").write_text(json.dumps(release))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    top = tmp_path_factory.mktemp("planted")
    world = plant(top)
    with ssh_agent(top / "agent", world.environment) as world.environment:
        try:
            yield world
        finally:
            world.run("down", code=None)
            for kept in world.nodes.glob("*/.kedge/service.json"):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(kept.read_text())["pid"], signal.SIGTERM)


def whole_story(world: World) -> None:
    """Bring-up, an upgrade that two people approve, one that dies talking, a way back, a rotation in between."""
    alice = str(world.top / "keys" / "alice")
    subprocess.run(["ssh-add", "-q", alice], env=world.environment, check=True, timeout=30)
    world.run("codec", "init")
    world.run("up", "--fleet", str(world.top / "fleet.yaml"), "--policy", str(world.top / "policy.yaml"))  # fmt: skip

    def key(name: str) -> tuple[str, str]:
        return "--key", str(world.top / "keys" / name)

    world.run("start", *world.documents("1.0.1"), *key("olga"))
    run = "upgrade/talkers/1"
    world.run("watch", run, "--until-waiting", code=Exit.WAITING)
    world.run("approve", run, "--agent", f"{alice}.pub")
    world.run("codec", "rotate")
    world.run("approve", run, *key("bob"))
    world.run("watch", run)
    world.run("start", *world.documents("1.0.2"), "--from", str(world.top / "daemon-1.0.1.yaml"), *key("olga"))  # fmt: skip
    run = "upgrade/talkers/2"
    world.run("watch", run, "--until-waiting", code=Exit.WAITING)
    world.run("status", run, "--json")
    world.run("decide", run, "--choice", "rollback", *key("olga"))
    world.run("watch", run, code=None)
    (world.top / "exports").mkdir()
    world.run("evidence", "export", run, "-o", str(world.top / "exports" / "run.jsonl"))
    world.environment["KEDGE_EVIDENCE_URL"] = (
        "postgresql://kedge:crownpostgres-8842@127.0.0.1:1/kedge"
    )
    world.run("doctor", code=None)
    world.run("status", run, "--json", code=None)
    del world.environment["KEDGE_EVIDENCE_URL"]
    profile = world.top / "temporal.toml"
    for broken in ('"crownprofile-5540', '["crownprofile-5540"]', "crownprofile-5540"):
        profile.write_text(f'[profile.default]\naddress = "127.0.0.1:1"\napi_key = {broken}\n')
        world.environment["TEMPORAL_CONFIG_FILE"] = str(profile)
        world.run("list", code=None)
        assert "line 3" in world.said[-1]
    del world.environment["TEMPORAL_CONFIG_FILE"]
    world.environment["TEMPORAL_ADDRESS"] = "kedge:crownaddress-1093@127.0.0.1:1"
    world.run("list", code=Exit.BAD_INPUT)
    del world.environment["TEMPORAL_ADDRESS"]


def test_marked_secrets_are_where_they_belong_and_nowhere_else(world: World, tell: Tell) -> None:
    marks = every_mark()
    every = [value for values in marks.values() for value in values]
    sampler = Sampler([*every, WORD])
    with sampler.looking():
        whole_story(world)
        # The control of the sampler: a word on a command line.
        subprocess.run(["sh", "-c", "sleep 0.3", WORD], check=True)
        environments = daemons(world)
        world.run("down")
    assert sampler.looks > 100
    assert sampler.seen == {WORD}
    assert not [word for word in every if word in "".join(world.said)]

    held = found(world.searched, every)
    belongs = {
        node: every_mark()["the fleet's secret in a file"][NODES.index(node)] for node in NODES
    }
    for value, paths in held.items():
        node = next((name for name, mine in belongs.items() if mine == value), None)
        for path in paths:
            where = Path(path).relative_to(world.nodes)
            assert node is None or where.parts[0] == node
            secret_file = where.parts[1:3] == (".kedge", "secrets") and where.name == "app.conf"
            assert secret_file or where.parts[1] == "logs", f"{value} in {path}"
            assert not secret_file or Path(path).stat().st_mode & 0o777 == 0o600
    in_daemons = [
        *belongs.values(),
        marks["the fleet's secret in the environment"][0],
        marks["the fleet's secret from a command"][0],
    ]
    assert set(held) == set(in_daemons), (
        "what is not there cannot be told from what the search does not see"
    )
    for node, environment in environments.items():
        assert f"PASSWORD={belongs[node]}" in environment
        assert "crownpassphrase" not in environment
        assert "crownapikey" not in environment

    files = [path for place in world.searched for path in place.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    tell(
        f"{len(every)} marked secrets looked for in {len(files)} files, {size:.0f} MiB, and in {sampler.looks} looks"
        " at all command lines: none is where it does not belong"
    )

    # The control of the search: what stands in the open is found, where documents are; not in Temporal's database.
    paths = found(world.searched, [WORD])[WORD]
    assert any("/store/" in path for path in paths)
    assert any(path.endswith("service.json") for path in paths)
    assert not [path for path in paths if "/engine/" in path or "/logs/" in path]


def daemons(world: World) -> dict[str, str]:
    """The environment of each node's daemon."""
    kept = {path.parts[-3]: json.loads(path.read_text()) for path in world.nodes.glob("*/.kedge/service.json")}  # fmt: skip
    return {
        node: Path(f"/proc/{one['pid']}/environ").read_bytes().replace(b"\0", b"\n").decode()
        for node, one in kept.items()
    }


def test_the_codecs_keys_are_in_their_file_alone(world: World) -> None:
    file = ring_file(Settings.load(home=world.home))
    keys = [key.secret for key in file.ring().keys.values()]
    assert len(keys) == 2
    held = found(world.searched, [base64.b64encode(key).decode().rstrip("=") for key in keys])  # fmt: skip
    assert {path for paths in held.values() for path in paths} == {str(file.path)}
    for path in (one for one in world.home.rglob("*") if one.is_file() and one != file.path):
        content = path.read_bytes()
        assert not [key for key in keys if key in content or key.hex().encode() in content], path
    assert codec.key_id(keys[0]) in "".join(world.said), "its name may be told"
    told = "".join(world.said)
    assert not [key for key in keys if base64.b64encode(key).decode() in told]


def test_what_the_daemon_said_of_itself_is_quoted_without_its_secrets(world: World) -> None:
    told = "".join(world.said)
    assert "cannot log in with [secret password] and [secret token]" in told
    for node in NODES:
        journal = (world.nodes / node / ".kedge/journal").read_text()
        shown = [json.loads(line) for line in journal.splitlines() if "shows-its-configuration" in line]  # fmt: skip
        if shown:
            assert "password = [secret password]" in shown[0]["result"]["output"]
            break
    else:
        raise AssertionError("no node showed its configuration")
