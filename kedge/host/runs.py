"""Commands that cannot be observed: the intent first, a runner of its own, the outcome, never a guess.

For each key there are in `.kedge/runs/`: `<id>.intent` (durable before anything is executed), `<id>.spawning`
(written by the runner right before it executes; says nothing after a reboot), `<id>.command` (who the command is)
and `<id>.outcome`. The runner holds `op.lock` until the outcome is written: who gets that lock and finds an
intent without an outcome knows that the runner is dead. Rule 6 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, Optional

from kedge.host import commands, family, files, launch, locks, places, points, probes, processes
from kedge.host.errors import Busy, CommandFailed, Fault, HostError, Unresolved
from kedge.host.places import Place
from kedge.host.verdicts import FAIL, PASS

if TYPE_CHECKING:
    from kedge.host.context import Context


NO_EFFECT = {"effect": False}
"""In the detail of a failure after which the command certainly changed nothing."""


class Paths:
    """The files of one key."""

    def __init__(self, runs: Place, key: str) -> None:
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        self.intent = runs / f"{name}.intent"
        self.spawning = runs / f"{name}.spawning"
        self.command = runs / f"{name}.command"
        self.outcome = runs / f"{name}.outcome"

    def forget(self) -> None:
        """Remove all of them; the intent last, so that a rest of them is never a lie."""
        for place in (self.spawning, self.command, self.outcome, self.intent):
            files.drop(place)


def run(ctx: Context, op: Dict[str, Any]) -> Dict[str, Any]:
    """Execute a command once, or say how the execution that was begun under this key ended."""
    paths = Paths(ctx.node.runs, ctx.key)
    intent = files.read_json(paths.intent)
    if intent is not None:
        found = _begun_before(ctx, op, paths, intent)
        if found is not None:
            return found
    # The runner must write its outcome whatever happens: it cannot read secrets then.
    ctx.told.prepare()
    ctx.acting()
    told = {"key": ctx.key, "argv": op["argv"], "boot": processes.boot_id(), "at": time.time()}
    told["anew"] = op["anew"]
    with ctx.fence.act():
        files.drop(paths.spawning)
        files.drop(paths.command)
        files.write_atomic(paths.intent, files.to_json(told))
    points.reach("run.intent")
    _execute(ctx, op, paths)
    if places.exists(paths.outcome):
        return _outcome(ctx, op, paths)
    return _unwatched(ctx, op, paths, told)


def _begun_before(
    ctx: Context, op: Dict[str, Any], paths: Paths, intent: Dict[str, Any]
) -> Optional[Dict[str, Any]]:
    """What an earlier attempt came to; None when it certainly executed nothing, or had no effect."""
    if places.exists(paths.outcome):
        return _outcome(ctx, op, paths)
    # Also the command of a runner that was killed before it could write down what it had started.
    first = processes.told(files.read_json(paths.command))
    alive = family.of_command(ctx.node, ctx.key, first).every
    if alive:
        raise Busy(
            f"{op['argv'][0]} still runs ({family.named(alive)}), but what watched it was killed",
            {"pid": alive[0].pid},
        )
    if intent.get("boot") == processes.boot_id() and not places.exists(paths.spawning):
        return None
    if op["check"] is not None:
        found = probes.look(ctx, op["check"])
        if found.verdict == PASS:
            return {"exit": None, "output": "", "resolved": "by its check: the effect is there"}
        if found.verdict == FAIL:
            return None
    if op["anew"] > intent.get("anew", 0):
        # Somebody looked and decided since. The intent that is written next has this number: it is said once.
        return None
    raise Unresolved(
        f"{op['argv'][0]} was begun and nobody knows how it ended: look, then decide",
        {"argv": op["argv"][:16], "begun": intent.get("at")},
    )


def _outcome(ctx: Context, op: Dict[str, Any], paths: Paths) -> Dict[str, Any]:
    """A good outcome as the result. A bad one is told once: the next attempt executes anew (never with `kept`)."""
    found = files.read_json(paths.outcome)
    if not isinstance(found, dict):
        raise Unresolved(
            f"the outcome of {op['argv'][0]} cannot be read", {"argv": op["argv"][:16]}
        )
    output = found["output"]
    if found["exit"] in op["exit"]:
        return {"exit": found["exit"], "output": output, "seconds": found["seconds"]}
    executed = not found["error"]
    if not (executed and op.get("kept")):
        with ctx.fence.act():
            paths.forget()
    if not executed:
        how = found["error"]
    elif found["exit"] is None:
        how = f"still ran after {op['timeout']:g} s and was ended"
    else:
        how = f"exit {found['exit']}"
    detail = {"exit": found["exit"], "output": output, **({} if executed else NO_EFFECT)}
    raise CommandFailed(f"{op['argv'][0]}: {how}", detail)


def _execute(ctx: Context, op: Dict[str, Any], paths: Paths) -> None:
    """Fork the runner and wait for its end; a session that dies here takes nothing with it."""
    turn = ctx.fence.held
    if turn is None:
        raise HostError("a command is run without the node's lock")
    sys.stdout.flush()
    with ctx.fence.act() as fenced:
        pid = os.fork()
        if pid == 0:
            _runner(ctx, op, paths, turn, fenced)
    points.reach("run.forked")
    ctx.pulse.said = f"waits for {op['argv'][0]}"[:200]
    one = processes.of_pid(pid)
    watched = processes.watch(one) if one else -1
    try:
        pauses = locks.steps()
        while processes.start_of(pid) is not None:
            ctx.pulse.rest(60.0 if watched >= 0 else next(pauses), watched)
    finally:
        if watched >= 0:
            os.close(watched)
    processes.exit_status(pid)


def _unwatched(
    ctx: Context, op: Dict[str, Any], paths: Paths, intent: Dict[str, Any]
) -> Dict[str, Any]:
    """Its runner was killed: the same questions as for an earlier attempt; nothing happened is a failed try."""
    found = _begun_before(ctx, op, paths, intent)
    if found is not None:
        return found
    said = f"{op['argv'][0]}: what watched it was killed, and it had no effect"
    raise CommandFailed(said, {"exit": None, "output": "", **NO_EFFECT})


def _runner(
    ctx: Context, op: Dict[str, Any], paths: Paths, turn: locks.Lock, fenced: locks.Lock
) -> None:
    """The runner's whole life; it never returns. It keeps `op.lock` and lets the reader go."""
    try:
        os.setsid()
        ctx.let_go()
        launch.plain_signals(launch.ignored_signals())
        turn.say(ctx.fence.holder(ctx.key, runner=os.getpid()))
        files.write_atomic(paths.spawning, b"{}", sync=False)
        points.reach("run.before-spawn")
        files.write_atomic(paths.outcome, files.to_json(_watched(ctx, op, paths, fenced)))
        points.reach("run.outcome")
    finally:
        os._exit(0)


def _watched(ctx: Context, op: Dict[str, Any], paths: Paths, fenced: locks.Lock) -> Dict[str, Any]:
    try:
        user = commands.user_of(ctx.node)
        one = commands.spawn(ctx.node, op, user, key=ctx.key)
    except (Fault, OSError, ValueError, subprocess.SubprocessError) as error:
        fenced.close()
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return {"exit": None, "output": "", "seconds": 0.0, "error": f"not executed: {text}"}
    points.reach("run.before-command-record")
    who = processes.of_pid(one.pid)
    if who is not None:
        files.write_atomic(paths.command, files.to_json(who.wire()), sync=False)
    # It runs: from here on a newer token may take the fence. The node's lock stays until the end.
    fenced.close()
    points.reach("run.spawned")
    ended = commands.follow(one, op["timeout"], op["output_max"], _rest, tail=True)
    # It may have changed a secret and said the new one. Files are read at once; the others by who tells it.
    ctx.told.look_at_files()
    output = ctx.told.text(ended.output.decode("utf-8", "replace"))
    return {"exit": ended.exit, "output": output, "seconds": ended.seconds, "error": ""}


def _rest(seconds: float, watched: int) -> bool:
    poller = select.poll()
    if watched >= 0:
        poller.register(watched, select.POLLIN)
    return bool(poller.poll(int(seconds * 1000 + 0.999)))
