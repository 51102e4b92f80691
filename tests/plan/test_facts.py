"""Facts with parameters: one long command stands once, and what a use leaves out or gets wrong has its place."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.host import probespec, verdicts
from kedge.model.errors import DocumentError
from kedge.model.runbook import Runbook
from kedge.plan.compile import ConflictsError
from kedge.plan.render import probes
from tests.plan.samples import FLEET, RUNBOOK, plan, read
from tests.plan.test_requests import runbook

FACTS = """facts:
  caught_up:
    parameters: [stream, most]
    command: {argv: [nats, --server, "{node.address}", stream, info, "{fact.stream}", --json], parse: json}
    expect: {lag: {le: "{fact.most}"}, name: {matches: "^{fact.stream}-{release.version}$"}}
  metered:
    parameters: [topic, port]
    http: {url: "http://{node.address}:{fact.port}/m", metric: 'lag{topic="{fact.topic}"}'}
    expect: {value: {le: 5}}
  open: {parameters: [port], tcp: "{node.address}:{fact.port}"}
"""


def asked(*uses: str, facts: str = FACTS) -> list[Any]:
    text = runbook(f"preflight: [{', '.join(uses)}]\n")
    found = probes(plan(runbook=_with(text, facts)), 0, "preflight")
    for one in found:
        probespec.checked(one, "probe")
    return list(found)


def _with(text: str, facts: str) -> str:
    before = RUNBOOK.count("\nfacts:")
    if not before:
        return text + facts
    return text.replace("\nfacts:\n", "\n" + facts, 1)


def test_each_use_gives_its_values() -> None:
    orders, bills = asked(
        "{fact: caught_up, with: {stream: orders, most: 5}}",
        '{fact: caught_up, with: {stream: "b+{node.name}", most: 0.5}}',
    )
    assert orders["command"]["argv"] == ["nats", "--server", "127.0.0.1", "stream", "info", "orders", "--json"]  # fmt: skip
    assert bills["command"]["argv"][5] == "b+etcd-1"
    # A text that is nothing but the parameter is the value itself: a number stays one.
    assert orders["expect"]["lag"] == {"le": 5}
    assert bills["expect"]["lag"] == {"le": 0.5}
    # In a pattern a value is text, with what is filled in later.
    pattern = bills["expect"]["name"]["matches"]
    assert verdicts.match("b+etcd-1-3.5.0", {"matches": pattern}, {}) == "pass"
    assert verdicts.match("bb+etcd-1-3.5.0", {"matches": pattern}, {}) == "fail"


def test_a_value_in_a_label_or_a_port_is_what_it_is() -> None:
    metered, opened = asked(
        "{fact: metered, with: {topic: 'a\"b', port: 9090}}", "{fact: open, with: {port: 9}}"
    )
    assert metered["http"]["url"] == "http://127.0.0.1:9090/m"
    assert metered["http"]["metric"] == r'lag{topic="a\"b"}'
    assert opened["tcp"]["port"] == 9


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("caught_up", "preflight.0.fact: caught_up needs a value for most: {fact: caught_up, with: {most: …}}"),
        ("{fact: caught_up, with: {stream: a, most: 1, strem: b}}", "preflight.0.with.strem: strem is no parameter of caught_up; its parameters are most, stream"),
        ("{fact: caught_up, with: {stream: [a], most: 1}}", "preflight.0.with.stream"),
        ("{tcp: 'a:1', with: {port: 1}}", "gives values to the parameters of a fact; name the fact"),
        ("{fact: none, with: {a: b}}", "no fact is named none"),
    ],
)  # fmt: skip
def test_a_use_that_does_not_fit_is_refused(use: str, sentence: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(_with(runbook(f"preflight: [{use}]\n"), FACTS), Runbook)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        ("{tcp: 'a:{fact.port}'}", "{fact.port} is no parameter of this fact; its parameters are none"),
        ("{parameters: [port], tcp: 'a:1'}", "is used nowhere in this fact: write {fact.port}"),
    ],
)  # fmt: skip
def test_a_fact_that_does_not_fit_is_refused(fact: str, sentence: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(_with(runbook("preflight: []\n"), f"facts:\n  one: {fact}\n"), Runbook)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


def test_a_parameter_and_a_secret_stand_where_they_may() -> None:
    with pytest.raises(ConflictsError, match=r"\{fact.x\} stands in a fact that has it"):
        plan(runbook=runbook("preflight: [{tcp: 'a:{fact.x}'}]\n"))
    secrets = FLEET.replace("nodes:\n", "secrets: {token: {file: /t}}\nnodes:\n", 1)
    use = '{fact: caught_up, with: {stream: "{secret.token}", most: 1}}'
    with pytest.raises(ConflictsError, match=r"\{secret.token\} may not stand here"):
        plan(fleet=secrets, runbook=_with(runbook(f"preflight: [{use}]\n"), FACTS))
