"""What documents refer to: found on the one document where it says enough, and on those that are looked at together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from desk.desk import Desk
from desk.documents import lint
from kedge.model.errors import DocumentError
from tests.cli import scene as scenes
from tests.plan.samples import FLEET, replaced


def changed(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    path.write_text(replaced(path.read_text(), old, new))


def linted(folder: Path, *names: str) -> list[str]:
    """What is wrong, without the folder."""
    return [one.removeprefix(f"{folder}/") for one in lint([folder / name for name in names])]


def said(folder: Path, *names: str) -> str:
    (one,) = linted(folder, *names)
    return one


def test_a_runbook_by_itself_knows_its_own_variables_waves_and_placeholders(folder: Path) -> None:
    changed(
        folder, "runbook.yaml", "node:\n", 'node:\n  - probe: {tcp: "{node.adress}:{vars.prot}"}\n'
    )
    found = linted(folder, "runbook.yaml")
    assert [one.split(": ")[1] for one in found] == [
        "node.0.probe.tcp.host",
        "node.0.probe.tcp.port",
    ]
    assert "{node.adress} is nothing that can be filled in; do you mean {node.address}?" in found[0]
    assert "{vars.prot} has no default in this runbook (its vars are bin)" in found[1]
    assert "lint the Fleet that has it beside" in found[1]


def test_a_variable_of_the_fleet_beside_is_there(folder: Path) -> None:
    changed(folder, "runbook.yaml", "node:\n", 'node:\n  - probe: {tcp: "h:{vars.base}"}\n')
    assert linted(folder, "runbook.yaml", "etcd.yaml") == []
    assert "has no default in this runbook" in said(folder, "runbook.yaml")
    changed(folder, "runbook.yaml", "{vars.base}", "{vars.bass}")
    assert "neither this runbook nor the fleet etcd has a var bass" in said(folder, "runbook.yaml", "etcd.yaml")  # fmt: skip


@pytest.mark.parametrize("before", ["wave-9", "canarie"])
def test_the_point_of_no_return_lies_before_a_wave_that_is_there(folder: Path, before: str) -> None:
    commit = f"commit: {{before: {before}, gate: widen, lost: all}}\n"
    text = (folder / "runbook.yaml").read_text()
    gate = next(line.split(":")[0].strip() for line in text.partition("gates:\n")[2].splitlines())
    (folder / "runbook.yaml").write_text(text + commit.replace("widen", gate))
    assert f"commit.before: no wave is named {before}; this runbook's are canary, wave-1" in said(folder, "runbook.yaml")  # fmt: skip


def test_a_value_that_nothing_captured_is_found_on_the_runbook(folder: Path) -> None:
    probe = (
        '  - probe: {http: "http://{node.address}/", expect: {height: {ge: {captured: height}}}}\n'
    )
    changed(folder, "runbook.yaml", "node:\n", f"node:\n{probe}")
    assert "compares with height, which nothing captured before" in said(folder, "runbook.yaml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("waves:\n", "waves:\n  domain: rack\n", "waves.domain: node etcd-1 has no label rack"),
        ("waves:\n", "waves:\n  order: [{role: leader}]\n", "waves.order: node etcd-1 (role=(none)) is in none of the groups"),
        ("node:\n", 'node:\n  - probe: {tcp: "h:{node.labels.prot}"}\n', "node etcd-1 of the fleet etcd has no label prot"),
    ],
)  # fmt: skip
def test_labels_are_those_of_the_fleet_beside(folder: Path, old: str, new: str, says: str) -> None:
    changed(folder, "runbook.yaml", old, new)
    assert linted(folder, "runbook.yaml") == []
    assert says in linted(folder, "runbook.yaml", "etcd.yaml")[0]
    # One of another component is not this runbook's business.
    changed(folder, "etcd-3.5.0.yaml", "component: etcd", "component: other")
    assert linted(folder, "runbook.yaml", "etcd.yaml") == []


def test_roles_are_those_of_the_policy_beside(folder: Path) -> None:
    changed(folder, "runbook.yaml", "roles: [sre", "roles: [sra")
    assert linted(folder, "runbook.yaml") == []
    one = linted(folder, "runbook.yaml", "policy.yaml")[0]
    assert "nobody in the policy" in one
    assert "has the role sra; its roles are db-owner, on-call, operator, sre" in one


def test_nodes_of_one_machine_have_roots_and_ports_of_their_own(folder: Path) -> None:
    # Addresses are names of one machine where the transport is local.
    changed(
        folder,
        "etcd.yaml",
        "{name: etcd-2,",
        "{name: etcd-2, address: 127.0.0.2, root: /srv/kedge/etcd-1,",
    )
    assert "nodes.1.root: etcd-2 and etcd-1 have the same root /srv/kedge/etcd-1 on this machine" in said(folder, "etcd.yaml")  # fmt: skip


def test_ports_of_run_are_looked_at_as_labels_are(folder: Path) -> None:
    changed(folder, "etcd.yaml", "  env: {GOMAXPROCS", '  ports: ["7000"]\n  env: {GOMAXPROCS')
    found = linted(folder, "etcd.yaml")
    assert "run.ports.0: etcd-2 and etcd-1 would listen on the same port 7000" in found[0]
    changed(folder, "etcd.yaml", '"7000"', '"{node.labels.client_port}"')
    assert linted(folder, "etcd.yaml") == []


def test_two_fleets_do_not_share_a_root_or_a_port(folder: Path) -> None:
    other = replaced(FLEET, "name: etcd\n", "name: second\n")
    (folder / "second.yaml").write_text(other)
    found = linted(folder, "etcd.yaml", "second.yaml")
    assert "second.yaml" in found[0]
    assert any("root: /srv/kedge/etcd-1 on this machine is a root of the fleet etcd already" in one for one in found)  # fmt: skip
    assert any("127.0.0.1:23791 is a port of the fleet etcd already" in one for one in found)


async def test_a_fleet_that_shares_a_root_with_a_recorded_one_is_refused_before_it_is_recorded(
    tmp_path: Path,
) -> None:
    desk = Desk.open(tmp_path / "home")
    first = scenes.build(tmp_path / "first", name="first", nodes=2)
    assert await desk.make_known(first.fleet, first.policy) == "first"
    assert await desk.make_known(first.fleet, first.policy) == "first", "itself is no other"
    second = scenes.build(tmp_path / "second", name="second", nodes=2)
    second.fleet.write_text(second.fleet.read_text().replace("/srv/second/", "/srv/first//"))
    with pytest.raises(DocumentError) as caught:
        await desk.make_known(second.fleet, second.policy)
    assert "root: /srv/first/sim-1 on 127.0.0.1 is a root of the fleet first already" in str(caught.value)  # fmt: skip
    assert caught.value.next_step is not None
    assert "roots and ports of its own" in caught.value.next_step
    assert [one.fleet for one in await desk.fleets.every()] == ["first"]
    assert await desk.policy("second") is None, "nothing is pinned either"
    await asyncio.to_thread((tmp_path / "home/fleets/first.json").unlink)
    assert await desk.make_known(second.fleet, second.policy) == "second"
