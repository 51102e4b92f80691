"""One session: raise the fence, then one operation after another, each under the lock and in the journal.

Rules 1 to 3 of `docs/host-protocol.md`. Lines are said only after what they tell is durable.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any, Dict, List, Optional

from kedge.host import (
    errors,
    files,
    observe,
    operations,
    outside,
    points,
    preflight,
    probes,
    request,
    restores,
)
from kedge.host.context import Context
from kedge.host.errors import BadRequest, Fault, ReaderGone
from kedge.host.fence import Fence
from kedge.host.journal import Journal
from kedge.host.layout import Node
from kedge.host.request import Operation, Request
from kedge.host.told import Told, without_secrets
from kedge.host.waits import SLICE, WORKS, Pulse

INPUT_WAIT = 60.0
SAID_MAX = 500
# These change nothing or look anew each time: a record of them must never stand for a look.
FRESH = ("fence", "observe", "ensure", "secrets")
# In what these say there may be words of a daemon or a command.
TALKATIVE = ("run", "init", "probe", "healthy")


class Wire:
    """The two ends of a session: one line is read, lines are written."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing

    def line(self) -> bytes:
        """The input line; BadRequest when it is too long, too slow, or not there."""
        parts = b""
        poller = select.poll()
        poller.register(self.reading, select.POLLIN)
        until = time.monotonic() + INPUT_WAIT
        while b"\n" not in parts:
            if len(parts) > request.MAX_BYTES:
                raise BadRequest(f"the input has more than {request.MAX_BYTES} bytes")
            if not poller.poll(max(0, int((until - time.monotonic()) * 1000))):
                raise BadRequest(f"no whole line within {INPUT_WAIT:g} s")
            part = os.read(self.reading, 1 << 16)
            if not part:
                break
            parts += part
        return parts.partition(b"\n")[0]

    def say(self, *told: Dict[str, Any]) -> None:
        """Write lines, whatever is in them; ReaderGone when nobody reads. Waits for a slow reader in slices."""
        left = memoryview(b"".join(files.to_json(outside.value(one)) + b"\n" for one in told))
        poller = select.poll()
        poller.register(self.writing, select.POLLOUT)
        try:
            while left:
                if poller.poll(int(SLICE * 1000)):
                    # A pipe that is ready takes this much without blocking.
                    left = left[os.write(self.writing, left[:4096]) :]
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ReaderGone from error

    def check(self) -> None:
        """Raise ReaderGone when the reader is gone."""
        poller = select.poll()
        poller.register(self.writing, 0)
        if poller.poll(0):
            raise ReaderGone

    def close(self) -> None:
        """For forked children: let both ends go, so that the reader sees the session's end."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in {self.reading, self.writing}:
            os.dup2(nowhere, fd, inheritable=fd <= 2)
        os.close(nowhere)


class Session:
    """One request on one node."""

    def __init__(self, wire: Wire, asked: Request) -> None:
        self.wire = wire
        self.asked = asked
        self.node = Node(asked.root, asked.node)
        self.fence = Fence(self.node, asked.token, asked.run, asked.lock_wait)
        self.journal = Journal(self.node.journal)
        self.key: Optional[str] = None
        self.name: Optional[str] = None
        self.words: Optional[Told] = None

    def _reach(self, point: str) -> None:
        """A point of a session that only looks is another one than that of a leg."""
        points.reach(f"look.{point}" if self.asked.look else point)

    def _fresh(self, op: Operation) -> bool:
        """Whether an operation is looked at or done anew each time, whatever the journal says of its key."""
        return self.asked.look or op.name in FRESH

    def run(self) -> None:
        """Do everything that is asked; raises the fault that ends the session."""
        points.of_node(self.asked.node)
        self._reach("session.before")
        self.node.make()
        self._reach("fence.before")
        self.fence.raise_to()
        self._reach("fence.raised")
        done: List[Dict[str, Any]] = []
        for op in self.asked.ops:
            self.wire.check()
            # The end of one operation and the begin of the next in one write: the reader wakes once.
            self._tell(*done, {"ev": "begin", "key": op.key, "op": op.name})
            self.key, self.name = op.key, op.name
            done = [{"ev": "done", "key": op.key, "op": op.name, **self.step(op)}]
        self._tell(*done)

    def _tell(self, *lines: Dict[str, Any]) -> None:
        self.wire.say(*lines)
        if lines and lines[0]["ev"] == "done":
            self._reach(f"{self.name}.told")

    def step(self, op: Operation) -> Dict[str, Any]:
        """One operation: from the journal, skipped, or done and recorded."""
        pulse = Pulse(self.fence, self._progress, self.wire.check)
        pulse.said = "waits for the node's lock"
        limit = self.asked.lock_wait
        if op.name in ("run", "init"):
            # Its own earlier attempt may still run: that one's end is what is waited for.
            limit += op.params["timeout"]
        with self.fence.turn(op.key, limit, pulse.tick):
            pulse.said = WORKS
            restores.finish(self.node, self.fence)
            self.journal.refresh()
            recorded = self._recorded(op)
            if recorded is not None and preflight.stands(self.node, op.name, recorded):
                return recorded
            pulse.limit(op.limit)
            ctx = Context(self.node, self.fence, pulse, op.key, op.name)
            self.words = ctx.told
            ctx.let_go = self.wire.close
            self._reach(f"{op.name}.before")
            if recorded is not None:
                # Recorded, and the stop is still to come: looked at again, told as it was recorded.
                ctx.before = recorded["before"]
                self._acted(ctx, op)
                return recorded
            ctx.before = self._before(op)
            return self._perform(ctx, op)

    def _recorded(self, op: Operation) -> Optional[Dict[str, Any]]:
        found = None if self._fresh(op) else self.journal.find(op.key)
        if found is None:
            return None
        if found["op"] != op.name:
            raise BadRequest(f"the key {op.key!r} was used for {found['op']!r}, not {op.name!r}")
        told = {name: found[name] for name in ("result", "before", "after", "skipped")}
        return {**told, "replayed": True}

    def _before(self, op: Operation) -> Dict[str, Any]:
        """The first observation for this key: also of an attempt that was killed in the middle.

        Kept in a file that means nothing once the key is recorded, and so is not fsynced.
        """
        kept = files.read_json(self.node.begun)
        if isinstance(kept, dict) and kept.get("key") == op.key and not self._fresh(op):
            before: Dict[str, Any] = kept["before"]
            return before
        before = observe.brief(self.node)
        if not self._fresh(op):
            files.note(self.node.begun, {"key": op.key, "before": before})
        return before

    def _perform(self, ctx: Context, op: Operation) -> Dict[str, Any]:
        skipped = op.when is not None and not self._holds(ctx, op.when)
        result = {} if skipped else self._acted(ctx, op)
        self._reach(f"{op.name}.acted")
        after = observe.brief(self.node)
        told: Dict[str, Any] = {"result": result, "before": ctx.before, "after": after}
        told["skipped"] = skipped
        if not self._fresh(op) or result.get("started"):
            self._record(op, told)
        self._reach(f"{op.name}.recorded")
        if op.name == "observe":
            told["result"] = {**told["result"], "journal": list(self.journal.head())}
        return {**told, "replayed": False}

    def _holds(self, ctx: Context, when: Dict[str, Any]) -> bool:
        try:
            return probes.holds(ctx, when)
        except Fault as fault:
            raise without_secrets(fault, ctx.told) from fault.__cause__

    def _acted(self, ctx: Context, op: Operation) -> Dict[str, Any]:
        """What an operation came to, without the daemon's secrets in what it or its commands said."""
        try:
            result = operations.OPERATIONS[op.name](ctx, op.params)
            if op.name in ("run", "init"):
                ctx.told.look_again()
        except Fault as fault:
            raise without_secrets(fault, ctx.told) from fault.__cause__
        told: Dict[str, Any] = ctx.told.value(result) if op.name in TALKATIVE else result
        cleaned: Dict[str, Any] = outside.value(told)
        return cleaned

    def _record(self, op: Operation, told: Dict[str, Any]) -> None:
        asked = self.asked
        record = {"op": op.name, "run": asked.run, "token": list(asked.token), "at": time.time()}
        with self.fence.act():
            self.journal.append(op.key, {**record, **told})

    def _progress(self, said: str) -> None:
        if self.name in TALKATIVE and self.words is not None:
            words, self.words = self.words, None
            # Reading secrets says progress too; that one needs no looking through.
            said, self.words = words.text(said), words
        self.wire.say({"ev": "progress", "key": self.key, "said": outside.text(said, SAID_MAX)})


def converse(wire: Wire) -> int:
    """Hold one session; gives the exit code: 0 all done, 1 failed, 2 not of this protocol."""
    session: Optional[Session] = None
    fault: Optional[Fault] = None
    try:
        try:
            session = Session(wire, request.parse(wire.line()))
            session.run()
        except Fault as found:
            fault = found
        except OSError as error:
            fault = errors.from_os(error)
        except ReaderGone:
            raise
        except Exception as error:  # noqa: BLE001 -- a mistake of ours is said, not left to a broken connection
            fault = errors.unexpected(error)
        return _finish(wire, session, fault)
    except ReaderGone:
        return 1
    finally:
        if session is not None:
            session.node.close()


def _finish(wire: Wire, session: Optional[Session], fault: Optional[Fault]) -> int:
    key = session.key if session else None
    name = session.name if session else None
    if fault is not None:
        wire.say({"ev": "failed", "key": key, "op": name, "error": fault.wire()})
    try:
        observed = observe.full(session.node) if session else {}
        if session is not None and session.journal.looked:
            # As this session left it: who keeps that can tell later whether a line was changed or taken out.
            observed["journal"] = list(session.journal.head())
    except Exception:  # noqa: BLE001 -- what cannot be observed is not, and how it ended is said all the same
        observed = {}
    wire.say({"ev": "end", "ok": fault is None, "observed": observed})
    if fault is None:
        return 0
    return 2 if isinstance(fault, BadRequest) else 1
