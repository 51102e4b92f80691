"""What probes see on a simulated host, judged by the host program's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kedge.drivers.sim_host import SimHost
from kedge.host import verdicts
from kedge.host.errors import ProbeFailed
from kedge.host.verdicts import FAIL, PASS, UNKNOWN, Verdict
from kedge.model.base import Json

_RUNS_KEPT = 16


class View(NamedTuple):
    """From where a probe looks: for which run, at which second, at which answers.

    ``answers`` are bodies by the first digits of the running release's digest (``*``: any).
    ``unhealthy``: whatever is asked over the network or by a command answers that it is not well.
    """

    host: SimHost
    run: str
    now: float
    answers: Mapping[str, Json]
    unhealthy: bool


def look(view: View, spec: Mapping[str, Any]) -> Verdict:
    """The verdict of a probe (as ``kedge.host.probespec`` gives it) now.

    Where the Fleet document gives no body for the release that runs, everything that is expected
    is there: a runbook written for real software runs on simulated hosts as it is.
    """
    kind = spec["kind"]
    if kind in {"all", "any", "not"}:
        return _combined(view, spec)
    state = view.host.state
    alive = state.alive(view.now)
    if kind == "service":
        return _service(spec, {"running": alive, "release": state.running_release})
    if not alive:
        # As on a real host: refused is an answer to tcp, and no data to a request.
        return Verdict(
            UNKNOWN if kind in {"http", "grpc"} else FAIL, "connection refused", None, {}
        )
    if view.unhealthy:
        return Verdict(FAIL, "the simulator was told to be unhealthy", {"status": 503}, {})
    if kind in {"tcp", "grpc"}:
        return Verdict(PASS, "", {"open": True} if kind == "tcp" else {"status": "SERVING"}, {})
    return _judged(view, spec)


def _combined(view: View, spec: Mapping[str, Any]) -> Verdict:
    found = [look(view, part) for part in spec["parts"]]
    told = [one.verdict for one in found]
    if spec["kind"] == "all":
        verdict = verdicts.every(told)
    elif spec["kind"] == "any":
        verdict = verdicts.either(told)
    else:
        verdict = {PASS: FAIL, FAIL: PASS}.get(told[0], UNKNOWN)
    captured = {name: value for one in found for name, value in one.captured.items()}
    why = "; ".join(one.why for one in found if one.why) or "not wanted"
    return Verdict(
        verdict, "" if verdict == PASS else why[:600], [one.saw for one in found], captured
    )


def _service(spec: Mapping[str, Any], saw: dict[str, Json]) -> Verdict:
    wanted = {key: spec[key] for key in saw if spec.get(key) is not None}
    wrong = [key for key, value in wanted.items() if saw[key] != value]
    if not wanted:
        return Verdict(UNKNOWN, "the probe asks nothing of the service", saw, {})
    if wrong:
        return Verdict(FAIL, f"the service's {wrong[0]} is {saw[wrong[0]]}", saw, {})
    return Verdict(PASS, "", saw, {})


def _body(view: View) -> tuple[bool, Json]:
    """Whether the Fleet document gives a body for the release that runs, and the body."""
    running = view.host.state.running_release or ""
    fitting = [name for name in view.answers if name != "*" and running.startswith(name)]
    if fitting:
        return True, view.answers[max(fitting, key=len)]
    return "*" in view.answers, view.answers.get("*")


def _judged(view: View, spec: Mapping[str, Any]) -> Verdict:
    given, body = _body(view)
    if not given:
        return Verdict(PASS, "", {"status": 200}, dict.fromkeys(spec["capture"], 0))
    known = view.host.captured.get(view.run, {})
    told: list[str] = []
    saw: dict[str, Json] = {}
    captured: dict[str, Json] = {}
    for path, matcher in spec["expect"].items():
        values = verdicts.at_path(body, path)
        told.append(verdicts.every([verdicts.match(one, matcher, known) for one in values]))
        saw[path] = verdicts.shown(values[0])
    for name, path in spec["capture"].items():
        value = verdicts.at_path(body, path)[0]
        if value is verdicts.MISSING or value is None or isinstance(value, dict | list):
            told.append(UNKNOWN)
        else:
            captured[name] = value
    verdict = verdicts.every(told) if told else PASS
    why = "" if verdict == PASS else f"saw {saw}"[:400]
    return Verdict(verdict, why, saw, captured)


def holds(view: View, spec: Mapping[str, Any]) -> bool:
    """Whether a step's condition holds; ``ProbeFailed`` when that cannot be said."""
    found = look(view, spec)
    if found.verdict == UNKNOWN:
        raise ProbeFailed(
            f"whether to do this step cannot be said: {found.why}", {"saw": found.saw}
        )
    return found.verdict == PASS


def keep_captured(view: View, captured: dict[str, Any]) -> None:
    """Remembers captured values for later probes of this run; those of the last runs are kept."""
    if captured:
        host = view.host
        others = [(run, kept) for run, kept in host.captured.items() if run != view.run]
        mine = {**host.captured.get(view.run, {}), **captured}
        host.captured = dict([*others[-(_RUNS_KEPT - 1) :], (view.run, mine)])
