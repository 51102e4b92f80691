"""Probes as documents write them: conditions on a node that either hold or do not.

A probe says one kind of thing (``http``, ``grpc``, ``command``, ``tcp``, ``service``) or puts others together
(``all``, ``any``, ``not``, ``fact``). ``expect`` maps paths into the answer to a literal or a matcher
(``eq ne ge gt le lt in matches contains starts_with exists``); ``capture`` keeps values for later probes, which say
``{captured: NAME}``. An empty ``all`` or ``any`` is refused: it would be a condition nobody wrote.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from kedge.model.base import Json, Name
from kedge.model.notation import Content, Count, Duration, Entry, Flag, Problem, Text, refuse

MATCHERS = (
    "eq", "ne", "ge", "gt", "le", "lt", "in", "matches", "contains", "starts_with", "exists",
)  # fmt: skip
_VERBS = ("http", "grpc", "command", "tcp", "service", "all", "any", "not", "fact")
_PART = r'(?:"[^"]+"|[^".\s][^.\s]*)'
_PATH = re.compile(rf"^{_PART}(\.{_PART})*$")


class BasicAuth(Entry):
    """A user and a password as HTTP's basic authentication sends them."""

    user: Text
    password: Text


class Request(Entry):
    """What every request from the node may say: whom it trusts, what it shows, and how it gets there.

    ``ca``, ``certificate`` and ``key`` are absolute paths on the host, or PEM; with ``ca`` nothing else is trusted.
    In them, in ``headers`` and in ``basic_auth`` there may be ``{secret.NAME}``, which the host alone reads.
    """

    headers: dict[str, Text] = {}
    basic_auth: BasicAuth | None = None
    ca: Content | None = None
    certificate: Content | None = None
    key: Content | None = None
    server_name: Text | None = None
    socket: Text | None = None
    timeout: Annotated[Duration, Field(gt=0, le=300)] = 2.0

    url: str

    def problems(self) -> list[Problem]:
        """What is wrong with this request, with places relative to it."""
        found: list[Problem] = []
        if _BARE_IPV6.search(self.url):
            found.append((("url",), "an IPv6 address stands in brackets: http://[::1]:8080/health"))
        secure = self.url.startswith(("https:", "grpcs:", "{"))
        tls = [name for name in (*_PEM, "server_name") if getattr(self, name) is not None]
        if tls and not secure:
            found.append(((tls[0],), "is for TLS: write the address with https (or grpcs)"))
        if self.key is not None and self.certificate is None:
            found.append((("key",), "is the key of a client certificate: write `certificate` too"))
        for name in _PEM:
            found += [((name,), said) for said in _pem_problems(name, getattr(self, name))]
        if self.socket is not None and not self.socket.startswith(("/", "{")):
            found.append((("socket",), "must be an absolute path on the host"))
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name):
                said = "is no name of a header: letters, digits and '-'"
                found.append((("headers", name), said))
            elif "\n" in value or "\r" in value:
                found.append((("headers", name), "has a line break; a header is one line"))
            elif self.basic_auth is not None and name.lower() == "authorization":
                found.append(
                    (("headers", name), "is there by `basic_auth` already; write one of them")
                )
        return found


_PEM = ("ca", "certificate", "key")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_BARE_IPV6 = re.compile(r"^[a-z]+://[0-9A-Fa-f]*:[0-9A-Fa-f]*:")


def _pem_problems(name: str, value: str | None) -> list[str]:
    if value is None or value.startswith(("/", "{")):
        return []
    if "PRIVATE KEY-----" in value:
        return ["holds a private key, which everybody can read here: name a file, or {secret.NAME}"]
    if name == "key" or "-----BEGIN CERTIFICATE-----" not in value:
        return ["must be an absolute path on the host, a certificate in PEM, or {secret.NAME}"]
    return []


class HttpCall(Request):
    """One request from the node itself.

    ``json`` is sent as its JSON text, ``body`` as it is. ``parse`` says how to read the answer; text has the one path
    ``text``, and is what an answer is taken for when nothing but that path is asked. With ``metric`` the answer is a page
    of metrics, read line by line; the one path is ``value``.
    """

    url: Annotated[
        str,
        Field(
            pattern=r"^(https?://[^\s@\x00]+|\{[^\s\x00]+)$",
            max_length=4096,
            description="an http or https address without a password (see basic_auth)",
        ),
    ]
    method: Literal["GET", "POST", "PUT", "HEAD"] | None = None
    body: Text | None = None
    json_body: Annotated[Json, Field(alias="json")] = None
    parse: Literal["json", "text"] | None = None
    metric: Text | None = None
    status: Annotated[tuple[Annotated[Count, Field(ge=100, le=599)], ...], Field(min_length=1)] = (
        200,
    )

    model_config = ConfigDict(populate_by_name=True)

    def problems(self) -> list[Problem]:
        """What is wrong with this request, with places relative to it."""
        found = super().problems()
        if self.body is not None and self.json_body is not None:
            found.append((("json",), "there is a body already; write one of body and json"))
        if self.metric is not None:
            if not _SERIES.fullmatch(_PLACEHOLDER.sub("x", self.metric)):
                said = (
                    'is no series: write a name, or a name with labels such as lag{topic="orders"}'
                )
                found.append((("metric",), said))
            if self.parse is not None:
                found.append((("parse",), "has no meaning beside `metric`; take it out"))
        return found


_PLACEHOLDER = re.compile(r"\{[A-Za-z][\w-]*(?:\.[\w-]+)+\}")
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"(?:[^"\\\n]|\\[^\n])*"[ \t]*'
_SERIES = re.compile(
    rf"[a-zA-Z_:][a-zA-Z0-9_:]*(?:[ \t]*\{{[ \t]*(?:{_LABEL}(?:,[ \t]*{_LABEL})*(?:,[ \t]*)?)?\}})?"
)


class GrpcCall(Request):
    """One call of the standard health service of gRPC (``grpc.health.v1``); it holds when the status is SERVING."""

    url: Annotated[
        str,
        Field(
            pattern=r"^(grpcs?://[^\s@/\x00]+/?|\{[^\s\x00]+)$",
            max_length=4096,
            description="grpc://host:port, or grpcs://host:port for TLS",
        ),
    ]
    service: Text | None = None


class CommandCall(Entry):
    """One command on the node, an argument list and never shell text. ``parse`` says how to read its output."""

    argv: Annotated[tuple[Text, ...], Field(min_length=1, max_length=256)]
    env: dict[str, Text] = {}
    cwd: Text | None = None
    timeout: Annotated[Duration, Field(gt=0, le=600)] = 10.0
    exit: Annotated[tuple[Annotated[Count, Field(ge=0, le=255)], ...], Field(min_length=1)] = (0,)
    parse: Literal["json", "text"] = "text"


class TcpCall(Entry):
    """Whether something accepts connections."""

    host: Text
    port: Count | Text
    timeout: Annotated[Duration, Field(gt=0, le=300)] = 1.0


class ServiceCall(Entry):
    """Whether the node's daemon runs."""

    running: Flag


def _http(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


def _command(value: object) -> object:
    if isinstance(value, str | list):
        said = "is an object with the program and its arguments; no shell reads them: {argv: [curl, -f, URL]}"
        raise PydanticCustomError("kedge_command", "{said}", {"said": said})
    return value


def _tcp(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        said = "an IPv6 address stands in brackets: [::1]:8080"
        raise PydanticCustomError("kedge_tcp", "{said}", {"said": said})
    if not colon or not host or not port:
        raise PydanticCustomError("kedge_tcp", 'must be "host:port"')
    return {"host": host, "port": int(port) if port.isdecimal() and len(port) < 6 else port}


def _fact(value: object) -> object:
    return {"fact": value} if isinstance(value, str) else value


class Probe(Entry):
    """A condition. Exactly one of its verbs is there."""

    http: Annotated[HttpCall, BeforeValidator(_http)] | None = None
    grpc: Annotated[GrpcCall, BeforeValidator(_http)] | None = None
    command: Annotated[CommandCall, BeforeValidator(_command)] | None = None
    tcp: Annotated[TcpCall, BeforeValidator(_tcp)] | None = None
    service: ServiceCall | None = None
    all: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=64)] | None = None
    any: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=64)] | None = None
    negated: Annotated[Condition | None, Field(alias="not")] = None
    fact: Name | None = None
    arguments: Annotated[dict[Name, Text | Count | float | Flag], Field(alias="with")] = {}
    expect: dict[str, Json] = {}
    capture: dict[Name, str] = {}

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        refuse(self.problems())
        return self

    def problems(self) -> list[Problem]:
        """What is wrong with this probe by itself, with places relative to it."""
        said = self.verbs()
        if len(said) != 1:
            one = ", ".join(_VERBS)
            what = "says nothing" if not said else f"says {' and '.join(said)} at once"
            return [((said[1],) if said else (), f"a probe {what}; it says exactly one of {one}")]
        problems: list[Problem] = []
        if (self.expect or self.capture) and said[0] not in {"http", "command"}:
            key = "expect" if self.expect else "capture"
            problems.append(
                ((key,), f"{said[0]} gives no answer to look into; only http and command do")
            )
        if self.http is not None:
            problems += [(("http", *place), text) for place, text in self.http.problems()]
            if self.http.metric is not None:
                problems += self._metric_problems()
        if self.grpc is not None:
            problems += [(("grpc", *place), text) for place, text in self.grpc.problems()]
        if self.arguments and self.fact is None:
            problems.append((("with",), "gives values to the parameters of a fact; name the fact"))
        for path, wanted in self.expect.items():
            if not _PATH.match(path):
                problems.append(
                    (
                        ("expect", path),
                        "is no path: keys and indexes joined by dots, such as 0.health; a name with dots stands in quotes: '\"a.b\".c'",
                    )
                )
            problems += [
                ((("expect", path, *place)), text) for place, text in _matcher_problems(wanted)
            ]
        for name, path in self.capture.items():
            if not _PATH.match(path):
                problems.append(
                    (("capture", name), f"{path!r} is no path: keys and indexes joined by dots")
                )
        return problems

    def _metric_problems(self) -> list[Problem]:
        """A metric has one path, and needs a comparison."""
        places = [(("expect", path), path) for path in self.expect]
        places += [(("capture", name), path) for name, path in self.capture.items()]
        found: list[Problem] = [
            (place, "a metric has the one path `value`: expect: {value: {le: 5}}")
            for place, path in places
            if path != "value"
        ]
        if not places:
            found.append(
                (("http", "metric"), "is compared with nothing: add expect: {value: {le: 5}}")
            )
        return found

    def verbs(self) -> list[str]:
        """The verbs that were said."""
        found = [verb for verb in _VERBS if verb != "not" and getattr(self, verb) is not None]
        return found + (["not"] if self.negated is not None else [])

    def parts(self) -> tuple[Probe, ...]:
        """The probes this one is put together from."""
        inner = (*(self.all or ()), *(self.any or ()))
        return (*inner, self.negated) if self.negated is not None else inner


Condition = Annotated[Probe, BeforeValidator(_fact)]
"""A probe, or the name of one of the runbook's ``facts``."""


class Fact(Probe):
    """A named condition. ``{fact.NAME}`` in it stands for the parameter ``NAME``, to which each use gives a value by
    ``with``: one long command stands once.
    """

    parameters: Annotated[tuple[Name, ...], Field(max_length=16)] = ()

    def problems(self) -> list[Problem]:
        """What is wrong with this fact by itself, with places relative to it."""
        known = set(self.parameters)
        written = set(_PARAMETER.findall(self.model_dump_json(by_alias=True)))
        have = ", ".join(sorted(known)) or "none"
        return [
            *super().problems(),
            *(
                (
                    ("parameters", at),
                    f"is used nowhere in this fact: write {{fact.{name}}}, or take it out",
                )
                for at, name in enumerate(self.parameters)
                if name not in written
            ),
            *(
                ((), f"{{fact.{name}}} is no parameter of this fact; its parameters are {have}")
                for name in sorted(written - known)
            ),
        ]

    def argument_problems(self, name: str, use: Probe) -> list[Problem]:
        """What is wrong with the values that a use of this fact gives, with places relative to the use."""
        wanted, given = set(self.parameters), set(use.arguments)
        have = ", ".join(sorted(wanted)) or "none"
        return [
            *(
                (("with", one), f"{one} is no parameter of {name}; its parameters are {have}")
                for one in sorted(given - wanted)
            ),
            *(
                (("fact",), f"{name} needs a value for {one}: {{fact: {name}, with: {{{one}: …}}}}")
                for one in sorted(wanted - given)
            ),
        ]


_PARAMETER = re.compile(r"(?<!\{)\{fact\.([\w.-]+)\}")


def _matcher_problems(wanted: Json) -> list[Problem]:
    if isinstance(wanted, list) or wanted is None:
        return [((), "must be a literal to equal, or a matcher such as {ge: 3}")]
    if not isinstance(wanted, dict) or set(wanted) == {"captured"}:
        return _value_problems(wanted)
    problems: list[Problem] = []
    if not wanted:
        problems.append(((), "is empty; an empty condition would pass everything"))
    for key, value in wanted.items():
        if key not in MATCHERS:
            problems.append(((key,), f"{key!r} is no matcher; one of {', '.join(MATCHERS)}"))
        elif key == "in" and not (isinstance(value, list) and value):
            problems.append(((key,), "must be a list with at least one value"))
        elif key == "exists" and not isinstance(value, bool):
            problems.append(((key,), "must be true or false"))
        elif key == "matches":
            problems += [((key,), said) for said in _pattern_problems(value)]
        elif key in {"contains", "starts_with"} and not isinstance(value, str | dict):
            problems.append(((key,), "must be a text or {captured: NAME}"))
        elif key in {"contains", "starts_with"} and value == "":
            problems.append(((key,), "is empty; every text has it"))
        elif key in {"ge", "gt", "le", "lt"} and isinstance(value, bool | list | None):
            problems.append(((key,), "must be a number, a text or {captured: NAME}"))
        else:
            problems += [((key, *place), said) for place, said in _value_problems(value)]
    return problems


def _value_problems(value: Json) -> list[Problem]:
    if isinstance(value, dict) and (
        set(value) != {"captured"} or not isinstance(value["captured"], str)
    ):
        return [((), "must be a literal or {captured: NAME}")]
    return []


def _pattern_problems(value: Json) -> list[str]:
    if not isinstance(value, str) or len(value) > 500:
        return ["must be a regular expression of at most 500 characters"]
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        return [f"is no regular expression: {error}"]
    return []


def captures(probe: Probe) -> set[str]:
    """The names a probe keeps values under, its parts included."""
    return set(probe.capture).union(*(captures(part) for part in probe.parts()))


def captured(probe: Probe) -> set[str]:
    """The names a probe compares with, its parts included."""
    found: set[str] = set()
    for wanted in probe.expect.values():
        values = [wanted, *wanted.values()] if isinstance(wanted, dict) else []
        found |= {
            str(value["captured"])
            for value in values
            if isinstance(value, dict) and "captured" in value
        }
    return found.union(*(captured(part) for part in probe.parts()))


def facts_named(probe: Probe) -> set[str]:
    """The names of facts that a probe asks, its parts included."""
    own = {probe.fact} if probe.fact is not None else set()
    return own.union(*(facts_named(part) for part in probe.parts()))
