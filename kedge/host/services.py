"""Start, stop and keep the daemon of a node.

How a daemon is run is looked up in `SERVICES` by the `kind` of its configuration; here is the supervised
process, other kinds (systemd units, containers) join with the same four calls. Rules 4 and 5 of
`docs/host-protocol.md`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Dict, Optional, Type

from kedge.host import (
    configs,
    files,
    launch,
    observe,
    places,
    points,
    processes,
    releases,
    secret,
)
from kedge.host.errors import BadRequest, Conflict, NoRelease, ServiceDied, StopTimeout
from kedge.host.layout import Node
from kedge.host.places import Place
from kedge.host.processes import Incarnation

if TYPE_CHECKING:
    from kedge.host.context import Context

TAIL = 4096
KILL_WAIT = 10.0


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
        env = launch.environment({name: secret.put(one, values) for name, one in told.items()})
        program = launch.program_of(spec["argv"][0], str(release), cwd, env["PATH"])
        kept = {
            "release": digest,
            "generation": generation,
            "key": ctx.key,
            "program": program,
            **_counted(node, digest),
        }
        if values:
            kept["secrets"] = secret.marks(values)
        what = launch.Launch(program, spec["argv"], env, cwd, node.log, node.service, kept)
        return launch.launch(what)

    def signal(self, one: Incarnation, number: int) -> None:
        """Send one signal to this life of the daemon, if it still lives."""
        processes.send(one, number)

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
        configs.service_spec(node, generation)
        releases.verify(node, digest, ctx.pulse.tick)
        ctx.acting()
        one = _begin(ctx, service, digest, generation)
    else:
        _same(observe.running_release(node, one, kept), digest, "release")
        _same(kept.get("generation"), generation, "configuration")
        _mark(ctx)
    settle(ctx, service, one, op["settle"])
    return {"pid": one.pid}


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
            ended = ctx.pulse.until(until, watched) if watched >= 0 else _poll(ctx, one, until)
        if ended or not one.alive():
            raise died(service, one)
    finally:
        if watched >= 0:
            os.close(watched)


def _poll(ctx: Context, one: Incarnation, until: float) -> bool:
    """`until` for kernels that cannot watch a process: whether it ended."""
    while one.alive():
        if time.monotonic() >= until:
            return False
        ctx.pulse.rest(0.02)
    return True


def died(service: SupervisedProcess, one: Incarnation) -> ServiceDied:
    """The error that says how a daemon ended."""
    status = processes.exit_status(one.pid)
    how = ""
    if status is not None:
        how = f" with exit status {status}" if status >= 0 else f" by signal {-status}"
    words = service.last_words()
    last = words.strip().splitlines()[-1:] or ["it wrote nothing"]
    detail = {"exit": status, "log": words}
    return ServiceDied(f"the daemon ended{how}: {last[0][:200]}", detail)


def stop(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Signal the daemon once and wait for its end; SIGKILL only when the operation says so."""
    node = ctx.node
    service = service_of(node)
    one = service.running()
    was_running = bool(ctx.before["running"])
    if one is None:
        if places.exists(node.should_run):
            with ctx.fence.act():
                files.drop(node.should_run)
                files.sync_dir(node.own)
        return {"waited": _since(node, ctx.before["pid"]), "was_running": was_running}
    number = signal.Signals[f"SIG{op['signal']}"]
    ctx.acting()
    watched = processes.watch(one)
    try:
        sure = _signal_once(ctx, service, one, number, again=op["again"])
        gone = _wait_end(ctx, one, watched, op["grace"])
        if not gone and not sure:
            # Whether the earlier session sent it is not known; a whole grace says that it did not.
            _send(ctx, service, one, number)
            gone = _wait_end(ctx, one, watched, op["grace"])
        if not gone and op["kill"]:
            with ctx.fence.act():
                service.signal(one, signal.SIGKILL)
            gone = _wait_end(ctx, one, watched, KILL_WAIT)
    finally:
        if watched >= 0:
            os.close(watched)
    if not gone:
        raise StopTimeout(
            f"still alive {op['grace']:g} s after SIG{op['signal']}; it was not killed",
            {"pid": one.pid, "log": service.last_words()},
        )
    processes.exit_status(one.pid)
    return {"waited": _since(node, one.pid), "was_running": True}


def _signal_once(
    ctx: Context, service: SupervisedProcess, one: Incarnation, number: int, *, again: bool
) -> bool:
    """Send the signal unless this life of the daemon had it; whether it surely had it now.

    The intent is written before and the fact after. A session killed in the instant between leaves an
    intent alone: then the signal may or may not have been sent, and it is not sent now.
    """
    kept = files.read_json(ctx.node.stopping) or {}
    same = processes.told(kept) == one and kept.get("signal") == number
    if same and not (again and kept.get("key") != ctx.key):
        with ctx.fence.act():
            files.drop(ctx.node.should_run)
        return bool(kept.get("sent"))
    _send(ctx, service, one, number)
    return True


def _send(ctx: Context, service: SupervisedProcess, one: Incarnation, number: int) -> None:
    # Not fsynced: after a power failure the daemon is gone, and its boot with it.
    node = ctx.node
    told = {**one.wire(), "signal": number, "key": ctx.key, "sent": False}
    with ctx.fence.act():
        files.drop(node.should_run)
        told["since"] = time.clock_gettime(time.CLOCK_BOOTTIME)
        files.note(node.stopping, told)
        points.reach("stop.before-signal")
        service.signal(one, number)
        points.reach("stop.between-signal-and-note")
        files.note(node.stopping, {**told, "sent": True})
    points.reach("stop.after-signal")
    files.sync_dir(node.own)


def _wait_end(ctx: Context, one: Incarnation, watched: int, seconds: float) -> bool:
    ctx.pulse.said = "waits for the daemon to stop"
    until = time.monotonic() + seconds
    if watched < 0:
        return _poll(ctx, one, until)
    return ctx.pulse.until(until, watched) or not one.alive()


def _since(node: Node, pid: Optional[int]) -> float:
    """Seconds since the signal to that process, also when an earlier session sent it."""
    kept = files.read_json(node.stopping)
    if not isinstance(kept, dict) or pid is None or kept.get("pid") != pid:
        return 0.0
    since = kept.get("since")
    if kept.get("boot") != processes.boot_id() or not isinstance(since, float):
        return 0.0
    return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since), 4)


def ensure(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Start the daemon when it should run and does not: after a reboot, or when it died."""
    if not places.exists(ctx.node.should_run):
        return {"should_run": False, "started": False, "pid": None}
    one = service_of(ctx.node).running()
    if one is not None:
        return {"should_run": True, "started": False, "pid": one.pid}
    return {"should_run": True, "started": True, **start(ctx, {"settle": op["settle"]})}
