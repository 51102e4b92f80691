"""Where the nodes of a fleet lie: their roots and ports, rendered, and what no two nodes may have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kedge.model.fleet import PORT_LABEL, Fleet, Join, Node
from kedge.model.notation import Path
from kedge.model.plan import PlannedNode
from kedge.plan.company import Where
from kedge.plan.render import node_values
from kedge.plan.template import UnknownPlaceholderError, render


@dataclass(frozen=True, slots=True)
class Place:
    """Something that one node of one fleet has for itself alone: a root, or a port.

    ``machine`` is empty for the worker's own, whatever a node's address is.
    """

    what: str
    machine: str
    value: str


def fleet_vars(fleet: Fleet) -> dict[str, str]:
    """The fleet's vars, joins over nodes made."""
    made: dict[str, str] = {}
    for name, value in fleet.vars.items():
        if isinstance(value, Join):
            parts = [
                render(value.join, _address_values(fleet, index, node))
                for index, node in enumerate(fleet.nodes)
            ]
            made[name] = value.separator.join(parts)
        else:
            made[name] = value
    return made


def _address_values(fleet: Fleet, index: int, node: Node) -> dict[str, str]:
    """What is known of a node before its root is."""
    return {
        "fleet.name": fleet.name,
        "node.name": node.name,
        "node.address": node.address,
        "node.platform": node.platform,
        "node.index": str(index),
        **{f"node.labels.{label}": value for label, value in node.labels.items()},
    }


def planned_nodes(fleet: Fleet) -> tuple[PlannedNode, ...]:
    """The fleet's nodes as a plan has them, roots rendered."""
    variables = {
        f"vars.{name}": value for name, value in fleet.vars.items() if isinstance(value, str)
    }
    made: list[PlannedNode] = []
    for index, node in enumerate(fleet.nodes):
        own = {f"vars.{name}": value for name, value in node.overrides.vars.items()}
        values = {**variables, **own, **_address_values(fleet, index, node)}
        made.append(
            PlannedNode(
                name=node.name,
                address=node.address,
                platform=node.platform,
                root=render(node.root if node.root is not None else fleet.root, values),
                transport=fleet.transport,
                service=fleet.service,
                labels=node.labels,
                options={**fleet.options, **node.options},
                vars=node.overrides.vars,
                settings=node.overrides.settings,
            )
        )
    return tuple(made)


def places(fleet: Fleet) -> Iterator[tuple[int, Path, Place]]:
    """The root and the ports of every node, each with the node's index and where the document says it; nothing of what
    cannot be rendered (told with the other placeholders).
    """
    try:
        nodes = planned_nodes(fleet)
        variables = {f"vars.{name}": text for name, text in fleet_vars(fleet).items()}
    except UnknownPlaceholderError:
        return
    for index, node in enumerate(nodes):
        machine = "" if node.transport == "local" else node.address
        yield index, _root_path(fleet, index), Place("root", machine, plain_path(node.root))
        for label, port in node.labels.items():
            if PORT_LABEL.search(label) and port.isdecimal():
                path: Path = ("nodes", index, "labels", label)
                yield index, path, Place("port", node.address, f"{node.address}:{int(port)}")
        for path, port in _listened(fleet, node, index, variables) if fleet.run.ports else ():
            yield index, path, Place("port", machine, port)


def _listened(
    fleet: Fleet, node: PlannedNode, index: int, variables: dict[str, str]
) -> Iterator[tuple[Path, str]]:
    """The ports that a node's daemon listens on; one without an address is every one of its machine."""
    values = {**variables, "fleet.name": fleet.name, **node_values(node, index)}
    for at, template in enumerate(fleet.run.ports):
        try:
            address, _, number = render(str(template), values).rpartition(":")
        except UnknownPlaceholderError:
            continue
        if number.isdecimal():
            yield ("run", "ports", at), f"{address}:{int(number)}"


def _root_path(fleet: Fleet, index: int) -> Path:
    return ("nodes", index, "root") if fleet.nodes[index].root is not None else ("root",)


def plain_path(root: str) -> str:
    """A root without doubled slashes."""
    return "/" + "/".join(part for part in root.split("/") if part)


def root_problems(fleet: Fleet) -> list[Where]:
    """Roots that are no place of their own, and ports that two nodes would listen on."""
    problems = _no_folders(fleet)
    owner: dict[Place, int] = {}
    told: set[Path | tuple[str, int, int]] = set()
    for index, written, place in places(fleet):
        other = owner.setdefault(place, index)
        if other == index or (place.what, other, index) in told or written in told:
            continue
        told |= {(place.what, other, index), written}
        problems.append(("fleet", written, _shared(fleet, index, other, place)))
    return problems[:20]


def _no_folders(fleet: Fleet) -> list[Where]:
    try:
        nodes = planned_nodes(fleet)
    except UnknownPlaceholderError:
        return []  # told with the other placeholders
    found: list[Where] = []
    for index, node in enumerate(nodes):
        parts = node.root.split("/")
        if not node.root.startswith("/") or ".." in parts or not any(parts):
            said = f"{node.root} is no absolute path of a folder, without '..'; write one such as /srv/{fleet.name}/{{node.name}}"
            found.append(("fleet", _root_path(fleet, index), said))
    return list(
        {path: (document, path, said) for document, path, said in reversed(found)}.values()
    )[::-1]


def _shared(fleet: Fleet, index: int, other: int, place: Place) -> str:
    node, first = fleet.nodes[index], fleet.nodes[other]
    both = f"{node.name} and {first.name}"
    if place.what == "port":
        port = place.value.removeprefix(":")
        return f"{both} would listen on the same port {port}; give each its own, as a label"
    return f"{both} have the same root {place.value} on {place.machine or 'this machine'}; write {{node.name}} into it"


def shared_places(fleet: Fleet, others: Iterable[Fleet]) -> list[tuple[Path, str]]:
    """What a fleet would share with others: two fleets would write into each other's nodes, or take each other's ports."""
    owner = {place: other.name for other in others for _, _, place in places(other)}
    problems: list[tuple[Path, str]] = []
    for _, written, place in places(fleet):
        name = owner.get(place, fleet.name)
        if name != fleet.name:
            where = f"{place.value} on {place.machine or 'this machine'}"
            if place.what == "port":
                where = place.value.removeprefix(":")
            problems.append((written, f"{where} is a {place.what} of the fleet {name} already"))
    return list(dict.fromkeys(problems))[:20]
