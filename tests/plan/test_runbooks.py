"""The runbooks that come with kedge: they lint, they compile, and they say what procedures.md-like facts ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from desk.documents import lint
from kedge.model.plan import Plan
from kedge.plan.compile import ConflictsError
from kedge.plan.explain import explain, lines
from kedge.plan.render import operations, probes
from tests.plan.samples import POLICY, RUNBOOKS, fleet, plan, release, replaced

NAMES = ["etcd-patch", "etcd-minor", "geth", "cometbft", "nats", "cockroach", "stateless"]
LABELS = {
    name: [str(port) for port in range(first, first + 12)]
    for first, name in zip(
        range(7000, 7500, 100),
        ("client_port", "http_port", "rpc_port", "sql_port", "port"),
        strict=True,
    )
} | {"zone": ["a", "b", "c"]}
PEOPLE = (
    replaced(POLICY, "roles: [db-owner]", "roles: [db-owner, chain-owner]")
    .replace("roles: [sre]", "roles: [sre, chain-owner]")
    .replace("approve: [sre, db-owner]", "approve: [sre, db-owner, chain-owner]")
)
FORMATS = {
    "etcd-minor": (
        'data_format: {reads: ["1"], writes: "1"}',
        'data_format: {reads: ["1", "2"], writes: "2", begins: last-node}',
    ),
    "geth": (
        'data_format: {reads: ["8"], writes: "8"}',
        'data_format: {reads: ["8", "9"], writes: "9"}',
    ),
    "cockroach": (
        'data_format: {reads: ["23"], writes: "23"}',
        'data_format: {reads: ["23", "24"], writes: "24", begins: finalize}',
    ),
}


def compiled(name: str, runbook: str = "") -> Plan:
    text = runbook or (RUNBOOKS / f"{name}.yaml").read_text()
    component = name.split("-", maxsplit=1)[0]
    old, new = FORMATS.get(name, ("", ""))
    return plan(
        fleet=fleet(6, LABELS),
        before=release(component, "1.0.0", *([old] if old else [])),
        after=release(component, "1.1.0", *([new] if new else [])),
        runbook=text,
        policy=PEOPLE,
    )


def test_the_folder_has_exactly_these_runbooks_and_its_readme_explains_each() -> None:
    assert sorted(path.stem for path in RUNBOOKS.glob("*.yaml")) == sorted(NAMES)
    readme = (RUNBOOKS / "README.md").read_text()
    assert [name for name in NAMES if f"{name}.yaml" not in readme] == []


def test_every_runbook_lints_clean() -> None:
    assert lint(sorted(RUNBOOKS.glob("*.yaml"))) == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_runbook_makes_a_plan_whose_operations_have_no_placeholder_left(name: str) -> None:
    made = compiled(name)
    assert "\n".join(lines(explain(made)))
    for program in made.programs:
        for leg in range(len(program.legs)):
            for node in range(len(made.nodes)):
                told = operations(made, node, program.name, leg, run_id="upgrade/shop/1", epoch=1)
                assert "{node." not in str(told)
                assert "{vars." not in str(told)
    assert "{" + "node" not in str(
        [probes(made, 0, "bake", wave=wave.index) for wave in made.waves]
    )


def test_etcd_minor_has_its_point_of_no_return_before_the_last_member() -> None:
    made = compiled("etcd-minor")
    assert made.commit is not None
    assert made.commit.wave is not None
    last = made.waves[made.commit.wave]
    assert (last.name, len(last.nodes), last.gate) == ("last-node", 1, "ship-it")
    assert [(way.from_wave, way.kind) for way in made.way_back] == [
        (0, "none"), (1, "switch-back"), (len(made.waves), "forbidden"),
    ]  # fmt: skip


def test_etcd_minor_without_its_commit_is_refused_because_the_format_rises_with_the_last_node() -> (
    None
):
    text = (RUNBOOKS / "etcd-minor.yaml").read_text()
    head, _, tail = text.partition("commit:")
    without = (
        head.replace("last_node: {", "last_node: {gate: ship-it, ")
        + tail[tail.index("failure_budget") :]
    )
    with pytest.raises(ConflictsError) as caught:
        compiled("etcd-minor", runbook=without)
    assert (
        "runbook: commit: is missing: 1.1.0 writes data format 2, which 1.0.0 cannot read, once the last node"
        in str(caught.value)
    )


def test_geth_crosses_the_line_with_its_first_node_and_goes_back_by_its_copies() -> None:
    made = compiled("geth")
    assert made.commit is not None
    assert made.commit.wave == 0
    assert [(way.from_wave, way.kind, way.gate) for way in made.way_back] == [
        (0, "none", None), (1, "restore", "data-loss"),
    ]  # fmt: skip
    forward = {step.name: step.effect for leg in made.program("forward").legs for step in leg.steps}
    assert forward["start"] == "restorable"
    told = operations(made, 0, "restore", 0, run_id="rollback/shop/2", epoch=4, snapshot_epoch=3)
    taken = operations(made, 0, "forward", 0, run_id="upgrade/shop/1", epoch=3)
    ids = [op["id"] for op in (*told, *taken) if op["op"] in {"restore", "snapshot"}]
    assert ids == ["e3-snapshot", "e3-snapshot"]


def test_on_geths_way_back_nothing_compares_with_what_another_run_captured() -> None:
    made = compiled("geth")
    assert "captured" not in str(
        operations(made, 0, "restore", 0, run_id="rollback/shop/2", epoch=4)
    )
    assert "captured" in str(operations(made, 0, "forward", 0, run_id="upgrade/shop/1", epoch=3))


def test_cometbft_keeps_the_newest_signing_state_when_it_restores() -> None:
    made = compiled("cometbft")
    told = operations(made, 0, "restore", 0, run_id="rollback/shop/2", epoch=4, snapshot_epoch=3)
    restore = next(op for op in told if op["op"] == "restore")
    assert restore["keep"] == ["data/priv_validator_state.json"]


def test_cockroach_finalizes_on_one_node_behind_its_gate() -> None:
    made = compiled("cockroach")
    assert made.commit is not None
    assert (made.commit.wave, made.commit.gate, made.finalize_node) == (None, "finalize", 0)
    effects = {
        step.name: step.effect for leg in made.program("finalize").legs for step in leg.steps
    }
    assert effects["set-version"] == "irreversible"
    assert made.way_back[-1].from_wave == len(made.waves) + 1


def test_cockroach_moves_one_zone_at_a_time() -> None:
    made = compiled("cockroach")
    for wave in made.waves:
        for batch in wave.batches:
            assert len({made.nodes[node].labels["zone"] for node in batch}) == 1


def test_stateless_drains_on_the_way_back_too_and_only_there_undoes_its_drain() -> None:
    made = compiled("stateless")
    back = [step.name for leg in made.program("back").legs for step in leg.steps]
    assert back == [
        "stage", "drain", "wait", "check", "stop", "switch", "configure", "start", "healthy", "ready",
        "undo-drain",
    ]  # fmt: skip


def test_what_the_readme_names_is_there() -> None:
    assert Path(RUNBOOKS / "README.md").stat().st_size > 1000
