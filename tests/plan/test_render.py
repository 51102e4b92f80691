"""From a plan to host operations: placeholders, keys, configuration, first bring-up."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.model.base import Json
from kedge.model.fleet import Fleet
from kedge.model.release import Release
from kedge.plan.compile import ConflictsError
from kedge.plan.install import Installation, installation
from kedge.plan.render import operations, probes
from kedge.plan.template import UnknownPlaceholderError, compiled, placeholders, render
from tests.plan.samples import AFTER, BEFORE, FLEET, RUNBOOK, plan, read, replaced

TEXTS = [
    ("a placeholder", "{node.name}", "n1"),
    ("text around one", "a-{node.name}-b", "a-n1-b"),
    ("two side by side", "{node.name}{node.name}", "n1n1"),
    ("a doubled brace is the text itself", "{{node.name}}", "{node.name}"),
    ("JSON needs no escapes", '{"a": {"b": 1}}', '{"a": {"b": 1}}'),
    ("a placeholder inside JSON", '{"a": "{node.name}"}', '{"a": "n1"}'),
    ("an empty pair of braces", "{}", "{}"),
    ("shell words are just text", "$(x) `y` ; {node.name}", "$(x) `y` ; n1"),
    ("a shell's variable is just text", "${X} ${node.name}", "${X} $n1"),
    ("a shell's variable in doubled braces is that variable", "${{X}}", "${X}"),
    ("what is put in is never read again", "{node.evil}", "{node.name}"),
]


@pytest.mark.parametrize("case", TEXTS, ids=[case[0] for case in TEXTS])
def test_a_text_is_filled_in(case: tuple[str, str, str]) -> None:
    _, text, wanted = case
    assert render(text, {"node.name": "n1", "node.evil": "{node.name}"}) == wanted


@given(st.text(alphabet='{}ab." \n-', max_size=30))
def test_no_text_makes_the_renderer_fail_otherwise_than_by_an_unknown_name(text: str) -> None:
    names = placeholders(text)
    if names:
        with pytest.raises(UnknownPlaceholderError):
            render(text, {})
    assert isinstance(render(text, dict.fromkeys(names, "x")), str)


def test_a_version_in_a_pattern_is_text_and_the_patterns_own_signs_stay() -> None:
    probe: Json = {
        "http": {"url": "u"},
        "expect": {
            "text": {"matches": "^App/{release.version}-(a|b)$"},
            "name": {"contains": "{release.version}"},
            "plain": "{release.version}",
        },
    }
    made = compiled(probe)({"release.version": "1.1.0+build.7"})
    assert isinstance(made, dict)
    assert made["expect"] == {
        "text": {"matches": r"^App/1\.1\.0\+build\.7-(a|b)$"},
        "name": {"contains": "1.1.0+build.7"},
        "plain": "1.1.0+build.7",
    }


def test_json_bodies_and_ports_are_made_after_filling_in() -> None:
    probe: Json = {
        "http": {"url": "u", "json": {"q": "{node.name}"}},
        "tcp": {"host": "h", "port": "{node.port}"},
    }
    made = compiled(probe)({"node.name": 'a"b', "node.port": "80"})
    assert made == {
        "http": {"url": "u", "body": '{"q": "a\\"b"}'},
        "tcp": {"host": "h", "port": 80},
    }


def test_the_operations_of_a_leg_are_the_host_protocols() -> None:
    made = plan()
    told = operations(made, 2, "forward", 0, run_id="upgrade/etcd/7", epoch=4)
    assert [op["key"] for op in told] == [
        f"upgrade/etcd/7@4/etcd-3/forward/{step.name}"
        for step in made.program("forward").legs[0].steps
    ]
    by_name = {str(op["op"]): op for op in told}
    assert by_name["stage"] == {
        "key": "upgrade/etcd/7@4/etcd-3/forward/stage", "op": "stage", "digest": f"{'0' * 61}351", "length": 1000,
        "source": None, "daemon": {"user": None, "ports": []}, "limit": 900.0,
    }  # fmt: skip
    assert by_name["snapshot"]["id"] == "e4-snapshot"
    assert by_name["switch"]["digest"] == f"{'0' * 61}351"
    service = by_name["configure"]["service"]
    assert isinstance(service, dict)
    assert "--name=etcd-3" in json.dumps(service["argv"])
    json.dumps(told, allow_nan=False)


def test_the_way_back_has_the_old_release_and_its_configuration() -> None:
    made = plan()
    told = {
        str(op["op"]): op
        for op in operations(made, 0, "back", 0, run_id="rollback/etcd/8", epoch=5)
    }
    assert told["switch"]["digest"] == f"{'0' * 61}350"
    assert '"3.5.0"' in json.dumps(told["healthy"])


def test_renamed_settings_are_new_names_forward_and_old_names_back() -> None:
    after = replaced(
        AFTER, "component: etcd", 'component: etcd\nconfiguration: {renamed: {initial-cluster-state: state}, removed: [name], defaults: {quota: "8"}}\nflags: {v2: "no"}'
    )  # fmt: skip
    made = plan(
        after=after,
        fleet=replaced(
            FLEET,
            "{name: etcd-2,",
            "{name: etcd-2, overrides: {settings: {initial-cluster-state: existing}},",
        ),
    )

    def line(node: int, program: str) -> list[str]:
        told = operations(made, node, program, 0, run_id="upgrade/etcd/1", epoch=1)  # type: ignore[arg-type]
        service = next(op["service"] for op in told if op["op"] == "configure")
        return [str(part) for part in service["argv"]]  # type: ignore[index, call-overload, union-attr]

    forward, back = line(0, "forward"), line(0, "back")
    assert {"--state=new", "--quota=8", "--v2=no"} <= set(forward)
    assert not any(part.startswith(("--initial-cluster-state", "--name=")) for part in forward)
    assert {"--initial-cluster-state=new", "--name=etcd-1"} <= set(back)
    assert "--state=existing" in line(1, "forward")
    assert "--initial-cluster-state=existing" in line(1, "back")


def test_a_generation_is_named_by_its_content() -> None:
    made, other = plan(), plan(fleet=replaced(FLEET, 'GOMAXPROCS: "1"', 'GOMAXPROCS: "2"'))

    def generation(of: object, node: int) -> object:
        told = operations(of, node, "forward", 0, run_id="upgrade/etcd/1", epoch=1)  # type: ignore[arg-type]
        return next(op["generation"] for op in told if op["op"] == "configure")

    assert generation(made, 0) == generation(plan(), 0)
    assert len({generation(made, 0), generation(made, 1), generation(other, 0)}) == 3


def test_probes_of_a_node_ask_that_node() -> None:
    made = plan()
    assert "127.0.0.1:23792" in json.dumps(probes(made, 1, "rules", wave=1))
    assert "23792/health" in json.dumps(probes(made, 1, "preflight"))
    bake = json.dumps(probes(made, 1, "bake", wave=0))
    assert '"running": true' in bake
    assert '"3.5.1"' in bake


def test_a_first_bring_up_stages_switches_configures_and_starts() -> None:
    told = installation(read(FLEET, Fleet), read(BEFORE, Release), 3, key="install/etcd")
    assert [(op["op"], op["key"]) for op in told] == [
        (op, f"install/etcd/etcd-4/{op}") for op in ("stage", "switch", "configure", "start")
    ]
    assert told[0]["source"] is None
    moved = operations(plan(), 3, "back", 0, run_id="rollback/etcd/8", epoch=5)
    again = next(op for op in moved if op["op"] == "configure")
    assert told[2]["generation"] == again["generation"], (
        "the way back leads to the very configuration of the bring-up"
    )


def test_a_bring_up_that_cannot_be_is_told_with_everything_that_is_wrong() -> None:
    fleet = replaced(FLEET, 'name: "{node.name}"', 'name: "{node.nmae}"')
    fleet = replaced(fleet, "{name: etcd-5,", "{name: etcd-5, platform: linux/arm64,")
    with pytest.raises(ConflictsError) as caught:
        Installation(read(fleet, Fleet), read(BEFORE, Release))
    assert "fleet: settings.name: {node.nmae} is nothing that can be filled in" in str(caught.value)
    assert "release: artifacts: 3.5.0 has no artifact for linux/arm64" in str(caught.value)


def test_ten_thousand_nodes_compile_in_seconds_and_render_in_well_under_half_a_millisecond() -> (
    None
):
    head = FLEET[: FLEET.index("nodes:")].replace('  initial-cluster: "{vars.cluster}"\n', "")
    nodes = "".join(
        f'  - {{name: etcd-{i}, address: 10.0.{i >> 8 & 255}.{i & 255}, labels: {{client_port: "1", peer_port: "2", zone: z{i % 7}}}}}\n'
        for i in range(10_000)
    )
    runbook = replaced(RUNBOOK, "max_unavailable: 1", "max_unavailable: 2%\n  domain: zone")
    began = time.process_time()
    made = plan(fleet=head + "nodes:\n" + nodes, runbook=runbook)
    assert time.process_time() - began < 10
    assert (len(made.nodes), made.waves[1].max_unavailable) == (10_000, 200)
    operations(made, 0, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    began = time.process_time()
    for node in range(1000):
        operations(made, node, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    assert (time.process_time() - began) / 1000 < 0.0005
