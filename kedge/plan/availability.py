"""Which nodes serve now, and whether another may be stopped: ``max_unavailable`` decided from what was seen.

Pure. A node that does not serve counts, whatever brought it down, and so does one that is in flight. Looks are reused
while they are younger than ``OBSERVE``; right before a stop, the nodes that are about to be stopped and those that were
changed in the same wave are looked at again (``near``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from kedge.model.run import Failure

OBSERVE = 30.0
"""Seconds for which a look at a node is reused."""
NEAR_PER_NODE = 0.02
"""Seconds, by node of the wave, for which a look counts as one right before a stop: so that looking takes a bounded part
of a large wave, and a small wave is looked at each time."""
SLOW = 1.0
"""Seconds beyond which a look is slow: it is not repeated for as long as it took. Otherwise a look that takes longer than
it counts for would be begun again and again, and no node be moved meanwhile."""
END = 5.0
"""Seconds for which a look is reused at the end of a run, in a large fleet."""
NOT_SERVING = "NotServing"
"""The type of the failure of a node that does not serve now."""
UNAVAILABLE = "Unavailable"
"""The type of the run's failure: too many nodes do not serve for another to be stopped."""


def near_seconds(size: int) -> float:
    """How old a look right before a stop may be in a wave of so many nodes."""
    return min(OBSERVE, NEAR_PER_NODE * size) if size > 1 / NEAR_PER_NODE else 0.0


def rests(age: float, took: float) -> bool:
    """Whether a look that took so long ended too short a time ago to be repeated."""
    return took > SLOW and age < took


def end_seconds(nodes: int) -> float:
    """How old a look may be when the end is said of so many nodes: no older than a look at all of them would be when its
    last node is looked at.
    """
    return min(END, near_seconds(nodes))


def stale(
    ages: Iterable[tuple[int, float]], near: Collection[int], near_age: float
) -> Iterator[int]:
    """Which nodes must be looked at again. ``ages`` are the seconds since each was last seen, oldest first: the rest is
    not read where all that follow are young enough.
    """
    for node, age in ages:
        if age <= near_age:
            return
        if age > OBSERVE or node in near:
            yield node


def may_stop(
    limit: int,
    batch: Collection[int],
    *,
    not_serving: Collection[int],
    accepted: Collection[int] = (),
    in_flight: Collection[int] = (),
) -> bool:
    """Whether all nodes of ``batch`` may be stopped now.

    A node that does not serve anyway costs nothing, so it may always be worked on, within the limit of what is in
    flight. Where people accepted each node that does not serve, one at a time is always possible.
    """
    flying = {*in_flight, *batch}
    if len(flying) > limit:
        return False
    if set(batch) <= set(not_serving):
        return True
    others = set(not_serving) - flying
    if len(flying) + len(others) <= limit:
        return True
    return len(flying) == 1 and others <= set(accepted)


def free_places(limit: int, not_serving: Collection[int], accepted: Collection[int] = ()) -> int:
    """How many nodes may be in flight at once beside those that do not serve."""
    free = limit - len(set(not_serving))
    return max(free, 1) if set(not_serving) <= set(accepted) else free


def not_serving(node: int, name: str, message: str, *, changed: bool) -> Failure:
    """A node that does not serve now, as people are told of it. ``changed``: this run moved it already."""
    return Failure(
        node=node,
        name=name,
        program="forward",
        leg=0,
        step="look",
        type=NOT_SERVING,
        said=message,
        changed=changed,
    )


def of_refusal(failure: Failure) -> tuple[Failure, ...]:
    """The nodes that a refusal (``UNAVAILABLE``) names."""
    nodes = failure.saw.get("nodes")
    if not isinstance(nodes, list):
        return ()
    return tuple(Failure.model_validate(node) for node in nodes)


def named(failures: Collection[Failure], most: int = 5) -> str:
    """Nodes with what was seen of each, in one line."""
    listed = [f"{failure.name} ({failure.said})" for failure in list(failures)[:most]]
    more = f" and {len(failures) - most} more" if len(failures) > most else ""
    return ", ".join(listed) + more


def unavailable_message(failures: Collection[Failure], limit: int) -> str:
    """Why no further node is stopped."""
    count = "1 node does" if len(failures) == 1 else f"{len(failures)} nodes do"
    return (
        f"{count} not serve: {named(failures)}; max_unavailable is {limit}, "
        "so no further node is stopped"
    )


def serving_message(nodes: int, failures: Collection[Failure]) -> str:
    """What a look at every node saw, in one line."""
    if not failures:
        return f"{nodes} of {nodes} nodes serve"
    return f"{nodes - len(failures)} of {nodes} nodes serve; not {named(failures)}"
