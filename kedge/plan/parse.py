"""Documents from bytes: every problem of a document at once, each with its place and what would be right."""

from __future__ import annotations

import difflib
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kedge.model.base import Digest, Json, Name
from kedge.model.errors import DocumentError
from kedge.model.fleet import Fleet, Node
from kedge.model.notation import IN_DOCUMENT, PROBLEMS, FileName, Key, Path, Version
from kedge.model.policy import Policy
from kedge.model.probe import GrpcCall, HttpCall
from kedge.model.provenance import Uri
from kedge.model.release import Platform, Release
from kedge.model.runbook import Runbook
from kedge.plan import impossible
from kedge.plan.yamltree import Spot, Tree, read, shown

Document = Fleet | Release | Runbook | Policy
D = TypeVar("D", Fleet, Release, Runbook, Policy)
KINDS: dict[str, type[Document]] = {
    "Fleet": Fleet,
    "Release": Release,
    "Runbook": Runbook,
    "Policy": Policy,
}

_NODES: TypeAdapter[tuple[Node, ...]] = TypeAdapter(tuple[Node, ...])
_AT_A_TIME = 50


@dataclass(frozen=True, slots=True)
class Parsed(Generic[D]):
    """A sound document and where its parts were written."""

    name: str
    value: D
    root: Spot

    def place(self, path: Path) -> str:
        """``file:line:column`` of a path, or of the nearest part of it that was written."""
        spot, _ = self.root.at(path)
        return f"{self.name}:{spot.line}:{spot.column}"

    def problem(self, path: Path, said: str) -> str:
        """A problem in the form that all of them have."""
        where = f"{shown(path)}: " if path else ""
        return f"{self.place(path)}: {where}{said}"


def parse(content: bytes, name: str, kind: type[D]) -> Parsed[D]:
    """A document of the wanted kind; ``DocumentError`` with every problem otherwise."""
    tree, found = _parse(content, name, kind)
    if found is None or not isinstance(found, kind):
        raise DocumentError(tree.problems())
    return Parsed(name, found, tree.root)


def parse_any(
    content: bytes, name: str
) -> Parsed[Fleet] | Parsed[Release] | Parsed[Runbook] | Parsed[Policy]:
    """A document of whatever kind it says; ``DocumentError`` with every problem otherwise."""
    tree, found = _parse(content, name, None)
    if isinstance(found, Fleet):
        return Parsed(name, found, tree.root)
    if isinstance(found, Release):
        return Parsed(name, found, tree.root)
    if isinstance(found, Runbook):
        return Parsed(name, found, tree.root)
    if isinstance(found, Policy):
        return Parsed(name, found, tree.root)
    raise DocumentError(tree.problems())


def _parse(
    content: bytes, name: str, wanted: type[Document] | None
) -> tuple[Tree, Document | None]:
    tree = read(content, name)
    if tree.broken or (tree.found and tree.value is None):
        return tree, None
    if not isinstance(tree.value, dict):
        tree.add(
            1,
            1,
            "",
            "is no mapping; a document begins with kind: Fleet, Release, Runbook or Policy",
        )
        return tree, None
    model = _model(tree, tree.value, wanted)
    if model is None:
        return tree, None
    return tree, _validated(tree, {**tree.value, "kind": model.__name__}, model)


def _validated(tree: Tree, value: dict[str, Json], model: type[Document]) -> Document | None:
    nodes = value.get("nodes")
    if model is Fleet and isinstance(nodes, list) and not _sound_nodes(tree, nodes):
        # The nodes had their say; what else is wrong is looked for with a single good one.
        value = {**value, "nodes": [{"name": "node"}]}
    try:
        document = model.model_validate_json(_text(value), context=IN_DOCUMENT)
    except ValidationError as error:
        _translate(tree, error, model, ())
        return None
    for path, said in impossible.problems(document):
        tree.refuse(path, said)
    return None if tree.found else document


def _sound_nodes(tree: Tree, nodes: list[Json]) -> bool:
    """Look at nodes some at a time: pydantic collects every error of what it is given, whoever reads them."""
    sound = True
    for begin in range(0, len(nodes), _AT_A_TIME):
        try:
            _NODES.validate_json(_text(nodes[begin : begin + _AT_A_TIME]), context=IN_DOCUMENT)
        except ValidationError as error:
            sound = False
            _translate(tree, error, Fleet, ("nodes",), begin)
        if tree.full:
            return False
    return sound


def _text(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _model(
    tree: Tree, value: dict[str, Any], wanted: type[Document] | None
) -> type[Document] | None:
    said = value.get("kind")
    kinds = ", ".join(KINDS)
    if "kind" not in value:
        hint = f"write kind: {wanted.__name__}" if wanted else f"write kind: and one of {kinds}"
        tree.add(tree.root.line, tree.root.column, "kind", f"is missing; {hint}")
        return wanted
    if not isinstance(said, str) or said not in KINDS:
        near = difflib.get_close_matches(str(said)[:40].title(), KINDS, 1)
        hint = f"; do you mean {near[0]}?" if near else ""
        tree.refuse(("kind",), f"must be one of {kinds}{hint}")
        return wanted
    if wanted is not None and KINDS[said] is not wanted:
        tree.refuse(("kind",), f"is a {said}; a {wanted.__name__} is wanted here")
        return None
    return KINDS[said]


def _translate(
    tree: Tree, error: ValidationError, model: type[BaseModel], base: Path, begin: int = 0
) -> None:
    details = error.errors(include_url=False, include_input=False)
    following = _following(details, model, spoiled=bool(tree.found))
    for detail in details:
        if tree.full:
            tree.more += 1
            return
        location: Path = detail["loc"]
        if (detail["type"], location) in following:
            continue
        if base:
            first = location[0] if location else 0
            location = (*base, begin + int(first), *location[1:])
        _tell(tree, detail, location, model)


def _following(
    details: list[ErrorDetails], model: type[BaseModel], *, spoiled: bool
) -> set[tuple[str, Path]]:
    """Errors that only follow from others: a list is empty because what is in it is wrong, or a key is missing because it
    is spelled wrongly. ``spoiled``: values were left out because of problems that are told already.
    """
    found: set[tuple[str, Path]] = set()
    wrong = {detail["loc"][:size] for detail in details for size in range(len(detail["loc"]))}
    for detail in details:
        location: Path = detail["loc"]
        if detail["type"] == "too_short" and (spoiled or location in wrong):
            found.add(("too_short", location))
        if detail["type"] == "extra_forbidden":
            near = _near(model, location)
            found |= {("missing", (*location[:-1], one)) for one in near}
    return found


def _near(model: type[BaseModel], location: Path) -> list[str]:
    """The key that was meant where one is not known."""
    return difflib.get_close_matches(str(location[-1]), sorted(_keys(model, location[:-1])), 1, 0.6)


def _tell(tree: Tree, detail: ErrorDetails, location: Path, model: type[BaseModel]) -> None:
    spot, path = tree.root.at(location)
    if _other_branch(spot, location, path):
        return
    if detail["type"] == PROBLEMS:
        for inner, said in detail["ctx"]["problems"]:
            tree.refuse((*path, *inner), said)
    elif detail["type"] == "missing":
        tree.add(spot.line, spot.column, shown((*path, location[-1])), _missing(location))
    elif detail["type"] == "extra_forbidden":
        _unknown(tree, model, location, path)
    else:
        tree.add(spot.line, spot.column, shown(path), _sentence(detail, spot, path))


def _other_branch(spot: Spot, location: Path, path: Path) -> bool:
    """Whether an error speaks of a form (of several allowed ones) in which the value was not written."""
    tags = [part for part in location if isinstance(part, str) and part not in path]
    for tag in tags:
        if (
            tag.startswith(("literal[", "str", "constrained-str", "function"))
            and spot.inside is not None
        ):
            return True
        if tag[:1].isupper() and spot.inside is None and location[-1] == tag:
            return True
    return False


_MISSING = {
    "undo": "is missing; write none, impossible, snapshot, or the command that takes it back",
    "roles": "is missing; write the roles whose people may sign",
    "lost": "is missing; write in words what can no longer be had behind this point",
    "upgrade_from": 'is missing; write the range of versions it may come from, such as ">=3.4.0 <3.6.0"',
}


def _missing(location: Path) -> str:
    key = str(location[-1])
    return _MISSING.get(key, "is missing")


def _unknown(tree: Tree, model: type[BaseModel], location: Path, path: Path) -> None:
    key = str(location[-1])
    allowed = sorted(_keys(model, location[:-1]))
    near = _near(model, location)
    if near:
        hint = f"do you mean {near[0]}?"
    elif allowed:
        hint = f"one of {', '.join(allowed)}"
    else:
        hint = "take it out"
    spot, _ = tree.root.at(location)
    tree.add(spot.key_line, spot.key_column, shown(path), f"{key[:80]!r} is not known here; {hint}")


def _keys(annotation: object, path: Path) -> set[str]:
    """The keys that may stand in the mapping at ``path`` below a type."""
    if isinstance(annotation, typing.ForwardRef | str):
        return set()
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _keys(typing.get_args(annotation)[0], path)
    if origin in {typing.Union, types.UnionType}:
        return set().union(*(_keys(part, path) for part in typing.get_args(annotation)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not path:
            return set(fields)
        if path[0] in fields:
            return _keys(fields[str(path[0])].annotation, path[1:])
        return _keys(annotation, path[1:]) if path[0] == annotation.__name__ else set()
    if origin in {tuple, dict} and path:
        inner = typing.get_args(annotation)
        return _keys(inner[1] if origin is dict else inner[0], path[1:])
    return set()


def _patterns() -> dict[str, str]:
    """What each pattern of the models asks for, in words."""
    found = {
        str(rule.pattern): str(call.model_fields["url"].description)
        for call in (HttpCall, GrpcCall)
        for rule in call.model_fields["url"].metadata
        if hasattr(rule, "pattern")
    }
    for kind in (Digest, Name, Version, Key, Platform, FileName, Uri):
        for info in typing.get_args(kind)[1:]:
            for rule in getattr(info, "metadata", ()):
                pattern = getattr(rule, "pattern", None)
                if pattern and info.description:
                    found[str(pattern)] = str(info.description)
    return found


_PATTERNS = _patterns()
_TYPES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list: [a, b], or one line with '- ' for each",
    "list_type": "must be a list: [a, b], or one line with '- ' for each",
    "dict_type": "must be a mapping: key: value",
    "model_type": "must be a mapping: key: value",
    "model_attributes_type": "must be a mapping: key: value",
    "finite_number": "must be a finite number",
}


def _sentence(detail: ErrorDetails, spot: Spot, path: Path) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "string_type":
        return _not_text(spot, path)
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        words = _PATTERNS.get(str(context["pattern"]))
        return f"must be {words}" if words else "has a character that cannot stand here"
    return _TYPES.get(kind) or _bound(kind, context) or str(detail["msg"])


def _bound(kind: str, context: dict[str, Any]) -> str:
    """What is wrong with a size or a number; empty when it is something else."""
    if kind in {"too_short", "string_too_short"}:
        return "is empty; there is at least one" if context.get("min_length") == 1 else ""
    if kind == "too_long":
        return f"has too many entries; at most {context['max_length']}"
    if kind == "string_too_long":
        return f"is too long; at most {context['max_length']} characters"
    for bound, words in (
        ("ge", "at least"),
        ("gt", "more than"),
        ("le", "at most"),
        ("lt", "less than"),
    ):
        if bound in context:
            return f"must be {words} {context[bound]:g}"
    return ""


def _not_text(spot: Spot, path: Path) -> str:
    if spot.inside is not None:
        return "must be text, not a list or a mapping"
    versions = {"version", "reports", "speaks", "accepts", "reads", "writes"}
    what = "versions are text" if versions & set(path) else "must be text"
    return f'{what}: write "{spot.source}"' if spot.source else f'{what}: write "…", not nothing'
