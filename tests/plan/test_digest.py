"""The plan's digest changes with any change of meaning and with nothing else."""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.plan.digest import plan_digest
from tests.plan.samples import AFTER, BEFORE, FLEET, POLICY, RUNBOOK, plan, replaced

SAME = plan_digest(plan())


class Quoted(str):
    """Text that is written in quotes."""

    __slots__ = ()


class Writer(yaml.SafeDumper):
    """Writes what was read, without anchors."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the base class asks for it
        return True


Writer.add_representer(
    Quoted,
    lambda writer, text: writer.represent_scalar("tag:yaml.org,2002:str", str(text), style='"'),
)


def rewritten(text: str, seed: int, *, flow: bool) -> str:
    """The same document with keys in another order, other quotes, other layout and comments in between."""
    chance = random.Random(seed)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            chance.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        if isinstance(value, list):
            return [shuffled(item) for item in value]
        return Quoted(value) if isinstance(value, str) else value

    class Plain(yaml.SafeLoader):
        pass

    # Durations, versions and the like stay the text they are.
    Plain.yaml_implicit_resolvers = {
        key: [
            (tag, pattern)
            for tag, pattern in found
            if tag.rsplit(":", 1)[1] in {"int", "bool", "null"}
        ]
        for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    value = shuffled(yaml.load(text, Plain))  # noqa: S506 - a subclass of the safe loader
    made = yaml.dump(value, Dumper=Writer, sort_keys=False, default_flow_style=flow, width=10**6)
    return "# another comment\n" + made.replace("\n", "  # here\n", 1) + "# and one at the end\n"


@given(
    seed=st.integers(0, 10**6),
    flow=st.booleans(),
    which=st.sampled_from(["fleet", "before", "after", "runbook", "policy"]),
)
@settings(max_examples=60, deadline=None)
def test_order_of_keys_quotes_layout_and_comments_mean_nothing(
    *, seed: int, flow: bool, which: str
) -> None:
    texts = {"fleet": FLEET, "before": BEFORE, "after": AFTER, "runbook": RUNBOOK, "policy": POLICY}
    changed = {which: rewritten(texts[which], seed, flow=flow)}
    assert plan_digest(plan(**changed)) == SAME


SPELLINGS = [
    ("a minute is sixty seconds", "runbook", "grace: 60s", "grace: 1m"),
    ("two minutes", "runbook", "within: 2m", "within: 1m60s"),
    ("a bare verb is one with nothing to say", "runbook", "  - switch\n", "  - switch: {}\n"),
    ("what is the default anyway", "runbook", "  - switch\n", "  - switch: {decision: false}\n"),
    ("sixty percent", "runbook", "widen: [60%,", "widen: [60.0%,"),
    ("a wave in full", "runbook", "widen: [60%, 100%]", "widen: [{to: 60%}, 100%]"),
    (
        "where the release document lies",
        "fleet",
        "release: etcd-3.5.0.yaml",
        "release: elsewhere/etcd.yaml",
    ),
]


@pytest.mark.parametrize("case", SPELLINGS, ids=[case[0] for case in SPELLINGS])
def test_two_spellings_of_one_meaning_are_one_plan(case: tuple[str, str, str, str]) -> None:
    _, which, old, new = case
    texts = {"fleet": FLEET, "runbook": RUNBOOK}
    assert plan_digest(plan(**{which: replaced(texts[which], old, new)})) == SAME


MEANINGS = [
    ("another node name", "fleet", "name: etcd-5", "name: etcd-6"),
    ("another port", "fleet", 'client_port: "23795"', 'client_port: "23796"'),
    ("another label", "fleet", 'peer_port: "23805", zone: b', 'peer_port: "23805", zone: c'),
    ("another root", "fleet", "base: /srv/kedge", "base: /srv/other"),
    ("another environment variable", "fleet", 'GOMAXPROCS: "1"', 'GOMAXPROCS: "2"'),
    ("another setting", "fleet", "initial-cluster-state: new", "initial-cluster-state: existing"),
    ("another transport", "fleet", "transport: local", "transport: sim"),
    ("a file more", "fleet", "settings:\n", "files: {a.conf: x}\nsettings:\n"),
    ("an option of one node", "fleet", "{name: etcd-5,", "{name: etcd-5, options: {a: 1},"),
    (
        "an override of one node",
        "fleet",
        "{name: etcd-5,",
        "{name: etcd-5, overrides: {settings: {name: x}},",
    ),
    ("nodes in another order", "fleet", "name: etcd-5", "name: etcd-0"),
    ("another digest of the archive", "after", "0351", "1351"),
    ("another length of the archive", "after", "length: 1000", "length: 1001"),
    ("another reported version", "after", "component: etcd", 'component: etcd\nreports: "3.5.1-x"'),
    ("another protocol accepted", "after", 'accepts: ["3.4", "3.5"]', 'accepts: ["3.5"]'),
    ("another range to come from", "after", 'upgrade_from: ">=3.4.0', 'upgrade_from: ">=3.3.0'),
    ("a flag more", "after", "component: etcd", "component: etcd\nflags: {v2: off2}"),
    ("another grace", "runbook", "grace: 60s", "grace: 61s"),
    ("another signal", "runbook", "signal: TERM", "signal: INT"),
    ("killed in the end", "runbook", "then: park", "then: kill"),
    (
        "another health condition",
        "runbook",
        'expect: {etcdserver: "{release.reports}"}',
        'expect: {etcdserver: "3.5.1"}',
    ),
    ("healthy for longer", "runbook", "for: 2s", "for: 3s"),
    ("a larger canary", "runbook", "canary: {nodes: 1,", "canary: {nodes: 2,"),
    ("a longer bake", "runbook", "bake: 5s", "bake: 6s"),
    ("another widening", "runbook", "widen: [60%,", "widen: [80%,"),
    ("another order rule", "runbook", ", true, (true|false)", ", true, (false)"),
    ("more at once", "runbook", "max_unavailable: 1", "max_unavailable: 2"),
    ("another threshold", "runbook", "threshold: 2", "threshold: 1"),
    (
        "another role that may sign",
        "runbook",
        "roles: [sre, db-owner]",
        "roles: [sre, db-owner, on-call]",
    ),
    ("another expiry", "runbook", "expires: 3d", "expires: 4d"),
    ("another reason shown", "runbook", "go on to the rest", "go on with the rest"),
    ("another failure budget", "runbook", "failure_budget: 0", "failure_budget: 1"),
    ("parking instead of going back", "runbook", "on_failure: rollback", "on_failure: park"),
    (
        "no way back",
        "runbook",
        "rollback: {before_commit: switch-back",
        "start: {gate: widen}\nrollback: {before_commit: forbidden",
    ),
    ("no snapshot", "runbook", "  - snapshot: {paths: [data]}\n", ""),
    ("another person's role", "policy", "roles: [on-call]", "roles: [on-call, sre]"),
    ("another lifetime of orders", "policy", "max_lifetime: 1h", "max_lifetime: 2h"),
    (
        "the requester counts",
        "policy",
        "clock_skew: 30s",
        "clock_skew: 30s\nrequester_may_approve: true",
    ),
]


@pytest.mark.parametrize("case", MEANINGS, ids=[case[0] for case in MEANINGS])
def test_another_meaning_is_another_plan(case: tuple[str, str, str, str]) -> None:
    _, which, old, new = case
    texts = {"fleet": FLEET, "after": AFTER, "runbook": RUNBOOK, "policy": POLICY}
    assert plan_digest(plan(**{which: replaced(texts[which], old, new)})) != SAME


def test_every_meaning_has_a_digest_of_its_own() -> None:
    texts = {"fleet": FLEET, "after": AFTER, "runbook": RUNBOOK, "policy": POLICY}
    found = [
        plan_digest(plan(**{which: replaced(texts[which], old, new)}))
        for _, which, old, new in MEANINGS
    ]
    assert len(set(found)) == len(found)


def test_a_plan_that_went_through_json_has_the_same_digest() -> None:
    made = plan()
    assert plan_digest(type(made).model_validate_json(made.model_dump_json())) == SAME
