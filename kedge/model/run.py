"""The values that cross between workflows, activities and faces while a migration runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from kedge.model.base import Digest, Frozen, Json, Name
from kedge.model.order import Envelope, Expected, OrderVerdict
from kedge.model.plan import Gate, PointOfNoReturn, ProgramName, WayBack
from kedge.model.review import Review

Phase = Literal[
    "preflight", "gate", "widening", "parked", "paused", "finalizing", "fencing", "going-back", "done", "aborted",
    "rolled-back", "preempted", "rejected", "terminated",
]  # fmt: skip
"""``terminated`` is what user interfaces say of a run whose workflow Temporal ended: no run says it of itself."""


MAX_EPOCH = 2**48
"""No lease has a higher epoch, and no host takes one: numbers of leases stay whole numbers of JSON for good."""


class Run(Frozen):
    """What every workflow and activity of a run knows. ``epoch`` is the lease's; ``warrant`` is the digest of the
    :class:`Warrant` in the content-addressed store that says by whose signatures this run may act.
    """

    id: str
    fleet: Name
    plan: Digest
    epoch: Annotated[int, Field(ge=0, le=MAX_EPOCH)]
    warrant: Digest
    snapshots: int = 0
    """The epoch in which the snapshots were made that a way back restores; 0: this run's own."""


class Warrant(Frozen):
    """The signed orders a run acts on. Activities verify it before they act, whatever a workflow claims."""

    start: Envelope
    approvals: dict[str, tuple[Envelope, ...]] = {}


class LegRequest(Frozen):
    """One leg of one node. ``serial`` counts the legs this run scheduled (the middle of the fence token)."""

    run: Run
    node: Annotated[int, Field(ge=0)]
    program: ProgramName
    leg: Annotated[int, Field(ge=0)]
    serial: int
    round: Annotated[int, Field(ge=0)] = 0
    """Grows when a step is done again on purpose (a person's retry, a daemon that died at its start). Commands,
    snapshots and restores keep their key over all rounds: done once is done."""
    wave: int | None = None
    anew: Annotated[int, Field(ge=0)] = 0
    """How often a person said to try again so far: a command of which nobody knows how it ended is executed again when
    this grew since it was begun."""
    accepted: tuple[int, ...] = ()
    """Nodes that do not serve, without which a person said to go on."""

    def at(self, node: int) -> LegRequest:
        """The same leg of another node."""
        return self.model_copy(update={"node": node})


class TeamRequest(Frozen):
    """The same leg of several nodes, all begun at once. ``leg`` is that of the first of ``nodes``."""

    leg: LegRequest
    nodes: Annotated[tuple[int, ...], Field(min_length=1)]


class LegDone(Frozen):
    """A leg that ended well: ``done`` steps were done, ``replayed`` were found done in the host's journal."""

    node: int
    done: int
    replayed: int
    seconds: float


class Failure(Frozen):
    """A node's leg that did not end well: where, the error's stable type, a sentence, and what was seen.

    ``node`` is ``THE_RUN`` when it is no node's failure but the whole run's: nobody can do without it.
    """

    node: int
    name: str
    program: ProgramName
    leg: int
    step: str
    type: str
    said: str
    saw: dict[str, Json] = {}
    changed: bool = False
    """Of a node that does not serve: this run moved it to the new release already."""
    reported: bool = False
    """A host said so: it is not made of silence, of a refusal, or of another run's fence."""


THE_RUN = -1
"""The node of a failure that is the whole run's."""


class Missed(Frozen):
    """A node whose leg did not end well, and why: which may lie with no node."""

    node: int
    failure: Failure


class TeamDone(Frozen):
    """What became of each node of a team."""

    done: tuple[LegDone, ...] = ()
    missed: tuple[Missed, ...] = ()


def failure_of_the_run(
    kind: str,
    said: str,
    program: ProgramName = "forward",
    saw: Mapping[str, Json] | None = None,
) -> Failure:
    """A failure that lies with no node: its work may not or cannot be done at all."""
    return Failure(
        node=THE_RUN,
        name="the run",
        program=program,
        leg=0,
        step="",
        type=kind,
        said=said[:2000],
        saw=dict(saw or {}),
    )


def beside(failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
    """The failures without refused admissions, where a node failed: that the record lets nothing more begin follows."""
    if all(failure.node == THE_RUN for failure in failures):
        return failures
    return tuple(failure for failure in failures if failure.type != "NotAdmitted")


WHOLE_FAILURES = 20
"""Failures told with everything that was seen; of further ones only the name and the beginning of the sentence."""


def bounded(failures: tuple[Failure, ...]) -> tuple[Failure, ...]:
    """The same failures, small enough to travel however many there are (ten thousand stay below 2 MB)."""
    return tuple(
        failure
        if index < WHOLE_FAILURES
        else failure.model_copy(update={"saw": {}, "said": failure.said[:60]})
        for index, failure in enumerate(failures)
    )


class LegFacts(Frozen):
    """How a leg is scheduled: ``timeout`` and ``backoff`` in seconds, ``attempts`` before it counts as failed."""

    timeout: float
    attempts: int
    backoff: float


class WaveFacts(Frozen):
    """A wave without its nodes: ``gates`` stand before it; ``bake`` seconds follow, looked at every ``interval``."""

    name: Name
    size: int
    parallel: int
    gates: tuple[Name, ...] = ()
    bake: float = 0.0
    interval: float = 5.0


class PlanFacts(Frozen):
    """The little a workflow needs of a plan; read once by an activity."""

    nodes: int
    before: str
    after: str
    before_document: Digest
    after_document: Digest
    start_gate: Name | None
    waves: tuple[WaveFacts, ...]
    gates: tuple[Gate, ...]
    legs: dict[ProgramName, tuple[LegFacts, ...]]
    commit: PointOfNoReturn | None = None
    finalize_node: int | None = None
    failure_budget: int = 0
    on_failure: Literal["park", "rollback"] = "park"
    way_back: tuple[WayBack, ...] = ()
    policy: Digest | None = None
    """The policy the plan was made with."""


class WaveRequest(Frozen):
    """A chunk of a wave: at most ``parallel`` nodes in flight; no further one is begun once more than ``budget`` failed.

    ``wave`` is, of a way back, the number of waves that were begun; of finalize steps None. ``legs`` are those of
    ``program``.
    """

    run: Run
    wave: int | None
    program: ProgramName
    legs: tuple[LegFacts, ...]
    nodes: tuple[int, ...]
    parallel: Annotated[int, Field(ge=1)]
    budget: Annotated[int, Field(ge=0)]
    serial: int
    round: Annotated[int, Field(ge=0)] = 0
    anew: Annotated[int, Field(ge=0)] = 0
    """See ``LegRequest``."""
    accepted: tuple[int, ...] = ()
    """See ``LegRequest``."""
    redo: tuple[int, ...] = ()
    """See ``Again``."""
    quick: bool = False
    """The last legs of the chunk before were quick: nodes share activities from the beginning."""


class WaveResult(Frozen):
    """What became of a chunk. ``remaining`` were never begun: it was ``held``, or the budget was spent."""

    done: int
    steps: int
    replayed: int
    failures: tuple[Failure, ...] = ()
    remaining: tuple[int, ...] = ()
    fenced: bool = False
    held: bool = False
    refused: bool = False
    """The record has an order by which nothing further may begin."""
    quick: bool = False
    """The last legs were quick."""


class Again(Frozen):
    """A wave taken up again: only these ``nodes`` still need their legs (none: only the bake is repeated).

    ``redo`` are those of them that failed: they may not serve, and are worked on before any that serves is stopped.
    ``ensure``: a person said so, and before the bake is repeated, what should run and does not is started.
    """

    nodes: tuple[int, ...] = ()
    redo: tuple[int, ...] = ()
    round: int = 0
    ensure: bool = False


class WideningRequest(Frozen):
    """Run waves from ``wave`` on, until a decision is needed. ``down`` nodes are out (skipped by a person, or failed
    within the budget): they are not touched, count against the failure budget, and are among the unavailable.
    ``accepted`` are those without which a person said to go on. ``failures`` (those within the budget), ``done``,
    ``steps`` and ``replayed`` carry on over continue-as-new.
    """

    run: Run
    facts: PlanFacts
    wave: int
    serial: int
    passed: tuple[Name, ...] = ()
    again: Again | None = None
    down: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    there: tuple[int, ...] = ()
    """Nodes that ran the new release before this run began: nothing is done to them."""
    absent: tuple[int, ...] = ()
    """Nodes that were moved and do not serve, without which a person said to go on."""
    ensure: bool = False
    """A person said to try again: before the first look, what should run and does not is started."""
    failures: tuple[Failure, ...] = ()
    done: int = 0
    steps: int = 0
    replayed: int = 0
    quick: bool = False
    """See ``WaveRequest``."""


class WideningStop(Frozen):
    """Why widening returned: a gate stands before ``wave``, all waves are done, nodes failed, it was held, or a
    newer token has the hosts. ``done``, ``steps``, ``replayed`` count since the request; ``down`` is the request's
    plus the nodes that failed within the budget.
    """

    why: Literal["gate", "done", "failed", "held", "fenced"]
    wave: int
    serial: int
    gate: Name | None = None
    done: int = 0
    steps: int = 0
    replayed: int = 0
    failures: tuple[Failure, ...] = ()
    remaining: tuple[int, ...] = ()
    down: tuple[int, ...] = ()
    where: Literal["", "wave", "bake", "serving"] = ""
    """Where it failed or was held: among the legs of the wave, in its bake, or because too many nodes do not serve."""
    said: str = ""
    """Why, where the failures do not say it."""


class Submitted(Frozen):
    """Answer to an order sent as an update: the verdict, and the run it started, if it did."""

    verdict: OrderVerdict
    run: str | None = None


class Lease(Frozen):
    """A fleet as its own orders find it: which run has it, the plan of that run or the last, and by run the plans of
    those that owe a review.
    """

    holder: str | None = None
    plan: Digest | None = None
    reviews: dict[str, Digest] = {}
    owed: tuple[Review, ...] = ()
    """Those reviews, as people are shown them."""


class Refused(Frozen):
    """A verdict that was not reached by judging an envelope, on its way into the evidence."""

    fleet: Name
    verdict: OrderVerdict


class JudgeRequest(Frozen):
    """To the activity that verifies orders: the envelope and what it must say. The policy is the one pinned on the
    worker for this fleet, never one that came over the wire.
    """

    envelope: Envelope
    expected: Expected
    fleet: Name
    run: Run | None = None
    """The run it is judged for; None for orders to the fleet itself."""
    gate: Gate | None = None
    signed: tuple[OrderVerdict, ...] = ()
    lease: Lease | None = None
    """For orders to a fleet: these name their plan themselves; it must be in the store and of this fleet."""
    pin: int = 0
    """The highest number of a policy that was seen pinned: a worker with an older one does not judge."""
    quiet: bool = False
    """So much was refused that what is not proven to be of a person is not written down any more."""


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
    mixed: tuple[int, ...] = ()
    """Nodes whose daemon runs another release than ``current`` points to."""
    reconfigured: tuple[int, ...] = ()
    """Nodes on the old release with another configuration than the one that ran with it before."""
    unsure: tuple[int, ...] = ()
    """Nodes on the old release of which nobody knows the configuration that ran with it before."""
    edited: tuple[int, ...] = ()
    """Nodes on which the configuration that runs was changed by hand."""
    problems: tuple[Failure, ...] = ()
    finalized: bool = False
    """The finalize steps were begun in the upgrade that is looked at."""
    restored: bool = False
    """A way back of that upgrade began to restore snapshots: whoever goes on restores too."""
    fenced: bool = False
    unknown_fence: int = 0
    """The highest epoch of a fence on these hosts that no lease in the record has; 0: there is none above the run's."""


class LookRequest(Frozen):
    """Look whether these nodes serve now. What was seen a moment ago is reused, but not of the waves before ``wave``: these
    nodes were moved, and are looked at each time. ``down`` nodes were left out and may run either release.

    ``end``: every node is looked at, and must be on the new release; ``baseline``: every node is looked at. ``ensure``: first start what should run and does
    not (a person's retry).
    """

    run: Run
    wave: int
    nodes: tuple[int, ...]
    why: Literal["gate", "wave", "end", "baseline"]
    serial: int
    down: tuple[int, ...] = ()
    ensure: bool = False


class Looked(Frozen):
    """What a look saw: the nodes that do not serve (``failures``); ``problem`` when it may not look at all."""

    nodes: int = 0
    failures: tuple[Failure, ...] = ()
    fenced: bool = False
    problem: Failure | None = None


class UpgradeRequest(Frozen):
    """What the Fleet starts an Upgrade with; ``state`` is carried over continue-as-new."""

    run: Run
    requester: str
    state: Json = None


class RollbackRequest(Frozen):
    """What a Rollback starts with. ``of`` is the run it undoes; ``automatic`` when the runbook, not a person, ordered
    it: it then never crosses the point of no return. ``serial`` is the first serial it may use.
    """

    run: Run
    requester: str
    of: str
    ordered: OrderVerdict | None = None
    """The order that broke the glass for it, if one did: people see it with the run."""
    automatic: bool = False
    serial: int = 1
    state: Json = None


class RunEnd(Frozen):
    """What a run returns: how it ended and which release document the fleet is on (None: mixed)."""

    run: str
    phase: Phase
    said: str
    release: str | None = None
    release_document: Digest | None = None
    nodes_done: int = 0
    steps: int = 0
    replayed: int = 0
    successor: str | None = None
    glass: tuple[Envelope, ...] = ()
    """The orders that broke the glass in it: the fleet owes a review for them."""


class FleetFacts(Frozen):
    """A fleet as its record has it. ``plan`` is the plan of ``last``, the run that got the newest lease; ``holder`` is
    that run while its workflow goes on.
    """

    fleet: Name
    epoch: int = 0
    holder: str | None = None
    last: str | None = None
    plan: Digest | None = None
    runs: tuple[str, ...] = ()


class FleetJudged(Frozen):
    """What came of an order to a fleet: the verdict, the ``run`` that it begins, and the run that it takes back
    (``of``) or takes the lease from (``loser``). ``facts`` are the fleet's from then on.
    """

    verdict: OrderVerdict
    facts: FleetFacts
    run: Run | None = None
    of: str = ""
    loser: str | None = None


class GlassNotice(Frozen):
    """From a run to its Fleet, before it follows an order that breaks the glass; the Fleet verifies the order."""

    run: str
    envelope: Envelope


class GlassRequest(Frozen):
    """To the activity that verifies what a run told its fleet."""

    fleet: Name
    notice: GlassNotice


class Preempted(Frozen):
    """From the Fleet to the run that loses the lease, with the order that took it; the run verifies the order."""

    epoch: int
    successor: str
    envelope: Envelope


class FleetState(Frozen):
    """A Fleet's memory over continue-as-new. ``plan`` is the plan of the holder or of the last run."""

    fleet: Name
    epoch: int = 0
    holder: str | None = None
    last: str | None = None
    plan: Digest | None = None
    release: str | None = None
    release_document: Digest | None = None
    runs: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    verdicts: tuple[OrderVerdict, ...] = ()
    refused: int = 0
    """Refusals since the last run began."""
    pin: int = 0
    """The highest number of a policy that a worker had pinned."""
    reviews: tuple[Review, ...] = ()
    glass: tuple[Digest, ...] = ()
    """Orders that broke the glass and are known here, reviewed ones too: none is reviewed twice."""


class Opened(Frozen):
    """A wave opened: its nodes in the order that was just observed, in batches that run one after the other; or why
    it cannot be.
    """

    batches: tuple[tuple[int, ...], ...] = ()
    failure: Failure | None = None


class CheckRequest(Frozen):
    """One look at a wave's nodes during its bake, but for those in ``skip``. ``ensure``: first start what should run and does not (after a person's retry)."""

    run: Run
    wave: int
    skip: tuple[int, ...] = ()
    serial: int
    ensure: bool = False


class Checked(Frozen):
    """Nodes that did not pass; empty is a pass."""

    failures: tuple[Failure, ...] = ()
    fenced: bool = False
    passed: bool = False
    """The looks in the record cover the bake over its whole time."""


class ObserveRequest(Frozen):
    """Raise the fence on these nodes and look at them; ``probes``: also the runbook's preflight probes."""

    run: Run
    nodes: tuple[int, ...]
    serial: int
    probes: bool = False


class EnsureResult(Frozen):
    """What ``kedge up`` did for a fleet, and what it saw at its end: counts of nodes, and a sentence for each that does
    not run and should. ``stopped`` are those that do not run and should not: a run stopped them.
    """

    fleet: Name
    nodes: int
    installed: int = 0
    started: int = 0
    running: int = 0
    stopped: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """What can be done where the release itself is the problem."""


class OpenRequest(Frozen):
    """Open a wave: look which of its nodes go last, leave out those in ``skip``.

    ``only``: take up just these, which may be of earlier waves too.
    """

    run: Run
    wave: int
    only: tuple[int, ...] | None = None
    skip: tuple[int, ...] = ()
    serial: int


class WarrantUpdate(Frozen):
    """Store a warrant: a new one from its ``start`` order, or ``base`` with the approvals of one more gate."""

    base: Digest | None = None
    start: Envelope | None = None
    gate: Name | None = None
    approvals: tuple[Envelope, ...] = ()


class ReturnRequest(Frozen):
    """Decide the way back of a plan from what was observed."""

    run: Run
    seen: Observed
    automatic: bool
    unseen: tuple[int, ...] = ()
    """Nodes that cannot be reached now: the others go back without them."""
    given_up: tuple[int, ...] = ()
    """Nodes that a person said to leave as they are."""


class Note(Frozen):
    """What a workflow says of its decisions, on its way into the evidence; ``key`` makes it stand there once, among what
    this run says.
    """

    run: Run
    key: str
    record: dict[str, Json]


class HolderSeen(Frozen):
    """Whether a run's workflow is closed, and what it returned (None when it was terminated or failed)."""

    ended: bool
    end: RunEnd | None = None


class EndRequest(Frozen):
    """To the activity that writes down how a run ended."""

    run: Run
    outcome: Phase
    said: str


class EndVerdict(Frozen):
    """Whether the record bears out how a run says that it ended; ``missing`` are nodes that it has no leg of.

    ``release``: the side of the plan that every node was left on.
    """

    ok: bool
    said: str = ""
    missing: tuple[int, ...] = ()
    release: Literal["before", "after"] | None = None
