"""Runbook: how one node is upgraded, how exposure widens, who must approve, and what the way back is."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kedge.model.base import MOST_ATTEMPTS, Frozen, Name
from kedge.model.notation import Count, Duration, Entry, Key, Path, Problem, Share, Text, refuse
from kedge.model.probe import Condition, Fact, Probe
from kedge.model.steps import HealthyStep, NodeStep, Positive, Verb, Written


class BakeRule(Entry):
    """Time after a wave in which its nodes are looked at every ``interval`` with ``probe`` (default: the conditions of
    the node's ``healthy`` steps).
    """

    duration: Positive
    interval: Annotated[Positive, Field(le=3600)] = 5.0
    probe: Condition | None = None


def _bake(value: object) -> object:
    return value if isinstance(value, dict) else {"duration": value}


Baking = Annotated[BakeRule, BeforeValidator(_bake)]


class Canary(Entry):
    """Wave 0: so many ``nodes`` first. ``gate`` stands behind it: after its bake, before the next wave."""

    nodes: Share = 1
    bake: Baking | None = None
    gate: Name | None = None


class Widening(Entry):
    """A wave that brings the part of the fleet on the new release ``to`` a share. ``gate`` stands before it."""

    to: Share
    name: Name | None = None
    gate: Name | None = None
    bake: Baking | None = None


def _widening(value: object) -> object:
    return value if isinstance(value, dict) else {"to": value}


class LastNode(Entry):
    """A wave of its own for the last node. ``gate`` stands before it."""

    gate: Name | None = None
    bake: Baking | None = None


def _last_node(value: object) -> object:
    return {} if value is True else value


class Waves(Entry):
    """How exposure widens.

    ``order``: groups of nodes by label values, first group first; every node must be in one. ``last``: within
    a wave, nodes for which this holds when the wave opens come last. ``domain``: the label of failure domains;
    one of them at a time. ``max_unavailable``: nodes that may be out at once, in flight or not serving for
    whatever reason, as a number or a part of the fleet.
    """

    order: Annotated[
        tuple[Annotated[dict[Key, Text], Field(min_length=1)], ...], Field(max_length=64)
    ] = ()
    last: Condition | None = None
    domain: Key | None = None
    canary: Canary | None = None
    widen: Annotated[
        tuple[Annotated[Widening, BeforeValidator(_widening)], ...],
        Field(min_length=1, max_length=64),
    ] = (Widening(to="100%"),)
    last_node: Annotated[LastNode, BeforeValidator(_last_node)] | None = None
    bake: Baking | None = None
    max_unavailable: Share = 1


class Approvals(Entry):
    """``threshold`` distinct people with one of ``roles``; each role of ``each_of`` among them."""

    threshold: Annotated[Count, Field(ge=1, le=20)] = 1
    roles: Annotated[tuple[Name, ...], Field(min_length=1)]
    each_of: tuple[Name, ...] = ()


class GateRule(Entry):
    """What must be signed before the run goes on. ``expires``: how long it waits before it parks."""

    approvals: Approvals
    expires: Positive = 3 * 86400.0
    reason: Text = ""


class CommitRule(Entry):
    """The point of no return: ``before`` the last-node wave, a wave by name, or the finalize steps. ``lost`` says in
    words what can no longer be had behind it.
    """

    before: Name
    gate: Name
    lost: Annotated[Text, Field(min_length=1)]


class Finalize(Entry):
    """Steps on one node (the first) when every node runs the new release; behind the commit gate."""

    steps: Annotated[tuple[Written, ...], Field(min_length=1, max_length=32)]


class StartRule(Entry):
    """The gate before the first step."""

    gate: Name


class AfterCommit(Entry):
    """The way back behind the point of no return: restoring snapshots, behind a gate of its own."""

    restore: Literal["snapshot"]
    gate: Name


class RollbackRule(Entry):
    """The way back before and behind the point of no return. ``healthy`` replaces the node's healthy steps there."""

    before_commit: Literal["switch-back", "forbidden"] = "switch-back"
    after_commit: Literal["forbidden"] | AfterCommit = "forbidden"
    healthy: HealthyStep | None = None


class Retry(Entry):
    """How often a leg is tried before it parks, and how long is waited between: ``backoff``, then twice as long each time.

    By default a bit more than a minute lies between the first try and the last: so long a port may still be taken by
    connections of the daemon before (TIME_WAIT), and a daemon that wants it ends at its start.
    """

    attempts: Annotated[Count, Field(ge=1, le=MOST_ATTEMPTS)] = 4
    backoff: Duration = 10.0


class Runbook(Frozen):
    """How a fleet of one component goes from one release to the next.

    ``facts`` are named conditions, some with parameters, ``preflight`` those that must hold on every node before the first step (by default
    what the ``healthy`` steps ask).
    ``vars`` are the defaults of what the runbook's templates ask for; a fleet's var of the same name wins.
    """

    kind: Literal["Runbook"] = "Runbook"
    name: Name
    about: Text = ""
    component: Name | None = None
    vars: dict[Key, Text] = {}
    facts: dict[Name, Fact] = {}
    preflight: Annotated[tuple[Condition, ...], Field(max_length=64)] = ()
    node: Annotated[tuple[Written, ...], Field(min_length=1, max_length=64)]
    waves: Waves = Waves()
    start: StartRule | None = None
    gates: dict[Name, GateRule] = {}
    commit: CommitRule | None = None
    finalize: Finalize | None = None
    failure_budget: Annotated[Count, Field(ge=0, le=20_000)] = 0
    on_failure: Literal["park", "rollback"] = "park"
    rollback: RollbackRule = RollbackRule()
    retry: Retry = Retry()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse([*self._step_problems(), *self._fact_problems(), *self._gate_problems()])
        return self

    def _step_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        at: dict[Verb, list[int]] = {}
        for index, step in enumerate(self.node):
            at.setdefault(step.verb, []).append(index)
        for verb in ("stage", "stop", "switch", "configure", "start"):
            found = at.get(verb, [])
            if not found:
                problems.append(
                    (
                        ("node",),
                        f"has no {verb} step; a node is moved by stage, stop, switch, configure, start",
                    )
                )
            problems += [
                (("node", index), f"a second {verb}; one is enough") for index in found[1:]
            ]
        problems += [
            (("node", index), "a second snapshot; one is enough")
            for index in at.get("snapshot", [])[1:]
        ]
        if not any(index > at.get("start", [0])[0] for index in at.get("healthy", [])):
            problems.append(
                (
                    ("node",),
                    "has no healthy step behind start; a node that is never looked at counts as moved whatever it does",
                )
            )
        return problems or self._sequence_problems(at)

    def _sequence_problems(self, at: dict[Verb, list[int]]) -> list[Problem]:
        problems: list[Problem] = []
        wanted: tuple[tuple[Verb, Verb, str], ...] = (
            ("stage", "stop", "the archive is on the host before the daemon stops"),
            ("stop", "switch", "the daemon is stopped before its files change"),
            ("switch", "configure", "the new release is there before its configuration"),
            ("configure", "start", "the configuration is there before the daemon starts"),
            ("stop", "snapshot", "a snapshot of a running daemon is none"),
            ("snapshot", "switch", "the snapshot is of the state before the switch"),
        )
        for first, then, why in wanted:
            if first in at and then in at and at[first][0] > at[then][0]:
                problems.append((("node", at[then][0]), f"{then} stands before {first}; {why}"))
        if self.finalize:
            allowed = ("probe", "wait", "run")
            problems += [
                (
                    ("finalize", "steps", index),
                    f"{step.verb} moves a node; finalize steps are {', '.join(allowed)}",
                )
                for index, step in enumerate(self.finalize.steps)
                if step.verb not in allowed
            ]
        return problems

    def _fact_problems(self) -> list[Problem]:
        return (
            [
                (
                    path,
                    f"no fact is named {probe.fact}; the runbook's facts are {', '.join(sorted(self.facts)) or 'none'}",
                )
                for path, probe in self.probes()
                if probe.fact is not None and probe.fact not in self.facts
            ]
            + [
                ((*path, *place), said)
                for path, probe in self.probes()
                if probe.fact is not None and probe.fact in self.facts
                for place, said in self.facts[probe.fact].argument_problems(probe.fact, probe)
            ]
            + [
                (("facts", name, "fact"), "a fact does not name another; write its condition")
                for name, fact in self.facts.items()
                if any(part.fact for part in _all_parts(fact))
            ]
        )

    def _gate_problems(self) -> list[Problem]:
        """Gates that are not there, or asked by nobody."""
        uses = self.gate_uses()
        have = ", ".join(sorted(self.gates)) or "none"
        used = {gate for _, gate in uses}
        return [
            (path, f"no gate is named {gate}; the runbook's gates are {have}")
            for path, gate in uses
            if gate not in self.gates
        ] + [
            (
                ("gates", gate),
                "stands before nothing; take it out or name it where it is asked",
            )
            for gate in self.gates
            if gate not in used
        ]

    def probes(self) -> list[tuple[Path, Probe]]:
        """Every probe written in the runbook with its place, those inside others included."""
        found: list[tuple[Path, Probe]] = [
            (("preflight", i), probe) for i, probe in enumerate(self.preflight)
        ]
        if self.waves.last:
            found.append((("waves", "last"), self.waves.last))
        found += [(path, rule.probe) for path, rule in self.bakes() if rule.probe is not None]
        lists: list[tuple[Path, tuple[NodeStep, ...]]] = [(("node",), self.node)]
        if self.finalize:
            lists.append((("finalize", "steps"), self.finalize.steps))
        if self.rollback.healthy:
            found.append((("rollback", "healthy"), self.rollback.healthy))
        for base, steps in lists:
            for index, step in enumerate(steps):
                found += _step_probes((*base, index, step.verb), step)
        return [(place, part) for path, probe in found for place, part in _inside(path, probe)]

    def bakes(self) -> list[tuple[Path, BakeRule]]:
        """Every bake of the runbook with its place."""
        waves = self.waves
        found: list[tuple[Path, BakeRule | None]] = [(("waves", "bake"), waves.bake)]
        if waves.canary:
            found.append((("waves", "canary", "bake"), waves.canary.bake))
        found += [(("waves", "widen", i, "bake"), wave.bake) for i, wave in enumerate(waves.widen)]
        if waves.last_node:
            found.append((("waves", "last_node", "bake"), waves.last_node.bake))
        return [(path, rule) for path, rule in found if rule is not None]

    def gate_uses(self) -> list[tuple[Path, str]]:
        """Every place that names a gate."""
        waves = self.waves
        found: list[tuple[Path, str | None]] = [
            (("start", "gate"), self.start.gate if self.start else None),
            (("waves", "canary", "gate"), waves.canary.gate if waves.canary else None),
            *((("waves", "widen", i, "gate"), wave.gate) for i, wave in enumerate(waves.widen)),
            (("waves", "last_node", "gate"), waves.last_node.gate if waves.last_node else None),
            (("commit", "gate"), self.commit.gate if self.commit else None),
        ]
        if isinstance(self.rollback.after_commit, AfterCommit):
            found.append((("rollback", "after_commit", "gate"), self.rollback.after_commit.gate))
        return [(path, gate) for path, gate in found if gate is not None]


def _step_probes(path: Path, step: NodeStep) -> list[tuple[Path, Probe]]:
    body = step.body
    found: list[tuple[Path, Probe]] = []
    if isinstance(body, Probe):
        found.append((path, body))
    if body.when is not None:
        found.append(((*path, "when"), body.when))
    if step.run is not None and step.run.check is not None:
        found.append(((*path, "check"), step.run.check))
    return found


def _inside(path: Path, probe: Probe) -> list[tuple[Path, Probe]]:
    found: list[tuple[Path, Probe]] = [(path, probe)]
    for key in ("all", "any"):
        for index, part in enumerate(getattr(probe, key) or ()):
            found += _inside((*path, key, index), part)
    if probe.negated is not None:
        found += _inside((*path, "not"), probe.negated)
    return found


def _all_parts(probe: Probe) -> list[Probe]:
    return [part for _, part in _inside((), probe)]
