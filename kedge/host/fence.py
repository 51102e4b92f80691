"""The fence: the highest token seen on this node. What has a lower one does nothing any more.

Raising takes `fence.lock` exclusively; every act takes it shared and compares its token again inside.
So when a raise has returned, no act of an older token can follow. Rule 1 of `docs/host-protocol.md`.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from typing import Any, Callable, Iterator, Optional, Tuple

from kedge.host import files, locks, points
from kedge.host.errors import Fenced, HostError
from kedge.host.layout import Node, Token

# `fence.lock` is held for milliseconds only, so even who waits for nothing waits for that; the time is
# for a frozen holder to be taken out of the way.
SHORT = 5.0


class Fence:
    """One session's view of the fence. `lock_wait` (s) bounds a wait for its lock, from SHORT up."""

    def __init__(self, node: Node, token: Token, run: str, lock_wait: float) -> None:
        self.node = node
        self.token = token
        self.run = run
        self.lock_wait = max(lock_wait, SHORT)
        self.held: Optional[locks.Lock] = None

    def standing(self) -> Tuple[Optional[Token], str]:
        """The token that has the node now and the run it belongs to.

        A fence that cannot be read is an error, not an absent one: it is only ever replaced whole.
        """
        try:
            kept = self.node.kept_fence.value()
        except ValueError:
            kept = ""
        if kept is None:
            return None, ""
        token = locks.token_of(kept.get("token")) if isinstance(kept, dict) else None
        if token is None:
            raise HostError(f"the fence cannot be read: {self.node.fence}")
        return token, str(kept.get("run", ""))

    def check(self) -> None:
        """Raise Fenced when a newer token has the node. Cheap enough to repeat in every wait."""
        token, run = self.standing()
        if token is not None and token > self.token:
            detail = {"token": list(self.token), "fence": list(token), "run": run}
            raise Fenced(
                f"token {self.token} is older than {token} of {run or 'another run'}", detail
            )

    def raise_to(self) -> None:
        """Raise the fence to this session's token, durably, or raise Fenced."""
        standing, _ = self.standing()
        if standing == self.token:
            return
        self.check()
        lock = locks.Lock(self.node.fence_lock)
        lock.open()
        try:
            locks.acquire(lock, fcntl.LOCK_EX, self.lock_wait, self.check, self.clear)
            self.check()
            lock.say({"token": list(self.token)})
            told = {"token": list(self.token), "run": self.run, "at": time.time()}
            points.reach("fence.raising")
            files.write_atomic(self.node.fence, files.to_json(told))
            lock.say({})
        finally:
            lock.close()

    def clear(self) -> None:
        """Take stuck sessions with older tokens out of the way."""
        locks.clear_older(self.node.op_lock, self.node.fence_lock, self.token)

    @contextlib.contextmanager
    def act(self) -> Iterator[locks.Lock]:
        """Hold this around one short act (rename, signal, spawn): nobody raises the fence in it.

        Raises Fenced, before the act, when the token is not the newest any more. A child forked
        inside holds the fence on until it closes the lock it is given, or executes something.
        """
        lock = locks.Lock(self.node.fence_lock)
        lock.open()
        try:
            locks.acquire(lock, fcntl.LOCK_SH, self.lock_wait, self.check, self.clear)
            self.check()
            yield lock
        finally:
            lock.close()

    @contextlib.contextmanager
    def turn(self, key: str, limit: float, tick: Callable[[], None]) -> Iterator[locks.Lock]:
        """Hold `op.lock` for one operation; Busy after `limit` seconds, Fenced when overtaken."""
        lock = locks.Lock(self.node.op_lock)
        lock.open()
        try:
            locks.acquire(lock, fcntl.LOCK_EX, limit, tick, self.clear)
            self.check()
            lock.say(self.holder(key))
            self.held = lock
            yield lock
        finally:
            self.held = None
            lock.close()

    def holder(self, key: str, **more: Any) -> Any:
        """What the holder of `op.lock` writes about itself."""
        return {"token": list(self.token), "run": self.run[:128], "key": key[:128], **more}
