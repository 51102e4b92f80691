"""The steps of one node as a runbook writes them: one verb each, with what the verb needs.

``- stage`` alone is ``- stage: {}``. What each verb does on a host is in docs/host-protocol.md; what it
costs to undo is computed by ``kedge.plan.boundary``, except for ``run``, whose author has to say it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kedge.model.base import MOST_ATTEMPTS, Name
from kedge.model.notation import Count, Duration, Entry, Flag, Key, Problem, Text, refuse
from kedge.model.probe import Condition, Probe

Verb = Literal[
    "stage", "probe", "wait", "run", "stop", "snapshot", "switch", "configure", "start", "healthy"
]  # fmt: skip
VERBS: tuple[Verb, ...] = (
    "stage", "probe", "wait", "run", "stop", "snapshot", "switch", "configure", "start", "healthy",
)  # fmt: skip
Positive = Annotated[Duration, Field(gt=0)]


_OURS = {".kedge", "snapshots", "releases", "current"}


def _daemon_path(path: str) -> str:
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise PydanticCustomError(
            "kedge_path",
            "must be a path below the node's root, such as data, without '.', '..' or a leading '/'",
        )
    if parts[0] in _OURS:
        raise PydanticCustomError("kedge_path", "is kedge's own folder, not the daemon's")
    return path


DaemonPath = Annotated[
    Text,
    AfterValidator(_daemon_path),
    Field(description="a path below the node's root, not kedge's own"),
]


class StepBase(Entry):
    """What every step may say.

    ``when``: a condition; false skips the step. ``timeout`` bounds it. ``attempts`` and ``backoff`` are for its leg: a
    leg is tried as often as its most patient step asks, and goes on at the step that was not done. ``decision``
    ends the leg behind this step.
    """

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _fits_its_timeout(self) -> Self:
        for key, least in self.least().items():
            if self.timeout is not None and least > self.timeout:
                said = f"{least:g} s are longer than the step's timeout of {self.timeout:g} s: the step would always fail"
                refuse([((key,), said)])
        return self

    def least(self) -> dict[str, float]:
        """What the step takes at least, or gives another at most, by the key that says so."""
        return {}

    name: Name | None = None
    said: Text = ""
    when: Condition | None = None
    timeout: Positive | None = None
    attempts: Annotated[Count, Field(ge=1, le=MOST_ATTEMPTS)] | None = None
    backoff: Duration | None = None
    decision: Flag = False


class StageStep(StepBase):
    """Bring the release's archive to the host, verify it, unpack it. Changes nothing that runs."""

    max_bytes: Annotated[Count, Field(ge=1)] | None = None
    max_members: Annotated[Count, Field(ge=1)] | None = None


class ProbeStep(StepBase, Probe):
    """A condition that must hold now; may ``capture`` values for later steps.

    ``also_back``: asked at the same place on the way back, too.
    """

    also_back: Flag = False


class WaitStep(StepBase, Probe):
    """A condition to wait for: that it holds ``for`` a time, ``within`` another. The daemon need not run.

    ``also_back``: waited for at the same place on the way back, too.
    """

    hold: Annotated[Duration, Field(alias="for")] = 0.0
    within: Annotated[Positive, Field(le=86400)] = 120.0
    interval: Annotated[Positive, Field(le=3600)] = 0.2
    also_back: Flag = False

    def least(self) -> dict[str, float]:
        """It has to hold so long."""
        return {"for": self.hold}


class HealthyStep(WaitStep):
    """As ``wait``, and the daemon must stay alive meanwhile (unless ``alive: false``)."""

    alive: Flag = True


class Undo(Entry):
    """The command that takes a ``run`` back. It must do no harm where the step was never reached."""

    argv: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    env: dict[Key, Text] = {}
    cwd: Text = "{node.root}"
    timeout: Positive = 60.0
    exit: Annotated[tuple[Annotated[Count, Field(ge=0, le=255)], ...], Field(min_length=1)] = (0,)
    check: Condition | None = None


class RunStep(StepBase):
    """A command. ``check`` decides whether it was done when its outcome is unknown.

    ``undo`` has no default: ``none`` (there is nothing to undo), ``impossible``, ``snapshot`` (only by restoring
    one), or the command that takes it back. ``also_back``: done at the same place on the way back, too.
    """

    argv: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    env: dict[Key, Text] = {}
    cwd: Text = "{node.root}"
    exit: Annotated[tuple[Annotated[Count, Field(ge=0, le=255)], ...], Field(min_length=1)] = (0,)
    check: Condition | None = None
    output_max: Annotated[Count, Field(ge=0, le=65_536)] = 4096
    undo: Literal["none", "impossible", "snapshot"] | Undo
    also_back: Flag = False


class InitCommand(Entry):
    """A command for a node that has no data yet. ``check`` decides whether it was done when its outcome is unknown."""

    name: Name | None = None
    said: Text = ""
    argv: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    env: dict[Key, Text] = {}
    cwd: Text = "{node.root}"
    timeout: Annotated[Positive, Field(le=86400)] = 60.0
    exit: Annotated[tuple[Annotated[Count, Field(ge=0, le=255)], ...], Field(min_length=1)] = (0,)
    check: Condition | None = None


class InitStep(Entry):
    """One step of a node that has no data yet."""

    run: InitCommand


class StopStep(StepBase):
    """One signal, then waiting for ``grace``. ``then: park`` (a person decides) or ``kill``, never by default."""

    signal: Literal["TERM", "INT", "QUIT", "HUP", "USR1", "USR2"] = "TERM"
    grace: Positive = 60.0
    then: Literal["park", "kill"] = "park"

    def least(self) -> dict[str, float]:
        """The daemon may take so long."""
        return {"grace": self.grace}


class SnapshotStep(StepBase):
    """A copy of ``paths`` under the root, complete or absent. ``keep_out`` (globs) is not copied;
    ``keep_newest`` (globs) is not put back by a restore: what is there then stays.

    A link that leads out of these paths stops the run before the node is stopped, unless it is named here: ``follow``
    (true, or globs of links) copies the data that it leads to, and a restore puts them back there; ``keep_links``
    (globs) copies the link alone, for no data lies there. ``empty``: there may be no file at all.
    """

    paths: Annotated[tuple[DaemonPath, ...], Field(min_length=1, max_length=64)] = ("data",)
    keep_out: tuple[Text, ...] = ()
    keep_newest: tuple[Text, ...] = ()
    follow: Flag | Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)] = False
    keep_links: tuple[Text, ...] = ()
    empty: Flag = False


class SwitchStep(StepBase):
    """Point ``current`` at the release, atomically; its files are verified before and after."""


class ConfigureStep(StepBase):
    """Write the configuration of the release. ``rename`` adds to the release's own renamed settings."""

    rename: dict[Key, Key] = {}


class StartStep(StepBase):
    """Start the daemon; it must stay alive for ``settle`` (a ``healthy`` step behind it watches on)."""

    settle: Duration = 0.0

    def least(self) -> dict[str, float]:
        """It is watched so long."""
        return {"settle": self.settle}


AnyStep = (
    StageStep | ProbeStep | WaitStep | HealthyStep | RunStep | StopStep
    | SnapshotStep | SwitchStep | ConfigureStep | StartStep
)  # fmt: skip


class NodeStep(Entry):
    """One step: exactly one of the verbs."""

    stage: StageStep | None = None
    probe: ProbeStep | None = None
    wait: WaitStep | None = None
    run: RunStep | None = None
    stop: StopStep | None = None
    snapshot: SnapshotStep | None = None
    switch: SwitchStep | None = None
    configure: ConfigureStep | None = None
    start: StartStep | None = None
    healthy: HealthyStep | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        said = self._said()
        if len(said) != 1:
            what = f"says {' and '.join(said)} at once" if said else "says nothing"
            problem: Problem = (
                (said[1],) if said else (),
                f"a step {what}; it says exactly one of {', '.join(VERBS)}",
            )
            refuse([problem])
        return self

    def _said(self) -> list[Verb]:
        return [verb for verb in VERBS if getattr(self, verb) is not None]

    @property
    def verb(self) -> Verb:
        """The verb of this step."""
        return self._said()[0]

    @property
    def body(self) -> AnyStep:
        """What the verb was given."""
        body: AnyStep = getattr(self, self.verb)
        return body


def _bare(value: object) -> object:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, dict):
        return {verb: {} if body is None else body for verb, body in value.items()}
    return value


Written = Annotated[NodeStep, BeforeValidator(_bare)]
"""A step as written: a bare verb, or a verb with its body."""
