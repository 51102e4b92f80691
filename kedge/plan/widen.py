"""How exposure widens: the order of nodes, the waves, and how many may be out at once.

Semantics of shares: the closest whole number of nodes, the larger one when two are equally close; a part of
more than 0 % is never no node, one of less than 100 % never every node (of two or more).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from kedge.model.base import Json
from kedge.model.fleet import Node
from kedge.model.notation import Path, Problem, share_of
from kedge.model.plan import Bake, OrderRule, Wave
from kedge.model.runbook import BakeRule, Waves


def closest(share: int | str, total: int) -> int:
    """How many of ``total`` nodes a share is."""
    exact = share_of(share, total)
    if isinstance(share, int):
        return share
    whole = math.floor(exact + 0.5)
    if exact < total and total > 1:
        whole = min(whole, total - 1)
    return max(whole, 1)


def at_once(share: int | str, total: int) -> int:
    """``max_unavailable`` as a number: parts are rounded down, but at least one node moves."""
    return max(1, math.floor(share_of(share, total)))


@dataclass(frozen=True, slots=True)
class Block:
    """A wave before it is one: nodes from ``begin`` up to ``end`` in planned order."""

    name: str
    end: int
    path: Path
    gates: tuple[tuple[Path, str], ...] = ()
    bake: BakeRule | None = None
    begin: int = 0


@dataclass(slots=True)
class Order:
    """Nodes in planned order with the batch key of each (group and failure domain)."""

    nodes: list[int] = field(default_factory=list)
    keys: list[tuple[int, str]] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    """Nodes that are in no group, with their labels; ``unlabelled`` have no failure domain."""
    unlabelled: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def order(nodes: Sequence[Node], waves: Waves) -> Order:
    """Nodes by group, then failure domain (as first met), then as written."""
    result = Order()
    rank: dict[tuple[int, str], int] = {}
    keyed: list[tuple[int, int, int]] = []
    for index, node in enumerate(nodes):
        group = _group(node, waves, result) if waves.order else 0
        domain = _domain(node, waves, result)
        place = rank.setdefault((group, domain), len(rank))
        keyed.append((group, place, index))
        result.keys.append((group, domain))
    result.nodes = [index for _, _, index in sorted(keyed)]
    if result.outside:
        said = f"node {result.outside[0]} is in none of the groups{_others(result.outside, 'are')}"
        result.problems.append((("waves", "order"), said))
    if result.unlabelled:
        more = _others(result.unlabelled, "have")
        said = f"node {result.unlabelled[0]} has no label {waves.domain}{more}; every node needs its failure domain"
        result.problems.append((("waves", "domain"), said))
    return result


def _others(names: Sequence[str], verb: str) -> str:
    """Of how many more the same is to be said."""
    return f", nor {verb} {len(names) - 1} others" if len(names) > 1 else ""


def _group(node: Node, waves: Waves, result: Order) -> int:
    for place, wanted in enumerate(waves.order):
        if all(node.labels.get(label) == value for label, value in wanted.items()):
            return place
    labels = sorted({label for wanted in waves.order for label in wanted})
    has = ", ".join(f"{label}={node.labels.get(label, '(none)')}" for label in labels)
    result.outside.append(f"{node.name} ({has})")
    return len(waves.order)


def _domain(node: Node, waves: Waves, result: Order) -> str:
    if waves.domain is None:
        return ""
    if waves.domain not in node.labels:
        result.unlabelled.append(node.name)
    return node.labels.get(waves.domain, "")


@dataclass(frozen=True, slots=True)
class Blocks:
    """The waves as stretches of the planned order. ``moved`` are the gates that no wave comes after on this fleet:
    they are asked before the first stop, because no gate disappears when a fleet is small.
    """

    waves: list[Block]
    moved: tuple[str, ...]


def blocks(waves: Waves, total: int) -> tuple[Blocks, list[Problem]]:
    """The waves as stretches of the planned order, and why they are impossible."""
    problems: list[Problem] = []
    reach = total - 1 if waves.last_node is not None else total
    wanted: list[Block] = []
    carried: tuple[tuple[Path, str], ...] = ()
    if waves.canary is not None:
        nodes = _count(waves.canary.nodes, total, ("waves", "canary", "nodes"), problems)
        wanted.append(
            Block(
                "canary",
                min(nodes, reach),
                ("waves", "canary"),
                (),
                waves.canary.bake or waves.bake,
            )
        )
        if waves.canary.gate is not None:
            carried = ((("waves", "canary", "gate"), waves.canary.gate),)
    for index, wave in enumerate(waves.widen):
        path: Path = ("waves", "widen", index)
        end = min(_count(wave.to, total, (*path, "to"), problems), reach)
        gates = (*carried, *([((*path, "gate"), wave.gate)] if wave.gate else []))
        carried = ()
        name = wave.name or f"wave-{index + 1}"
        wanted.append(Block(name, end, path, gates, wave.bake or waves.bake))
    if not problems and wanted[-1].end < reach:
        left = reach - wanted[-1].end
        problems.append(
            (
                ("waves", "widen"),
                f"ends at {waves.widen[-1].to}: {left} of {total} nodes would never move; end with 100%",
            )
        )
    if waves.last_node is not None:
        gate = waves.last_node.gate
        last: Path = ("waves", "last_node")
        gates = ((((*last, "gate"), gate)),) if gate else ()
        wanted.append(Block("last-node", total, last, gates, waves.last_node.bake or waves.bake))
    return _filled(wanted, problems), problems


def _count(share: int | str, total: int, path: Path, problems: list[Problem]) -> int:
    count = closest(share, total)
    if count > total:
        problems.append((path, f"asks for {count} of {total} nodes"))
    return count


def _filled(wanted: list[Block], problems: list[Problem]) -> Blocks:
    """Without the waves that a small fleet leaves empty. Their gates move to the next wave that has nodes, or, where
    there is none, before the first stop (unless the gate stands before a wave anyway: it is asked once).
    """
    result: list[Block] = []
    begin = 0
    gates: tuple[tuple[Path, str], ...] = ()
    for block in wanted:
        gates = (*gates, *block.gates)
        if block.end < begin:
            problems.append(
                (
                    block.path,
                    f"goes back: {begin} nodes are moved before it, and it ends at {block.end}",
                )
            )
        if block.end <= begin:
            continue
        result.append(Block(block.name, block.end, block.path, gates, block.bake, begin))
        begin, gates = block.end, ()
    names: set[str] = set()
    for block in result:
        if block.name in names:
            problems.append(((*block.path, "name"), f"a second wave named {block.name}"))
        names.add(block.name)
        named = {gate for _, gate in block.gates}
        if len(named) > 1:
            said = f"two gates stand before wave {block.name} ({', '.join(sorted(named))}); make them one"
            problems.append((block.gates[-1][0], said))
    kept = {gate for block in result for _, gate in block.gates}
    moved = dict.fromkeys(gate for _, gate in gates if gate not in kept)
    return Blocks(result, tuple(moved))


def wave(
    index: int,
    block: Block,
    ordered: Order,
    at_most: int,
    bake: Bake | None,
    rules: tuple[dict[str, Json], ...] = (),
) -> Wave:
    """The wave of a block: one batch for each failure domain of each group."""
    batches: list[list[int]] = []
    last: tuple[int, str] | None = None
    for node in ordered.nodes[block.begin : block.end]:
        key = ordered.keys[node]
        if key != last:
            batches.append([])
            last = key
        batches[-1].append(node)
    return Wave(
        index=index,
        name=block.name,
        batches=tuple(tuple(batch) for batch in batches),
        max_unavailable=at_most,
        gate=block.gates[-1][1] if block.gates else None,
        bake=bake,
        rules=tuple(OrderRule(probe=probe) for probe in rules),
    )
