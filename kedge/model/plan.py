"""The Plan: what will happen to which node, in which order, behind which gate, and the way back.

A plan is made by ``kedge.plan.compile`` from four documents, stored by digest in the content-addressed
store, and only read from then on. Workflows carry its digest and node indexes, never nodes.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kedge.model.base import MOST_ATTEMPTS, Digest, Frozen, Json, Name, Seconds
from kedge.model.packing import Packing
from kedge.model.release import ReleaseArtifact
from kedge.model.secret import SecretSource

Effect = Literal["none", "reversible", "restorable", "irreversible"]
"""What undoing costs: nothing was changed; undone by the opposite step; undone by restoring a snapshot (writes
since then are lost); cannot be undone."""

ProgramName = Literal["forward", "back", "restore", "finalize"]
WayBackKind = Literal["none", "switch-back", "restore", "forbidden"]
Verb = Literal[
    "start", "approve", "reject", "pause", "resume", "abort", "decide", "rollback", "review"
]
Risk = Literal["routine", "elevated", "irreversible"]
"""What a plan puts at stake (``kedge.plan.risk``)."""
Choice = Literal["retry", "skip", "rollback", "abort"]


class DocumentRef(Frozen):
    """A document this plan was made from. ``digest`` is over its parsed canonical form, not its bytes."""

    name: Name
    digest: Digest


class Artifact(Packing):
    """One archive: ``digest`` and ``length`` (bytes) of its bytes. ``source`` is where the artifact driver finds it,
    ``mirrors`` where else; plans leave both empty: a plan knows an archive by its digest alone.
    """

    platform: str
    digest: Digest
    length: Annotated[int, Field(ge=1)]
    source: str = ""
    mirrors: tuple[str, ...] = ()

    @classmethod
    def of(cls, platform: str, one: ReleaseArtifact, *, placed: bool = True) -> Artifact:
        """The archive of a release for a platform; with where it is, unless it is for a plan."""
        return cls(
            platform=platform,
            digest=one.digest,
            length=one.length,
            source=one.source if placed else "",
            mirrors=one.mirrors if placed else (),
            strip=one.strip,
            program=one.program,
        )


class ServiceTemplate(Frozen):
    """How the daemon is run, with placeholders (see ``kedge.plan.render``)."""

    argv: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = {}
    cwd: str = "{node.root}"
    user: str | None = None
    """The account it runs as; None is left to the host (docs/host-protocol.md)."""
    groups: tuple[str, ...] | None = None
    ports: tuple[str, ...] = ()


class Configuration(Frozen):
    """What one release runs with: files and service as templates, ``settings`` after the release's renames."""

    settings: dict[str, str] = {}
    renamed: dict[str, str] = {}
    """For the nodes' own settings: old name to new."""
    removed: tuple[str, ...] = ()
    files: dict[str, str] = {}
    service: ServiceTemplate
    secrets: dict[str, SecretSource] = {}
    """Where the host finds what ``{secret.NAME}`` stands for."""


class PlannedRelease(Frozen):
    """A release as far as a plan needs it."""

    component: Name
    version: str
    reports: str
    """What the running software says its version is."""
    document: Digest
    artifacts: tuple[Artifact, ...]
    configuration: Configuration


class PlannedNode(Frozen):
    """One node. Its index in ``Plan.nodes`` is how everything else refers to it."""

    name: Name
    address: str
    platform: str
    root: str
    transport: str
    service: str
    labels: dict[str, str] = {}
    options: dict[str, Json] = {}
    vars: dict[str, str] = {}
    """This node's own, over the plan's."""
    settings: dict[str, str] = {}
    """This node's own, over the configuration's; before the release's renames."""


class Step(Frozen):
    """One operation of the host program, with placeholders in ``params``.

    ``name`` is unique in its program and part of the idempotency key. ``timeout`` bounds the step in seconds,
    ``effect`` says what undoing it costs once it was begun, ``when`` is a probe (false: skipped).
    """

    name: Name
    op: str
    params: dict[str, Json] = {}
    when: dict[str, Json] | None = None
    effect: Effect = "none"
    timeout: Seconds
    said: str = ""


class Leg(Frozen):
    """Steps between two decisions: one activity, one connection, one call of the host program.

    ``attempts`` is how often it is tried before it parks.
    """

    steps: tuple[Step, ...] = Field(min_length=1)
    attempts: Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)] = 3
    backoff: Seconds = 1.0


class Program(Frozen):
    """What is done on one node in one direction."""

    name: ProgramName
    legs: tuple[Leg, ...]


class Gate(Frozen):
    """Approvals: ``threshold`` distinct people with distinct keys, each of one of ``roles``; every role in
    ``each_of`` must be among them. ``expires`` is how long the gate waits before it parks, in seconds.
    """

    name: Name
    threshold: Annotated[int, Field(ge=1, le=20)]
    roles: tuple[Name, ...] = Field(min_length=1)
    each_of: tuple[Name, ...] = ()
    requester_counts: bool = False
    expires: Seconds
    reason: str = ""


class Bake(Frozen):
    """After a wave: ``duration`` seconds in which its nodes are looked at every ``interval`` seconds with ``probe``."""

    duration: Seconds
    interval: Annotated[float, Field(gt=0, le=3600)] = 5.0
    probe: dict[str, Json] | None = None


class OrderRule(Frozen):
    """Within a wave: nodes for which ``probe`` passes when the wave opens go ``last`` (or first)."""

    probe: dict[str, Json]
    last: bool = True


class Wave(Frozen):
    """``batches`` run one after the other (one failure domain at a time); within a batch at most
    ``max_unavailable`` nodes are in flight or down. ``gate`` must be passed before the wave begins.
    """

    index: int
    name: Name
    batches: tuple[tuple[int, ...], ...] = Field(min_length=1)
    max_unavailable: Annotated[int, Field(ge=1)]
    gate: Name | None = None
    bake: Bake | None = None
    rules: tuple[OrderRule, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """All node indexes in planned order."""
        return tuple(node for batch in self.batches for node in batch)


class Serving(Frozen):
    """What a node must answer to count as serving, by the release that it should run, beside that its daemon runs.
    None: nothing more.
    """

    before: dict[str, Json] | None = None
    after: dict[str, Json] | None = None


class PointOfNoReturn(Frozen):
    """Where the way back ends. ``wave`` is the index of the first wave behind it, or None when it is the finalize
    step. ``gate`` guards it; ``lost`` says in words what can no longer be had afterwards.
    """

    wave: int | None
    gate: Name
    lost: str


class WayBack(Frozen):
    """The way back from a point: ``from_wave`` is the number of waves begun (0: only preflight)."""

    from_wave: int
    kind: WayBackKind
    gate: Name | None = None
    lost: str = ""


class MixedState(Frozen):
    """A state the plan passes through and whether its releases may live together (``kedge.plan.company``)."""

    said: str
    ok: bool
    why: str = ""


class Plan(Frozen):
    """The whole. :func:`kedge.plan.digest.plan_digest` is over its canonical form.

    A plan is made on any machine, so what reads one holds it to being whole: who signs what a view says of a wave, a gate
    or the way back must have signed what is done. One that contradicts itself is no plan (``ValueError``), see
    :func:`contradictions`.
    """

    format: Literal[1] = 1
    fleet: DocumentRef
    environment: Name
    runbook: DocumentRef
    policy: DocumentRef
    before: PlannedRelease
    after: PlannedRelease
    nodes: tuple[PlannedNode, ...] = Field(min_length=1)
    vars: dict[str, str] = {}
    """What templates may ask for: the runbook's, the fleet's, joins over nodes already made."""
    preflight: tuple[Step, ...] = ()
    """Probes that must pass on every node before the first step."""
    serving: Serving = Serving()
    programs: tuple[Program, ...]
    waves: tuple[Wave, ...] = Field(min_length=1)
    finalize_node: int | None = None
    """The node the finalize program runs on; None when there is none."""
    gates: tuple[Gate, ...]
    start_gate: Name | None = None
    moved_gates: tuple[Name, ...] = ()
    """Gates of waves that this fleet is too small for: no wave comes after them, so they are asked before the first
    stop."""
    commit: PointOfNoReturn | None = None
    way_back: tuple[WayBack, ...]
    after_commit: Literal["forbidden", "restore"] = "forbidden"
    failure_budget: Annotated[int, Field(ge=0)] = 0
    on_failure: Literal["park", "rollback"] = "park"
    mixed: tuple[MixedState, ...] = ()

    def program(self, name: ProgramName) -> Program:
        """The program of that name; raises ``KeyError`` when the plan has none."""
        for program in self.programs:
            if program.name == name:
                return program
        raise KeyError(name)

    def gate(self, name: str) -> Gate:
        """The gate of that name; raises ``KeyError``."""
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise KeyError(name)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        found = contradictions(self)
        if found:
            raise ValueError("; ".join(found[:5]))
        return self


def contradictions(plan: Plan) -> tuple[str, ...]:
    """What in a plan does not fit together, in words; empty for every plan that the compiler makes.

    - waves stand in the order of their indexes, and each node is in exactly one of them;
    - names of gates, programs and waves are there once, and every gate that something names is there;
    - the point of no return stands before a wave of the plan, or before the finalize steps (None);
    - the ways back grow from the first on, and one that restores, and so loses writes, has a gate.
    """
    return (
        *_waves_wrong(plan),
        *_names_wrong(plan),
        *_ways_wrong(plan),
    )


def _waves_wrong(plan: Plan) -> list[str]:
    wrong = [
        f"wave {wave.name} has the index {wave.index} and stands at {at}"
        for at, wave in enumerate(plan.waves)
        if wave.index != at
    ]
    times = Counter(node for wave in plan.waves for node in wave.nodes)
    every = range(len(plan.nodes))
    wrong += [f"node {node} is not in the plan" for node in sorted(times) if node not in every]
    wrong += [f"node {node} is in {times[node]} waves" for node in every if times[node] != 1]
    if plan.finalize_node is not None and plan.finalize_node not in every:
        wrong.append(f"the node of the finalize steps, {plan.finalize_node}, is not in the plan")
    if (
        plan.commit is not None
        and plan.commit.wave is not None
        and not 0 <= plan.commit.wave < len(plan.waves)
    ):
        wrong.append(f"the point of no return stands before wave {plan.commit.wave}: there is none")
    return wrong


def _names_wrong(plan: Plan) -> list[str]:
    gates = [gate.name for gate in plan.gates]
    named = [
        plan.start_gate,
        *plan.moved_gates,
        *(wave.gate for wave in plan.waves),
        plan.commit.gate if plan.commit else None,
        *(way.gate for way in plan.way_back),
    ]
    wrong = [
        f"the plan names a gate {name} and does not have it"
        for name in dict.fromkeys(named)
        if name is not None and name not in gates
    ]
    for what, names in (
        ("gate", gates),
        ("program", [program.name for program in plan.programs]),
        ("wave", [wave.name for wave in plan.waves]),
        ("node", [node.name for node in plan.nodes]),
    ):
        wrong += [
            f"there are {times} of the name {name} ({what})"
            for name, times in Counter(names).items()
            if times > 1
        ]
    return wrong


def _ways_wrong(plan: Plan) -> list[str]:
    begins = [way.from_wave for way in plan.way_back]
    wrong = []
    if begins and (begins[0] != 0 or begins != sorted(set(begins))):
        wrong.append(f"the ways back begin at {begins}, which does not grow from 0 on")
    wrong += [
        f"the way back from wave {way.from_wave} on restores, and no gate stands before it"
        for way in plan.way_back
        if way.kind == "restore" and way.gate is None
    ]
    return wrong
