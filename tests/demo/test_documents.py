"""The show's documents are sound, and the three migrations follow from them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from demo.archives import Archive
from demo.cluster import Member
from demo.documents import (
    COMPONENT,
    GATE,
    HARDENED,
    NEW,
    OLD,
    RUNBOOK,
    Paths,
    free_members,
    release,
    write_documents,
)
from demo.keys import OPERATOR, OTHER_KEEPER, PEOPLE
from demo.policies import POLICY, policy_text
from desk.documents import compiled, lint, read_documents
from kedge.drivers.checkpoints import ensure_key
from kedge.model.plan import Plan
from kedge.model.trusted import ReleaseName

REVIEWED = Path(__file__).parents[2] / "runbooks" / RUNBOOK.name
ROOT = "f" * 64


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / 'a folder with {braces} and "quotes"')
    members = [Member(f"etcd-{n}", 21000 + 2 * n, 21001 + 2 * n) for n in range(5)]
    archives = {
        version: Archive(paths.archives / f"etcd-{version}.tar", f"{number:064x}", 1000 + number)
        for number, version in enumerate((OLD, NEW, HARDENED))
    }
    write_documents(paths, members, archives)
    keys = {one.name: (paths.keys / f"{one.name}.pub").read_text().strip() for one in PEOPLE}
    witness = ensure_key(paths.home / "trust" / "checkpoint_key").public.line
    (paths.folder / POLICY).write_text(policy_text(keys, ROOT, witness))
    return paths


def plan_of(paths: Paths, version: str, before: str | None = None) -> Plan:
    """The plan, with the releases as the repository would have them."""
    folder = paths.folder

    def repository(name: ReleaseName, root: str | None = None) -> str:
        assert (name.component, root) == (COMPONENT, ROOT)
        return (folder / paths.release_file(name.version)).read_text()

    return compiled(
        read_documents(
            folder / "fleet.yaml",
            Path(release(version)),
            folder / RUNBOOK.name,
            folder / POLICY,
            before_path=Path(release(before)) if before else None,
            repository=repository,
        )
    )


def test_every_document_is_sound(paths: Paths) -> None:
    assert lint(sorted(paths.folder.rglob("*.yaml"))) == ()


@pytest.mark.parametrize(
    ("version", "before"), [(NEW, None), (HARDENED, NEW), (OLD, NEW)], ids=["1", "2", "3"]
)
def test_each_act_has_a_plan(paths: Paths, version: str, before: str | None) -> None:
    plan = plan_of(paths, version, before)
    assert [len(wave.nodes) for wave in plan.waves] == [1, 2, 2]
    assert [wave.gate for wave in plan.waves] == [None, GATE, None]
    assert plan.gate(GATE).threshold == 2
    assert plan.on_failure == "rollback"
    assert plan.commit is None
    assert plan.before.version == (before or OLD)


def test_a_folder_of_any_name_is_the_folder(paths: Paths) -> None:
    plan = plan_of(paths, NEW)
    assert plan.nodes[0].root == str(paths.root("etcd-0"))


def test_only_the_hardened_release_has_the_setting_that_breaks_it(paths: Paths) -> None:
    bad = plan_of(paths, HARDENED, NEW)
    assert bad.after.configuration.settings["host-whitelist"] == "etcd.internal"
    assert "host-whitelist" not in bad.before.configuration.settings
    assert bad.after.reports == NEW


def test_private_keys_are_their_owners_alone(paths: Paths) -> None:
    assert sorted(path.name for path in paths.keys.iterdir()) == sorted(
        name for person in (*PEOPLE, OTHER_KEEPER) for name in (person.name, f"{person.name}.pub")
    )
    for person in (*PEOPLE, OTHER_KEEPER):
        assert stat.S_IMODE((paths.keys / person.name).stat().st_mode) == 0o600
    policy = (paths.folder / POLICY).read_text()
    assert "PRIVATE" not in policy
    assert (paths.keys / f"{OPERATOR.name}.pub").read_text().strip() in policy


def test_keys_are_made_anew_each_time(paths: Paths, tmp_path: Path) -> None:
    other = Paths(tmp_path / "other")
    archives = {OLD: Archive(other.archives / "a.tar", "0" * 64, 1)}
    write_documents(other, [Member("etcd-1", 21000, 21001)], archives)
    name = f"{OPERATOR.name}.pub"
    assert (paths.keys / name).read_text() != (other.keys / name).read_text()


def test_the_runbook_is_the_reviewed_one_but_for_its_times() -> None:
    shown, reviewed = (yaml.safe_load(path.read_text()) for path in (RUNBOOK, REVIEWED))
    assert [_verb(step) for step in shown["node"]] == [_verb(step) for step in reviewed["node"]]
    for key in ("name", "component", "on_failure", "failure_budget", "rollback"):
        assert shown[key] == reviewed[key], key
    for key in ("last", "widen", "max_unavailable"):
        assert shown["waves"][key] == reviewed["waves"][key], key
    gates = [document["gates"][GATE]["approvals"] for document in (shown, reviewed)]
    assert gates[0] == gates[1]


def _verb(step: object) -> str:
    return step if isinstance(step, str) else next(iter(dict(step)))  # type: ignore[call-overload]


def test_members_get_ports_of_their_own() -> None:
    members = free_members(5)
    ports = [port for member in members for port in (member.client_port, member.peer_port)]
    assert len(set(ports)) == 10
    assert [member.name for member in members] == [f"etcd-{number}" for number in range(1, 6)]
