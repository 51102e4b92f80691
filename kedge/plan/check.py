"""What must hold between documents that are each sound by themselves. Every problem at once, each with its document."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence

from kedge.model.fleet import Fleet, Join
from kedge.model.notation import Path
from kedge.model.plan import Risk
from kedge.model.policy import Minimum, Policy
from kedge.model.probe import Probe, captured, captures
from kedge.model.release import Release
from kedge.model.runbook import AfterCommit, Runbook
from kedge.plan import secrecy
from kedge.plan.company import Where
from kedge.plan.programs import plain, step_paths
from kedge.plan.settings import effective
from kedge.plan.template import FLAGS, placeholders, strings

_NODE = {
    "node.name", "node.address", "node.root", "node.platform", "node.index",
    "node.current", "node.config", "node.data",
}  # fmt: skip
_RELEASES = {
    f"{which}.{what}"
    for which in ("release", "before", "after")
    for what in ("version", "reports", "digest")
}
_RUN = {"fleet.name", "run.id", "run.epoch"}
FIXED = frozenset({*_NODE, *_RELEASES, *_RUN})
"""The placeholders that every node has a value for, whatever the documents say."""
_EARLY = (
    "node.root", "node.current", "node.config", "node.data", "settings", "release", "before", "after", "run", "secret",
)  # fmt: skip
_SPOKEN = {"said", "about", "reason", "lost", "why"}
"""Fields that people read; a brace in them is a brace."""


def names_of(fleet: Fleet, runbook: Runbook | None, releases: Sequence[Release]) -> set[str]:
    """Every placeholder that has a value on every node, labels aside."""
    variables = set(fleet.vars) | set(runbook.vars if runbook else ())
    extra = renames(runbook)
    settings: set[str] | None = None
    for place in range(1, len(releases) + 1):
        known = set(effective(fleet.settings, tuple(releases[:place]), extra if place > 1 else {}))
        settings = known if settings is None else settings & known
    return {
        *_NODE, *_RELEASES, *_RUN,
        *(f"vars.{name}" for name in variables),
        *(f"settings.{name}" for name in settings or ()),
        *(f"secret.{name}" for name in fleet.secrets),
    }  # fmt: skip


def renames(runbook: Runbook | None) -> dict[str, str]:
    """The runbook's own renames of settings, old name to new."""
    if runbook is None:
        return {}
    return next(
        (dict(step.configure.rename) for step in runbook.node if step.configure is not None), {}
    )


def unknown_placeholder(name: str, known: Collection[str]) -> str:
    """What is said of a placeholder that has no value: which was meant, or which there are."""
    family, _, last = name.rpartition(".")
    meant = difflib.get_close_matches(name, known, 1, 0.8)
    meant = meant or [other for other in sorted(known) if not family and other.endswith(f".{last}")]
    near = sorted(other for other in known if other.split(".", 1)[0] == name.split(".", 1)[0])
    said = f"{{{name}}} is nothing that can be filled in"
    if meant:
        return f"{said}; do you mean {{{meant[0]}}}? That text itself is {{{{{name}}}}}"
    hint = f"; known are {', '.join('{' + other + '}' for other in near[:12])}" if near else ""
    return f"{said}{hint}, and {{{{{name}}}}} is that text itself"


class Names:
    """Judges placeholders for one fleet."""

    def __init__(self, fleet: Fleet, known: set[str]) -> None:
        self.fleet = fleet
        self.known = known
        self.labels: dict[str, str | None] = {}

    def problem(self, name: str, *, refused: Iterable[str] = ()) -> str | None:
        """Why a placeholder cannot be filled on every node; None when it can."""
        if name.startswith("secret.") and name not in self.known:
            have = ", ".join(f"{{secret.{one}}}" for one in sorted(self.fleet.secrets)) or "none"
            return f"{{{name}}} is no secret of the fleet; there are: {have}"
        if name == "settings.flags":
            return (
                "{settings.flags} stands as a whole element of the daemon's argv, and nowhere else"
            )
        if any(name == other or name.startswith(f"{other}.") for other in refused):
            if name.startswith("settings."):
                return f"{{{name}}} stands in a setting, and no setting uses another; put the text that both have into vars"
            return f"{{{name}}} is not known yet where this is filled in; what is known there is the node's name, address and labels"
        if name.startswith("node.labels."):
            return self._label(name.removeprefix("node.labels."))
        if name in self.known:
            return None
        return unknown_placeholder(name, self.known)

    def _label(self, label: str) -> str | None:
        if label not in self.labels:
            without = next(
                (node.name for node in self.fleet.nodes if label not in node.labels), None
            )
            self.labels[label] = without
        without = self.labels[label]
        return None if without is None else f"node {without} has no label {label}"


def template_problems(
    fleet: Fleet, runbook: Runbook | None, releases: Sequence[Release]
) -> list[Where]:
    """Every placeholder that could not be filled in, in fleet and runbook."""
    names = Names(fleet, names_of(fleet, runbook, releases))
    texts = [*_fleet_texts(fleet), *(_runbook_texts(runbook) if runbook is not None else ())]
    held = secrecy.secret_settings(fleet, releases, renames(runbook))

    def problem(document: str, path: Path, name: str, refused: tuple[str, ...]) -> str | None:
        if name.startswith("fact."):
            inside = document == "runbook" and path[:1] == ("facts",)
            return (
                None
                if inside
                else f"{{{name}}} stands in a fact that has it in its parameters, and nowhere else"
            )
        said = secrecy.runbook_problem(name, path, held) if document == "runbook" else None
        return said or names.problem(name, refused=refused)

    return [
        (document, path, said)
        for document, path, text, refused in texts
        for name in dict.fromkeys(placeholders(text))
        if (said := problem(document, path, name, refused)) is not None
    ]


def variable_problems(fleet: Fleet | None, runbook: Runbook | None) -> list[Where]:
    """Vars are put in as they are, so a placeholder in one would stand there unfilled. One document alone will do."""
    written: list[tuple[str, Path, str]] = []
    if fleet is not None:
        written += [
            ("fleet", ("vars", key), value)
            for key, value in fleet.vars.items()
            if isinstance(value, str)
        ]
        written += [
            ("fleet", ("nodes", index, "overrides", "vars", key), value)
            for index, node in enumerate(fleet.nodes)
            for key, value in node.overrides.vars.items()
        ]
    if runbook is not None:
        written += [("runbook", ("vars", key), value) for key, value in runbook.vars.items()]
    return [
        (
            document,
            path,
            f"{{{name}}} is not filled in inside a var; write it where the var is used",
        )
        for document, path, value in written
        for name in placeholders(value)
    ]


_Text = tuple[str, Path, str, tuple[str, ...]]
"""Document, path, text, and the families of placeholders that are not known yet where it is filled in."""


def _fleet_texts(fleet: Fleet) -> Iterator[_Text]:
    yield "fleet", ("root",), fleet.root, _EARLY
    for index, node in enumerate(fleet.nodes):
        if node.root is not None:
            yield "fleet", ("nodes", index, "root"), node.root, _EARLY
        for key, value in node.overrides.settings.items():
            yield "fleet", ("nodes", index, "overrides", "settings", key), value, ("settings",)
    for key, join in fleet.vars.items():
        if isinstance(join, Join):
            yield "fleet", ("vars", key, "join"), join.join, (*_EARLY, "vars")
    for key, value in fleet.settings.items():
        yield "fleet", ("settings", key), value, ("settings",)
    for name, source in fleet.secrets.items():
        for path, text in strings(plain(source)):
            yield "fleet", ("secrets", name, *path), text, secrecy.UNSTABLE
    for path, text in _init_texts(fleet):
        yield "fleet", path, text, ()
    for path, text in strings({"run": plain(fleet.run), "files": dict(fleet.files)}):
        if not (path[:2] == ("run", "argv") and text == FLAGS):
            yield "fleet", path, text, ()


def _init_texts(fleet: Fleet) -> Iterator[tuple[Path, str]]:
    for at, step in enumerate(fleet.init):
        for path, text in strings(plain(step)):
            if not _SPOKEN & set(path):
                yield ("init", at, *path), text


def runbook_texts(runbook: Runbook) -> Iterator[tuple[Path, str]]:
    """Every text of a runbook that placeholders are filled in."""
    for path, text in strings(plain(runbook)):
        if not _SPOKEN & set(path) and path[0] != "vars":
            yield path, text


def _runbook_texts(runbook: Runbook) -> Iterator[_Text]:
    for path, text in runbook_texts(runbook):
        yield "runbook", path, text, ()


def capture_problems(runbook: Runbook) -> list[Where]:
    """Conditions on values that nothing captured before."""
    known: set[str] = set()
    problems: list[Where] = []
    for index, condition in enumerate(runbook.preflight):
        problems += _uncaptured(runbook, ("preflight", index), condition, known)
        known |= _captures(runbook, condition)
    if runbook.waves.last is not None:
        problems += _uncaptured(runbook, ("waves", "last"), runbook.waves.last, known)
    for path, _, step in step_paths(runbook):
        check = step.run.check if step.run is not None else None
        every = [part for part in (step.body.when, check, step.body) if isinstance(part, Probe)]
        for part in every:
            problems += _uncaptured(runbook, (*path, step.verb), part, known)
        known |= {name for part in every for name in _captures(runbook, part)}
    for path, rule in runbook.bakes():
        if rule.probe is not None:
            problems += _uncaptured(runbook, (*path, "probe"), rule.probe, known)
    return problems


def _uncaptured(runbook: Runbook, path: Path, probe: Probe, known: set[str]) -> list[Where]:
    return [
        (
            "runbook",
            path,
            f"compares with {name}, which nothing captured before: capture: {{{name}: …}}",
        )
        for name in sorted(captured(_meant(runbook, probe)) - known)
    ]


def _captures(runbook: Runbook, probe: Probe) -> set[str]:
    return captures(_meant(runbook, probe))


def _meant(runbook: Runbook, probe: Probe) -> Probe:
    """A condition with its facts in their places; what they are given does not matter for what is captured."""
    if probe.fact is not None:
        return runbook.facts.get(probe.fact, probe)
    parts = {
        key: tuple(_meant(runbook, part) for part in inner)
        for key in ("all", "any")
        if (inner := getattr(probe, key)) is not None
    }
    if probe.negated is not None:
        return probe.model_copy(update={"negated": _meant(runbook, probe.negated)})
    return probe.model_copy(update=parts) if parts else probe


def minimum_problems(runbook: Runbook, policy: Policy, risk: Risk) -> list[Where]:
    """Gates that are weaker than the policy asks for a plan of this class, or that nobody could ever pass."""
    problems: list[Where] = []
    if policy.minimums(risk).start == "required" and runbook.start is None:
        said = f"is missing; the policy {policy.name} wants a gate before the first step: start: {{gate: …}}"
        problems.append(("runbook", ("start",), said))
    for gate in runbook.gates:
        problems += _passable(gate, runbook, policy, risk)
    return problems


def minimum_for(gate: str, runbook: Runbook, policy: Policy, risk: Risk) -> Minimum:
    """What the policy asks of a gate at least, by everything it guards in a plan of this class."""
    least = policy.minimums(risk)
    asked = least.every
    if runbook.commit is not None and runbook.commit.gate == gate:
        asked = asked.and_more(least.point_of_no_return)
    after = runbook.rollback.after_commit
    if isinstance(after, AfterCommit) and after.gate == gate:
        asked = asked.and_more(least.data_loss)
    return asked


def _passable(gate: str, runbook: Runbook, policy: Policy, risk: Risk) -> list[Where]:
    rule = runbook.gates[gate].approvals
    path: Path = ("gates", gate, "approvals")
    minimum = minimum_for(gate, runbook, policy, risk)
    general = minimum_for(gate, runbook, policy.model_copy(update={"risk": {}}), risk)
    of_class = "" if minimum == general else f" of a plan that is {risk}"
    problems: list[Where] = []
    if rule.threshold < minimum.threshold:
        said = f"{rule.threshold} is less than the {minimum.threshold} that the policy {policy.name} asks here{of_class}"
        problems.append(("runbook", (*path, "threshold"), said))
    missing = [role for role in minimum.each_of if role not in rule.each_of]
    if missing:
        said = f"the policy {policy.name} wants {', '.join(missing)} among those who sign here{of_class}"
        problems.append(("runbook", (*path, "each_of"), said))
    held = {role for person in policy.people for role in person.roles}
    for key in ("roles", "each_of"):
        for place, role in enumerate(getattr(rule, key)):
            if role not in held:
                said = f"nobody in the policy {policy.name} has the role {role}"
                problems.append(("runbook", (*path, key, place), said))
    able = {
        p.name
        for p in policy.people
        if policy.allows(p, "approve", risk) and set(p.roles) & {*rule.roles, *rule.each_of}
    }
    starters = {p.name for p in policy.people if policy.allows(p, "start", risk)}
    without = 0 if policy.requester_may_approve or starters - able else 1
    if len(able) - without < rule.threshold:
        who = ", ".join(sorted(able)) or "nobody"
        note = " and whoever starts the run does not count" if without else ""
        said = f"asks for {rule.threshold}, but only {who} may sign it{note}; ask for fewer, or give more people the role"
        problems.append(("runbook", (*path, "threshold"), said))
    return problems


def company_problems(
    fleet: Fleet, after: Release, before: Release, runbook: Runbook, policy: Policy
) -> list[Where]:
    """Names that must agree, and platforms that must be there."""
    problems: list[Where] = []
    if policy.environment != fleet.environment:
        said = f"is for {policy.environment}, and the fleet {fleet.name} is in {fleet.environment}; name the policy of that environment"
        problems.append(("policy", ("environment",), said))
    if runbook.component is not None and runbook.component != before.component:
        said = f"is for {runbook.component}, and the fleet runs {before.component}"
        problems.append(("runbook", ("component",), said))
    seen: set[str] = set()
    for index, node in enumerate(fleet.nodes):
        for document, release in (("before", before), ("after", after)):
            if node.platform not in release.artifacts and (document + node.platform) not in seen:
                seen.add(document + node.platform)
                have = ", ".join(sorted(release.artifacts))
                said = f"{release.version} has no artifact for {node.platform}, only for {have}"
                problems.append(("fleet", ("nodes", index, "platform"), said))
    return problems


def cycles(fleets: Sequence[Fleet]) -> list[tuple[str, str]]:
    """Cycles among the dependencies of fleets that are looked at together: (a fleet of it, the sentence)."""
    needs = {
        fleet.name: [dependency.fleet for dependency in fleet.dependencies] for fleet in fleets
    }
    found: list[tuple[str, str]] = []
    done: set[str] = set()
    for start in needs:
        trail: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, place = stack.pop()
            if place == 0:
                if name in done or name not in needs:
                    continue
                trail.append(name)
            if place < len(needs[name]):
                stack.append((name, place + 1))
                following = needs[name][place]
                if following in trail:
                    ring = [*trail[trail.index(following) :], following]
                    found.append(
                        (following, f"the fleets need each other in a ring: {' → '.join(ring)}")
                    )
                elif following not in done:
                    stack.append((following, 0))
            else:
                done.add(name)
                trail.remove(name)
    return found


def install_problems(fleet: Fleet, release: Release | None) -> list[Where]:
    """Why a fleet could not be brought up on a release; None: as far as the fleet alone says."""
    releases = () if release is None else (release,)
    problems = [
        *_install_placeholders(fleet, releases),
        *variable_problems(fleet, None),
        *secrecy.problems(fleet, releases, {}),
    ]
    # Before the first migration there is one release, so the placeholders of two have no value yet.
    written: list[tuple[Path, str]] = [
        *strings(
            {"run": plain(fleet.run), "files": dict(fleet.files), "settings": dict(fleet.settings)}
        ),
        *_init_texts(fleet),
    ]
    for path, text in written:
        problems += [
            ("fleet", path, f"{{{name}}} is known only while a fleet is moved; say {{release.…}}")
            for name in placeholders(text)
            if name.startswith("before.")
        ]
    if release is None:
        return problems
    missing = sorted({node.platform for node in fleet.nodes} - set(release.artifacts))
    problems += [
        ("release", ("artifacts",), f"{release.version} has no artifact for {platform}")
        for platform in missing
    ]
    return problems


def _install_placeholders(fleet: Fleet, releases: Sequence[Release]) -> list[Where]:
    """Settings that the release would add are unknown without it: those are not judged then."""
    found = template_problems(fleet, None, releases)
    return found if releases else [one for one in found if not one[2].startswith("{settings.")]
