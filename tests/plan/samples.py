"""Documents that are sound, as text, for tests to break or to compile."""

from __future__ import annotations

from pathlib import Path

from kedge.model.fleet import Fleet
from kedge.model.plan import Plan
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.runbook import Runbook
from kedge.plan.compile import compile_plan
from kedge.plan.parse import D, parse

HERE = Path(__file__).parent
DOCUMENTS = HERE / "documents"
RUNBOOKS = HERE.parent.parent / "runbooks"

FLEET = (DOCUMENTS / "etcd.yaml").read_text()
BEFORE = (DOCUMENTS / "etcd-3.5.0.yaml").read_text()
AFTER = (DOCUMENTS / "etcd-3.5.1.yaml").read_text()
POLICY = (DOCUMENTS / "policy.yaml").read_text()
RUNBOOK = (RUNBOOKS / "etcd-patch.yaml").read_text()


def read(text: str, kind: type[D], name: str = "sample.yaml") -> D:
    """The document of a text."""
    return parse(text.encode(), name, kind).value


def replaced(text: str, old: str, new: str) -> str:
    """The text with ``old``, which stands there exactly once, replaced."""
    assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
    return text.replace(old, new)


def plan(
    *,
    fleet: str = FLEET,
    before: str = BEFORE,
    after: str = AFTER,
    runbook: str = RUNBOOK,
    policy: str = POLICY,
) -> Plan:
    """The plan of texts; each is the etcd sample unless given."""
    return compile_plan(
        read(fleet, Fleet, "fleet.yaml"),
        read(before, Release, "before.yaml"),
        read(after, Release, "after.yaml"),
        read(runbook, Runbook, "runbook.yaml"),
        read(policy, Policy, "policy.yaml"),
    )


def release(component: str, version: str, *more: str) -> str:
    """A small release document."""
    digit = sum(map(ord, version)) % 10
    lines = [
        "kind: Release",
        f"component: {component}",
        f'version: "{version}"',
        "artifacts:",
        f'  linux/amd64: {{digest: "{str(digit) * 64}", length: 10, source: a.tar.gz}}',
        *more,
    ]
    said = {line.split(":")[0] for line in more}
    lines += [f'{key}: "*"' for key in ("upgrade_from", "downgrade_to") if key not in said]
    return "\n".join(lines) + "\n"


def fleet(count: int, labels: dict[str, list[str]] | None = None) -> str:
    """A fleet of ``count`` nodes; each label takes its values in turn."""
    lines = [
        "kind: Fleet", "name: shop", "environment: demo", "release: a.yaml", 'root: "/srv/{node.name}"',
        'run: {argv: ["{node.current}/bin/app"]}', "nodes:",
    ]  # fmt: skip
    for index in range(count):
        said = ", ".join(
            f'{name}: "{values[index % len(values)]}"' for name, values in (labels or {}).items()
        )
        lines.append(f"  - {{name: node-{index}, labels: {{{said}}}}}")
    return "\n".join(lines) + "\n"


def runbook(*more: str) -> str:
    """A small runbook with more lines."""
    lines = [
        "kind: Runbook", "name: small", "node:", "  - stage", "  - stop: {grace: 5s}", "  - switch", "  - configure",
        "  - start", '  - healthy: {http: "http://{node.address}/health"}', *more,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def small(
    count: int,
    *more: str,
    labels: dict[str, list[str]] | None = None,
    after: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
) -> Plan:
    """The plan of a small fleet and runbook."""
    return plan(
        fleet=fleet(count, labels),
        before=release("app", "1.0.0", *before),
        after=release("app", "1.1.0", *after),
        runbook=runbook(*more),
    )
