"""The doctor: what kedge needs on this machine, each thing looked at, each fault with what to do.

It only looks. Nothing is started, installed or changed.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from desk import codec as desk_codec
from desk.desk import Desk
from kedge.model.base import Frozen
from kedge.model.errors import CodecError, DriverError, KedgeError
from worker.background import BackgroundWorker
from worker.engine import Engine
from worker.provision import SERVER, find
from worker.settings import Settings

OLDEST_PYTHON = (3, 11)
LITTLE_SPACE = 1_000_000_000
"""Fewer free bytes than this in the home are a fault: releases, snapshots and the database grow there."""
EARLIEST = 1_735_689_600
"""2025-01-01: a clock before it is wrong, and every order would be refused."""
CLOCK_SLACK = 120.0
SOON = timedelta(days=3)
"""Metadata of releases that expires sooner is a fault: it should have been renewed."""

Verdict = Literal["ok", "wrong", "unknown"]


class Check(Frozen):
    """One thing that was looked at: ``unknown`` when something else has to be put right first."""

    name: str
    verdict: Verdict
    said: str
    next_step: str = ""


async def examine(desk: Desk) -> tuple[Check, ...]:
    """Every check, in an order in which each builds on those before."""
    settings = desk.settings
    checks = [_python(), _home(settings), _clock(settings), _codec(settings)]
    checks += [_binary(settings), _engine(settings)]
    checks.append(_worker_process(settings))
    looks: tuple[tuple[str, Callable[[Desk], Awaitable[list[Check]]]], ...] = (
        ("releases", _releases),
        ("worker", _polling),
        ("fleets", _fleets),
    )
    for name, look in looks:
        try:
            checks += await look(desk)
        except KedgeError as error:
            step = error.next_step or "`kedge up`"
            checks.append(Check(name=name, verdict="unknown", said=str(error), next_step=step))
    return tuple(checks)


def _python() -> Check:
    said = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        step = "`make setup` with Python 3.11 or newer"
        return Check(name="python", verdict="wrong", said=said, next_step=step)
    return Check(name="python", verdict="ok", said=said)


def _home(settings: Settings) -> Check:
    home = settings.home
    place = home
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        step = "name another folder with --home or KEDGE_HOME, or change who may write there"
        return Check(
            name="home", verdict="wrong", said=f"{place} cannot be written", next_step=step
        )
    free = shutil.disk_usage(place).free
    said = f"{home}, {free / 1e9:.1f} GB free"
    if free < LITTLE_SPACE:
        step = "free some space: releases, snapshots and the engine's database grow there"
        return Check(name="home", verdict="wrong", said=said, next_step=step)
    there = "" if home.exists() else " (made at the first `kedge up`)"
    return Check(name="home", verdict="ok", said=said + there)


def _clock(settings: Settings) -> Check:
    """A clock that went back makes orders look as if they came from the future."""
    now = time.time()
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    newest = max((_modified(path) for path in _traces(settings)), default=0.0)
    step = "set the clock (NTP), then `kedge doctor` again; orders carry times and would be refused"
    if now < EARLIEST:
        return Check(name="clock", verdict="wrong", said=f"it says {said}", next_step=step)
    if newest > now + CLOCK_SLACK:
        behind = f"{said}, but files here were written {newest - now:.0f} s later than that"
        return Check(name="clock", verdict="wrong", said=behind, next_step=step)
    return Check(name="clock", verdict="ok", said=said)


def _traces(settings: Settings) -> list[Path]:
    folders = (settings.run_dir, settings.log_dir, settings.engine_dir)
    return [path for folder in folders if folder.is_dir() for path in folder.iterdir()]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _codec(settings: Settings) -> Check:
    """The rings of payload keys: a new home has none yet; a home that lost its own, or has one only, is at fault."""
    try:
        shown = desk_codec.show(settings)
    except CodecError as error:
        step = error.next_step or "`kedge codec show`"
        return Check(name="codec", verdict="wrong", said=error.message, next_step=step)
    if not shown.required:
        said = "payloads are in the open: whoever reaches Temporal reads and forges them"
        step = "unset KEDGE_PAYLOADS (payloads in kedge.toml) before the next home"
        return Check(name="codec", verdict="wrong", said=said, next_step=step)
    if not shown.keys:
        said = "no ring of payload keys yet; `kedge up` makes both"
        return Check(name="codec", verdict="ok", said=said)
    if not shown.clients:
        said = f"{shown.where} is one ring for all, from before clients had their own"
        step = "kedge down, then `kedge codec init --grace 7d`"
        return Check(name="codec", verdict="wrong", said=said, next_step=step)
    said = f"payloads are sealed with key {shown.keys[0].id} of {shown.where or shown.clients}"
    if shown.plaintext_until:
        said += f"; open ones are read until {shown.plaintext_until}"
    return Check(name="codec", verdict="ok", said=said)


def _binary(settings: Settings) -> Check:
    name = "temporal"
    if not settings.embedded:
        return Check(
            name=name, verdict="ok", said="a cluster elsewhere is used; none is needed here"
        )
    found = find(SERVER, settings.temporal_binary)
    if found is None:
        said = "no Temporal server is on this machine yet"
        step = "`make setup` gets one, or name one with KEDGE_TEMPORAL_BINARY"
        return Check(name=name, verdict="wrong", said=said, next_step=step)
    return Check(name=name, verdict="ok", said=f"{found.version} at {found.path} ({found.source})")


def _engine(settings: Settings) -> Check:
    if not settings.embedded:
        return Check(name="engine", verdict="ok", said="a cluster elsewhere is used")
    engine = Engine(settings)
    state = engine.state()
    if state is None:
        said = "the embedded engine is not running"
        return Check(name="engine", verdict="wrong", said=said, next_step="`kedge up`")
    said = f"pid {state.process.pid} on {state.address}"
    if not engine.answers():
        step = f"see {state.log}; then `kedge down` and `kedge up`"
        said += " does not answer"
        return Check(name="engine", verdict="wrong", said=said, next_step=step)
    return Check(name="engine", verdict="ok", said=f"{said}, for holders of {state.profile.parent}")


def _worker_process(settings: Settings) -> Check:
    background = BackgroundWorker(settings)
    state = background.state()
    if state is None and not settings.embedded:
        # Whether anybody takes the work is looked at below.
        said = "none was started here; a cluster elsewhere has workers of its own"
        return Check(name="background", verdict="ok", said=said)
    if state is None:
        said = "no worker of this home runs"
        return Check(name="background", verdict="wrong", said=said, next_step="`kedge up`")
    ready = "takes work" if background.is_ready() else "has not said that it takes work"
    step = "" if background.is_ready() else f"see {settings.log_dir / 'worker.log'}"
    verdict: Verdict = "ok" if background.is_ready() else "wrong"
    said = f"pid {state.process.pid} {ready}"
    return Check(name="background", verdict=verdict, said=said, next_step=step)


async def _releases(desk: Desk) -> list[Check]:
    """The release repository, where the settings name one: that it answers, holds, and does not expire soon."""
    location = desk.settings.release_repository
    if location is None:
        return []
    listed = await asyncio.to_thread(desk.release_desk().listed)
    standing = [one for one in listed if not one.revoked]
    said = f"{location}: {len(standing)} release(s), {len(listed) - len(standing)} revoked"
    if not standing:
        return [Check(name="releases", verdict="ok", said=said)]
    found = await asyncio.to_thread(desk.releases.read, standing[-1].name)
    left = datetime.fromisoformat(found.expires) - datetime.now(UTC)
    said += f"; its metadata holds until {found.expires}"
    if left < SOON:
        step = "kedge release publish --renew, by whoever has the keys: once it expires, runs stop"
        return [Check(name="releases", verdict="wrong", said=said, next_step=step)]
    return [Check(name="releases", verdict="ok", said=said)]


async def _polling(desk: Desk) -> list[Check]:
    queue = desk.settings.task_queue
    pollers = await (await desk.runs()).pollers()
    if not pollers:
        said = f"nobody takes work from the task queue {queue!r}"
        return [Check(name="worker", verdict="wrong", said=said, next_step="`kedge up`")]
    return [Check(name="worker", verdict="ok", said=f"{', '.join(pollers)} on {queue!r}")]


async def _fleets(desk: Desk) -> list[Check]:
    records = await desk.fleets.every()
    if not records:
        step = "`kedge up --fleet F.yaml --policy P.yaml` makes one known"
        return [
            Check(name="fleets", verdict="wrong", said="no fleet is known here", next_step=step)
        ]
    checks = []
    for record in records:
        checks.append(await _policy(desk, record.fleet))
        checks.append(await _nodes(desk, record.fleet))
    return checks


async def _policy(desk: Desk, fleet: str) -> Check:
    name = f"policy of {fleet}"
    step = "`kedge up --fleet F.yaml --policy P.yaml` pins one"
    try:
        policy = await desk.pins.policy(fleet)
    except DriverError as error:
        return Check(name=name, verdict="wrong", said=str(error), next_step=step)
    people = ", ".join(person.name for person in policy.people)
    return Check(name=name, verdict="ok", said=f"{policy.name}: {people}")


async def _nodes(desk: Desk, fleet: str) -> Check:
    """How the nodes are now. Of a node that something has touched before, nothing is changed by the look."""
    name = f"nodes of {fleet}"
    seen = await desk.look(fleet)
    said = f"{seen.running} of {seen.nodes} running"
    if seen.stopped:
        said += f"; stopped by a run: {', '.join(seen.stopped[:10])}"
    if seen.problems:
        said += "; " + "; ".join(seen.problems[:3])
        if len(seen.problems) > 3:
            said += f"; and {len(seen.problems) - 3} more"
        step = "fix what is said, then `kedge up`"
        return Check(name=name, verdict="wrong", said=said, next_step=step)
    return Check(name=name, verdict="ok", said=said)
