"""What one operation is given: the node, the fence, the pulse of its waits, and its key."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

from kedge.host import points
from kedge.host.fence import Fence
from kedge.host.layout import Node
from kedge.host.told import Told
from kedge.host.waits import Pulse


class Context:
    """One operation in one session. `before` is the first observation made for this key."""

    def __init__(self, node: Node, fence: Fence, pulse: Pulse, key: str, name: str) -> None:
        self.node = node
        self.fence = fence
        self.pulse = pulse
        self.key = key
        self.name = name
        self.before: Dict[str, Any] = {}
        # What a forked child must not keep open: the session's reader would wait for it.
        self.let_go: Callable[[], None] = _nothing
        # Values that probes showed, by their sources, each with the instant at which they were read.
        self.credentials: Dict[bytes, Tuple[float, Dict[str, str]]] = {}
        # What takes the daemon's secrets out of what is told.
        self.told = Told(self)

    @property
    def run(self) -> str:
        """The run this session works for; captured values belong to it."""
        return self.fence.run

    def acting(self) -> None:
        """Said right before the first thing that changes the node."""
        points.reach(f"{self.name}.acting")


def _nothing() -> None:
    """Nothing to let go of."""
