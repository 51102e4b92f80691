"""What was done on hosts, as the record has it: each effect once, with the bytes that the plan names, journals that grow.

:class:`Ledger` walks over the legs in their order. :func:`compare` holds the journal of a host against them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kedge.model.base import Digest
from kedge.model.bounds import most_values
from kedge.model.evidence import Finding, FindingKind
from kedge.model.plan import Plan

FIRST = "0" * 64
"""What the first line of a host's journal follows (docs/host-protocol.md)."""
MAX_JOURNAL = 64 * 1024 * 1024
MAX_VALUES = 4_000_000
"""Values of a whole journal, counted before it is read."""


class KnownPlan:
    """A plan, with its nodes by name: ``places`` are their indexes, ``waves`` the wave each belongs to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        waves = {node: at for at, wave in enumerate(plan.waves) for node in wave.nodes}
        self.places = {node.name: at for at, node in enumerate(plan.nodes)}
        self.waves = {node.name: waves.get(at) for at, node in enumerate(plan.nodes)}
        self.platforms = {node.name: node.platform for node in plan.nodes}


@dataclass
class Node:
    """What the record says of one host. ``seen`` are the ends of its journal: lines, hash, and the record that says so."""

    name: str
    keys: dict[str, int] = field(default_factory=dict)
    """By the key of a step: the first record that has it as done, skipped ones too."""
    done: dict[str, int] = field(default_factory=dict)
    """The same for steps that were really done then, not answered from the journal."""
    steps: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: list[tuple[int, Digest, int]] = field(default_factory=list)
    ends: dict[int, tuple[Digest, int]] = field(default_factory=dict)
    """The same by lines: the hash, and the first record that says so."""
    newest: tuple[tuple[int, ...], int, int] = ((), 0, 0)
    """The highest token that was seen there, with how many lines, and by which record."""
    release: str = ""


class Ledger:
    """The effects of one fleet; ``findings`` is what does not hold."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.findings: list[Finding] = []
        self.steps = 0

    def _wrong(self, kind: FindingKind, seq: int, said: str) -> None:
        self.findings.append(Finding(kind=kind, said=said, seq=seq))

    def _node(self, name: str) -> Node:
        return self.nodes.setdefault(name, Node(name))

    def leg(self, seq: int, record: Mapping[str, Any], plan: KnownPlan | None) -> None:
        """The steps of one attempt of a leg."""
        node = self._node(str(record.get("node")))
        forward = record.get("program") in ("forward", "finalize")
        right = _artifacts(plan, node.name, after=forward)
        either = right | _artifacts(plan, node.name, after=not forward)
        here: set[str] = set()
        for step in _steps(record):
            key, op = str(step.get("key")), step.get("op")
            if key in here:
                self._wrong("effect", seq, f"{key} stands twice in one attempt")
            here.add(key)
            self._once(seq, node, key, step)
            after = step.get("after")
            digest = after.get("release") if isinstance(after, dict) else None
            digest = None if digest is None else str(digest)
            if plan is None or step.get("skipped"):
                continue
            if op == "switch" and digest not in right:
                said = f"{node.name} was switched to {str(digest)[:12]}, which is not a release of the plan in this direction"
                self._wrong("release", seq, said)
            sent = step.get("sent")
            if isinstance(sent, dict) and str(sent.get("digest")) not in either:
                said = f"{node.name} was sent {str(sent.get('digest'))[:12]}, which is no archive of the plan"
                self._wrong("release", seq, said)
            if digest is not None:
                node.release = digest
        self.sight(seq, node.name, record.get("journal"), record.get("token"))

    def _once(self, seq: int, node: Node, key: str, step: Mapping[str, Any]) -> None:
        node.keys.setdefault(key, seq)
        node.steps.setdefault(key, step)
        if step.get("replayed"):
            return
        self.steps += 1
        before = node.done.setdefault(key, seq)
        if before != seq:
            self._wrong(
                "effect", seq, f"{key} was done a second time: record {before} has it as done"
            )

    def sight(self, seq: int, name: str, journal: object, token: object) -> None:
        """The end of a host's journal as it was seen: it only grows, and never becomes another.

        A worker that was held up writes down late what it saw before a newer token took the host: only what was seen
        under one as high as any before it must be as long as what was seen then.
        """
        match journal:
            case [int(lines), str(digest)]:
                node = self._node(name)
            case _:
                return
        known, at = node.ends.setdefault(lines, (digest, seq))
        if known != digest:
            said = f"the journal of {name} ended otherwise after {lines} lines when record {at} was written"
            self._wrong("journal", seq, said)
            return
        node.seen.append((lines, digest, seq))
        under, many, before = node.newest
        mine = _token(token)
        if mine < under:
            return
        node.newest = (mine, lines, seq)
        if lines < many:
            said = f"the journal of {name} had {many} lines before (record {before}), and {lines} now: lines were taken out"
            self._wrong("journal", seq, said)


def _token(value: object) -> tuple[int, ...]:
    """The token of a record; of one that names none, the lowest."""
    return tuple(one for one in value if type(one) is int) if isinstance(value, list) else ()


def _steps(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = record.get("steps")
    return [one for one in steps if isinstance(one, dict)] if isinstance(steps, list) else []


def _artifacts(plan: KnownPlan | None, name: str, *, after: bool) -> set[str]:
    if plan is None:
        return set()
    platform = plan.platforms.get(name)
    release = plan.plan.after if after else plan.plan.before
    return {one.digest for one in release.artifacts if platform in (None, one.platform)}


class Compared(NamedTuple):
    """What comes of holding a journal against the record. ``unheard`` are steps that were done, and whose end no worker
    heard before somebody else took the fleet: the journal alone has them.
    """

    findings: tuple[Finding, ...]
    unheard: tuple[str, ...] = ()


_LOOKS = frozenset({"observe", "ensure", "fence", "probe", "healthy"})


def compare(node: Node, journal: bytes, *, whole: bool) -> Compared:
    """Holds the journal of a host against what the record says of it.

    Its own chain holds; the ends that were seen are ends it had; every step the record has as done stands in it with the
    same operation and the same observations. ``whole``: the record begins with the fleet, so that what the journal has
    of runs is looked for in the record too.
    """
    findings: list[Finding] = []
    records: dict[str, dict[str, Any]] = {}
    ends: dict[int, Digest] = {0: FIRST}
    before = FIRST
    if most_values(journal) > MAX_VALUES:
        said = f"the journal of {node.name} has more than {MAX_VALUES} values: it is not read"
        return Compared((Finding(kind="journal", said=said, line=1),))
    for number, line in enumerate(journal.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or record.get("prev") != before:
            said = f"the journal of {node.name} is broken at line {number}: it does not follow the line before"
            return Compared((Finding(kind="journal", said=said, line=number),))
        before = ends[number] = hashlib.sha256(line).hexdigest()
        key = str(record.get("key"))
        if key in records:
            said = f"the journal of {node.name} has {key} twice"
            findings.append(Finding(kind="effect", said=said, line=number))
        records[key] = record
    for lines, digest, seq in node.seen:
        if ends.get(lines) != digest:
            said = f"the journal of {node.name} did not end so after {lines} lines when it was looked at"
            findings.append(Finding(kind="journal", said=said, seq=seq))
            break
    for key, step in node.steps.items():
        findings += _differs(node, key, step, records.get(key))
    unheard = [
        key
        for key, record in records.items()
        if str(record.get("run")).startswith(("upgrade/", "rollback/"))
        and record.get("op") not in _LOOKS
        and key not in node.keys
    ]
    return Compared(tuple(findings), tuple(unheard) if whole else ())


def _differs(
    node: Node, key: str, step: Mapping[str, Any], record: Mapping[str, Any] | None
) -> list[Finding]:
    seq = node.keys[key]
    if record is None:
        said = f"the record has {key} as done on {node.name}, and the journal there does not"
        return [Finding(kind="journal", said=said, seq=seq)]
    for name in ("op", "before", "after", "skipped"):
        if step.get(name) != record.get(name):
            said = f"{key} on {node.name}: the journal says another {name} than the record"
            return [Finding(kind="journal", said=said, seq=seq)]
    return []
