"""Malformed documents: each has its place and a sentence, none a stack trace, all problems at once."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import pytest

from kedge.model.errors import DocumentError
from kedge.model.policy import Policy
from kedge.plan.parse import parse_any
from tests.plan.samples import AFTER, FLEET, POLICY, RUNBOOK, replaced, runbook

SMALL = runbook()
TEXTS = {"fleet": FLEET, "release": AFTER, "policy": POLICY, "runbook": RUNBOOK, "small": SMALL}
ED25519 = re.search(r'roles: \[sre\], keys: \["(ssh-ed25519 \S+)', POLICY)
assert ED25519
BOB = ED25519[1]


@dataclass(frozen=True)
class Case:
    """``old`` of a sound text replaced by ``new``; the problem's place is that of ``at`` in the result."""

    sentence: str
    text: str
    old: str
    new: str
    at: str
    says: str

    def broken(self) -> str:
        return replaced(TEXTS[self.text], self.old, self.new) if self.old else self.new


def place(text: str, at: str) -> tuple[int, int]:
    assert text.count(at) >= 1, f"{at!r} is not in the text"
    before = text[: text.index(at)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


CASES = [
    # versions and other text that YAML would read as something else
    Case("a version 1.10 without quotes is a number", "release", 'version: "3.5.1"', "version: 1.10", "1.10", 'versions are text: write "1.10"'),
    Case("a whole version without quotes is a number", "release", 'version: "3.5.1"', "version: 3", "3", 'versions are text: write "3"'),
    Case("a version that is nothing", "release", 'version: "3.5.1"', "version: # none", " # none", "versions are text"),
    Case("a version that is a list", "release", 'version: "3.5.1"', "version: [3, 5]", "[3, 5]", "must be text, not a list or a mapping"),
    Case("a version with a space in it", "release", 'version: "3.5.1"', 'version: "3.5 1"', '"3.5 1"', "a version, as text"),
    Case("an empty version", "release", 'version: "3.5.1"', 'version: ""', '""', "a version, as text"),
    Case("a version of a protocol as a number", "release", 'speaks: ["3.5"]', "speaks: [3.5]", "3.5]", 'versions are text: write "3.5"'),
    Case("a data format as a number", "release", 'writes: "3.5"', "writes: 3.5", "3.5, begins", 'versions are text: write "3.5"'),
    Case("a date where text is wanted", "fleet", "base: /srv/kedge", "base: 2024-01-01", "2024-01-01", "is read differently by different YAML"),
    Case("a time that old YAML reads in base sixty", "fleet", "base: /srv/kedge", "base: 12:30", "12:30", 'as text write "12:30"'),
    Case("an octal number", "fleet", "base: /srv/kedge", "base: 0755", "0755", 'as text write "0755"'),
    Case("a hexadecimal number", "fleet", "base: /srv/kedge", "base: 0x1F", "0x1F", 'as text write "0x1F"'),
    Case("a binary number", "fleet", "base: /srv/kedge", "base: 0b11", "0b11", 'as text write "0b11"'),
    Case("a number with underscores", "fleet", "base: /srv/kedge", "base: 1_000", "1_000", 'as text write "1_000"'),
    Case("yes for true", "small", "- stage", "- stage: {decision: yes}", "yes", 'write true or "yes"'),
    Case("off for false", "small", "- stage", "- stage: {decision: off}", "off", 'write false or "off"'),
    Case("a capital True", "small", "- stage", "- stage: {decision: True}", "True", "write true"),
    Case("not a number", "small", "- stage", "- stage: {attempts: .nan}", ".nan", "is no number that a document may have"),
    Case("infinity", "small", "- stage", "- stage: {attempts: -.inf}", "-.inf", "is no number that a document may have"),
    Case("a number too large for a float", "small", "- stage", "- stage: {attempts: 1e999}", "1e999", "is too large a number"),
    Case("a huge whole number", "small", "- stage", "- stage: {attempts: 99999999999999999999}", "99999", "is too large a number"),
    Case("a label that is a number", "fleet", "zone: a}}\n  - {name: etcd-2", "zone: 7}}\n  - {name: etcd-2", "7}}", 'must be text: write "7"'),
    # YAML itself
    Case("an empty file", "", "", "", "", "is empty"),
    Case("only a comment", "", "", "# nothing\n", "# ", "is empty"),
    Case("a list instead of a mapping", "", "", "- kind: Fleet\n", "- ", "is no mapping"),
    Case("a single word", "", "", "Fleet\n", "Fleet", "is no mapping"),
    Case("a key written twice", "fleet", "environment: demo", "environment: demo\nenvironment: prod", "environment: prod", "stands here a second time (first in line 3)"),
    Case("a key written twice, deep down", "fleet", "{name: etcd-1,", "{name: etcd-1, name: etcd-9,", "name: etcd-9", "stands here a second time"),
    Case("an anchor", "fleet", "environment: demo", "environment: &e demo", "&e", "names this place for aliases"),
    Case("an alias", "fleet", "environment: demo", "environment: *e", "*e", "refers to another place"),
    Case("an alias as a key", "fleet", "environment: demo", "environment: demo\n*e : x", "*e", "refers to another place"),
    Case("a merge key", "fleet", "environment: demo", "environment: demo\n<<: {name: x}", "<<", "<< merges other places"),
    Case("a tag that would make an object", "fleet", "environment: demo", "environment: !!python/object:os.system demo", "!!python", "is a tag"),
    Case("a tag of its own", "fleet", "environment: demo", "environment: !vault demo", "!vault", "is a tag"),
    Case("two documents in one file", "fleet", "environment: demo", "environment: demo\n---", "---", "a second document begins"),
    Case("a tab for indentation", "fleet", "  base: /srv/kedge", "\tbase: /srv/kedge", "\tbase", "indent with spaces, not tabs"),
    Case("a bracket that is not closed", "fleet", 'argv: ["{node.current}/bin/etcd", "{settings.flags}"]', 'argv: ["{node.current}/bin/etcd", "{settings.flags}"', "env:", "is not YAML"),
    Case("a quote that is not closed", "release", 'version: "3.5.1"', 'version: "3.5.1', "", "is not YAML"),
    Case("a colon in plain text", "fleet", "environment: demo", "environment: a: b", ": b", "is written in quotes"),
    Case("a mapping as a key", "fleet", "environment: demo", "environment: demo\n{a: b}: c", "{a: b}", "a key is a text"),
    Case("a key that is empty", "fleet", "environment: demo", 'environment: demo\n"": c', '"": c', "a key is empty"),
    Case("a list nested forty levels deep", "fleet", "environment: demo", "environment: " + "[" * 40 + "]" * 40, "[" * 9 + "]", "is nested more than 32 levels deep"),
    Case("a NUL character", "fleet", "environment: demo", "environment: de\0mo", "\0", "has the character U+0000"),
    Case("an escape character", "fleet", "environment: demo", "environment: de\x1bmo", "\x1b", "has the character U+001B"),
    Case("a byte order mark", "", "", "\ufeffkind: Fleet\n", "", "begins with a byte order mark"),
    Case("a wrong indentation", "fleet", "environment: demo", " environment: demo", "", "is not YAML"),
    # kinds and keys
    Case("no kind", "fleet", "kind: Fleet\n", "", "name: etcd\n", "kind: is missing; write kind: and one of Fleet, Release, Runbook, Policy"),
    Case("a kind there is not", "fleet", "kind: Fleet", "kind: Flet", "Flet", "do you mean Fleet?"),
    Case("a kind that is a number", "fleet", "kind: Fleet", "kind: 3", "3", "must be one of"),
    Case("an unknown key with a near one", "fleet", "environment: demo", "enviroment: demo", "enviroment", "do you mean environment?"),
    Case("an unknown key that is like none", "fleet", "environment: demo", "environment: demo\nzzz: 1", "zzz", "'zzz' is not known here; one of"),
    Case("an unknown key inside a node", "fleet", "{name: etcd-1,", "{name: etcd-1, adress: x,", "adress", "do you mean address?"),
    Case("an unknown key inside a step", "small", "- stop: {grace: 5s}", "- stop: {grase: 5s}", "grase", "do you mean grace?"),
    Case("an unknown key inside a probe inside a list", "runbook", '        - {http: "http://{node.address}:{node.labels.client_port}/health", expect:', '        - {http: "http://{node.address}:{node.labels.client_port}/health", expct:', "expct", "do you mean expect?"),
    Case("a step there is not", "small", "- switch", "- swich", "swich", "do you mean switch?"),
    Case("a missing environment", "fleet", "environment: demo\n", "", "kind: Fleet", "environment: is missing"),
    Case("a missing node name", "fleet", "{name: etcd-1, labels", "{labels", "{labels", "nodes.0.name: is missing"),
    Case("a missing argv", "fleet", '  argv: ["{node.current}/bin/etcd", "{settings.flags}"]\n', "", "env: {GOMAXPROCS", "run.argv: is missing"),
    Case("a missing way to undo", "small", "- stage", "- stage\n  - run: {argv: [ls]}", "{argv: [ls]}", "undo: is missing; write none, impossible, snapshot"),
    Case("a missing range to come from", "release", 'upgrade_from: ">=3.4.0 <3.6.0"\n', "", "kind: Release", "upgrade_from: is missing; write the range"),
    # types
    Case("a list where a mapping is wanted", "fleet", 'env: {GOMAXPROCS: "1"}', "env: [GOMAXPROCS]", "[GOMAXPROCS]", "must be a mapping"),
    Case("a mapping where a list is wanted", "small", "- stage", "- run: {argv: {ls: -l}, undo: none}\n  - stage", "{ls: -l}", "must be a list"),
    Case("text where a list is wanted", "small", "- stage", "- run: {argv: ls -l, undo: none}\n  - stage", "ls -l", "must be a list"),
    Case("text where a mapping is wanted", "fleet", 'run:\n  argv: ["{node.current}/bin/etcd", "{settings.flags}"]\n  env: {GOMAXPROCS: "1"}', "run: etcd", "etcd\nsettings", "must be a mapping"),
    Case("text where a number is wanted", "release", "length: 1000", 'length: "1000"', '"1000"', "must be a whole number"),
    Case("half a byte", "release", "length: 1000", "length: 10.5", "10.5", "must be a whole number"),
    Case("no byte at all", "release", "length: 1000", "length: 0", "0, source", "must be at least 1"),
    Case("a negative length", "release", "length: 1000", "length: -5", "-5", "must be at least 1"),
    Case("text where true or false is wanted", "small", "- stage", '- stage: {decision: "true"}', '"true"', "must be true or false"),
    Case("a number where true or false is wanted", "small", "- stage", "- stage: {decision: 1}", "1}", "must be true or false"),
    Case("an environment variable that is a number", "fleet", 'GOMAXPROCS: "1"', "GOMAXPROCS: 1", "1}", 'must be text: write "1"'),
    Case("a digest that is too short", "release", '"0000000000000000000000000000000000000000000000000000000000000351"', "abc", "abc", "sha256, 64 lower-case hex digits"),
    Case("a digest in capitals", "release", '"0000000000000000000000000000000000000000000000000000000000000351"', "A" * 64, "A" * 64, "sha256, 64 lower-case hex digits"),
    Case("a name with capitals", "fleet", "name: etcd\n", "name: Etcd\n", "Etcd", "lower-case letters"),
    Case("a name with a slash", "fleet", "name: etcd\n", "name: a/b\n", "a/b", "lower-case letters"),
    Case("a node name with a line break", "fleet", "{name: etcd-1,", '{name: "a\\nb",', '"a\\nb"', "lower-case letters"),
    Case("a platform there is not", "release", "linux/amd64:", "Linux:", "{digest", "linux/amd64"),
    Case("NUL written as an escape", "fleet", "base: /srv/kedge", 'base: "a\\0b"', '"a\\0b"', "has a character that cannot stand here"),
    # durations and shares
    Case("a duration without a unit", "small", "grace: 5s", "grace: 5", "5}", "write 5s"),
    Case("a duration with a wrong unit", "small", "grace: 5s", "grace: 5 sec", "5 sec", "a number and a unit"),
    Case("a negative duration", "small", "grace: 5s", "grace: -5s", "-5s", "a number and a unit"),
    Case("a duration longer than a month", "small", "grace: 5s", "grace: 31d", "31d", "at most 30d"),
    Case("no grace at all", "small", "grace: 5s", "grace: 0s", "0s", "more than 0"),
    Case("a duration that is a list", "small", "grace: 5s", "grace: [5s]", "[5s]", "must be a duration"),
    Case("a canary of no nodes", "runbook", "canary: {nodes: 1,", "canary: {nodes: 0,", "0, bake", "must be at least 1 node"),
    Case("a canary of nought percent", "runbook", "canary: {nodes: 1,", "canary: {nodes: 0%,", "0%,", "more than 0%"),
    Case("more than everything", "runbook", "widen: [60%, 100%]", "widen: [60%, 101%]", "101%", "at most 100%"),
    Case("half a node", "runbook", "max_unavailable: 1", "max_unavailable: 0.5", "0.5", "a number of nodes (3) or a part (30%)"),
    Case("no waves at all", "runbook", "widen: [60%, 100%]", "widen: []", "[]", "is empty"),
    # fleets
    Case("an empty fleet", "fleet", FLEET[FLEET.index("nodes:") :], "nodes: []\n", "[]", "is empty; there is at least one"),
    Case("nodes that are nothing", "fleet", FLEET[FLEET.index("nodes:") :], "nodes: # none\n", " # none", "must be a list"),
    Case("two nodes of one name", "fleet", "{name: etcd-2,", "{name: etcd-1,", 'etcd-1, labels: {client_port: "23792"', "is the name of node 1 already"),
    Case("a fleet that needs itself", "fleet", "environment: demo", "environment: demo\ndependencies: [{fleet: etcd}]", "etcd}]", "does not depend on itself"),
    Case("a dependency named twice", "fleet", "environment: demo", "environment: demo\ndependencies: [{fleet: a}, {fleet: a}]", "a}]", "is named already"),
    Case("an override of a var there is not", "fleet", "{name: etcd-1,", "{name: etcd-1, overrides: {vars: {bse: x}},", "x}}", "the fleet has no var bse"),
    Case("a command line without a command", "fleet", 'argv: ["{node.current}/bin/etcd", "{settings.flags}"]', "argv: []", "[]", "is empty"),
    # releases
    Case("a range that is none", "release", 'upgrade_from: ">=3.4.0 <3.6.0"', 'upgrade_from: "newer than old"', '"newer', "is no range of versions"),
    Case("a release that cannot read what it writes", "release", 'writes: "3.5"', 'writes: "3.6"', '"3.6", begins', "is not among what it reads"),
    Case("a release without artifacts", "release", re.search(r"artifacts:\n.*\n", AFTER)[0], "artifacts: {}\n", "{}", "is empty"),  # type: ignore[index]
    Case("a format that begins at another time", "release", "begins: last-node", "begins: later", "later", "must be 'start', 'last-node' or 'finalize'"),
    Case("a setting renamed twice over", "release", "component: etcd", "component: etcd\nconfiguration: {renamed: {a: b, b: c}}", "b, b", "is renamed itself"),
    Case("a setting renamed and removed", "release", "component: etcd", "component: etcd\nconfiguration: {renamed: {a: b}, removed: [a]}", "a]}", "cannot be removed too"),
    Case("a protocol nobody speaks", "release", 'speaks: ["3.5"]', "speaks: []", "[]", "is empty"),
    # runbooks
    Case("a step with two verbs", "small", "- switch", "- {switch: {}, start: {}}\n  - switch", "{}}", "says switch and start at once"),
    Case("a step that is a list", "small", "- switch", "- [switch]", "[switch]", "must be a mapping"),
    Case("a runbook without a stop", "small", "  - stop: {grace: 5s}\n", "", "- stage", "has no stop step"),
    Case("a runbook that never looks", "small", '  - healthy: {http: "http://{node.address}/health"}\n', "", "- stage", "has no healthy step behind start"),
    Case("a second switch", "small", "- switch", "- switch\n  - switch", "switch\n  - configure", "a second switch"),
    Case("a start before the switch", "small", "  - switch\n  - configure\n  - start\n", "  - start\n  - switch\n  - configure\n", "start\n", "start stands before configure"),
    Case("a snapshot of a running daemon", "small", "- stage", "- stage\n  - snapshot", "snapshot", "a snapshot of a running daemon is none"),
    Case("a probe that says nothing", "small", "- stage", "- stage\n  - probe: {}", "{}\n", "a probe says nothing"),
    Case("a probe that says two things", "small", "- stage", "- stage\n  - probe: {http: http://x, service: {running: true}}", "{running", "says http and service at once"),
    Case("an empty list of conditions", "small", "- stage", "- stage\n  - probe: {all: []}", "[]", "is empty"),
    Case("an empty condition", "small", "- stage", "- stage\n  - probe: {http: http://x, expect: {a: {}}}", "{}}", "would pass everything"),
    Case("a matcher there is not", "small", "- stage", "- stage\n  - probe: {http: http://x, expect: {a: {gte: 3}}}", "3}}}", "'gte' is no matcher; one of eq, ne"),
    Case("a broken regular expression", "small", "- stage", '- stage\n  - probe: {http: http://x, expect: {a: {matches: "("}}}', '"("', "is no regular expression"),
    Case("expecting something of a port", "small", "- stage", '- stage\n  - probe: {tcp: "a:1", expect: {a: 1}}', "{a: 1}", "tcp gives no answer to look into"),
    Case("a port without a host", "small", "- stage", '- stage\n  - probe: {tcp: "9000"}', '"9000"', 'must be "host:port"'),
    Case("a fact nobody wrote", "small", "- stage", "- stage: {when: is_leader}", "is_leader", "no fact is named is_leader"),
    Case("a fact that names a fact", "small", "name: small", "name: small\nfacts: {a: {fact: b}, b: {http: http://x}}", "b}, b", "a fact does not name another"),
    Case("a signal nobody should send", "small", "grace: 5s", "grace: 5s, signal: KILL", "KILL", "must be 'TERM'"),
    Case("finalize steps that move a node", "small", "name: small", "name: small\nfinalize: {steps: [switch]}", "switch]", "finalize steps are probe, wait, run"),
    Case("a gate nobody wrote", "runbook", "gate: widen}", "gate: wide}", "wide}", "no gate is named wide; the runbook's gates are widen"),
    Case("a gate before nothing", "runbook", ", gate: widen}", "}", "approvals: {threshold: 2", "stands before nothing"),
    Case("a point of no return with a gate nobody wrote", "runbook", "failure_budget:", "commit: {before: canary, gate: nobody, lost: x}\nfailure_budget:", "nobody, lost", "no gate is named nobody; the runbook's gates are widen"),
    Case("a transport there is not", "fleet", "transport: local", "transport: ssh", "ssh", "no transport is named ssh; there are: local, sim"),
    Case("a service manager there is not", "fleet", "service: process", "service: systemd", "systemd", "no service manager is named systemd; there are: process"),
    Case("two nodes on one port", "fleet", 'peer_port: "23802"', 'peer_port: "23791"', '"23791", zone: b', "23791 on 127.0.0.1 is a port of etcd-1 already"),
    Case("a gate that nobody has to sign", "runbook", "threshold: 2", "threshold: 0", "0, roles", "must be at least 1"),
    Case("a gate that no role may sign", "runbook", "roles: [sre, db-owner]", "roles: []", "[]", "is empty"),
    Case("a commit that does not say what is lost", "small", "name: small", "name: small\ncommit: {before: finalize, gate: g}", "{before", "lost: is missing; write in words"),
    Case("a way back there is not", "runbook", "after_commit: forbidden", "after_commit: hope", "hope", "must be 'forbidden'"),
    Case("a failure budget below nothing", "runbook", "failure_budget: 0", "failure_budget: -1", "-1", "must be at least 0"),
    # policies
    Case("a key that is no key", "policy", f"{BOB}", "ssh-ed25519 AAAA", '"ssh-ed25519 AAAA ', "not usable"),
    Case("a key of a kind nobody should use", "policy", f"{BOB}", "ssh-dss AAAAB3NzaC1kc3M=", '"ssh-dss', "a key line begins with one of"),
    Case("a person twice", "policy", "{name: bob,", "{name: alice,", "alice, roles: [sre],", "is already person 1"),
    Case("a role nobody has", "policy", "start: [operator]", "start: [captain]", "captain", "nobody has the role captain"),
    Case("a verb there is not", "policy", "start: [operator]", "begin: [operator]", "", "must be 'start'"),
    Case("nobody at all", "policy", POLICY[POLICY.index("people:") : POLICY.index("may:")], "people: []\n", "[]", "is empty"),
    Case("a lifetime without a unit", "policy", "max_lifetime: 1h", "max_lifetime: 3600", "3600", "write 3600s"),
]  # fmt: skip


def test_there_are_at_least_a_hundred() -> None:
    assert len(CASES) >= 100
    assert len({case.sentence for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.sentence for case in CASES])
def test_a_malformed_document_is_told_with_place_and_sentence(case: Case) -> None:
    text = case.broken()
    began = time.process_time()
    with pytest.raises(DocumentError) as caught:
        parse_any(text.encode(), "doc.yaml")
    assert time.process_time() - began < 2
    fitting = [problem for problem in caught.value.problems if case.says in problem]
    assert fitting, f"none of {caught.value.problems} says {case.says!r}"
    for problem in caught.value.problems:
        assert re.match(r"^doc\.yaml:\d+:\d+: \S", problem)
        assert "Traceback" not in problem
        assert "pydantic" not in problem
    if case.at:
        line, column = place(text, case.at)
        assert any(problem.startswith(f"doc.yaml:{line}:{column}: ") for problem in fitting), (
            f"wanted {line}:{column}, got {fitting}"
        )


def test_every_problem_of_a_document_is_told_in_one_go() -> None:
    text = FLEET.replace("environment: demo", "enviroment: demo\nenviroment: x")
    text = replaced(text, "{name: etcd-2,", "{name: Etcd2,")
    text = replaced(text, 'client_port: "23793"', "client_port: 23793")
    text = replaced(text, "base: /srv/kedge", "base: yes")
    with pytest.raises(DocumentError) as caught:
        parse_any(text.encode(), "fleet.yaml")
    said = "\n".join(caught.value.problems)
    assert [
        words in said
        for words in ("a second time", "do you mean environment", "lower-case", '"23793"', '"yes"')
    ] == [True] * 5
    assert list(caught.value.problems) == sorted(
        caught.value.problems, key=lambda problem: tuple(map(int, problem.split(":")[1:3]))
    )


def test_the_same_key_under_another_name_is_found() -> None:
    text = re.sub(
        r'(name: carol, roles: \[db-owner\], keys: \[")[^"]*', rf"\g<1>{BOB} carol", POLICY
    )
    with pytest.raises(DocumentError) as caught:
        parse_any(text.encode(), "policy.yaml")
    assert "people.2.keys.0: is the same key as one of bob" in caught.value.problems[0]


def test_no_document_has_more_problems_than_anyone_reads() -> None:
    text = "kind: Fleet\nnodes:\n" + "- {name: A}\n" * 5000
    with pytest.raises(DocumentError) as caught:
        parse_any(text.encode(), "fleet.yaml")
    assert len(caught.value.problems) == 201
    assert "there are more problems than these 200" in caught.value.problems[-1]


def test_text_that_is_not_utf8_is_told_with_its_place() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_any(b"kind: Fleet\nname: \xff\n", "fleet.yaml")
    assert caught.value.problems == ("fleet.yaml:2:7: is not UTF-8 (byte 0xff); save it as UTF-8",)


def test_utf16_is_told_as_what_it_is() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_any("kind: Fleet\n".encode("utf-16"), "fleet.yaml")
    assert caught.value.problems == ("fleet.yaml:1:1: is UTF-16; save it as UTF-8",)


@pytest.mark.parametrize("digest", ["0b" + "f9" * 31, "0b" + "2" * 62, "0a" * 32, "1e" * 32])
def test_a_digest_needs_no_quotes_whatever_it_begins_with(digest: str) -> None:
    text = POLICY + f"version: 2\nprevious: {digest}\n"
    policy = parse_any(text.encode(), "policy.yaml").value
    assert isinstance(policy, Policy)
    assert policy.previous == digest
