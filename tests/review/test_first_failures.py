"""A first installation that failed, and the documents that correct it; what is said of nodes was looked at right before.

Real host programs and real daemons, without an engine.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

import activities.bringing_up
from activities.bringing_up import BEGUN, SEEN, BringingUpActivities
from kedge.drivers.ports import SessionRequest
from kedge.model.fleet import Fleet
from kedge.model.release import Release
from kedge.model.run import EnsureResult
from kedge.plan.places import planned_nodes
from tests.daemons import passable
from tests.spine.scene import Scene, end_daemons, make_scene, settle
from worker.wiring import ground_of

# Ends when its file, its variable, its argument or its data are not what it wants; says what it runs with.
DAEMON = """#!/bin/sh
# {version}
fail() { echo "refused: $1"; exit 3; }
[ "$(cat "$1/app.conf")" = good ] || fail "the configuration is not good"
[ "$MODE" = good ] || fail "MODE is not good"
[ "$2" = --good ] || fail "an unknown option $2"
[ "{version}" = 1.0.0 ] && [ -n "$NEEDS_NEW" ] && fail "1.0.0 is too old"
[ -n "$NEEDS_DATA" ] && [ ! -e "$3/seed" ] && fail "no data"
[ -n "$NO_ROOT" ] && [ "$(id -u)" = 0 ] && fail "root is not allowed"
if [ -n "$LATER" ]; then sleep "$LATER"; echo "out of luck"; exit 4; fi
echo "{version} runs"
while :; do sleep 0.05; done
"""
ARGV = ["{node.current}/daemon", "{node.config}", "--good", "{node.data}"]


@dataclass
class Up:
    """A fleet that is brought up by the activity that `kedge up` runs."""

    scene: Scene
    activities: BringingUpActivities
    ups: int = 0

    async def document(self, **given: Any) -> None:
        """The Fleet as somebody wrote it now, made known as `kedge up --fleet` does."""
        plain = self.scene.document.model_dump(mode="json", by_alias=True)
        user = plain["run"].get("user")
        run = {"argv": ARGV, "env": {"MODE": "good"}, "user": user, **given.pop("run", {})}
        release: Release = self.scene.releases[given.pop("release", "1.0.0")]
        text = {**plain, "files": {"app.conf": "good"}, **given, "run": run}
        fleet = Fleet.model_validate(text, strict=False)
        await self.scene.drivers.fleets.remember(self.scene.name, fleet, release)

    def _environment(self) -> ActivityEnvironment:
        self.ups += 1
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, workflow_run_id=f"up-{self.ups}")
        return environment

    async def up(self) -> EnsureResult:
        return await self._environment().run(self.activities.ensure_fleet, self.scene.name)

    async def look(self) -> EnsureResult:
        return await self._environment().run(self.activities.look_at_fleet, self.scene.name)

    def log(self, node: str) -> list[str]:
        return (self.scene.home / "nodes" / node / "logs/service.log").read_text().splitlines()

    def kill(self, node: str) -> None:
        end_daemons(self.scene, node)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with passable(tmp_path) as made:
        yield made


@pytest.fixture
async def fleet(folder: Path) -> AsyncIterator[Up]:
    no_client = await Client.connect("127.0.0.1:1", lazy=True)
    scene = make_scene(no_client, folder, nodes=2, transport="local", daemon=DAEMON)
    await settle(scene)
    ground = ground_of(scene.drivers, no_client)
    try:
        yield Up(scene, BringingUpActivities(ground))
    finally:
        end_daemons(scene)
        await scene.drivers.aclose()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a file": ({"files": {"app.conf": "bad"}}, "the configuration is not good"),
    "a variable": ({"run": {"env": {"MODE": "bad"}}}, "MODE is not good"),
    "an argument": ({"run": {"argv": [*ARGV[:2], "--bad"]}}, "an unknown option --bad"),
    "a program": ({"run": {"argv": ["{node.current}/demon"]}}, "demon"),
    "a user": ({"run": {"user": "no-such-account"}}, "this host has no user 'no-such-account'"),
    "a first step": (
        {"init": [{"run": {"argv": ["sh", "-c", "echo no space; exit 1"]}}]},
        "the init step init-1 did not succeed: sh: exit 1: no space",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_first_installation_that_failed_is_corrected_by_the_documents(
    fleet: Up, what: str
) -> None:
    wrong, words = WRONG[what]
    await fleet.document(**wrong)
    for _ in range(2):
        result = await fleet.up()
        assert (result.nodes, result.running, result.installed) == (2, 0, 0)
        assert len(result.problems) == 2
        for node, said in zip(("n0", "n1"), result.problems, strict=True):
            assert said.startswith(f"{node}: ")
            assert words in said
    await fleet.document()
    result = await fleet.up()
    assert result.problems == ()
    assert (result.installed, result.running) == (2, 2)
    assert fleet.log("n0") == ["1.0.0 runs"]
    again = await fleet.up()
    assert (again.installed, again.started, again.running) == (0, 0, 2)


async def test_another_archive_corrects_it_too(fleet: Up) -> None:
    await fleet.document(run={"env": {"MODE": "good", "NEEDS_NEW": "1"}})
    result = await fleet.up()
    assert "1.0.0 is too old" in result.problems[0]
    await fleet.document(run={"env": {"MODE": "good", "NEEDS_NEW": "1"}}, release="1.1.0")
    result = await fleet.up()
    assert result.problems == ()
    assert fleet.log("n1") == ["1.1.0 runs"]


async def test_data_that_only_a_first_step_makes(fleet: Up) -> None:
    run = {"env": {"MODE": "good", "NEEDS_DATA": "1"}}
    await fleet.document(run=run)
    assert "refused: no data" in (await fleet.up()).problems[0]
    seed = {"run": {"argv": ["sh", "-c", "echo $$ > {node.data}/seed"]}}
    await fleet.document(run=run, init=[seed])
    assert (await fleet.up()).problems == ()
    before = (fleet.scene.home / "nodes/n0/data/seed").read_text()
    fleet.kill("n0")
    result = await fleet.up()
    assert (result.started, result.running) == (1, 2)
    assert (fleet.scene.home / "nodes/n0/data/seed").read_text() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a daemon as another user")
async def test_a_daemon_that_is_not_root_corrected_by_its_user(fleet: Up) -> None:
    env = {"MODE": "good", "NO_ROOT": "1"}
    await fleet.document(run={"env": env, "user": "root"})
    assert "root is not allowed" in (await fleet.up()).problems[0]
    await fleet.document(run={"env": env, "user": "nobody"})
    assert (await fleet.up()).problems == ()
    data = (fleet.scene.home / "nodes/n0/data").stat()
    assert data.st_uid == pwd.getpwnam("nobody").pw_uid


async def test_only_the_node_that_failed_gets_the_corrected_documents(fleet: Up) -> None:
    # The name of a node is in its address here, so one value is wrong on one node alone.
    await fleet.document(files={"app.conf": "{node.labels.word}"}, nodes=[
        {"name": "n0", "labels": {"word": "good"}}, {"name": "n1", "labels": {"word": "bad"}},
    ])  # fmt: skip
    result = await fleet.up()
    assert (result.installed, result.running) == (1, 1)
    assert [said[:3] for said in result.problems] == ["n1:"]
    pid = (fleet.scene.home / "nodes/n0/.kedge/service.json").read_text()
    await fleet.document()
    result = await fleet.up()
    assert (result.installed, result.running, result.problems) == (1, 2, ())
    assert (fleet.scene.home / "nodes/n0/.kedge/service.json").read_text() == pid


async def test_once_it_was_seen_running_up_changes_no_configuration(fleet: Up) -> None:
    await fleet.document()
    assert (await fleet.up()).running == 2
    fleet.kill("n0")
    await fleet.document(files={"app.conf": "bad"}, run={"env": {"MODE": "bad"}}, release="1.1.0")
    result = await fleet.up()
    assert (result.started, result.installed, result.running) == (1, 0, 2)
    assert fleet.log("n0") == ["1.0.0 runs"]


async def test_daemons_that_die_within_the_second_are_not_said_to_run(fleet: Up) -> None:
    await fleet.document(run={"env": {"MODE": "good", "LATER": "0.6"}})
    result = await fleet.up()
    assert (result.nodes, result.running, result.installed) == (2, 0, 0)
    for node, said in zip(("n0", "n1"), result.problems, strict=True):
        assert said.startswith(f"{node}: its daemon does not run; its last words: ")
        assert "out of luck" in said
    await fleet.document()
    assert (await fleet.up()).running == 2


async def test_one_that_dies_again_after_it_was_started_again_is_not_said_to_run(fleet: Up) -> None:
    await fleet.document()
    assert (await fleet.up()).running == 2
    conf = fleet.scene.home / "nodes/n1/config/current/app.conf"
    fleet.kill("n1")
    conf.chmod(0o600)
    conf.write_text("edited by hand")
    result = await fleet.up()
    assert (result.started, result.running) == (0, 1)
    assert result.problems[0].startswith("n1: ")
    assert "the configuration is not good" in result.problems[0]


async def test_a_look_names_what_is_down_and_starts_nothing(fleet: Up) -> None:
    await fleet.document()
    assert (await fleet.up()).running == 2
    fleet.kill("n1")
    for _ in range(2):
        result = await fleet.look()
        assert (result.nodes, result.running) == (2, 1)
        assert result.problems == ("n1: its daemon does not run; its last words: 1.0.0 runs",)
    assert (await fleet.up()).started == 1
    assert (await fleet.look()).running == 2


async def test_a_look_at_what_was_never_installed_says_so(fleet: Up) -> None:
    await fleet.document()
    result = await fleet.look()
    assert result.problems == (
        "n0 is not installed: `kedge up` installs it",
        "n1 is not installed: `kedge up` installs it",
    )


async def test_an_up_that_was_killed_before_it_looked_again_is_taken_up(
    fleet: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.document()
    with monkeypatch.context() as patch:
        patch.setattr(activities.bringing_up, "OLD_ENOUGH", 1e6)
        going = asyncio.ensure_future(fleet.up())
        marks = [fleet.scene.home / f"nodes/{node}/.kedge/should-run" for node in ("n0", "n1")]
        while not all(mark.exists() for mark in marks):  # noqa: ASYNC110 - another process makes them
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
    assert await tokens(fleet) == [BEGUN, BEGUN]
    result = await fleet.up()
    assert (result.installed, result.running) == (0, 2)
    assert await tokens(fleet) == [SEEN, SEEN]


async def tokens(fleet: Up) -> list[tuple[int, ...]]:
    """The fences of the nodes, by a session that is refused."""
    found = []
    for node in planned_nodes(fleet.scene.document):
        end = await fleet.scene.drivers.transport.session(
            node, SessionRequest("test", (0, 0, 0), ()), lambda _event: None
        )
        token = end.observed["token"]
        assert isinstance(token, list)
        found.append(tuple(int(str(one)) for one in token))
    return found
