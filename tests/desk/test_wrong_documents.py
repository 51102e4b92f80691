"""Wrong documents as people write them: what is said of each, where, and what to do next, to be read by a person.

Each row is what `kedge runbook lint` says of documents that are sound but for one mistake; where only a plan can know, what
`kedge plan` says. The snapshot beside this file is the table; `pytest --snapshot-update` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from desk.documents import compile_files, lint
from kedge.model.errors import DocumentError
from tests.plan.samples import AFTER, BEFORE, FLEET, POLICY, RUNBOOK

SOUND = {
    "etcd.yaml": FLEET,
    "etcd-3.5.0.yaml": BEFORE,
    "etcd-3.5.1.yaml": AFTER,
    "policy.yaml": POLICY,
    "runbook.yaml": RUNBOOK,
}
ALICE = POLICY.partition('keys: ["')[2].partition('"')[0]


@dataclass(frozen=True)
class Wrong:
    """One mistake: in ``file``, ``old`` is written as ``new``; ``plan``: only a plan shows it."""

    name: str
    file: str
    old: str
    new: str
    plan: bool = False


def f(name: str, old: str, new: str, *, plan: bool = False) -> Wrong:
    return Wrong(name, "etcd.yaml", old, new, plan)


def r(name: str, old: str, new: str, *, plan: bool = False) -> Wrong:
    return Wrong(name, "etcd-3.5.1.yaml", old, new, plan)


def b(name: str, old: str, new: str, *, plan: bool = False) -> Wrong:
    return Wrong(name, "runbook.yaml", old, new, plan)


def p(name: str, old: str, new: str, *, plan: bool = False) -> Wrong:
    return Wrong(name, "policy.yaml", old, new, plan)


STEP = "node:\n  - stage\n"
INIT = "init:\n  - run: {argv: [ARGV]MORE}\nnodes:\n"

TABLE = [
    # what YAML does to people
    f("a version without quotes", "settings:\n", "settings:\n  max-procs: 4\n"),
    f("yes as a word", 'GOMAXPROCS: "1"', "GOMAXPROCS: yes"),
    f("a time that YAML counts in sixties", "environment: demo", "environment: 12:30:00"),
    f("a tab", "  base: /srv/kedge", "\tbase: /srv/kedge"),
    f("a brace that opens a mapping", 'root: "{vars.base}/{node.name}"', "root: {vars.base}/{node.name}"),
    f("the same key twice", "service: process\n", "service: process\nenvironment: prod\n"),
    f("an anchor", "environment: demo", "environment: &here demo"),
    f("two documents in one file", "nodes:\n", "---\nnodes:\n"),
    f("an argument that is a word for true", '["{node.current}/bin/etcd"', '["{node.current}/bin/etcd", y'),
    # what is not known
    b("a command of one word for true", STEP, STEP + "  - run: {argv: [y], undo: none}\n"),
    f("a kind that is not there", "kind: Fleet", "kind: Flet"),
    f("a key with a slip", "environment: demo", "enviroment: demo"),
    f("a service manager that is not there", "service: process", "service: systemd"),
    f("a transport that is not there", "transport: local", "transport: telnet"),
    b("a step that is not there", "  - switch\n", "  - swap\n"),
    b("a matcher that is not there", '{health: "true"}}\n\nnode', "{health: {is: true}}}\n\nnode"),
    # what is referred to
    b("a gate that is not there", "gate: widen}", "gate: widn}"),
    b("a gate that nothing asks", "gates:\n", "gates:\n  spare: {approvals: {roles: [sre]}}\n"),
    b("a commit behind a gate that is not there", "failure_budget", "commit: {before: wave-1, gate: ship, lost: all}\nfailure_budget"),
    b("a commit before a wave that is not there", "failure_budget", "commit: {before: wave-7, gate: widen, lost: all}\nfailure_budget"),
    b("a fact that is not there", "last: is_leader", "last: is_leading"),
    b("a variable that is not there", STEP, STEP + '  - probe: {tcp: "h:{vars.prot}"}\n'),
    b("a label that no node has", STEP, STEP + '  - probe: {tcp: "h:{node.labels.prot}"}\n'),
    b("a failure domain that no node has", "  last: is_leader", "  domain: rack\n  last: is_leader"),
    b("an order by a label that no node has", "  last: is_leader", "  order: [{role: replica}, {role: primary}]\n  last: is_leader"),
    b("a role that nobody has", "roles: [sre, db-owner]", "roles: [dba]"),
    b("a placeholder with a slip", STEP, STEP + '  - probe: {tcp: "{node.adress}:80"}\n'),
    b("a placeholder of one word", STEP, STEP + '  - probe: {tcp: "{address}:80"}\n'),
    b("a value that nothing captured", STEP, STEP + "  - probe: {http: 'http://h/', expect: {height: {ge: {captured: height}}}}\n"),
    f("a setting that is not there", '"{settings.flags}"]', '"--data-dir={settings.dir}"]'),
    f("a release that is not there", "release: etcd-3.5.0.yaml", "release: releases/3.5.0.yaml"),
    f("an override of a variable that is not there", '"23805", zone: b}}', '"23805", zone: b}, overrides: {vars: {bass: /data}}}'),
    p("a verb for a role that nobody has", "start: [operator]", "start: [operators]"),
    # nodes that are in each other's way
    f("two nodes of one name", "{name: etcd-2,", "{name: etcd-1,"),
    f("two nodes in one folder", 'root: "{vars.base}/{node.name}"', 'root: "{vars.base}"'),
    f("two nodes on one port", 'client_port: "23792"', 'client_port: "23791"'),
    f("a setting that uses a setting", 'data-dir: "{node.data}/member"', 'data-dir: "{settings.name}"'),
    f("a port for all nodes alike", "  env: {GOMAXPROCS", '  ports: ["2379"]\n  env: {GOMAXPROCS'),
    f("a folder that is not absolute", "base: /srv/kedge", "base: srv/kedge"),
    # the first start
    f("a first step with a way back", "nodes:\n", INIT.replace("ARGV", "initdb").replace("MORE", ", undo: none")),
    f("a first step with a secret", "nodes:\n", INIT.replace("ARGV", 'initdb, "{secret.password}"').replace("MORE", "")),
    f("a first step that asks a fact", "nodes:\n", INIT.replace("ARGV", "initdb").replace("MORE", ", check: seeded")),
    f("a user that is a sentence", "  env: {GOMAXPROCS", "  user: the postgres account\n  env: {GOMAXPROCS"),
    f("groups without a user", "  env: {GOMAXPROCS", "  groups: [ssl-cert]\n  env: {GOMAXPROCS"),
    # how a node is moved
    b("a duration without a unit", "grace: 60s", "grace: 60"),
    b("a stop that outlives its step", "grace: 60s", "timeout: 10s, grace: 60s"),
    b("steps in the wrong order", "  - switch\n  - configure\n", "  - configure\n  - switch\n"),
    b("no look at the node at its end", RUNBOOK[RUNBOOK.index("  - healthy:\n"):RUNBOOK.index("waves:\n")], ""),
    b("a command without its undo", STEP, STEP + "  - run: {argv: [drain]}\n"),
    b("waves that end before all nodes", "widen: [60%, 100%]", "widen: [60%, 80%]", plan=True),
    b("all nodes at once", "max_unavailable: 1", "max_unavailable: 5", plan=True),
    b("a restore without a point of no return", "after_commit: forbidden", "after_commit: {restore: snapshot, gate: widen}"),
    b("more signatures than people", "threshold: 2", "threshold: 4", plan=True),
    # releases
    r("a digest that is too short", '"0000000000000000000000000000000000000000000000000000000000000351"', '"351"'),
    r("a range that is none", '">=3.4.0 <3.6.0"\ndowngrade', '"from 3.4 on"\ndowngrade'),
    r("a version that may not come from here", 'upgrade_from: ">=3.4.0 <3.6.0"', 'upgrade_from: "3.4.x"', plan=True),
    r("peers that do not understand each other", 'accepts: ["3.4", "3.5"]}', 'accepts: ["3.6"]}', plan=True),
    r("a platform that no node is of", "linux/amd64:", "linux/arm64:", plan=True),
    r("an archive behind an unknown address", "source: etcd-3.5.1.tar.gz", "source: ftp://example.org/etcd.tar.gz"),
    # policies
    p("a key that is a private one", ALICE, "-----BEGIN OPENSSH PRIVATE KEY-----"),
    p("one key for two people", 'keys: ["' + POLICY.split('keys: ["')[2].partition('"')[0], 'keys: ["' + ALICE),
    p("a verb that is not there", "  start: [operator]", "  launch: [operator]"),
    p("another environment", "environment: demo", "environment: prod", plan=True),
]  # fmt: skip


def said(folder: Path, wrong: Wrong) -> list[str]:
    """What is said of the documents with one mistake, without where they lie."""
    for name, text in SOUND.items():
        assert name != wrong.file or wrong.old in text, wrong.name
        changed = text.replace(wrong.old, wrong.new, 1) if name == wrong.file else text
        (folder / name).write_text(changed)
    if not wrong.plan:
        problems = list(lint(sorted(folder.glob("*.yaml"))))
    else:
        assert lint([folder / wrong.file]) == (), wrong.name
        with pytest.raises(DocumentError) as caught:
            compile_files(*(folder / name for name in ("etcd.yaml", "etcd-3.5.1.yaml", "runbook.yaml", "policy.yaml")))  # fmt: skip
        problems = list(caught.value.problems)
    assert problems, wrong.name
    return [problem.replace(f"{folder}/", "") for problem in problems]


def test_what_is_said_of_wrong_documents(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    assert len(TABLE) >= 40
    rows: list[str] = []
    for wrong in TABLE:
        problems = said(tmp_path, wrong)
        for problem in problems:
            assert re.match(r"[a-z0-9.-]+\.yaml:[0-9]+:[0-9]+: ", problem), (wrong.name, problem)
        rows += [
            f"{wrong.name}{' (plan)' if wrong.plan else ''}",
            *(f"  {one}" for one in problems),
        ]
    assert len({wrong.name for wrong in TABLE}) == len(TABLE)
    assert "\n".join(rows) == snapshot
