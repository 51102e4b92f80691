"""Conditions that can never hold, found in the document alone: a node would wait for nothing until it fails.

Judged by the host program's own rules (:mod:`kedge.host.verdicts`). What a placeholder, a fact's parameter or a captured
value decides is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterator

from kedge.host import verdicts
from kedge.model.base import Json
from kedge.model.fleet import Fleet
from kedge.model.notation import Path, Problem
from kedge.model.probe import Probe
from kedge.model.runbook import Runbook
from kedge.model.steps import HealthyStep, WaitStep
from kedge.plan.template import placeholders, strings

_ORDERS = ("ge", "gt", "le", "lt")
_OF_TEXTS = ("matches", "contains", "starts_with")


def problems(document: object) -> list[Problem]:
    """Every condition of a document that can never hold."""
    return [
        ((*path, *place), said)
        for path, probe in _probes(document)
        for place, said in (*_probe(probe), *_step(probe))
    ]


def _probes(document: object) -> Iterator[tuple[Path, Probe]]:
    if isinstance(document, Runbook):
        yield from document.probes()
        for name, fact in document.facts.items():
            yield from _inside(("facts", name), fact)
    elif isinstance(document, Fleet):
        for index, step in enumerate(document.init):
            if step.run.check is not None:
                yield from _inside(("init", index, "run", "check"), step.run.check)


def _inside(path: Path, probe: Probe) -> Iterator[tuple[Path, Probe]]:
    yield path, probe
    for key in ("all", "any"):
        for index, part in enumerate(getattr(probe, key) or ()):
            yield from _inside((*path, key, index), part)
    if probe.negated is not None:
        yield from _inside((*path, "not"), probe.negated)


def _step(probe: Probe) -> Iterator[Problem]:
    if isinstance(probe, WaitStep) and probe.hold >= probe.within:
        yield (
            ("for",),
            f"can never be reached within {probe.within:g}s: make `within` longer than `for`",
        )
    if isinstance(probe, HealthyStep) and probe.alive:
        for place, part in _needed((), probe):
            if part.service is not None and not part.service.running:
                yield (
                    (*place, "service"),
                    "can never hold while the daemon must stay alive: write `alive: false`, or `wait`",
                )


def _needed(path: Path, probe: Probe) -> Iterator[tuple[Path, Probe]]:
    """The probe and the parts without which it cannot hold."""
    yield path, probe
    for index, part in enumerate(probe.all or ()):
        yield from _needed((*path, "all", index), part)


def _probe(probe: Probe) -> Iterator[Problem]:
    for path, wanted in probe.expect.items():
        said = _matcher(wanted)
        if said is not None:
            yield ("expect", path), f"can never hold: {said}"
        elif path != "text" or not _is_text(probe):
            continue
        elif (said := _of_text(wanted)) is not None:
            yield ("expect", path), f"can never hold: {said}"
    yield from _paths(probe)
    http = probe.http
    if http is not None and (probe.expect or probe.capture):
        key = "expect" if probe.expect else "capture"
        if http.method == "HEAD":
            yield (key,), "can never hold: the answer to a HEAD has no body"
        elif set(http.status) <= {204, 304}:
            yield (key,), "can never hold: an answer with status 204 or 304 has no body"
        if http.metric is not None and "value" in probe.expect:
            said = _of_number(probe.expect["value"])
            if said is not None:
                yield ("expect", "value"), f"can never hold: {said}"


def _is_text(probe: Probe) -> bool:
    """Whether the answer is read as text."""
    if probe.command is not None:
        return probe.command.parse == "text"
    if probe.http is None or probe.http.metric is not None:
        return False
    asked = {*probe.expect, *probe.capture.values()}
    return probe.http.parse == "text" or (probe.http.parse is None and asked == {"text"})


def _paths(probe: Probe) -> Iterator[Problem]:
    """An answer that is read as text has the one path ``text``."""
    if not _is_text(probe):
        return
    places = [(("expect", path), path) for path in probe.expect]
    places += [(("capture", name), path) for name, path in probe.capture.items()]
    more = "write `parse: json`" if probe.command is not None else "take `parse: text` out"
    what = "output" if probe.command is not None else "answer"
    for place, path in places:
        if path != "text":
            yield (
                place,
                f"can never hold: the {what} is read as text, which has the one path `text`; for JSON {more}",
            )


def _open(value: Json) -> bool:
    """Whether a value is known only when it is asked for."""
    if isinstance(value, dict):
        return True
    return any(placeholders(text) for _, text in strings(value))


def _matcher(wanted: Json) -> str | None:
    """Why no value at all fits a matcher."""
    if not isinstance(wanted, dict) or set(wanted) == {"captured"}:
        return None
    known = {word: value for word, value in wanted.items() if not _open(value)}
    if known.get("exists") is False and len(wanted) > 1:
        return "what does not exist has no value to compare"
    for word in _ORDERS:
        if word in known and verdicts.quantity(known[word]) is None:
            return f"{word} compares numbers, and {verdicts.worded(known[word])} is none"
    for word in ("eq", "in"):
        if word in known:
            found = known[word]
            values = found if word == "in" and isinstance(found, list) else [found]
            rest = {other: value for other, value in known.items() if other != word}
            if rest and not any(_fits(value, rest) for value in values):
                return f"{_shown(values)} is not {verdicts.expected(rest, {})}"
    return _bounds(known)


def _fits(value: Json, rest: dict[str, Json]) -> bool:
    return verdicts.match(value, rest, {}) == verdicts.PASS


def _shown(values: list[Json]) -> str:
    return " or ".join(verdicts.worded(value) for value in values[:8])


def _bounds(known: dict[str, Json]) -> str | None:
    """A lower bound that is above an upper one."""
    for low in ("ge", "gt"):
        for high in ("le", "lt"):
            if low in known and high in known:
                left, right = verdicts.quantity(known[low]), verdicts.quantity(known[high])
                if left is None or right is None:
                    continue
                if left > right or (left == right and (low, high) != ("ge", "le")):
                    one: dict[str, Json] = {low: known[low], high: known[high]}
                    return f"no number is {verdicts.expected(one, {})}"
    return None


def _equals(wanted: Json) -> list[Json] | None:
    """The values that a matcher allows by name; None where it names none, or they are not known yet."""
    if not isinstance(wanted, dict):
        found: Json = [wanted]
    elif "eq" in wanted:
        found = [wanted["eq"]]
    else:
        found = wanted.get("in")
    return found if isinstance(found, list) and not any(_open(one) for one in found) else None


def _of_text(wanted: Json) -> str | None:
    """Why no text fits a matcher: what is read is a text without space around it."""
    values = _equals(wanted)
    if values is not None and not any(isinstance(value, str) for value in values):
        return f"a text is never {_shown(values)}: write it in quotes, or {{ge: …, le: …}} for a number"
    if values is not None and not any(
        isinstance(value, str) and value == value.strip() for value in values
    ):
        return "space and newlines around the text are taken off before it is compared"
    if isinstance(wanted, dict) and wanted.get("exists") is False:
        return "there always is a text"
    return None


def _of_number(wanted: Json) -> str | None:
    """Why no number fits a matcher."""
    values = _equals(wanted)
    if values is not None and not any(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    ):
        return f"the value of a metric is a number, never {_shown(values)}"
    if isinstance(wanted, dict):
        for word in _OF_TEXTS:
            if word in wanted:
                return f"{word} is for texts, and the value of a metric is a number"
        if wanted.get("exists") is False:
            return "a metric that is not there is no data"
    return None
