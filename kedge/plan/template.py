"""Placeholders: what may stand in braces, and how a tree of texts is rendered for one node.

A placeholder is ``{word.word…}`` of letters, digits, ``_``, ``-`` and dots; ``{{word.word}}`` is that text itself;
every other brace is just a brace, so that JSON and configuration files need no escapes; so is the one of ``${WORD}``,
a shell's variable. What a placeholder gives is put in as it is, never read again and never given to a shell. In a
``matches`` it is escaped: a version's dots and plus signs are the characters that they are.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping

from kedge.model.base import Json
from kedge.model.notation import Path

FLAGS = "{settings.flags}"
"""As a whole element of a command line: one ``--name=value`` per setting, sorted by name."""

_PLACEHOLDER = re.compile(
    r"\{\{([A-Za-z][\w-]*(?:\.[\w-]+)*)\}\}"
    r"|\{([A-Za-z][\w-]*(?:\.[\w-]+)+)\}"
    r"|(?<!\$)\{([A-Za-z][\w-]*)\}"
)

Values = Mapping[str, str]
Rendered = Callable[[Values], Json]


class UnknownPlaceholderError(KeyError):
    """A placeholder that nothing answers; checked when a plan is made, so not met afterwards."""


def placeholders(text: str) -> tuple[str, ...]:
    """The names in a text, in order, repeated ones repeated."""
    return tuple(match[2] or match[3] for match in _PLACEHOLDER.finditer(text) if not match[1])


def renamed(text: str, begin: str, instead: str) -> str:
    """The text with ``{begin…}`` written as ``{instead…}``."""

    def put(match: re.Match[str]) -> str:
        name = match[2] or ""
        return f"{{{instead}{name[len(begin) :]}}}" if name.startswith(begin) else match[0]

    return _PLACEHOLDER.sub(put, text)


def strings(value: Json, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text of a tree with its place; keys are not templates."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from strings(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from strings(part, (*path, index))


def render(text: str, values: Values) -> str:
    """The text with every placeholder replaced; raises ``UnknownPlaceholderError``."""
    return str(compiled_text(text)(values))


def compiled_text(text: str, escape: Callable[[str], str] | None = None) -> Callable[[Values], str]:
    """A function that renders a text; each value goes through ``escape`` first."""
    parts: list[str] = []
    names: list[str] = []
    end, literal = 0, ""
    for match in _PLACEHOLDER.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        if match[1]:
            literal += "{" + match[1] + "}"
            continue
        parts.append(literal)
        names.append(match[2] or match[3])
        literal = ""
    literal += text[end:]
    if not names:
        return lambda _values: literal
    pairs = tuple(zip(parts, names, strict=True))

    def put(values: Values) -> str:
        try:
            if escape is None:
                return "".join([part + values[name] for part, name in pairs]) + literal
            return "".join([part + escape(values[name]) for part, name in pairs]) + literal
        except KeyError as error:
            raise UnknownPlaceholderError(str(error.args[0])) from None

    return put


def compiled(value: Json) -> Rendered:
    """A function that renders a tree. Parts without placeholders are shared, not copied: treat them as constant.

    Some places are not plain text: ``http.json`` becomes the ``body`` text of its rendered tree, ``tcp.port`` a number, and
    an IPv6 address in a URL gets brackets.
    """
    if not any(placeholders(text) or "{{" in text for _, text in strings(value)) and not _special(
        value
    ):
        return lambda _values: value
    if isinstance(value, str):
        return compiled_text(value)
    if isinstance(value, list):
        items = [compiled(part) for part in value]
        return lambda values: [item(values) for item in items]
    if isinstance(value, dict):
        return _compiled_mapping(value)
    return lambda _values: value


def _special(value: Json) -> bool:
    if isinstance(value, dict):
        http, tcp = value.get("http"), value.get("tcp")
        if (isinstance(http, dict) and "json" in http) or (
            isinstance(tcp, dict) and isinstance(tcp.get("port"), str)
        ):
            return True
        return any(_special(part) for part in value.values())
    return isinstance(value, list) and any(_special(part) for part in value)


def _compiled_mapping(value: dict[str, Json]) -> Rendered:
    fields = [(key, _field(key, part)) for key, part in value.items()]
    return lambda values: {key: field(values) for key, field in fields}


def _field(key: str, part: Json) -> Rendered:
    if key in {"http", "grpc"} and isinstance(part, dict):
        return _compiled_request(part)
    if key == "tcp" and isinstance(part, dict) and isinstance(part.get("port"), str):
        whole = compiled_mapping_of_text(part)

        def tcp(values: Values) -> Json:
            call = whole(values)
            return {**call, "port": int(str(call["port"]))}

        return tcp
    if key == "expect" and isinstance(part, dict):
        return _compiled_expectations(part)
    return compiled(part)


def _compiled_request(part: dict[str, Json]) -> Rendered:
    """A request: brackets around IPv6 addresses of its URL, quotes of a metric's labels escaped, ``json`` as ``body``."""
    fields = {name: compiled(field) for name, field in part.items() if name != "json"}
    url, metric = part.get("url"), part.get("metric")
    if isinstance(url, str):
        fields["url"] = compiled_url(url)
    if isinstance(metric, str):
        fields["metric"] = compiled_text(metric, _in_quotes)
    if "json" in part:
        inner = compiled(part["json"])
        fields["body"] = lambda values: json.dumps(inner(values))
    return lambda values: {name: field(values) for name, field in fields.items()}


def compiled_url(url: str) -> Callable[[Values], str]:
    """A function that renders a URL; an IPv6 address that is put in before its path gets its brackets."""
    found = _AUTHORITY.match(url)
    if found is None:
        return compiled_text(url)
    # Brackets that are written are those that an address gets anyway.
    authority = compiled_text(_BRACKETED.sub(r"\1", found[0]), _bracketed)
    rest = compiled_text(url[found.end() :])
    return lambda values: authority(values) + rest(values)


_AUTHORITY = re.compile(r"[a-z]+://[^/?#]*")
_BRACKETED = re.compile(r"\[(\{[^{}\[\]]+\})\]")


def _bracketed(value: str) -> str:
    if ":" not in value:
        return value
    try:
        ipaddress.IPv6Address(value)
    except ValueError:
        return value
    return f"[{value}]"


def _in_quotes(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _compiled_expectations(paths: dict[str, Json]) -> Rendered:
    """Matchers by path: what is put into a regular expression is text, not syntax."""
    matchers = [(path, _matcher(matcher)) for path, matcher in paths.items()]
    return lambda values: {path: matcher(values) for path, matcher in matchers}


def _matcher(matcher: Json) -> Rendered:
    if not isinstance(matcher, dict):
        return compiled(matcher)
    fields: list[tuple[str, Rendered]] = [
        (
            word,
            compiled_text(wanted, re.escape)
            if word == "matches" and isinstance(wanted, str)
            else compiled(wanted),
        )
        for word, wanted in matcher.items()
    ]
    return lambda values: {word: field(values) for word, field in fields}


def compiled_mapping_of_text(value: dict[str, Json]) -> Callable[[Values], dict[str, Json]]:
    """A function that renders a mapping one level deep."""
    fields = [(key, compiled(part)) for key, part in value.items()]
    return lambda values: {key: field(values) for key, field in fields}


def bound(tree: Json, arguments: Mapping[str, Json]) -> Json:
    """A fact's condition with values for its parameters. A text that is nothing but ``{fact.NAME}`` becomes the value
    itself, a number too; in a ``matches`` and in a metric's label a value is text, not syntax.
    """
    if isinstance(tree, list):
        return [bound(part, arguments) for part in tree]
    if isinstance(tree, dict):
        return {key: _bound_field(key, part, arguments) for key, part in tree.items()}
    if not isinstance(tree, str):
        return tree
    whole = _FACT.fullmatch(tree)
    return arguments[whole[1]] if whole else _bound_text(tree, arguments, str)


def _bound_field(key: str, part: Json, arguments: Mapping[str, Json]) -> Json:
    quotes: dict[str, Callable[[str], str]] = {"matches": re.escape, "metric": _in_quotes}
    quote = quotes.get(key)
    if quote is None or not isinstance(part, str):
        return bound(part, arguments)
    return _bound_text(part, arguments, lambda text: _around_placeholders(text, quote))


def _bound_text(text: str, arguments: Mapping[str, Json], quote: Callable[[str], str]) -> str:
    return _FACT.sub(lambda found: quote(_word(arguments[found[1]])), text)


def _word(value: Json) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _around_placeholders(text: str, quote: Callable[[str], str]) -> str:
    """A text quoted, but for its placeholders, which are filled in and quoted later."""
    parts: list[str] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        parts += [quote(text[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, quote(text[end:])])


_FACT = re.compile(r"(?<!\{)\{fact\.([\w.-]+)\}")


def expand_flags(argv: tuple[str, ...], settings: Mapping[str, str]) -> list[str]:
    """The command line with ``{settings.flags}`` replaced by ``--name=value``, sorted by name; still templates."""
    flags = [f"--{name}={settings[name]}" for name in sorted(settings)]
    return [part for element in argv for part in (flags if element == FLAGS else [element])]
