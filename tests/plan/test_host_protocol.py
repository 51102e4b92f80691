"""What plans say to hosts is of the host program's protocol, by the host program's own judgement."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.host import probespec, request
from kedge.model.fleet import Fleet
from kedge.model.plan import Plan
from kedge.model.release import Release
from kedge.plan.install import Installation
from kedge.plan.render import operations, probes
from tests.plan.samples import BEFORE, FLEET, RUNBOOK, plan, read
from tests.plan.test_runbooks import NAMES, compiled


def judged(operation: dict[str, Any]) -> None:
    if operation["op"] == "stage":
        assert operation["source"] is None
        operation = {**operation, "source": "/tmp/archive"}  # noqa: S108 - a name, not a file
    request.operation(operation, operation["op"])


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_and_probe_of_a_runbook_is_of_the_protocol(name: str) -> None:
    made: Plan = compiled(name)
    for program in made.programs:
        for leg in range(len(program.legs)):
            for operation in operations(
                made, 1, program.name, leg, run_id="upgrade/shop/1", epoch=1
            ):
                judged(operation)
    asked = list(probes(made, 1, "preflight"))
    for wave in made.waves:
        asked += [
            *probes(made, 1, "rules", wave=wave.index),
            *probes(made, 1, "bake", wave=wave.index),
        ]
    for probe in asked:
        probespec.checked(probe, name)


def test_a_first_bring_up_is_of_the_protocol() -> None:
    for operation in Installation(read(FLEET, Fleet), read(BEFORE, Release)).operations(
        0, key="install"
    ):
        judged(operation)


def test_an_answer_of_which_only_its_text_is_asked_is_read_as_text() -> None:
    made = plan(
        runbook=RUNBOOK.replace(
            "  - stage\n",
            "  - stage\n  - probe: {http: 'http://x/metrics', expect: {text: {matches: a}}}\n"
            "  - probe: {http: 'http://x/json', expect: {a.text: b}}\n"
            "  - probe: {http: {url: 'http://x/json', parse: json}, expect: {text: b}}\n",
            1,
        )
    )
    told = operations(made, 0, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    said: list[Any] = [op["probe"] for op in told if op["op"] == "probe"]
    assert [probe["http"].get("text", False) for probe in said[:3]] == [True, False, False]
