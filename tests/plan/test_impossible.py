"""Conditions that can never hold are refused by the one document; those that may are not."""

from __future__ import annotations

import pytest

from kedge.model.errors import DocumentError
from kedge.model.runbook import Runbook
from tests.plan.samples import read
from tests.plan.test_requests import runbook

HTTP = "{http: 'http://a/', expect: {%s}}"
OUTPUT = "{command: {argv: [a]}, expect: {%s}}"
METRIC = "{http: {url: 'http://a/', metric: lag}, expect: {value: %s}}"

NEVER: list[tuple[str, str]] = [
    (HTTP % "a: {ge: 5, lt: 5}", "no number is at least 5 and less than 5"),
    (HTTP % "a: {gt: 5, le: 3}", "no number is more than 5 and at most 3"),
    (HTTP % "a: {ge: '0x10', le: 15}", "no number is at least '0x10' and at most 15"),
    (HTTP % "a: {eq: 3, ge: 5}", "3 is not at least 5"),
    (HTTP % "a: {eq: 3, ne: 3}", "3 is not anything but 3"),
    (HTTP % "a: {in: [1, 2], gt: 2}", "1 or 2 is not more than 2"),
    (HTTP % "a: {eq: v2, starts_with: v1}", "'v2' is not a text that starts with 'v1'"),
    (HTTP % "a: {eq: 5, matches: '5'}", "5 is not a text that matches '5'"),
    (HTTP % "a: {eq: true, ge: 0}", "true is not at least 0"),
    (HTTP % "a: {ge: v1.2}", "ge compares numbers, and 'v1.2' is none"),
    (HTTP % "a: {exists: false, ge: 1}", "what does not exist has no value to compare"),
    (OUTPUT % "lag: 0", "the output is read as text, which has the one path `text`; for JSON write `parse: json`"),
    (OUTPUT % "text: 0", "a text is never 0: write it in quotes, or {ge: …, le: …} for a number"),
    (OUTPUT % "text: true", "a text is never true"),
    (OUTPUT % "text: {in: [1, 2]}", "a text is never 1 or 2"),
    (OUTPUT % "text: 'ok '", "space and newlines around the text are taken off"),
    (OUTPUT % "text: {exists: false}", "there always is a text"),
    ("{command: {argv: [a]}, capture: {lag: lag}}", "the output is read as text"),
    ("{http: {url: 'http://a/', parse: text}, expect: {lag: 0}}", "for JSON take `parse: text` out"),
    ("{http: 'http://a/', expect: {text: 5}}", "a text is never 5"),
    ("{http: {url: 'http://a/', method: HEAD}, expect: {a: 1}}", "the answer to a HEAD has no body"),
    ("{http: {url: 'http://a/', status: [204]}, expect: {a: 1}}", "an answer with status 204 or 304 has no body"),
    (METRIC % "'5'", "the value of a metric is a number, never '5'"),
    (METRIC % "{contains: '5'}", "contains is for texts, and the value of a metric is a number"),
    (METRIC % "{exists: false}", "a metric that is not there is no data"),
    ("{all: [{tcp: 'a:1'}, {not: {any: [%s]}}]}" % (HTTP % "a: {gt: 5, le: 3}"), "no number is"),
]  # fmt: skip

FINE = [
    HTTP % "a: {ge: 5, le: 5}",
    HTTP % "a: {gt: 3, lt: 4}",
    HTTP % "a: {ge: {captured: x}, le: 3}",
    HTTP % "a: {eq: '{release.version}', starts_with: v1}",
    HTTP % "a: {in: [1, '{vars.n}'], gt: 2}",
    HTTP % "a: {eq: '0x10', ge: 16}",
    HTTP % "a: {exists: false}",
    HTTP % "a: {ge: '{vars.n}'}",
    OUTPUT % "text: {ge: 5}",
    OUTPUT % "text: {captured: x}",
    OUTPUT % "text: ok",
    METRIC % "{ge: 1, le: 5}",
    METRIC % "0",
    "{http: {url: 'http://a/', status: [200, 204]}, expect: {a: 1}}",
]


@pytest.mark.parametrize(("probe", "sentence"), NEVER)
def test_a_condition_that_can_never_hold_is_refused(probe: str, sentence: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(runbook(f"preflight: [{probe}]\n"), Runbook)
    (problem,) = caught.value.problems
    assert "can never hold: " in problem
    assert sentence in problem
    assert problem.startswith("sample.yaml:19:")


@pytest.mark.parametrize("probe", FINE)
def test_a_condition_that_may_hold_is_taken(probe: str) -> None:
    before = "{http: 'http://a/', capture: {x: a}}"
    text = runbook(f"preflight: [{before}, {probe}]\n")
    assert len(read(text, Runbook).preflight) == 2


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        ("wait: {tcp: 'a:1', for: 10s, within: 10s}", "for: can never be reached within 10s"),
        ("healthy: {service: {running: false}}", "can never hold while the daemon must stay alive"),
        ("healthy: {all: [{tcp: 'a:1'}, {service: {running: false}}]}", "write `alive: false`, or `wait`"),
    ],
)  # fmt: skip
def test_a_wait_that_can_never_end_well_is_refused(step: str, sentence: str) -> None:
    text = runbook("preflight: []\n").replace("  - stage\n", f"  - stage\n  - {step}\n", 1)
    with pytest.raises(DocumentError) as caught:
        read(text, Runbook)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


def test_a_fact_is_looked_at_too() -> None:
    fact = "facts:\n  f: {command: {argv: [a]}, expect: {lag: 0}}\n"
    text = runbook("preflight: []\n").replace("facts:\n", fact, 1)
    with pytest.raises(DocumentError) as caught:
        read(text, Runbook)
    assert any("facts.f.expect.lag: can never hold" in one for one in caught.value.problems)
