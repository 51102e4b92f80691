"""The write load: one client that puts new keys all the time and keeps account of what was acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from demo.cluster import Gateway, GatewayError, Member
from demo.ledger import Figures, Ledger, ReadBack, compare

PREFIX = "demo/"
PACE = 0.02
"""Seconds from the beginning of one put to that of the next: fifty a second, where the cluster keeps up."""
PATIENCE = 0.5
"""Seconds one member has for its answer; then the next one is asked."""


class Writer:
    """Puts one key after the other, each through the next member. A put that is not acknowledged is
    tried again with the same key and value through the member after that, until somebody acknowledges it: that is
    what every client library of etcd does, and writing the same twice changes nothing.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._gateways = [Gateway(member.client_port, seconds=PATIENCE) for member in members]
        self._turn = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._random = random.Random()
        self.ledger = Ledger()
        self.retried = 0
        """Puts that a member did not acknowledge and that were tried again elsewhere."""

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; a put on its way is given up (and was not acknowledged)."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=PATIENCE * 2 + 5)

    @property
    def acknowledged(self) -> int:
        """How many puts were acknowledged so far."""
        return len(self.ledger)

    def since(self, begin: float) -> Figures:
        """From a moment of ``time.monotonic`` until now."""
        return self.ledger.figures(begin, time.monotonic())

    def _write(self) -> None:
        number = 0
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + PACE, time.monotonic())
            number += 1
            self._put(f"{PREFIX}{number:09d}", f"{self._random.getrandbits(64):016x}")
        for gateway in self._gateways:
            gateway.close()

    def _put(self, key: str, value: str) -> None:
        while not self._stop.is_set():
            gateway = self._gateways[self._turn % len(self._gateways)]
            self._turn += 1
            try:
                gateway.put(key, value)
            except GatewayError:
                self.retried += 1
                # Every member may be refusing at once: not as fast as the machine can ask.
                self._stop.wait(0.005)
            else:
                self.ledger.acknowledge(key, value, time.monotonic())
                return

    def read_back(self, member: Member) -> ReadBack:
        """Reads every key through a member and compares. Raises ``GatewayError``.

        The reads are linearizable: the member first makes sure that it has everything that was committed.
        """
        acknowledged = self.ledger.values()
        return compare(member.name, acknowledged, read_all(member))


def read_all(member: Member) -> dict[str, str]:
    """Every key that writers put, with its value, as this member has it. Raises ``GatewayError``."""
    gateway = Gateway(member.client_port, seconds=10.0)
    found: dict[str, str] = {}
    try:
        while True:
            page = gateway.page(PREFIX, max(found, default=""))
            found.update(page.pairs)
            if not page.more or not page.pairs:
                return found
    finally:
        gateway.close()
