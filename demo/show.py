"""The show's ground: everything that the acts use, and the few things that each of them does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from demo import hosts
from demo.cluster import Member
from demo.commands import Answer, Commands, Running
from demo.documents import FLEET, GATE, RUNBOOK, Paths, release
from demo.keys import Person
from demo.ledger import Figures
from demo.policies import POLICY
from demo.screen import Screen
from demo.writer import Writer
from worker.background import BackgroundWorker
from worker.engine import Engine
from worker.settings import Settings

MOMENT_SECONDS = 60.0
"""How long the demo waits for the moment at which it does something to a run."""


class ShowError(Exception):
    """Something did not go as it was meant to; the demo ends, and says this."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A violent end of worker and server: the process ids, and how long it took until the run moved again."""

    worker: int
    engine: int
    seconds: float
    where: str


@dataclass
class Show:
    """What the acts share. ``runs`` are the ids of all runs so far, with what each is for."""

    screen: Screen
    paths: Paths
    members: tuple[Member, ...]
    programs: Mapping[str, str]
    """sha256 of etcd's program by version, from the wheels themselves."""
    commands: Commands
    writer: Writer
    runs: dict[str, str] = field(default_factory=dict)
    stretches: dict[str, Figures] = field(default_factory=dict)
    """The writer's figures, by act."""
    kills: list[Kill] = field(default_factory=list)
    policy: str = POLICY
    """The policy that is pinned, as it is typed."""
    well: bool = True
    """Whether every figure so far was what it has to be."""

    # -- commands ---------------------------------------------------------------------------------

    def kedge(self, *words: str, codes: tuple[int, ...] = (0,), last: int | None = None) -> Answer:
        """A kedge command as the viewer would type it."""
        return self.commands.run("kedge", *words, codes=codes, last=last)

    def documents(self, version: str, before: str | None = None) -> list[str]:
        """The options of plan and start. ``before`` is the release the fleet was moved to meanwhile."""
        words = ["--fleet", "fleet.yaml", "--release", release(version)]
        words += ["--runbook", RUNBOOK.name, "--policy", self.policy]
        return words if before is None else [*words, "--from", release(before)]

    def start(self, version: str, before: str | None, person: Person, what: str) -> str:
        """Starts a migration; returns its run id."""
        words = self.documents(version, before)
        run = self.kedge("start", *words, "--key", f"keys/{person.name}", last=4).last
        self.runs[run] = what
        return run

    def approve(self, run: str, person: Person, comment: str = "") -> None:
        """Signs for the gate as a person."""
        words = ["approve", run, "--gate", GATE, "--key", f"keys/{person.name}"]
        self.kedge(*words, *(["--comment", comment] if comment else []))

    def watch(self, run: str) -> Running:
        """Watches a run beside whatever else happens; returns once it shows something."""
        watching = self.commands.begin("kedge", "watch", run)
        watching.until()
        return watching

    # -- the hosts --------------------------------------------------------------------------------

    def steps(self, member: str) -> tuple[hosts.Step, ...]:
        """What was done on a member's host, from its journal."""
        return hosts.steps_of(self.paths.root(member))

    def done(self, run: str, program: str = "forward") -> dict[str, set[str]]:
        """By member, the names of the steps that a run has done there, from the journals."""
        return {
            member.name: hosts.done_in(self.steps(member.name), run, program)
            for member in self.members
        }

    def moment(self, what: str, condition: Callable[[], str], watching: Running) -> str:
        """Waits until ``condition`` names something, and returns that. Raises ``ShowError`` when it never does."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while not (found := condition()):
            if watching.ended or time.monotonic() > deadline:
                raise ShowError(f"the moment never came: {what}")
            time.sleep(0.01)
        return found

    def begun(self, run: str, members: int) -> Callable[[], str]:
        """Names the member whose turn has come, when so many have had theirs or have it."""

        def look() -> str:
            done = self.done(run)
            touched = [name for name, names in done.items() if names]
            unfinished = (name for name in touched if "healthy" not in done[name])
            return next(unfinished, "") if len(touched) >= members else ""

        return look

    def in_the_middle(self, run: str, members_done: int) -> Callable[[], str]:
        """Names the member that stands still between its stop and its start, when so many are done."""

        def look() -> str:
            done = self.done(run)
            if sum("healthy" in names for names in done.values()) < members_done:
                return ""
            still = (
                name for name, names in done.items() if "stop" in names and "start" not in names
            )
            return next(still, "")

        return look

    def shoot(self) -> tuple[int, int]:
        """SIGKILL to the worker and to the Temporal server, at once; their process ids."""
        settings = Settings.load(self.paths.home)
        worker, engine = BackgroundWorker(settings), Engine(settings)
        killed = (worker.state(), engine.state())
        if killed[0] is None or killed[1] is None or not (worker.kill() and engine.kill()):
            raise ShowError("worker or server did not run when they were to be killed")
        return killed[0].process.pid, killed[1].process.pid

    def judge(self, said: str, *, ok: bool) -> bool:
        """Says a figure, marked by whether it is what it has to be; a wrong one makes the show fail at its end."""
        (self.screen.seen if ok else self.screen.wrong)(said)
        self.well = self.well and ok
        return ok

    def refused_by(self, rule: str, answer: Answer) -> None:
        """Judges whether a command was refused by this rule."""
        ok = any(f"refused, rule {rule}: " in line for line in (*answer.out, *answer.err))
        self.judge(
            f"refused by the rule {rule}" if ok else f"NOT refused by the rule {rule}", ok=ok
        )

    # -- the writer -------------------------------------------------------------------------------

    def stretch(self, act: str, begin: float) -> None:
        """Says what the writer met since ``begin``, and keeps it for the end."""
        figures = self.stretches[act] = self.writer.since(begin)
        self.screen.seen(
            f"the writer meanwhile: {figures.acknowledged:,} puts acknowledged in "
            f"{figures.seconds:.0f} s; longest gap {figures.longest:.2f} s"
        )

    def versions(self, version: str) -> None:
        """Says that every member answers with a version; waits for it a little. Raises ``ShowError``."""
        try:
            hosts.await_versions(self.members, version, 15)
        except hosts.HostsError as error:
            raise ShowError(str(error)) from error
        self.screen.seen(f"GET /version of all {len(self.members)} members of {FLEET}: {version}")
