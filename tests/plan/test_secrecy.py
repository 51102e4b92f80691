"""Where secrets may stand in documents, and what of them a plan and a host are told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from kedge.host import request
from kedge.model.base import canonical
from kedge.model.errors import DocumentError
from kedge.model.fleet import Fleet
from kedge.model.release import Release, ReleaseArtifact
from kedge.plan.compile import ConflictsError
from kedge.plan.install import Installation
from kedge.plan.render import operations, secrets
from tests.plan.samples import AFTER, BEFORE, FLEET, RUNBOOK, plan, read, replaced

DECLARED = """secrets:
  db: {file: "/etc/kedge/{node.name}.password"}
  token: {env: KEDGE_SECRET_TOKEN}
  vault: {command: [vault, kv, get, "-field=x", "secret/{node.labels.zone}"], timeout: 3s}
nodes:
"""
SECRET = replaced(FLEET, "nodes:\n", DECLARED)
USED = replaced(
    replaced(SECRET, 'env: {GOMAXPROCS: "1"}', 'env: {TOKEN: "a {secret.token} b"}'),
    "settings:\n",
    'files:\n  app.conf: "password={settings.password}\\nvault={secret.vault}\\n"\nsettings:\n',
)
HELD = USED.replace('argv: ["{node.current}/bin/etcd", "{settings.flags}"]', 'argv: ["{node.current}/bin/etcd"]').replace(
    "settings:\n", 'settings:\n  password: "{secret.db}"\n'
)  # fmt: skip


def configured(fleet: str = HELD, node: int = 0) -> dict[str, Any]:
    made = operations(plan(fleet=fleet), node, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    found: dict[str, Any] = next(op for op in made if op["op"] == "configure")
    return found


def test_a_host_is_told_where_secrets_are_and_where_they_go() -> None:
    op = configured()
    assert op["files"]["app.conf"] == [
        "password=", {"secret": "db"}, "\nvault=", {"secret": "vault"}, "\n",
    ]  # fmt: skip
    assert op["service"]["env"] == {"TOKEN": ["a ", {"secret": "token"}, " b"]}
    assert op["secrets"] == {
        "db": {"file": "/etc/kedge/etcd-1.password"},
        "token": {"env": "KEDGE_SECRET_TOKEN"},
        "vault": {"command": ["vault", "kv", "get", "-field=x", "secret/a"], "timeout": 3.0},
    }
    request.operation(op, "configure")


def test_what_a_new_configuration_needs_is_looked_for_when_its_release_is_staged() -> None:
    made = plan(fleet=HELD)
    ops = operations(made, 1, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    stage = next(op for op in ops if op["op"] == "stage")
    assert stage["secrets"] == configured(node=1)["secrets"] == secrets(made, 1)
    assert [op["op"] for op in ops].index("stage") < [op["op"] for op in ops].index("stop")
    first = Installation(read(HELD, Fleet), read(BEFORE, Release)).operations(0, key="install")
    assert first[0]["secrets"] == secrets(made, 0)


def test_a_fleet_without_secrets_tells_hosts_nothing_of_them() -> None:
    assert "secrets" not in configured(FLEET)
    assert secrets(plan(), 0) == {}


def test_only_secrets_that_are_used_are_asked_for() -> None:
    fleet = replaced(HELD, 'env: {TOKEN: "a {secret.token} b"}', "env: {}")
    assert set(configured(fleet)["secrets"]) == {"db", "vault"}


def test_the_generation_is_over_where_secrets_are() -> None:
    moved = replaced(HELD, "KEDGE_SECRET_TOKEN", "KEDGE_SECRET_OTHER")
    assert configured(moved)["generation"] != configured()["generation"]
    assert configured()["generation"] == configured()["generation"]


def test_a_doubled_brace_is_text_and_no_secret() -> None:
    fleet = replaced(HELD, "vault={secret.vault}", "vault={{secret.vault}}")
    assert configured(fleet)["files"]["app.conf"][-1] == "\nvault={secret.vault}\n"


def test_a_nodes_own_setting_may_be_a_secret() -> None:
    fleet = replaced(
        HELD,
        'etcd-1, labels: {client_port: "23791", peer_port: "23801", zone: a}}',
        'etcd-1, labels: {client_port: "23791", peer_port: "23801", zone: a}, overrides: {settings: {password: "{secret.token}"}}}',
    )
    assert configured(fleet)["files"]["app.conf"][1] == {"secret": "token"}
    assert configured(fleet, 1)["files"]["app.conf"][1] == {"secret": "db"}


def test_a_renamed_setting_keeps_its_secret_and_its_rules() -> None:
    after = AFTER + "configuration: {renamed: {password: secret-word}}\n"
    fleet = replaced(HELD, "{settings.password}", "{settings.name}")
    assert plan(fleet=fleet, after=after).after.configuration.secrets
    argv = 'argv: ["{node.current}/bin/etcd"]'
    for shown in ('"{settings.flags}"', '"--x={settings.secret-word}"'):
        broken = replaced(fleet, argv, f'argv: ["{{node.current}}/bin/etcd", {shown}]')
        with pytest.raises(ConflictsError, match="everybody on the host"):
            plan(fleet=broken, after=after)


@dataclass(frozen=True)
class Case:
    sentence: str
    old: str
    new: str
    at: str
    says: str


ARGV = 'argv: ["{node.current}/bin/etcd"]'
REFUSED = [
    Case("a secret on the command line", ARGV, 'argv: ["{node.current}/bin/etcd", "--p={secret.db}"]', "fleet: run.argv.1", "everybody on the host"),
    Case("a setting with a secret on the command line", ARGV, 'argv: ["{node.current}/bin/etcd", "{settings.password}"]', "fleet: run.argv.1", "{settings.password} holds a secret"),
    Case("all settings as flags, one of them a secret", ARGV, 'argv: ["{node.current}/bin/etcd", "{settings.flags}"]', "fleet: run.argv.1", "the setting password holds a secret"),
    Case("a secret that the fleet does not have", "vault={secret.vault}", "vault={secret.valut}", "fleet: files.app.conf", "there are: {secret.db}, {secret.token}, {secret.vault}"),
    Case("a secret in a node's root", 'root: "{vars.base}/{node.name}"', 'root: "{vars.base}/{secret.db}"', "fleet: root", "not known yet"),
    Case("a secret in a join", '{join: "{node.name}=', '{join: "{secret.db}=', "fleet: vars.cluster.join", "not known yet"),
    Case("a secret in a var", "base: /srv/kedge", 'base: "/srv/{secret.db}"', "fleet: vars.base", "not filled in inside a var"),
    Case("a secret that is where another one says", "/etc/kedge/{node.name}.password", "/etc/kedge/{secret.token}", "fleet: secrets.db.file", "not known yet"),
    Case("a secret that moves with every run", "/etc/kedge/{node.name}.password", "/etc/kedge/{run.id}", "fleet: secrets.db.file", "not known yet"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=[case.sentence for case in REFUSED])
def test_a_secret_that_would_be_seen_or_cannot_be_found_is_a_mistake_with_its_place(
    case: Case,
) -> None:
    with pytest.raises(ConflictsError) as caught:
        plan(fleet=replaced(HELD, case.old, case.new))
    found = [f"{document}: {'.'.join(map(str, path))}" for document, path, _ in caught.value.conflicts]  # fmt: skip
    assert case.at in found, caught.value.conflicts
    assert case.says in str(caught.value)


def test_a_runbook_gets_no_secret_also_not_by_way_of_a_setting() -> None:
    for shown in ("{secret.db}", "{settings.password}"):
        book = RUNBOOK.replace("  - configure\n", f"  - run: {{argv: [echo, '{shown}'], undo: none}}\n  - configure\n", 1)  # fmt: skip
        with pytest.raises(ConflictsError, match="journals and histories"):
            plan(fleet=HELD, runbook=book)


@pytest.mark.parametrize("text", ["{secret.db}", "x {settings.password}"])
def test_a_release_asks_for_no_secret(text: str) -> None:
    for more in (f"configuration: {{defaults: {{extra: '{text}'}}}}\n", f"flags: {{extra: '{text}'}}\n"):  # fmt: skip
        with pytest.raises(ConflictsError, match="no release asks for one"):
            plan(fleet=HELD, after=AFTER + more)


SOURCES = [
    ("{}", "is one of file, env or command; here is nothing"),
    ("{file: /x, env: X}", "here is file and env"),
    ("{file: secrets/db}", "must be an absolute path"),
    ("{env: 'A B'}", "must be the name of an environment variable"),
    ("{env: KEDGE_CODEC_KEYS}", "name it KEDGE_SECRET_"),
    ("{env: TEMPORAL_API_KEY}", "name it KEDGE_SECRET_"),
    ("{env: SSH_AUTH_SOCK}", "name it KEDGE_SECRET_"),
    ("{command: []}", "is empty"),
    ("{command: cat /x}", "must be a list"),
    ("{command: [x], timeout: 16s}", "at most 15"),
    ("{file: /x, timeout: 3s}", "is for a command"),
    ("{value: hunter2}", "'value' is not known here"),
]


@pytest.mark.parametrize(("source", "says"), SOURCES)
def test_a_source_that_is_none_is_refused(source: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(replaced(FLEET, "nodes:\n", f"secrets: {{db: {source}}}\nnodes:\n"), Fleet)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_plan_has_places_and_no_values() -> None:
    text = json.dumps(json.loads(canonical(plan(fleet=HELD))))
    assert "/etc/kedge/{node.name}.password" in text
    assert "\\u0000" not in text


VALUE = "hunter2-of-the-crown"


@pytest.mark.parametrize(
    "declared",
    [
        f'db: "{VALUE}"',
        f'db: ["{VALUE}"]',
        f'db: {{value: "{VALUE}"}}',
        f'db: {{env: "{VALUE}"}}',
        f'db: {{file: "{VALUE}"}}',
        f'db: {{command: "echo {VALUE}"}}',
        f'db: {{file: "/x", env: "{VALUE}"}}',
        f'db: {{command: [x], timeout: "{VALUE}"}}',
    ],
)
def test_who_writes_a_value_where_its_place_belongs_does_not_read_it_in_the_error(
    declared: str,
) -> None:
    with pytest.raises(DocumentError) as caught:
        plan(fleet=replaced(FLEET, "nodes:\n", f"secrets:\n  {declared}\nnodes:\n"))
    assert "secrets.db" in str(caught.value)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "__class__", "a.b", "", "db}", "x" * 65, "ä"])
def test_a_secrets_name_is_a_plain_word(name: str) -> None:
    declared = f"secrets:\n  {json.dumps(name)}: {{file: /x}}\nnodes:\n"
    with pytest.raises(DocumentError):
        plan(fleet=replaced(FLEET, "nodes:\n", declared))


@pytest.mark.parametrize("userinfo", [f"me:{VALUE}", f"me:a/{VALUE}", VALUE])
def test_a_release_whose_archive_is_at_an_address_with_a_password_is_refused_without_repeating_it(
    userinfo: str,
) -> None:
    document: dict[str, Any] = {"digest": "0" * 64, "length": 1, "source": f"https://{userinfo}@archives/x.tar"}  # fmt: skip
    with pytest.raises(ValidationError) as caught:
        ReleaseArtifact.model_validate(document)
    [mistake] = caught.value.errors(include_input=False)
    assert "without a name or password" in mistake["msg"]
    assert VALUE not in mistake["msg"]
    for source in ("hello@1.0.0.tar", "https://archives/x.tar", "/srv/a@b.tar"):
        assert ReleaseArtifact.model_validate({**document, "source": source}).source == source
