"""`init` in a Fleet: what a host is told of it, and what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.host import request
from kedge.model.errors import DocumentError
from kedge.model.fleet import Fleet
from kedge.model.release import Release
from kedge.plan.compile import ConflictsError
from kedge.plan.install import Installation
from tests.plan.samples import BEFORE, FLEET, plan, read, replaced

INIT = """init:
  - run: {name: seed, argv: ["{node.current}/bin/seed", "{node.data}", "{settings.name}", "{release.version}"], timeout: 2m}
  - run:
      said: the second, "{braces}" are braces here
      argv: [chmod, "0700", "{node.data}"]
      env: {ZONE: "{node.labels.zone}"}
      exit: [0, 3]
      check: {command: {argv: [test, -d, "{node.data}/x"]}}
nodes:
"""
SEEDED = replaced(FLEET, "nodes:\n", INIT)


def told(fleet: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        *Installation(read(fleet, Fleet), read(BEFORE, Release)).operations(1, key="install/7")
    ]
    return found


def test_its_steps_stand_between_configuration_and_start() -> None:
    ops = told(SEEDED)
    assert [op["op"] for op in ops] == ["stage", "switch", "configure", "init", "init", "start"]
    first, second = ops[3], ops[4]
    assert [op["key"] for op in ops[3:5]] == ["install/7/etcd-2/init-1", "install/7/etcd-2/init-2"]
    root = first["cwd"]
    assert first["argv"] == [f"{root}/current/bin/seed", f"{root}/data", "etcd-2", "3.5.0"]
    assert (first["name"], first["at"], first["of"], first["timeout"]) == ("seed", 0, 2, 120.0)
    assert (second["name"], second["at"], second["of"]) == ("init-2", 1, 2)
    assert second["env"] == {"ZONE": "b"}
    assert second["check"]["command"]["argv"] == ["test", "-d", f"{root}/data/x"]
    for op in (first, second):
        request.operation(op, "init")


def test_a_fleet_without_it_says_nothing_of_it_to_hosts() -> None:
    assert [op["op"] for op in told(FLEET)] == ["stage", "switch", "configure", "start"]


def test_a_migration_does_nothing_of_it() -> None:
    assert plan(fleet=SEEDED).programs == plan().programs
    assert plan(fleet=SEEDED).after == plan().after


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("name: seed", "name: SEED", "init.0.run.name"),
        ("{name: seed, argv: [", "{name: seed, undo: none, argv: [", "init.0.run.undo: 'undo' is not known here"),
        ("  - run:\n", "  - stop:\n", "init.1.run: is missing"),
        ("said: the", "name: seed\n      said: the", "init.1.run.name: seed is the name of another step"),
        ('check: {command: {argv: [test, -d, "{node.data}/x"]}}', "check: seeded", "init.1.run.check: seeded is a fact"),
        (
            'check: {command: {argv: [test, -d, "{node.data}/x"]}}',
            "check: {http: 'http://x/', expect: {a: {captured: b}}}",
            "init.1.run.check: keeps or compares with captured values",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_it_has_its_place(old: str, new: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(replaced(SEEDED, old, new), Fleet)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("placeholder", "says"),
    [
        ("{node.nothing}", "init.1.run.env.ZONE: {node.nothing} is nothing that can be filled in"),
        ("{before.version}", "{before.version} is known only while a fleet is moved"),
        (
            "{secret.word}",
            "init.1.run.env.ZONE: {secret.word} is a secret; what a step does is told",
        ),
        ("{settings.held}", "init.1.run.env.ZONE: {settings.held} holds a secret"),
    ],
)
def test_a_placeholder_that_may_not_stand_there_has_its_place(placeholder: str, says: str) -> None:
    secrets = "secrets: {word: {env: KEDGE_SECRET_WORD}}\ninit:\n"
    fleet = replaced(SEEDED, "init:\n", secrets)
    fleet = replaced(fleet, "settings:\n", 'settings:\n  held: "{secret.word}"\n')
    fleet = replaced(fleet, "{settings.flags}", "--x")
    fleet = replaced(fleet, "{node.labels.zone}", placeholder)
    with pytest.raises(ConflictsError) as caught:
        Installation(read(fleet, Fleet), read(BEFORE, Release))
    assert says in str(caught.value)
