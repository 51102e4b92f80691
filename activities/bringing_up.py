"""``kedge up`` in one activity: nodes whose root is empty get the fleet's first release, what should run is started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
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
from kedge.plan.install import INSTALL, Installation

FENCED_TRIES = 5
"""How often a node is looked at anew when a run takes it just then."""


class BringingUpActivities:
    """A fleet brought up, all its nodes side by side."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    @activity.defn
    async def ensure_fleet(self, fleet: str) -> EnsureResult:
        """Install nodes whose root is empty, start what should run and does not. Moves nothing between releases."""
        known = await self._ground.fleets.known(fleet)
        if known is None or known.baseline is None:
            return EnsureResult(
                fleet=fleet, nodes=0, problems=(f"fleet {fleet} is not known to this worker",)
            )
        document = Fleet.model_validate_json(await self._ground.blobs.get(known.document))
        release = Release.model_validate_json(await self._ground.blobs.get(known.baseline))
        try:
            install = Installation(document, release)
        except KedgeError as error:
            return EnsureResult(fleet=fleet, nodes=0, problems=(error.message,))
        nodes = install.nodes
        bringing = _Bringing(fleet, install, release)
        async with pulse():
            what = await each(range(len(nodes)), partial(self._ensured, bringing))
        return EnsureResult(
            fleet=fleet,
            nodes=len(nodes),
            installed=sum(one == "installed" for one in what),
            started=sum(one == "started" for one in what),
            running=sum(one in ("installed", "started", "running") for one in what),
            problems=tuple(
                one for one in what if one not in ("installed", "started", "running", "stopped")
            ),
            choices=_choices(release) if bringing.refused is not None else (),
        )

    async def _ensured(self, bringing: _Bringing, index: int) -> str:
        """``installed``, ``started``, ``running`` or ``stopped`` (by intent), or a sentence about what is wrong."""
        fleet, name = bringing.fleet, bringing.install.nodes[index].name
        run, token = "ensure", (0, 0, 0)
        try:
            for _ in range(FENCED_TRIES):
                found = await self._ensured_as(bringing, index, run, token)
                if isinstance(found, str):
                    if found in ("installed", "started"):
                        what: dict[str, Json] = {"what": found, "node": name, "run": "ensure"}
                        if found == "installed":
                            what["release"] = bringing.install.archive(index).digest
                        key = f"ensure/{name}/{activity.info().workflow_run_id}"
                        await self._ground.note(fleet, key, what)
                    return found
                # The host has a fence already, or a run that goes on beside this has just raised it. Starting what its
                # own mark says is true under any token, so the standing one is used: it is never raised here, and a
                # migration under way is not disturbed.
                run, token = _standing(found)
        except DriverError as error:
            return f"{name}: {error.message}"
        return f"{name}: {run} raises its fence again and again; look once that is over"

    async def _ensured_as(
        self, bringing: _Bringing, index: int, run: str, token: Token
    ) -> str | SessionEnd:
        """The same under one token; the end of the session where a higher one has the node."""
        node = bringing.install.nodes[index]
        look: dict[str, Json] = {"key": f"ensure/{node.name}/look", "op": "observe"}
        ensure: dict[str, Json] = {"key": f"ensure/{node.name}/ensure", "op": "ensure"}
        end = await talk(self._ground.transport, node, SessionRequest(run, token, (look,)))
        if _fenced(end):
            return end
        unfinished = run == INSTALL and not end.observed.get("should_run")
        if end.ok and (end.observed.get("release") is None or unfinished):
            return await self._install(bringing, index)
        was_running = bool(end.observed.get("running"))
        end = await talk(self._ground.transport, node, SessionRequest(run, token, (ensure,)))
        if _fenced(end):
            return end
        fault = end.fault(node.name)
        if fault is not None:
            return fault.message
        if not end.observed.get("running"):
            return "stopped"
        return "running" if was_running else "started"

    async def _install(self, bringing: _Bringing, index: int) -> str:
        install = bringing.install
        node = install.nodes[index]
        if not await self._may_install(bringing):
            return f"{node.name}: is not installed: {bringing.refused}"
        # The host looks before it acts, so each `kedge up` does again what the documents say by now: under keys of its
        # own, since under those of before the journal would answer for what they said then.
        key = f"{INSTALL}/{activity.info().workflow_run_id}"
        ops = await self._ground.with_sources(
            node, install.operations(index, key=key), install.release.artifacts
        )
        # To fetch the archive and to bring it there may have taken long.
        if not await self._may_install(bringing):
            return f"{node.name}: is not installed: {bringing.refused}"
        asked = SessionRequest(run=INSTALL, token=(0, 0, 1), ops=ops)
        end = await talk(self._ground.transport, node, asked)
        fault = end.fault(node.name)
        return "installed" if fault is None else fault.message

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


def _fenced(end: SessionEnd) -> bool:
    return (
        end.failed is not None
        and end.failed.error is not None
        and end.failed.error.type == "Fenced"
    )


def _standing(end: SessionEnd) -> tuple[str, Token]:
    """The run and token that have a node, from a Fenced error's detail."""
    detail = (
        end.failed.error.detail if end.failed is not None and end.failed.error is not None else {}
    )
    match detail:
        case {"fence": [int(epoch), int(leg), int(attempt)], "run": str(run)}:
            return run, (epoch, leg, attempt)
    raise DriverError("HostError", "the host did not say which fence it has", retryable=True)
