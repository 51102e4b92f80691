"""Four documents that are each sound, and what follows from them together."""

from __future__ import annotations

import pytest

from kedge.model.fleet import Fleet
from kedge.plan.check import cycles
from kedge.plan.compile import ConflictsError
from kedge.plan.explain import duration, explain, lines
from tests.plan.samples import AFTER, FLEET, POLICY, RUNBOOK, plan, read, replaced, small


def conflicts(*args: object, **kwargs: object) -> str:
    """What a small plan is refused for."""
    with pytest.raises(ConflictsError) as caught:
        small(4, *args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


# company

APART = [
    ("versions that come from elsewhere", ('upgrade_from: ">=2.0.0"',), (), "after: upgrade_from: 1.1.0 may come from >=2.0.0, and the fleet runs 1.0.0"),
    ("a way back that nobody promised", ('downgrade_to: "<1.0.0"',), (), "after: downgrade_to: 1.1.0 may go back to <1.0.0, and the runbook switches back"),
    ("protocols without a common version", ('protocols: {eth: {speaks: ["70"]}}',), ('protocols: {eth: {speaks: ["68"]}}',), "after: protocols.eth: 1.1.0 speaks eth 70, and 1.0.0 accepts only 68"),
    ("a protocol only one way", ('protocols: {p: {speaks: ["2"], accepts: ["1", "2"]}}',), ('protocols: {p: {speaks: ["1"]}}',), "1.1.0 speaks p 2, and 1.0.0 accepts only 1"),
    ("a protocol that the new release lost", (), ('protocols: {p: {speaks: ["1"]}}',), "1.0.0 speaks p and 1.1.0 declares nothing about it"),
    ("data the new release cannot read", ('data_format: {reads: ["3"], writes: "3"}',), ('data_format: {reads: ["1"], writes: "1"}',), "after: data_format.reads: 1.1.0 reads 3, and 1.0.0 has written 1"),
    ("an old release that is silent about its data", ('data_format: {reads: ["1"], writes: "1"}',), (), "before: data_format: 1.0.0 says nothing of its data format"),
    ("a new release that is silent about its data", (), ('data_format: {reads: ["1"], writes: "1"}',), "after: data_format: 1.1.0 says nothing of its data format"),
]  # fmt: skip


@pytest.mark.parametrize("case", APART, ids=[case[0] for case in APART])
def test_releases_that_cannot_live_together_make_no_plan(
    case: tuple[str, tuple[str, ...], tuple[str, ...], str],
) -> None:
    _, after, before, said = case
    assert said in conflicts(after=after, before=before)


def test_every_mixed_state_is_named() -> None:
    made = small(
        4,
        "waves: {canary: {nodes: 1}, widen: [50%, 100%]}",
        after=('protocols: {p: {speaks: ["2", "1"]}}',),
        before=('protocols: {p: {speaks: ["1"]}}',),
    )
    assert [(state.ok, state.said) for state in made.mixed] == [
        (True, "canary: 1 of 4 nodes on 1.1.0, the others on 1.0.0"),
        (True, "wave-1: 1 to 2 of 4 nodes on 1.1.0, the others on 1.0.0"),
        (True, "wave-2: 2 to 3 of 4 nodes on 1.1.0, the others on 1.0.0"),
    ]
    assert {state.why for state in made.mixed} == {"they share p"}


def test_one_node_alone_is_in_no_mixed_company() -> None:
    assert small(1).mixed == ()


# the point of no return

OLD = ('data_format: {reads: ["1"], writes: "1"}',)


def new(begins: str) -> tuple[str, ...]:
    return (f'data_format: {{reads: ["1", "2"], writes: "2", begins: {begins}}}',)


GATE = "gates: {g: {approvals: {roles: [sre]}}}"
FINAL = "finalize: {steps: [{run: {argv: [set], undo: impossible}}]}"

UNGUARDED = [
    ("a format that rises with each start", new("start"), (), "commit: is missing: 1.1.0 writes data format 2, which 1.0.0 cannot read, as soon as a node starts on it; write commit: {before: canary"),
    ("a format that rises with the last node", new("last-node"), (), "once the last node runs it; write commit: {before: wave-1"),
    ("a gate behind the line", new("start"), (GATE, "commit: {before: wave-1, gate: g, lost: all}"), "commit.before: is too late"),
    ("a finalize step that is guarded by nobody", OLD, (FINAL,), "set in the finalize steps cannot be undone; write commit: {before: finalize"),
    ("a command that cannot be undone", OLD, ("start: {gate: g}", GATE), None),
    ("a commit before a wave there is not", OLD, (GATE, "commit: {before: monday, gate: g, lost: all}"), "commit.before: no wave is named monday; this fleet's are canary, wave-1"),
    ("a commit before finalize steps there are not", OLD, (GATE, "commit: {before: finalize, gate: g, lost: all}"), "is before the finalize steps, and the runbook has none"),
    ("a restore without a snapshot", OLD, (GATE, "commit: {before: canary, gate: g, lost: all}", "rollback: {after_commit: {restore: snapshot, gate: g}}"), "restores a snapshot, and no step of the node makes one"),
    ("a restore without a commit", OLD, (GATE, "rollback: {after_commit: {restore: snapshot, gate: g}}"), "stands behind a commit, and the runbook has none"),
]  # fmt: skip


@pytest.mark.parametrize("case", UNGUARDED, ids=[case[0] for case in UNGUARDED])
def test_a_point_of_no_return_has_its_gate_where_it_lies(
    case: tuple[str, tuple[str, ...], tuple[str, ...], str | None],
) -> None:
    _, after, more, said = case
    waves = "waves: {canary: {nodes: 1}}"
    if said is None:
        made = small(4, waves, *more, after=after, before=OLD)
        assert made.commit is None
        return
    assert said in conflicts(waves, *more, after=after, before=OLD)


def test_a_gate_earlier_than_needed_is_allowed() -> None:
    made = small(
        4, "waves: {canary: {nodes: 1}}", GATE, "commit: {before: canary, gate: g, lost: all}",
        after=new("last-node"), before=OLD,
    )  # fmt: skip
    assert made.commit is not None
    assert made.commit.wave == 0
    assert [(way.from_wave, way.kind) for way in made.way_back] == [(0, "none"), (1, "forbidden")]


def test_a_format_that_both_read_has_no_point_of_no_return() -> None:
    made = small(4, after=new("start"), before=('data_format: {reads: ["1", "2"], writes: "1"}',))
    assert made.commit is None
    assert {step.effect for leg in made.program("forward").legs for step in leg.steps} == {
        "none",
        "reversible",
    }


def test_a_start_on_a_new_format_without_a_snapshot_is_irreversible() -> None:
    made = small(
        4, GATE, "commit: {before: wave-1, gate: g, lost: all}", after=new("start"), before=OLD
    )
    effects = {step.name: step.effect for leg in made.program("forward").legs for step in leg.steps}
    assert effects["start"] == "irreversible"


def test_two_gates_before_one_wave_are_refused() -> None:
    more = (
        "waves: {widen: [{to: 100%, gate: h}]}",
        "gates: {g: {approvals: {roles: [sre]}}, h: {approvals: {roles: [sre]}}}",
        "commit: {before: wave-1, gate: g, lost: all}",
    )
    assert "g and h both stand before wave wave-1" in conflicts(*more)


def test_the_way_back_ends_where_the_runbook_says_so() -> None:
    shut = "rollback: {before_commit: forbidden}"
    assert "rollback.before_commit: there is no way back once wave" in conflicts(shut)
    made = small(4, shut, "start: {gate: g}", "gates: {g: {approvals: {roles: [sre]}}}")
    assert [(way.from_wave, way.kind) for way in made.way_back] == [(0, "none"), (1, "forbidden")]
    assert [program.name for program in made.programs] == ["forward"]


# gates and policy

GATES = [
    ("more signatures than people", RUNBOOK, "threshold: 2", "threshold: 4", POLICY, "", "", "asks for 4, but only alice, bob, carol may sign it"),
    ("people who may not approve at all", RUNBOOK, "", "", POLICY, "approve: [sre, db-owner]", "approve: [on-call]", "asks for 2, but only nobody may sign it"),
    ("a role that the policy does not have", RUNBOOK, "roles: [sre, db-owner]", "roles: [sre, captain]", POLICY, "", "", "nobody in the policy house has the role captain"),
    ("fewer than the policy wants everywhere", RUNBOOK, "", "", POLICY, "max_lifetime: 1h", "max_lifetime: 1h\ngates: {every: {threshold: 3}}", "2 is less than the 3 that the policy house asks here"),
    ("without the role the policy wants", RUNBOOK, "", "", POLICY, "max_lifetime: 1h", "max_lifetime: 1h\ngates: {every: {each_of: [db-owner]}}", "the policy house wants db-owner among those who sign here"),
    ("no gate before the first step", RUNBOOK, "", "", POLICY, "max_lifetime: 1h", "max_lifetime: 1h\ngates: {start: required}", "start: is missing; the policy house wants a gate before the first step"),
    ("a policy for elsewhere", RUNBOOK, "", "", POLICY, "environment: demo", "environment: prod", "policy: environment: is for prod, and the fleet etcd is in demo"),
    ("a runbook for other software", RUNBOOK, "component: etcd", "component: nats", POLICY, "", "", "runbook: component: is for nats, and the fleet runs etcd"),
    ("a value that nothing captured", RUNBOOK, 'expect: {etcdserver: "{release.reports}"}', "expect: {etcdserver: {captured: version}}", POLICY, "", "", "compares with version, which nothing captured before"),
    ("a label that a node does not have", RUNBOOK, "grace: 60s", "grace: 60s, when: {tcp: 'x:{node.labels.rack}'}", POLICY, "", "", "node.2.stop.when.tcp.port: node etcd-1 has no label rack"),
    ("a var nobody set", RUNBOOK, "grace: 60s", "grace: 60s, when: {tcp: '{vars.host}:1'}", POLICY, "", "", "{vars.host} is nothing that can be filled in; known are {vars.base}, {vars.bin}, {vars.cluster}"),
    ("a placeholder there is not", RUNBOOK, "grace: 60s", "grace: 60s, when: {tcp: '{host}:1'}", POLICY, "", "", "{host} is nothing that can be filled in, and {{host}} is that text itself"),
]  # fmt: skip


@pytest.mark.parametrize("case", GATES, ids=[case[0] for case in GATES])
def test_documents_that_do_not_fit_together_make_no_plan(case: tuple[str, ...]) -> None:
    _, runbook, old, new_text, policy, policy_old, policy_new, said = case
    with pytest.raises(ConflictsError) as caught:
        plan(
            runbook=replaced(runbook, old, new_text) if old else runbook,
            policy=replaced(policy, policy_old, policy_new) if policy_old else policy,
        )
    assert said in str(caught.value)


def test_all_conflicts_are_told_at_once() -> None:
    with pytest.raises(ConflictsError) as caught:
        plan(
            runbook=replaced(RUNBOOK, "max_unavailable: 1", "max_unavailable: 5"),
            policy=replaced(POLICY, "environment: demo", "environment: prod"),
            after=replaced(AFTER, "component: etcd", "component: nats"),
        )
    assert {(document, path[0]) for document, path, _ in caught.value.conflicts} == {
        ("policy", "environment"), ("runbook", "waves"), ("after", "component"),
    }  # fmt: skip


def test_a_platform_without_an_artifact_is_told() -> None:
    with pytest.raises(ConflictsError) as caught:
        plan(fleet=replaced(FLEET, "{name: etcd-3,", "{name: etcd-3, platform: linux/arm64,"))
    assert (
        "fleet: nodes.2.platform: 3.5.1 has no artifact for linux/arm64, only for linux/amd64"
        in str(caught.value)
    )


ROOTS = [
    ("two nodes in one folder", 'root: "{vars.base}/{node.name}"', 'root: "{vars.base}"', "fleet: root: etcd-2 and etcd-1 have the same root /srv/kedge on this machine"),
    ("the same folder written otherwise", "{name: etcd-2,", "{name: etcd-2, root: /srv//kedge/etcd-1/,", "fleet: nodes.1.root: etcd-2 and etcd-1 have the same root"),
    ("a relative folder", "base: /srv/kedge", "base: srv", "fleet: root: srv/etcd-1 is no absolute path of a folder"),
    ("a folder above", "base: /srv/kedge", "base: /srv/../etc", "is no absolute path of a folder, without '..'"),
    ("the whole host", "{name: etcd-2,", "{name: etcd-2, root: /,", "fleet: nodes.1.root: / is no absolute path of a folder"),
    ("a var with a placeholder", "base: /srv/kedge", 'base: "/srv/{node.name}"', "fleet: vars.base: {node.name} is not filled in inside a var"),
]  # fmt: skip


@pytest.mark.parametrize("case", ROOTS, ids=[case[0] for case in ROOTS])
def test_every_node_has_a_folder_of_its_own(case: tuple[str, str, str, str]) -> None:
    _, old, new_text, said = case
    with pytest.raises(ConflictsError) as caught:
        plan(fleet=replaced(FLEET, old, new_text))
    assert said in str(caught.value)


def test_the_release_that_runs_already_is_no_migration() -> None:
    with pytest.raises(ConflictsError) as caught:
        plan(before=AFTER)
    assert "after: version: 3.5.1 is what the fleet runs already" in str(caught.value)


def ring(*edges: tuple[str, str]) -> list[Fleet]:
    names = sorted({name for edge in edges for name in edge})
    return [
        read(
            replaced(FLEET, "name: etcd\n", f"name: {name}\n")
            + f"dependencies: [{', '.join(f'{{fleet: {to}}}' for of, to in edges if of == name)}]\n",
            Fleet,
        )
        for name in names
    ]


def test_fleets_that_need_each_other_in_a_ring_are_found() -> None:
    assert cycles(ring(("a", "b"), ("b", "c"), ("c", "a"), ("d", "a"))) == [
        ("a", "the fleets need each other in a ring: a → b → c → a")
    ]
    assert cycles(ring(("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"))) == []


# programs and words


def test_steps_get_their_own_names_and_a_decision_ends_a_leg() -> None:
    text = replaced(
        RUNBOOK,
        "  - switch\n",
        "  - run: {argv: [a], undo: none, decision: true}\n  - run: {argv: [b], undo: none}\n  - run: {name: run-3, argv: [c], undo: none}\n  - switch\n",
    )
    legs = [[step.name for step in leg.steps] for leg in plan(runbook=text).program("forward").legs]
    assert legs == [
        ["stage", "probe", "check", "stop", "snapshot", "run"],
        ["run-2", "run-3", "switch", "configure", "start", "healthy"],
    ]


def test_the_way_back_mirrors_what_has_to_be_undone() -> None:
    step = "  - run: {name: NAME, argv: [NAME], undo: {argv: [un-NAME]}}\n"
    text = replaced(
        RUNBOOK,
        "  - stage\n",
        "  - stage\n" + step.replace("NAME", "cordon") + step.replace("NAME", "drain"),
    )
    text = replaced(text, "  - start\n", step.replace("NAME", "migrate") + "  - start\n")
    text = replaced(text, "\nwaves:", "\n" + step.replace("NAME", "announce") + "\nwaves:")
    back = [step.name for leg in plan(runbook=text).program("back").legs for step in leg.steps]
    assert back == [
        "stage", "undo-announce", "check", "stop", "undo-migrate", "switch", "configure", "start", "healthy", "undo-drain", "undo-cordon",
    ]  # fmt: skip


def test_a_plan_says_in_words_what_a_signer_has_to_know() -> None:
    text = "\n".join(lines(explain(plan())))
    for words in (
        "etcd on fleet etcd (demo): 3.5.0 → 3.5.1, 5 node(s)",
        "── gate widen",
        "canary: 1 node(s), then 1 of 5 are on 3.5.1",
        "SIGTERM once, wait up to 1m, then park; it is never killed  [reversible]",
        "Point of no return: there is none",
        "widen: 2 of sre or db-owner, not counting whoever started it; before wave wave-1",
        "waits 3d, then parks",
        "may live together, they share peer",
    ):
        assert words in text


def test_durations_read_like_the_documents_write_them() -> None:
    assert [duration(value) for value in (0, 90, 3600, 86401, 0.5)] == [
        "0s",
        "1m30s",
        "1h",
        "1d1s",
        "0.5s",
    ]
