"""Start, stop and keep the daemon of a node.

How a daemon is run is looked up in `SERVICES` by the `kind` of its configuration; here is the supervised
process, other kinds (systemd units, containers) join with the same four calls. Rules 4 and 5 of
`docs/host-protocol.md`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Type

from kedge.host import (
    cgroups,
    configs,
    credentials,
    family,
    files,
    launch,
    observe,
    places,
    points,
    processes,
    releases,
    secret,
    sockets,
    users,
)
from kedge.host.errors import BadRequest, Conflict, NoRelease, ServiceDied
from kedge.host.layout import Node
from kedge.host.places import Place
from kedge.host.processes import Incarnation

if TYPE_CHECKING:
    from kedge.host.context import Context

TAIL = 4096
# What a start that failed left running has so long to end after SIGTERM; it is never killed for it.
CLEARING = 10.0


class SupervisedProcess:
    """A daemon that is a plain process in a session of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def running(self) -> Optional[Incarnation]:
        """The daemon's life that goes on now, or None."""
        return observe.running(self.node)[0]

    def begin(
        self, ctx: Context, digest: str, generation: str, values: Dict[str, str]
    ) -> Incarnation:
        """Execute the daemon of a verified release, with the secrets in `values`. The caller holds the fence."""
        spec = configs.service_spec(self.node, generation)
        node = self.node
        release = node.release(digest)
        cwd = os.path.join(node.root, spec.get("cwd") or ".")
        told = spec.get("env") or {}
        user = users.of_spec(node, spec)
        env = launch.environment(
            user.home, {name: secret.put(one, values) for name, one in told.items()}
        )
        mark = family.mark_of(node)
        env[family.DAEMON] = mark
        users.give(node, generation, user)
        users.give_data(ctx, user)
        program = launch.program_of(spec["argv"][0], str(release), cwd, env["PATH"])
        kept: Dict[str, Any] = {
            "release": digest,
            "generation": generation,
            "key": ctx.key,
            "program": program,
            "user": user.name if user.drops else None,
            **_counted(node, digest),
        }
        if values:
            kept["secrets"] = secret.marks(values)
        group = cgroups.place(mark)
        what = launch.Launch(
            program, spec["argv"], env, cwd, node.log, node.service, kept, user, group
        )
        return launch.launch(what)

    def last_words(self) -> str:
        """The end of what it wrote."""
        return files.tail(self.node.log, TAIL)


def _counted(node: Node, digest: str) -> Dict[str, int]:
    """The number of this start, and the one at which its release was first started after another one.

    Kept with the start itself, so they cannot disagree: by them a snapshot is known to be of the data as they were
    right before a release first had them.
    """
    last = files.read_json(node.service)
    last = last if isinstance(last, dict) else {}
    number = int(last.get("starts", 0)) + 1
    same = last.get("release") == digest and "first" in last
    return {"starts": number, "first": int(last["first"]) if same else number}


SERVICES: Dict[str, Type[SupervisedProcess]] = {"process": SupervisedProcess}


def service_of(node: Node) -> SupervisedProcess:
    """The service of a node, by the kind its current configuration says."""
    generation = observe.current_config(node)
    kept = files.read_json(node.config(generation) / configs.SERVICE) if generation else None
    kind = kept.get("kind", "process") if isinstance(kept, dict) else "process"
    if kind not in SERVICES:
        raise BadRequest(f"no service of kind {kind!r}; there are: {', '.join(sorted(SERVICES))}")
    return SERVICES[kind](node)


def start(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Start the current release under the current configuration, unless just that runs."""
    node = ctx.node
    service = service_of(node)
    digest, generation = observe.current_release(node), observe.current_config(node)
    if digest is None:
        raise NoRelease("`current` points to no release: switch first")
    if generation is None:
        raise Conflict("the node has no configuration that says what to run: configure it first")
    one, kept = observe.running(node)
    if one is None:
        _ready(ctx, digest, generation)
        ctx.acting()
        one = _begin(ctx, service, digest, generation)
    else:
        _same(observe.running_release(node, one, kept), digest, "release")
        _same(kept.get("generation"), generation, "configuration")
        _mark(ctx)
    settle(ctx, service, one, op["settle"])
    return {"pid": one.pid}


def _ready(ctx: Context, digest: str, generation: str) -> None:
    """All that must be so before a daemon is started: its release is whole, and nothing of the node runs."""
    node = ctx.node
    spec = configs.service_spec(node, generation)
    users.reaches(users.of_spec(node, spec), node.root)
    releases.verify(node, digest, ctx.pulse.tick)
    _alone(ctx)
    sockets.free(spec.get("ports") or ())


def _alone(ctx: Context) -> None:
    """Conflict while anything of this node lives: two daemons of one node never run at once.

    What this very step left running in an attempt that was killed is ended first.
    """
    found = family.of_daemon(ctx.node)
    kept = files.read_json(ctx.node.service)
    if found.sure and isinstance(kept, dict) and kept.get("key") == ctx.key:
        found = clear(ctx)
    if found.every:
        raise Conflict(
            f"the daemon's first process has ended, and of the node's {family.named(found.every)} lives on:"
            " stop it first. Two daemons of one node never run at once",
            {"alive": family.listed(found.every)},
        )


def clear(ctx: Context) -> family.Look:
    """End what lives on of a daemon whose first process has ended: SIGTERM, and no more than that; what is left."""
    ctx.pulse.said = "ends what a daemon left running"
    until = time.monotonic() + CLEARING
    sent: List[Incarnation] = []
    while True:
        found = family.of_daemon(ctx.node)
        left = until - time.monotonic()
        if not found.sure or left <= 0:
            return found
        with ctx.fence.act():
            for one in found.sure:
                if one not in sent:
                    processes.send(one, signal.SIGTERM)
                    sent.append(one)
        watched = processes.watch(found.sure[0])
        try:
            ctx.pulse.rest(min(left, 0.05) if watched < 0 else min(left, 0.5), watched)
        finally:
            if watched >= 0:
                os.close(watched)


def _same(found: Optional[str], wanted: str, what: str) -> None:
    if found != wanted:
        raise Conflict(
            f"another {what} runs ({(found or 'unknown')[:12]}, not {wanted[:12]}): stop it first",
            {"running": found, "wanted": wanted},
        )


def _begin(ctx: Context, service: SupervisedProcess, digest: str, generation: str) -> Incarnation:
    recipe = secret.recipe(ctx.node, generation)
    values = secret.resolve(ctx, recipe.get("sources") or {})
    with ctx.fence.act():
        secret.write(ctx.node, generation, recipe.get("files") or {}, values)
        _touch(ctx.node.should_run)
        one = service.begin(ctx, digest, generation, values)
        credentials.forget(ctx)
    secret.forget_others(ctx.node, generation)
    # One fsync for both names: the mark and who was started.
    files.sync_dir(ctx.node.own)
    points.reach("start.after-exec")
    return one


def _mark(ctx: Context) -> None:
    if not places.exists(ctx.node.should_run):
        with ctx.fence.act():
            _touch(ctx.node.should_run)
            files.sync_dir(ctx.node.own)


def _touch(place: Place) -> None:
    """Make an empty file; the caller makes its name durable."""
    os.close(files.opened(place, os.O_WRONLY | os.O_CREAT))


def settle(ctx: Context, service: SupervisedProcess, one: Incarnation, seconds: float) -> None:
    """Watch the daemon until it is `seconds` old; ServiceDied when it ends before."""
    watched = processes.watch(one)
    try:
        ctx.pulse.said = "waits for the daemon to settle"
        ended = watched < 0 and not one.alive()
        left = seconds - one.age() if seconds else 0.0
        if not ended and left > 0:
            until = time.monotonic() + left
            ended = ctx.pulse.until(until, watched) if watched >= 0 else poll(ctx, one, until)
        if ended or not one.alive():
            raise died(ctx, service, one)
    finally:
        if watched >= 0:
            os.close(watched)


def poll(ctx: Context, one: Incarnation, until: float) -> bool:
    """`until` for kernels that cannot watch a process: whether it ended."""
    while one.alive():
        if time.monotonic() >= until:
            return False
        ctx.pulse.rest(0.02)
    return True


def died(ctx: Context, service: SupervisedProcess, one: Incarnation) -> ServiceDied:
    """The error that says how a daemon ended. What lives on of it is ended first: it failed as a whole."""
    status = processes.exit_status(one.pid)
    how = ""
    if status is not None:
        how = f" with exit status {status}" if status >= 0 else f" by signal {-status}"
    points.reach("start.before-clearing")
    left = family.of_daemon(ctx.node)
    words = service.last_words()
    detail: Dict[str, Any] = {"exit": status, "log": words}
    if left.every:
        still = clear(ctx)
        detail.update(alive=family.listed(left.every), left=family.listed(still.every))
        return ServiceDied(_background(how, status, left, still), detail)
    cgroups.drop(cgroup_of(ctx.node))
    last = words.strip().splitlines()[-1:] or ["it wrote nothing"]
    kept = files.read_json(ctx.node.service)
    user = kept.get("user") if isinstance(kept, dict) else None
    whose = f" (it ran as {user}; `run.user` in the Fleet names another)" if user else ""
    return ServiceDied(f"the daemon ended{how}: {last[0][:200]}{whose}", detail)


def _background(how: str, status: Optional[int], left: family.Look, still: family.Look) -> str:
    """The sentence about a first process that ended before the others."""
    names = family.named(left.every)
    if status in (0, None):
        said = (
            f"the daemon went into the background: its first process ended{how}, and {names} ran on. kedge watches"
            " the process that it starts: have the daemon stay in the foreground (an option such as --foreground or"
            " `daemonize no`, or `exec` in a start script)"
        )
    else:
        said = f"the daemon's first process ended{how}, and {names} ran on"
    if still.every:
        return f"{said}. {family.named(still.every)} still runs: the next stop ends it"
    return f"{said}. What ran on was stopped"


def cgroup_of(node: Node) -> Optional[str]:
    """The cgroup that was made for the last start, or None."""
    kept = files.read_json(node.service)
    found = kept.get("cgroup") if isinstance(kept, dict) else None
    return found if isinstance(found, str) and "/kedge-" in found else None


def ensure(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Start the daemon when it should run and does not: after a reboot, or when it died."""
    if not places.exists(ctx.node.should_run):
        return {"should_run": False, "started": False, "pid": None}
    one = service_of(ctx.node).running()
    if one is not None:
        return {"should_run": True, "started": False, "pid": one.pid}
    # Of a daemon whose first process was killed others may live on, and nobody watches them.
    clear(ctx)
    return {"should_run": True, "started": True, **start(ctx, {"settle": op["settle"]})}
