"""First bring-up: what is done on a node whose root is empty, so that a fleet runs its first release."""

from __future__ import annotations

from kedge.model.base import Json
from kedge.model.fleet import Fleet
from kedge.model.plan import Artifact, PlannedNode
from kedge.model.release import Release
from kedge.plan.check import install_problems
from kedge.plan.compile import (
    ConflictsError,
    fleet_vars,
    planned_nodes,
    planned_release,
    root_problems,
)
from kedge.plan.render import Ground, Operation

SETTLE = 0.3
"""Seconds a first start must stay alive."""


class Installation:
    """A fleet to be brought up on a release. Raises ``ConflictsError`` with every problem when that cannot be.

    ``nodes`` are the fleet's nodes as transports take them, ``release`` what of the release their artifacts come from.
    """

    def __init__(self, fleet: Fleet, release: Release) -> None:
        problems = [*install_problems(fleet, release), *root_problems(fleet)]
        if problems:
            raise ConflictsError(problems)
        self.nodes: tuple[PlannedNode, ...] = planned_nodes(fleet)
        self.release = planned_release(fleet, (release,), {})
        self._ground = Ground(fleet.name, fleet_vars(fleet), self.nodes, {"after": self.release})

    def archive(self, node: int) -> Artifact:
        """The archive that a node gets."""
        platform = self.nodes[node].platform
        return next(one for one in self.release.artifacts if one.platform == platform)

    def operations(self, node: int, *, key: str) -> tuple[Operation, ...]:
        """Stage (``source`` is for the caller to fill in), switch, configure, start; keys begin with ``key``."""
        values = self._ground.values(node, "after", key, 0)
        params: dict[str, dict[str, Json]] = {
            "stage": {},
            "switch": {},
            "configure": {},
            "start": {"settle": SETTLE},
        }
        return tuple(
            self._ground.complete(
                {"key": f"{key}/{self.nodes[node].name}/{op}", "op": op, **given},
                node,
                "after",
                values,
            )
            for op, given in params.items()
        )


def installation(fleet: Fleet, release: Release, node: int, *, key: str) -> tuple[Operation, ...]:
    """The operations for one node; for many nodes make one :class:`Installation` and ask it."""
    return Installation(fleet, release).operations(node, key=key)
