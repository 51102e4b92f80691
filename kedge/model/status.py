"""What a run and a fleet say of themselves: the answers of queries, which faces show to people."""

from __future__ import annotations

from typing import Literal

from kedge.model.base import Digest, Frozen, Name
from kedge.model.order import EvidenceSeen, OrderVerdict, Tally
from kedge.model.plan import Choice, ProgramName
from kedge.model.review import Review
from kedge.model.run import Failure, Phase


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
    looked: str | None = None
    """When the nodes were last looked at, of which ``showing`` speaks."""


class RunStatus(Frozen):
    """What a query of an Upgrade or Rollback answers."""

    run: str
    fleet: Name
    kind: Literal["upgrade", "rollback"]
    plan: Digest
    epoch: int
    phase: Phase
    held: bool = False
    """Paused: nothing further is begun until a resume, whatever gates are passed meanwhile."""
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
    evidence: EvidenceSeen | None = None
    """The end of the fleet's evidence as of this run's last record: who signs something now names it."""
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
    plan: Digest | None = None
    """Plan of the holder or of the last run: what a rollback order is about."""
    release: str | None
    """Version the last finished run left on the fleet, when one did."""
    release_document: Digest | None = None
    runs: tuple[str, ...] = ()
    verdicts: tuple[OrderVerdict, ...] = ()
    reviews: tuple[Review, ...] = ()
    """Open: somebody broke the glass, and nobody else looked at it yet."""
    known: bool = True
    """Whether the workflow has read the fleet's record yet."""
