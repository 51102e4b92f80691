"""Fleet: the nodes of one component in one environment, and how they are reached and run."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kedge.model.base import Frozen, Json, Name
from kedge.model.notation import Content, Count, FileName, Key, Path, Problem, Text, refuse
from kedge.model.probe import captured, captures, facts_named
from kedge.model.release import Platform
from kedge.model.secret import MOST_SECRETS, SecretName, SecretSource
from kedge.model.steps import InitStep

MAX_NODES = 20_000
TRANSPORTS = ("local", "sim")
"""How hosts are reached: the names of ``kedge.drivers.registry.TRANSPORTS``."""
SERVICES = ("process",)
"""Service managers: how a daemon is run on its host."""


def _one_of(what: str, names: tuple[str, ...]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in names:
            said = f"no {what} is named {name}; there are: {', '.join(names)}"
            raise PydanticCustomError("kedge_driver", "{said}", {"said": said})
        return name

    return AfterValidator(known)


PORT_LABEL = re.compile(r"(^|[._-])port$")
"""Labels that are ports which the node listens on."""


class Join(Frozen):
    """One text made from all nodes: ``join`` rendered for each, put together ``with`` a separator."""

    join: Annotated[Text, Field(min_length=1)]
    separator: Annotated[Text, Field(alias="with")] = ","

    model_config = ConfigDict(populate_by_name=True)


_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63})?")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_PORT = re.compile(r"(?:(?:\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?([0-9]{1,5})")


class Daemon(Frozen):
    """How the daemon is run. The element ``{settings.flags}`` of ``argv`` becomes one ``--name=value`` for each
    setting, in the order of their names.
    """

    argv: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    env: dict[Key, Text] = {}
    cwd: Text = "{node.root}"
    user: Annotated[
        Count | Text | None,
        Field(
            description="The account that the daemon and the runbook's commands run as: a name or a number, with a"
            " group `USER:GROUP`. It owns `data/` and reads `files` and secrets. Left out, a host program that is root"
            " makes up a number for each node, and one that is not root runs the daemon as itself. A daemon runs as"
            " root only where this says `root`."
        ),
    ] = None
    groups: Annotated[
        tuple[Count | Text, ...] | None,
        Field(
            max_length=64,
            description="The further groups of that account; left out, those that the host has for it.",
        ),
    ] = None
    ports: Annotated[
        tuple[Count | Text, ...],
        Field(
            max_length=256,
            description="The TCP ports that the daemon listens on: `PORT` or `ADDRESS:PORT`. kedge starts no daemon"
            " while somebody else listens there, and a stop is done when nobody does any more.",
        ),
    ] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        if self.user is not None and not _written(self.user, _ACCOUNT):
            said = "is no user; write a name or a number such as postgres or 70, with another group postgres:data"
            problems.append((("user",), said))
        if self.groups is not None and self.user is None:
            problems.append((("groups",), "are the groups of a user; write the user beside them"))
        problems += [
            (("groups", at), "is no group: a name or a number")
            for at, one in enumerate(self.groups or ())
            if not _written(one, _GROUP)
        ]
        problems += [
            (("ports", at), "is no port: 1 to 65535, or ADDRESS:PORT")
            for at, one in enumerate(self.ports)
            if not _written(one, _PORT, most=65535)
        ]
        return problems


def _written(value: int | str, wanted: re.Pattern[str], most: int | None = None) -> bool:
    """Whether a value is of that form; a placeholder is looked at where it is filled in."""
    text = str(value)
    if "{" in text:
        return True
    found = wanted.fullmatch(text)
    return found is not None and (most is None or 1 <= int(found[1]) <= most)


class NodeOverrides(Frozen):
    """What one node has otherwise than the fleet."""

    settings: dict[Key, Text] = {}
    vars: dict[Key, Text] = {}


class Node(Frozen):
    """One machine, or one place on a machine. ``labels`` say role, failure domain, ports: whatever orders and
    templates ask for. ``options`` are the drivers' own, over those of the fleet.
    """

    name: Name
    address: Annotated[Text, Field(min_length=1, max_length=255)] = "127.0.0.1"
    platform: Platform = "linux/amd64"
    root: Text | None = None
    labels: dict[Key, Text] = {}
    options: dict[Key, Json] = {}
    overrides: NodeOverrides = NodeOverrides()


class Dependency(Frozen):
    """Another fleet this one needs; ``versions`` is not judged here, only that the graph has no cycle."""

    fleet: Name
    why: Text = ""


class Fleet(Frozen):
    """The nodes of one component in one environment.

    ``release`` is the path of the Release document the fleet runs now, relative to this one. ``root`` is the
    template of each node's directory on its host. ``secrets`` are what ``{secret.NAME}`` stands for in ``files``,
    ``run.env`` and settings that go there; each is read on the host, when a node is configured and started. ``init``
    are the steps of a node that has no data yet, once, before its daemon is started for the first time.
    """

    kind: Literal["Fleet"] = "Fleet"
    name: Name
    environment: Name
    release: Annotated[Text, Field(min_length=1)]
    transport: Annotated[Name, _one_of("transport", TRANSPORTS)] = "local"
    service: Annotated[Name, _one_of("service manager", SERVICES)] = "process"
    options: dict[Key, Json] = {}
    root: Annotated[Text, Field(min_length=1)]
    vars: dict[Key, Text | Join] = {}
    run: Daemon
    settings: dict[Key, Text] = {}
    files: dict[FileName, Content] = {}
    secrets: Annotated[dict[SecretName, SecretSource], Field(max_length=MOST_SECRETS)] = {}
    init: Annotated[tuple[InitStep, ...], Field(max_length=16)] = ()
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MAX_NODES)]
    dependencies: tuple[Dependency, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self._problems())
        return self

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        first: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            if node.name in first:
                said = f"{node.name} is the name of node {first[node.name] + 1} already; give each its own"
                problems.append((("nodes", index, "name"), said))
            first.setdefault(node.name, index)
            places: list[tuple[Path, str]] = [
                (("nodes", index, "overrides", "vars", key), key) for key in node.overrides.vars
            ]
            problems += [
                (path, f"the fleet has no var {key}; an override changes one that is there")
                for path, key in places
                if key not in self.vars
            ]
        problems += [
            (("files", name), "is the name of kedge's own file there")
            for name in ("service.json", "secrets.json")
            if name in self.files
        ]
        problems += self._shared_ports()
        problems += self._init_problems()
        seen: set[str] = set()
        for index, dependency in enumerate(self.dependencies):
            if dependency.fleet == self.name:
                problems.append(
                    (("dependencies", index, "fleet"), "a fleet does not depend on itself")
                )
            elif dependency.fleet in seen:
                problems.append(
                    (("dependencies", index, "fleet"), f"{dependency.fleet} is named already")
                )
            seen.add(dependency.fleet)
        return problems

    def _init_problems(self) -> list[Problem]:
        """Names that stand twice, and facts, which are a runbook's."""
        problems: list[Problem] = []
        seen: set[str] = set()
        for index, step in enumerate(self.init):
            place: Path = ("init", index, "run")
            if step.run.name is not None and step.run.name in seen:
                problems.append(((*place, "name"), f"{step.run.name} is the name of another step"))
            seen.add(step.run.name or "")
            check = step.run.check
            if check is None:
                continue
            problems += [
                ((*place, "check"), f"{name} is a fact, and facts are a runbook's: write it out")
                for name in sorted(facts_named(check))
            ]
            if captures(check) or captured(check):
                said = "keeps or compares with captured values, and there are none before a node has data"
                problems.append(((*place, "check"), said))
        return problems

    def _shared_ports(self) -> list[Problem]:
        """Two nodes cannot listen on one port of one address. Ports are the labels named ``port``, or ending in it."""
        owner: dict[tuple[str, str], Node] = {}
        problems: list[Problem] = []
        for index, node in enumerate(self.nodes):
            for label, port in node.labels.items():
                if not PORT_LABEL.search(label) or not port.isdecimal():
                    continue
                other = owner.setdefault((node.address, port), node)
                if other is not node:
                    said = f"{port} on {node.address} is a port of {other.name} already; give each its own"
                    problems.append((("nodes", index, "labels", label), said))
        return problems
