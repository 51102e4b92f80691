"""The values that cross between workflows, activities and faces while a migration runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Json, Name
from kedge.model.order import Envelope, Expected, OrderVerdict, Tally
from kedge.model.plan import Choice, ProgramName

Phase = Literal[
    "preflight", "gate", "widening", "parked", "paused", "finalizing", "fencing", "going-back", "done", "aborted",
    "rolled-back", "preempted", "rejected",
]  # fmt: skip


class Run(Frozen):
    """What every workflow and activity of a run knows. ``epoch`` is the lease's; ``warrant`` is the digest of the
    :class:`Warrant` in the content-addressed store that says by whose signatures this run may act."""

    id: str
    fleet: Name
    plan: Digest
    epoch: int
    warrant: Digest


class Warrant(Frozen):
    """The signed orders a run acts on. Activities verify it before they act, whatever a workflow claims."""

    start: Envelope
    approvals: dict[str, tuple[Envelope, ...]] = {}


class LegRequest(Frozen):
    """One leg of one node. ``serial`` counts the legs this run scheduled (the middle of the fence token)."""

    run: Run
    node: int
    program: ProgramName
    leg: int
    serial: int
    wave: int | None = None


class LegDone(Frozen):
    """A leg that ended well: ``done`` steps were done, ``replayed`` were found done in the host's journal."""

    node: int
    done: int
    replayed: int
    seconds: float


class Failure(Frozen):
    """A node's leg that did not end well: where, the error's stable type, a sentence, and what was seen."""

    node: int
    name: str
    program: ProgramName
    leg: int
    step: str
    type: str
    said: str
    saw: dict[str, Json] = {}


class WaveRequest(Frozen):
    """A chunk of a wave (or of a way back): at most ``parallel`` legs in flight; no further node is begun once
    more than ``budget`` nodes failed."""

    run: Run
    wave: int | None
    program: ProgramName
    nodes: tuple[int, ...]
    parallel: Annotated[int, Field(ge=1)]
    budget: Annotated[int, Field(ge=0)]
    serial: int
    restart: dict[int, int] = {}
    """Leg to begin at, for nodes that already went through earlier legs."""


class WaveResult(Frozen):
    """What became of a chunk. ``remaining`` were never begun (held, or the budget was spent)."""

    done: int
    steps: int
    replayed: int
    failures: tuple[Failure, ...] = ()
    remaining: tuple[int, ...] = ()
    fenced: bool = False


class WideningRequest(Frozen):
    """Run waves from ``wave`` on, until a decision is needed. ``only`` restricts the first wave to these nodes
    (a retry); ``down`` nodes are known to be out and count against ``max_unavailable``."""

    run: Run
    wave: int
    serial: int
    passed: tuple[Name, ...] = ()
    only: tuple[int, ...] | None = None
    bake_only: bool = False
    down: tuple[int, ...] = ()
    failures: int = 0


class WideningStop(Frozen):
    """Why widening returned: a gate stands before ``wave``, all waves are done, nodes failed, it was held, or a
    newer token has the hosts."""

    why: Literal["gate", "done", "failed", "held", "fenced"]
    wave: int
    serial: int
    gate: Name | None = None
    done: int = 0
    steps: int = 0
    replayed: int = 0
    failures: tuple[Failure, ...] = ()
    remaining: tuple[int, ...] = ()
    where: Literal["wave", "bake", ""] = ""


class Showing(Frozen):
    """What a person is shown before signing; its digest goes into the order."""

    run: str
    plan: Digest
    subject: str
    title: str
    said: tuple[str, ...] = ()
    wave: int | None = None
    waves: int = 0
    nodes_done: int = 0
    nodes: int = 0
    failures: tuple[Failure, ...] = ()
    reversible: str = ""
    lost: str = ""
    choices: tuple[Choice, ...] = ()


class Waiting(Frozen):
    """What a run waits for: ``subject`` is the gate or parked item, ``since`` and ``until`` are RFC 3339."""

    kind: Literal["gate", "parked", "paused", "bake"]
    subject: str
    since: str
    until: str | None = None
    showing: Showing
    shown: Digest
    tally: Tally | None = None


class RunStatus(Frozen):
    """What a query of an Upgrade or Rollback answers."""

    run: str
    fleet: Name
    kind: Literal["upgrade", "rollback"]
    plan: Digest
    epoch: int
    phase: Phase
    said: str
    requester: str
    before: str
    after: str
    waves: int
    wave: int
    nodes: int
    nodes_done: int
    failures: tuple[Failure, ...] = ()
    waiting: Waiting | None = None
    child: str | None = None
    """Workflow id of the widening or wave that runs now."""
    started: str
    ended: str | None = None
    outcome: str = ""
    successor: str | None = None
    """The rollback that took over, when there is one."""
    orders: tuple[OrderVerdict, ...] = ()
    steps: int = 0
    replayed: int = 0
    seconds: dict[str, float] = {}
    """Seconds spent in each phase so far."""
    policy: Digest | None = None


class WaveProgress(Frozen):
    """What a query of a Wave answers: node indexes by state."""

    wave: int | None
    program: ProgramName
    waiting: tuple[int, ...]
    running: tuple[int, ...]
    done: tuple[int, ...]
    failed: tuple[int, ...]


class WideningProgress(Frozen):
    """What a query of a CanaryWidening answers."""

    wave: int
    state: Literal["opening", "upgrading", "baking", "stopping"]
    child: str | None
    until: str | None = None
    nodes_done: int = 0


class FleetStatus(Frozen):
    """What a query of a Fleet answers. ``holder`` is the run that has the lease."""

    fleet: Name
    epoch: int
    holder: str | None
    last: str | None
    release: str | None
    """Version the last finished run left on the fleet, when one did."""
    release_document: Digest | None = None
    runs: tuple[str, ...] = ()
    verdicts: tuple[OrderVerdict, ...] = ()


class Submitted(Frozen):
    """Answer to an order sent as an update: the verdict, and the run it started, if it did."""

    verdict: OrderVerdict
    run: str | None = None


class JudgeRequest(Frozen):
    """To the activity that verifies orders: the envelope and what it must say. The policy is the one pinned on the
    worker for this fleet, never one that came over the wire."""

    envelope: Envelope
    expected: Expected
    fleet: Name
    gate: Name | None = None
    signed: tuple[OrderVerdict, ...] = ()


class Observed(Frozen):
    """What the hosts of a chunk look like, as index lists (a node is in exactly one of the first five)."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    unreachable: tuple[int, ...] = ()
    stopped: tuple[int, ...] = ()
    """Nodes (of any of the above) whose daemon does not run."""
    started_after: tuple[int, ...] = ()
    """Nodes on which this plan's new release was ever started: a failed start counts."""
    problems: tuple[Failure, ...] = ()


class ChunkRequest(Frozen):
    """Preflight, fencing, baking: one activity for many nodes."""

    run: Run
    nodes: tuple[int, ...]
    serial: int
    wave: int | None = None


class PlanFacts(Frozen):
    """The little a workflow needs of a plan; read once by an activity."""

    nodes: int
    waves: int
    before: str
    after: str
    release_document: Digest
    before_document: Digest
    """Digest of the release document the plan starts from."""
    start_gate: Name | None
