"""What is written down of steps and looks: small values out of what hosts said, nothing that may hold a secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kedge.drivers.ports import HostEvent, SessionEnd
from kedge.model.base import Json, canonical
from kedge.model.plan import Artifact, Plan
from kedge.model.run import Failure, Observed, ObserveRequest, OpenRequest, Run
from kedge.plan.sights import configuration_of
from kedge.trust.admission import Looking

MOST_NAMED = 100
"""Nodes that a record of a whole wave names one by one."""
MAX_SAW = 1000
"""Bytes of what a probe saw, beyond which only its size is written down."""

_KEPT: dict[str, tuple[str, ...]] = {
    "stage": ("files", "bytes"),
    "verify": ("files",),
    "switch": ("from", "to"),
    "check": ("bytes", "kept", "known"),
    "configure": ("from", "to", "known"),
    "start": ("pid",),
    "stop": ("waited", "was_running"),
    "snapshot": ("id", "files", "bytes", "digest"),
    "restore": ("id", "files", "replaced"),
    "probe": ("saw",),
    "healthy": ("waited", "saw"),
    "run": ("exit", "seconds", "resolved"),
    "init": ("ran", "exit", "seconds", "resolved"),
}
"""Of the results of operations, what is evidence. The output of commands is not: it stays in the host's journal."""


def step_name(key: str) -> str:
    """The name of the step that an operation's key is of, without its round."""
    return key.rsplit("/", 1)[-1].split("#", maxsplit=1)[0]


def step_of(event: HostEvent, archives: Mapping[str, Artifact]) -> dict[str, Json]:
    """One step of a leg. ``archives`` are those that were sent, by the key of the step that staged them."""
    step: dict[str, Json] = {
        "key": event.key,
        "op": event.op,
        "replayed": event.replayed,
        "skipped": event.skipped,
        "before": dict(event.before),
        "after": dict(event.after),
    }
    result = result_of(event.op, event.result)
    if result:
        step["result"] = result
    sent = archives.get(event.key)
    if sent is not None:
        step["sent"] = {"digest": sent.digest, "length": sent.length}
    return step


def result_of(op: str, result: Mapping[str, Json]) -> dict[str, Json]:
    """What is kept of a result. Seconds become whole milliseconds (``waited_ms``): a record has no broken numbers."""
    kept: dict[str, Json] = {}
    for name in _KEPT.get(op, ()):
        if name not in result:
            continue
        value = result[name]
        if name in ("waited", "seconds") and isinstance(value, (int, float)):
            kept[f"{name}_ms"] = round(value * 1000)
        else:
            kept[name] = _bounded(value)
    return kept


def _bounded(saw: Json) -> Json:
    try:
        size = len(canonical(saw))
    except ValueError:
        return "what was seen cannot be written down"
    return saw if size <= MAX_SAW else f"{size} bytes, too much to write down"


def sent_by(
    ops: Iterable[Mapping[str, Json]], artifacts: Iterable[Artifact]
) -> dict[str, Artifact]:
    """The archives that steps of a leg stage, by the steps' keys."""
    known = {artifact.digest: artifact for artifact in artifacts}
    return {
        str(op["key"]): known[str(op["digest"])]
        for op in ops
        if op["op"] == "stage" and op.get("source") and str(op.get("digest")) in known
    }


def journal_of(end: SessionEnd) -> Json:
    """The end of the host's journal as the session left it (lines and hash of the last), or None when it did not say."""
    return _lines(end.observed.get("journal"))


def edits_in(end: SessionEnd) -> bool:
    """Whether a look found that somebody changed the configuration by hand."""
    return any(event.result.get("edited") for event in end.done if event.op == "observe")


def sight_of(end: SessionEnd) -> dict[str, Json]:
    """What a look saw of a node, in short."""
    seen: dict[str, Json] = {
        name: end.observed.get(name) for name in ("release", "running", "running_release")
    }
    if "started_release" in end.observed:
        seen["started_release"] = end.observed.get("started_release")
    said = configuration_of(end.observed, edited=edits_in(end))
    if said:
        seen["configuration"] = list[Json](said)
    journal = _lines(end.observed.get("journal"))
    if journal is not None:
        seen["journal"] = journal
    return seen


def looked(
    plan: Plan,
    request: ObserveRequest,
    looks: Iterable[tuple[int, SessionEnd | Failure]],
    found: Observed,
    token: tuple[int, int, int],
) -> dict[str, Json]:
    """The record of a look at many nodes: which release is where, and how each host's journal ends.

    ``there`` are nodes that run the new release already, ``failures`` those that are not as they should be.
    """
    nodes: dict[str, Json] = {}
    failures: dict[str, str] = {}
    for index, look in looks:
        name = plan.nodes[index].name
        if isinstance(look, Failure):
            failures[name] = look.type
            continue
        nodes[name] = sight_of(look)
        if look.failed is not None and look.failed.error is not None:
            failures[name] = look.failed.error.type
    for problem in found.problems:
        failures.setdefault(problem.name, problem.type)
    astray = {*found.stopped, *found.mixed}
    there = [plan.nodes[node].name for node in found.after if node not in astray]
    return {
        "what": "looked",
        "run": request.run.id,
        "why": "preflight" if request.probes else "fence",
        "plan": request.run.plan,
        "token": list[Json](token),
        "nodes": nodes,
        "there": list[Json](there) if request.probes else [],
        "failures": [f"{name}: {kind}" for name, kind in failures.items()],
    }


def serving_record(run: Run, plan: Plan, sights: Mapping[int, Any], why: str) -> dict[str, Json]:
    """The record of a look whether nodes serve: of each what runs, and what was seen of those that do not."""
    nodes: dict[str, Json] = {}
    failures: list[Json] = []
    for index, sight in sights.items():
        name = plan.nodes[index].name
        seen: dict[str, Json] = {
            "release": sight.release,
            "running": sight.running,
            "running_release": sight.running_release,
            "serving": sight.serving,
        }
        journal = _lines(sight.journal)
        nodes[name] = seen if journal is None else {**seen, "journal": journal}
        if not sight.serving:
            failures.append(f"{name}: {sight.message}"[:300])
    return {
        "what": "looked",
        "run": run.id,
        "epoch": run.epoch,
        "why": why,
        "plan": run.plan,
        "nodes": nodes,
        "failures": failures[:MOST_NAMED],
    }


def opened(plan: Plan, request: OpenRequest, batches: list[tuple[int, ...]]) -> dict[str, Json]:
    """The record of a wave that opens: how many nodes it has, and who goes last by what was seen just now."""
    wave = plan.waves[request.wave]
    late = [plan.nodes[node].name for batch in batches[len(wave.batches) :] for node in batch]
    many = sum(len(batch) for batch in batches)
    return {
        "what": "opened",
        "run": request.run.id,
        "plan": request.run.plan,
        "said": f"wave {wave.name}: {many} of {len(wave.nodes)} nodes",
        "wave": wave.index,
        "last": list[Json](late[:MOST_NAMED]),
    }


def baked(
    plan: Plan,
    run: Run,
    wave: int,
    looking: Looking,
    failures: Iterable[Failure],
    token: tuple[int, int, int],
) -> dict[str, Json]:
    """The record of a look of a bake: how many nodes there were, who was left out, and which did not pass."""
    found = tuple(failures)
    ill = [f"{failure.name}: {failure.type}" for failure in found]
    bake = plan.waves[wave].bake
    interval = max(bake.interval, bake.duration / 60) if bake is not None else 0.0
    return {
        "what": "looked",
        "run": run.id,
        "why": "bake",
        "wave": wave,
        "token": list[Json](token),
        "nodes": len(looking.nodes),
        "skipped": list[Json](looking.skipped),
        "interval_ms": round(interval * 1000),
        "reported": any(failure.reported for failure in found),
        "failures": list[Json](ill),
    }


def _lines(value: Any) -> Json:
    match value:
        case [int(lines), str(digest)]:
            return [lines, digest]
    return None
