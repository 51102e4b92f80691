"""``kedge up`` in one activity: nodes whose root is empty get the fleet's first release, what should run is started.

A node is *being installed* as long as no run and nobody else than this has touched it, and it was not seen running a moment
after its start: its fence says ``install`` and :data:`BEGUN`. Such a node gets what the documents say by now, each time; a
first installation that failed is corrected by correcting them. Once it was seen running the fence says :data:`SEEN`, and
from then on its release and its configuration change by runs alone.

What is said at the end was looked at at the end: each node once more, those that were started just now no sooner than
:data:`OLD_ENOUGH` seconds after their start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from functools import partial

from temporalio import activity

from activities.ground import Ground
from activities.heartbeats import pulse
from activities.sessions import each, talk
from kedge.drivers.ports import SessionEnd, SessionRequest, Token
from kedge.model.base import Json
from kedge.model.errors import DriverError, KedgeError
from kedge.model.fleet import Fleet
from kedge.model.release import Release
from kedge.model.run import EnsureResult
from kedge.plan.install import INSTALL, SETTLE, Installation

BEGUN: Token = (0, 0, 1)
SEEN: Token = (0, 0, 2)
"""The fence of a node whose first daemon was seen running: it is installed."""

OLD_ENOUGH = 1.0
"""Seconds that a daemon must have run which was started just now before it is said to run."""

FENCED_TRIES = 5
"""How often a node is looked at anew when a run takes it just then."""

STOPPED = "stopped"
UP = ("installed", "started", "running")


@dataclass(frozen=True)
class _Node:
    """What became of a node: one of :data:`UP`, :data:`STOPPED` (by intent), or a sentence about what is wrong.

    ``run`` and ``token`` are those that have it, ``since`` when a daemon of it was started just now.
    """

    name: str
    what: str = ""
    run: str = "ensure"
    token: Token = (0, 0, 0)
    since: float = float("-inf")


class BringingUpActivities:
    """A fleet brought up, all its nodes side by side."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    @activity.defn
    async def ensure_fleet(self, fleet: str) -> EnsureResult:
        """Install nodes whose root is empty, start what should run and does not. Moves nothing between releases."""
        found = await self._installation(fleet)
        if isinstance(found, EnsureResult):
            return found
        bringing = _Bringing(fleet, *found)
        async with pulse():
            nodes = await each(range(len(bringing.install.nodes)), partial(self._ensured, bringing))
            nodes = await each(
                range(len(nodes)),
                lambda index: self._settled(bringing.install, index, nodes[index]),
            )
        choices = _choices(bringing.release) if bringing.refused is not None else ()
        return _result(fleet, nodes).model_copy(update={"choices": choices})

    @activity.defn
    async def look_at_fleet(self, fleet: str) -> EnsureResult:
        """Look at every node: nothing is installed or started, and no fence is raised on a node that has one."""
        found = await self._installation(fleet)
        if isinstance(found, EnsureResult):
            return found
        install = found[0]
        fresh = [_Node(node.name, "running") for node in install.nodes]
        async with pulse():
            nodes = await each(
                range(len(fresh)), lambda index: self._seen(install, index, fresh[index])
            )
        return _result(fleet, nodes)

    async def _installation(self, fleet: str) -> tuple[Installation, Release] | EnsureResult:
        known = await self._ground.fleets.known(fleet)
        if known is None or known.baseline is None:
            return EnsureResult(
                fleet=fleet, nodes=0, problems=(f"fleet {fleet} is not known to this worker",)
            )
        document = Fleet.model_validate_json(await self._ground.blobs.get(known.document))
        release = Release.model_validate_json(await self._ground.blobs.get(known.baseline))
        try:
            return Installation(document, release), release
        except KedgeError as error:
            return EnsureResult(fleet=fleet, nodes=0, problems=(error.message,))

    async def _ensured(self, bringing: _Bringing, index: int) -> _Node:
        node = _Node(bringing.install.nodes[index].name)
        try:
            for _ in range(FENCED_TRIES):
                found = await self._ensured_as(bringing, index, node)
                if isinstance(found, _Node):
                    if found.what in ("installed", "started"):
                        await self._noted(bringing, index, found)
                    return found
                # The host has a fence already, or a run that goes on beside this has just raised it. Starting what its
                # own mark says is true under any token, so the standing one is used: it is never raised here, and a
                # migration under way is not disturbed.
                node = _standing(node, found)
        except DriverError as error:
            return replace(node, what=f"{node.name}: {error.message}")
        said = f"{node.name}: {node.run} raises its fence again and again; look once that is over"
        return replace(node, what=said)

    async def _noted(self, bringing: _Bringing, index: int, node: _Node) -> None:
        what: dict[str, Json] = {"what": node.what, "node": node.name, "run": "ensure"}
        if node.what == "installed":
            what["release"] = bringing.install.archive(index).digest
        key = f"ensure/{node.name}/{activity.info().workflow_run_id}"
        await self._ground.note(bringing.fleet, key, what)

    async def _ensured_as(self, bringing: _Bringing, index: int, node: _Node) -> _Node | SessionEnd:
        """The same under one token; the end of the session where a higher one has the node."""
        ensure: dict[str, Json] = {
            "key": f"ensure/{node.name}/ensure", "op": "ensure", "settle": SETTLE,
        }  # fmt: skip
        end = await self._look(bringing.install, index, node)
        if _fenced(end):
            return end
        running = bool(end.observed.get("running"))
        being_installed = node.run == INSTALL and node.token < SEEN and not running
        if end.ok and (end.observed.get("release") is None or being_installed):
            return await self._install(bringing, index, node, again=being_installed)
        end = await self._talk(bringing.install, index, node, ensure)
        if _fenced(end):
            return end
        fault = end.fault(node.name)
        if fault is not None:
            return replace(node, what=fault.message)
        if not end.observed.get("should_run"):
            return replace(node, what=STOPPED)
        return (
            replace(node, what="running")
            if running
            else replace(node, what="started", since=_started())
        )

    async def _settled(self, install: Installation, index: int, node: _Node) -> _Node:
        """The same node, looked at at the end; one that is being installed and was seen running is installed by that."""
        node = await self._seen(install, index, node)
        if node.what in UP and node.run == INSTALL and node.token < SEEN:
            try:
                await self._look(install, index, replace(node, token=SEEN))
            except DriverError as error:
                return replace(node, what=f"{node.name}: {error.message}")
        return node

    async def _seen(self, install: Installation, index: int, node: _Node) -> _Node:
        """The same node, looked at once more: what is said to run runs now."""
        if node.what not in UP:
            return node
        await asyncio.sleep(max(0.0, node.since + OLD_ENOUGH - time.monotonic()))
        try:
            end = await self._look(install, index, node)
            if _fenced(end):
                # It is looked at all the same, and whoever has it now is known.
                node = _standing(node, end)
            elif not end.ok:
                return replace(node, what=_sentence(node, end))
            if end.observed.get("running"):
                return node
            if not end.observed.get("should_run"):
                return replace(node, what=_not_meant_to_run(node, end))
            return replace(node, what=await self._down(install, index, node))
        except DriverError as error:
            return replace(node, what=f"{node.name}: {error.message}")

    async def _down(self, install: Installation, index: int, node: _Node) -> str:
        """What is said of a daemon that should run and does not: the last that it wrote."""
        end = await self._look(install, index, node)
        words = next((event.result.get("words") for event in end.done), "") or "it wrote nothing"
        return f"{node.name}: its daemon does not run; its last words: {words}"

    async def _look(self, install: Installation, index: int, node: _Node) -> SessionEnd:
        return await self._talk(
            install, index, node, {"key": f"ensure/{node.name}/look", "op": "observe"}
        )

    async def _talk(
        self, install: Installation, index: int, node: _Node, *ops: dict[str, Json]
    ) -> SessionEnd:
        asked = SessionRequest(node.run, node.token, ops)
        return await talk(self._ground.transport, install.nodes[index], asked)

    async def _install(
        self, bringing: _Bringing, index: int, before: _Node, *, again: bool
    ) -> _Node:
        install = bringing.install
        node = replace(before, run=INSTALL, token=BEGUN)
        if not await self._may_install(bringing):
            return replace(node, what=f"{node.name}: is not installed: {bringing.refused}")
        # The host looks before it acts, so each `kedge up` does again what the documents say by now: under keys of its
        # own, since under those of before the journal would answer for what they said then.
        key = f"{INSTALL}/{activity.info().workflow_run_id}"
        ops = await self._ground.with_sources(
            install.nodes[index], install.operations(index, key=key), install.release.artifacts
        )
        # To fetch the archive and to bring it there may have taken long.
        if not await self._may_install(bringing):
            return replace(node, what=f"{node.name}: is not installed: {bringing.refused}")
        if again:
            stop: dict[str, Json] = {"key": f"{key}/{node.name}/stop", "op": "stop", "grace": 10.0}
            ops = (stop, *ops)
        end = await self._talk(install, index, node, *ops)
        fault = end.fault(node.name)
        if fault is None:
            return replace(node, what="installed", since=_started())
        return replace(node, what=f"{fault.message}")

    async def _may_install(self, bringing: _Bringing) -> bool:
        """Whether the release may be installed still, as of the last two seconds. Once it may not, no node follows.

        Only new bytes are asked about: what runs already is started whatever became of its release.
        """
        async with bringing.asking:
            if bringing.refused is None:
                fleet, release = bringing.fleet, bringing.release
                if not bringing.judged:
                    platforms = frozenset(node.platform for node in bringing.install.nodes)
                    bringing.refused = await self._ground.baseline(fleet, release, platforms)
                    bringing.judged = bringing.refused is None
                if bringing.judged:
                    bringing.refused = await self._ground.baseline_stands(fleet, release)
            return bringing.refused is None


@dataclass
class _Bringing:
    """A fleet that is brought up. ``judged``: its release was found good when it was first asked about. ``refused`` says
    why it may not be installed, or not any more.
    """

    fleet: str
    install: Installation
    release: Release
    judged: bool = False
    refused: str | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


def _choices(release: Release) -> tuple[str, ...]:
    """What can be done about a first release that may not be installed."""
    name = f"{release.component}@{release.version}"
    return (
        f"let the keepers list it again, if it was revoked by mistake: `kedge release revoke {name} --undo`, then `kedge up`",
        "name another release in the fleet's document, then `kedge up --fleet FILE`: nodes that have none yet get that one",
        f"nodes that have {name} already go on with it: move them with a run (`kedge plan`, `kedge start`)",
    )


def _started() -> float:
    """When a daemon was started whose start has just been heard of: it lived for the time to settle since then."""
    return time.monotonic() - SETTLE


def _result(fleet: str, nodes: list[_Node]) -> EnsureResult:
    return EnsureResult(
        fleet=fleet,
        nodes=len(nodes),
        installed=sum(node.what == "installed" for node in nodes),
        started=sum(node.what == "started" for node in nodes),
        running=sum(node.what in UP for node in nodes),
        stopped=tuple(node.name for node in nodes if node.what == STOPPED),
        problems=tuple(node.what for node in nodes if node.what not in (*UP, STOPPED)),
    )


def _not_meant_to_run(node: _Node, end: SessionEnd) -> str:
    """What is said of a node whose daemon does not run and should not: stopped by intent, or never started."""
    if end.observed.get("release") is None or node.run == INSTALL:
        return f"{node.name} is not installed: `kedge up` installs it"
    return STOPPED


def _sentence(node: _Node, end: SessionEnd) -> str:
    fault = end.fault(node.name)
    return fault.message if fault is not None else f"{node.name}: how it is could not be seen"


def _fenced(end: SessionEnd) -> bool:
    return (
        end.failed is not None
        and end.failed.error is not None
        and end.failed.error.type == "Fenced"
    )


def _standing(node: _Node, end: SessionEnd) -> _Node:
    """The node with the run and the token that have it, from a Fenced error's detail."""
    detail = (
        end.failed.error.detail if end.failed is not None and end.failed.error is not None else {}
    )
    match detail:
        case {"fence": [int(epoch), int(leg), int(attempt)], "run": str(run)}:
            return replace(node, run=run, token=(epoch, leg, attempt))
    raise DriverError("HostError", "the host did not say which fence it has", retryable=True)
