"""What a node must answer to count as serving, and what is asked of it before the first step."""

from __future__ import annotations

from kedge.model.base import Json
from kedge.model.plan import Serving, Step
from kedge.model.runbook import Runbook
from kedge.plan.programs import MARGIN, RUNS, Maker
from kedge.plan.template import placeholders, renamed, strings

_RELEASE = "release."
"""How the names of what is known of a step's own release begin."""


def serving(runbook: Runbook, maker: Maker) -> Serving:
    """What a node that serves answers: what its ``healthy`` steps behind the start ask, on the old release as on the way
    back to it. Nothing that is captured or is known of the new release alone is asked of the old one; where something
    of the release is asked, it may answer as either of the two.
    """
    verbs = [written.verb for written in runbook.node]
    steps = [
        written.healthy
        for written in runbook.node[verbs.index("start") + 1 :]
        if written.healthy is not None
    ]
    old = [runbook.rollback.healthy] if runbook.rollback.healthy is not None else steps
    before = _all([maker.probe(step, captured=False) for step in old])
    of_new = any(
        name.startswith("after.") for _, text in strings(before) for name in placeholders(text)
    )
    return Serving(
        before=None if of_new or before is None else _of_either(before),
        after=_all([maker.probe(step, captured=False) for step in steps]),
    )


def _all(probes: list[dict[str, Json] | None]) -> dict[str, Json] | None:
    """All of these conditions but that the daemon runs, which every look sees; None when nothing is left."""
    parts = [probe for probe in probes if probe is not None and probe != RUNS]
    distinct = [probe for at, probe in enumerate(parts) if probe not in parts[:at]]
    return {"all": list[Json](distinct)} if len(distinct) > 1 else next(iter(distinct), None)


def preflight(runbook: Runbook, maker: Maker) -> tuple[Step, ...]:
    """The probes that must pass before the first step. A runbook without any gets one from its ``healthy``: a node that
    does not serve on the old release is known before another is stopped.
    """
    asked = [maker.probe(condition) for condition in runbook.preflight]
    if not asked:
        old = serving(runbook, maker).before
        asked = [RUNS if old is None else {"all": [RUNS, old]}]
    return tuple(
        Step(
            name=f"preflight-{index + 1}",
            op="probe",
            params={"probe": probe},
            timeout=30.0 + MARGIN,
        )
        for index, probe in enumerate(asked)
        if probe is not None
    )


def _of_either(probe: dict[str, Json]) -> dict[str, Json]:
    """What is expected of the old release, or the same of the new one.

    Which release a node runs is known by its digest. Its answer may name the other: software that reports the version of
    its cluster, or of data that nodes share, does so as soon as the first node was moved.
    """
    for key in ("all", "any"):
        parts = probe.get(key)
        if isinstance(parts, list):
            return {key: [_of_either(part) if isinstance(part, dict) else part for part in parts]}
    expect = probe.get("expect")
    if not isinstance(expect, dict) or not _names_release(expect):
        return probe
    widened = {path: _one_of_both(wanted) for path, wanted in expect.items()}
    if not _names_release([one for at, one in widened.items() if one == expect[at]]):
        return {**probe, "expect": widened}
    return {"any": [probe, {**probe, "expect": _as_new(expect)}]}


def _one_of_both(wanted: Json) -> Json:
    """A text that must be equal is one of two; anything else stays as it is."""
    text = wanted["eq"] if isinstance(wanted, dict) and list(wanted) == ["eq"] else wanted
    return (
        {"in": [text, _as_new(text)]} if isinstance(text, str) and _names_release(text) else wanted
    )


def _names_release(value: Json) -> bool:
    return any(
        name.startswith(_RELEASE) for _, text in strings(value) for name in placeholders(text)
    )


def _as_new(value: Json) -> Json:
    if isinstance(value, str):
        return renamed(value, _RELEASE, "after.")
    if isinstance(value, list):
        return [_as_new(part) for part in value]
    return {key: _as_new(part) for key, part in value.items()} if isinstance(value, dict) else value
