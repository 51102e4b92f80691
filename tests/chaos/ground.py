"""What is asserted at the end of every case, on ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kedge.drivers.ports import linked
from kedge.trust.chain import genesis, link
from tests.chaos import truth
from tests.chaos.theatre import OLD, Troupe

STEPS = ("stage", "probe", "stop", "snapshot", "switch", "configure", "run", "start", "healthy")
"""The steps of a leg forward, by name."""


async def assert_ground(
    troupe: Troupe,
    went: Mapping[str, Iterable[str]],
    *,
    tallied: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Each node went through exactly these versions, each step of the way once, and stands on the last one.

    ``tallied``: the versions whose command ran on a node; by default each new one.
    """
    assert troupe.renames is not None
    counted = troupe.renames.count()
    alive = truth.daemons(troupe.folder)
    for node in troupe.names:
        versions = list(went.get(node, [OLD]))
        ran = (
            list(tallied.get(node, ()))
            if tallied is not None
            else [version for version in versions if version != OLD]
        )
        story = truth.told(troupe.folder, node)
        assert story == truth.story(versions, tallied=ran), f"{node}: {story}"
        pids = [pid for pid, whose in alive.items() if whose == node]
        started = [line for line in truth.lines(troupe.folder) if line.node == node]
        assert pids == [started[-1].pid], f"{node}: these daemons live: {pids}"
        _assert_node(troupe, node, versions, counted[node])
    await assert_evidence(troupe)


def _assert_node(troupe: Troupe, node: str, versions: list[str], counted: dict[str, int]) -> None:
    root, theatre = troupe.root(node), troupe.theatre
    moves = len(versions) - 1
    truth.assert_release(root, theatre.archive(versions[-1]))
    for version in set(versions):
        digest = theatre.releases[version].artifacts["linux/amd64"].digest
        assert counted.get(f"releases/{digest}", 0) == (version != OLD), f"{node}: staged {version}"
    assert counted.get("current", 0) == moves, f"{node}: switches: {counted}"
    assert counted.get("config/current", 0) == moves, f"{node}: configurations: {counted}"
    generations = [name for name in counted if name.startswith("config/") and "current" not in name]
    assert all(counted[name] == 1 for name in generations), f"{node}: {counted}"
    snapshots = [name for name in counted if name.startswith("snapshots/")]
    assert all(counted[name] == 1 for name in snapshots), f"{node}: {counted}"
    records = truth.journal(root)
    if moves:
        keys = [str(record["key"]) for record in records]
        forward = [key.rsplit("/", 1)[1] for key in keys if "/forward/" in key]
        bare = [name.split("#")[0] for name in forward]
        assert len(set(bare)) == len(bare) or "#" in "".join(forward), forward
    assert not truth.leftovers(root), truth.leftovers(root)


def assert_leg(troupe: Troupe, node: str) -> None:
    """The journal of a node has each step of the way forward exactly once, in order."""
    keys = [str(record["key"]) for record in truth.journal(troupe.root(node))]
    forward = [key.rsplit("/", 1)[1].split("#")[0] for key in keys if "/forward/" in key]
    assert forward == list(STEPS)


async def assert_evidence(troupe: Troupe) -> None:
    """The evidence of the fleet is one unbroken chain."""
    before, number, seen = genesis(troupe.name), 0, set()
    while page := await troupe.drivers.evidence.read(troupe.name, number):
        for entry in page:
            number += 1
            assert entry.seq == number
            assert entry.key not in seen
            seen.add(entry.key)
            before = link(before, linked(entry.key, entry.record))
            assert entry.hash == before
    assert number, "nothing was written down"
