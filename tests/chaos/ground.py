"""What is asserted at the end of every case, on ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kedge.trust.chain import genesis, link, linked
from tests.chaos import truth
from tests.chaos.theatre import OLD, Troupe

STEPS = (
    "stage",
    "probe",
    "check",
    "stop",
    "snapshot",
    "switch",
    "configure",
    "run",
    "start",
    "healthy",
)
"""The steps of a leg forward, by name."""


class Went(NamedTuple):
    """What became of one node: the versions whose daemon was really started, and how often what was done.

    Where not said otherwise: each version but the last was stopped once, and each new one came with one switch, one
    configuration and one run of its command.
    """

    versions: tuple[str, ...]
    switches: int | None = None
    configured: int | None = None
    staged: tuple[str, ...] | None = None
    tallied: tuple[str, ...] | None = None
    tidy: bool = True
    """Nothing half done lies around. A copy that was given up is cleared away by the next one of its kind."""

    def story(self) -> list[tuple[str, str]]:
        """What the daemons and commands must have written."""
        moved = tuple(version for version in self.versions if version != OLD)
        ran = moved if self.tallied is None else self.tallied
        return truth.story(self.versions, tallied=ran)

    def fits(self, counted: dict[str, int]) -> bool:
        """Whether the kernel counted as many switches and configurations."""
        moves = len(self.versions) - 1
        switches = moves if self.switches is None else self.switches
        configured = moves if self.configured is None else self.configured
        staged = set(self.versions if self.staged is None else self.staged) - {OLD}
        return (
            counted.get("current", 0) == switches
            and counted.get("config/current", 0) == configured
            and sum(name.startswith("releases/") for name in counted) == len(staged)
        )


STAYED = Went((OLD,))
"""Nothing was done to this node."""


async def assert_ground(
    troupe: Troupe,
    went: Mapping[str, tuple[str, ...] | Went | list[Went]],
    *,
    restored: bool = False,
) -> None:
    """Each node went exactly this way, each step of it once, and stands on the last release; the others stayed.

    A list: one of these ways, where chance decides who came first. ``restored``: the data are those of before the
    upgrade.
    """
    assert troupe.renames is not None
    sure = {node: said for node, said in went.items() if not isinstance(said, list)}
    ways = {node: said if isinstance(said, Went) else Went(said) for node, said in sure.items()}
    await troupe.speak({node: len(way.versions) for node, way in ways.items()})
    counted = troupe.renames.count()
    alive = truth.daemons(troupe.folder)
    for node in troupe.names:
        said = went.get(node, STAYED)
        any_of = said if isinstance(said, list) else [ways.get(node, STAYED)]
        story = truth.told(troupe.folder, node)
        way = next(
            (one for one in any_of if story == one.story() and one.fits(counted[node])), None
        )
        assert way is not None, f"{node}: {story}: {counted[node]}"
        pids = [pid for pid, whose in alive.items() if whose == node]
        started = [line for line in truth.lines(troupe.folder) if line.node == node]
        assert pids == [started[-1].pid], f"{node}: these daemons live: {pids}"
        _assert_node(troupe, node, way, counted[node])
        _assert_data(troupe, node, way.versions, counted[node], restored=restored)
    troupe.theatre.assert_bystanders()
    await assert_evidence(troupe)


def _assert_node(troupe: Troupe, node: str, way: Went, counted: dict[str, int]) -> None:
    root, theatre = troupe.root(node), troupe.theatre
    truth.assert_release(root, theatre.archive(way.versions[-1]))
    staged = set(way.versions if way.staged is None else way.staged) - {OLD}
    digests = {
        f"releases/{theatre.releases[version].artifacts['linux/amd64'].digest}"
        for version in staged
    }
    assert {name for name in counted if name.startswith("releases/")} == digests, f"{node}: staged"
    once = [name for name in counted if name not in {"current", "config/current"}]
    assert all(counted[name] == 1 for name in once), f"{node}: {counted}"
    truth.journal(root)
    assert not way.tidy or not truth.leftovers(root), truth.leftovers(root)


def _assert_data(
    troupe: Troupe, node: str, versions: tuple[str, ...], counted: dict[str, int], *, restored: bool
) -> None:
    """Each release wrote down its start in the data; a restore takes what came after the snapshot away again."""
    written = troupe.ledger(node)
    left = [versions[0], versions[-1]] if restored else list(versions)
    assert written == left, f"{node}: {written}"
    assert counted.get("data", 0) == restored, f"{node}: {counted}"


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
