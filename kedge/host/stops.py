"""Stop a daemon, and see that all of it is gone before that is recorded.

The daemon's first process has the signal, once; what is left when that one has ended has it next; what is left
after the grace is killed where the operation says so, and otherwise the stop fails. Rule 5 of
`docs/host-protocol.md`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from kedge.host import (
    cgroups,
    configs,
    family,
    files,
    observe,
    places,
    points,
    processes,
    services,
    sockets,
)
from kedge.host.errors import Conflict, StopTimeout
from kedge.host.layout import Node
from kedge.host.processes import Incarnation

if TYPE_CHECKING:
    from kedge.host.context import Context

KILL_WAIT = 10.0
# What is left when the first process has ended gets so much of the grace at least.
REST_GRACE = 5.0
# A port is let go with its last socket: right behind the process's end.
PORT_WAIT = 2.0


class Stop:
    """One stop operation."""

    def __init__(self, ctx: Context, op: Dict[str, Any], one: Optional[Incarnation]) -> None:
        self.ctx = ctx
        self.op = op
        # The first process of the last start, alive or not: by it the notes of a stop are known again.
        self.one = one or Incarnation(0, 0, processes.boot_id())
        self.number = signal.Signals[f"SIG{op['signal']}"]
        self.until = time.monotonic() + op["grace"]

    def run(self) -> None:
        """Signal and wait, until nothing of the daemon lives; StopTimeout names what does."""
        sure = True
        if self.one.alive():
            sure = self._signal_first()
            self._wait_first()
            if self.one.alive() and not sure:
                # Whether the earlier session sent it is not known; a whole grace says that it did not.
                self._send_first()
                self.until = time.monotonic() + self.op["grace"]
                self._wait_first()
        if not self.one.alive():
            self._rest()
        left = family.of_daemon(self.ctx.node)
        if left.sure and self.op["kill"]:
            self._kill()
            left = family.of_daemon(self.ctx.node)
        if left.every:
            raise self._alive(left)

    # -- the first process ---------------------------------------------------------------------------------

    def _signal_first(self) -> bool:
        """Send the signal unless this life of the daemon had it; whether it surely had it now.

        The intent is written before and the fact after. A session killed in the instant between leaves an
        intent alone: then the signal may or may not have been sent, and it is not sent now.
        """
        ctx = self.ctx
        kept = files.read_json(ctx.node.stopping) or {}
        same = processes.told(kept) == self.one and kept.get("signal") == self.number
        if same and not (self.op["again"] and kept.get("key") != ctx.key):
            with ctx.fence.act():
                files.drop(ctx.node.should_run)
            return bool(kept.get("sent"))
        self._send_first()
        return True

    def _send_first(self) -> None:
        # Not fsynced: after a power failure the daemon is gone, and its boot with it.
        node = self.ctx.node
        everyone = family.of_daemon(node).sure
        told = {**self.one.wire(), "signal": self.number, "key": self.ctx.key, "sent": False}
        told["family"] = family.to_keep(everyone)
        with self.ctx.fence.act():
            files.drop(node.should_run)
            told["since"] = time.clock_gettime(time.CLOCK_BOOTTIME)
            files.note(node.stopping, told)
            points.reach("stop.before-signal")
            processes.send(self.one, self.number)
            points.reach("stop.between-signal-and-note")
            files.note(node.stopping, {**told, "sent": True})
        points.reach("stop.after-signal")
        files.sync_dir(node.own)

    def _wait_first(self) -> None:
        self.ctx.pulse.said = "waits for the daemon to stop"
        _wait(self.ctx, self.one, self.until)

    # -- what is left of it --------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Signal what the first process left running, each once, and wait for all of it."""
        ctx = self.ctx
        kept = files.read_json(ctx.node.stopping)
        same = isinstance(kept, dict) and processes.told(kept) == self.one
        # Of a session that was killed in the instant between: a whole grace says that it did not signal them.
        unsure = same and kept.get("rest") and not kept.get("rest_sent")
        self._rest_until(max(self.until, time.monotonic() + min(self.op["grace"], REST_GRACE)))
        if unsure and family.of_daemon(ctx.node).sure:
            self._note_rest(rest=[])
            self._rest_until(time.monotonic() + self.op["grace"])

    def _rest_until(self, until: float) -> None:
        while True:
            found = family.of_daemon(self.ctx.node).sure
            if not found:
                return
            points.reach("stop.before-rest")
            self._signal_rest(found)
            self.ctx.pulse.said = f"waits for {family.named(found)} to stop"[:200]
            for one in found:
                _wait(self.ctx, one, min(until, time.monotonic() + 0.5))
            if time.monotonic() >= until:
                return

    def _signal_rest(self, found: Tuple[Incarnation, ...]) -> None:
        had = self._note_rest().get("rest") or []
        fresh = [one for one in found if [one.pid, one.start] not in had]
        if not fresh:
            return
        with self.ctx.fence.act():
            files.drop(self.ctx.node.should_run)
            kept = self._note_rest(rest=had + family.to_keep(fresh), rest_sent=False)
            points.reach("stop.before-signalling-rest")
            for one in fresh:
                processes.send(one, self.number)
            points.reach("stop.between-signalling-and-noting-rest")
            self._note_rest(**{**kept, "rest_sent": True})
        points.reach("stop.after-rest")
        files.sync_dir(self.ctx.node.own)

    def _note_rest(self, **more: Any) -> Dict[str, Any]:
        """What is noted of this stop, with something more."""
        node = self.ctx.node
        kept = files.read_json(node.stopping)
        if not isinstance(kept, dict) or processes.told(kept) != self.one:
            kept = {**self.one.wire(), "signal": self.number, "key": self.ctx.key, "sent": True}
            kept["since"] = time.clock_gettime(time.CLOCK_BOOTTIME)
        if more:
            kept = {**kept, **more, "rest": more["rest"][-64:]}
            known = [one for one in kept.get("family") or [] if one not in kept["rest"]]
            kept["family"] = (known + kept["rest"])[-96:]
            files.note(node.stopping, kept)
        return kept

    def _kill(self) -> None:
        until = time.monotonic() + KILL_WAIT
        while time.monotonic() < until:
            found = family.of_daemon(self.ctx.node).sure
            if not found:
                return
            with self.ctx.fence.act():
                for one in found:
                    processes.send(one, signal.SIGKILL)
            _wait(self.ctx, found[0], min(until, time.monotonic() + 0.5))

    def _alive(self, left: family.Look) -> StopTimeout:
        words = files.tail(self.ctx.node.log, services.TAIL)
        detail = {"pid": left.every[0].pid, "alive": family.listed(left.every), "log": words}
        if left.sure:
            said = f"still alive {self.op['grace']:g} s after SIG{self.op['signal']}; it was not killed"
            if self.op["kill"]:
                said = f"still alive after SIGKILL: {family.named(left.sure)}"
            elif left.sure != (self.one,):
                said = f"{said}: {family.named(left.sure)}"
            return StopTimeout(said, detail)
        return StopTimeout(
            f"{family.named(left.unsure)} has the session of the daemon, which has ended: it may be left of it, or"
            " somebody else's. End it if it is the daemon's",
            detail,
        )


def stop(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Signal the daemon once and wait until all of it is gone; SIGKILL only when the operation says so."""
    node = ctx.node
    last = processes.told(files.read_json(node.service))
    found = family.of_daemon(node)
    was_running = bool(ctx.before["running"]) or bool(found.every)
    if found.every:
        ctx.acting()
        Stop(ctx, op, last).run()
    elif places.exists(node.should_run):
        with ctx.fence.act():
            files.drop(node.should_run)
            files.sync_dir(node.own)
    if last is not None:
        processes.exit_status(last.pid)
    cgroups.drop(services.cgroup_of(node))
    if was_running:
        _ports_let_go(ctx)
    pid = ctx.before["pid"] or (last.pid if last and was_running else None)
    return {"waited": since(node, pid), "was_running": was_running}


def _ports_let_go(ctx: Context) -> None:
    """Nobody listens on the ports of a daemon that is gone; Conflict names who does."""
    generation = observe.current_config(ctx.node)
    spec = configs.service_spec(ctx.node, generation) if generation else {}
    ports = spec.get("ports") or ()
    until = time.monotonic() + PORT_WAIT
    while ports:
        found = sockets.taken(ports)
        if not found:
            return
        if time.monotonic() >= until:
            raise Conflict(
                f"the daemon has ended and {found[0]} still: it may be left of it. End it if it is",
                {"ports": found[:16]},
            )
        ctx.pulse.rest(0.05)


def _wait(ctx: Context, one: Incarnation, until: float) -> None:
    """Wait for the end of one process until a monotonic instant."""
    watched = processes.watch(one)
    try:
        if watched >= 0:
            ctx.pulse.until(until, watched)
        else:
            services.poll(ctx, one, until)
    finally:
        if watched >= 0:
            os.close(watched)


def since(node: Node, pid: Optional[int]) -> float:
    """Seconds since the signal to that daemon, also when an earlier session sent it."""
    kept = files.read_json(node.stopping)
    if not isinstance(kept, dict) or pid is None or kept.get("pid") != pid:
        return 0.0
    when = kept.get("since")
    if kept.get("boot") != processes.boot_id() or not isinstance(when, float):
        return 0.0
    return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - when), 4)
