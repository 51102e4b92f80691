"""What happened, in order and in words: one :class:`kedge.model.evidence.Happening` for each record worth telling.

It only reads. Whether a record is to be believed is for :mod:`kedge.trust.evidence` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedge.model.base import Json
from kedge.model.evidence import Happening
from kedge.model.outside import line, quoted

SHORT = 12
_MAX = 300


def happening(seq: int, key: str, record: Json) -> Happening:
    """One record in words; of a kind that is not known it says so."""
    if not isinstance(record, dict):
        return Happening(
            seq=seq, at="", what="", said=f"a record of another kind, under {_text(key)}"
        )
    what = _text(record.get("what"))
    tell = _TELL.get(what)
    try:
        said, who, details = tell(record) if tell is not None else (what or "something", "", ())
    except Exception as error:  # noqa: BLE001 - the last line: whatever somebody wrote there, the others are told
        said, who, details = f"{what}, which cannot be told: {type(error).__name__}", "", ()
    return Happening(
        seq=seq,
        at=_text(record.get("at") or record.get("issued")),
        what=what,
        said=said,
        run=_text(record.get("run") or (record.get("target") if what == "order" else "")),
        who=who,
        signed=_text(record.get("key")) if what == "order" else "",
        details=details,
    )


_Told = tuple[str, str, tuple[str, ...]]


def _order(record: Mapping[str, Any]) -> _Told:
    person, verb = (
        _text(record.get("person")) or "somebody",
        _text(record.get("verb")) or "something",
    )
    about = " ".join(
        _text(record.get(name)) for name in ("choice", "target", "subject") if record.get(name)
    )
    accepted = record.get("accepted") is True
    head = f"{person} signed: {verb} {about}" if record.get("key") else f"an order: {verb} {about}"
    if accepted:
        said = f"{head}; accepted"
    else:
        said = (
            f"{head}; refused by the rule {_text(record.get('rule'))}: {_text(record.get('said'))}"
        )
    details = []
    if record.get("key"):
        touched = ", touched" if record.get("touched") else ""
        details.append(f"with the key {_text(record.get('key'))}{touched}")
    if record.get("comment"):
        details.append(f"who wrote: {_quoted(record.get('comment'))}")
    seen = _seen(record)
    if seen:
        details.append(seen)
    return said, person, tuple(details)


def _seen(record: Mapping[str, Any]) -> str:
    """Which end of the record the person saw, as it stands in the signed order."""
    match record.get("evidence"):
        case {"seq": int(seq), "hash": str(digest)}:
            return f"having seen the record up to {seq} ({digest[:SHORT]})"
    return ""


def _leg(record: Mapping[str, Any]) -> _Told:
    node, program = _text(record.get("node")), _text(record.get("program"))
    steps = [one for one in _many(record.get("steps")) if isinstance(one, dict)]
    fresh = [one for one in steps if not one.get("replayed")]
    known = len(steps) - len(fresh)
    names = ", ".join(_name(one) for one in fresh) or "nothing new"
    again = f" ({known} were done before)" if known else ""
    failed = record.get("failed")
    said = f"{node}, {program}: {names}{again}"
    details = list(_moved(steps))
    if isinstance(failed, dict):
        where = _text(failed.get("key")).rsplit("/", 1)[-1]
        said += f"; failed{' at ' + where if where else ''}: {_text(failed.get('type'))}: {_quoted(failed.get('message'))}"
    return said, node, tuple(details)


def _name(step: Mapping[str, Any]) -> str:
    name = _text(step.get("key")).rsplit("/", 1)[-1]
    return f"{name} (skipped)" if step.get("skipped") else name


def _moved(steps: list[dict[str, Any]]) -> list[str]:
    """What was seen before the first and after the last step, and the bytes that were sent."""
    details: list[str] = []
    for step in steps:
        sent = step.get("sent")
        if isinstance(sent, dict):
            details.append(f"sent: {_text(sent.get('digest'))}, {sent.get('length')} bytes")
    seen = [one for one in steps if isinstance(one.get("before"), dict)]
    if seen:
        before, after = seen[0]["before"], seen[-1].get("after")
        details.append(f"before: {_state(before)}")
        details.append(f"after: {_state(after if isinstance(after, dict) else {})}")
    return details


def _state(seen: Mapping[str, Any]) -> str:
    release = _text(seen.get("release"))[:SHORT] or "no release"
    runs = _text(seen.get("running_release"))[:SHORT]
    running = f"runs {runs or 'something'}" if seen.get("running") else "does not run"
    return f"release {release}, {running}"


def _decision(record: Mapping[str, Any]) -> _Told:
    stage, event = _text(record.get("stage")), _text(record.get("event"))
    wave, gate = record.get("wave"), _text(record.get("gate"))
    place = f"gate {gate}" if gate and stage == "gate" else stage
    said = f"after {event}: {place}, wave {wave}"
    why = _text(record.get("said"))
    if record.get("outcome"):
        outcome = _text(record.get("outcome"))
        # What was said of an end begins with its name, mostly.
        said = "ended" if why.startswith(outcome) else f"ended: {outcome}"
    return (f"{said}: {why}" if why else said), "", ()


def _allowed(record: Mapping[str, Any]) -> _Told:
    wave = record.get("wave")
    where = "" if wave is None else f", wave {wave}"
    return f"may act ({_text(record.get('program'))}{where}): {_text(record.get('said'))}", "", ()


def _admitted(record: Mapping[str, Any]) -> _Told:
    nodes = [_text(one) for one in _many(record.get("nodes"))]
    wave = record.get("wave")
    where = "" if wave is None else f", wave {wave}"
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    said = f"may begin ({_text(record.get('program'))}{where}): {', '.join(nodes[:5])}{more}"
    return said, "", ()


def _refused(record: Mapping[str, Any]) -> _Told:
    failed = record.get("failed")
    told = failed if isinstance(failed, dict) else {}
    said = f"may not begin: {_text(told.get('type'))}: {_text(told.get('message'))}"
    return said, _text(record.get("node")), ()


def _asked(record: Mapping[str, Any]) -> _Told:
    showing = record.get("showing")
    title = _text(showing.get("title")) if isinstance(showing, dict) else ""
    details = (f"what was shown has the digest {_text(record.get('shown'))}",)
    return f"asks people about {_text(record.get('subject'))}: {title}", "", details


def _looked(record: Mapping[str, Any]) -> _Told:
    nodes = record.get("nodes")
    many = len(nodes) if isinstance(nodes, dict) else nodes
    ill = record.get("failures")
    bad = f", {len(ill)} not as they should be" if isinstance(ill, list) and ill else ", all well"
    return (
        f"looked at {many} {'node' if many == 1 else 'nodes'} ({_text(record.get('why'))}){bad}",
        "",
        (),
    )


def _policy(record: Mapping[str, Any]) -> _Told:
    by = {"first": "on first use", "owner": "by who has the machine, against no signature"}
    signatures = _many(record.get("signatures"))
    signed = f"by {len(signatures)} signatures of the version before"
    how = by.get(_text(record.get("by")), signed)
    details = tuple(f"the policy {_text(one)}" for one in _many(record.get("policies")))
    return f"version {record.get('version')} of the policy is pinned {how}", "", details[:5]


def _release(record: Mapping[str, Any]) -> _Told:
    authors = [_text(one) for one in _many(record.get("authors")) if isinstance(one, str)]
    details = [f"by {', '.join(authors)}"] if authors else []
    attestations = _many(record.get("attestations"))
    details += [f"attested by {_text(one)}" for one in attestations][:10]
    return f"the release was looked at: {_text(record.get('said'))}", "", tuple(details)


def _said(prefix: str) -> Any:
    def tell(record: Mapping[str, Any]) -> _Told:
        why = _text(record.get("said") or record.get("node") or record.get("outcome"))
        return (f"{prefix}: {why}" if why else prefix), "", ()

    return tell


_TELL: dict[str, Any] = {
    "order": _order,
    "leg": _leg,
    "decision": _decision,
    "allowed": _allowed,
    "asked": _asked,
    "looked": _looked,
    "spent": _said("the order is spent"),
    "fence-found": _said("a host holds a fence that no lease here has"),
    "lease": _said("the order is spent; the run has the fleet"),
    "way-back": _said("the way back"),
    "parked": _said("waits for a decision"),
    "ended": _said("ended"),
    "admitted": _admitted,
    "refused": _refused,
    "fence": _said("the fence is raised: the run looks before it goes back"),
    "return": _said("the way back is decided"),
    "end": _said("it is over"),
    "installed": _said("installed"),
    "started": _said("started"),
    "opened": _said("a wave is opened"),
    "finalize-begun": _said("the finalize steps begin"),
    "restore-begun": _said("snapshots begin to be restored"),
    "policy": _policy,
    "release": _release,
    "glass": _said("the glass was broken: a review is owed"),
    "reviewed": _said("an order that broke the glass is reviewed"),
    "release-back": _said("the release that is gone back to"),
}


def _many(value: object) -> list[Any]:
    """A list as it stands there; of anything else, none."""
    return value if isinstance(value, list) else []


def _quoted(value: object) -> str:
    """What a node or a person said, in quotation marks: where it begins and ends is seen."""
    return quoted(value if isinstance(value, str) else "", _MAX)


def _text(value: object) -> str:
    """A value as text that may be shown: short, and with nothing a terminal would obey."""
    if not isinstance(value, str):
        return "" if value is None else str(value)[:_MAX]
    return line(value, _MAX)
