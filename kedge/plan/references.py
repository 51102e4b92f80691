"""What a runbook refers to and what is not there, as far as the documents that are looked at together say.

Of a runbook by itself: placeholders of families that are known, its own variables, its own waves. With fleets beside it:
their labels and variables. With a policy: its roles. ``kedge plan`` has all of them, and judges again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kedge.model.fleet import Fleet
from kedge.model.notation import Path, Problem
from kedge.model.policy import Policy
from kedge.model.runbook import Runbook
from kedge.plan import secrecy, widen
from kedge.plan.check import FIXED, runbook_texts, unknown_placeholder
from kedge.plan.template import placeholders


def runbook_references(runbook: Runbook, fleets: Sequence[Fleet]) -> list[Problem]:
    """Placeholders, labels and waves that are not there. ``fleets`` are those that this runbook is for."""
    problems = [
        (path, said)
        for path, text in runbook_texts(runbook)
        for name in dict.fromkeys(placeholders(text))
        for said in _placeholder(name, path, runbook, fleets)
    ]
    problems += _waves(runbook)
    for fleet in fleets:
        found = widen.order(fleet.nodes, runbook.waves).problems
        problems += [(path, f"{said} (fleet {fleet.name})") for path, said in found]
    return problems


def role_references(runbook: Runbook, policy: Policy) -> list[Problem]:
    """Roles that gates ask for and that nobody in the policy has."""
    held = {role for person in policy.people for role in person.roles}
    have = ", ".join(sorted(held))
    return [
        (
            ("gates", gate, "approvals", key, at),
            f"nobody in the policy {policy.name} has the role {role}; its roles are {have}",
        )
        for gate, rule in runbook.gates.items()
        for key, roles in (("roles", rule.approvals.roles), ("each_of", rule.approvals.each_of))
        for at, role in enumerate(roles)
        if role not in held
    ]


def _placeholder(name: str, path: Path, runbook: Runbook, fleets: Sequence[Fleet]) -> Iterable[str]:
    family, _, rest = name.partition(".")
    if family == "fact":
        if path[:1] != ("facts",):
            yield f"{{{name}}} stands in a fact that has it in its parameters, and nowhere else"
    elif family == "secret":
        said = secrecy.runbook_problem(name, path, set())
        if said is not None:
            yield said
    elif family == "vars":
        if rest not in runbook.vars:
            yield from _variable(rest, runbook, fleets)
    elif name.startswith("node.labels."):
        label = name.removeprefix("node.labels.")
        for fleet in fleets:
            without = next((node.name for node in fleet.nodes if label not in node.labels), None)
            if without is not None:
                yield f"node {without} of the fleet {fleet.name} has no label {label}"
    elif family != "settings" and name not in FIXED:
        yield unknown_placeholder(name, FIXED)


def _variable(name: str, runbook: Runbook, fleets: Sequence[Fleet]) -> Iterable[str]:
    have = ", ".join(sorted(runbook.vars)) or "none"
    if not fleets:
        yield (
            f"{{vars.{name}}} has no default in this runbook (its vars are {have}): write one under vars,"
            " or lint the Fleet that has it beside"
        )
    for fleet in fleets:
        if name not in fleet.vars:
            yield f"neither this runbook nor the fleet {fleet.name} has a var {name} (the runbook's are {have}); write it under vars"


def _waves(runbook: Runbook) -> list[Problem]:
    """The wave that the point of no return lies before has a name; which of them a small fleet has is the plan's."""
    rule, waves = runbook.commit, runbook.waves
    if rule is None:
        return []
    names = ["canary"] if waves.canary is not None else []
    names += [wave.name or f"wave-{at + 1}" for at, wave in enumerate(waves.widen)]
    names += ["last-node"] if waves.last_node is not None else []
    names += ["finalize"] if runbook.finalize is not None else []
    if rule.before in names:
        return []
    place: Path = ("commit", "before")
    return [(place, f"no wave is named {rule.before}; this runbook's are {', '.join(names)}")]
