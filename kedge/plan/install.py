"""First bring-up: what is done on a node whose root is empty, so that a fleet runs its first release."""

from __future__ import annotations

from kedge.model.fleet import Fleet
from kedge.model.plan import Artifact, PlannedNode
from kedge.model.release import Release
from kedge.plan.check import install_problems
from kedge.plan.compile import ConflictsError, planned_release
from kedge.plan.conditions import probe_json
from kedge.plan.places import fleet_vars, planned_nodes, root_problems
from kedge.plan.render import Ground, Operation
from kedge.plan.template import Rendered, compiled

INSTALL = "install"
"""What `{run.id}` is on a node that no run has touched yet."""
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
        self._first = _first_commands(fleet)
        self._ground = Ground(fleet.name, fleet_vars(fleet), self.nodes, {"after": self.release})

    def archive(self, node: int) -> Artifact:
        """The archive that a node gets."""
        platform = self.nodes[node].platform
        return next(one for one in self.release.artifacts if one.platform == platform)

    def operations(self, node: int, *, key: str) -> tuple[Operation, ...]:
        """Stage (``source`` is for the caller to fill in), switch, configure, init, start; keys begin with ``key``."""
        values = self._ground.values(node, "after", INSTALL, 0)
        made: list[tuple[str, Operation]] = [
            ("stage", {"op": "stage"}),
            ("switch", {"op": "switch"}),
            ("configure", {"op": "configure"}),
        ]
        for name, params in self._first:
            rendered = params(values)
            made.append((name, rendered if isinstance(rendered, dict) else {}))
        made.append(("start", {"op": "start", "settle": SETTLE}))
        return tuple(
            self._ground.complete(
                {"key": f"{key}/{self.nodes[node].name}/{name}", **given}, node, "after", values
            )
            for name, given in made
        )


def _first_commands(fleet: Fleet) -> list[tuple[str, Rendered]]:
    """The steps of a node that has no data yet, read once, with the last part of their keys."""
    made: list[tuple[str, Rendered]] = []
    for at, step in enumerate(fleet.init):
        body = step.run
        check = probe_json(body.check, {}) if body.check is not None else None
        params: Operation = {
            "op": "init",
            "name": body.name or f"init-{at + 1}",
            "at": at,
            "of": len(fleet.init),
            "argv": list(body.argv),
            "env": {**body.env},
            "cwd": body.cwd,
            "timeout": body.timeout,
            "exit": list(body.exit),
            "check": check,
        }
        made.append((f"init-{at + 1}", compiled(params)))
    return made


def installation(fleet: Fleet, release: Release, node: int, *, key: str) -> tuple[Operation, ...]:
    """The operations for one node; for many nodes make one :class:`Installation` and ask it."""
    return Installation(fleet, release).operations(node, key=key)
