"""The compiler: four documents and the release that runs now, to a plan; or every reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kedge.model.errors import PlanError
from kedge.model.fleet import Daemon, Fleet
from kedge.model.notation import Path
from kedge.model.plan import (
    Artifact,
    Bake,
    Configuration,
    Gate,
    Plan,
    PlannedRelease,
    Program,
    ServiceTemplate,
    Wave,
)
from kedge.model.policy import Policy
from kedge.model.release import Release
from kedge.model.runbook import AfterCommit, BakeRule, Runbook
from kedge.plan import boundary, check, company, programs, secrecy, serving, widen
from kedge.plan.company import Where
from kedge.plan.digest import document_digest, reference
from kedge.plan.guards import unguarded
from kedge.plan.places import fleet_vars, planned_nodes, root_problems
from kedge.plan.risk import risk_of
from kedge.plan.settings import effective
from kedge.plan.yamltree import shown


class ConflictsError(PlanError):
    """The documents do not make a plan. ``conflicts`` are (document, path, sentence), all of them."""

    def __init__(self, conflicts: Iterable[Where]) -> None:
        self.conflicts: tuple[Where, ...] = tuple(dict.fromkeys(conflicts))
        lines = [f"{document}: {place(path)}{said}" for document, path, said in self.conflicts]
        super().__init__("\n".join(lines), next_step="fix the documents, then run `kedge plan`")


def place(path: Path) -> str:
    """A path before its sentence; nothing for the whole document."""
    return f"{shown(path)}: " if path else ""


def compile_plan(
    fleet: Fleet, before: Release, after: Release, runbook: Runbook, policy: Policy
) -> Plan:
    """The plan of one migration. Raises :class:`ConflictsError` (a ``PlanError``) with every problem at once."""
    problems: list[Where] = [
        *check.company_problems(fleet, after, before, runbook, policy),
        *check.template_problems(fleet, runbook, (before, after)),
        *check.variable_problems(fleet, runbook),
        *secrecy.problems(fleet, (before, after), check.renames(runbook)),
        *check.capture_problems(runbook),
        *boundary.restore_problems(runbook),
        *company.version_problems(
            before, after, back=runbook.rollback.before_commit == "switch-back"
        ),
        *company.format_problems(before, after),
        *(("after", path, said) for path, said in company.protocol_problems(before, after)),
        *_same(before, after),
        *root_problems(fleet),
    ]
    maker = programs.Maker(runbook, boundary.start_effect(before, after, runbook))
    waves, moved, wave_problems = _waves(fleet, runbook, maker)
    problems += [("runbook", path, said) for path, said in wave_problems]
    at, named = boundary.committed_at(runbook, waves)
    reasons = boundary.boundaries(before, after, runbook, len(waves))
    problems += [*named, *(boundary.guard_problems(runbook, waves, reasons, at) if waves else [])]
    waves, more = _guarded(waves, runbook, at)
    problems += more
    if problems:
        # The class of a plan is known once there is one: what holds for any class is told with the rest.
        general = policy.model_copy(update={"risk": {}})
        raise ConflictsError([*problems, *check.minimum_problems(runbook, general, "routine")])
    plan = _plan(fleet, before, after, runbook, policy, _Made(maker, waves, moved, at))
    risk = risk_of(plan)
    problems += check.minimum_problems(runbook, policy, risk)
    problems += [
        ("runbook", ("rollback", "before_commit"), f"{said}; write start: {{gate: …}}, or a commit")
        for said in unguarded(plan, policy.minimums(risk).point_of_no_return)
    ]
    if problems:
        raise ConflictsError(problems)
    return plan


def _same(before: Release, after: Release) -> list[Where]:
    if document_digest(before) != document_digest(after):
        return []
    return [("after", ("version",), f"{after.version} is what the fleet runs already")]


def _waves(
    fleet: Fleet, runbook: Runbook, maker: programs.Maker
) -> tuple[tuple[Wave, ...], tuple[str, ...], list[tuple[Path, str]]]:
    """The waves, the gates that move before the first stop, and why the waves are impossible."""
    rule, total = runbook.waves, len(fleet.nodes)
    ordered = widen.order(fleet.nodes, rule)
    blocks, problems = widen.blocks(rule, total)
    at_most = widen.at_once(rule.max_unavailable, total)
    if at_most >= total > 1:
        said = f"{rule.max_unavailable} of {total} nodes is all of them at once; leave at least one that serves"
        problems.append((("waves", "max_unavailable"), said))
    if runbook.failure_budget >= total > 1:
        said = f"{runbook.failure_budget} failed nodes of {total} would be no reason to stop"
        problems.append((("failure_budget",), said))
    last = maker.probe(rule.last) if rule.last is not None else None
    rules = (last,) if last is not None else ()
    waves = tuple(
        widen.wave(index, block, ordered, at_most, _bake(block.bake, runbook, maker), rules)
        for index, block in enumerate(blocks.waves)
    )
    return waves, blocks.moved, [*ordered.problems[:20], *problems]


def _bake(rule: BakeRule | None, runbook: Runbook, maker: programs.Maker) -> Bake | None:
    if rule is None:
        return None
    probe = (
        maker.probe(rule.probe) if rule.probe is not None else programs.bake_probe(runbook, maker)
    )
    return Bake(duration=rule.duration, interval=rule.interval, probe=probe)


def _guarded(
    waves: tuple[Wave, ...], runbook: Runbook, at: int | None
) -> tuple[tuple[Wave, ...], list[Where]]:
    """The waves with the gate of the point of no return before the one it stands before."""
    if at is None or at >= len(waves) or runbook.commit is None:
        return waves, []
    gate = runbook.commit.gate
    if waves[at].gate not in {None, gate}:
        said = f"{gate} and {waves[at].gate} both stand before wave {waves[at].name}; make them one"
        return waves, [("runbook", ("commit", "gate"), said)]
    guarded = waves[at].model_copy(update={"gate": gate})
    return (*waves[:at], guarded, *waves[at + 1 :]), []


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of the runbook before the plan is. ``at`` is the point of no return; see ``widen.Blocks``."""

    maker: programs.Maker
    waves: tuple[Wave, ...]
    moved: tuple[str, ...]
    at: int | None


def _moved(runbook: Runbook, made: _Made) -> tuple[str, ...]:
    """The gates that move before the first stop. The start gate and that of the finalize steps are asked anyway."""
    asked = {runbook.start.gate if runbook.start else None}
    if runbook.commit is not None and made.at is not None:
        asked.add(runbook.commit.gate)
    return tuple(gate for gate in made.moved if gate not in asked)


def _plan(
    fleet: Fleet,
    before: Release,
    after: Release,
    runbook: Runbook,
    policy: Policy,
    made: _Made,
) -> Plan:
    maker, waves, at = made.maker, made.waves, made.at
    nodes = planned_nodes(fleet)
    # Joins come last: a var of the fleet is over one of the runbook, whichever of them is a join.
    variables = {**runbook.vars, **fleet_vars(fleet)}
    rename = check.renames(runbook)
    after_commit = runbook.rollback.after_commit
    return Plan(
        fleet=reference(fleet),
        environment=fleet.environment,
        runbook=reference(runbook),
        policy=reference(policy),
        before=planned_release(fleet, (before,), {}),
        after=planned_release(fleet, (before, after), rename),
        nodes=nodes,
        vars=variables,
        preflight=serving.preflight(runbook, maker),
        serving=serving.serving(runbook, maker),
        programs=_programs(runbook, maker),
        waves=waves,
        finalize_node=widen.order(fleet.nodes, runbook.waves).nodes[0]
        if runbook.finalize
        else None,
        gates=_gates(runbook, policy),
        start_gate=runbook.start.gate if runbook.start else None,
        moved_gates=_moved(runbook, made),
        commit=boundary.point(runbook, at, len(waves)),
        way_back=boundary.ways_back(runbook, at, len(waves)),
        after_commit="restore" if isinstance(after_commit, AfterCommit) else "forbidden",
        failure_budget=runbook.failure_budget,
        on_failure=runbook.on_failure,
        mixed=company.mixed_states(before, after, waves, len(nodes)),
    )


def _programs(runbook: Runbook, maker: programs.Maker) -> tuple[Program, ...]:
    made = [programs.forward(runbook, maker)]
    if runbook.rollback.before_commit == "switch-back":
        made.append(programs.way_back(runbook, maker, restore=False))
    if isinstance(runbook.rollback.after_commit, AfterCommit):
        made.append(programs.way_back(runbook, maker, restore=True))
    finalize = programs.finalize(runbook, maker)
    return (*made, finalize) if finalize is not None else tuple(made)


def _gates(runbook: Runbook, policy: Policy) -> tuple[Gate, ...]:
    return tuple(
        Gate(
            name=name,
            threshold=rule.approvals.threshold,
            roles=rule.approvals.roles,
            each_of=rule.approvals.each_of,
            requester_counts=policy.requester_may_approve,
            expires=rule.expires,
            reason=rule.reason,
        )
        for name, rule in sorted(runbook.gates.items())
    )


def planned_release(
    fleet: Fleet, releases: tuple[Release, ...], rename: dict[str, str]
) -> PlannedRelease:
    """The last of ``releases`` with the fleet's configuration under it, through the renames of those before."""
    release = releases[-1]
    names: dict[str, str] = {}
    for other in releases:
        names.update(other.configuration.renamed)
    names.update(rename)
    return PlannedRelease(
        component=release.component,
        version=release.version,
        reports=release.reported,
        document=document_digest(release),
        artifacts=tuple(
            # Where bytes lie says nothing about what happens: a plan knows an archive by its digest alone.
            Artifact.of(platform, item, placed=False)
            for platform, item in sorted(release.artifacts.items())
        ),
        configuration=Configuration(
            settings=effective(fleet.settings, releases, rename),
            renamed=names,
            removed=tuple(
                sorted({key for other in releases for key in other.configuration.removed})
            ),
            files=fleet.files,
            service=_service(fleet.run),
            secrets=fleet.secrets,
        ),
    )


def _service(run: Daemon) -> ServiceTemplate:
    return ServiceTemplate(
        argv=run.argv,
        env=run.env,
        cwd=run.cwd,
        user=None if run.user is None else str(run.user),
        groups=None if run.groups is None else tuple(str(one) for one in run.groups),
        ports=tuple(str(one) for one in run.ports),
    )
