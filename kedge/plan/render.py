"""From a plan to what a host program is told: placeholders filled in for one node, never through a shell."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from kedge.model.base import Json
from kedge.model.plan import (
    Artifact,
    Configuration,
    Leg,
    Plan,
    PlannedNode,
    PlannedRelease,
    ProgramName,
    Step,
)
from kedge.plan.requests import MARK, names, parts, shown, with_sources
from kedge.plan.template import Rendered, Values, compiled, compiled_text, expand_flags

Operation = dict[str, Json]
Side = Literal["before", "after"]
Probes = Literal["preflight", "rules", "bake", "before", "after"]
_FORWARD = ("forward", "finalize")


class Ground:
    """What templates of one fleet under one or two releases are filled in from, read once."""

    def __init__(
        self,
        fleet: str,
        variables: Mapping[str, str],
        nodes: tuple[PlannedNode, ...],
        releases: Mapping[Side, PlannedRelease],
    ) -> None:
        self.nodes = nodes
        self.releases = dict(releases)
        self._plain = {
            "fleet.name": fleet,
            **{f"vars.{name}": text for name, text in variables.items()},
        }
        self.artifacts: dict[Side, dict[str, Artifact]] = {}
        self.configured: dict[Side, Configured] = {}
        for side, release in releases.items():
            self._plain |= {f"{side}.version": release.version, f"{side}.reports": release.reports}
            self.artifacts[side] = {artifact.platform: artifact for artifact in release.artifacts}
            self.configured[side] = Configured(release.configuration)

    def values(self, node: int, side: Side, run_id: str, epoch: int) -> dict[str, str]:
        """What every placeholder stands for on a node; ``side`` is the release that ``release.*`` speaks of."""
        planned = self.nodes[node]
        release = self.releases[side]
        values = {
            **self._plain,
            **node_values(planned, node),
            "run.id": run_id,
            "run.epoch": str(epoch),
            "snapshot.epoch": str(epoch),
            "release.version": release.version,
            "release.reports": release.reports,
        }
        for other, artifacts in self.artifacts.items():
            artifact = artifacts.get(planned.platform)
            if artifact is not None:
                values[f"{other}.digest"] = artifact.digest
                if other == side:
                    values["release.digest"] = artifact.digest
        self.configured[side].settle(planned, values)
        return values

    def complete(
        self, operation: Operation, node: int, side: Side, values: dict[str, str]
    ) -> Operation:
        """An operation with what its kind takes from the release: digest and length, or the configuration."""
        kind = operation["op"]
        planned = self.nodes[node]
        if kind in {"stage", "switch"}:
            artifact = self.artifacts[side][planned.platform]
            operation["digest"] = artifact.digest
            if kind == "stage":
                operation["length"] = artifact.length
                operation["source"] = None
                if artifact.strip:
                    operation["strip"] = artifact.strip
                if artifact.program is not None:
                    operation["program"] = artifact.program
                # On the way back the configuration that ran needs its own secrets: the check looks at these.
                if side == "after":
                    operation["daemon"] = self.configured[side].needs(values)
                sources = self.configured[side].secrets(planned, values) if side == "after" else {}
                if sources:
                    operation["secrets"] = sources
        elif kind in {"snapshot", "restore"}:
            # By this the host knows the snapshot of an earlier run that was aborted (docs/host-protocol.md).
            operation["before"] = self._digest("after", planned)
        elif kind == "configure":
            operation |= self.configured[side].operation(planned, values)
        elif kind == "check":
            self._complete_check(operation, planned, side, values)
        if kind in {"configure", "check"} and side == "before":
            # The host knows which configuration ran with it; the one rendered here is for a host that does not.
            operation["earlier"] = self._digest("before", planned)
        return operation

    def _digest(self, side: Side, node: PlannedNode) -> str | None:
        found = self.artifacts.get(side, {}).get(node.platform)
        return found.digest if found is not None else None

    def _complete_check(
        self, operation: Operation, node: PlannedNode, side: Side, values: dict[str, str]
    ) -> None:
        operation["release"] = self._digest(side, node)
        if "back" in operation:
            operation["back"] = self._digest("before", node) if operation["back"] else None
        for kind in ("snapshot", "restore"):
            inner = operation.get(kind)
            if isinstance(inner, dict):
                operation[kind] = {**inner, "before": self._digest("after", node)}
        made = self.configured[side].operation(node, values)
        operation |= {
            name: made[name] for name in ("generation", "service", "secrets") if name in made
        }


class Rendering:
    """One plan, its templates read once. Cheap per node; keeps nothing of a node."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        releases: dict[Side, PlannedRelease] = {"before": plan.before, "after": plan.after}
        self._ground = Ground(plan.fleet.name, plan.vars, plan.nodes, releases)
        self._legs: dict[tuple[str, int], list[tuple[Step, Rendered, Rendered | None]]] = {}
        self._probes: dict[tuple[str, int], list[Rendered]] = {}
        self._shown = _shown(plan)

    def operations(
        self,
        node: int,
        program: ProgramName,
        leg: int,
        *,
        run_id: str,
        epoch: int,
        snapshot_epoch: int | None = None,
    ) -> tuple[Operation, ...]:
        """See :func:`operations`."""
        side: Side = "after" if program in _FORWARD else "before"
        values = self._ground.values(node, side, run_id, epoch)
        if snapshot_epoch is not None:
            values["snapshot.epoch"] = str(snapshot_epoch)
        prefix = f"{run_id}@{epoch}/{self.plan.nodes[node].name}/{program}/"
        made: list[Operation] = []
        for step, params, when in self._steps(program, leg):
            operation: Operation = {
                "key": prefix + step.name, "op": step.op, "limit": step.timeout,
            }  # fmt: skip
            if when is not None:
                operation["when"] = self._complete(when(values), side, values)
            rendered = self._complete(params(values), side, values)
            if isinstance(rendered, dict):
                operation |= rendered
            operation = self._ground.complete(operation, node, side, values)
            if step.op == "stage" and side == "after" and self._shown:
                told = operation.get("secrets")
                operation["secrets"] = {
                    **(told if isinstance(told, dict) else {}),
                    **self._sources(values),
                }
            made.append(operation)
        return tuple(made)

    def _steps(
        self, program: ProgramName, leg: int
    ) -> list[tuple[Step, Rendered, Rendered | None]]:
        found = self._legs.get((program, leg))
        if found is None:
            steps: Leg = self.plan.program(program).legs[leg]
            found = [
                (
                    step,
                    compiled(step.params),
                    compiled(step.when) if step.when is not None else None,
                )
                for step in steps.steps
            ]
            self._legs[program, leg] = found
        return found

    def probes(
        self, node: int, what: Probes, *, wave: int, run_id: str, epoch: int
    ) -> tuple[Json, ...]:
        """See :func:`probes`."""
        found = self._probes.get((what, wave))
        if found is None:
            found = [compiled(probe) for probe in self._probes_of(what, wave)]
            self._probes[what, wave] = found
        if not found:
            return ()
        side: Side = "after" if what in {"bake", "after"} else "before"
        values = self._ground.values(node, side, run_id, epoch)
        return tuple(self._complete(put(values), side, values) for put in found)

    def _complete(self, rendered: Json, side: Side, values: dict[str, str]) -> Json:
        """Where the host finds what requests show; nothing to do where no probe of the plan shows a secret."""
        if not self._shown:
            return rendered
        configured = self._ground.configured[side]
        return with_sources(rendered, lambda name: configured.source(name, values))

    def _sources(self, values: dict[str, str]) -> dict[str, Json]:
        configured = self._ground.configured["after"]
        return {name: configured.source(name, values) for name in sorted(self._shown)}

    def secrets(self, node: int, *, run_id: str, epoch: int) -> dict[str, Json]:
        """See :func:`secrets`."""
        values = self._ground.values(node, "after", run_id, epoch)
        configured = self._ground.configured["after"].secrets(self.plan.nodes[node], values)
        return {**configured, **self._sources(values)}

    def _probes_of(self, what: Probes, wave: int) -> list[Json]:
        if what == "preflight":
            return [step.params["probe"] for step in self.plan.preflight]
        if what in {"before", "after"}:
            serving = self.plan.serving.before if what == "before" else self.plan.serving.after
            return [serving] if serving is not None else []
        chosen = self.plan.waves[wave]
        if what == "rules":
            return [rule.probe for rule in chosen.rules]
        return (
            [chosen.bake.probe] if chosen.bake is not None and chosen.bake.probe is not None else []
        )


def _shown(plan: Plan) -> set[str]:
    """The secrets that any probe of a plan shows."""
    steps = [
        *plan.preflight,
        *(step for one in plan.programs for leg in one.legs for step in leg.steps),
    ]
    trees: list[Json] = [part for step in steps for part in (step.params, step.when)]
    trees += [plan.serving.before, plan.serving.after]
    for wave in plan.waves:
        trees += [rule.probe for rule in wave.rules]
        trees.append(wave.bake.probe if wave.bake is not None else None)
    return set().union(*(shown(tree) for tree in trees))


class Configured:
    """Settings, files and service of one release, as templates read once."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._settings = [
            (f"settings.{key}", compiled_text(text)) for key, text in configuration.settings.items()
        ]
        self._files = [
            (name, compiled_text(text)) for name, text in sorted(configuration.files.items())
        ]
        service = configuration.service
        self._env = [(name, compiled_text(text)) for name, text in sorted(service.env.items())]
        self._cwd = compiled_text(service.cwd)
        self._user = None if service.user is None else compiled_text(service.user)
        self._groups = (
            None if service.groups is None else [compiled_text(one) for one in service.groups]
        )
        self._ports = [compiled_text(one) for one in service.ports]
        self._marks = {f"secret.{name}": f"{MARK}{name}{MARK}" for name in configuration.secrets}
        self._sources = {
            name: compiled(source.model_dump(mode="json", exclude_none=True))
            for name, source in configuration.secrets.items()
        }
        self._argv = self._line(configuration.settings)
        self._made: tuple[dict[str, str], Operation] | None = None
        """The last that was made, with the values it was made from."""

    def _line(self, settings: dict[str, str]) -> list[Callable[[Values], str]]:
        return [
            compiled_text(text) for text in expand_flags(self._configuration.service.argv, settings)
        ]

    def settle(self, node: PlannedNode, values: dict[str, str]) -> None:
        """Put the node's effective settings among its ``values``, and the marks that stand for secrets."""
        values |= self._marks
        for name, put in self._settings:
            values[name] = put(values)
        for key, text in own_settings(node, self._configuration).items():
            values[f"settings.{key}"] = compiled_text(text)(values)

    def operation(self, node: PlannedNode, values: dict[str, str]) -> Operation:
        """The parameters of ``configure``: files, service, and the generation they make."""
        if self._made is not None and self._made[0] is values:
            # The same leg asks twice: for its check and for its configure.
            return {**self._made[1]}
        own = own_settings(node, self._configuration)
        argv = self._line({**self._configuration.settings, **own}) if own else self._argv
        files: dict[str, Json] = {name: parts(put(values)) for name, put in self._files}
        env: dict[str, Json] = {name: parts(put(values)) for name, put in self._env}
        line: list[Json] = [put(values) for put in argv]
        service: dict[str, Json] = {"argv": line, "env": env, "cwd": self._cwd(values)}
        # What is not said is not sent: a configuration of before keeps its generation.
        service |= {key: one for key, one in self.needs(values).items() if one}
        made: Operation = {"files": files, "service": service}
        secrets = self._used(values, [*files.values(), *env.values()])
        if secrets:
            made["secrets"] = secrets
        # Over where secrets are, never over what they are: a host has the values, nobody else.
        content = json.dumps(made, sort_keys=True, separators=(",", ":"))
        made = {"generation": hashlib.sha256(content.encode()).hexdigest(), **made}
        self._made = (values, made)
        return {**made}

    def secrets(self, node: PlannedNode, values: dict[str, str]) -> dict[str, Json]:
        """Where a host finds the secrets that this configuration needs on a node, by name."""
        if not self._sources:
            return {}
        found = self.operation(node, values).get("secrets")
        return dict(found) if isinstance(found, dict) else {}

    def needs(self, values: Values) -> dict[str, Json]:
        """As whom the daemon runs and on which ports it listens: what a host can look at before a stop."""
        user: Json = None
        if self._user is not None:
            groups: Json = None if self._groups is None else [put(values) for put in self._groups]
            user = {"name": self._user(values), "groups": groups}
        return {"user": user, "ports": [put(values) for put in self._ports]}

    def _used(self, values: Values, texts: Iterable[Json]) -> dict[str, Json]:
        return {name: self.source(name, values) for name in sorted(names(texts))}

    def source(self, name: str, values: Values) -> Json:
        """Where a host finds a secret."""
        return self._sources[name](values)


def own_settings(node: PlannedNode, configuration: Configuration) -> dict[str, str]:
    """A node's own settings by the names its release knows them by."""
    if not node.settings:
        return {}
    names, gone = configuration.renamed, set(configuration.removed)
    return {names.get(key, key): value for key, value in node.settings.items() if key not in gone}


def node_values(node: PlannedNode, index: int) -> dict[str, str]:
    """What the ``node.*`` placeholders, and the node's own ``vars``, stand for."""
    values = {
        "node.name": node.name,
        "node.address": node.address,
        "node.platform": node.platform,
        "node.index": str(index),
        "node.root": node.root,
        "node.current": f"{node.root}/current",
        "node.config": f"{node.root}/config/current",
        "node.data": f"{node.root}/data",
    }
    for label, value in node.labels.items():
        values[f"node.labels.{label}"] = value
    for name, value in node.vars.items():
        values[f"vars.{name}"] = value
    return values


_kept: OrderedDict[int, Rendering] = OrderedDict()
_KEEP = 8


def rendering(plan: Plan) -> Rendering:
    """The rendering of a plan; the last few are kept, so that calling this for each node costs nothing."""
    found = _kept.get(id(plan))
    # The kept rendering holds its plan, so an id cannot have gone to another plan meanwhile.
    if found is None:
        found = _kept[id(plan)] = Rendering(plan)
        while len(_kept) > _KEEP:
            _kept.popitem(last=False)
    return found


def operations(  # noqa: PLR0913 - whom, what and for whom: a model would only rename them
    plan: Plan,
    node: int,
    program: ProgramName,
    leg: int,
    *,
    run_id: str,
    epoch: int,
    snapshot_epoch: int | None = None,
) -> tuple[Operation, ...]:
    """The host operations of one leg on one node, with their idempotency keys (docs/host-protocol.md).

    ``stage`` comes with ``source: null``: whoever brings the archive to the host fills it in. Snapshots are named after the
    epoch they were made in; ``snapshot_epoch`` is that epoch when another run restores them.
    Parts that are equal for all nodes are shared between answers: treat them as constant.
    Raises ``KeyError`` or ``IndexError`` for a program or leg the plan does not have.
    """
    return rendering(plan).operations(
        node, program, leg, run_id=run_id, epoch=epoch, snapshot_epoch=snapshot_epoch
    )


def probes(
    plan: Plan, node: int, what: Probes, *, wave: int = 0, run_id: str = "", epoch: int = 0
) -> tuple[Json, ...]:
    """The probes to ask on one node: before the run (``preflight``), when a wave opens (``rules``, in the order of
    ``Wave.rules``), in its ``bake``, or whenever it is looked at whether it serves on the release ``before`` or
    ``after``. ``release.*`` is the new release in a ``bake`` and ``after``, the old one in the others.
    """
    return rendering(plan).probes(node, what, wave=wave, run_id=run_id, epoch=epoch)


def secrets(plan: Plan, node: int, *, run_id: str = "", epoch: int = 0) -> dict[str, Json]:
    """Where the host of a node finds the secrets that the new release's configuration and the probes need, by name."""
    return rendering(plan).secrets(node, run_id=run_id, epoch=epoch)
