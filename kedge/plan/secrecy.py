"""Where secrets may stand: in the daemon's files and environment, in settings that go nowhere else, and in what the
requests of probes show to their servers.

A command line is for everybody on a machine to see, and a runbook's steps and probes are told in journals, histories
and evidence: there no secret may get, also not by way of a setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kedge.model.base import Json
from kedge.model.fleet import Fleet
from kedge.model.notation import Path
from kedge.model.release import Release
from kedge.plan.company import Where
from kedge.plan.requests import may_show
from kedge.plan.settings import effective
from kedge.plan.template import FLAGS, placeholders, strings

UNSTABLE = ("settings", "secret", "release", "before", "after", "run")
"""Placeholders that may not stand in a secret's source: where a secret lies does not change with a run or a release."""
_SEEN = (
    "a command line can be seen by everybody on the host; put it in run.env or in one of the files"
)
_TOLD = "what a step does is told in journals and histories; secrets are for the daemon's files and run.env"
_REQUESTS = ", and for `headers`, `basic_auth`, `ca`, `certificate` and `key` of a request"


def names_secret(text: str) -> bool:
    """Whether a text has a secret in it."""
    return any(name.startswith("secret.") for name in placeholders(text))


def secret_settings(
    fleet: Fleet, releases: Sequence[Release], extra: Mapping[str, str]
) -> set[str]:
    """The settings that hold a secret on some node, by every name they have under these releases."""
    held: set[str] = {
        key
        for node in fleet.nodes
        for key, text in node.overrides.settings.items()
        if names_secret(text)
    }
    held |= {key for key, text in fleet.settings.items() if names_secret(text)}
    for place in range(1, len(releases) + 1):
        known = effective(fleet.settings, tuple(releases[:place]), extra if place > 1 else {})
        held |= {key for key, text in known.items() if names_secret(text)}
        names = {**releases[place - 1].configuration.renamed, **(extra if place > 1 else {})}
        held |= {names[key] for key in tuple(held) if key in names}
    return held


def problems(fleet: Fleet, releases: Sequence[Release], extra: Mapping[str, str]) -> list[Where]:
    """Every secret that would come onto the daemon's command line or into its folder's name, or that a release asks for."""
    held = secret_settings(fleet, releases, extra)
    found: list[Where] = []
    texts: list[tuple[Path, str]] = [
        (("run", "argv", at), text) for at, text in enumerate(fleet.run.argv)
    ]
    texts.append((("run", "cwd"), fleet.run.cwd))
    texts += [
        (("run", name), str(text))
        for name, several in (
            ("user", (fleet.run.user,)),
            ("groups", fleet.run.groups or ()),
            ("ports", fleet.run.ports),
        )
        for text in several
    ]
    for at, step in enumerate(fleet.init):
        told: dict[str, Json] = step.run.model_dump(mode="json")
        for path, text in strings(told):
            found += [
                ("fleet", ("init", at, "run", *path), f"{said}; {_TOLD}")
                for said in _secrets_in(text, held)
            ]
    for path, text in texts:
        found += [("fleet", path, f"{said}; {_SEEN}") for said in _secrets_in(text, held)]
    named = ("before", "after") if len(releases) > 1 else ("release",)[: len(releases)]
    for document, release in zip(named, releases, strict=True):
        for where, values in (
            (("configuration", "defaults"), release.configuration.defaults),
            (("flags",), release.flags),
        ):
            found += [
                (
                    document,
                    (*where, key),
                    f"{said}; secrets are the fleet's, and no release asks for one",
                )
                for key, text in values.items()
                for said in _secrets_in(text, held)
            ]
    return found


def runbook_problem(name: str, path: Path, held: set[str]) -> str | None:
    """Why a placeholder may not stand at a place of a runbook; None when it may."""
    if name.startswith("secret."):
        return None if may_show(path) else f"{{{name}}} may not stand here: {_TOLD}{_REQUESTS}"
    if name.startswith("settings.") and name.removeprefix("settings.") in held:
        return f"{{{name}}} holds a secret and may not stand here: {_TOLD}{_REQUESTS}"
    return None


def _secrets_in(text: str, held: set[str]) -> Iterator[str]:
    if text == FLAGS:
        for key in sorted(held):
            yield f"the setting {key} holds a secret and becomes a flag here"
        return
    for name in dict.fromkeys(placeholders(text)):
        if name.startswith("secret."):
            yield f"{{{name}}} is a secret"
        elif name.startswith("settings.") and name.removeprefix("settings.") in held:
            yield f"{{{name}}} holds a secret"
